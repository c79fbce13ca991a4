"""Images in two unlike feature spaces: those of the Fashion-MNIST classifier, and pixels on their
principal axes (`nag.evaluation.pixels`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nag import checkpoint
from nag.data import fashion_mnist
from nag.evaluation import metrics, pixels
from nag.evaluation.fashion_classifier import Extractor
from nag.support.paths import WEIGHTS

EXTRACTOR = WEIGHTS / "extractor.safetensors"
EACH = 600  # images of a class on either side of the ceiling


@dataclass(frozen=True)
class Features:
    """Features of N images: `first` (N, 192) of the classifier, `second` (N, 64) of the pixels."""

    first: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, places: slice | np.ndarray) -> "Features":
        return Features(self.first[places], self.second[places])


def features_of(images: Tensor | np.ndarray) -> Features:
    """Features of uint8 images (N, 1, 28, 28); call `real` first, which registers the extractor."""
    images = torch.as_tensor(images)
    return Features(metrics.extract_features(images), pixels.features(images))


def real(images: Tensor | None = None) -> Features:
    """Features of real images, uint8 (M, 1, 28, 28), by the committed extractor, which is
    registered for `metrics.extract_features`; the 10,000 test images unless others are given."""
    metrics.register_extractor(checkpoint.load_weights(EXTRACTOR, Extractor()))
    return features_of(fashion_mnist.load_fashion_mnist("test")[0] if images is None else images)


Labels = np.ndarray | Tensor | None


def quality(
    images: Features,
    real: Features,
    labels: Labels,
    resamples: int = 100,
    allow_rank_deficient: bool = False,
) -> dict[str, dict]:
    """Distances in both spaces, precision and recall with 95 % intervals (`metrics.METRICS`), of
    generated images whose numbers by class are those of `labels` (N,)."""
    return metrics.with_intervals(
        images.first,
        real.first,
        resamples=resamples,
        labels=None if labels is None else np.asarray(labels),
        second=(images.second, real.second),
        allow_rank_deficient=allow_rank_deficient,
    )


def ratio(images: Features, baseline: Features, real: Features, labels: Labels) -> dict[str, Any]:
    """Fréchet ratio of generated images over others of the same seeds and labels, as
    `metrics.distance_ratio` has it, with that of the other space under "second"."""
    found, second = (
        metrics.distance_ratio(*parts, labels=None if labels is None else np.asarray(labels))
        for parts in (
            (images.first, baseline.first, real.first),
            (images.second, baseline.second, real.second),
        )
    )
    return found | {"second": second}


# ---- what distances there are between real images


def balanced(labels: Tensor | np.ndarray, n: int, skip: int = 0) -> np.ndarray:
    """Places (n,) of images of labels (M,), the class of the k-th being k modulo the number of
    classes: those after the first `skip` of each class. ValueError if a class has too few."""
    labels = np.asarray(labels)
    classes = np.unique(labels)
    each = -(-n // len(classes))
    columns = [np.flatnonzero(labels == c)[skip : skip + each] for c in classes]
    if min(map(len, columns)) < each:
        raise ValueError(f"{n} balanced images need {skip + each} of each class")
    return np.stack(columns, axis=1).reshape(-1)[:n]


def floor(real: Features, n: int) -> dict[str, dict] | None:
    """`quality` of n real training images, balanced over the classes, which no generator can be
    expected to beat; None where the training images cannot be had."""
    train = _training_images()
    if train is None:
        return None
    images, labels = train
    places = balanced(labels, n)
    return quality(features_of(images[places]), real, labels[places])


def ceiling() -> dict[str, dict] | None:
    """Distances of 600 training images of each class from as many of the next class, the mean over
    the ten classes: what images of plainly another kind have. {"fd", "fd_inf", "fd_inf_second"}
    with 95 % intervals over images; None where the training images cannot be had."""
    train = _training_images()
    if train is None:
        return None
    images, labels = train
    classes = len(fashion_mnist.CLASSES)
    of = features_of(images[balanced(labels, classes * EACH)])
    found = []
    for c in range(classes):
        one, other = of[slice(c, None, classes)], of[slice((c + 1) % classes, None, classes)]
        first = metrics.frechet_intervals(one.first, other.first, resamples=20)
        second = metrics.frechet_intervals(one.second, other.second, resamples=20)
        found.append(first | {"fd_inf_second": second["fd_inf"]})
    return {name: _mean([pair[name] for pair in found]) for name in found[0]}


def _mean(found: list) -> dict[str, float]:
    """The mean of intervals with independent errors."""
    value = float(np.mean([x["value"] for x in found]))
    half = float(np.linalg.norm([(x["high"] - x["low"]) / 2 for x in found]) / len(found))
    return {"value": value, "low": value - half, "high": value + half, "n": len(found) * EACH}


def _training_images() -> tuple[Tensor, Tensor] | None:
    try:
        return fashion_mnist.load_fashion_mnist("train")
    except FileNotFoundError:
        print("the training images are not here, so real images have no distance to show")
        return None


def of_row(row: Mapping[str, np.ndarray]) -> Features:
    """The features that are kept of an arm under "features" and "second"."""
    return Features(torch.from_numpy(row["features"]), torch.from_numpy(row["second"]))
