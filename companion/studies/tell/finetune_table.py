"""The paper's fine-tuning table with our column (notebook 17): the runs on its seven data sets that
are there, else the laptop's two studies, as ratios."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from companion.plots import style
from companion.plots.style import INK, TITLES, frame, line, panels, solver_name
from companion.studies.tell.finetune import distance
from nag.data import finetuning_sets
from nag.support.files import read_json
from nag.support.paths import DATA
from nag.support.uncertainty import independent_ratio, outcome, show, verdict

ARMS = {
    "none": "none",
    "nag": "NAG",
    "cfg": "CFG",
    "cfg+nag": "CFG+NAG",
    "dog": "DoG",
    "dog+nag": "DoG+NAG",
}
PAIRS = {"none": "nag", "cfg": "cfg+nag", "dog": "dog+nag"}  # baseline: with NAG
LOOKS = {
    "none": ("no guidance", style.ARMS["nag"]["color"]),
    "cfg": ("CFG", style.ARMS["cfg+nag"]["color"]),
    "dog": ("DoG", style.WITH_NAG),
}
OUTCOMES = ("better", "inconclusive", "worse")
ENDS = ("value", "low", "high")


class Runs(NamedTuple):
    """The runs that are there, by data set, or by family for the laptop's."""

    at_scale: bool
    runs: dict[str, dict]
    titles: dict[str, str]
    missing: list[str]  # of the seven data sets


def load(source: Path, laptop: Path) -> Runs:
    """The runs on the paper's data sets in `source`; without any, the laptop's studies in `laptop`.

    Raises ValueError for a file of another data set than its name says."""
    sets = {key: finetuning_sets.facts(key)["title"] for key in finetuning_sets.names()}
    files = {key: source / "metrics" / f"finetune-{key}.json" for key in sets}
    runs = {key: read_json(file) for key, file in files.items() if file.is_file()}
    missing = [key for key in sets if key not in runs]
    if not runs:
        titles = {family: f"{title}, footwear" for family, title in TITLES.items()}
        runs = {key: read_json(laptop / "metrics" / f"finetune-{key}.json") for key in titles}
        return Runs(False, runs, titles, missing)
    if wrong := [key for key, run in runs.items() if run["dataset"] != key]:
        raise ValueError(f"the files of {wrong} are of other data sets: run the pipeline again")
    mean = f"mean of {len(runs)}" if missing else "mean"
    return Runs(True, runs, sets | {"mean": mean}, missing)


def described(found: Runs) -> str:
    """What is there, and by which protocols, in words."""
    if not found.at_scale:
        first = (
            "No results of the paper's data sets here: the laptop's two studies instead, as ratios "
            "beside the paper's means."
        )
    elif found.missing:
        names = ", ".join(found.titles[key] for key in found.missing)
        first = (
            f"Missing of the seven data sets: {names}. Both means are over the other "
            f"{len(found.runs)}."
        )
    else:
        first = "All seven data sets are there."
    by_protocol: dict[str, list[str]] = {}
    for key, protocol in protocols(found).items():
        by_protocol.setdefault(protocol, []).append(found.titles[key])
    rest = [f"{protocol}: {', '.join(titles)}" for protocol, titles in by_protocol.items()]
    return "\n".join([first, *rest])


def protocols(found: Runs) -> dict[str, str]:
    """Images, solver and steps of each run, in words."""
    return {
        key: f"{run['n']:,} images per arm, {solver_name(run['solver'])}, {run['steps']} steps"
        for key, run in found.runs.items()
    }


def published() -> pd.DataFrame:
    """The paper's FIDs, a row per arm, a column per data set."""
    rows = pd.read_csv(DATA / "paper_results.csv").query("table == 'finetuning'")
    arms = [PAIRS[row.guidance] if row.nag else row.guidance for row in rows.itertuples()]
    table = rows.assign(arm=arms).pivot(index="arm", columns="dataset", values="value")
    return table.loc[list(ARMS), finetuning_sets.names()]


def measured(found: Runs) -> pd.DataFrame:
    """Our distances with 95 % intervals, a row per run."""
    return pd.DataFrame(
        {
            found.titles[key]: {
                name: show(distance(run["arms"][arm])) for arm, name in ARMS.items()
            }
            for key, run in found.runs.items()
        }
    ).T


