"""What notebook 28 says of its numbers: C9, and the half of C6 about Domain Guidance."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from companion.plots import study_figures, style
from companion.studies.tell.words import listed, mini, sampler_name
from nag.data import finetuning_sets
from nag.support.paths import DATA
from nag.support.uncertainty import outcome, show, verdict

PAIRS = {"none": "nag", "cfg": "cfg+nag", "dog": "dog+nag"}  # without: with NAG
NAMES = {"none": "no guidance", "cfg": "CFG", "dog": "DoG"}
ARM_NAMES = NAMES | {"nag": "NAG", "cfg+nag": "CFG + NAG", "dog+nag": "DoG + NAG"}
COLORS = {
    "none": style.ARMS["none"]["color"],
    "cfg": style.ARMS["cfg"]["color"],
    "dog": style.DOMAIN_GUIDANCE,
    "nag": style.ARMS["nag"]["color"],
    "cfg+nag": style.ARMS["cfg+nag"]["color"],
    "dog+nag": style.WITH_NAG,
}


def at_scale(numbers: Mapping) -> bool:
    """Whether it is one of the paper's data sets."""
    return numbers["dataset"] in finetuning_sets.names()


def subject(numbers: Mapping) -> str:
    """What was fine-tuned on what."""
    if at_scale(numbers):
        return f"DiT-XL/2 on {finetuning_sets.facts(numbers['dataset'])['title']}"
    return f"{mini(numbers['family'])} on footwear"


def runs(numbers: Mapping) -> str:
    n = len(numbers["finetune_seeds"])
    return f"{n} fine-tuning run{'s' * (n > 1)}"


def table(numbers: Mapping) -> pd.DataFrame:
    """Six arms: weights, evaluations, quality, and the ratio of each pair beside the paper's."""
    ratios = {PAIRS[base]: x for base, x in numbers["ratios"].items()}
    order = [name for pair in PAIRS.items() for name in pair]
    rows = {}
    for name in order:
        arm = numbers["arms"][name]
        rows[name] = {"w": arm["w_nag"], "CFG": arm["cfg"], "DoG": arm["dog"], "NFE": arm["nfe"]}
        rows[name] |= {
            k: show(x) for k, x in arm.items() if isinstance(x, dict) and k[:4] != "late"
        }
        if name in ratios:
            rows[name] |= {"with NAG / without": show(ratios[name]), "paper": ratios[name]["paper"]}
    return pd.DataFrame(rows).T.fillna("")


def beside_paper(numbers: Mapping, published: pd.DataFrame) -> pd.DataFrame:
    """FIDs beside the paper's; `published` are its rows of one data set."""
    fid = published.set_index(["guidance", "nag"]).value
    lines = {
        PAIRS[base] if nag else base: {"paper": fid[base, nag]} for base in PAIRS for nag in (0, 1)
    }
    for name, line in lines.items():
        line["ours"] = distance(numbers["arms"][name])["value"]
        line["difference"] = line["ours"] - line["paper"]
    return pd.DataFrame(lines).T


# ---- sentences


def distance(arm: Mapping) -> Mapping:
    """An arm's bias-corrected Fréchet distance; at the paper's size its FID."""
    return arm.get("fd_inf", arm["fd"])


def uncorrected(ratio: Mapping) -> str:
    """The ratio of the raw distances, beside a bias-corrected one."""
    return f"raw {ratio['raw']['value']:.2f}; " if ratio.get("bias_corrected") else ""


def said(ratio: Mapping) -> str:
    word = outcome(ratio)
    return f"{show(ratio)} ({word}; {uncorrected(ratio)}the paper {ratio['paper']:.2f})"


def verdicts(ratios: Mapping[str, Mapping]) -> dict[str, str]:
    """C9 is about all three baselines; C6's half about Domain Guidance."""
    found = {verdict(ratio, -1, 1) for ratio in ratios.values()}
    whole = found.pop() if len(found) == 1 else "partly"
    return {"C9": whole, "C6": verdict(ratios["dog"], -1, 1)}


def at_end(numbers: Mapping) -> list[str]:
    """Baselines beside which NAG's weight is the largest that was tried."""
    found = []
    for base, with_nag in PAIRS.items():
        tried = [x["w_nag"] for x in numbers["tuning"] if x["arm"] == with_nag]
        if tried and numbers["arms"][with_nag]["w_nag"] == max(tried):
            found.append(NAMES[base])
    return found


