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
from companion.experiments.search import at_an_end, least, search
from companion.experiments.spaces import Features
from companion.studies.families import sampler_of
from companion.studies.intervals import numbers
from companion.studies.rivals import Contest, report_arms
from nag import checkpoint
from nag.estimator import NoiseEstimator
from nag.rivals.methods import METHODS, Parts, Setting, describe
from nag.support.device import best_device
from nag.support.uncertainty import Interval

WITH, WITHOUT = "with dropout", "without dropout"
Rows = dict[str, study.Row]  # by arm
# What is searched for, the strengths of each method; the rest of a setting is held.
SETTINGS: dict[str, Callable[..., list]] = {
    "nag": lambda w: [w],
    "self-guidance": lambda w, shift: [w, shift],
    "self-guidance-prev": lambda w: [w, 0.5],
    "other-level": lambda shift: [-shift],
    "tsg": lambda w, s: [1 + w, s, 1.0],
    "estimated-level": lambda w: [w],
    "estimated-score": lambda w: [w],
    "nag-classifier": lambda w: [w],
}
LIMITS = (1e-4, 64.0)  # of every strength


@dataclass(frozen=True)
class Plan:
    """How every network is measured: where the search of each method starts (strengths as in
    SETTINGS), how many settings it may try, how many weights of NAG on top of it, and the images of
    tuning and report, whose features are compared with `real`.

    `nfe` has evaluations per image by sampler, "ode" and "sde"."""

    start: Mapping[str, Sequence[Sequence[float]]]
    budget: int
    weights: Sequence[float]
    beside: int
    nfe: Mapping[str, int]
    tuning: SampleConfig
    report: SampleConfig
    real: Features
    folder: Path


def contest(file: Path, kind: str, nfe: int, folder: Path) -> Contest:
    """All that arms of one network need; the estimator is the committed one of its path."""
    where = best_device()
    net = checkpoint.load(file).to(where)
    of_levels = study.estimator_file(net.config.path)
    estimator = checkpoint.load_weights(of_levels, NoiseEstimator()).to(where)
    parts = Parts(net, estimator=estimator, sampler=sampler_of(kind, net.config.path))
    files = {file.stem: file, "estimator": of_levels}
    return Contest({file.stem: parts}, files, "", nfe, folder)


Measure = Callable[[str, Setting, float], float]  # (method, setting, w_nag) to a distance


def tuned(plan: Plan, method: str, with_nag: bool, measure: Measure) -> tuple[dict, list[dict]]:
    """The setting of the least distance that a search within the budget finds, then, with it held,
    the weight of NAG on top; and all that was tried.

    The result has the form of `rivals.tuned`."""
    make, tried = SETTINGS[method], []

    def distance(setting: Setting, w: float) -> float:
        found = measure(method, setting, w)
        one = {"method": method, "setting": describe(method, setting), "w_nag": w}
        tried.append(one | {"fd_inf": found})
        return found

    points = [tuple(point) for point in plan.start[method]]
    limits = [LIMITS] * len(points[0])
    alone = search(points, lambda p: distance(make(*p), 0.0), float, plan.budget, limits)
    best = least(alone, float)
    found = {"setting": describe(method, make(*best)), "values": make(*best), "of": len(alone)}
    found |= {"w_nag beside": 0.0, "w at an end": None}
    found["setting at an end"] = any(at_an_end([*alone], best))
    if with_nag:
        starts = [(w,) for w in plan.weights]
        both = search(starts, lambda p: distance(make(*best), p[0]), float, plan.beside, [LIMITS])
        w = least(both, float)
        found |= {"w_nag beside": w[0], "w at an end": at_an_end([*both], w)[0]}
    return found, tried