def columns(found: Runs) -> dict[str, pd.DataFrame]:
    """The paper's numbers, ours and their difference, each a row per arm and a column per data set.

    At scale FIDs, with the mean over the sets that are there; on the laptop distances over the
    unguided one's beside the ratios of the paper's means."""
    paper = published()
    ours = pd.DataFrame(
        {
            key: {arm: distance(run["arms"][arm])["value"] for arm in ARMS}
            for key, run in found.runs.items()
        }
    )
    if found.at_scale:
        there, ours = list(found.runs), ours.reindex(columns=list(paper))
        paper["mean"], ours["mean"] = paper[there].mean(axis=1), ours[there].mean(axis=1)
    else:
        ours, mean = ours / ours.loc["none"], paper.mean(axis=1)
        paper = pd.DataFrame({key: mean / mean["none"] for key in found.runs})
    return {"paper": paper, "ours": ours, "difference": ours - paper}


def quantity(found: Runs) -> str:
    """What the table's numbers are."""
    return "FID" if found.at_scale else "distance over that of none"


def shown(found: Runs) -> pd.DataFrame:
    """The table to look at: for each arm the paper's numbers, ours, and the difference."""
    parts = columns(found)
    order = pd.MultiIndex.from_product([ARMS, parts])
    table = pd.concat(parts).swaplevel().reindex(order)
    return table.rename(index=ARMS, level=0).rename(columns=found.titles).round(2)


def _mean(numbers: Sequence[Mapping]) -> dict[str, float]:
    """Mean of independent numbers with intervals."""
    value = np.mean([x["value"] for x in numbers])
    half = np.linalg.norm([(x["high"] - x["low"]) / 2 for x in numbers]) / len(numbers)
    return {"value": value, "low": value - half, "high": value + half}


def ratios(found: Runs) -> dict[str, dict[str, dict]]:
    """With NAG over without, by run and baseline: {"value", "low", "high", "paper", "outcome"}.

    The mean's are ratios of two mean FIDs, whose errors are independent from set to set."""
    paper = columns(found)["paper"]
    table: dict[str, dict] = {
        key: {base: {end: run["ratios"][base][end] for end in ENDS} for base in PAIRS}
        for key, run in found.runs.items()
    }
    if found.at_scale:
        of = {
            arm: _mean([distance(run["arms"][arm]) for run in found.runs.values()]) for arm in ARMS
        }
        table["mean"] = {b: independent_ratio(of[nag], of[b]) for b, nag in PAIRS.items()}
    for key, row in table.items():
        for base, ratio in row.items():
            ratio["paper"] = float(paper[key][PAIRS[base]] / paper[key][base])
            ratio["outcome"] = outcome(ratio)
    return table


def compared(found: Runs) -> pd.DataFrame:
    """Our ratios with intervals and outcomes beside the paper's, a row per run."""
    return pd.DataFrame(
        {
            found.titles[key]: {
                (ARMS[base], name): text
                for base, ratio in row.items()
                for name, text in (
                    ("ours", f"{show(ratio)}, {ratio['outcome']}"),
                    ("paper", f"{ratio['paper']:.2f}"),
                )
            }
            for key, row in ratios(found).items()
        }
    ).T


def counts(found: Runs) -> dict[str, dict[str, int]]:
    """How many pairs of arms of each baseline, and of all, have each outcome."""
    table = ratios(found)

    def counted(bases: Iterable[str]) -> dict[str, int]:
        pairs = [table[key][base] for key in found.runs for base in bases]
        return {
            "pairs": len(pairs),
            **{word: sum(r["outcome"] == word for r in pairs) for word in OUTCOMES},
            "below one, ours": sum(r["value"] < 1 for r in pairs),
            "below one, paper": sum(r["paper"] < 1 for r in pairs),
            "paper's in our interval": sum(r["low"] <= r["paper"] <= r["high"] for r in pairs),
        }

    return {base: counted([base]) for base in PAIRS} | {"all": counted(PAIRS)}


def claim(found: Runs) -> tuple[str | None, str]:
    """The verdict on C9, only of all 21 pairs (else None), and the counts in a sentence."""
    total, judged = counts(found)["all"], None
    if found.at_scale and not found.missing:
        whole = {total["better"]: "reproduced", total["worse"]: "contradicted"}
        judged = whole.get(total["pairs"], "partly")
    sets = len(found.runs) + len(found.missing)
    where = (
        f"{len(found.runs)} of {sets} data sets"
        if found.at_scale
        else "two small networks on footwear, none of the paper's data sets"
    )
    words = ", ".join(f"{word} {total[word]}" for word in OUTCOMES)
    ending = f" ({judged})" if judged else ""
    return judged, f"C9 on {where}, {total['pairs']} pairs of arms, with NAG: {words}{ending}."


