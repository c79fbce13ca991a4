"""Samplers are generators: `for x, t in euler(field, x, times)` yields every state, so measuring
needs no callback.

One signature: field(x, t) -> v is any velocity field, x (B, ...) the state at times[0], `times` a
decreasing 1-D tensor that ends at the data (nag.samplers.time_grids); `noise(shape)` draws (B,
*shape) for stochastic samplers. The state keeps x's dtype, float32 or better. Here are the one-step
methods and the register of all; methods with a memory are in nag.samplers.multistep."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import pi

import torch
from torch import Tensor
from torchdiffeq import odeint

from nag.ddpm import log_variance, posterior
from nag.interpolant import coefficients, convert, widest

Field = Callable[[Tensor, float], Tensor]
State = tuple[Tensor, float]


def euler(
    field: Field, x: Tensor, times: Tensor, noise: Callable | None = None, path: str = "linear"
) -> Iterator[State]:
    """Euler's method for the probability-flow ODE dx = v dt; one evaluation a step."""
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        x = x + (s - t) * field(x, t)
        yield x, s


def heun(
    field: Field, x: Tensor, times: Tensor, noise: Callable | None = None, path: str = "linear"
) -> Iterator[State]:
    """Heun's second-order method; the last step is Euler's, so nothing is evaluated at t = 0
    (Karras et al., 2022).
    """
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        v = field(x, t)
        predicted = x + (s - t) * v
        x = predicted if s == times[-1] else x + (s - t) * 0.5 * (v + field(predicted, s))
        yield x, s


def midpoint(
    field: Field, x: Tensor, times: Tensor, noise: Callable | None = None, path: str = "linear"
) -> Iterator[State]:
    """The explicit midpoint rule, of second order; two evaluations a step."""
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        middle = (t + s) / 2
        x = x + (s - t) * field(x + (middle - t) * field(x, t), middle)
        yield x, s


