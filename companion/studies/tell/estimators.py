"""What notebook 25 says of its numbers: Q6, how robust the noise-level estimator is."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from companion.plots import study_figures, style
from companion.studies.tell.words import listed, mini, sampler_name
from nag.interpolant import PATH_OF
from nag.samplers.registry import resolve
from nag.support.uncertainty import Interval, show, sign

LOOKS = {  # by kind of estimator
    "committed": {"color": style.INK, "marker": "o"},
    "attention": {"color": style.SERIES[1], "marker": "s"},
    "plain": {"color": style.SERIES[2], "marker": "^"},
    "paper": {"color": style.CLASSIFIER, "marker": "P"},
    "wavelet": {"color": style.SERIES[3], "marker": "D"},
    "energy": {"color": style.DIM, "marker": "v"},
}
UNCOUNTED = "energy, alpha moves"
OWN, KNOWN = "the sampler's images", "known extra noise"
KINDS = ("turned by 90°", "mixed of two", OWN, "blurred", "half the contrast", "inverted", KNOWN)
EDGE = 0.03  # of the panel of foreign images; what lies beyond is written at it
SIDES = {"above": "more noise", "below": "less noise"}
SIZE = 0.5  # a range of readings below this part of their mean counts as one size


def look(estimator: str) -> dict:
    return LOOKS[estimator.split()[0]]


def ordered(estimators: Mapping) -> list[str]:
    """The estimators that count, by kind and seed."""
    kinds = list(LOOKS)
    names = [name for name in estimators if name != UNCOUNTED]
    return sorted(names, key=lambda name: (kinds.index(name.split()[0]), name))


def networks(estimators: Mapping) -> list[str]:
    return [name for name in ordered(estimators) if name not in ("wavelet", "energy")]


def arm_name(arm: str, family: str) -> str:
    """ "Euler–Maruyama, no guidance" for "sde none"."""
    sampler, guidance = arm.split()
    solver = sampler_name(resolve(sampler, PATH_OF[family]))
    return f"{solver}, {style.arm_style(guidance)['label']}"


def arms(numbers: Mapping) -> list[str]:
    """The arms, deterministic sampler first, unguided first."""
    return sorted(numbers["shifts"], key=lambda arm: (arm.split()[0], arm.split()[1] != "none"))


def sides(numbers: Mapping, arm: str) -> list[str]:
    """On which side of zero each estimator sees the shift of an arm."""
    shifts = numbers["shifts"][arm]
    return [sign(shifts[name]) for name in ordered(shifts)]


def contradictory(numbers: Mapping, arm: str) -> bool:
    return {"above", "below"} <= set(sides(numbers, arm))


def agreement(numbers: Mapping, arm: str) -> str:
    """What the estimators say of the sign of an arm's shift, all together."""
    found = sides(numbers, arm)
    seen = set(found) - {"inconclusive"}
    if len(seen) > 1:
        return "estimators contradict each other"
    if not seen:
        return "for every estimator it is inconclusive"
    if "inconclusive" in found:
        return f"some estimators see {SIDES[seen.pop()]}, for the others it is inconclusive"
    return f"all estimators see {SIDES[seen.pop()]}"


def largest(numbers: Mapping) -> str:
    """The arm of the largest mean shift."""
    return max(arms(numbers), key=lambda arm: abs(numbers["spread"][arm]["mean"]))


def robust(numbers: Mapping) -> str:
    """How far the measurement can be trusted, in a few words."""
    top = largest(numbers)
    spread = numbers["spread"][top]
    scatter = (spread["highest"] - spread["lowest"]) / abs(spread["mean"])
    if contradictory(numbers, top):
        return "not robust"
    if "inconclusive" in sides(numbers, top):
        return "not settled, since for some estimators even the largest shift is inconclusive"
    if any(contradictory(numbers, arm) for arm in arms(numbers)):
        return "robust in sign for the largest shift only"
    return "robust in sign and size" if scatter < SIZE else "robust in sign, not in size"


def misled(numbers: Mapping) -> tuple[float, str, float, float]:
    """By how much foreign images mislead the networks at most, which images these are, and by how
    much the sampler's own images mislead them and the committed one."""
    foreign = numbers["foreign"]
    names = networks(foreign[OWN])
    worst = {
        kind: max(abs(row[name]["value"]) for name in names)
        for kind, row in foreign.items()
        if kind != KNOWN
    }
    kind = max(worst, key=lambda kind: worst[kind])
    return worst[kind], kind, worst[OWN], abs(foreign[OWN]["committed"]["value"])


