"""Study of notebook 20, measured: a map over the weight of NAG and the scale of CFG.

A point of the map is (w, scale); (w, 1) is NAG alone, (0, scale) CFG alone, (0, 1) no guidance."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig
from companion.experiments.spaces import Features
from nag.evaluation import metrics
from nag.models import DiT
from nag.samplers.registry import resolve
from nag.shift import Estimator
from nag.support.uncertainty import Interval, around, stretch

Point = tuple[float, float]
NONE: Point = (0.0, 1.0)


@dataclass(frozen=True)
class Map:
    """The points of the map: both axes and the inside, and what was tuned on other seeds."""

    nag_axis: list[Point]
    cfg_axis: list[Point]
    inside: list[Point]
    best_w: float
    best_cfg: float
    pair: Point

    @property
    def axes(self) -> list[Point]:
        """Points of the two axes, no guidance first."""
        return list(dict.fromkeys(self.nag_axis + self.cfg_axis))

    @property
    def rivals(self) -> list[Point]:
        """CFG alone, at the tuned pair's scale and as tuned: what the pair is compared with."""
        return sorted({(0.0, self.pair[1]), (0.0, self.best_cfg)})


def plan(
    chosen: Mapping[str, Mapping],
    w_values: Iterable[float],
    cfg_values: Iterable[float],
    joint_w_values: Iterable[float],
) -> Map:
    """The map that has these values and those `chosen` by notebook 4: {"nag", "cfg", "cfg-nag"}."""
    arms = {name: Arm(**arm) for name, arm in chosen.items()}
    best_w, best_cfg = arms["nag"].w_nag, arms["cfg"].cfg
    pair = arms["cfg-nag"].w_nag, arms["cfg-nag"].cfg
    joint = sorted({pair[0], *joint_w_values} - {0.0})
    scales = sorted({best_cfg, pair[1], *cfg_values} - {1.0})
    ws = sorted({0.0, best_w, *w_values, *joint})
    return Map(
        nag_axis=[(w, 1.0) for w in ws],
        cfg_axis=[NONE, *((0.0, s) for s in scales)],
        inside=[(w, s) for s in scales for w in joint],
        best_w=best_w,
        best_cfg=best_cfg,
        pair=pair,
    )


def label(point: Point) -> str:
    """A point's name in the results: "w0.5 cfg1.1"."""
    return f"w{point[0]:g} cfg{point[1]:g}"


def take(
    points: Iterable[Point],
    net: DiT,
    config: SampleConfig,
    weights: Sequence[Path],
    reader: Estimator,
    store: Path,
) -> dict[Point, study.Row]:
    """Every point sampled, or as it was kept in `store`; `weights` are the files of `net` and
    `reader`.
    """
    rows = {}
    for w, scale in points:
        name = f"{weights[0].stem}-{config.sampler}-{label((w, scale)).replace(' ', '-')}"
        terms = Arm(w_nag=w, cfg=scale).terms()
        rows[w, scale] = study.kept_arm(
            store, name, net, terms, config, weights=weights, reader=reader
        )
    return rows


def first_images(rows: Mapping[Point, study.Row], n: int) -> dict[Point, study.Row]:
    """The same arms with their first n images only, so that all cells have as many."""
    return {p: study.first(row, n) for p, row in rows.items()}


def late_shifts(rows: Mapping[Point, study.Row], process: str, reader: Estimator) -> dict:
    """Late noise shift of every point: {point: {"value", "low", "high"}}."""
    return {p: found["late"] for p, found in study.shifts(rows, process, reader).items()}


# ---- recall


def recall_draws(
    rows: Mapping[Point, study.Row],
    values: Mapping[Point, np.ndarray],
    real: Features,
    resamples=100,
) -> dict[Point, np.ndarray]:
    """Draws (resamples, 2) of distance and recall around their values, paired over all points.

    Each is found on the same random 80 % of the seeds; its deviation from the mean is stretched to
    that of all images."""
    draws = {}
    for p, row in rows.items():
        features = torch.from_numpy(row["features"])
        found = metrics.resampled(features, real.first, resamples=resamples, labels=row["labels"])
        of_80 = np.stack([found["fd"], found["recall"]], axis=1)
        draws[p] = values[p] + stretch(len(features)) * (of_80 - of_80.mean(0))
    return draws


def difference(value: float, draws: np.ndarray) -> Interval:
    """A difference and its 95 % interval from paired draws."""
    return around(float(value), float(np.std(draws, ddof=1)))


def reach(
    axis: Sequence[Point], found: Mapping[Point, np.ndarray], target: float
) -> tuple[float, float] | None:
    """(strength, recall) where the distance along an axis first falls to the target, linear between
    two points; None where it does not.
    """
    for a, b in pairwise(axis):
        high, low = found[a][0], found[b][0]
        if high > target >= low:
            share = (high - target) / (high - low)
            w, scale = (1 - share) * np.array(a) + share * np.array(b)
            recall = (1 - share) * found[a][1] + share * found[b][1]
            return float(w or scale), float(recall)
    return None


def at_equal_gain(axes: Mapping[str, Sequence[Point]], found: Mapping[Point, np.ndarray]):
    """(target, {axis: (strength, recall)}) at the smallest distance that every axis reaches; None
    if one of them never improves.
    """
    target = float(max(min(found[p][0] for p in axis) for axis in axes.values()))
    at = {name: reach(axis, found, target) for name, axis in axes.items()}
    return (target, at) if all(at.values()) else None


