"""The discrete side of diffusion: the Gaussian q(x_s | x_t, x_0) between two levels, and DiT's
learned range of variances.

Levels are times of any path, 1 >= t > s >= 0; with path "ddpm", level i of 0...999 is t = (i +
1)/1000."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from nag.interpolant import coefficients, widest

LEVELS = 1000


def learns_variance(config: Any) -> bool:
    """Whether a network's second half of channels is a variance: the official SiT has such channels
    too, never trained.
    """
    return getattr(config, "learn_sigma", False) and config.path == "ddpm"


class Prediction(NamedTuple):
    """A prediction (B, C, H, W) and, where the variance is learned, `fraction`.

    The fraction (B, C, H, W), about in [0, 1], is the place of the step's log variance in DiT's
    range (`log_variance`); None where nothing is learned."""

    mean: Tensor
    fraction: Tensor | None = None


def network_output(out: Any, x: Tensor) -> Tensor:
    """The tensor (B, C or 2 C, H, W) in what a network says of states x (B, C, H, W).

    It may be a tensor, a tuple that begins with one, or an object with `sample`, such as diffusers'
    models return. With 2 C channels the second half is a learned variance. Raises ValueError for
    anything else."""
    if not isinstance(out, Tensor):
        out = out[0] if isinstance(out, tuple | list) and out else getattr(out, "sample", out)
    shape = tuple(getattr(out, "shape", ()))
    b, c, *size = x.shape
    if shape not in ((b, c, *size), (b, 2 * c, *size)):
        raise ValueError(
            f"the network made {f'shape {shape}' if shape else type(out).__name__} of states of "
            f"shape {tuple(x.shape)}: it must return a tensor of that shape, or with twice the "
            "channels, the second half a variance"
        )
    return out


@runtime_checkable
class VarianceField(Protocol):
    """A velocity field field(x, t) -> v that can also say its learned variance."""

    def __call__(self, x: Tensor, t: float, /) -> Tensor: ...

    def with_variance(self, x: Tensor, t: float, /) -> Prediction: ...


def with_variance(field: Callable[[Tensor, float], Tensor], x: Tensor, t: float) -> Prediction:
    """v at x and t of any velocity field, with its learned variance if it is a `VarianceField`."""
    if isinstance(field, VarianceField):
        return field.with_variance(x, t)
    return Prediction(field(x, t))


def discretise(u: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) to the times 1/1000, 2/1000, ..., 1 of DDPM's levels."""
    return (u * LEVELS).floor().clamp_max(LEVELS - 1).add(1) / LEVELS


def posterior(
    t: Tensor | float, s: Tensor | float, like: Tensor, path: str = "ddpm"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q(x_s | x_t, x_0) = N(a x_0 + b x_t, variance): a, b, variance and beta = var(x_t | x_s), in
    float64 (MPS: 32).

    t and s are () or (B,) with t > s; all four broadcast against `like` (B, ...) (Ho et al., 2020,
    eq. 6-7, for any path)."""
    like = like.new_zeros([1] * like.ndim, dtype=widest(like.device))
    now, then = coefficients(path, t, like), coefficients(path, s, like)
    ratio = now.alpha / then.alpha
    beta = now.sigma**2 - (ratio * then.sigma) ** 2
    shrink = (then.sigma / now.sigma) ** 2
    return then.alpha * beta / now.sigma**2, ratio * shrink, beta * shrink, beta


def log_variance(
    fraction: Tensor, t: Tensor | float, s: Tensor | float, path: str = "ddpm"
) -> Tensor:
    """DiT's learned range: log variance (B, ...) between the posterior's (fraction 0) and beta's
    (1), of fraction's dtype.

    The posterior variance of a step to s = 0 is zero; that of the step before stands for it (Nichol
    & Dhariwal, 2021)."""
    t, s = (
        torch.as_tensor(k, dtype=widest(fraction.device), device=fraction.device) for k in (t, s)
    )
    *_, beta = posterior(t, s, fraction, path)
    at_data = s == 0
    *_, least, _ = posterior(
        torch.where(at_data, 2 * t, t), torch.where(at_data, t, s), fraction, path
    )
    return (fraction * beta.log() + (1 - fraction) * least.log()).to(fraction.dtype)


def variational_bound(
    fraction: Tensor, x0_hat: Tensor, x0: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """DDPM's bound of one level in bits per dimension, (B,), which trains the variance (Nichol &
    Dhariwal, 2021).

    fraction, x0_hat, x0, x_t are (B, ...), images in [-1, 1] of 256 grey levels, t (B,) from
    `discretise`. The KL of q(x_s | x_t, x_0) from the model's step; at the first level the log
    likelihood of the grey level."""
    s = t - 1 / LEVELS
    s = torch.where(s < 0.5 / LEVELS, torch.zeros_like(s), s)
    a, b, *_ = (k.to(x_t.dtype) for k in posterior(t, s, x_t))
    mean, true = a * x0_hat + b * x_t, a * x0 + b * x_t
    log_var, true_log_var = (
        log_variance(fraction, t, s),
        log_variance(torch.zeros_like(fraction), t, s),
    )
    kl = 0.5 * (
        log_var
        - true_log_var
        - 1
        + (true_log_var - log_var).exp()
        + (true - mean) ** 2 * (-log_var).exp()
    )
    nats = torch.where(
        (s == 0).view(-1, *[1] * (x0.ndim - 1)), -grey_log_likelihood(x0, mean, log_var), kl
    )
    return nats.flatten(1).mean(1) / math.log(2)


def grey_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log probability of images of 256 grey levels in [-1, 1] under a Normal cut into bins, the
    outer two open-ended.
    """
    scale, half = (-0.5 * log_var).exp(), 1 / 255
    upper = torch.special.ndtr((x0 - mean + half) * scale)
    lower = torch.special.ndtr((x0 - mean - half) * scale)
    mass = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return mass.clamp_min(1e-12).log()