def answers(numbers: Mapping, name: str) -> dict[str, dict]:
    """`name` is that of the figure's file."""
    arms, ratios, mean = numbers["arms"], numbers["ratios"], numbers["mean_ratio"]
    words, who = verdicts(ratios), subject(numbers)
    solver, metric = sampler_name(numbers["solver"]), "FID" if at_scale(numbers) else "distance"
    protocol = f"{numbers['n']:,} images of {runs(numbers)}, {solver}, {numbers['steps']} steps"
    each = ", ".join(f"{NAMES[base]} {said(ratios[base])}" for base in PAIRS)
    short = ", ".join(
        f"{NAMES[base]} {ratios[base]['value']:.2f} ({outcome(ratios[base])})" for base in PAIRS
    )
    largest = at_end(numbers)
    more = (
        "NAG's weight is the largest that was tried, so that more may be possible, with "
        f"{listed(largest)}. "
        if largest
        else ""
    )
    recall = ", ".join(
        f"{arms[base]['recall']['value']:.2f} to {arms[PAIRS[base]]['recall']['value']:.2f} "
        f"({NAMES[base]})"
        for base in PAIRS
    )
    fd = {arm: distance(x)["value"] for arm, x in arms.items()}
    together = "better" if fd["dog+nag"] < min(fd["nag"], fd["dog"]) else "no better"
    beside_dog = (
        f"Domain Guidance alone has a {metric} of {fd['dog']:.1f} (no guidance {fd['none']:.1f}, "
        f"CFG {fd['cfg']:.1f}), with NAG {fd['dog+nag']:.1f}, NAG alone {fd['nag']:.1f}: the two "
        f"together are {together} than the better one alone"
    )
    of_dog = f"{who}, {metric} of Domain Guidance with NAG over without: {said(ratios['dog'])}."
    common = {"figure": f"figures/{name}.png"}
    return {
        "C9": {
            "brief": f"{who}, {metric} with NAG over without: {short}, mean {show(mean)} (the "
            f"paper {mean['paper']:.2f}).",
            "sentence": f"{who} ({protocol}), {metric} with NAG over without: {each}. {more}Recall "
            f"goes from {recall}. Mean {metric} of the three with NAG over that without: "
            f"{show(mean)} ({uncorrected(mean)}the paper {mean['paper']:.2f}).",
            "verdict": words["C9"],
            "key": "ratios",
        }
        | common,
        "C6": {
            "brief": of_dog,
            "sentence": f"{of_dog} {beside_dog}.",
            "verdict": words["C6"],
            "key": "ratios/dog",
        }
        | common,
    }


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers, and whether the paper agrees."""
    mean = numbers["mean_ratio"]
    return (
        f"{title(numbers)}; mean ratio {show(mean)}, the paper {mean['paper']:.2f}: claim C9 is "
        f"{verdicts(numbers['ratios'])['C9']} here."
    )


# ---- figures


def images(file: Path, numbers: Mapping) -> Figure:
    """The first images of every arm; none are kept at the paper's size."""
    with np.load(file) as arrays:
        rows = {
            arm: ARM_NAMES[arm] for pair in PAIRS.items() for arm in pair if arm in arrays.files
        }
    return study_figures.first_images(file, rows, title(numbers))


def published(numbers: Mapping) -> pd.DataFrame | None:
    """The paper's FIDs of the data set, if it is one of the paper's."""
    rows = pd.read_csv(DATA / "paper_results.csv").query("table == 'finetuning'")
    return rows[rows.dataset == numbers["dataset"]] if at_scale(numbers) else None


def title(numbers: Mapping) -> str:
    """The finding of the figure."""
    better = [NAMES[base] for base in PAIRS if outcome(numbers["ratios"][base]) == "better"]
    if len(better) == len(PAIRS):
        return f"Fine-tuning {subject(numbers)}: NAG improves all three baselines"
    what = f"NAG improves {listed(better)} only" if better else "no gain by NAG is conclusive"
    return f"Fine-tuning {subject(numbers)}: {what}"


def _rows(ax: Axes) -> None:
    ax.set_yticks(range(len(PAIRS)), [NAMES[base] for base in PAIRS])
    ax.set_ylim(len(PAIRS) - 0.5, -0.5)


def _distances(ax: Axes, numbers: Mapping, published: pd.DataFrame | None) -> None:
    """Distance of each arm: circle without NAG, square with it; diamonds are the paper's FIDs."""
    for y, (base, with_nag) in enumerate(PAIRS.items()):
        for k, (arm, marker) in enumerate(((base, "o"), (with_nag, "s"))):
            x, place = distance(numbers["arms"][arm]), y + 0.24 * (k - 0.5)
            ax.plot([x["low"], x["high"]], [place] * 2, color=COLORS[arm])
            ax.plot(x["value"], place, marker=marker, color=COLORS[arm])
            if published is not None:
                of = published[(published.guidance == base) & (published.nag == k)]
                ax.plot(of.value, [place], **PAPER)
    _rows(ax)


