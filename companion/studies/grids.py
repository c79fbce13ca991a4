"""What notebook 26 measures: sampling on other time grids than the usual one, without retraining.

Arms of a study are keyed (family, grid, arm), such as ("sit", "logsnr", "nag"); in JSON the three
are joined by hyphens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig
from companion.experiments.spaces import Features
from companion.studies.families import Family
from companion.studies.intervals import ENDS, numbers
from nag.ddpm import LEVELS
from nag.estimator import T_MIN
from nag.interpolant import PATH_OF, PATHS
from nag.samplers.registry import resolve
from nag.samplers.time_grids import grid as grid_of
from nag.shift import ranges, read_at
from nag.support.files import read_json
from nag.support.paths import METRICS
from nag.support.uncertainty import Interval, bootstrap, interval

Key = tuple[str, str, str]
Rows = dict[Key, study.Row]
ENOUGH = 242  # images that a Fréchet distance on 192 features and its subsets need
READ_AT = (0.1, 0.2)  # times at which the shift is read, as grids have states elsewhere


def joined(found: Mapping[Key, dict]) -> dict[str, dict]:
    """{"sit-logsnr-nag": number, ...}"""
    return {"-".join(map(str, key)): number for key, number in found.items()}


# ---- the grids


def noise_to_signal(t: Tensor, path: str) -> Tensor:
    """sigma / alpha at times t."""
    c = PATHS[path](t)
    return c.sigma / c.alpha


def spent(grids: Mapping[str, Sequence[str]], steps: int) -> pd.DataFrame:
    """How many times of each grid have a small sigma / alpha, and how many of DiT's are noise
    levels that it was not trained on."""
    lines = []
    for family, names in grids.items():
        for name in names:
            times = grid_of(name, steps, PATH_OF[family])[:-1]
            at, level = noise_to_signal(times, PATH_OF[family]), LEVELS * times
            unseen = (level < 1 - 1e-6) | ((level - level.round()).abs() > 1e-6)
            counts = {f"σ/α < {edge}": int((at < edge).sum()) for edge in (1, 0.25, 0.05, 0.01)}
            lines.append(
                {"family": family, "grid": name}
                | counts
                | {"smallest σ/α": float(at[-1])}
                | {"not trained on": int(unseen.sum()) if PATH_OF[family] == "ddpm" else 0}
            )
    return pd.DataFrame(lines)


# ---- arms


def grid_arm(
    kept: Path, family: Family, config: SampleConfig, w: float = 0.0, above: float = 0.0
) -> study.Row:
    """An arm on the grid of `config`, guided by NAG of weight w at t >= `above`."""
    terms = Arm(w_nag=w, nag_interval=(above, 1.0)).terms()
    reader = family.reader if config.trajectories else None
    name = f"{family.name}-{config.grid}"
    return study.kept_arm(
        kept, name, family.net, terms, config, weights=family.files, reader=reader
    )


def tuned_weight(
    kept: Path, family: Family, config: SampleConfig, weights: Sequence[float], real: Features
) -> dict:
    """`study.tuned` by the bias-corrected distance on the seeds of `config`."""

    def measure(w: float) -> Interval:
        return study.bias_corrected(grid_arm(kept, family, config, w), real)

    return study.tuned(weights, measure)


def weights_of(
    kept: Path,
    family: Family,
    grids: Sequence[str],
    weights: Sequence[float],
    config: SampleConfig,
    real: Features,
) -> tuple[dict[str, float], list[dict], list[str]]:
    """NAG's weight on every grid, all distances that decided them, and the grids whose weight is at
    an end of the list. The first grid is the usual one, whose weight notebook 4 chose; the others
    have it too if `weights` is empty."""
    chosen = read_json(METRICS / f"tune-{family.name}.json")["chosen"]["nag"]["w_nag"]
    w_of, tried, at_end = dict.fromkeys(grids, chosen), [], []
    for grid in grids[1:] if weights else ():
        on_grid = config.model_copy(update={"grid": grid})
        best = tuned_weight(kept, family, on_grid, weights, real)
        w_of[grid] = best["w"]
        at_end += [grid] * best["at_end"]
        tried += [
            {"family": family.name, "grid": grid, "w_nag": float(w), "fd_inf": found["value"]}
            for w, found in best["tried"].items()
        ]
    return w_of, tried, at_end


# ---- the same images in the end?


def gaps(one: study.Row, other: study.Row, images: int) -> np.ndarray:
    """Squared distances (images,) of features between the first images of two arms, by seed."""
    assert one["seeds"][:images].tolist() == other["seeds"][:images].tolist()
    return np.square(one["features"][:images] - other["features"][:images]).sum(1)


def within_class(row: study.Row, classes: int) -> np.ndarray:
    """Squared distances (N,) between two images of the same class: a label is seed mod classes."""
    return np.square(row["features"] - np.roll(row["features"], classes, axis=0)).sum(1)


def root_ratio(top: np.ndarray, bottom: np.ndarray, resamples: int) -> Interval:
    """Root mean square of one over that of another, of the same images (M,)."""

    def statistic(a: np.ndarray) -> np.ndarray:
        return np.sqrt(a[:, 0].mean() / a[:, 1].mean())

    both = np.stack([top, bottom], 1)
    return numbers(interval(statistic(both), bootstrap(both, statistic, resamples)))


def apart(
    rows: Rows, family: Family, usual: str, other: str, images: int, resamples: int
) -> dict[str, Interval]:
    """How far the unguided images of a seed lie apart on two grids, in units of two images of a
    class: in few steps, in many, and the quotient of both."""
    alike = within_class(rows[family.name, usual, "none, long"], family.net.config.classes)
    few, many = (
        gaps(rows[family.name, usual, arm], rows[family.name, other, arm], images)
        for arm in ("none", "none, long")
    )
    return {
        "few": root_ratio(few, alike, resamples),
        "many": root_ratio(many, alike, resamples),
        "many over few": root_ratio(many, few, resamples),
    }


def to_long(
    rows: Rows, family: Family, usual: str, grids: Sequence[str], images: int, resamples: int
) -> dict[Key, Interval]:
    """How far each grid in few steps is from the usual one in many, in the same units."""
    long = rows[family.name, usual, "none, long"]
    alike = within_class(long, family.net.config.classes)
    keys = [(family.name, grid, "none") for grid in grids]
    return {key: root_ratio(gaps(rows[key], long, images), alike, resamples) for key in keys}


# ---- distances


def enough(rows: Rows) -> Rows:
    """The arms that have images enough for a Fréchet distance."""
    return {key: row for key, row in rows.items() if len(row["seeds"]) >= ENOUGH}


def to_usual(rows: Rows, usual: Mapping[str, str], real: Features) -> dict[Key, dict]:
    """Fréchet ratio of each grid over the usual one, for the same guidance, steps and seeds."""
    return {
        (family, grid, arm): study.ratio(row, rows[family, usual[family], arm], real)
        for (family, grid, arm), row in enough(rows).items()
        if grid != usual[family] and arm in ("none", "nag", "none, long")
    }


def to_none(rows: Rows, real: Features) -> dict[Key, dict]:
    """Fréchet ratio of NAG over no guidance on the same grid."""
    return {
        (*key[:2], "nag"): study.ratio(row, rows[*key[:2], "none"], real)
        for key, row in enough(rows).items()
        if key[2] == "nag"
    }


# ---- noise shift


def has_shift(row: study.Row, path: str) -> bool:
    """Whether there are states to read a shift from, late and in the middle."""
    try:
        ranges(row["times"], path)
    except ValueError:
        return False
    return bool(len(row["levels"]))


def shifts_at(rows: Rows, family: Family, resamples: int) -> dict[tuple, tuple]:
    """Shift at t = 0.1 and 0.2 with its draws, {(family, grid, arm, t): (value, draws)}, between
    the states on either side. Below the least t of its training the estimator knows nothing, so a
    grid without a state between is left out."""
    mine = {key: row for key, row in rows.items() if key[0] == family.name}
    mine = {key: row for key, row in mine.items() if has_shift(row, family.path)}
    found: dict[tuple, tuple] = {}
    for key, shift in study.shifts(mine, family.path, family.reader, resamples).items():
        times = rows[key]["times"]
        least = times[times >= T_MIN].min()
        found |= {(*key, t): read_at(shift, times, t) for t in READ_AT if least <= t}
    return found


def change_of_shift(found: Mapping, family: str, own: str, other: str) -> dict[tuple, Interval]:
    """|shift| of the stochastic sampler on another grid minus that on its own, {(family, t): ...}:
    arms of equally many trajectories are resampled alike."""
    changes = {}
    for t in READ_AT:
        one, two = (found.get((family, grid, "none, SDE", t)) for grid in (own, other))
        if one and two:
            change = interval(*(np.abs(two[k]) - np.abs(one[k]) for k in (0, 1)))
            changes[family, t] = numbers(change)
    return changes


def at(found: tuple[float, np.ndarray]) -> Interval:
    """A value with its draws as an interval."""
    return numbers(interval(*found))


# ---- the table


def cost(rows: Rows) -> int:
    """Evaluations of the network times images, of all arms."""
    return sum(int(row["nfe"]) * len(row["seeds"]) for row in rows.values())


def column(shift_at: Mapping[tuple, Interval], t: float) -> dict[Key, Interval]:
    """The shift at one time of {(family, grid, arm, t): interval}."""
    return {key[:3]: x for key, x in shift_at.items() if key[3] == t}


def table(
    rows: Rows, weights: Mapping, precision: str, real: Features, **columns: Mapping
) -> pd.DataFrame:
    """One line for each arm: what it is, its quality, and what `columns` have of it
    ({name: {key: interval}})."""
    quality, lines = study.quality(enough(rows), real), []
    for (family, grid, arm), row in rows.items():
        found = {name: of.get((family, grid, arm)) for name, of in columns.items()}
        metrics = quality.get((family, grid, arm), {})
        found |= {name: metrics.get(name) for name in ("fd", "fd_inf", "precision", "recall")}
        lines.append(
            {
                "family": family,
                "grid": grid,
                "arm": arm,
                "sampler": resolve("sde" if "SDE" in arm else "ode", PATH_OF[family]),
                "dtype": "fp32" if "float32" in arm else precision,
                "w_nag": weights[family, grid] if "nag" in arm else 0.0,
                "steps": len(row["times"]) - 1,
                "nfe": int(row["nfe"]),
                "n": len(row["seeds"]),
            }
            | {f"{name}_{end}": x[end] for name, x in found.items() if x for end in ENDS}
            | {"images_per_second": len(row["seeds"]) / float(row["seconds"])}
        )
    return pd.DataFrame(lines)
