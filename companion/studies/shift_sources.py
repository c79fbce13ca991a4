"""What notebook 24 measures: which cause makes how much of a sampler's noise shift.

A measured number travels as `Draws` (1 + resamples,): its value first, then its bootstrap draws.
All arms resample their images alike, so that differences of such arrays are paired."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.experiments import study
from companion.experiments.generate import SampleConfig
from companion.studies.families import Family
from companion.studies.intervals import numbers
from nag import toy
from nag.interpolant import PATH_OF
from nag.samplers.registry import SAMPLERS, resolve
from nag.samplers.time_grids import uniform
from nag.shift import estimated_times, forward_states, is_late, noise_shift, statement_1
from nag.support.device import best_device
from nag.support.rng import ImageNoise, generator
from nag.support.uncertainty import Interval, bootstrap, interval

Draws = np.ndarray
Curve = dict[int, Draws]  # number of steps: late shift
Arms = dict[tuple[str, int], study.Row]
Reader = Callable[[Tensor], Tensor]


def number(draws: Draws) -> Interval:
    """The value with its 95 % interval, as JSON can write it."""
    return numbers(interval(draws[0], draws[1:]))


def mean_of(values: np.ndarray, resamples: int, seed: int = 0) -> Draws:
    """Mean over images (M, ...) of everything, with its draws over images."""
    return np.r_[values.mean(), bootstrap(values, np.mean, resamples, seed)]


def late_shift(
    sampled: np.ndarray,
    control: np.ndarray,
    times: np.ndarray,
    resamples: int,
    path: str = "linear",
) -> Draws:
    """Late shift of levels read from sampled and control states (M, K) at times (K,)."""
    shift = noise_shift(sampled, control, times, resamples, path=path)
    return np.r_[shift["late"]["value"], shift["draws"][:, is_late(times, path)].mean(1)]


def limit(curve: Curve, fit_from: int = 0) -> Draws:
    """The curve at infinitely many steps: a polynomial in 1 / steps at 0, fitted to the points from
    `fit_from` steps on, of degree 2 if there are three or more."""
    used = [steps for steps in curve if steps >= fit_from]
    values = np.stack([curve[steps] for steps in used])
    degree = min(2, len(used) - 1)
    return np.polynomial.polynomial.polyfit(1 / np.array(used), values, degree)[0]


def record(curve: Curve, fit_from: int = 0) -> dict:
    """{"steps": {"10": interval, ...}, "limit": interval}."""
    return {
        "steps": {str(steps): number(draws) for steps, draws in curve.items()},
        "limit": number(limit(curve, fit_from)),
    }


# ---- (a) and (b): a mixture of Gaussians whose field and p(t | x) are exact


class Toy(NamedTuple):
    """The mixture of notebook 0 in 24 dimensions with N forward trajectories of its samples."""

    mixture: toy.Mixture
    grid: Tensor  # (K,) the times of the coarsest grid, where the shift is read
    clean: Tensor  # (N, 24) samples of the data
    forward: Tensor  # (N, K, 24) their forward states; the first are where sampling starts
    read: Reader  # E[t | x] by the exact posterior
    levels: np.ndarray  # (N, K) what it reads from the forward states
    seed: int


def toy_world(n: int, coarsest: int, seed: int = 0) -> Toy:
    mixture, grid = toy.ring(24, components=4), uniform(coarsest)
    prior = toy.time_prior("uniform", nodes=64)
    clean = toy.sample(mixture, n, generator(seed, 2))
    forward = forward_states(clean, grid, first_seed=2 * 10**6 + seed)

    def read(x: Tensor) -> Tensor:
        return toy.posterior_mean(mixture, x, prior)

    return Toy(mixture, grid, clean, forward, read, estimated_times(read, forward), seed)


def toy_shift(world: Toy, field: Callable, solver: str, steps: int, resamples: int) -> Draws:
    """Late shift of the toy's trajectories by a solver on a field, against the forward states that
    share their start; `steps` is a multiple of the coarsest grid's."""
    first = 3 * 10**6 + world.seed
    noise = ImageNoise(range(first, first + len(world.clean)))
    states = [x for x, _ in SAMPLERS[solver](field, world.forward[:, 0], uniform(steps), noise)]
    every = steps // (len(world.grid) - 1)
    excess = estimated_times(world.read, torch.stack(states[::every], 1)) - world.levels
    return late_shift(excess, np.zeros_like(excess), world.grid.numpy(), resamples)


