"""Quality of the arms of the main pipeline as notebook 7 measures and keeps it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from companion.experiments.arms import Run
from nag import checkpoint
from nag.data.fashion_mnist import load_fashion_mnist
from nag.evaluation import metrics
from nag.evaluation.fashion_classifier import Extractor
from nag.support.paths import WEIGHTS

PAIRS = {
    "nag over none": ("nag", "none"),
    "cfg+nag over cfg": ("cfg-nag", "cfg"),
    "nag over cfg": ("nag", "cfg"),
}


def reference_features(n: int) -> Tensor:
    """Features (n, 192) of the first n test images by the committed extractor, which is registered
    for `metrics.extract_features`."""
    extractor = checkpoint.load_weights(WEIGHTS / "extractor.safetensors", Extractor())
    metrics.register_extractor(extractor)
    return metrics.extract_features(load_fashion_mnist("test")[0][:n])


def features_of(runs: Mapping[str, Run]) -> dict[str, Tensor]:
    """Features (N, 192) of each arm's images, which must share their seeds (ValueError)."""
    seeds = [run["seeds"].tolist() for run in runs.values()]
    if any(other != seeds[0] for other in seeds):
        raise ValueError("the arms differ in their seeds: sample all with the same ones")
    return {
        arm: metrics.extract_features(torch.from_numpy(run["images"])) for arm, run in runs.items()
    }


def quality(
    features: Mapping[str, Tensor], reference: Tensor, seeds: Sequence[int]
) -> dict[str, dict]:
    """Distances, precision and recall of each arm with 95 % intervals and their seeds, first and
    last."""
    found = {}
    for arm, of in features.items():
        values = metrics.with_intervals(of, reference)
        found[arm.replace("-", "+")] = {
            name: value | {"seeds": list(seeds)} for name, value in values.items()
        }
        print(arm, {name: round(value["value"], 4) for name, value in values.items()}, flush=True)
    return found


def paired_ratios(features: Mapping[str, Tensor], reference: Tensor) -> dict[str, dict]:
    """The Fréchet distance of one arm over another's for every pair of PAIRS, on the same
    subsamples of seeds."""
    return {
        pair: metrics.distance_ratio(features[a], features[b], reference)
        for pair, (a, b) in PAIRS.items()
    }


def floor(reference: Tensor, n: int) -> dict | None:
    """The same distances for the first n real training images, which no generator can be expected
    to beat; None where the training images cannot be had."""
    try:
        real, _ = load_fashion_mnist("train")
    except FileNotFoundError:
        print("the training images are not here, so there is no floor to show")
        return None
    return metrics.with_intervals(metrics.extract_features(real[:n]), reference)
