"""Choosing the guidance weights of a family's arms on tuning seeds (notebook 4)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

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
from companion.experiments.shards import ShardConfig
from companion.pipeline import fingerprint
from nag import checkpoint
from nag.data.fashion_mnist import load_fashion_mnist
from nag.evaluation import metrics
from nag.evaluation.fashion_classifier import Extractor
from nag.samplers.registry import time_grid
from nag.shift import estimated_times, forward_states, noise_shift
from nag.support.files import read_json, write_json
from nag.support.paths import CHECKPOINTS, RESULTS, WEIGHTS

ARMS = ("none", "nag", "cfg", "cfg-nag")


def candidates(
    w_values: Sequence[float],
    cfg_values: Sequence[float],
    joint_w_values: Sequence[float],
    joint_cfg_values: Sequence[float],
) -> list[Arm]:
    """No guidance, NAG alone, CFG alone, and every pair of both."""
    alone = [Arm(), *(Arm(w_nag=w) for w in w_values), *(Arm(cfg=s) for s in cfg_values)]
    return alone + [Arm(w_nag=w, cfg=s) for s in joint_cfg_values for w in joint_w_values]


def _state(family: str, path: str, config: SampleConfig, reference_images: int) -> Path:
    """The file of a sweep that is under way, with a key of everything that decides its rows."""
    names = (family, f"estimator-{path}", "extractor")
    weights = [checkpoint.sha256(WEIGHTS / f"{name}.safetensors") for name in names]
    code = fingerprint.digest(fingerprint.of_objects(sweep))
    made = repr((config, path, reference_images, weights, code, torch.__version__))
    return CHECKPOINTS / f"tune-{family}-{hashlib.sha256(made.encode()).hexdigest()[:12]}.json"


def sweep(
    family: str, path: str, arms: Sequence[Arm], config: SampleConfig, reference_images: int
) -> tuple[pd.DataFrame, Path]:
    """A row of distances and late shift for every arm, all from the same seeds; and the file that
    lets a killed sweep resume, to be deleted once the table is kept.

    The committed network, estimator and extractor are used; distances are to the first test images,
    the shift is against forward states of as many of them as there are trajectories."""
    weights = WEIGHTS / f"{family}.safetensors"
    state = _state(family, path, config, reference_images)
    rows = [dict(row) for row in read_json(state)] if state.exists() else []
    done = {(row["w_nag"], row["cfg"]) for row in rows}
    net, read = checkpoint.load(weights), reader(path, RESULTS)
    extractor = checkpoint.load_weights(WEIGHTS / "extractor.safetensors", Extractor())
    metrics.register_extractor(extractor)
    reference = metrics.extract_features(load_fashion_mnist("test")[0][:reference_images])
    times = time_grid(config.sampler, config.steps, path)
    real, _ = held_out("", config.trajectories)
    control = estimated_times(read, forward_states(real, times, path))
    for arm in arms:
        if (arm.w_nag, arm.cfg) in done:
            continue
        spec = ShardConfig(weights=str(weights), arm=arm, config=config, out="")
        keep = batches(spec.key())
        run = sample(net, arm.terms(), config, keep=keep)
        features = metrics.extract_features(torch.from_numpy(run["images"]))
        values = metrics.with_intervals(features, reference, resamples=200)
        shift = noise_shift(estimated_times(read, run["states"]), control, run["times"])["late"]
        rows.append(
            {"w_nag": arm.w_nag, "cfg": arm.cfg}
            | {
                f"{name}_{end}": values[name][end]
                for name in ("fd", "fd_inf")
                for end in ("low", "high")
            }
            | {name: value["value"] for name, value in values.items()}
            | {
                f"shift_{name}": shift[end]
                for name, end in (("late", "value"), ("low", "low"), ("high", "high"))
            }
            | {"nfe": int(run["nfe"])}
        )
        write_json(state, [list(row.items()) for row in rows])  # lists keep the columns' order
        forget(keep, config)
        print({name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    return pd.DataFrame(rows), state


def best(table: pd.DataFrame) -> dict[str, Arm]:
    """The row with the least bias-corrected distance (`fd_inf`) of each arm, as guidance."""
    nag_on, cfg_on = table.w_nag != 0, table.cfg != 1
    masks = (~nag_on & ~cfg_on, nag_on & ~cfg_on, ~nag_on & cfg_on, nag_on & cfg_on)
    rows = [table[mask].sort_values("fd_inf").iloc[0] for mask in masks]
    return {arm: Arm(w_nag=row.w_nag, cfg=row.cfg) for arm, row in zip(ARMS, rows, strict=True)}


def at_an_end(table: pd.DataFrame, chosen: dict[str, Arm]) -> list[str]:
    """Which of NAG's weight and CFG's scale, each chosen alone, lie at an end of what was tried:
    such a choice is a bound rather than an optimum."""
    alone = {"nag": ("w_nag", table[table.cfg == 1]), "cfg": ("cfg", table[table.w_nag == 0])}
    found = []
    for arm, (column, rows) in alone.items():
        tried = rows[column][rows[column] != {"w_nag": 0, "cfg": 1}[column]]
        if getattr(chosen[arm], column) in (tried.min(), tried.max()):
            found.append(column)
    return found
