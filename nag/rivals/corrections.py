"""Rivals of noise guidance that correct the sampling: epsilon scaling, the time-shift sampler and
noise level correction.

Epsilon scaling wraps a field and goes with every sampler. The other two change the noise level that
a state is taken for: each is an `adjust` for the sampler `corrected`. Levels are times t, numbers
or (B,) tensors, of states x (B, ...)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nag.interpolant import PURE_NOISE, coefficients, convert, time_of_ratio

Time = float | Tensor


# ---- epsilon scaling


@dataclass
class _Scaled:
    field: Callable
    scale: float | Callable[[Time], float | Tensor | np.ndarray]
    path: str

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        scale = torch.as_tensor(
            self.scale(t) if callable(self.scale) else self.scale, dtype=x.dtype, device=x.device
        )
        if scale.ndim:
            scale = scale.reshape(-1, *[1] * (x.ndim - 1))
        v, c = self.field(x, t), coefficients(self.path, t, x)
        gain = torch.where(c.alpha > PURE_NOISE, 1 / scale - 1, 0)
        return v + gain * (v - c.d_alpha / c.alpha.clamp_min(PURE_NOISE) * x)

    def __getattr__(self, name: str):
        return getattr(self.field, name)


def epsilon_scaling(
    field: Callable, scale: float | Callable[[Time], float | Tensor], path: str = "linear"
) -> Callable:
    """The field (x, t) -> v whose noise prediction is eps / scale, for any ODE or SDE sampler (Ning
    et al., ICLR 2024).

    `scale` > 0 is a number or a function of t; 1 changes nothing. x_0 is derived again from x and
    the scaled eps, and v = d_alpha x_0 + d_sigma eps from both, which is v + (1/scale - 1) (v -
    d_alpha/alpha x). Where alpha_t = 0 (pure noise on the linear path) that diverges, so the field
    is left as it is there. Other attributes (`nfe`, `fraction`) are the inner field's. Raises
    ValueError for a number that is not positive."""
    if not callable(scale) and scale <= 0:
        raise ValueError(f"epsilon scaling divides by {scale}: give a positive number, 1 for none")
    return _Scaled(field, scale, path)


def linear_scale(k: float, b: float, times: Tensor) -> Callable[[Time], np.ndarray]:
    """The schedule k i + b of epsilon scaling on a sampler's decreasing grid `times` (steps + 1,),
    as a function of t.

    i counts the steps as the respaced DDPM does: 0 is the step that ends at the data, steps - 1 the
    first one taken (Ning et al., 2024). Between grid times i is interpolated; after the last
    evaluation it stays 0."""
    starts, index = times[:-1].flip(0).cpu().double().numpy(), np.arange(len(times) - 1)
    return lambda t: k * np.interp(torch.as_tensor(t).cpu(), starts, index) + b


# ---- steps between believed noise levels


class Step(NamedTuple):
    """One step: x is taken for a state at level `now`, the network is told `seen`, the new state is
    made for level `then`.

    `scale`, a number or of shape (B, 1, ...), multiplies the new state; 1 unless it is to be kept
    at another level's scale."""

    x: Tensor
    now: Time
    seen: Time
    then: Time
    scale: Tensor | float = 1.0


Adjust = Callable[[Tensor, float, float], Step]


def corrected(
    field: Callable,
    x: Tensor,
    times: Tensor,
    noise: Callable | None = None,
    path: str = "linear",
    *,
    adjust: Adjust,
) -> Iterator[tuple[Tensor, float]]:
    """Deterministic DDIM (Song et al., 2021) between believed noise levels; yields every state with
    its nominal time.

    For each step from t to s of `times`, adjust(x, t, s) returns a Step or its first four members;
    (x, t, t, s) is plain DDIM. The field must take t as (B,) if `seen` is. Where `now` is `seen`,
    x_0 comes straight from v, which is finite at pure noise."""
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        x, now, seen, then, scale = Step(*adjust(x, t, s))
        v = field(x, seen)
        eps = convert(v, x, seen, "v", "eps", path)
        x0 = (
            convert(v, x, seen, "v", "x0", path)
            if now is seen
            else convert(eps, x, now, "eps", "x0", path)
        )
        c = coefficients(path, then, x)
        x = scale * (c.alpha * x0 + c.sigma * eps)
        yield x, s


# ---- time shift

Level = Callable[
    [Tensor, Tensor], Tensor
]  # states (B, ...) and increasing candidate times (K,) to times (B,) among them
MODES = ("destination", "network", "both")


