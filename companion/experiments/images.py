"""The images of a run: Fashion-MNIST, or an autoencoder's latents where a folder is named."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nag.data import fashion_mnist
from nag.data.latents import latent_source, open_latents, posterior_means
from nag.pretrained.further_training import subset
from nag.support.paths import ROOT

BY_HAND = "build/by-hand"  # where notebooks write that no pipeline runs


class Split(NamedTuple):
    """Fashion-MNIST, images (N, 1, 28, 28) and labels (N,): to train on, and held out."""

    images: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def fashion(out: str, half: int | None = None) -> Split:
    """The 60,000 training images, and the 10,000 test images held out, in uint8.

    Where the training images cannot be had and a run by hand writes to `out`, test images take
    their place: the first or second `half` (0 or 1) and the other half is held out, or all of them
    for both. Raises FileNotFoundError for any other run without them."""
    test = fashion_mnist.load_fashion_mnist("test")
    try:
        return Split(*fashion_mnist.load_fashion_mnist("train"), *test)
    except FileNotFoundError as error:
        if out != BY_HAND:
            raise
        what = "the 10,000 test images" if half is None else "half of the test images"
        print(f"{error}\nTraining on {what} instead.")
    if half is None:
        return Split(*test, *test)
    halves = [[part[k * 5000 : (k + 1) * 5000] for part in test] for k in (0, 1)]
    return Split(*halves[half], *halves[1 - half])


def denoising_data(out: str, keep: Sequence[int] = ()) -> Split:
    """`fashion` in [-1, 1], of the classes `keep` alone if it names any, relabelled 0, 1, …"""

    def kept(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        places, labels = subset(labels, keep or None)
        return fashion_mnist.to_float(images[places]), labels

    data = fashion(out)
    return Split(*kept(data.images, data.labels), *kept(data.held_out, data.held_out_labels))


def training(out: str, latents: str = "") -> tuple[Tensor | Callable, int]:
    """What an estimator trains on, and how many images that are: a folder's latents, or
    Fashion-MNIST in [-1, 1].

    By hand the second half of the test images may take its place (`fashion`)."""
    if latents:
        store = open_latents(ROOT / latents)
        return latent_source(store), len(store)
    images = fashion_mnist.to_float(fashion(out, half=1).images)
    return images, len(images)


def identity(latents: str) -> list[str]:
    """What names the content of a folder of latents in a key, nothing for Fashion-MNIST."""
    return [open_latents(ROOT / latents).digest] if latents else []


def held_out(latents: str, n: int, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """n held-out images (n, C, H, W) and their labels (n,): latents evenly spread over a folder, so
    over its classes, or the first Fashion-MNIST test images in [-1, 1].

    Raises ValueError if the folder has another number of `classes` than is given: with one missing,
    later labels would move."""
    if latents:
        store = open_latents(ROOT / latents)
        if classes not in (None, len(store.classes)):
            raise ValueError(
                f"{latents} has {len(store.classes)} classes where the network has {classes}: "
                "complete the class folders and encode them again"
            )
        chosen = np.linspace(0, len(store) - 1, n).astype(int)
        return posterior_means(store, chosen), store.labels[chosen]
    images, labels = fashion_mnist.load_fashion_mnist("test")
    return fashion_mnist.to_float(images[:n]), labels[:n]


def damaged(images: Tensor, strengths: Sequence[float], seed: int = 0) -> dict[float, Tensor]:
    """uint8 images (N, C, H, W) with the same white noise added, of each standard deviation in
    pixels of [-1, 1]."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    x = fashion_mnist.to_float(images)
    return {strength: fashion_mnist.to_uint8(x + strength * noise) for strength in strengths}
