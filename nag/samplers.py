"""Samplers are generators: `for x, t in euler(field, x, times)` yields every state, so measuring needs no callback.

One signature: field(x, t) -> v is any velocity field, x (B, ...) the state at times[0], `times` a decreasing 1-D tensor that
ends at the data; `noise(shape)` draws (B, *shape) for stochastic samplers. The state keeps x's dtype, float32 or better.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from nag.interpolant import coefficients, convert

Field = Callable[[Tensor, float], Tensor]
State = tuple[Tensor, float]


def uniform(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Evenly spaced times, (steps + 1,) float64, from `start` (noise) down to `end`; raises ValueError for steps < 1."""
    if steps < 1 or not 1 >= start > end >= 0:
        raise ValueError(f"a grid needs steps >= 1 and 1 >= start > end >= 0, not steps={steps}, start={start}, end={end}")
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def sde_times(steps: int, last_step: float = 0.04) -> Tensor:
    """SiT's grid for the reverse SDE: steps - 1 even steps from 1 to `last_step`, then one step to 0 (Ma et al., 2024)."""
    if steps < 2:
        raise ValueError(f"the SDE grid needs steps >= 2, not {steps}")
    return torch.cat([uniform(steps - 1, 1.0, last_step), torch.zeros(1, dtype=torch.float64)])


def euler(field: Field, x: Tensor, times: Tensor, noise: Callable | None = None, path: str = "linear") -> Iterator[State]:
    """Euler's method for the probability-flow ODE dx = v dt; one evaluation a step."""
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        x = x + (s - t) * field(x, t)
        yield x, s


def heun(field: Field, x: Tensor, times: Tensor, noise: Callable | None = None, path: str = "linear") -> Iterator[State]:
    """Heun's second-order method; the last step is Euler's, so nothing is evaluated at t = 0 (Karras et al., 2022)."""
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        v = field(x, t)
        predicted = x + (s - t) * v
        x = predicted if s == times[-1] else x + (s - t) * 0.5 * (v + field(predicted, s))
        yield x, s


def euler_maruyama(field: Field, x: Tensor, times: Tensor, noise: Callable, path: str = "linear") -> Iterator[State]:
    """Euler-Maruyama for the reverse SDE dx = (v - D s) dt + sqrt(2 D) dW with D = sigma_t (SiT, 2024).

    The last step takes the drift alone (SiT's 'Mean').
    """
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        v = field(x, t)
        diffusion = coefficients(path, t, x).sigma
        drift = v - diffusion * convert(v, x, t, "v", "score", path)
        x = x + (s - t) * drift
        if s != times[-1]:
            x = x + (2 * diffusion * (t - s)).sqrt() * noise(x.shape[1:]).to(x)
        yield x, s


SAMPLERS = {"euler": euler, "heun": heun, "euler_maruyama": euler_maruyama}


def time_grid(sampler: str, steps: int) -> Tensor:
    """The default grid of a sampler, named as in SAMPLERS; raises ValueError for an unknown name."""
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: choose one of {sorted(SAMPLERS)}")
    return sde_times(steps) if sampler == "euler_maruyama" else uniform(steps)


def last(states: Iterator[State]) -> Tensor:
    """The sample: the last state's x."""
    return deque(states, maxlen=1)[0][0]
