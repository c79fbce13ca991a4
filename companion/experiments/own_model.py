"""The stand-in of notebook 10 for a reader's own diffusers model, and what measures it."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from nag.data import fashion_mnist
from nag.diagnose import scheduler_states
from nag.estimator import NoiseEstimator, estimator_loss, posterior_mean
from nag.shift import forward_states
from nag.support.paths import CHECKPOINTS
from nag.support.rng import ImageNoise
from nag.train import TrainConfig, train


def example_images() -> Tensor:
    """Fashion-MNIST's test images at half size, (10000, 1, 14, 14) in [-1, 1]."""
    images = fashion_mnist.to_float(fashion_mnist.load_fashion_mnist("test")[0])
    return torch.nn.functional.avg_pool2d(images, 2)


def example_unet(
    images: Tensor, images_seen: int, noise_dropout: float, seed: int
) -> tuple[UNet2DModel, list[float]]:
    """A small unconditional UNet that predicts epsilon, trained for seconds on images (N, 1, 14,
    14), and its losses.

    Class 0 means that the timestep holds; class 1, in `noise_dropout` of the examples, that it is
    not given (it is then 0)."""
    unet = UNet2DModel(
        sample_size=14,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        add_attention=False,
        num_class_embeds=2,
    )
    forward = DDPMScheduler()

    def loss(net: UNet2DModel, index: Tensor, gen: torch.Generator) -> Tensor:
        level = torch.randint(1000, (len(index),), generator=gen)
        eps = torch.randn(images[index].shape, generator=gen)
        unknown = torch.rand(len(index), generator=gen) < noise_dropout
        x_t = forward.add_noise(images[index], eps, level)
        x_t, eps, level, unknown = (a.to(net.device) for a in (x_t, eps, level, unknown))
        predicted = net(x_t, torch.where(unknown, 0, level), unknown.long()).sample
        return (predicted.float() - eps).square().mean()

    config = TrainConfig(
        images_seen=images_seen,
        batch_size=64,
        lr=2e-3,
        warmup_steps=20,
        cooldown=0.4,
        ema_decay=0.98,
        seed=seed,
        compile=False,
    )
    state = CHECKPOINTS / f"own-unet-{config.key(noise_dropout)}.pt"
    losses = [record["loss"] for record in train(unet, loss, len(images), config, state)]
    state.unlink()
    return unet.cpu(), losses


def example_estimator(images: Tensor, images_seen: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A noise-level estimator for these images on DDPM's path, x -> E[t | x]."""
    estimator = NoiseEstimator(images.shape[1])
    config = TrainConfig(
        images_seen=images_seen,
        batch_size=128,
        lr=2e-3,
        warmup_steps=20,
        cooldown=0.5,
        ema_decay=0.95,
        seed=seed,
        precision="fp32",
        compile=False,
    )
    state = CHECKPOINTS / f"own-estimator-{config.key()}.pt"
    train(estimator, estimator_loss(images, "ddpm"), len(images), config, state)
    state.unlink()
    return partial(posterior_mean, estimator.cpu())


@torch.no_grad()
def sharpness(read: Callable, images: Tensor, path: str = "ddpm") -> dict[str, list[float]]:
    """Mean reading of forward states, and its spread over images, at six levels."""
    levels = torch.tensor([0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    found = torch.stack([read(x) for x in forward_states(images, levels, path).unbind(1)])
    columns = {"t": levels, "mean reading": found.mean(1), "spread over images": found.std(1)}
    return {name: column.tolist() for name, column in columns.items()}


def oracle(images: Tensor) -> Callable[[Tensor, int], Tensor]:
    """A call (x, timestep) with the exact epsilon of the images (N, C, H, W) that are to come out:
    all in one batch, sample i becomes image i."""
    alphas = DDPMScheduler().alphas_cumprod

    def call(x: Tensor, timestep: int) -> Tensor:
        kept = alphas[timestep]
        return (x - kept.sqrt() * images[: len(x)]) / (1 - kept).sqrt()

    return call


def as_json(runs: Mapping[str, Mapping]) -> dict[str, dict]:
    """Times, delta(t), late shift and growth of each run of `nag.diagnose`."""

    def lists(x: Mapping) -> dict:
        return {end: np.asarray(x[end]).tolist() for end in ("value", "low", "high")}

    parts = ("delta", "late", "growth")
    return {
        name: {"times": np.asarray(run["times"]).tolist()} | {p: lists(run[p]) for p in parts}
        for name, run in runs.items()
    }


def first_samples(
    calls: Mapping[str, tuple], images: Tensor, steps: int, n: int = 16
) -> dict[str, np.ndarray]:
    """The first n samples (n, 1, H, W) in uint8 of each (call, scheduler) from the same seeds, and
    as many held-out images."""
    rows = {}
    for name, (call, loop) in calls.items():
        noise = ImageNoise(range(n))
        start = noise(images.shape[1:])
        states, _ = scheduler_states(call, loop, start, steps, generator=noise.streams)
        rows[name] = states[:, -1]
    rows["held-out images"] = images[:n]
    return {name: fashion_mnist.to_uint8(x).numpy() for name, x in rows.items()}