PAPER = {"marker": "d", "color": style.DIM, "mfc": "white", "ls": "none"}


def _ratios(ax: Axes, ratios: Mapping[str, Mapping]) -> None:
    """With NAG over without: ours (open: inconclusive), each run's (dots), the paper's."""
    for y, (base, with_nag) in enumerate(PAIRS.items()):
        x, color = ratios[base], COLORS[with_nag]
        face = "white" if outcome(x) == "inconclusive" else color
        ax.plot([x["low"], x["high"]], [y, y], color=color)
        ax.plot(x["value"], y, marker="s", color=color, mfc=face)
        ax.plot(x["runs"], [y + 0.22] * len(x["runs"]), ".", color=color, ms=5)
        ax.plot(x["paper"], y - 0.22, **PAPER)
    study_figures.line_at(ax, 1, vertical=True)
    _rows(ax)


def _diversity(ax: Axes, arms: Mapping[str, Mapping]) -> None:
    """Precision over recall: from the arm without NAG (circle) to that with it (square)."""
    for base, with_nag in PAIRS.items():
        (x0, y0), (x1, y1) = (
            [arms[name][metric]["value"] for metric in ("recall", "precision")]
            for name in (base, with_nag)
        )
        arrow = {"arrowstyle": "->", "color": COLORS[with_nag]}
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=arrow)
        ax.plot(x0, y0, "o", color=COLORS[base])
        ax.plot(x1, y1, "s", color=COLORS[with_nag])


def _tuning(ax: Axes, numbers: Mapping) -> None:
    """Bias-corrected distance on tuning seeds over NAG's weight, at the scale that was chosen."""
    tried, largest = pd.DataFrame(numbers["tuning"]), at_end(numbers)
    for base, with_nag in PAIRS.items():
        arm = numbers["arms"][with_nag]
        at = np.isclose(tried.cfg, arm["cfg"]) & np.isclose(tried.dog, arm["dog"])
        row = tried[at & tried.arm.isin([base, with_nag])].sort_values("w_nag")
        ax.plot(row.w_nag, row.fd_inf, "s-", color=COLORS[with_nag], ms=3.5)
        if NAMES[base] in largest:
            study_figures.ring(ax, row.w_nag.iloc[-1:], row.fd_inf.iloc[-1:])


@style.style()
def figure(numbers: Mapping, published: pd.DataFrame | None = None) -> Figure:
    """Distances and ratios of the three pairs, precision and recall, and the choice of w if there
    was one; `published` are the paper's FIDs of the data set."""
    tuned, metric = bool(numbers["tuning"]), "FID" if at_scale(numbers) else "Fréchet distance"
    fig, (distance, ratio, diversity, *choice) = style.panels(3 + tuned, 2)
    _distances(distance, numbers, published)
    distance.set(title="Distance to real images", xlabel=f"{metric} (lower is better)")
    _ratios(ratio, numbers["ratios"])
    ratio.set(
        title="With NAG over without",
        xlabel=f"ratio of {metric}s" if at_scale(numbers) else "Fréchet ratio",
    )
    _diversity(diversity, numbers["arms"])
    diversity.xaxis.set_major_locator(MaxNLocator(5))
    diversity.set(title="Diversity and fidelity", xlabel="recall", ylabel="precision")
    for ax in choice:
        _tuning(ax, numbers)
        ax.margins(y=0.12)
        ax.set(title="The choice of w", xlabel="w at the chosen scale", ylabel="corrected distance")
    arms = [
        style.line(label=ARM_NAMES[arm], color=COLORS[arm], marker=marker, ls="none")
        for pair in PAIRS.items()
        for arm, marker in zip(pair, "os", strict=True)
    ]
    marks = [style.line(**PAPER, label="the paper" if at_scale(numbers) else "the paper's mean")]
    if tuned and at_end(numbers):
        marks.append(study_figures.ring_handle())
    of_runs = f" (dots: each of {len(numbers['finetune_seeds'])})" * (
        len(numbers["finetune_seeds"]) > 1
    )
    note = (
        f"N = {numbers['n']:,} per arm; {runs(numbers)}{of_runs} of "
        f"{numbers['training']['images_seen']:,} images seen; {sampler_name(numbers['solver'])}, "
        f"{numbers['steps']} steps"
        + f"; w chosen by the bias-corrected distance of {numbers['tuning_n']} "
        "images of other seeds"
        * tuned
        + ". DoG: Domain Guidance. Open points: inconclusive. Bars: 95 % CI."
    )
    return style.frame(fig, title(numbers), note, arms, marks)