def measured(
    plan: Plan, file: Path, dropout: bool, kind: str
) -> tuple[dict, Rows, dict[str, Interval], list[dict]]:
    """What is chosen on the tuning seeds, the report's arms, their late shifts, and all that was
    tried, of one network with one sampler, "ode" or "sde".

    A network that was trained without noise-condition dropout has no null, so it takes part without
    NAG."""
    arena = contest(file, kind, plan.nfe[kind], plan.folder)
    own = arena.parts[arena.base]
    sampler, process = {"sampler": own.sampler}, own.net.config.path

    def distance(method: str, setting: Setting, w: float) -> float:
        row = arena.arm(method, setting, w, plan.tuning.model_copy(update=sampler))
        return study.bias_corrected(row, plan.real)["value"]

    chosen, tried = {}, []
    for method in plan.start:
        if method == "nag" and not dropout:
            continue
        chosen[method], more = tuned(plan, method, dropout and method != "nag", distance)
        tried += [{"network": file.stem, "sampler": kind} | one for one in more]
    reader, report = study.load_reader(process), plan.report.model_copy(update=sampler)
    arms = {
        arm: how for arm, how in report_arms(chosen).items() if dropout or not arm.endswith("+nag")
    }
    rows = {arm: arena.arm(*how, report, reader=reader) for arm, how in arms.items()}
    shifts = study.shifts(rows, process, reader)
    return chosen, rows, {arm: numbers(found["late"]) for arm, found in shifts.items()}, tried


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


def everything(
    plan: Plan, files: Mapping[str, Path], resamples: int
) -> tuple[dict, pd.DataFrame, pd.DataFrame, Rows]:
    """The study's numbers, a table of its arms, one of all that was tried, and the arms by name.

    `files` has one network trained with noise-condition dropout and one trained without, under the
    names WITH and WITHOUT; what they are called in the numbers is "NETWORK, SAMPLER"."""
    chosen, rows, shifts, tried = {}, {}, {}, []
    for network, file in files.items():
        for kind in plan.nfe:
            key = f"{network}, {kind}"
            found = measured(plan, file, network == WITH, kind)
            chosen[key], rows[key], shifts[key] = found[:3]
            tried += found[3]

    def ratio(row: study.Row, other: study.Row) -> dict:
        return study.ratio(row, other, plan.real)

    made = {
        "chosen": chosen,
        "ratios": {key: compared(arms, ratio) for key, arms in rows.items()},
        "across": {
            kind: across(rows[f"{WITH}, {kind}"], rows[f"{WITHOUT}, {kind}"], ratio)
            for kind in plan.nfe
        },
        "quality": {key: study.quality(arms, plan.real, resamples) for key, arms in rows.items()},
        "shift_late": shifts,
    }
    arms = {f"{key}, {arm}": row for key, of in rows.items() for arm, row in of.items()}
    return made, records(rows, made), pd.DataFrame(tried), arms


def records(rows: Mapping[str, Rows], made: Mapping) -> pd.DataFrame:
    """One row for each network, sampler and arm: setting, ratio, quality, late shift."""
    lines = []
    for key, arms in rows.items():
        network, kind = key.split(", ")
        for arm, row in arms.items():
            method, _, nag = arm.partition("+")
            how = made["chosen"][key].get(method, {"setting": "none", "w_nag beside": 0.0})
            line = {
                "network": network,
                "sampler": kind,
                "arm": arm,
                "label": METHODS[method].label + " + NAG" * bool(nag),
                "setting": how["setting"],
                "w_nag": how["w_nag beside"] if nag else 0.0,
                "steps": len(row["times"]) - 1,
                "nfe": int(row["nfe"]),
                "n": len(row["seeds"]),
            }
            values = dict(made["quality"][key][arm]) | {"shift_late": made["shift_late"][key][arm]}
            if arm != "none":
                values["ratio"] = made["ratios"][key]["unguided"][arm]
            for what, x in values.items():
                line |= {what: x["value"], f"{what}_low": x["low"], f"{what}_high": x["high"]}
            lines.append(line | {"images_per_s": len(row["seeds"]) / float(row["seconds"])})
    return pd.DataFrame(lines)
