"""Study of notebook 29, measured: intervals of t and schedules of the weight, all at equal cost.

A kind of guidance is a function of one weight; an arm is a kind at its tuned weight."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from companion.experiments import study
from companion.experiments.generate import Arm, labels_of
from companion.experiments.spaces import Features
from nag.auto_weight import ScheduledArm, weight_schedule
from nag.data import fashion_mnist
from nag.models import DiT
from nag.samplers.registry import time_grid
from nag.shift import Estimator, estimated_times, forward_states
from nag.support.rng import ImageNoise

Guidance = Arm | ScheduledArm
NONE, EVERYWHERE, BY_ESTIMATOR = "no guidance", "everywhere", "by the estimator"
LARGEST, NODES = 4.0, 9  # the estimator's schedule tries so many weights from 0 to 4 at every step
FINE = np.linspace(1, 0, 101)


def _within(interval: tuple[float, float], w: float) -> Arm:
    return Arm(w_nag=w, nag_interval=interval)


def kinds(intervals: Sequence[Sequence[float]]) -> dict[str, Callable[[float], Guidance]]:
    """{name: kind}: everywhere, in each interval of t, and linear schedules named by their mean."""
    found: dict[str, Callable[[float], Guidance]] = {EVERYWHERE: lambda w: Arm(w_nag=w)}
    for low, high in intervals:
        found[f"t from {low:g} to {high:g}"] = partial(_within, (low, high))
    found["growing towards the data"] = lambda w: ScheduledArm(
        tuple(FINE), tuple(2 * w * (1 - FINE))
    )
    found["shrinking towards the data"] = lambda w: ScheduledArm(tuple(FINE), tuple(2 * w * FINE))
    return found


def schedule_by_estimator(
    net: DiT, reader: Estimator, sampler: str, steps: int, images: Tensor, seeds: range
) -> dict:
    """A schedule without any image metric: {"times", "weights", "not nulled"}.

    At every step the weight at which the estimator reads from a sampled batch, on average, what it
    reads from forward states of `images` (M, 1, 28, 28) uint8. "not nulled" counts guided steps at
    which no tried weight does so; there the nearest is taken."""
    times = time_grid(sampler, steps, net.config.path)
    states = forward_states(fashion_mnist.to_float(images), times, net.config.path)
    found, weights = weight_schedule(
        net,
        reader,
        estimated_times(reader, states),
        times,
        labels_of(seeds, net.config.classes),
        ImageNoise(seeds),
        sampler=sampler,
        largest=LARGEST,
        nodes=NODES,
    )
    guided = [w for w in weights[:-1] if w > 0]  # the last repeats the one before
    # a weight where the reading crosses lies between two that were tried; one of those itself is
    # only the nearest
    missed = sum(w in np.linspace(0, LARGEST, NODES) for w in guided)
    return {
        "times": found,
        "weights": weights,
        "not nulled": {"steps": missed, "of": len(guided)},
    }


# ---- cost


def weights_at(arm: Guidance, sampler: str, steps: int, process: str) -> list[float]:
    """NAG's weight in each of so many steps."""
    times = time_grid(sampler, steps, process)[:-1].tolist()
    return [sum(term.at(t) for term in arm.terms()) for t in times]


def evaluations(arm: Guidance, sampler: str, steps: int, process: str) -> int:
    """Evaluations per image: two in a guided step, one in another."""
    return steps + int(np.count_nonzero(weights_at(arm, sampler, steps, process)))


def equal_steps(arm: Guidance, sampler: str, steps: int, process: str) -> int:
    """Steps at which an arm costs about as much as NAG everywhere in `steps` steps."""
    return min(
        range(steps, 2 * steps + 1),
        key=lambda count: abs(evaluations(arm, sampler, count, process) - 2 * steps),
    )


# ---- all numbers


def repeated(over: Mapping[str, Mapping]) -> list[str]:
    """The arms that are sampled again on fresh seeds: the best, the estimator's, and what they are
    compared with.
    """
    guided = [name for name in over if name != NONE]
    best = min(guided, key=lambda name: over[name]["value"])
    estimators = [name for name in guided if name == BY_ESTIMATOR]
    return list(dict.fromkeys([best, *estimators, EVERYWHERE, NONE]))


def over_everywhere(rows: Mapping[str, study.Row], real: Features) -> dict[str, dict]:
    """Ratio of every arm's distance to that of NAG everywhere, paired by seed."""
    return {
        name: study.ratio(row, rows[EVERYWHERE], real)
        for name, row in rows.items()
        if name != EVERYWHERE
    }


def measure(
    rows: Mapping[str, study.Row],
    fresh: Mapping[str, study.Row],
    tuned: Mapping[str, Mapping],
    mean_w: Mapping[str, float],
    shift: Mapping[str, Mapping],
    real: Features,
) -> dict:
    """The numbers of the study: ratios on both sets of seeds, weights, and late shifts."""
    over = over_everywhere(rows, real)
    again = {
        name: {
            f"over {base}": study.ratio(fresh[name], fresh[base], real)
            for base in (EVERYWHERE, NONE)
        }
        for name in fresh
        if name not in (EVERYWHERE, NONE)
    }
    best = next(iter(again))
    return {
        "n": len(rows[EVERYWHERE]["seeds"]),
        "w": {name: found["w"] for name, found in tuned.items()},
        "mean_w": dict(mean_w),
        "w_at_end_of_list": [name for name, found in tuned.items() if found["at_end"]],
        "tried": [
            {"arm": name, "w": float(w), "fd_inf": v["value"]}
            for name, found in tuned.items()
            for w, v in found["tried"].items()
        ],
        "over_everywhere": over,
        "everywhere_over_none": study.ratio(rows[EVERYWHERE], rows[NONE], real),
        "best": {"arm": best}
        | {key.replace("no guidance", "none"): v for key, v in again[best].items()},
        "fresh": again,
        "shift_late": {name: dict(v) for name, v in shift.items()},
    }


def table_rows(numbers: Mapping, rows: Mapping[str, study.Row], quality: Mapping) -> list[dict]:
    """A row for every arm: weight, cost, quality, ratio to NAG everywhere and late shift."""
    lines = []
    for name, row in rows.items():
        line = {
            "arm": name,
            "w": numbers["w"].get(name),
            "mean_w": numbers["mean_w"][name],
            "steps": len(row["times"]) - 1,
            "nfe": int(row["nfe"]),
            "n": len(row["seeds"]),
        }
        values = quality[name] | {
            "ratio": numbers["over_everywhere"].get(name),
            "late_shift": numbers["shift_late"][name],
        }
        for what, v in values.items():
            if v:
                line |= {what: v["value"], f"{what}_low": v["low"], f"{what}_high": v["high"]}
        lines.append(line)
    return lines
