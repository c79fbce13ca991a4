"""Record a model that no scheduler runs: a denoiser of (x, sigma), or a field of (x, t).

Both integrate the probability-flow ODE by Euler's method, which is enough to see a shift. A sampler
of your own gives its states and levels to `Recording.of` instead."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nag.integrations.recorder import Recording
from nag.interpolant import PREDICTIONS, coefficients, convert
from nag.support.rng import ImageNoise


@torch.no_grad()
def record_denoiser(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int],
    sigmas: Sequence[float],
    n: int = 100,
    *,
    batch: int = 50,
    first_seed: int = 0,
) -> Recording:
    """States of a denoiser (x (B, *shape), sigma (B,)) -> E[x_0 | x], x = x_0 + sigma eps.

    The convention of EDM and k-diffusion. `sigmas` fall to the last one, which may be 0. Raises
    ValueError if they do not fall."""
    if any(a <= b for a, b in zip(sigmas, sigmas[1:], strict=False)) or sigmas[-1] < 0:
        raise ValueError("sigmas must fall from the most noise to the last level, at least 0")
    recording = Recording()
    for x in _noise(shape, n, batch, first_seed):
        x = sigmas[0] * x
        states = [x]
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            clean = denoiser(x, x.new_full((len(x),), sigma))
            x = clean + after / sigma * (x - clean)
            states.append(x)
        _add(recording, states, [(1.0, float(sigma)) for sigma in sigmas])
    return recording


@torch.no_grad()
def record_field(
    field: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int],
    times: Sequence[float],
    n: int = 100,
    *,
    path: str = "linear",
    prediction: str = "v",
    data_at: float = 0.0,
    batch: int = 50,
    first_seed: int = 0,
) -> Recording:
    """States of a field (x (B, *shape), t (B,)) in its own time, at `times` from noise to data.

    The field's time is the path's own (data_at=0) or runs from noise at 0 to data at 1 (data_at=1);
    v is the derivative of x in the field's time. It may also predict eps, x0 or the score. Raises
    ValueError for times that go the other way, or unknown names."""
    if data_at not in (0, 1) or prediction not in PREDICTIONS:
        raise ValueError(f"data_at is 0 or 1 and prediction one of {PREDICTIONS}")
    ours = [abs(float(t) - data_at) for t in times]  # 1 = noise
    if any(a <= b for a, b in zip(ours, ours[1:], strict=False)):
        raise ValueError(f"times must go from noise to data, which is at t = {data_at:g}")
    recording = Recording()
    for x in _noise(shape, n, batch, first_seed):
        levels = [coefficients(path, t, x.double()) for t in ours]
        x = x * float(levels[0].sigma)
        states = [x]
        for k, (t, after) in enumerate(zip(ours, ours[1:], strict=False)):
            out = field(x, x.new_full((len(x),), float(times[k])))
            if prediction == "v":
                v = -out if data_at else out
            else:
                v = convert(out, x, t, prediction, "v", path)
            x = x + (after - t) * v
            states.append(x)
        _add(recording, states, [(float(c.alpha), float(c.sigma)) for c in levels])
    return recording


def _noise(shape: Sequence[int], n: int, batch: int, first_seed: int) -> list[Tensor]:
    starts = range(first_seed, first_seed + n, batch)
    return [
        ImageNoise(range(start, min(start + batch, first_seed + n)))(tuple(shape))
        for start in starts
    ]


def _add(recording: Recording, states: list[Tensor], levels: list[tuple[float, float]]) -> None:
    part = Recording.of(torch.stack(states, dim=1).float().cpu(), levels)
    recording.runs += part.runs
    recording.run_levels += part.run_levels
    recording.conditions.append(None)
