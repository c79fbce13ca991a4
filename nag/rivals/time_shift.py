"""The time-shift sampler, a rival of noise guidance: each state's own noise level, searched near t,
takes the place of t (Li et al., ICLR 2024).

`time_shift` makes the `adjust` of nag.rivals.corrected_ddim."""

from collections.abc import Callable

import torch
from torch import Tensor

from nag.interpolant import coefficients
from nag.rivals.corrected_ddim import Adjust, Step

# States (B, ...) and increasing candidate times (K,) to times (B,) among them.
Level = Callable[[Tensor, Tensor], Tensor]
MODES = ("destination", "network", "both")


def by_variance(path: str = "linear", data_variance: float = 0.0) -> Level:
    """The candidate time whose expected variance is nearest to the unbiased variance of a state's
    own pixels.

    The expected variance is alpha^2 v_0 + sigma^2 with v_0 = `data_variance` >= 0, the mean
    variance within one image; 0 is the paper's target 1 - alpha_bar, which misleads unless v_0 is
    small (Li et al., ICLR 2024). Raises ValueError if negative."""
    if data_variance < 0:
        raise ValueError(
            f"a variance cannot be {data_variance}: give the data's own, or 0 for the paper's "
            "target"
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
    """The time-shift sampler: each sample's own noise level t', searched near t, replaces t.

    `level` finds t' among times `spacing` apart within window / 2 on each side of t. What it
    replaces is the `mode`, in which the official implementations differ: "destination" steps as far
    from t', to s + t' - t, with everything else at t (ADM); "network" tells the network t' and
    keeps the step (DEIS, DPM-Solver); "both" takes the state for one at t' and steps to s. Only
    while t > `cutoff`; never at t >= `start`, the first step's time, and the destination s = 0
    stays. `window` and `cutoff` are in units of t: the paper's, of 1000 levels, divided by 1000.
    Raises ValueError for an unknown mode or a negative window (Li et al., ICLR 2024)."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: choose one of {MODES}")
    if window < 0 or spacing <= 0:
        raise ValueError(
            f"a window of {window} searched every {spacing} is empty: give window >= 0 and "
            "spacing > 0"
        )
    reach = int(window / 2 / spacing + 1e-9)

    def adjust(x: Tensor, t: float, s: float) -> Step:
        if t >= start or t <= cutoff:
            return Step(x, t, s)
        candidates = t + spacing * torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        inside = (candidates > spacing / 2) & (candidates < 1 + spacing / 2)
        found = level(x, candidates[inside].clamp_max(1))  # (B,)
        if mode == "network":
            return Step(x, t, s, seen=found)
        if mode == "both":
            return Step(x, found, s)
        return Step(x, t, (found - t + s).clamp_min(0) if s > 0 else s)

    return adjust
