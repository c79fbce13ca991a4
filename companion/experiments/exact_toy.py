"""The experiments of notebook 0 on a Gaussian mixture whose every quantity is a closed form.

All numbers come back as plain lists, so that figures are drawn from JSON."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nag import toy
from nag.guidance import GuidedField, noise_awareness
from nag.interpolant import PATHS, Coefficients, convert
from nag.samplers.one_step import euler, euler_maruyama
from nag.samplers.time_grids import uniform
from nag.shift import estimated_times, forward_states, noise_shift
from nag.support.rng import ImageNoise, generator
from nag.support.uncertainty import Interval

START, END, MEASURED = 0.99, 0.01, 15  # sampling from START to END, read at MEASURED + 1 times
BLUR = 0.1  # standard deviation of what blurs the data of the "blurred network"
WEIGHTS = (0.5, 1.0, 2.0)


def _alpha_one(t: Tensor) -> Coefficients:
    return Coefficients(torch.ones_like(t), t, torch.zeros_like(t), torch.ones_like(t))


PATHS["alpha-one"] = _alpha_one  # x_t = x_0 + t eps; a new path is one function


def prior() -> toy.Prior:
    """The uniform p(t) on 64 nodes."""
    return toy.time_prior("uniform", nodes=64)


def _lists(interval: Mapping) -> dict:
    return {end: np.asarray(interval[end]).tolist() for end in ("value", "low", "high")}


def clouds(times: Sequence[float], seed: int, points: int = 200) -> dict[str, list]:
    """Forward states (points, 2) of the two-dimensional ring at each time, by time."""
    states = {t: toy.forward(toy.ring(2), 1000, t, generator(seed))[:points] for t in times}
    return {f"{t:g}": x.numpy().round(3).tolist() for t, x in states.items()}


def beliefs(dims: Sequence[int], t: float, n: int, seed: int) -> dict[str, dict]:
    """How well a state at t shows its own time, by the number of dimensions: one state's p(t|x)
    over p(t), "t" and "density", and the mean posterior standard deviation over n states,
    "spread"."""
    found, fine = {}, toy.time_prior("uniform", nodes=400)
    for d in dims:
        mix = toy.ring(d)
        one = toy.posterior(mix, toy.forward(mix, 1, t, generator(seed)), fine)[0] / fine.weights
        belief = toy.posterior(mix, toy.forward(mix, n, t, generator(seed)), prior())
        mean = belief @ prior().times
        spread = (belief @ prior().times ** 2 - mean**2).sqrt().mean().item()
        curve = {"t": fine.times.numpy().round(4), "density": one.numpy().round(4)}
        curve = {name: values.tolist() for name, values in curve.items()}
        found[str(d)] = curve | {"spread": spread}
    return found


def added_error(path: str, times: np.ndarray, sigma_e: float, n: int, seed: int) -> dict:
    """The shift that an error e ~ N(0, sigma_e^2 I) on forward states of the 64-dimensional ring
    makes for the exact posterior, {"value", "low", "high"} (K,) each.

    times (K,) rise. The same states with and without e are compared, so intervals are paired."""
    mix = toy.ring(64, path=path)
    x0 = toy.sample(mix, n, generator(seed))
    clean = forward_states(x0, times, path, first_seed=10**6 + seed * n)
    e = torch.randn(clean.shape, generator=generator(seed, 1), dtype=torch.float64)
    read = partial(toy.posterior_mean, mix, prior=prior())
    excess = estimated_times(read, clean + sigma_e * e) - estimated_times(read, clean)
    falling = noise_shift(excess[:, ::-1], np.zeros_like(excess), times[::-1])["delta"]
    return _lists({end: values[::-1] for end, values in falling.items()})


class Bench(NamedTuple):
    """Exact data to sample from: forward states, each the start of one trajectory."""

    data: toy.Mixture
    blurred: toy.Mixture  # what a network that cannot resolve detail takes the data for
    grid: Tensor  # (K,) times at which states are read
    forward: Tensor  # (n, K, d) forward states
    readings: np.ndarray  # (n, K) their times by the exact posterior
    truth: Tensor  # (2000, d) exact states at END
    seed: int


def bench(n: int, seed: int) -> Bench:
    """The four-component ring in 24 dimensions, with n trajectories."""
    data = toy.ring(24, components=4)
    grid = uniform(MEASURED, START, END)
    x0 = toy.sample(data, n, generator(seed, 2))
    forward = forward_states(x0, grid, first_seed=2 * 10**6 + seed * n)
    readings = estimated_times(partial(toy.posterior_mean, data, prior=prior()), forward)
    truth = toy.forward(data, 2000, END, generator(seed, 3))
    blurred = data._replace(variances=data.variances + BLUR**2)
    return Bench(data, blurred, grid, forward, readings, truth, seed)


def sample(b: Bench, field: Callable, steps: int, sampler: Callable = euler) -> tuple[Tensor, dict]:
    """Final states (n, d) of a sampler of so many steps, a multiple of 15, and their noise shift
    against the forward states that the trajectories start from."""
    n = len(b.forward)
    noise = ImageNoise(range(b.seed * n, (b.seed + 1) * n))
    start = b.forward[:, 0].view(n, 1, 1, -1)
    states = sampler(field, start, uniform(steps, START, END), noise)
    xs = [x.flatten(1) for x, _ in states]
    read = partial(toy.posterior_mean, b.data, prior=prior())
    excess = estimated_times(read, torch.stack(xs[:: steps // MEASURED], 1)) - b.readings
    # zeros: the control is already subtracted
    return xs[-1], noise_shift(excess, np.zeros_like(excess), b.grid.numpy())


def scaled_noise(data: toy.Mixture, factor: float) -> Callable:
    """The exact velocity with its noise part scaled by a factor."""
    return lambda x, t: toy.velocity(data, x, t) + (factor - 1) * toy.predict(data, x, t, "eps")


def shifts(b: Bench, causes: Mapping[str, tuple]) -> dict[str, dict]:
    """The noise shift of each (field, steps[, sampler]): delta(t), its late mean and its growth."""
    found = {name: sample(b, *cause)[1] for name, cause in causes.items()}
    parts = ("delta", "late", "growth")
    return {name: {part: _lists(s[part]) for part in parts} for name, s in found.items()}


def _velocity(score: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return convert(score, x, t, "score", "v")


NEGATIVES = {  # what NAG pushes away from: (data, model, x, t) -> velocity
    # exact s(x): grad log sum_t p(t) p(x|t) of the model
    "exact s(x)": lambda data, m, x, t: _velocity(toy.unconditional_score(m, x, prior()), x, t),
    # dropout: E_{t|x}[v(x, t)], what the network without its noise condition converges to
    "dropout": lambda data, m, x, t: toy.average(m, x, prior(), "v"),
    # outside estimator: s(x|t) - grad log p(t|x), p(t|x) that of the true data
    "outside estimator": lambda data, m, x, t: _velocity(
        toy.score(m, x, t) - toy.posterior_gradient(data, x, t, prior()), x, t
    ),
}


def guided(
    b: Bench, model: toy.Mixture, negative: str, w: float, interval: tuple = (0, 0.9)
) -> GuidedField:
    """The exact field of a model with NAG of weight w, by the code that guides networks."""
    net = toy.as_network(partial(toy.velocity, model), partial(NEGATIVES[negative], b.data, model))
    labels = torch.zeros(len(b.forward), dtype=torch.long)
    return GuidedField(net, labels, [noise_awareness(w, interval=interval)])


def distance(b: Bench, x: Tensor) -> Interval:
    """Energy distance of states to exact ones, each coordinate in units of its true standard
    deviation."""
    unit = b.truth.std(0)
    return toy.energy_distance(x / unit, b.truth / unit)


def sweep(b: Bench, steps: int) -> dict[str, list[dict]]:
    """Late shift and energy distance of NAG against w for every negative, three cases: rows {"w",
    "negative", "late shift", "distance"}; the row of w = 0 has no negative.

    The outside estimator of an exact model is its own posterior, so it is in the last case only."""
    cases: dict[str, tuple[toy.Mixture, Callable, list[str]]] = {
        "exact field, Euler": (b.data, euler, ["exact s(x)", "dropout"]),
        "exact field, stochastic": (b.data, euler_maruyama, ["exact s(x)", "dropout"]),
        "blurred network, Euler": (b.blurred, euler, list(NEGATIVES)),
    }
    found: dict[str, list[dict]] = {}
    for case, (model, sampler, negatives) in cases.items():
        arms = [("", 0.0)] + [(negative, w) for negative in negatives for w in WEIGHTS]
        for negative, w in arms:
            x, s = sample(b, guided(b, model, negative or "dropout", w), steps, sampler)
            row = {"w": w, "negative": negative, "late shift": _lists(s["late"])}
            found.setdefault(case, []).append(row | {"distance": distance(b, x)})
    return found


def value(found: Sequence[Mapping], negative: str, w: float, name: str) -> float:
    """A number of one case of `sweep`; w = 0 is the same for every negative."""
    wanted = ("" if w == 0 else negative, w)
    return next(row[name]["value"] for row in found if (row["negative"], row["w"]) == wanted)


def dropout_gap(b: Bench) -> list[dict]:
    """Guidance by dropout against the exact grad log p(t|x), by prior, network and time: "cosine"
    of the two, "strength" (length over the exact one's) and relative "error"."""
    rows, n = [], len(b.forward)
    for name in toy.PRIORS:
        p = toy.time_prior(name, nodes=64)
        for t in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9):
            x = toy.forward(b.data, n, t, generator(b.seed, 4))
            theory = toy.posterior_gradient(b.data, x, t, p)
            for kind in ("eps", "v"):
                dropped = convert(toy.average(b.data, x, p, kind), x, t, kind, "score")
                practice = toy.score(b.data, x, t) - dropped
                cosine = (practice * theory).sum() / (practice.norm() * theory.norm())
                row = {
                    "prior": name,
                    "t": t,
                    "network": kind,
                    "cosine": cosine.item(),
                    "strength": (practice.norm() / theory.norm()).item(),
                    "error": ((practice - theory).norm() / theory.norm()).item(),
                }
                rows.append(row)
    return rows
