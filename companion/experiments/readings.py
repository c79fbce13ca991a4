"""The noise shift of several arms as notebook 6 measures and keeps it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from companion.experiments.arms import Run, guidance_of
from companion.experiments.generate import SampleConfig
from companion.experiments.shards import ShardConfig
from nag.shift import (
    energy_residual,
    estimated_times,
    forward_states,
    is_late,
    late_ratio,
    noise_shift,
)
from nag.support.paths import WEIGHTS


class Readings(NamedTuple):
    """What the estimator says of sampled and forward states, and the noise shift by arm."""

    path: str
    times: np.ndarray  # (K,)
    control: np.ndarray  # (M', K) estimated levels of forward states of real images
    levels: dict[str, np.ndarray]  # of each arm, (M, K)
    shifts: dict[str, dict]  # of each arm, what `nag.shift.noise_shift` returns
    energy: dict[str, np.ndarray]  # of each arm, `nag.shift.energy_residual` (K,)


def read(
    runs: Mapping[str, Run], real: Tensor, reader: Callable, path: str, resamples: int = 1000
) -> Readings:
    """Read the states of all arms, which share their times, against forward states of real images
    (M', C, H, W)."""
    times = next(iter(runs.values()))["times"]
    control = estimated_times(reader, forward_states(real, times, path))
    levels = {arm: estimated_times(reader, run["states"]) for arm, run in runs.items()}
    shifts = {
        arm: noise_shift(level, control, times, resamples, path=path)
        for arm, level in levels.items()
    }
    return Readings(
        path,
        times,
        control,
        levels,
        shifts,
        {arm: energy_residual(run["states"], times, path) for arm, run in runs.items()},
    )


def stochastic(
    family: str, images: int, steps: int, first_seed: int, compile: bool
) -> dict[str, ShardConfig]:
    """How the unguided arm and the NAG arm of the committed network are sampled under the paper's
    samplers (Euler-Maruyama for SiT, DDPM for DiT), all states kept; nothing if no images are
    wanted."""
    if not images:
        return {}
    config = SampleConfig(
        sampler="sde",
        steps=steps,
        n_images=images,
        first_seed=first_seed,
        trajectories=images,
        compile=compile,
    )
    weights = str(WEIGHTS / f"{family}.safetensors")
    return {
        arm: ShardConfig(
            weights=weights,
            arm=guidance_of(family, arm),
            config=config,
            shard_size=images,
            out="",
        )
        for arm in ("none", "nag")
    }


def arrays(found: Readings) -> dict[str, np.ndarray]:
    """The readings as the arrays of an npz file: times, control, and each arm's levels."""
    return {"times": found.times, "control": found.control} | found.levels


def curves(found: Readings, **protocol: object) -> dict:
    """delta(t) and the energy residual of each arm at times above zero as JSON, rounded to 1e-6.

    The last state, at t = 0, is the image itself, of whose noise level the estimator knows nothing.
    """
    on = found.times > 0

    def rounded(values: np.ndarray) -> list[float]:
        return np.round(values[on], 6).tolist()

    delta = {
        _name(arm): {k: rounded(v) for k, v in shift["delta"].items()}
        for arm, shift in found.shifts.items()
    }
    energy = {_name(arm): rounded(v) for arm, v in found.energy.items()}
    return {"times": found.times[on].tolist(), "energy": energy} | protocol | delta


def numbers(found: Readings, **protocol: object) -> dict:
    """Late and middle shift, growth, late spread, and |late| over the unguided arm's, with 95 %
    intervals, by arm."""

    def of(shift: dict) -> dict:
        parts = {
            "shift_late": "late",
            "middle": "middle",
            "growth": "growth",
            "spread_late": "spread",
        }
        row = {name: shift[part] for name, part in parts.items()}
        row["late_ratio"] = late_ratio(shift, found.shifts["none"], found.times, path=found.path)
        return {name: {k: float(v) for k, v in x.items()} for name, x in row.items()}

    rows = {_name(arm): of(shift) for arm, shift in found.shifts.items()}
    for row in rows.values():
        row["shift_late"] |= protocol
    return rows


def bias(found: Readings) -> float:
    """The largest bias of the estimator itself, forward states against their own t, late in
    sampling."""
    late = is_late(found.times, found.path)
    return float(np.abs(found.control.mean(0) - found.times)[late].max())


def _name(arm: str) -> str:
    """An arm's name in results: "cfg+nag" for the file name "cfg-nag"."""
    return arm.replace("-", "+")
