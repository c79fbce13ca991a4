"""The forward process x_t = alpha_t x_0 + sigma_t eps, stated here and nowhere else.

t = 1 is pure noise and t = 0 is data (the paper's and REPA's direction). Every path gives alpha,
sigma and both derivatives together, so no sign is derived twice. Shapes: t is () or (B,);
coefficients broadcast against x (B, ...)."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nag.support.roots import bisect

PREDICTIONS = ("v", "eps", "x0", "score")
# With alpha below this nothing is left of x0: its scale and sigma / alpha are unknown.
PURE_NOISE = 1e-6


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


class Coefficients(NamedTuple):
    """alpha_t, sigma_t and their derivatives in t, each broadcastable against x."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def linear(t: Tensor) -> Coefficients:
    """Straight path, alpha = 1 - t and sigma = t (SiT 'Linear', rectified flow)."""
    return Coefficients(1 - t, t, -torch.ones_like(t), torch.ones_like(t))


def cosine(t: Tensor) -> Coefficients:
    """Variance-preserving trigonometric path, alpha = cos(pi t/2) and sigma = sin(pi t/2) (SiT
    'GVP').
    """
    a = t * (math.pi / 2)
    return Coefficients(
        a.cos().clamp_min(0), a.sin(), -math.pi / 2 * a.sin(), math.pi / 2 * a.cos()
    )


def vp(t: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> Coefficients:
    """Variance-preserving path with linear beta(t), log alpha = -t^2 (b1-b0)/4 - t b0/2 (Song et
    al., 2021).
    """
    log_alpha = -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min
    alpha = log_alpha.exp()
    d_alpha = alpha * (-0.5 * t * (beta_max - beta_min) - 0.5 * beta_min)
    sigma = (-torch.expm1(2 * log_alpha)).clamp_min(0).sqrt()
    return Coefficients(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)


@cache
def _ddpm_table(levels: int = 1000) -> Tensor:
    betas = torch.linspace(1e-4, 0.02, levels, dtype=torch.float64)
    return torch.cat(
        [torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)]
    )  # log alpha_bar at i/levels


def ddpm(t: Tensor) -> Coefficients:
    """DDPM's 1000 linear betas (Ho et al., 2020): exact at t = (i + 1)/1000 for level i, log alpha
    linear between.
    """
    table = _ddpm_table().to(t.device, widest(t.device))
    place = t.to(table.dtype) * (len(table) - 1)
    low = place.floor().clamp(0, len(table) - 2).long()
    slope = (table[low + 1] - table[low]) * 0.5  # of log alpha, a level
    log_alpha = 0.5 * table[low] + (place - low) * slope
    alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    d_alpha = alpha * slope * (len(table) - 1)
    return Coefficients(*(a.to(t.dtype) for a in (alpha, sigma, d_alpha, -alpha * d_alpha / sigma)))


PATHS = {"linear": linear, "cosine": cosine, "vp": vp, "ddpm": ddpm}
PATH_OF = {"sit": "linear", "dit": "ddpm"}  # the forward process of each family


def falling(times: Tensor | np.ndarray | Sequence[float]) -> list[float]:
    """The times (K,) of a sampler as numbers; raises ValueError unless they are two or more that
    fall within [0, 1].
    """
    found = [float(t) for t in (times if isinstance(times, Sequence) else times.tolist())]
    if len(found) < 2:
        raise ValueError(f"{len(found)} times make no step: give two or more, such as uniform(50)")
    if not all(1 >= t >= 0 for t in found) or not all(t > s for t, s in pairwise(found)):
        raise ValueError(
            "times must fall from noise, at most 1, to data, at least 0, and those given go from "
            f"{found[0]:g} to {found[-1]:g}: take 1 - t of times in SiT's own direction and "
            "(i + 1) / 1000 of DDPM's timesteps i"
        )
    return found


def _check_signal(t: Tensor | float, path: str) -> None:
    """Raise ValueError where a time is pure noise: no score or eps tells x_0 there.

    Times on a GPU are not looked at, since that would wait for it."""
    if isinstance(t, Tensor) and (t.device.type != "cpu" or not t.numel()):
        return
    latest = torch.as_tensor(t, dtype=torch.float64).max()
    if PATHS[path](latest).alpha < PURE_NOISE:
        raise ValueError(
            "a prediction of eps or the score says nothing of x_0 at "
            f"t = {float(latest):g}, where the path {path!r} is pure noise: begin the grid below "
            "1, such as uniform(50, 0.99), or predict v or x0"
        )


def _first_time(below: Callable[[Coefficients], Tensor], like: Tensor, path: str) -> Tensor:
    """The t in [0, 1], of like's shape, up to which `below` holds; by bisection to 2^-50."""
    low = torch.zeros_like(like, dtype=widest(like.device))
    return bisect(lambda t: below(PATHS[path](t)), low, torch.ones_like(low))[1]