def table(numbers: Mapping, family: str) -> pd.DataFrame:
    """The late shift of every arm by every estimator."""
    return pd.DataFrame(
        {
            arm_name(arm, family): {
                name: show(numbers["shifts"][arm][name], "+.4f")
                for name in [*ordered(numbers["shifts"][arm]), UNCOUNTED]
            }
            for arm in arms(numbers)
        }
    )


def calibration_table(numbers: Mapping) -> pd.DataFrame:
    """How honest each estimator is on forward states of held-out images."""
    rows = numbers["calibration"]
    names = [*ordered({n: 0 for n in rows if "," not in n}), *(n for n in rows if "," in n)]
    return pd.DataFrame({name: rows[name] for name in names}).T.astype(float)


def answers(numbers: Mapping, family: str) -> dict[str, dict]:
    top, each = largest(numbers), arms(numbers)
    spread, seen = numbers["spread"][top], len(ordered(numbers["shifts"][top]))
    own = numbers["shifts_own_images"][top]
    survives = sum(sign(own[name]) == sign(numbers["shifts"][top][name]) for name in own)
    against = [arm_name(arm, family) for arm in each if contradictory(numbers, arm)]
    gains = [x["value"] for x in numbers["foreign"][KNOWN].values()]
    worst, kind, by_own, by_committed = misled(numbers)
    differences = ", ".join(
        f"{name} {spread[key]['value']:+.4f}"
        for name, key in (
            ("plain minus attention", "plain_minus_attention"),
            ("wavelet minus networks", "wavelet_minus_networks"),
            ("energy minus networks", "energy_minus_networks"),
            ("the paper's kind minus networks", "paper_minus_networks"),
        )
        if key in spread
    )
    sd = spread["seed_sd"]
    by_seed = f"standard deviation over training seeds {sd:.4f}, " if sd is not None else ""
    clash = (
        f"Estimators contradict each other for {' and for '.join(against)}."
        if against
        else "No two estimators contradict each other in sign for any arm."
    )
    smaller = listed(
        f"for {n} of {seen} estimators ({sampler_name(resolve(sampler, PATH_OF[family]))})"
        for sampler, n in sorted(numbers["smaller_with_nag"].items())
    )
    opening = f"{mini(family)}: the measurement is {robust(numbers)}."
    span = f"from {spread['lowest']:+.4f} to {spread['highest']:+.4f} over {seen} estimators"
    sentence = (
        f"{opening} Largest shift ({arm_name(top, family)}): {agreement(numbers, top)}, {span} "
        f"({by_seed}{differences}); with forward states of the arm's own images as control "
        f"{survives} of {len(own)} estimators give it the same sign. {clash} With NAG "
        f"|shift| is smaller {smaller}. An added shift of {numbers['known']:g} is read as "
        f"{min(gains):.4f} to {max(gains):.4f}. Foreign images mislead the trained "
        f"estimators by up to {worst:.4f} ({kind}), the sampler's own by up to "
        f"{by_own:.4f} (the committed one by {by_committed:.4f}): a shift below "
        "that is no evidence."
    )
    brief = (
        f"{opening} {arm_name(top, family)}: {agreement(numbers, top)}, {span}. {clash} Foreign "
        f"images mislead the trained estimators by up to {worst:.2f} ({kind}), the sampler's own "
        f"by up to {by_own:.4f}."
    )
    return {
        "Q6": {
            "sentence": sentence,
            "brief": brief,
            "key": "spread",
            "figure": "figures/estimator.png",
        }
    }


def in_a_sentence(numbers: Mapping, family: str) -> str:
    """What the study showed in one sentence with its numbers, and whether the paper agrees."""
    top = largest(numbers)
    spread, seen = numbers["spread"][top], sides(numbers, top)
    confirmed = "confirmed" if set(seen) == {"above"} else "not confirmed"
    return (
        f"{arm_name(top, family)}: {agreement(numbers, top)}, from {spread['lowest']:+.4f} to "
        f"{spread['highest']:+.4f} over {len(seen)} estimators. The paper reads a positive shift "
        f"by one estimator: its sign is {confirmed} here."
    )


# ---- figures


def images(file: Path, numbers: Mapping, family: str) -> Figure:
    """The first images of every arm."""
    with np.load(file) as arrays:
        names = {arm: arm_name(arm, family) for arm in arrays.files}
    return study_figures.first_images(file, names, title(numbers, family))


