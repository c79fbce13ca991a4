"""How the noise-level estimator reads held-out forward states of known noise level (notebook 2)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nag.estimator import NoiseEstimator, calibration, posterior, posterior_mean
from nag.interpolant import add_noise
from nag.shift import is_late
from nag.support.rng import generator

LEVELS = (0.02, 0.06, 0.1, 0.2, 0.5, 0.9)


@torch.no_grad()
def example(
    net: NoiseEstimator,
    image: Tensor,
    path: str,
    levels: Sequence[float] = (0.05, 0.2, 0.5, 0.8),
    seed: int = 0,
    reach: float = 0.08,
) -> list[dict]:
    """The posterior density of one image (1, C, H, W) at each level, {"truth", "t", "density"}: 400
    points within `reach` of the truth."""
    truth = torch.tensor(levels)
    eps = torch.randn(len(truth), *image.shape[1:], generator=generator(seed, 3))
    x_t = add_noise(image.expand_as(eps), eps, truth, path)
    curves = []
    for k, level in enumerate(truth):
        t = torch.linspace(max(1e-3, level - reach), min(0.999, level + reach), 400)
        density = posterior(net, x_t[k : k + 1]).log_prob(t[:, None]).exp()[:, 0]
        curves.append({"truth": levels[k], "t": t.tolist(), "density": density.tolist()})
    return curves


def calibrate(
    net: NoiseEstimator, images: Tensor, path: str, seed: int = 0, rounds: int = 5
) -> dict[str, np.ndarray]:
    """`nag.estimator.calibration` on forward states of images (M, C, H, W), each at `rounds` noise
    levels from an even grid."""
    gen = generator(seed, 4)
    states, times = [], []
    for _ in range(rounds):
        t = (torch.arange(len(images)) + 0.5) / len(images)
        t = t[torch.randperm(len(images), generator=gen)].clamp(2e-3, 1 - 2e-3)
        states.append(add_noise(images, torch.randn(images.shape, generator=gen), t, path))
        times.append(t)
    return calibration(net, torch.cat(states), torch.cat(times))


@torch.no_grad()
def spread(net: NoiseEstimator, images: Tensor, path: str, seed: int = 0) -> dict[str, float]:
    """Standard deviation over images (M, C, H, W) of the estimated level, by true level."""
    eps = torch.randn(images.shape, generator=generator(seed, 5))
    levels = torch.tensor(LEVELS)
    read = [posterior_mean(net, add_noise(images, eps, float(t), path)) for t in levels]
    return {f"{t:.2f}": float(mean.std()) for t, mean in zip(LEVELS, read, strict=True)}


def summary(cal: dict[str, np.ndarray], path: str) -> dict[str, float]:
    """The largest gap between nominal and actual coverage, and the largest bias late in sampling
    (`nag.shift.is_late`)."""
    late = is_late(np.array(cal["t"]), path)
    return {
        "coverage_gap": float(np.abs(cal["coverage"] - cal["level"]).max()),
        "late_bias": float(np.abs(np.array(cal["bias"])[late]).max()),
    }
