"""The results as one table, and the closing line of `make repro` that sets new numbers beside the
committed ones.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from companion.report import capabilities, findings, questions
from companion.report.claims import MEANING
from companion.report.evidence import links
from nag.models import PATH_OF, DiT
from nag.rivals.methods import METHODS
from nag.support.files import atomic, read_json
from nag.support.paths import DATA, RESULTS, ROOT, STUDIES

ARMS = ("none", "nag", "cfg", "cfg+nag")
NAMES = {"sit": "SiT-mini", "dit": "DiT-mini"}
METRICS = ("fd", "fd_inf", "kid", "precision", "recall", "shift_late")


def named(net: DiT) -> str:
    """Kind and size of a network of any training, such as "SiT of 0.5 M parameters"."""
    kind = {path: family for family, path in PATH_OF.items()}[net.config.path]
    return f"{NAMES[kind].removesuffix('-mini')} of {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters"


def build_summary(folder: Path, families: list[str]) -> dict:
    """{family: {arm: {metric: {value, low, high, n, seeds}, "nfe", "protocol"}}} from a results
    folder's files.

    Raises FileNotFoundError naming the file that is missing.
    """
    summary = {}
    for family in families:
        quality = read_json(folder / "metrics" / f"quality-{family}.json")
        shift = read_json(folder / "metrics" / f"shift-{family}.json")
        summary[family] = {}
        for arm, values in quality.items():
            protocol = read_json(folder / "protocols" / f"{family}-{arm.replace('+', '-')}.json")
            seeds = [protocol["seeds"][0], protocol["seeds"][0] + shift[arm]["shift_late"]["n"] - 1]
            summary[family][arm] = values | {
                "shift_late": shift[arm]["shift_late"] | {"seeds": seeds},
                "nfe": protocol["nfe"],
                "protocol": protocol,
            }
    return summary


def independent_ratio(a: dict, b: dict) -> dict[str, float]:
    """Ratio of two positive numbers {"value", "low", "high"} whose errors are taken as independent,
    as such a number.
    """
    value = a["value"] / b["value"]
    half = math.hypot(*((x["high"] - x["low"]) / 2 / x["value"] for x in (a, b)))
    return {"value": value, "low": value * math.exp(-half), "high": value * math.exp(half)}


def over_unguided(summary: dict, metric: str = "fd") -> dict[str, dict[str, float]]:
    """Fréchet distance ("fd", or "fd_inf" with the bias off) of each arm over the unguided one's,
    {family: {arm: ratio}}.
    """
    return {
        family: {arm: s[metric]["value"] / arms["none"][metric]["value"] for arm, s in arms.items()}
        for family, arms in summary.items()
    }


def paper_ratios() -> dict[str, dict[str, float]]:
    """The paper's FID of each arm over its unguided one, ImageNet 256, by model, from
    data/paper_results.csv.
    """
    table = pd.read_csv(DATA / "paper_results.csv")
    table = table[(table.table == "imagenet_converged") & (table.metric == "fid")]
    arms = {("none", 0): "none", ("none", 1): "nag", ("cfg", 0): "cfg", ("cfg", 1): "cfg+nag"}
    ratios = {}
    for model, rows in table.groupby("model"):
        fid = {arms[r.guidance, r.nag]: r.value for r in rows.itertuples()}
        ratios[model] = {arm: value / fid["none"] for arm, value in fid.items()}
    return ratios


def committed(name: str) -> dict | list | None:
    """A results file as it is in Git's HEAD, or None."""
    try:
        text = subprocess.run(
            ["git", "show", f"HEAD:results/{name}"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        return json.loads(text)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def compare(new: dict, old: dict | None) -> list[str]:
    """Lines that set each arm's distance and late shift beside the committed ones; intervals that
    overlap agree.
    """
    lines = []
    for family, arms in new.items():
        for arm, values in arms.items():
            parts = [f"{family} {arm:8}"]
            for metric in ("fd", "shift_late"):
                a = values[metric]
                parts.append(f"{metric} {a['value']:+.4f} [{a['low']:+.4f}, {a['high']:+.4f}]")
                try:
                    b = old[family][arm][metric]
                    agree = a["low"] <= b["high"] and b["low"] <= a["high"]
                    parts.append(
                        f"(committed {b['value']:+.4f}: {'agrees' if agree else 'DIFFERS'})"
                    )
                except (TypeError, KeyError):
                    parts.append("(nothing committed)")
            lines.append("  ".join(parts))
    return lines


def close() -> None:
    """Print where the results are, the headline numbers, and whether they agree with the committed
    ones.
    """
    summary = read_json(RESULTS / "summary.json")
    print("\nFréchet distance and late noise shift, 95 % intervals, beside what is committed:")
    print("\n".join(f"  {line}" for line in compare(summary, committed("summary.json"))))
    gains = [
        f"{family}: NAG alone takes the distance to {arms['nag']['fd']['value'] / arms['none']['fd']['value']:.2f} of the "
        f"unguided one, with CFG to {arms['cfg+nag']['fd']['value'] / arms['cfg']['fd']['value']:.2f} of CFG's"
        for family, arms in summary.items()
    ]
    print(
        f"Done. {'; '.join(gains)}. Figures: results/figures, numbers: results/summary.json and results/claims.json, "
        "executed notebooks: results/executed."
    )


def readme_tables(summary: dict, claims: list[dict]) -> str:
    """The README's tables of results and claims, as Markdown made from the results files."""

    def cell(x: dict, digits: int = 3) -> str:
        return f"{x['value']:.{digits}f} [{x['low']:.{digits}f}, {x['high']:.{digits}f}]"

    lines = [
        "| network | arm | w_nag | CFG scale | NFE | Fréchet distance | bias off | KID × 1000 | precision | recall | "
        "late shift × 1000 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    summary = {family: summary[family] for family in NAMES if family in summary}
    for family, arms in summary.items():
        for arm in ARMS:
            s = arms[arm]
            guidance = s["protocol"]["guidance"]
            kid, late = (
                {k: 1000 * s[m][k] for k in ("value", "low", "high")} for m in ("kid", "shift_late")
            )
            lines.append(
                f"| {NAMES[family]} | {arm} | {guidance['w_nag']:g} | {guidance['cfg']:g} | {s['nfe']} | "
                f"{cell(s['fd'])} | {cell(s['fd_inf'])} | "
                f"{cell(kid, 2)} | {cell(s['precision'])} | {cell(s['recall'])} | {cell(late, 2)} |"
            )
    lines += [
        "",
        "Distance relative to the unguided arm, beside the paper's FID ratios (other data, features and samplers). "
        "2400 images make all distances larger, which pulls ratios towards 1 (F6); ratios in this README are with that "
        "bias unless *bias off* stands beside them.",
        "",
        "| | none | NAG | CFG | CFG + NAG |",
        "|---|---|---|---|---|",
    ]
    ratios = {
        f"{NAMES[f]}, Fashion-MNIST, here{suffix}": row
        for suffix, metric in (("", "fd"), (", bias off", "fd_inf"))
        for f, row in over_unguided(summary, metric).items()
    }
    for name, row in (
        ratios
        | {f"{m}, ImageNet 256, paper": r for m, r in sorted(paper_ratios().items(), reverse=True)}
    ).items():
        lines.append(f"| {name} | " + " | ".join(f"{row[a]:.2f}" for a in ARMS) + " |")
    lines += ["", f"The paper's claims. The verdicts: {MEANING}.", ""]
    lines += ["| claim | what the paper says | verdict here | evidence |", "|---|---|---|---|"]
    for c in claims:
        lines.append(
            f"| {c['id']} | {c['statement']} | **{c['verdict']}**: {c['brief'].replace('|', '&#124;')} | "
            f"{links(c['evidence'])} |"
        )
    return "\n".join(lines)


def auto_table(found: dict[str, dict]) -> str:
    """Weights found by the estimator alone, beside the tuned one, {family: contents of
    auto-FAMILY.json}.
    """
    lines = [
        "| network | rule | w | cost: network evaluations, seconds | distance over that of the tuned w | over unguided |",
        "|---|---|---|---|---|---|",
    ]
    for family, auto in sorted(found.items(), reverse=True):
        for rule in ("mean", "spread", "schedule"):
            constant = rule != "schedule"
            w = (
                f"{auto['constant'][rule]['w']:.2f}"
                if constant
                else "w(t), mean {:.2f}".format(
                    sum(auto["schedule"]["weights"]) / len(auto["schedule"]["weights"])
                )
            )
            cost = auto["cost"]["constant" if constant else "schedule"]
            ratios = [
                findings.with_interval(auto["distance_over"][rule][other])
                for other in ("best of sweep", "none")
            ]
            lines.append(
                f"| {NAMES[family]} | {rule} | {w} | {cost['evaluations']:,}, {cost['seconds']:.0f} s | "
                f"{' | '.join(ratios)} |"
            )
    return "\n".join(lines)


def overhead_table(overhead: dict) -> str:
    """What every arm costs, from overhead.json."""
    lines = [
        "| arm | NFE | time / unguided | memory / unguided | extra parameters | extra training, % of the network's images |",
        "|---|---|---|---|---|---|",
    ]
    memory = questions.memories(overhead)
    for row in overhead["rows"]:
        extra = f" + {row['other']}" if row["other"] else ""
        training = "not known" if row["training"] is None else f"{row['training']:.3g}"
        lines.append(
            f"| {row['label']} | {row['nfe']}{extra} | {row['relative']:.2f} | {memory[row['arm']]} | "
            f"{row['parameters']:,} | {training} |"
        )
    return "\n".join(lines)


def rivals_table(studies: list[dict], overhead: dict) -> str:
    """Every rival at its best setting, alone and with NAG, and its costs, from the studies of
    rivals and overhead.json.
    """
    lines = [
        "| solver | method | best setting | distance over unguided | with NAG | NAG adds | time | memory | "
        "extra parameters | further training, % of the network's images |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    memory = questions.memories(overhead)

    def shown(x: dict | None) -> str:
        return "–" if x is None else findings.with_interval(x)

    for found in studies:
        for method, chosen in sorted(found["chosen"].items(), key=lambda item: item[0] != "nag"):
            pair, cost = f"{method}+nag", found["costs"][method]
            setting = (
                chosen["setting"] + " †" * chosen["setting at an end"]
                if chosen["of"] > 1
                else "as trained, not tuned"
            )
            beside = (
                f" (w {chosen['w_nag beside']:g}{' †' * chosen['w at an end']})"
                if pair in found["unguided"]
                else ""
            )
            training = (
                "its own, from the start" if cost["training"] is None else f"{cost['training']:.3g}"
            )
            measured = (
                f"{method}-estimator" if chosen["setting"].startswith("by estimator") else method
            )  # in overhead.json
            lines.append(
                f"| {found['sampler'].replace('_', '–').title()} | {METHODS[method].label} | {setting} | "
                f"{shown(found['unguided'][method])} | {shown(found['unguided'].get(pair))}{beside} | "
                f"{shown(found['nag_adds'].get(method))} | {cost['time']:.2f} | {memory.get(measured, '–')} | "
                f"{cost['parameters']:,} | {training} |"
            )
    return "\n".join(lines)


def blocks(read: Callable[[str], dict]) -> dict[str, str]:
    """The README's generated parts by name; `read` gives the contents of a file of results/ by its
    name.
    """
    summary, ledger, overhead = (
        read("summary.json"),
        read("claims.json"),
        read("metrics/overhead.json"),
    )
    rivals = [read_json(STUDIES / f"metrics/{name}.json") for name in ("rivals", "rivals-sde")]
    of = {kind: [row for row in ledger if row["id"].startswith(kind)] for kind in "CQF"}
    return {
        "results": readme_tables(summary, of["C"]),
        "findings": findings.listed(of["F"]),
        "auto": auto_table({f: read(f"metrics/auto-{f}.json") for f in summary}),
        "overhead": overhead_table(overhead),
        "rivals": rivals_table(rivals, overhead),
        "features": capabilities.table(),
        "questions": questions.table(of["Q"]),
        "studies": questions.stages(),
    }


def write_readme() -> None:
    """Put the generated parts between their markers in the README; raises ValueError if a marker is
    missing.
    """
    path = ROOT / "README.md"
    text = path.read_text()
    for name, block in blocks(lambda name: read_json(RESULTS / name)).items():
        start, end = f"<!-- {name}: made by `make readme` -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(
                f"README.md must have the lines {start} and {end} once each: put them back"
            )
        head, _, rest = text.partition(start)
        text = f"{head}{start}\n{block}\n{end}{rest.partition(end)[2]}"
    with atomic(path) as part:
        part.write_text(text)


if __name__ == "__main__":
    verbs = {"close": close, "readme": write_readme, "answers": questions.write_answers}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit(f"usage: python -m companion.report.summary {' | '.join(verbs)}")
    verbs[sys.argv[1]]()