def time_of_ratio(ratio: Tensor, path: str = "linear") -> Tensor:
    """The time t in [0, 1] at which sigma_t / alpha_t = ratio (any shape, >= 0), in float64.

    Beyond the largest ratio of the path the answer is 1.
    """
    ratio = ratio.to(widest(ratio.device))
    return _first_time(lambda c: c.sigma < ratio * c.alpha, ratio, path)


def time_of_sigma(sigma: Tensor, path: str = "linear") -> Tensor:
    """The time t in [0, 1] at which sigma_t = sigma (any shape, >= 0), in float64.

    NaN where sigma is above sigma_1, the most noise that the path has.
    """
    sigma = sigma.to(widest(sigma.device))
    most = PATHS[path](torch.ones_like(sigma)).sigma
    time = _first_time(lambda c: c.sigma < sigma, sigma, path)
    return torch.where(sigma <= most, time, torch.nan)


def from_score(change: Tensor, t: Tensor | float, target: str, path: str = "linear") -> Tensor:
    """What adding `change` (B, ...) to the score adds to a prediction of v, eps or x0, which is
    linear in it.

    It has no bound for v and x0 where alpha_t = 0; raises ValueError if t is one such time.
    """
    c = coefficients(path, t, change)
    if target in ("v", "x0"):
        _check_signal(t, path)
    gain = {
        "score": torch.ones_like(c.sigma),
        "eps": -c.sigma,
        "x0": c.sigma**2 / c.alpha,
        "v": c.d_alpha * c.sigma**2 / c.alpha - c.d_sigma * c.sigma,
    }
    return gain[target] * change


def known_path(path: str) -> str:
    """The name of a path; raises ValueError if there is none of it."""
    if path not in PATHS:
        raise ValueError(f"unknown path {path!r}: choose one of {sorted(PATHS)}")
    return path


def _check_time(t: Tensor | float) -> None:
    if isinstance(t, Tensor) and (t.device.type != "cpu" or not t.numel()):
        return
    low, high = (float(end) for end in torch.as_tensor(t, dtype=torch.float64).aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(
            f"t = {low if low < 0 else high:g} is not in [0, 1]: take 1 - t of times in SiT's own "
            "direction and (i + 1) / 1000 of DDPM's timesteps i"
        )


def coefficients(path: str, t: Tensor | float, like: Tensor) -> Coefficients:
    """Coefficients of the named path at t, () or (B,) in [0, 1], shaped to broadcast against `like`
    (B, ...).

    Raises ValueError for an unknown path, whole numbers where a state is wanted, or a time outside
    [0, 1]; times on a GPU are not looked at, since that would wait for it.
    """
    known_path(path)
    if not like.is_floating_point():
        raise ValueError(
            f"a state or image is {like.dtype}, to which t would be rounded: give floats, such as "
            "x / 127.5 - 1 of bytes"
        )
    _check_time(t)
    t = torch.as_tensor(t, dtype=like.dtype, device=like.device)
    if t.ndim:
        t = t.reshape(-1, *[1] * (like.ndim - 1))
    return PATHS[path](t)


def add_noise(x0: Tensor, eps: Tensor, t: Tensor | float, path: str = "linear") -> Tensor:
    """The forward state x_t = alpha_t x_0 + sigma_t eps (paper, Sec. 2); x0 and eps (B, ...)."""
    c = coefficients(path, t, x0)
    return c.alpha * x0 + c.sigma * eps


def velocity_target(x0: Tensor, eps: Tensor, t: Tensor | float, path: str = "linear") -> Tensor:
    """The flow-matching target v = d_alpha x_0 + d_sigma eps (Ma et al., SiT, 2024)."""
    c = coefficients(path, t, x0)
    return c.d_alpha * x0 + c.d_sigma * eps


def convert(
    pred: Tensor, x: Tensor, t: Tensor | float, source: str, target: str, path: str = "linear"
) -> Tensor:
    """Turn a prediction at state x (B, ...) and time t from one of v, eps, x0, score into another.

    All four are affine in one another given x, because x = alpha x0 + sigma eps and v = d_alpha x0
    + d_sigma eps. Raises ValueError for an unknown name, and for v or x0 from eps or the score at
    one time t where alpha_t = 0."""
    for name in (source, target):
        if name not in PREDICTIONS:
            raise ValueError(f"unknown prediction {name!r}: choose one of {PREDICTIONS}")
    if source == target:
        return pred
    c = coefficients(path, t, x)
    if source == "v":
        det = c.alpha * c.d_sigma - c.sigma * c.d_alpha
        x0, eps = (c.d_sigma * x - c.sigma * pred) / det, (c.alpha * pred - c.d_alpha * x) / det
    elif source == "x0":
        x0, eps = pred, (x - c.alpha * pred) / c.sigma
    else:
        if target in ("v", "x0"):
            _check_signal(t, path)
        eps = pred if source == "eps" else -c.sigma * pred
        x0 = (x - c.sigma * eps) / c.alpha
    if target == "v":
        return c.d_alpha * x0 + c.d_sigma * eps
    return {"x0": x0, "eps": eps, "score": -eps / c.sigma}[target]
