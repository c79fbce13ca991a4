"""What notebook 36 measures: whether results hold for trainings that differ in their seed alone.

Ratios are of Fréchet distances with NAG over those without, below 1 is better. Each training has
seeds of its own, so that errors over images average out over the trainings; arms of one training
share theirs."""

from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.experiments import study
from companion.experiments.arms import guidance_of
from companion.experiments.generate import Arm, SampleConfig
from companion.experiments.spaces import Features
from companion.studies.families import Family, sampler_of
from companion.studies.intervals import numbers as plain
from nag.data import fashion_mnist
from nag.interpolant import time_of_ratio
from nag.pretrained.further_training import held_out_errors
from nag.support.uncertainty import Interval, bootstrap, interval, mean_ratio

PAIRS = {"nag": "none", "cfg": "none", "cfg-nag": "cfg"}  # each arm over which
LEVELS = (0.0, 0.25, 1.0, 4.0)  # sigma_t / alpha_t at which ranges begin; the first is "late"


def choose(
    family: str, files: Mapping[str, str], w_nag: float, cfg: float, arms: Mapping[str, list[str]]
) -> dict[str, dict[str, Arm]]:
    """The guidance of the arms of each kind of sampler: what a search chose, from the file of
    notebook 4 or 32, else these weights."""
    alike = {"none": Arm(), "nag": Arm(w_nag=w_nag), "cfg": Arm(cfg=cfg)}
    alike |= {"cfg-nag": Arm(w_nag=w_nag, cfg=cfg)}
    return {
        kind: {
            arm: guidance_of(family, arm, files[kind]) if kind in files else alike[arm]
            for arm in names
        }
        for kind, names in arms.items()
    }


def with_own_seeds(config: SampleConfig, k: int) -> SampleConfig:
    """The settings of training k, whose seeds follow those of training k - 1."""
    return config.model_copy(update={"first_seed": config.first_seed + k * config.n_images})


def sampled(
    family: Family, chosen: Mapping[str, Arm], config: SampleConfig, kind: str, folder: Path
) -> dict[str, study.Row]:
    """The arms of one network under the deterministic ("ode") or stochastic ("sde") sampler."""
    asked = config.model_copy(update={"sampler": sampler_of(kind, family.path)})
    return {
        name: study.kept_arm(
            folder,
            f"{family.files[0].stem}-{kind}-{name}",
            family.net,
            arm.terms(),
            asked,
            weights=family.files,
            reader=family.reader,
        )
        for name, arm in chosen.items()
    }


def ratios(rows: Sequence[Mapping[str, study.Row]], real: Features) -> dict[str, dict]:
    """{"NAG over no guidance": {"each": [a ratio of each training], "mean"}, ...} of PAIRS, as
    `study.ratio` and `mean_ratio` have them."""
    found = {}
    for arm, other in PAIRS.items():
        if arm not in rows[0] or other not in rows[0]:
            continue
        each = [study.ratio(row[arm], row[other], real) for row in rows]
        found[f"{arm} over {other}"] = {"each": each, "mean": mean_ratio(each, independent=True)}
    return found


def over(values: Sequence[Interval]) -> Interval:
    """Mean of numbers of several trainings; its interval is `mean_ratio`'s, of numbers instead of
    their logarithms."""
    mean = mean_ratio([exponential(x) for x in values], independent=True)
    value, low, high = (float(np.log(mean[end])) for end in ("value", "low", "high"))
    return {"value": value, "low": low, "high": high}


def exponential(x: Interval) -> Interval:
    """exp of a number and of its interval."""
    return {"value": exp(x["value"]), "low": exp(x["low"]), "high": exp(x["high"])}


def shifts(
    rows: Sequence[Mapping[str, study.Row]], family: Family, resamples: int
) -> dict[str, dict]:
    """Late shift of every arm: {arm: {"each", "mean"}}."""
    late: list[dict[str, Interval]] = []
    for row in rows:
        found = study.shifts(row, family.path, family.reader, resamples)
        late.append({arm: plain(x["late"]) for arm, x in found.items()})
    return {
        arm: {"each": [of[arm] for of in late], "mean": over([of[arm] for of in late])}
        for arm in late[0]
    }


def excess(family: Family, images: Tensor, labels: Tensor, resamples: int) -> dict[str, Interval]:
    """Held-out error without the noise level over that with it, by range of sigma_t / alpha_t.

    The same images, levels and noise in both. At one level the ratio is that of errors of v, eps
    and x_0 alike, so that networks of unlike targets can be compared; within a range the levels
    have the weights that the target gives them."""
    x0 = fashion_mnist.to_float(images)
    t, with_level = held_out_errors(family.net, x0, labels, seed=2, drop_noise=False)
    _, without = held_out_errors(family.net, x0, labels, seed=2, drop_noise=True)
    both = torch.stack([without, with_level], dim=1).numpy()
    bounds = time_of_ratio(torch.tensor(LEVELS, dtype=torch.float64), family.path).tolist()
    found: dict[str, Interval] = {}
    for k, low in enumerate(bounds):
        high = bounds[k + 1] if k + 1 < len(bounds) else 1.0
        mine = both[((t > low) & (t <= high)).numpy()]

        def quotient(rows: np.ndarray) -> float:
            return float(rows[:, 0].mean() / rows[:, 1].mean())

        top = f"{LEVELS[k + 1]:g}" if k + 1 < len(LEVELS) else "up"
        draws = bootstrap(mine, quotient, resamples)
        found[f"{LEVELS[k]:g} to {top}"] = plain(interval(quotient(mine), draws))
    return found


def measured(
    families: Sequence[Family],
    chosen: Mapping[str, Mapping[str, Arm]],
    configs: Mapping[str, SampleConfig],
    real: Features,
    held: tuple[Tensor, Tensor],
    resamples: int,
    folder: Path,
) -> tuple[dict, dict[str, study.Row]]:
    """The numbers of one family's trainings, and the arms of the first for pictures, "KIND ARM".

    `chosen` and `configs` are by kind of sampler; `held` are held-out uint8 images and labels."""
    numbers: dict[str, Any] = {"trainings": len(families), "seeds": {}, "samplers": {}}
    numbers |= {"weights": {}, "ratios": {}, "quality": {}, "shift_late": {}}
    pictures: dict[str, study.Row] = {}
    for kind, config in configs.items():
        rows = [
            sampled(family, chosen[kind], with_own_seeds(config, k), kind, folder)
            for k, family in enumerate(families)
        ]
        numbers["seeds"][kind] = [int(row["none"]["seeds"][0]) for row in rows]
        numbers["samplers"][kind] = sampler_of(kind, families[0].path)
        numbers["weights"][kind] = {
            name: {"w_nag": arm.w_nag, "cfg": arm.cfg} for name, arm in chosen[kind].items()
        }
        numbers["ratios"][kind] = ratios(rows, real)
        numbers["quality"][kind] = [study.quality(row, real) for row in rows]
        numbers["shift_late"][kind] = shifts(rows, families[0], resamples)
        pictures |= {f"{kind} {name}": row for name, row in rows[0].items()}
    numbers["excess"] = [excess(family, *held, resamples) for family in families]
    return numbers, pictures
