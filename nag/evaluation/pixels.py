"""A second feature space, unlike the classifier's: pixels of 28x28 images on the 64 principal axes
of the Fashion-MNIST test images.

    y = V^T (x - mean),   V the 64 leading eigenvectors of the test images' covariance

Nothing is trained and no label is used, so that no choice made for the classifier reaches it, and
it needs no file: the images are in Git. The axes hold 88 % of the variance. The Fréchet distance on
them has a meaning of its own: it is the least squared transport distance, in pixels, between any
two distributions of the same means and covariances, and so a lower bound of that between the images
themselves (Gelbrich, 1990, Mathematische Nachrichten 147). Where the classifier's distance reacts
to pixel noise that nobody sees (standard deviation 0.03 multiplies it by six) and is four fifths
between classes, this one ignores such noise and is less than half between classes; it sees blur,
contrast, lost variety and misplaced mass, and is blind to all that leaves means and covariances as
they are."""

from functools import cache

import torch
from torch import Tensor

from nag.data.fashion_mnist import load_fashion_mnist, to_float

AXES = 64


@cache
def _axes() -> tuple[Tensor, Tensor]:
    """Mean (784,) and principal axes (784, 64) of the test images, float64."""
    x = to_float(load_fashion_mnist("test")[0]).flatten(1).double()
    mean = x.mean(0)
    vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / (len(x) - 1)).eigenvectors
    return mean, vectors[:, -AXES:].flip(1)


def features(images: Tensor) -> Tensor:
    """Coordinates (N, 64) float32 of uint8 images (N, 1, 28, 28), pixels scaled to [-1, 1].

    Raises ValueError for images of another kind."""
    if images.dtype != torch.uint8 or images.shape[1:] != (1, 28, 28) or len(images) == 0:
        raise ValueError(
            f"got images {images.dtype} {tuple(images.shape)}: give uint8 (N, 1, 28, 28) with N > 0"
        )
    mean, axes = _axes()
    return ((to_float(images).flatten(1).double() - mean) @ axes).float()
