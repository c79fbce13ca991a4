"""The four arms of both families in one table, and a comparison with the committed numbers."""

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from companion.report.evidence import Reader
from nag.support.files import read_json
from nag.support.paths import RESULTS, ROOT
from nag.support.uncertainty import show

ARMS = ("none", "nag", "cfg", "cfg+nag")
ARM_NAMES = {"none": "no guidance", "nag": "NAG", "cfg": "CFG", "cfg+nag": "CFG + NAG"}
METRICS = ("fd_inf", "fd_inf_second", "fd", "kid", "precision", "recall", "shift_late")
NAMES = {"sit": "SiT-mini", "dit": "DiT-mini"}
SAMPLERS = {
    "sit": ("Euler", "Euler–Maruyama"),
    "dit": ("DDIM", "DDPM"),
}  # deterministic, stochastic
STUDY = "studies/results/metrics/paper_samplers-{family}.json"  # the paper's samplers in 250 steps
Arms = dict[str, dict]  # {arm: {metric: interval, "nfe", "protocol"}}


def fast_arms(reader: Reader, family: str) -> Arms:
    """The arms of the main pipeline: a fast deterministic sampler."""
    quality = reader.content(f"results/metrics/quality-{family}.json")
    shift = reader.content(f"results/metrics/shift-{family}.json")
    found = {}
    for arm, values in quality.items():
        protocol = reader.content(f"results/protocols/{family}-{arm.replace('+', '-')}.json")
        first = protocol["seeds"][0]
        seeds = [first, first + shift[arm]["shift_late"]["n"] - 1]
        found[arm] = values | {
            "shift_late": shift[arm]["shift_late"] | {"seeds": seeds},
            "nfe": protocol["nfe"],
            "protocol": protocol,
        }
    return found


def build_summary(reader: Reader, families: Sequence[str]) -> dict[str, dict[str, Arms]]:
    """{family: {"ode" | "sde": {arm: {metric: {value, low, high, n, seeds}, "nfe", "protocol"}}}}
    of the results; "sde", the paper's sampler, is there once its study has run.

    Raises FileNotFoundError naming the file that is missing."""
    summary: dict[str, dict[str, Arms]] = {}
    for family in families:
        summary[family] = {"ode": fast_arms(reader, family)}
        if reader.has(STUDY.format(family=family)):
            summary[family]["sde"] = reader.content(STUDY.format(family=family))["arms"]
    return summary


def headline(summary: dict) -> dict[str, dict[str, dict[str, float]]]:
    """The numbers that DVC shows of an experiment, {family: {arm: {metric: value}}} of the main
    pipeline's sampler, few enough for a row of `dvc exp show`: the bias-corrected Fréchet distance
    "fd_inf" of every arm, and "shift_late", the late noise shift, without guidance and with NAG."""
    return {
        family: {
            arm: {
                metric: values[metric]["value"]
                for metric in ("fd_inf", "shift_late")
                if metric == "fd_inf" or arm in ("none", "nag")
            }
            for arm, values in samplers["ode"].items()
        }
        for family, samplers in summary.items()
    }


def over_unguided(
    summary: dict, metric: str = "fd_inf", sampler: str = "ode"
) -> dict[str, dict[str, float]]:
    """Fréchet distance (bias-corrected, or "fd_inf_second" or "fd") of each arm over the unguided
    one's, {family: {arm: ratio}}; without the families that do not have it.
    """
    return {
        family: {
            arm: s[metric]["value"] / samplers[sampler]["none"][metric]["value"]
            for arm, s in samplers[sampler].items()
        }
        for family, samplers in summary.items()
        if metric in samplers.get(sampler, {}).get("none", {})
    }


def ratios_to_unguided(
    reader: Reader, summary: dict, family: str, space: str = "first", sampler: str = "ode"
) -> dict[str, dict]:
    """The bias-corrected Fréchet ratio of each guided arm over the unguided one, {arm: interval}.

    Paired by seed where the results have it; otherwise that of the two distances, without an
    interval ("low" and "high" are None). Arms without the distance of the space are left out."""
    paired = (
        reader.content(f"results/metrics/ratios-{family}.json")
        if sampler == "ode"
        else reader.content(STUDY.format(family=family))["ratios"]
    )
    metric = {"first": "fd_inf", "second": "fd_inf_second"}[space]
    found: dict[str, dict] = {}
    for arm, value in over_unguided(summary, metric, sampler).get(family, {}).items():
        ratio = paired.get(f"{arm} over none", {})
        ratio = ratio if space == "first" else ratio.get("second", {})
        known = (
            ratio if ratio.get("bias_corrected") else {"value": value, "low": None, "high": None}
        )
        found |= {arm: known} if arm != "none" else {}
    return found


def committed(file: str) -> Any:
    """A JSON file of Git's HEAD, by its path in the repository; raises FileNotFoundError."""
    try:
        found = subprocess.run(
            ["git", "show", f"HEAD:{file}"], cwd=ROOT, check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise FileNotFoundError(f"{file} is not committed") from error
    return json.loads(found.stdout)


def compare(new: dict, old: dict | None) -> list[str]:
    """One line per arm: distance and late shift, and whether their intervals overlap the old."""
    lines = []
    of = [
        (f, s, arm) for f, samplers in new.items() for s, arms in samplers.items() for arm in arms
    ]
    for family, sampler, arm in of:
        values = new[family][sampler][arm]
        parts = [f"{family} {sampler} {arm:8}"]
        for metric in ("fd_inf", "shift_late"):
            a = values[metric]
            parts.append(f"{metric} {show(a, '+.4f')}")
            try:
                b = (old or {})[family][sampler][arm][metric]
            except (TypeError, KeyError):
                parts.append("(nothing committed)")
                continue
            agree = a["low"] <= b["high"] and b["low"] <= a["high"]
            parts.append(f"(committed {b['value']:+.4f}: {'agrees' if agree else 'DIFFERS'})")
        lines.append("  ".join(parts))
    return lines


def close() -> None:
    """Print headline numbers, whether they agree with the committed ones, and where they are."""
    summary = read_json(RESULTS / "summary.json")
    try:
        old = committed("results/summary.json")
    except FileNotFoundError:
        old = None
    print("\nBias-corrected distance and late noise shift with 95 % CI, and what is committed:")
    print("\n".join(f"  {line}" for line in compare(summary, old)))
    for family, ratio in over_unguided(summary).items():
        print(
            f"{NAMES[family]}: NAG takes the bias-corrected distance to {ratio['nag']:.2f} of the "
            f"unguided one, on top of CFG to {ratio['cfg+nag'] / ratio['cfg']:.2f}."
        )
    print(
        "Done. Figures: results/figures, numbers: results/summary.json and results/claims.json, "
        "executed notebooks: results/executed."
    )