def toy_curve(world: Toy, solver: str, steps: Sequence[int], resamples: int) -> Curve:
    """Late shift of the exact field by numbers of steps: all of it is the solver's."""
    exact = partial(toy.velocity, world.mixture)
    return {n: toy_shift(world, exact, solver, n, resamples) for n in steps}


def planted(world: Toy, sizes: Sequence[float], steps: int, resamples: int) -> list[dict]:
    """Late shift that an error of size b in the exact field makes, and the one that Statement 1
    predicts of the extra variance that it leaves in the states.

    smooth bias: the field of data blurred by N(0, b²), extra variance (1 - t)² b². independent
    error: fresh noise at every step of variance b² per unit of time; the flow shrinks what came
    earlier by t/s, so that b² t (1 - t) has gathered at t."""
    late = world.grid[is_late(world.grid.numpy())].numpy()
    fresh = {b: generator(world.seed, 3) for b in sizes}

    def smooth(b: float) -> Callable:
        return partial(
            toy.velocity, world.mixture._replace(variances=world.mixture.variances + b**2)
        )

    def noisy(b: float) -> Callable:
        def field(x: Tensor, t: float) -> Tensor:
            noise = torch.randn(x.shape, generator=fresh[b], dtype=x.dtype)
            return toy.velocity(world.mixture, x, t) + b * steps**0.5 * noise

        return field

    kinds = {
        "smooth bias": (smooth, lambda b: (1 - late) * b),
        "independent error": (noisy, lambda b: b * np.sqrt(late * (1 - late))),
    }
    found = []
    for kind, (field, extra) in kinds.items():
        for b in sizes:
            shift = number(toy_shift(world, field(b), "euler", steps, resamples))
            predicted = float(np.mean(statement_1(late, extra(b))))
            found.append(
                {"kind": kind, "size": b, "predicted": predicted}
                | shift
                | {"measured over predicted": shift["value"] / predicted}
            )
    return found


# ---- (c): trained networks


