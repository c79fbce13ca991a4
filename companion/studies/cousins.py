"""What notebook 33 measures: whether NAG's gain needs a null noise condition, or any worse time
condition of the same network is as good.

Its cousins need no null: the network is given a higher noise level, a disturbed one, or its own
output of the step before. All arms of a sampler make the same number of evaluations per image, and
all methods are tuned on the same number of settings and images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from companion.experiments import study
from companion.experiments.generate import SampleConfig
from companion.experiments.spaces import Features
from companion.studies.intervals import numbers
from companion.studies.rivals import Contest, report_arms, tuned_all
from nag import checkpoint
from nag.estimator import NoiseEstimator
from nag.rivals.methods import METHODS, Parts, Setting
from nag.support.device import best_device
from nag.support.uncertainty import Interval

Rows = dict[str, study.Row]  # by arm


@dataclass(frozen=True)
class Plan:
    """How every network is measured: NAG's cousins, their settings, NAG's weights beside them, and
    the images of tuning and report, whose features are compared with `real`.

    `nfe` has evaluations per image by sampler."""

    methods: Sequence[str]
    settings: Mapping[str, Sequence[Setting]]
    weights: Sequence[float]
    nfe: Mapping[str, int]
    tuning: SampleConfig
    report: SampleConfig
    real: Features
    folder: Path


def contest(file: Path, sampler: str, nfe: int, folder: Path) -> Contest:
    """All that arms of one network need; the estimator is the committed one of its path."""
    where = best_device()
    net = checkpoint.load(file).to(where)
    of_levels = study.estimator_file(net.config.path)
    estimator = checkpoint.load_weights(of_levels, NoiseEstimator()).to(where)
    parts = Parts(net, estimator=estimator, sampler=sampler)
    files = {file.stem: file, "estimator": of_levels}
    return Contest({file.stem: parts}, files, "", nfe, folder)


def measured(
    plan: Plan, file: Path, dropout: bool, sampler: str
) -> tuple[dict, Rows, dict[str, Interval], pd.DataFrame]:
    """What is chosen on the tuning seeds, the report's arms, their late shifts, and all that was
    tried, of one network with one sampler.

    A network that was trained without noise-condition dropout has no null, so it takes part without
    NAG."""
    arena = contest(file, sampler, plan.nfe[sampler], plan.folder)
    process = arena.parts[arena.base].net.config.path

    def distance(method: str, setting: Setting, w: float) -> float:
        row = arena.arm(method, setting, w, _with(plan.tuning, sampler))
        return study.bias_corrected(row, plan.real)["value"]

    methods = ["nag", *plan.methods] if dropout else plan.methods
    weights = plan.weights if dropout else []
    chosen, tried = tuned_all(methods, plan.settings, weights, distance)
    reader, report = study.load_reader(process), _with(plan.report, sampler)
    rows = {arm: arena.arm(*how, report, reader=reader) for arm, how in report_arms(chosen).items()}
    shifts = study.shifts(rows, process, reader)
    return chosen, rows, {arm: numbers(found["late"]) for arm, found in shifts.items()}, tried


def _with(config: SampleConfig, sampler: str) -> SampleConfig:
    return config.model_copy(update={"sampler": sampler})


# ---- comparisons


Ratio = Callable[[study.Row, study.Row], dict]


def compared(rows: Rows, ratio: Ratio) -> dict[str, dict[str, dict]]:
    """Ratios of one network: every arm over no guidance; every cousin over NAG alone; every cousin
    with NAG over NAG alone, and over itself without.
    """
    alone = [arm for arm in rows if arm not in ("none", "nag") and not arm.endswith("+nag")]
    both = [arm for arm in alone if f"{arm}+nag" in rows]
    found = {"unguided": {arm: ratio(rows[arm], rows["none"]) for arm in rows if arm != "none"}}
    if "nag" in rows:
        found["over_nag"] = {arm: ratio(rows[arm], rows["nag"]) for arm in alone}
        found["adds_to_nag"] = {arm: ratio(rows[f"{arm}+nag"], rows["nag"]) for arm in both}
        found["nag_adds"] = {arm: ratio(rows[f"{arm}+nag"], rows[arm]) for arm in both}
    return found


def across(rows: Rows, without: Rows, ratio: Ratio) -> dict[str, dict]:
    """Ratios of a network trained without dropout over one trained with: both unguided, and every
    cousin over NAG. The seeds are the same, so images are paired; trainings are one each.
    """
    alone = [arm for arm in without if arm != "none"]
    return {"none over none": ratio(without["none"], rows["none"])} | {
        f"{arm} over nag": ratio(without[arm], rows["nag"]) for arm in alone
    }


def records(
    rows: Mapping[tuple[str, str], Rows],
    chosen: Mapping[tuple[str, str], Mapping],
    found: Mapping[tuple[str, str], Mapping],
    quality: Mapping[tuple[str, str], Mapping],
    shifts: Mapping[tuple[str, str], Mapping],
) -> pd.DataFrame:
    """One row for each network, sampler and arm: setting, ratio, quality, late shift."""
    lines = []
    for key, arms in rows.items():
        for arm, row in arms.items():
            method, _, nag = arm.partition("+")
            how = chosen[key].get(method, {"setting": "none", "w_nag beside": 0.0})
            line = {
                "network": key[0],
                "sampler": key[1],
                "arm": arm,
                "label": METHODS[method].label + " + NAG" * bool(nag),
                "setting": how["setting"],
                "w_nag": how["w_nag beside"] if nag else 0.0,
                "steps": len(row["times"]) - 1,
                "nfe": int(row["nfe"]),
                "n": len(row["seeds"]),
            }
            values = dict(quality[key][arm]) | {"shift_late": shifts[key][arm]}
            if arm != "none":
                values["ratio"] = found[key]["unguided"][arm]
            for what, x in values.items():
                line |= {what: x["value"], f"{what}_low": x["low"], f"{what}_high": x["high"]}
            lines.append(line | {"images_per_s": len(row["seeds"]) / float(row["seconds"])})
    return pd.DataFrame(lines)


def pictures(rows: Mapping[tuple[str, str], Rows]) -> Rows:
    """The arms for `study.save_images`, named "NETWORK, SAMPLER, ARM"."""
    return {", ".join((*key, arm)): row for key, arms in rows.items() for arm, row in arms.items()}