def by_variance(path: str = "linear", data_variance: float = 0.0) -> Level:
    """The candidate time whose expected variance is nearest to the unbiased variance of a state's
    own pixels.

    The expected variance is alpha^2 v_0 + sigma^2 with v_0 = `data_variance` >= 0, the mean
    variance within one image; 0 is the paper's target 1 - alpha_bar, which misleads unless v_0 is
    small (Li et al., ICLR 2024). Raises ValueError if negative."""
    if data_variance < 0:
        raise ValueError(
            f"a variance cannot be {data_variance}: give the data's own, or 0 for the paper's target"
        )

    def level(x: Tensor, candidates: Tensor) -> Tensor:
        c = coefficients(path, candidates, candidates)
        expected = c.alpha**2 * data_variance + c.sigma**2  # (K,)
        distance = (x.flatten(1).var(1)[:, None] - expected).square()  # (B, K)
        return candidates[distance.argmin(1)]

    return level


def by_estimate(estimate: Callable[[Tensor], Tensor]) -> Level:
    """A learned estimate x -> (B,) of t, such as g_phi's posterior mean, clamped into the range of
    the candidates.
    """

    @torch.no_grad()
    def level(x: Tensor, candidates: Tensor) -> Tensor:
        return estimate(x).to(candidates).clamp(candidates[0], candidates[-1])

    return level


def time_shift(
    window: float, cutoff: float, mode: str, level: Level, start: float = 1.0, spacing: float = 1e-3
) -> Adjust:
    """The time-shift sampler: each sample's own noise level t', searched near t, replaces t (Li et
    al., ICLR 2024).

    `level` finds t' among times `spacing` apart within window / 2 on each side of t. What it
    replaces is the `mode`, in which the official implementations differ: "destination" steps as far
    from t', to s + t' - t, with everything else at t (ADM); "network" tells the network t' and
    keeps the step (DEIS, DPM-Solver); "both" takes the state for one at t' and steps to s. Only
    while t > `cutoff`; never at t >= `start`, the first step's time, and the destination s = 0
    stays. `window` and `cutoff` are in units of t: the paper's, of 1000 levels, divided by 1000.
    Raises ValueError for an unknown mode or a negative window."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: choose one of {MODES}")
    if window < 0 or spacing <= 0:
        raise ValueError(
            f"a window of {window} searched every {spacing} is empty: give window >= 0 and spacing > 0"
        )
    reach = int(window / 2 / spacing + 1e-9)

    def adjust(x: Tensor, t: float, s: float) -> Step:
        if t >= start or t <= cutoff:
            return Step(x, t, t, s)
        candidates = t + spacing * torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        inside = (candidates > spacing / 2) & (candidates < 1 + spacing / 2)
        found = level(x, candidates[inside].clamp_max(1))  # (B,)
        if mode == "network":
            return Step(x, t, found, s)
        if mode == "both":
            return Step(x, found, found, s)
        return Step(x, t, t, (found - t + s).clamp_min(0) if s > 0 else s)

    return adjust


# ---- noise level correction

STYLES = ("pred", "pred_partial")


def noise_level_correction(
    head: Callable[[Tensor, float], Tensor], style: str = "pred", path: str = "linear"
) -> Adjust:
    """Noise level correction: head(x, t) -> (B,) says by what part r the noise differs (Abuduweili
    et al., TMLR 2025).

    With rho = sigma/alpha, the noise level of x/alpha_t: x is taken for rho' = rho_t (1 + r), at
    time t(rho') and at that time's scale. The step goes to rho_s (1 + r) in the style "pred", to
    rho_s in "pred_partial"; the new state has the nominal scale alpha_s in both, as the head
    expects. No correction at pure noise, where rho is infinite. Raises ValueError for an unknown
    style. Of the official options, the rescaled eps and the clamped prior level are left out."""
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: choose one of {STYLES}")

    @torch.no_grad()
    def adjust(x: Tensor, t: float, s: float) -> Step:
        here = coefficients(path, t, x)
        if here.alpha < PURE_NOISE:
            return Step(x, t, t, s)
        excess = 1 + head(x, t)  # (B,)
        now = time_of_ratio(here.sigma / here.alpha * excess, path)
        x = coefficients(path, now, x).alpha / here.alpha * x
        if style == "pred_partial" or s == 0:
            return Step(x, now, now, s)
        there = coefficients(path, s, x)
        then = time_of_ratio(there.sigma / there.alpha * excess, path)
        return Step(x, now, now, then, there.alpha / coefficients(path, then, x).alpha)

    return adjust
