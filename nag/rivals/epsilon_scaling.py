"""Epsilon scaling, a rival of noise guidance: the predicted noise divided by a number (Ning et al.,
ICLR 2024).

It wraps a velocity field, so it goes with every sampler."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nag.ddpm import Prediction, with_variance
from nag.interpolant import PURE_NOISE, coefficients

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
