"""Epsilon scaling, a rival of noise guidance: the predicted noise divided by a number (Ning et al.,
ICLR 2024), or by a function of t (Temporal Score Rescaling, arXiv 2510.01184).

It wraps a velocity field, so it goes with every sampler."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nag.ddpm import Prediction, with_variance
from nag.interpolant import PATHS, PURE_NOISE, coefficients, widest

Time = float | Tensor
Scale = float | Callable[[Time], float | Tensor | np.ndarray]


class EpsilonScaled:
    """A field whose noise prediction is divided; see `epsilon_scaling`, which makes it."""

    def __init__(self, field: Callable, scale: Scale, path: str):
        self.field, self.scale, self.path = field, scale, path

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        return self._scaled(self.field(x, t), x, t)

    def with_variance(self, x: Tensor, t: float) -> Prediction:
        """The scaled velocity, and the field's learned variance as it is."""
        v, fraction = with_variance(self.field, x, t)
        return Prediction(self._scaled(v, x, t), fraction)

    def _scaled(self, v: Tensor, x: Tensor, t: Time) -> Tensor:
        number = self.scale(t) if callable(self.scale) else self.scale
        scale = torch.as_tensor(number, dtype=x.dtype, device=x.device)  # () or (B,)
        if scale.ndim:
            scale = scale.reshape(-1, *[1] * (x.ndim - 1))
        c = coefficients(self.path, t, x)
        gain = torch.where(c.alpha > PURE_NOISE, 1 / scale - 1, 0)
        return v + gain * (v - c.d_alpha / c.alpha.clamp_min(PURE_NOISE) * x)


def epsilon_scaling(field: Callable, scale: Scale, path: str = "linear") -> EpsilonScaled:
    """The field (x, t) -> v whose noise prediction is eps / scale, for any ODE or SDE sampler.

        v + (1 / scale - 1) (v - d_alpha_t / alpha_t x)

    That is v = d_alpha x_0 + d_sigma eps again, with x_0 derived from x and the scaled eps. `scale`
    > 0 is a number or a function of t; 1 changes nothing. Where alpha_t = 0 (pure noise on the
    linear path) the change diverges, so the field is left as it is there. Raises ValueError for a
    number that is not positive (Ning et al., ICLR 2024)."""
    if not callable(scale) and scale <= 0:
        raise ValueError(f"epsilon scaling divides by {scale}: give a positive number, 1 for none")
    return EpsilonScaled(field, scale, path)


def score_rescaling(k: float, sigma: float = 1.0, path: str = "linear") -> Callable[[Time], Tensor]:
    """Temporal Score Rescaling as a `scale` of `epsilon_scaling`: a function of t, 1 / r_t.

        eps r_t,   r_t = (alpha^2 sigma^2 + sigma_t^2) / (alpha^2 sigma^2 / k + sigma_t^2)

    For data N(mu, sigma^2 I) it samples N(mu, sigma^2 / k I): narrower for k > 1, wider for k < 1,
    unchanged for k = 1. r_t is 1 at pure noise and k at the data. The paper's images have k = 0.95
    and sigma = 1. Raises ValueError unless both are positive (Xu et al., arXiv 2510.01184)."""
    if k <= 0 or sigma <= 0:
        raise ValueError(f"score rescaling by k = {k}, sigma = {sigma}: give positive numbers")

    def scale(t: Time) -> Tensor:
        time = torch.as_tensor(t)
        c = PATHS[path](time.to(widest(time.device)))
        signal, noise = (c.alpha * sigma) ** 2, c.sigma**2
        return (signal / k + noise) / (signal + noise)

    return scale
