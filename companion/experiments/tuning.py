"""Choosing the guidance weights of a family's arms on tuning seeds (notebook 4)."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch

from companion.experiments.arms import reader
from companion.experiments.generate import (
    Arm,
    SampleConfig,
    batches,
    forget,
    sample,
)
from companion.experiments.images import held_out
from companion.experiments.search import Point, at_an_end, rounded, search
from companion.experiments.shards import ShardConfig
from companion.experiments.spaces import features_of, quality, real
from companion.pipeline import fingerprint
from nag import checkpoint
from nag.data.fashion_mnist import load_fashion_mnist
from nag.samplers.registry import time_grid
from nag.shift import estimated_times, forward_states, noise_shift
from nag.support.files import read_json, write_json
from nag.support.paths import CHECKPOINTS, RESULTS, WEIGHTS

KNOBS = {"none": (), "nag": ("w_nag",), "cfg": ("cfg",), "cfg-nag": ("w_nag", "cfg")}
ARMS = tuple(KNOBS)
LIMITS = {"w_nag": (1 / 16, 16.0), "cfg": (0.0125, 4.0)}  # of the strengths; of CFG scale - 1


def candidates(
    w_values: Sequence[float],
    cfg_values: Sequence[float],
    joint_w_values: Sequence[float],
    joint_cfg_values: Sequence[float],
) -> dict[str, list[Arm]]:
    """What the search of each arm begins with: NAG alone, CFG alone, and every pair of both."""
    return {
        "none": [Arm()],
        "nag": [Arm(w_nag=w) for w in w_values],
        "cfg": [Arm(cfg=scale) for scale in cfg_values],
        "cfg-nag": [Arm(w_nag=w, cfg=s) for s in joint_cfg_values for w in joint_w_values],
    }


def strengths(arm: Arm) -> Point:
    """How far each guidance of an arm is from off: w of NAG, the scale of CFG minus 1."""
    return tuple(rounded(x) for x in (arm.w_nag, arm.cfg - 1) if x > 0)


def arm_of(name: str, point: Point) -> Arm:
    """The arm of this name and these strengths."""
    values = dict(zip(KNOBS[name], point, strict=True))
    return Arm(w_nag=values.get("w_nag", 0.0), cfg=round(1 + values.get("cfg", 0.0), 4))


def _state(family: str, path: str, config: SampleConfig, reference_images: int) -> Path:
    """The file of a sweep that is under way, with a key of everything that decides its rows."""
    names = (family, f"estimator-{path}", "extractor")
    weights = [checkpoint.sha256(WEIGHTS / f"{name}.safetensors") for name in names]
    code = fingerprint.digest(fingerprint.of_objects(Sweep))
    made = repr((config, path, reference_images, weights, code, torch.__version__))
    return CHECKPOINTS / f"tune-{family}-{hashlib.sha256(made.encode()).hexdigest()[:12]}.json"


class Sweep:
    """The rows that are measured so far, of distances and late shift, all from the same seeds.

    The committed network, estimator and extractor are used; distances are to the first test images,
    the shift is against forward states of as many of them as there are trajectories. Rows are kept
    in the file `state`, so that a killed sweep resumes: delete it once the table is kept."""

    def __init__(self, family: str, path: str, config: SampleConfig, reference_images: int):
        self.weights = WEIGHTS / f"{family}.safetensors"
        self.path, self.config = path, config
        self.state = _state(family, path, config, reference_images)
        kept = read_json(self.state) if self.state.exists() else []
        self.rows: list[dict] = [dict(row) for row in kept]
        self.net, self.read = checkpoint.load(self.weights), reader(path, RESULTS)
        self.real = real(load_fashion_mnist("test")[0][:reference_images])
        times = time_grid(config.sampler, config.steps, path)
        images, _ = held_out("", config.trajectories)
        self.control = estimated_times(self.read, forward_states(images, times, path))

    def row(self, arm: Arm) -> dict:
        """The row of an arm, measured now or before."""
        place = {"w_nag": arm.w_nag, "cfg": arm.cfg}
        for row in self.rows:
            if {name: row[name] for name in place} == place:
                return row
        spec = ShardConfig(weights=str(self.weights), arm=arm, config=self.config, out="")
        keep = batches(spec.key())
        run = sample(self.net, arm.terms(), self.config, keep=keep)
        images = features_of(run["images"])
        values = quality(images, self.real, run["labels"], resamples=200)
        levels = estimated_times(self.read, run["states"])
        shift = noise_shift(levels, self.control, run["times"], path=self.path)["late"]
        ends = {
            f"{name}_{end}": values[name][end]
            for name in ("fd", "fd_inf", "fd_inf_second")
            for end in ("low", "high")
        }
        shifts = {
            f"shift_{name}": shift[end]
            for name, end in (("late", "value"), ("low", "low"), ("high", "high"))
        }
        point = {name: value["value"] for name, value in values.items()}
        self.rows.append(place | ends | point | shifts | {"nfe": int(run["nfe"])})
        write_json(self.state, [list(row.items()) for row in self.rows])  # lists keep the order
        forget(keep, self.config)
        print({name: round(value, 4) for name, value in self.rows[-1].items()}, flush=True)
        return self.rows[-1]


class Measure(Protocol):
    """What measures an arm: its row has "w_nag", "cfg" and "fd_inf"."""

    def row(self, arm: Arm) -> dict: ...


def tune(sweep: Measure, start: Mapping[str, Sequence[Arm]], budget: int) -> pd.DataFrame:
    """A row for every arm tried: no guidance, and for each other arm of `start` the given ones and
    those that `search` tries next, at most `budget` each; "arm" is its name."""

    def searched(name: str, arms: Sequence[Arm]) -> list[dict]:
        tried = search(
            [strengths(arm) for arm in arms],
            lambda point: sweep.row(arm_of(name, point)),
            lambda row: row["fd_inf"],
            budget,
            [LIMITS[knob] for knob in KNOBS[name]],
        )
        return [{"arm": name} | row for row in tried.values()]

    return pd.DataFrame(
        [row for name, arms in start.items() if arms for row in searched(name, arms)]
    )


def best(table: pd.DataFrame) -> dict[str, Arm]:
    """The row with the least bias-corrected distance (`fd_inf`) of each arm, as guidance."""
    rows = {name: mine.sort_values("fd_inf").iloc[0] for name, mine in table.groupby("arm")}
    return {name: Arm(w_nag=rows[name].w_nag, cfg=rows[name].cfg) for name in ARMS if name in rows}


def ends(table: pd.DataFrame, chosen: Mapping[str, Arm]) -> list[str]:
    """Which strengths of which arms lie at an end of what was tried, such as "nag: w_nag": such a
    choice is a bound rather than an optimum."""
    found = []
    for name, arm in chosen.items():
        mine = table[table.arm == name]
        tried = [strengths(Arm(w_nag=w, cfg=s)) for w, s in zip(mine.w_nag, mine.cfg, strict=True)]
        for knob, at_end in zip(KNOBS[name], at_an_end(tried, strengths(arm)), strict=True):
            found += [f"{name}: {knob}"] * at_end
    return found
