"""Samplers are generators: `for x, t in euler(field, x, times)` yields every state, so measuring
needs no callback.

One signature: field(x, t) -> v is any velocity field, x (B, ...) the state at times[0], `times` a
decreasing 1-D tensor that ends at the data (nag.samplers.time_grids); `noise(shape)` draws (B,
*shape) for stochastic samplers. The state keeps x's dtype, float32 or better. Methods with a memory
are in nag.samplers.multistep, all names in nag.samplers.registry.

A sampler of one evaluation a step loops over its step function, which takes x from t to s: also of
one signature, so that a step can be taken by itself (nag.auto_weight). `last` says that it is the
last one."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import pi

import torch
from torch import Tensor

from nag.ddpm import log_variance, posterior, with_variance
from nag.interpolant import (
    PATHS,
    PURE_NOISE,
    Coefficients,
    coefficients,
    convert,
    falling,
    widest,
)

Field = Callable[[Tensor, float], Tensor]
Noise = Callable[[Sequence[int]], Tensor]
State = tuple[Tensor, float]


def drawn(noise: Noise | None, x: Tensor) -> Tensor:
    """Fresh noise like x; raises ValueError if there is none to draw from, or not one for each."""
    if noise is None:
        raise ValueError("this sampler is stochastic: give it a noise, such as nag.ImageNoise")
    fresh = noise(x.shape[1:]).to(x)
    if fresh.shape != x.shape:
        raise ValueError(f"{len(fresh)} noise streams for {len(x)} states: give each its own seed")
    return fresh


def euler_step(
    field: Field,
    x: Tensor,
    t: float,
    s: float,
    noise: Noise | None = None,
    path: str = "linear",
    last: bool = False,
) -> Tensor:
    """x_s = x_t + (s - t) v."""
    return x + (s - t) * field(x, t)


def euler(
    field: Field, x: Tensor, times: Tensor, noise: Noise | None = None, path: str = "linear"
) -> Iterator[State]:
    """Euler's method for the probability-flow ODE dx = v dt; one evaluation a step."""
    yield x, float(times[0])
    for t, s in pairwise(falling(times)):
        x = euler_step(field, x, t, s)
        yield x, s


def heun(
    field: Field, x: Tensor, times: Tensor, noise: Noise | None = None, path: str = "linear"
) -> Iterator[State]:
    """Heun's second-order method; the last step is Euler's, so nothing is evaluated at t = 0
    (Karras et al., 2022).
    """
    yield x, float(times[0])
    for t, s in pairwise(falling(times)):
        v = field(x, t)
        predicted = x + (s - t) * v
        x = predicted if s == times[-1] else x + (s - t) * 0.5 * (v + field(predicted, s))
        yield x, s


def midpoint(
    field: Field, x: Tensor, times: Tensor, noise: Noise | None = None, path: str = "linear"
) -> Iterator[State]:
    """The explicit midpoint rule, of second order; two evaluations a step."""
    yield x, float(times[0])
    for t, s in pairwise(falling(times)):
        middle = (t + s) / 2
        x = x + (s - t) * field(x + (middle - t) * field(x, t), middle)
        yield x, s