def _rows(ax: Axes, rows: Mapping[str, Mapping[str, Interval]], edge: float = np.inf) -> None:
    """A row for each name, a point for each estimator; beyond the edge the range is written."""
    for y, row in enumerate(rows.values()):
        names, beyond = ordered(row), []
        for k, name in enumerate(names):
            x, place = row[name], y + 0.7 * (k / (len(names) - 1) - 0.5)
            if x["value"] > edge:
                beyond.append(x["value"])
                ax.plot(edge, place, **look(name) | {"marker": ">"}, ms=4, clip_on=False)
                continue
            ax.plot([x["low"], x["high"]], [place] * 2, color=look(name)["color"], lw=1)
            ax.plot(x["value"], place, **look(name), ms=4)
        if beyond:
            span = (
                f"{beyond[0]:.3f}"
                if len(beyond) == 1
                else f"{min(beyond):.2f} to {max(beyond):.2f}"
            )
            ax.text(0.93 * edge, y, span, fontsize=8.5, ha="right", va="center")
    study_figures.line_at(ax, 0, vertical=True)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)


def _edge(rows: Mapping[str, Mapping[str, Interval]]) -> float:
    """Where the panel of shifts ends: the untrained energy does not set its range."""
    found = [row[name] for row in rows.values() for name in ordered(row) if name != "energy"]
    return 1.1 * max(abs(x[end]) for x in found for end in ("low", "high"))


def title(numbers: Mapping, family: str) -> str:
    """The finding of the figure."""
    top = largest(numbers)
    return f"{arm_name(top, family)}: {agreement(numbers, top)}"


@style.style()
def figure(numbers: Mapping, family: str) -> Figure:
    """The shift by every estimator; their bias on real images; what foreign images do to them."""
    fig = plt.figure(figsize=(style.WIDTH, 7.6))
    grid = fig.add_gridspec(2, 2, height_ratios=(1, 1.05), width_ratios=(1, 1.15))
    shift, bias, foreign = (
        fig.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1])
    )
    rows = {arm_name(arm, family): numbers["shifts"][arm] for arm in arms(numbers)}
    edge = _edge(rows)
    _rows(shift, {name.replace(", ", ",\n"): row for name, row in rows.items()}, edge)
    if max(x["value"] for row in rows.values() for x in row.values()) > edge:
        shift.set_xlim(right=edge)
    against = sum(contradictory(numbers, arm) for arm in arms(numbers))
    shift.set(
        title=f"In {against} of {len(rows)} arms the estimators contradict each other in sign",
        xlabel="late noise shift (units of t)",
    )
    levels = sorted(numbers["bias"]["committed"], key=float)
    for name in ordered(numbers["bias"]):
        values = [numbers["bias"][name][t] for t in levels]
        bias.plot(range(len(levels)), values, **look(name), ms=4, lw=1)
    study_figures.line_at(bias, 0)
    bias.yaxis.set_major_locator(MaxNLocator(5))
    bias.set_xticks(range(len(levels)), levels)
    bias.invert_xaxis()
    bias.set(
        xlabel="true noise level t (noise → data)",
        ylabel="mean reading minus t",
        title="Bias on real images",
    )
    _rows(foreign, {kind: numbers["foreign"][kind] for kind in KINDS}, EDGE)
    known = numbers["known"]
    foreign.plot(
        [known] * 2, [len(KINDS) - 1.45, len(KINDS) - 0.55], color=style.INK, lw=1, ls="--"
    )
    foreign.set(
        xlim=(-EDGE, EDGE),
        xlabel=f"error minus that on real images\n(dashed: the added {known:g})",
        title="Images unlike those of training",
    )
    foreign.set_xticks([-0.02, -0.01, 0, 0.01, 0.02])
    kinds = {name.split()[0] for name in numbers["bias"]} | {"energy"}
    handles = [
        style.line(**of, ms=5, lw=1, label=kind) for kind, of in LOOKS.items() if kind in kinds
    ]
    seeds = len(numbers["judge_seeds"])
    note = (
        f"{mini(family)}, {numbers['n']} trajectories, control of {numbers['control_images']} test "
        f"images. Committed: the estimator of this project; attention (its architecture) and plain "
        f"(convolutions): {seeds} seeds each, {numbers['images_seen']:,} images seen; "
        + "paper: the network itself with a last layer that regresses t; "
        * ("paper" in kinds)
        + f"wavelet and energy: no training. Right: {numbers['held_out']} images, mean of "
        "the late levels. Bars: 95 % CI over images."
    )
    return style.frame(fig, title(numbers, family), note, handles)
