"""Grids of times from noise to data: every solver takes every grid, at inference, without
retraining.

Each is a decreasing (steps + 1,) float64 tensor that begins at 1 (pure noise) and ends at 0 (data).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nag.ddpm import LEVELS
from nag.interpolant import PATHS, time_of_ratio


def uniform(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Evenly spaced times from `start` down to `end`; raises ValueError for steps < 1."""
    if steps < 1 or not 1 >= start > end >= 0:
        raise ValueError(
            f"a grid needs steps >= 1 and 1 >= start > end >= 0, not steps={steps}, start={start}, "
            f"end={end}"
        )
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def sde_times(steps: int, last_step: float | None = None) -> Tensor:
    """SiT's grid for the reverse SDE: steps - 1 even steps from 1 to `last_step`, then one step to
    0 (Ma et al., 2024).

        last_step = min(0.04, 10 / steps)

    by default, SiT's own 0.04 for its 250 steps. It does not grow as steps get fewer: SiT's last
    step leaves noise of about last_step in the image, so that 0.2 for 50 steps would spoil it, and
    by Tweedie's formula 0.04 to 0.2 give distances within each other's intervals. It shrinks with
    more steps, so that the error of the last step goes to zero with that of the others.
    """
    last_step = min(0.04, 10 / max(steps, 1)) if last_step is None else last_step
    if steps < 2:
        raise ValueError(f"the SDE grid needs steps >= 2, not {steps}")
    return torch.cat([uniform(steps - 1, 1.0, last_step), torch.zeros(1, dtype=torch.float64)])


def respaced(steps: int) -> Tensor:
    """DiT's respacing: `steps` of DDPM's 1000 levels, evenly spread from the last to the first,
    then 0.
    """
    if not 2 <= steps <= LEVELS:
        raise ValueError(f"{steps} steps cannot be picked from {LEVELS} levels: give 2 to {LEVELS}")
    levels = torch.linspace(LEVELS - 1, 0, steps, dtype=torch.float64).round()
    return torch.cat([(levels + 1) / LEVELS, torch.zeros(1, dtype=torch.float64)])


def _largest(path: str, wanted: float) -> float:
    """sigma / alpha at which a grid begins: the wanted one, or that of the path's pure noise if it
    is less.
    """
    c = PATHS[path](torch.ones((), dtype=torch.float64))
    return min(wanted, (c.sigma / c.alpha).item())


def _of_ratios(inner: Tensor, path: str) -> Tensor:
    """The times of falling ratios sigma / alpha, the first being pure noise, and then 0."""
    return torch.cat(
        [
            torch.ones(1, dtype=torch.float64),
            time_of_ratio(inner[1:], path),
            torch.zeros(1, dtype=torch.float64),
        ]
    )


def _check(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs steps >= 1, not {steps}")


def logsnr(
    steps: int, path: str = "linear", smallest: float = 0.005, largest: float = 200.0
) -> Tensor:
    """Even steps of log(sigma / alpha) from `largest` to `smallest`, whose places pure noise and
    data take (DPM-Solver, 2022).
    """
    _check(steps)
    u = torch.linspace(
        math.log(_largest(path, largest)), math.log(smallest), steps + 1, dtype=torch.float64
    )
    return _of_ratios(u[:-1].exp(), path)


def edm(
    steps: int,
    path: str = "linear",
    smallest: float = 0.002,
    largest: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    """Even steps of (sigma / alpha)^(1/rho) from `largest`, here pure noise, to `smallest`, then 0
    (Karras et al., 2022).
    """
    _check(steps)
    u = torch.linspace(
        _largest(path, largest) ** (1 / rho), smallest ** (1 / rho), steps, dtype=torch.float64
    )
    return _of_ratios(u**rho, path)


def shifted(steps: int, shift: float = 3.0) -> Tensor:
    """Uniform times moved towards noise, t = shift u / (1 + (shift - 1) u) (Esser et al., 2024);
    shift 1 is uniform.
    """
    u = uniform(steps)
    return shift * u / (1 + (shift - 1) * u)


GRIDS: dict[str, Callable[[int, str], Tensor]] = {
    "uniform": lambda steps, path: uniform(steps),
    "sde": lambda steps, path: sde_times(steps),
    "respaced": lambda steps, path: respaced(steps),
    "logsnr": logsnr,
    "edm": edm,
    "shifted": lambda steps, path: shifted(steps),
}


def grid(name: str, steps: int, path: str = "linear") -> Tensor:
    """The named grid of `steps` steps for a path; raises ValueError for an unknown name."""
    if name not in GRIDS:
        raise ValueError(f"unknown grid {name!r}: choose one of {sorted(GRIDS)}")
    return GRIDS[name](steps, path)