def equal_gain(axes: Mapping, values: Mapping, draws: Mapping[Point, np.ndarray]) -> dict:
    """NAG's recall minus CFG's where both have the same distance: {"fd_inf", "strength",
    "recall_difference"}.

    The places are uncertain too, so every draw finds its own. All None if an axis does not improve,
    or not in 90 % of the draws."""
    resamples = len(next(iter(draws.values())))
    found = at_equal_gain(axes, values)
    drawn = [at_equal_gain(axes, {p: d[r] for p, d in draws.items()}) for r in range(resamples)]
    drawn = [one for one in drawn if one]
    if found is None or len(drawn) < 0.9 * resamples:
        return {"fd_inf": None, "strength": None, "recall_difference": None}

    def gap(one: tuple) -> float:
        return one[1]["NAG"][1] - one[1]["CFG"][1]

    return {
        "fd_inf": found[0],
        "strength": {name: strength for name, (strength, _) in found[1].items()},
        "recall_difference": difference(gap(found), np.array([gap(one) for one in drawn])),
    }


# ---- all numbers


def measure(
    sampled: Mapping[Point, study.Row],
    stochastic: Mapping[Point, study.Row],
    on: Map,
    n_images: int,
    late: Mapping[str, Mapping[Point, Interval]],
    real: Features,
    resamples: int = 100,
) -> dict:
    """The numbers of the study from the arms of all points.

    Cells are compared on their first `n_images`; the tuned pair and CFG alone beside it on all of
    theirs. `late` is the late shifts of "ode" (all points) and "sde" (`stochastic`)."""
    rows = first_images(sampled, n_images)
    quality = study.quality(rows, real, resamples)
    ratios = {p: study.ratio(row, rows[NONE], real) for p, row in rows.items()}
    over_cfg = {p: study.ratio(rows[p], rows[0.0, p[1]], real) for p in on.inside}
    pair_over = {p[1]: study.ratio(sampled[on.pair], sampled[p], real) for p in on.rivals}
    over_cfg[on.pair] = pair_over[on.pair[1]]

    axes = {"NAG": on.nag_axis, "CFG": on.cfg_axis}
    values = {p: np.array([q["fd_inf"]["value"], q["recall"]["value"]]) for p, q in quality.items()}
    draws = recall_draws(rows, values, real, resamples)

    def recall_change(p: Point, base: Point) -> Interval:
        return difference(values[p][1] - values[base][1], draws[p][:, 1] - draws[base][:, 1])

    recall = {p: recall_change(p, NONE) for p in rows}
    least = {
        name: min(points, key=lambda p: ratios[p]["value"])
        for name, points in (axes | {"all": list(rows)}).items()
    }

    def named(found: Mapping[Point, Any]) -> dict:
        return {label(p): v for p, v in found.items()}

    some = next(iter(stochastic.values()))
    return {
        "n": n_images,
        "chosen": {"w_nag": on.best_w, "cfg": on.best_cfg, "joint": list(on.pair)},
        "evaluations_x_images": sum(
            int(row["nfe"]) * len(row["seeds"]) for row in [*sampled.values(), *stochastic.values()]
        ),
        "quality": named(quality),
        "ratio_to_unguided": named(ratios),
        "nag_at_chosen": {
            "ratio": ratios[on.best_w, 1.0],
            "recall_difference": recall[on.best_w, 1.0],
        },
        "cfg_at_chosen": {"recall_difference": recall[0.0, on.best_cfg]},
        "recall_minus_unguided": named(recall),
        "equal_gain": equal_gain(axes, values, draws),
        "ratio_to_cfg_alone": named(over_cfg),
        "pair_over_cfg_alone": {
            f"cfg{s:g}": v | {"recall_difference": recall_change(on.pair, (0.0, s))}
            for s, v in pair_over.items()
        },
        "least": {name: {"w_nag": p[0], "cfg": p[1]} | ratios[p] for name, p in least.items()},
        "late_shift": {
            "ode": named(late["ode"]),
            "sde": {"n": len(some["seeds"]), "steps": len(some["times"]) - 1} | named(late["sde"]),
        },
    }


def table_rows(
    numbers: Mapping, sampled: Mapping, stochastic: Mapping, on: Map, sampler: str, process: str
) -> list[dict]:
    """A row for every cell, and for every arm of the stochastic sampler: all that was measured."""

    def row(point: Point, part: str, arm: study.Row, values: Mapping) -> dict:
        kind = "sde" if part == "shift" else "ode"
        found = {
            "sampler": resolve("sde" if part == "shift" else sampler, process),
            "w_nag": point[0],
            "cfg": point[1],
            "part": part,
            "n": len(arm["seeds"]) if part == "shift" else numbers["n"],
            "steps": len(arm["times"]) - 1,
            "nfe": int(arm["nfe"]),
        }
        late = numbers["late_shift"][kind][label(point)]
        for name, v in {**values, "shift_late": late}.items():
            found |= {name: v["value"], f"{name}_low": v["low"], f"{name}_high": v["high"]}
        return found | {"images_per_s": len(arm["seeds"]) / float(arm["seconds"])}

    lines = []
    for p, arm in sampled.items():
        values = numbers["quality"][label(p)] | {"ratio": numbers["ratio_to_unguided"][label(p)]}
        lines.append(row(p, "axis" if p in on.axes else "map", arm, values))
    return lines + [row(p, "shift", arm, {}) for p, arm in stochastic.items()]
