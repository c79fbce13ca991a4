"""What notebook 15 measures: samples in ADM's format and a reference, or stand-ins whose truth is
known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nag.data.fashion_mnist import load_fashion_mnist
from nag.evaluation import adm
from nag.support.files import atomic
from nag.support.paths import ROOT

STAND_INS = ("real", "noisy", "four-classes")


class Inputs(NamedTuple):
    """Sample files by arm, the reference file, and how `adm.evaluate` is to treat them."""

    files: dict[str, Path]
    reference: Path
    settings: dict  # keywords of `adm.evaluate`


def sample_files(family: str, arms: Sequence[str], samples: str, out: str) -> dict[str, Path]:
    """The file of each arm in the folder `samples`; without one, of each stand-in in `out`."""
    folder = ROOT / (samples or f"{out}/adm")
    return {arm: folder / f"{family}-{arm}.npz" for arm in (arms if samples else STAND_INS)}


def inputs(
    files: Mapping[str, Path], samples: str, reference: str, out: str, n_images: int, **settings
) -> Inputs:
    """The samples and reference named, with the `settings` of `adm.evaluate`; without `samples`,
    stand-ins are made in `out` (`make_stand_ins`)."""
    if samples:
        return Inputs(dict(files), ROOT / reference, settings)
    made = {
        "extractor": "fashion-mnist",
        "uint8": "none: published bytes",
        "allow_fewer": True,
        "dino": False,
    }
    path = ROOT / out / "adm" / "reference.npz"
    make_stand_ins(files, path, n_images)
    return Inputs(dict(files), path, settings | made)


def make_stand_ins(files: Mapping[str, Path], reference: Path, n_images: int) -> None:
    """Three sets of n real Fashion-MNIST images: as they are, with noise of 40 grey levels, and of
    four of the ten classes only; the reference is the other half of the test images."""
    images, labels = load_fashion_mnist("test")
    # (10000, 28, 28, 3), as ADM stores images
    images = np.repeat(images.permute(0, 2, 3, 1).numpy(), 3, axis=-1)
    half, classes = len(images) // 2, labels.numpy()
    real = images[:half][:n_images]
    noise = np.random.default_rng(0).normal(0, 40, (n_images, 28, 28, 1))
    sets = {
        "real": real,
        "noisy": (real + noise).clip(0, 255).astype(np.uint8),
        "four-classes": images[:half][classes[:half] < 4][:n_images],
    }
    for name, made in sets.items():
        with atomic(files[name]) as part:
            np.savez(part, made)
    adm.reference_from_images(reference, images[half:], "fashion-mnist", count=n_images)


def evaluate(found: Inputs, expected: int, blocks: int) -> dict:
    """The numbers of every arm and the protocol that they share, as adm-FAMILY.json keeps them.

    Raises ValueError if the arms were measured by different protocols."""
    results = {}
    for arm, path in found.files.items():
        results[arm] = adm.evaluate(
            path, found.reference, expected=expected, blocks=blocks, **found.settings
        )
        print(f"{arm}\n{adm.report(results[arm])}\n", flush=True)
    first = next(iter(results.values()))
    protocol = dict(first["protocol"])
    for arm, result in results.items():
        if any(result["protocol"][k] != protocol[k] for k in protocol if k != "files"):
            raise ValueError(f"{arm} was measured by another protocol: evaluate all arms again")
    samples = {arm: result["protocol"]["files"]["samples"] for arm, result in results.items()}
    protocol["files"] = {"reference": protocol["files"]["reference"], "samples": samples}
    names = [name for name in adm.LABELS if name in first]
    content = {arm: {name: result[name] for name in names} for arm, result in results.items()}
    return content | {"protocol": protocol}


def first_images(files: Mapping[str, Path], n: int = 8) -> dict[str, np.ndarray]:
    """The first n images (n, C, H, W) of each file."""
    return {arm: next(adm.image_batches(path, n)).numpy() for arm, path in files.items()}
