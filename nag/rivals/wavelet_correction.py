"""Differential correction in the wavelet domain (DCW), a rival of noise guidance: each new state is
moved away from the predicted image, or towards it, in its low frequencies.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from nag.ddpm import Prediction, with_variance
from nag.interpolant import coefficients, convert, falling
from nag.samplers.one_step import Noise, State


def haar_low(x: Tensor) -> Tensor:
    """The part of x (B, C, H, W) in the low band of the Haar transform at its finest scale: means
    of 2 x 2 blocks.

    Raises ValueError if H or W is odd."""
    if x.shape[-1] % 2 or x.shape[-2] % 2:
        raise ValueError(f"states {tuple(x.shape)} have no 2 x 2 blocks: H and W must be even")
    return F.avg_pool2d(x, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)


class _Seen:
    """A field that keeps its last velocity."""

    def __init__(self, field: Callable):
        self.field = field

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self.with_variance(x, t).mean

    def with_variance(self, x: Tensor, t: float) -> Prediction:
        found = with_variance(self.field, x, t)
        self.v = found.mean
        return found


def wavelet_corrected(
    step: Callable[..., Tensor],
    strength: float,
    field: Callable,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    path: str = "linear",
) -> Iterator[State]:
    """A sampler of one evaluation a step, each new state corrected in its low band.

        x_s + strength sigma_t / sigma_1 P(x_s - x_0-hat),   P = `haar_low`

    `step` is one of nag.samplers.registry.STEPS. The published strength is 0.005 (EDM on CIFAR-10,
    13 steps, where alpha = 1); where alpha falls with t the best sign may be the other. Yields as
    nag.samplers.one_step does ("Elucidating the SNR-t Bias", CVPR 2026, code AMAP-ML/DCW)."""
    yield x, float(times[0])
    seen = _Seen(field)
    largest = coefficients(path, torch.ones(()), x).sigma
    for t, s in pairwise(falling(times)):
        new = step(seen, x, t, s, noise, path, last=s == times[-1])
        x0 = convert(seen.v, x, t, "v", "x0", path)
        gain = strength * coefficients(path, t, x).sigma / largest
        x = new + gain * haar_low(new - x0)
        yield x, s