def dopri5(
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Callable | None = None,
    path: str = "linear",
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> Iterator[State]:
    """Adaptive Runge-Kutta of order 5 through torchdiffeq; `times` only say which states to yield,
    the field counts its NFE.

    The ODE is evaluated at the end too: a network that predicts eps wants a grid that ends above 0.
    """
    at = times.to(x.device, x.dtype)
    states = odeint(
        lambda t, y: field(y, float(t)),
        x,
        at,
        rtol=rtol,
        atol=atol,
        method="dopri5",
        options={"step_t": at[-1:], "dtype": widest(x.device)},
    )  # step_t: else it oversteps the data
    yield from zip(states, times.tolist(), strict=True)


# The diffusion coefficient D of the reverse SDE dx = (v - D s) dt + sqrt(2 D) dW is free; SiT's
# choices (Ma et al., 2024).
DIFFUSIONS: dict[str, Callable] = {
    "sigma": lambda t, c: c.sigma,
    "sbdm": lambda t, c: (
        c.sigma * c.d_sigma - c.d_alpha / c.alpha * c.sigma**2
    ),  # score SDE of Song et al. (2021)
    "constant": lambda t, c: torch.ones_like(c.sigma),
    "linear": lambda t, c: t * torch.ones_like(c.sigma),
    "decreasing": lambda t, c: 0.25 * (1 - (pi * t * torch.ones_like(c.sigma)).cos()) ** 2,
    "increasing-decreasing": lambda t, c: (pi * t * torch.ones_like(c.sigma)).sin() ** 2,
}


def _reverse_drift(
    field: Field, x: Tensor, t: float, path: str, diffusion: str
) -> tuple[Tensor, Tensor, Tensor]:
    """v, the drift v - D s, and D at t."""
    v, strength = field(x, t), DIFFUSIONS[diffusion](t, coefficients(path, t, x))
    return v, v - strength * convert(v, x, t, "v", "score", path), strength


LAST_STEPS = ("mean", "euler", "tweedie")


def _last_step(
    kind: str, x: Tensor, t: float, s: float, v: Tensor, drift: Tensor, path: str
) -> Tensor:
    """A last step without noise: along the SDE's drift, along v, or to E[x_0 | x_t]."""
    if kind == "tweedie":
        return convert(v, x, t, "v", "x0", path)
    return x + (s - t) * (drift if kind == "mean" else v)


def _check_sde(diffusion: str, last_step: str) -> None:
    if diffusion not in DIFFUSIONS or last_step not in LAST_STEPS:
        raise ValueError(
            f"unknown diffusion {diffusion!r} or last step {last_step!r}: choose from {sorted(DIFFUSIONS)} and "
            f"{LAST_STEPS}"
        )


def euler_maruyama(
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Callable,
    path: str = "linear",
    diffusion: str = "sigma",
    last_step: str = "mean",
) -> Iterator[State]:
    """Euler-Maruyama for the reverse SDE dx = (v - D s) dt + sqrt(2 D) dW, by default with D =
    sigma_t (SiT, 2024).

    The last step, which should end at 0, has no noise: along the drift ("mean"), along v ("euler")
    or to E[x_0 | x_t] ("tweedie")."""
    _check_sde(diffusion, last_step)
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        v, drift, strength = _reverse_drift(field, x, t, path, diffusion)
        if s == times[-1]:
            x = _last_step(last_step, x, t, s, v, drift, path)
        else:
            x = x + (s - t) * drift + (2 * strength * (t - s)).sqrt() * noise(x.shape[1:]).to(x)
        yield x, s


def stochastic_heun(
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Callable,
    path: str = "linear",
    diffusion: str = "sigma",
    last_step: str = "mean",
) -> Iterator[State]:
    """SiT's Heun for the same SDE: the noise first, then Heun's step along the drift; two
    evaluations a step.
    """
    _check_sde(diffusion, last_step)
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        if s == times[-1]:
            v, drift, _ = _reverse_drift(field, x, t, path, diffusion)
            x = _last_step(last_step, x, t, s, v, drift, path)
        else:
            strength = DIFFUSIONS[diffusion](t, coefficients(path, t, x))
            x = x + (2 * strength * (t - s)).sqrt() * noise(x.shape[1:]).to(x)
            drift = _reverse_drift(field, x, t, path, diffusion)[1]
            ahead = _reverse_drift(field, x + (s - t) * drift, s, path, diffusion)[1]
            x = x + (s - t) * 0.5 * (drift + ahead)
        yield x, s


def ddpm(
    field: Field, x: Tensor, times: Tensor, noise: Callable, path: str = "ddpm"
) -> Iterator[State]:
    """Ancestral sampling from q(x_s | x_t, x_0-hat) (Ho et al., 2020), respaced by the grid; a step
    to 0 has no noise.

    The variance is the posterior's, or the field's learned `fraction` of DiT's range if it has one.
    """
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        x0 = convert(field(x, t), x, t, "v", "x0", path)
        fraction = getattr(field, "fraction", None)
        a, b, variance, _ = (k.to(x.dtype) for k in posterior(t, s, x, path))
        x = a * x0 + b * x
        if s > 0:
            std = (
                variance.sqrt()
                if fraction is None
                else (0.5 * log_variance(fraction, t, s, path)).exp().to(x.dtype)
            )
            x = x + std * noise(x.shape[1:]).to(x)
        yield x, s


def ddim(
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Callable | None = None,
    path: str = "ddpm",
    eta: float = 0.0,
) -> Iterator[State]:
    """DDIM on any path: deterministic for eta = 0, DDPM with the posterior's variance for eta = 1
    (Song et al., 2021).
    """
    yield x, float(times[0])
    for t, s in pairwise(times.tolist()):
        v = field(x, t)
        x0, eps = (convert(v, x, t, "v", kind, path) for kind in ("x0", "eps"))
        c = coefficients(path, s, x)
        variance = eta**2 * posterior(t, s, x, path)[2].to(x.dtype)
        x = c.alpha * x0 + (c.sigma**2 - variance).clamp_min(0).sqrt() * eps
        if eta and s > 0:
            x = x + variance.sqrt() * noise(x.shape[1:]).to(x)
        yield x, s
