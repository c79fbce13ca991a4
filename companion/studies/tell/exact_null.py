"""What notebook 34 says of its numbers: Q13, whether an exact null is better than dropout's."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots.study_figures import error_bars, line_at, log_axis, ring, ring_handle
from companion.plots.style import ARMS, CLASSIFIER, DIM, SERIES, WIDTH, frame, line, style
from companion.studies.tell.words import in_both, listed, mini, sampler_name
from nag.support.uncertainty import outcome, show

NAG = ARMS["nag"]["color"]
LOOKS = {  # by kind of NAG's negative
    "dropout": {"color": NAG, "marker": "s", "label": "dropout's null"},
    "dropout, longer": {"color": SERIES[4], "marker": "^", "label": "the same, trained longer"},
    "own level": {"color": SERIES[2], "marker": "o", "label": "read at the state's own level"},
    "exact": {"color": SERIES[1], "marker": "D", "label": "trained to be ∇ log p(x)"},
    "classifier": {"color": CLASSIFIER, "marker": "v", "label": "estimator's gradient"},
}
PREDICTS = {"sit": "v", "dit": "eps"}
BESIDE = 0.05  # where the sentence reads the directions


def kinds(numbers: Mapping) -> list[str]:
    """The kinds that were sampled, in the order of LOOKS."""
    found = {kind for of in numbers["chosen"].values() for kind in of}
    return [kind for kind in LOOKS if kind in found]


def solver(numbers: Mapping, sampler: str) -> str:
    """The sampler as texts name it, with its cost: "Euler, 48 evaluations"."""
    return f"{sampler_name(numbers['samplers'][sampler])}, {numbers['nfe'][sampler]} evaluations"


def table(numbers: Mapping) -> pd.DataFrame:
    """Weight and ratios of every kind by sampler."""
    rows = {}
    for sampler, chosen in numbers["chosen"].items():
        ratios = numbers["ratios"][sampler]
        for kind in kinds(numbers):
            if kind not in chosen:
                continue
            over = ratios["dropout"].get(kind)
            rows[solver(numbers, sampler), LOOKS[kind]["label"]] = {
                "w": f"{chosen[kind]['w']:g}" + " (end of list)" * chosen[kind]["at_end"],
                "over no guidance": in_both(ratios["unguided"][kind]),
                "over dropout's null": "–" if over is None else in_both(over),
                "late shift": show(numbers["shift_late"][sampler][kind], "+.4f"),
            }
    return pd.DataFrame(rows).T


def errors(numbers: Mapping) -> pd.DataFrame:
    """Distance of every branch from the score of the pooled levels, by range of t."""
    return pd.DataFrame(
        {
            name: {part: show(x, ".4f") for part, x in parts.items()}
            for name, parts in numbers["held_out"].items()
        }
    ).T


def toy_table(numbers: Mapping) -> pd.DataFrame:
    """What every null does to the samples of the toy's blurred network."""
    return pd.DataFrame(
        {
            null: {what: show(x, ".3f") for what, x in found.items()}
            for null, found in numbers["toy"]["samples"].items()
        }
    ).T.rename_axis(f"blurred network, w = {numbers['toy']['w']:g}")


# ---- figure


def _toy(ax: Axes, numbers: Mapping) -> None:
    """The cosine of every null's direction with the exact one on the toy; 1 is the exact null."""
    rows = [
        row for row in numbers["toy"]["directions"] if row["network"] == PREDICTS[numbers["family"]]
    ]
    for null in ("dropout", "own level"):
        mine = [row for row in rows if row["null"] == null]
        look = {k: LOOKS[null][k] for k in ("color", "marker")}
        ax.plot([row["t"] for row in mine], [row["cosine"] for row in mine], **look)
    ax.axhline(1, color=LOOKS["exact"]["color"])
    line_at(ax, 0)
    ax.set(
        ylim=(-1.05, 1.08),
        xlabel="t (noise → data)",
        ylabel="cosine",
        title="toy: with ∇ log p(t|x)",
    )
    log_axis(ax, "x", 0.15)
    ax.invert_xaxis()


