"""Fields whose answers are known, for the tests of the rivals."""

import math

import numpy as np
import torch

from nag.interpolant import coefficients

PATHS = ["linear", "cosine", "vp", "ddpm"]
ONE = torch.ones((), dtype=torch.float64)
BETAS = np.linspace(1e-4, 0.02, 1000)
ABAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])  # ABAR[i] at t = i/1000
EVEN = torch.linspace(1, 0, 6, dtype=torch.float64)
CENTRE, SPREAD = 0.7, 0.4  # of Gaussian data, whose noise is known (`noise_of`)


def noise_of(z, rho):
    """E[eps | x] of Gaussian data for z = x/alpha and rho = sigma/alpha, which broadcast."""
    return rho * (z - CENTRE) / (SPREAD**2 + rho**2)


def gaussian(path):
    def field(x, t):
        c = coefficients(path, t, x)
        pull = (x - c.alpha * CENTRE) / ((c.alpha * SPREAD) ** 2 + c.sigma**2)
        return c.d_alpha * (CENTRE + c.alpha * SPREAD**2 * pull) + c.d_sigma * c.sigma * pull

    return field


def wavy(x, t):
    """No velocity of anything: per-sample, curved in x and t."""
    t = t.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(t, torch.Tensor) else t
    return torch.sin(2 * x) + t**2 * x.mean(tuple(range(1, x.ndim)), keepdim=True)


def float64(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def states(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def alpha_sigma(path, t):
    """alpha and sigma at a number t as numbers, from the definitions of the two paths."""
    if path == "linear":
        return 1 - t, t
    abar = ABAR[round(1000 * t)]
    return math.sqrt(abar), math.sqrt(1 - abar)