def dopri5(
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    path: str = "linear",
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> Iterator[State]:
    """Adaptive Runge-Kutta of order 5 through torchdiffeq; `times` only say which states to yield,
    the field counts its NFE.

    The ODE is evaluated at the end too: a network that predicts eps wants a grid that ends above 0.
    """
    from torchdiffeq import odeint  # here, since it takes a second to import

    numbers, at = falling(times), times.to(x.device, x.dtype)
    states = odeint(
        lambda t, y: field(y, float(t)),
        x,
        at,
        rtol=rtol,
        atol=atol,
        method="dopri5",
        options={"step_t": at[-1:], "dtype": widest(x.device)},
    )  # step_t: else it oversteps the data
    yield from zip(states, numbers, strict=True)


# The diffusion coefficient D of the reverse SDE dx = (v - D s) dt + sqrt(2 D) dW is free; SiT's
# choices (Ma et al., 2024).
DIFFUSIONS: dict[str, Callable[[float, Coefficients], Tensor]] = {
    "sigma": lambda t, c: c.sigma,
    "sbdm": lambda t, c: (
        c.sigma * c.d_sigma - c.d_alpha / c.alpha * c.sigma**2
    ),  # score SDE of Song et al. (2021)
    "constant": lambda t, c: torch.ones_like(c.sigma),
    "linear": lambda t, c: t * torch.ones_like(c.sigma),
    "decreasing": lambda t, c: 0.25 * (1 - (pi * t * torch.ones_like(c.sigma)).cos()) ** 2,
    "increasing-decreasing": lambda t, c: (pi * t * torch.ones_like(c.sigma)).sin() ** 2,
}


LAST_STEPS = ("mean", "euler", "tweedie")


def _reverse_drift(
    field: Field, x: Tensor, t: float, path: str, diffusion: str
) -> tuple[Tensor, Tensor, Tensor]:
    """v, the drift v - D s, and D at t."""
    v, strength = field(x, t), DIFFUSIONS[diffusion](t, coefficients(path, t, x))
    return v, v - strength * convert(v, x, t, "v", "score", path), strength


def _last_step(
    kind: str, x: Tensor, t: float, s: float, v: Tensor, drift: Tensor, path: str
) -> Tensor:
    """A last step without noise: along the SDE's drift, along v, or to E[x_0 | x_t]."""
    if kind == "tweedie":
        return convert(v, x, t, "v", "x0", path)
    return x + (s - t) * (drift if kind == "mean" else v)


def _check_sde(diffusion: str, last_step: str, start: float, path: str) -> None:
    if diffusion not in DIFFUSIONS or last_step not in LAST_STEPS:
        raise ValueError(
            f"unknown diffusion {diffusion!r} or last step {last_step!r}: choose from "
            f"{sorted(DIFFUSIONS)} and {LAST_STEPS}"
        )
    at_start = PATHS[path](torch.tensor(start, dtype=torch.float64))
    if diffusion == "sbdm" and at_start.alpha < PURE_NOISE:
        raise ValueError(
            f"the diffusion 'sbdm' has no bound at t = {start:g}, where the path {path!r} is pure "
            "noise: begin the grid below 1, such as uniform(50, 0.99)"
        )


def euler_maruyama_step(
    field: Field,
    x: Tensor,
    t: float,
    s: float,
    noise: Noise | None,
    path: str = "linear",
    last: bool = False,
    diffusion: str = "sigma",
    last_step: str = "mean",
) -> Tensor:
    """x_s = x_t + (s - t) (v - D score) + sqrt(2 D (t - s)) noise; the last has no noise."""
    v, drift, strength = _reverse_drift(field, x, t, path, diffusion)
    if last:
        return _last_step(last_step, x, t, s, v, drift, path)
    return x + (s - t) * drift + (2 * strength * (t - s)).sqrt() * drawn(noise, x)


def euler_maruyama(
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    path: str = "linear",
    diffusion: str = "sigma",
    last_step: str = "mean",
) -> Iterator[State]:
    """Euler-Maruyama for the reverse SDE dx = (v - D score) dt + sqrt(2 D) dW (SiT, 2024).

    By default D = sigma_t. The last step, which should end at 0, has no noise: along the drift
    ("mean"), along v ("euler") or to E[x_0 | x_t] ("tweedie"). Raises ValueError for other names.
    """
    _check_sde(diffusion, last_step, float(times[0]), path)
    yield x, float(times[0])
    for t, s in pairwise(falling(times)):
        last = s == times[-1]
        x = euler_maruyama_step(field, x, t, s, noise, path, last, diffusion, last_step)
        yield x, s


def stochastic_heun(
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    path: str = "linear",
    diffusion: str = "sigma",
    last_step: str = "mean",
) -> Iterator[State]:
    """SiT's Heun for the same SDE: the noise first, then Heun's step along the drift; two
    evaluations a step.
    """
    _check_sde(diffusion, last_step, float(times[0]), path)
    yield x, float(times[0])
    for t, s in pairwise(falling(times)):
        if s == times[-1]:
            v, drift, _ = _reverse_drift(field, x, t, path, diffusion)
            x = _last_step(last_step, x, t, s, v, drift, path)
        else:
            strength = DIFFUSIONS[diffusion](t, coefficients(path, t, x))
            x = x + (2 * strength * (t - s)).sqrt() * drawn(noise, x)
            drift = _reverse_drift(field, x, t, path, diffusion)[1]
            ahead = _reverse_drift(field, x + (s - t) * drift, s, path, diffusion)[1]
            x = x + (s - t) * 0.5 * (drift + ahead)
        yield x, s


def ddpm_step(
    field: Field,
    x: Tensor,
    t: float,
    s: float,
    noise: Noise | None,
    path: str = "ddpm",
    last: bool = False,
) -> Tensor:
    """A draw from q(x_s | x_t, x_0-hat) = N(a x_0-hat + b x_t, variance); s = 0 is its mean."""
    v, fraction = with_variance(field, x, t)
    x0 = convert(v, x, t, "v", "x0", path)
    a, b, variance, _ = (k.to(x.dtype) for k in posterior(t, s, x, path))
    mean = a * x0 + b * x
    if s == 0:
        return mean
    if fraction is None:
        std = variance.sqrt()
    else:
        std = (0.5 * log_variance(fraction, t, s, path)).exp().to(x.dtype)
    return mean + std * drawn(noise, x)


def ddpm(
    field: Field, x: Tensor, times: Tensor, noise: Noise, path: str = "ddpm"
) -> Iterator[State]:
    """Ancestral sampling (Ho et al., 2020), respaced by the grid; a step to 0 has no noise.

    The variance is the posterior's, or the learned one of a field that has it (nag.ddpm).
    """
    yield x, float(times[0])
    for t, s in pairwise(falling(times)):
        x = ddpm_step(field, x, t, s, noise, path)
        yield x, s


def ddim_step(
    field: Field,
    x: Tensor,
    t: float,
    s: float,
    noise: Noise | None = None,
    path: str = "ddpm",
    last: bool = False,
    eta: float = 0.0,
) -> Tensor:
    """x_s = alpha_s x_0-hat + sqrt(sigma_s^2 - variance) eps-hat + sqrt(variance) noise, where the
    variance is eta^2 times the posterior's.
    """
    v = field(x, t)
    x0, eps = (convert(v, x, t, "v", kind, path) for kind in ("x0", "eps"))
    c = coefficients(path, s, x)
    variance = eta**2 * posterior(t, s, x, path)[2].to(x.dtype)
    x = c.alpha * x0 + (c.sigma**2 - variance).clamp_min(0).sqrt() * eps
    return x + variance.sqrt() * drawn(noise, x) if eta and s > 0 else x


def ddim(
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    path: str = "ddpm",
    eta: float = 0.0,
) -> Iterator[State]:
    """DDIM on any path: deterministic for eta = 0, DDPM with the posterior's variance for eta = 1
    (Song et al., 2021).
    """
    yield x, float(times[0])
    for t, s in pairwise(falling(times)):
        x = ddim_step(field, x, t, s, noise, path, eta=eta)
        yield x, s
