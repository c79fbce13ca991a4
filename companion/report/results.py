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
METRICS = ("fd", "fd_inf", "kid", "precision", "recall", "shift_late")
NAMES = {"sit": "SiT-mini", "dit": "DiT-mini"}
SAMPLERS = {
    "sit": ("Euler", "Euler–Maruyama"),
    "dit": ("DDIM", "DDPM"),
}  # deterministic, stochastic


def build_summary(reader: Reader, families: Sequence[str]) -> dict:
    """{family: {arm: {metric: {value, low, high, n, seeds}, "nfe", "protocol"}}} of the results.

    Raises FileNotFoundError naming the file that is missing."""
    summary: dict[str, dict] = {}
    for family in families:
        quality = reader.content(f"results/metrics/quality-{family}.json")
        shift = reader.content(f"results/metrics/shift-{family}.json")
        summary[family] = {}
        for arm, values in quality.items():
            protocol = reader.content(f"results/protocols/{family}-{arm.replace('+', '-')}.json")
            first = protocol["seeds"][0]
            seeds = [first, first + shift[arm]["shift_late"]["n"] - 1]
            summary[family][arm] = values | {
                "shift_late": shift[arm]["shift_late"] | {"seeds": seeds},
                "nfe": protocol["nfe"],
                "protocol": protocol,
            }
    return summary


def headline(summary: dict) -> dict[str, dict[str, dict[str, float]]]:
    """The numbers that DVC shows of an experiment, {family: {arm: {metric: value}}}, few enough for
    a row of `dvc exp show`: the Fréchet distance "fd" of every arm, and "shift_late", the late
    noise shift, without guidance and with NAG."""
    return {
        family: {
            arm: {
                metric: values[metric]["value"]
                for metric in ("fd", "shift_late")
                if metric == "fd" or arm in ("none", "nag")
            }
            for arm, values in arms.items()
        }
        for family, arms in summary.items()
    }


def over_unguided(summary: dict, metric: str = "fd") -> dict[str, dict[str, float]]:
    """Fréchet distance ("fd", or bias-corrected "fd_inf") of each arm over the unguided one's,
    {family: {arm: ratio}}.
    """
    return {
        family: {arm: s[metric]["value"] / arms["none"][metric]["value"] for arm, s in arms.items()}
        for family, arms in summary.items()
    }


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
    for family, arms in new.items():
        for arm, values in arms.items():
            parts = [f"{family} {arm:8}"]
            for metric in ("fd", "shift_late"):
                a = values[metric]
                parts.append(f"{metric} {show(a, '+.4f')}")
                try:
                    b = (old or {})[family][arm][metric]
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
    print("\nFréchet distance and late noise shift with 95 % CI, and what is committed:")
    print("\n".join(f"  {line}" for line in compare(summary, old)))
    for family, arms in summary.items():
        distance = {arm: values["fd"]["value"] for arm, values in arms.items()}
        print(
            f"{NAMES[family]}: NAG takes the distance to {distance['nag'] / distance['none']:.2f} "
            f"of the unguided one, on top of CFG to {distance['cfg+nag'] / distance['cfg']:.2f}."
        )
    print(
        "Done. Figures: results/figures, numbers: results/summary.json and results/claims.json, "
        "executed notebooks: results/executed."
    )