def rows(found: Runs) -> pd.DataFrame:
    """A row per data set and arm: the paper's number, ours, the difference, weights and ratios."""
    parts, table, lines = columns(found), ratios(found), []
    bases = {nag: base for base, nag in PAIRS.items()}
    for key in parts["paper"].columns:
        for arm, name in ARMS.items():
            row: dict = {"dataset": found.titles[key], "arm": name}
            row |= {f"{quantity(found)}, {part}": x[key][arm] for part, x in parts.items()}
            if key in found.runs:
                row |= {w: found.runs[key]["arms"][arm][w] for w in ("w_nag", "cfg", "dog")}
            if arm in bases:
                ratio = table.get(key, {}).get(bases[arm], {})
                row |= {
                    "ratio, paper": parts["paper"][key][arm] / parts["paper"][key][bases[arm]],
                    "ratio, ours": ratio.get("value"),
                    "low": ratio.get("low"),
                    "high": ratio.get("high"),
                    "outcome": ratio.get("outcome"),
                }
            lines.append(row)
    return pd.DataFrame(lines)


def answers(found: Runs) -> dict[str, dict]:
    """Answers to C9, and to C6's half about Domain Guidance, once all seven sets are there."""
    judged, sentence = claim(found)
    if not judged:
        return {}
    dog = ratios(found)["mean"]["dog"]
    text = (
        "DiT-XL/2 on seven data sets, mean FID of Domain Guidance with NAG over without: "
        f"{show(dog)} (the paper {dog['paper']:.2f})."
    )
    common = {"scale": "paper", "figure": "figures/finetune_table.png"}
    c9 = {"sentence": sentence, "brief": sentence, "key": "counts/all", "verdict": judged}
    c6 = {"sentence": text, "brief": text, "key": "ratios/mean/dog"}
    c6["verdict"] = verdict(dog, -1, 1.0)
    return {"C9": c9 | common, "C6": c6 | common}


def metrics(found: Runs) -> dict:
    """The numbers behind the answers."""
    judged, sentence = claim(found)
    means = {part: x["mean"].to_dict() for part, x in columns(found).items() if found.at_scale}
    return {
        "scale": "paper" if found.at_scale else "laptop",
        "sets": list(found.runs),
        "missing": found.missing,
        "protocols": protocols(found),
        "mean": means or None,
        "ratios": ratios(found),
        "counts": counts(found),
        "verdict": judged,
        "sentence": sentence,
    }


@style.style()
def figure(found: Runs) -> Figure:
    """With NAG over without, a panel per baseline, a row per data set, ours and the paper's."""
    square = {"marker": "s", "ms": 4.5}
    diamond = {"marker": "D", "ms": 7, "mfc": "none", "mew": 0.9, "color": INK}  # open: both show
    table, paper = ratios(found), columns(found)["paper"]
    keys = list(paper.columns)
    fig, axes = panels(3, 3)
    for ax in axes[1:]:
        ax.sharex(axes[0])  # before anything is drawn, so that the range holds all three panels
    for ax, (base, (label, color)) in zip(axes, LOOKS.items(), strict=True):
        for y, key in enumerate(keys):
            if key in table:  # a missing set has the paper's number alone
                ratio = table[key][base]
                ax.plot([ratio["low"], ratio["high"]], [y, y], color=color)
                ax.plot(ratio["value"], y, color=color, **square)
            ax.plot(paper[key][PAIRS[base]] / paper[key][base], y, **diamond)
        ax.axvline(1, color=INK, lw=0.8)
        ax.set(xlabel="with NAG / without", title=label)
        ax.set_yticks(range(len(keys)), [found.titles[k] for k in keys] if ax is axes[0] else [])
        ax.set_ylim(len(keys) - 0.5, -0.5)
    papers = "the paper" if found.at_scale else "the paper's means"
    legend = [
        line(color=INK, **square, label="ours, with 95 % interval"),
        line(ls="", **diamond, label=papers),
    ]
    who = (
        "DiT-XL/2, ratios of FIDs"
        if found.at_scale
        else "Ours: ratios of Fréchet distances; the paper's: of its mean FIDs, DiT-XL/2"
    )
    note = f"{who}. {'; '.join(dict.fromkeys(protocols(found).values()))}."
    if found.at_scale and found.missing:
        note += f" Missing: {', '.join(found.titles[key] for key in found.missing)}."
    total = counts(found)["all"]
    title = f"Fine-tuning: NAG improves {total['better']} of {total['pairs']} pairs of arms"
    return frame(fig, title, note, legend)