def _network(ax: Axes, numbers: Mapping) -> None:
    """The same of the network, with the estimator's gradient."""
    for kind, look in LOOKS.items():
        mine = [row for row in numbers["directions"] if row["null"] == kind]
        if mine:
            t = [row["t"] for row in mine]
            found = [row["cosine"] for row in mine]
            ax.plot(t, [x["value"] for x in found], color=look["color"], lw=1)
            error_bars(ax, t, found, color=look["color"], marker=look["marker"], linestyle="none")
    line_at(ax, 0)
    name = mini(numbers["family"])
    ax.set(xlabel="t (noise → data)", title=f"{name}: with the estimator's ∇ log g(t|x)")
    log_axis(ax, "x", 0.15)
    ax.invert_xaxis()


def _ratios(ax: Axes, numbers: Mapping) -> bool:
    """A row for each kind and sampler; whether a ring marks a weight at an end of its list."""
    rows = [
        (s, kind) for s, of in numbers["chosen"].items() for kind in kinds(numbers) if kind in of
    ]
    ends = False
    for place, (sampler, kind) in enumerate(rows):
        ratio, color = numbers["ratios"][sampler]["unguided"][kind], LOOKS[kind]["color"]
        face = "white" if outcome(ratio) == "inconclusive" else color
        ax.plot([ratio["low"], ratio["high"]], [place, place], color=color)
        ax.plot(ratio["value"], place, LOOKS[kind]["marker"], color=color, mfc=face)
        if numbers["chosen"][sampler][kind]["at_end"]:
            ring(ax, [ratio["value"]], [place])
            ends = True
    for place in [k for k in range(1, len(rows)) if rows[k][0] != rows[k - 1][0]]:
        ax.axhline(place - 0.5, color=DIM, lw=0.5)
    line_at(ax, 1, vertical=True)
    names = [LOOKS[kind]["label"] for _, kind in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set(
        ylim=(len(rows) - 0.5, -0.5),
        xlabel="Fréchet distance / unguided, "
        + "; below: ".join(solver(numbers, s) for s in numbers["chosen"]),
    )
    ax.grid(axis="y", visible=False)
    return ends


@style()
def figure(numbers: Mapping) -> Figure:
    """Directions on the toy and of the network; distances of every null."""
    rows = sum(len(of) for of in numbers["chosen"].values())
    fig = plt.figure(figsize=(WIDTH, 4.4 + 0.3 * rows))
    grid = fig.add_gridspec(2, 2, height_ratios=(2.6, 0.3 * rows + 0.4))
    _toy(fig.add_subplot(grid[0, 0]), numbers)
    _network(fig.add_subplot(grid[0, 1]), numbers)
    ends = _ratios(fig.add_subplot(grid[1, :]), numbers)
    shown = [kind for kind in LOOKS if kind in kinds(numbers)]
    handles = [line(**LOOKS[kind]) for kind in shown]
    note = (
        f"Toy: {PREDICTS[numbers['family']]}-network, uniform p(t). {mini(numbers['family'])}: "
        f"{numbers['forward_images']} forward states; {numbers['n']} images of each arm, seeds "
        f"{numbers['seeds'][0]} to {numbers['seeds'][1]}; w of each kind chosen on "
        f"{numbers['tuning_images']} others. Twins: {numbers['images_seen']:,} images. Bars: 95 % "
        "CI over images; open: it contains 1."
    )
    halves = [handles[:3], handles[3:] + ([ring_handle()] if ends else [])]
    return frame(fig, title(numbers), note, *filter(None, halves))


def title(numbers: Mapping) -> str:
    """The finding of the figure."""
    return f"{mini(numbers['family'])}: the exact null is {verdict(numbers)}"


def shown(numbers: Mapping, sampler: str) -> dict[str, str]:
    """The arms whose first images are worth a look: unguided beside every kind."""
    found = {f"{sampler} none": "no guidance"}
    of = numbers["chosen"][sampler]
    return found | {
        f"{sampler} {kind}": LOOKS[kind]["label"] for kind in kinds(numbers) if kind in of
    }


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers."""
    ratios = listed(
        f"{show(of['dropout']['exact'])} of its distance ({sampler_name(numbers['samplers'][s])})"
        for s, of in numbers["ratios"].items()
        if "exact" in of["dropout"]
    )
    return f"{title(numbers)}: {ratios}. The paper takes dropout's null for the exact one."


# ---- sentences


def verdict(numbers: Mapping) -> str:
    """Whether the exact null is better than dropout's, over the samplers."""
    said = {
        sampler: outcome(of["dropout"]["exact"])
        for sampler, of in numbers["ratios"].items()
        if "exact" in of["dropout"]
    }
    if set(said.values()) == {"better"}:
        return "better than dropout's"
    if set(said.values()) == {"worse"}:
        return "worse than dropout's"
    if set(said.values()) == {"inconclusive"}:
        return "not shown to differ from dropout's"
    names = (sampler_name(numbers["samplers"][s]) for s in said)
    return "; ".join(f"{name}: {word}" for name, word in zip(names, said.values(), strict=True))


def _directions(numbers: Mapping) -> str:
    """Cosines of the directions next to BESIDE, on the toy and of the network."""
    own = PREDICTS[numbers["family"]]
    rows = [row for row in numbers["toy"]["directions"] if row["network"] == own]
    t = min({row["t"] for row in rows}, key=lambda t: abs(t - BESIDE))
    toy = {row["null"]: row for row in rows if row["t"] == t}
    measured = [row for row in numbers["directions"]]
    at = min({row["t"] for row in measured}, key=lambda t: abs(t - BESIDE))
    found = {row["null"]: row["cosine"] for row in measured if row["t"] == at}
    return (
        f"On the toy at t = {t:g} NAG's direction has a cosine of {toy['dropout']['cosine']:+.2f} "
        f"with the exact one by dropout's null and of {toy['own level']['cosine']:+.2f} with the "
        f"same read at the level that the state looks to have; the network's at t = {at:g} has, "
        "with the estimator's gradient, "
        + listed(f"{show(found[kind])} ({LOOKS[kind]['label']})" for kind in LOOKS if kind in found)
        + "."
    )


def _distances(numbers: Mapping, sampler: str) -> str:
    ratios, chosen = numbers["ratios"][sampler], numbers["chosen"][sampler]
    first = (
        f"{solver(numbers, sampler)}: dropout's null takes the distance to "
        f"{show(ratios['unguided']['dropout'])} of the unguided one "
        f"(w = {chosen['dropout']['w']:g})"
    )
    each = (
        f"{LOOKS[kind]['label']} {show(ratios['unguided'][kind])} (w = {chosen[kind]['w']:g}; "
        f"of dropout's: {in_both(ratios['dropout'][kind])})"
        for kind in kinds(numbers)
        if kind in ratios["dropout"]
    )
    return "; ".join([first, *each]) + "."


def answers(numbers: Mapping, figure: str) -> dict[str, dict]:
    """What the study says to question 13, for one family."""
    who = mini(numbers["family"])
    learned = numbers["held_out"]["exact, less own level"]["all t"]
    ends = [
        f"{LOOKS[kind]['label']} ({sampler_name(numbers['samplers'][s])})"
        for s, of in numbers["chosen"].items()
        for kind, one in of.items()
        if one["at_end"]
    ]
    sentence = (
        f"{who}: the exact null is {verdict(numbers)}. "
        + " ".join(_distances(numbers, sampler) for sampler in numbers["chosen"])
        + f" {_directions(numbers)} Training takes the error of the exact null on held-out images "
        f"by {show(learned, '+.4f')} from that of dropout's read at its own level."
        + (f" At an end of its list of weights: {listed(ends)}." if ends else "")
    )
    brief = (
        f"{who}: the exact null is {verdict(numbers)}; distance over the unguided one "
        + "; ".join(
            f"{solver(numbers, s)}: "
            + ", ".join(
                f"{LOOKS[kind]['label']} {of['unguided'][kind]['value']:.2f}"
                for kind in kinds(numbers)
                if kind in of["unguided"]
            )
            for s, of in numbers["ratios"].items()
        )
    )
    return {"Q13": {"sentence": sentence, "brief": brief + ".", "key": "ratios", "figure": figure}}