def network_arms(kept: Path, family: Family, config: SampleConfig, steps: Sequence[int]) -> Arms:
    """Unguided arms of the deterministic and the stochastic sampler by numbers of steps on uniform
    grids, read at the times of the coarsest, {("ode", 10): row, ...}."""
    rows = {}
    for sampler in ("ode", "sde"):
        for n in steps:
            changes = {"sampler": sampler, "steps": n, "states_every": n // steps[0]}
            name, settings = f"{family.name}-{sampler}-{n}", config.model_copy(update=changes)
            rows[sampler, n] = study.kept_arm(
                kept, name, family.net, [], settings, weights=family.files, reader=family.reader
            )
    return rows


def network_numbers(
    arms: Arms, control: np.ndarray, table_steps: int, fit_from: int, resamples: int, path: str
) -> dict:
    """Late shift by numbers of steps of both samplers, and the parts of the stochastic one's raw
    reading in `table_steps` steps: {"ode": record, "sde": record, "parts": {name: interval}}."""
    times = arms["ode", min(steps for _, steps in arms)]["times"]
    curves: dict[str, Curve] = {"ode": {}, "sde": {}}
    for (sampler, n), row in arms.items():
        curves[sampler][n] = late_shift(row["levels"], control, times, resamples, path)
    bias = estimator_bias(control, times, resamples, path)
    parts = account(curves, bias, table_steps, fit_from)
    raw = (arms["sde", table_steps]["levels"] - times)[:, is_late(times, path)].mean()
    assert abs(sum(draws[0] for draws in parts.values()) - raw) < 1e-9, "the parts do not add up"
    records = {sampler: record(curve, fit_from) for sampler, curve in curves.items()}
    return records | {"parts": {name: number(draws) for name, draws in parts.items()}}


def estimator_bias(
    control: np.ndarray, times: np.ndarray, resamples: int, path: str = "linear"
) -> Draws:
    """Late reading of forward states minus t. Its draws are those with which `noise_shift`
    resamples the control, so that bias and shift add up draw by draw."""
    return mean_of((control - times)[:, is_late(times, path)], resamples, seed=1)


def account(curves: Mapping[str, Curve], bias: Draws, steps: int, fit_from: int) -> dict:
    """The parts of the raw late reading of the stochastic sampler in `steps` steps; they add up to
    it exactly."""
    ode, sde = curves["ode"][steps], curves["sde"][steps]
    ode_limit, sde_limit = (limit(curves[kind], fit_from) for kind in ("ode", "sde"))
    return {
        "estimator bias": bias,
        "network": ode_limit,
        "stochasticity, limit": sde_limit - ode_limit,
        "deterministic steps": ode - ode_limit,
        "stochastic steps": (sde - sde_limit) - (ode - ode_limit),
    }


# ---- (d): the reading itself


def fresh_forward(
    family: Family, images: Tensor, control: np.ndarray, times: np.ndarray, resamples: int
) -> dict[str, Interval]:
    """Forward states of other images in the place of sampled ones: the late reading minus t, and
    the shift, which must be zero."""
    states = forward_states(images, times, family.path, first_seed=5 * 10**6)
    levels = estimated_times(family.reader, states)
    return {
        "raw": number(mean_of((levels - times)[:, is_late(times, family.path)], resamples)),
        "less control": number(late_shift(levels, control, times, resamples, family.path)),
    }


def step_curve(
    field: Callable,
    sampler: str,
    x0: Tensor,
    path: str,
    reader: Reader,
    steps: Sequence[int],
    at: Sequence[float],
    resamples: int,
) -> Curve:
    """Shift per unit of time of a single step of length 1 / steps from forward states of x0 to the
    levels `at`, against forward states there of the same image and noise."""
    device, solver, curve = best_device(), SAMPLERS[resolve(sampler, path)], {}
    for n in steps:
        excess = []
        for s in at:
            times = torch.tensor([s + 1 / n, s, 0.0]).double()
            states = forward_states(x0, times[:2], path, first_seed=3 * 10**6)
            noise = ImageNoise(range(4 * 10**6, 4 * 10**6 + len(x0)), device)
            walk = solver(field, states[:, 0].to(device), times, noise, path)
            x = next(islice(walk, 1, None))[0].cpu()  # the second state; none is made of t = 0
            readings = estimated_times(reader, torch.stack([x, states[:, 1]], 1))
            excess.append(readings[:, 0] - readings[:, 1])
        curve[n] = n * mean_of(np.mean(excess, axis=0), resamples)
    return curve


# ---- the table


def table(toy_curves: Mapping[str, Curve], toy_n: int, arms: Mapping[str, Arms], networks: Mapping):
    """One line for each number of steps of each sampler; `networks` are those of
    `network_numbers`."""
    found = []
    for solver, curve in toy_curves.items():
        for n, draws in curve.items():
            nfe = 2 * n - 1 if solver == "heun" else n
            found.append(("toy", solver, n, nfe, toy_n, np.nan, number(draws)))
    for family, rows in arms.items():
        for (sampler, n), row in rows.items():
            images, seconds = len(row["seeds"]), float(row["seconds"])
            late = networks[family][sampler]["steps"][str(n)]
            solver = resolve(sampler, PATH_OF[family])
            found.append((family, solver, n, int(row["nfe"]), images, images / seconds, late))
    return pd.DataFrame(
        {
            "source": source,
            "solver": solver,
            "grid": "uniform",
            "steps": n,
            "nfe": nfe,
            "n": images,
            "images_per_second": speed,
            "late_shift": late["value"],
            "late_shift_low": late["low"],
            "late_shift_high": late["high"],
        }
        for source, solver, n, nfe, images, speed, late in found
    )
