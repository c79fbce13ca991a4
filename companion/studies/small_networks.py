"""Networks trained in seconds, with which a study's notebook runs at its small defaults."""

from pathlib import Path

import torch
from torch import Tensor

from companion.pipeline import fingerprint
from nag import checkpoint
from nag.data import fashion_mnist
from nag.losses import denoising_loss
from nag.models import DiT, ModelConfig
from nag.train import TrainConfig, train


def training_images(small: bool) -> tuple[Tensor, Tensor, str]:
    """Training images (N, 1, 28, 28) in [-1, 1], their labels (N,), and the split, "train".

    A small run takes the test images where those are absent, which show the same procedure;
    otherwise FileNotFoundError says how to get them."""
    split = "train"
    try:
        images, labels = fashion_mnist.load_fashion_mnist(split)
    except FileNotFoundError as error:
        if not small:
            raise
        print(f"{error}\nUsing the 10,000 test images instead.")
        split = "test"
        images, labels = fashion_mnist.load_fashion_mnist(split)
    return fashion_mnist.to_float(images), labels, split


def trained(
    folder: Path,
    images: Tensor,
    labels: Tensor,
    *,
    width: int = 64,
    images_seen: int = 4800,
    noise_dropout: float = 0.1,
    seed: int = 0,
) -> Path:
    """The file of a small SiT, two blocks deep, trained on images (N, 1, 28, 28) in [-1, 1].

    It is named after its settings and code, and trained if it is not there."""
    config = TrainConfig(
        images_seen=images_seen,
        batch_size=64,
        lr=2e-3,
        warmup_steps=20,
        cooldown=0.5,
        ema_decay=0.98,
        seed=seed,
        compile=False,
    )
    code = fingerprint.digest(fingerprint.of_objects(trained))
    file = folder / f"{config.key(width, noise_dropout, len(images), code)}.safetensors"
    if not file.is_file():
        torch.manual_seed(seed)
        net = DiT(ModelConfig(width=width, depth=2, heads=max(1, width // 32)))
        state = file.with_suffix(".pt")
        loss = denoising_loss(images, labels, 0.1, noise_dropout)
        train(net, loss, len(images), config, state)
        checkpoint.save(file, net, images_seen=str(images_seen), seed=str(seed))
        state.unlink(missing_ok=True)
    return file


def trained_by_name(folder: Path, name: str, images: Tensor, labels: Tensor, seen: int) -> Path:
    """The file of a small network "tiny-dRATE" or "tiny-dRATE-sSEED", such as "tiny-d10-s1": 10 %
    noise-condition dropout, training seed 1.
    """
    _, rate, *seed = name.split("-")
    return trained(
        folder,
        images,
        labels,
        images_seen=seen,
        noise_dropout=int(rate[1:]) / 100,
        seed=int(seed[0][1:]) if seed else 0,
    )
