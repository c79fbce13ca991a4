"""Quality of the arms of the main pipeline as notebook 7 measures and keeps it."""

from collections.abc import Mapping, Sequence

from companion.experiments import spaces
from companion.experiments.arms import Run
from companion.experiments.spaces import Features
from nag.data.fashion_mnist import load_fashion_mnist

PAIRS = {
    "nag over none": ("nag", "none"),
    "cfg over none": ("cfg", "none"),
    "cfg+nag over none": ("cfg-nag", "none"),
    "cfg+nag over cfg": ("cfg-nag", "cfg"),
    "nag over cfg": ("nag", "cfg"),
}


def reference_features(n: int) -> Features:
    """Features of the first n test images in both spaces; registers the committed extractor."""
    return spaces.real(load_fashion_mnist("test")[0][:n])


def features_of(runs: Mapping[str, Run]) -> dict[str, Features]:
    """Features of each arm's images, which must share their seeds and labels (ValueError)."""
    for name in ("seeds", "labels"):
        values = [run[name].tolist() for run in runs.values()]
        if any(other != values[0] for other in values):
            raise ValueError(f"the arms differ in their {name}: sample all with the same ones")
    return {arm: spaces.features_of(run["images"]) for arm, run in runs.items()}


def quality(
    features: Mapping[str, Features],
    reference: Features,
    seeds: Sequence[int],
    labels: spaces.Labels,
) -> dict[str, dict]:
    """Distances in both spaces, precision and recall of each arm with 95 % intervals and their
    seeds, first and last; resampling keeps the numbers by class of `labels`."""
    found = {}
    for arm, of in features.items():
        values = spaces.quality(of, reference, labels)
        found[arm.replace("-", "+")] = {
            name: value | {"seeds": list(seeds)} for name, value in values.items()
        }
        print(arm, {name: round(value["value"], 4) for name, value in values.items()}, flush=True)
    return found


def paired_ratios(
    features: Mapping[str, Features], reference: Features, labels: spaces.Labels
) -> dict[str, dict]:
    """The Fréchet distance of one arm over another's for every pair of PAIRS, on the same
    subsamples of seeds (`spaces.ratio`)."""
    return {
        pair: spaces.ratio(features[a], features[b], reference, labels)
        for pair, (a, b) in PAIRS.items()
        if {a, b} <= features.keys()
    }


def bounds(reference: Features, n: int) -> dict[str, dict | None]:
    """What real images have: n balanced training images, and those of another class."""
    return {
        "real training images": spaces.floor(reference, n),
        "another class": spaces.ceiling(),
    }
