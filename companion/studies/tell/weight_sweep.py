"""Study of notebook 20, from its numbers: table, figure and the answers to Q1 and C6."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from companion.plots import study_figures as drawing
from companion.plots import style
from companion.studies.tell.words import listed, mini, sampler_name
from companion.studies.weight_sweep import NONE, Point, label
from nag.interpolant import PATH_OF
from nag.samplers.registry import resolve
from nag.support.uncertainty import outcome, show, sign, verdict

DIRECTION = {"above": "higher", "below": "lower", "inconclusive": "inconclusive"}


def point(name: str) -> Point:
    """The point (w, scale) of a name such as "w0.5 cfg1.1"."""
    w, scale = name.split()
    return float(w.removeprefix("w")), float(scale.removeprefix("cfg"))


def points(found: Mapping[str, Any]) -> dict[Point, Any]:
    """The same by point, in ascending order."""
    names = [name for name in found if " cfg" in name]
    return {point(name): found[name] for name in sorted(names, key=point)}


def axes(numbers: Mapping) -> tuple[list[Point], list[Point]]:
    """Points of NAG alone and of CFG alone, no guidance first."""
    every = points(numbers["quality"])
    return [p for p in every if p[1] == 1], [p for p in every if p[0] == 0]


def samplers(numbers: Mapping) -> tuple[str, str]:
    """Names of the study's own sampler and of the paper's stochastic one."""
    stochastic = resolve("sde", PATH_OF[numbers["family"]])
    return sampler_name(numbers["sampler"]), sampler_name(stochastic)


def words(p: Point) -> str:
    """A point in a sentence."""
    return f"w = {p[0]:g} with CFG {p[1]:g}" if p[1] > 1 else f"w = {p[0]:g}"


def table(numbers: Mapping) -> pd.DataFrame:
    """The two axes: quality, and the ratio to no guidance on the same seeds."""
    nag, cfg = axes(numbers)
    quality, ratios = points(numbers["quality"]), points(numbers["ratio_to_unguided"])
    return pd.DataFrame(
        {"w": p[0], "CFG": p[1]}
        | {name: quality[p][name]["value"] for name in ("fd", "fd_inf", "precision", "recall")}
        | {"ratio": show(ratios[p])}
        for p in dict.fromkeys(nag + cfg)
    )


def cells_that_are(kind: str, numbers: Mapping) -> str:
    """Where NAG added to CFG has this outcome: "better at CFG 1.05 (w = 0.5, 1), 1.1 (w = 0.5)"."""
    found: dict[float, list[str]] = {}
    for (w, scale), ratio in points(numbers["ratio_to_cfg_alone"]).items():
        if outcome(ratio) == kind:
            found.setdefault(scale, []).append(f"{w:g}")
    cells = ", ".join(f"{s:g} (w = {', '.join(ws)})" for s, ws in sorted(found.items()))
    return f"{kind} at CFG {cells}" if cells else f"nowhere {kind}"


def changed(v: Mapping) -> str:
    """A change of recall, its interval and which way it goes."""
    return f"{show(v, '+.3f')} ({DIRECTION[sign(v)]})"


def answers(numbers: Mapping) -> dict[str, dict]:
    """The answers to question Q1 and to the paper's claim C6, in sentences and in brief."""
    chosen, pair = numbers["chosen"], numbers["pair_over_cfg_alone"]
    tuned = pair[f"cfg{chosen['cfg']:g}"]
    added = (
        f"{mini(numbers['family'])}, distance of the tuned pair, {words(chosen['joint'])}, over "
        f"that of CFG as tuned, {chosen['cfg']:g}, {tuned['n']} images: {show(tuned)} "
        f"({outcome(tuned)})."
    )
    file = f"figures/weight_sweep-{numbers['family']}.png"
    return {
        "Q1": {
            "sentence": _in_full(numbers),
            "brief": _in_brief(numbers),
            "key": "nag_at_chosen",
            "figure": file,
        },
        "C6": {
            "sentence": added,
            "brief": added,
            "key": f"pair_over_cfg_alone/cfg{chosen['cfg']:g}",
            "verdict": verdict(tuned, -1, 1.0),
            "figure": file,
        },
    }


def _added_to_cfg(numbers: Mapping) -> str:
    better, worse = (cells_that_are(kind, numbers) for kind in ("better", "worse"))
    return f"added to CFG, cell by cell, NAG is {better} and {worse}"


def _tuned_pair(numbers: Mapping) -> str:
    pair = numbers["pair_over_cfg_alone"]
    over = listed(f"{show(v)} of CFG {name.removeprefix('cfg')} alone" for name, v in pair.items())
    n = next(iter(pair.values()))["n"]
    return f"{words(numbers['chosen']['joint'])}, has on {n} images a distance of {over}"


def _in_full(numbers: Mapping) -> str:
    """All that the study says about Q1, a sentence for each of its parts."""
    sampler, stochastic = samplers(numbers)
    chosen, gain = numbers["chosen"], numbers["nag_at_chosen"]
    nag, (w, cfg) = axes(numbers)[0], (chosen["w_nag"], chosen["cfg"])
    ratios, quality = points(numbers["ratio_to_unguided"]), points(numbers["quality"])
    along = ", ".join(f"{show(ratios[p])} at {words(p)}" for p in nag if p != NONE)
    recalls = ", ".join(f"{quality[p]['recall']['value']:.3f}" for p in nag)
    all_w = listed(f"{p[0]:g}" for p in nag)
    best, best_cfg = numbers["least"]["all"], numbers["least"]["CFG"]
    nag_recall, cfg_recall = (
        changed(numbers[name]["recall_difference"]) for name in ("nag_at_chosen", "cfg_at_chosen")
    )
    equal, shift = numbers["equal_gain"], points(numbers["late_shift"]["sde"])
    at_equal = (
        "NAG and CFG do not both surely improve, so recall is not compared at equal distance."
    )
    if equal["strength"]:
        places = f"w = {equal['strength']['NAG']:.2f}, CFG {equal['strength']['CFG']:.2f}"
        at_equal = (
            f"Where both have the same distance ({places}), NAG's recall minus CFG's is "
            f"{changed(equal['recall_difference'])}."
        )
    of_pair = numbers["pair_over_cfg_alone"].values()
    added = _added_to_cfg(numbers)
    return " ".join(
        (
            f"{mini(numbers['family'])}, {sampler}, {numbers['steps']} steps, {numbers['n']}",
            f"images per cell. The Fréchet ratio of NAG to no guidance is {along}.",
            f"The least of all cells is {show(best)} at {words((best['w_nag'], best['cfg']))},",
            f"that of CFG alone {show(best_cfg)} at scale {best_cfg['cfg']:g}, both picked on",
            f"these images. NAG at w = {w:g}, chosen on other seeds, is {outcome(gain['ratio'])}.",
            f"Recall is {recalls} at w = {all_w}; it changes by {nag_recall} at the chosen w",
            f"and by {cfg_recall} at the chosen CFG {cfg:g}.",
            at_equal,
            f"{added[0].upper()}{added[1:]}.",
            f"The pair chosen on other seeds, {_tuned_pair(numbers)}; on {numbers['n']} its recall",
            f"differs by {listed(changed(v['recall_difference']) for v in of_pair)}.",
            f"The late noise shift with {stochastic} is {show(shift[NONE], '+.4f')} without NAG",
            f"and {show(shift[w, 1.0], '+.4f')} at w = {w:g}.",
        )
    )


def _in_brief(numbers: Mapping) -> str:
    nag, least = axes(numbers)[0], numbers["least"]["NAG"]
    ratios, quality = points(numbers["ratio_to_unguided"]), points(numbers["quality"])
    along = ", ".join(f"{ratios[p]['value']:.2f} at {words(p)}" for p in nag if p != NONE)
    places = sorted({NONE, (least["w_nag"], 1.0), nag[-1]})
    recall, precision = (
        ", ".join(f"{quality[p][kind]['value']:.3f}" for p in places)
        for kind in ("recall", "precision")
    )
    return (
        f"{mini(numbers['family'])}, Fréchet ratio of NAG to no guidance: {along}; recall {recall} "
        f"and precision {precision} at w = {listed(f'{p[0]:g}' for p in places)}; "
        f"{_added_to_cfg(numbers)}; the tuned pair, {_tuned_pair(numbers)}."
    )


# ---- figures


def samples(file: Path, numbers: Mapping) -> Figure:
    """First images of no guidance, the best NAG alone, the best CFG alone, and the tuned pair."""
    nag, cfg = numbers["least"]["NAG"], numbers["least"]["CFG"]
    pair = tuple(numbers["chosen"]["joint"])
    rows = {
        NONE: "no guidance",
        (nag["w_nag"], 1.0): f"NAG, w = {nag['w_nag']:g}",
        (0.0, cfg["cfg"]): f"CFG {cfg['cfg']:g}",
        pair: f"CFG {pair[1]:g} + NAG, w = {pair[0]:g}",
    }
    return drawing.first_images(
        file,
        {label(p): row for p, row in rows.items()},
        _finding(numbers),
        f"{samplers(numbers)[0]}, {numbers['steps']} steps.",
    )


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers, and whether the paper agrees."""
    alone = numbers["least"]["NAG"]
    pair = numbers["pair_over_cfg_alone"][f"cfg{numbers['chosen']['cfg']:g}"]
    return (
        f"{_finding(numbers)}. The paper finds that NAG lowers FID alone and together with CFG: "
        f"here NAG alone has {show(alone)} of the unguided distance ({outcome(alone)}), the tuned "
        f"pair {show(pair)} of that of CFG ({outcome(pair)})."
    )


OPEN, FILLED = {"mfc": "white", "linestyle": ":"}, {"linestyle": "-"}


def figure(numbers: Mapping) -> Figure:
    """Above, what NAG alone does as w grows; below, the map with CFG, and recall over distance."""
    nag, cfg = axes(numbers)
    sampler, stochastic = samplers(numbers)
    sde = numbers["late_shift"]["sde"]
    with style.style():
        fig, panels = style.panels(6, 3)
        fig.set_size_inches(style.WIDTH * 1.3, 7.6)
        _along_w(panels[:3], numbers, nag)
        _map(panels[3], numbers, "ratio_to_unguided", "Fréchet ratio to no guidance")
        _map(panels[4], numbers, "recall", "recall")
        _trade(panels[5], numbers, {"nag": nag, "cfg": cfg})
        return style.frame(
            fig,
            _finding(numbers),
            f"{sampler}, {numbers['steps']} steps, N = {numbers['n']}; shift with {stochastic}: "
            f"{sde['n']} images, {sde['steps']} steps. Bars are 95 % CI over images of one "
            "network. Maps: * the change from no guidance is conclusive; bold (italic): NAG is "
            "better (worse) than the same CFG alone, each cell by itself.",
            [style.line(**style.arm_style(name)) for name in ("none", "nag", "cfg")],
        )


def _finding(numbers: Mapping) -> str:
    least = numbers["least"]["NAG"]
    worse = sorted(
        {p[1] for p, v in points(numbers["ratio_to_cfg_alone"]).items() if outcome(v) == "worse"}
    )
    harm = f"; added to CFG {listed(f'{s:g}' for s in worse)} it does harm" if worse else ""
    return (
        f"{mini(numbers['family'])}: NAG alone is best at w = {least['w_nag']:g} "
        f"({least['value']:.2f} of the unguided distance){harm}"
    )


def _along_w(panels: Sequence[Axes], numbers: Mapping, nag: Sequence[Point]) -> None:
    """Distance, precision and recall, and late shift over w."""
    quality = points(numbers["quality"])
    color = style.arm_style("nag")["color"]
    ws = np.array([p[0] for p in nag])
    sampler, stochastic = samplers(numbers)
    shifts = [points(numbers["late_shift"][kind]) for kind in ("ode", "sde")]
    lines = (
        (
            (("raw", [quality[p]["fd"] for p in nag]), 1),
            (("bias-corrected", [quality[p]["fd_inf"] for p in nag]), 1),
        ),
        (
            (("recall", [quality[p]["recall"] for p in nag]), 1),
            (("precision", [quality[p]["precision"] for p in nag]), 1),
        ),
        (
            ((sampler, [shifts[0][p] for p in nag]), 1000),
            ((stochastic, [shifts[1][p] for p in nag]), 1000),
        ),
    )
    names = ("Fréchet distance", "share of images", "late noise shift × 1000")
    for ax, two, name in zip(panels, lines, names, strict=True):
        handles = []
        for k, ((title, values), scale) in enumerate(two):
            look = {"color": color, "marker": "s"} | (OPEN if k else FILLED)
            aside = 0.015 * ws[-1] * (2 * k - 1)  # so that bars do not cover one another
            drawing.error_bars(ax, ws + aside, values, scale, **look)
            handles.append(style.line(label=title, **look))
        drawing.legend_above(ax, handles)
        ax.set(xlabel="NAG weight w", ylabel=name)
    drawing.line_at(panels[2], 0)


def _map(ax: Axes, numbers: Mapping, what: str, title: str) -> None:
    """A heat map over w and CFG scale, of the ratio to no guidance or of recall."""
    over_cfg = points(numbers["ratio_to_cfg_alone"])
    joint = {p[0] for p in over_cfg}
    if what == "recall":
        every = {p: q["recall"]["value"] for p, q in points(numbers["quality"]).items()}
        moved = points(numbers["recall_minus_unguided"])
        changed = {p: sign(v) != "inconclusive" for p, v in moved.items()}
    else:
        every = {p: v["value"] for p, v in points(numbers[what]).items()}
        changed = {p: outcome(v) != "inconclusive" for p, v in points(numbers[what]).items()}
    cells = {p: v for p, v in every.items() if p[0] in joint | {0.0}}
    if what == "recall":
        norm, colors = Normalize(min(cells.values()), max(cells.values()) + 1e-6), "viridis"
    else:
        edge = max(0.3, *(abs(np.log2(v)) for v in cells.values()))
        norm, colors = TwoSlopeNorm(1, 2**-edge, 2**edge), "PuOr_r"
    grid = pd.Series(cells).unstack(0)
    ax.imshow(grid.to_numpy(), norm=norm, cmap=colors, aspect="auto", origin="lower")
    fonts = {"better": {"weight": "bold"}, "worse": {"style": "italic"}, "inconclusive": {}}
    for (i, s), (j, w) in product(enumerate(grid.index), enumerate(grid.columns)):
        place = norm(grid.loc[s, w])
        dark = place < 0.5 if what == "recall" else abs(place - 0.5) > 0.3
        font = fonts[outcome(over_cfg[w, s])] if (w, s) in over_cfg else {}
        text = f"{grid.loc[s, w]:.2f}" + "*" * changed[w, s]
        color = "white" if dark else style.INK
        ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color, **font)
    ax.set_xticks(range(len(grid.columns)), [f"{w:g}" for w in grid.columns])
    ax.set_yticks(range(len(grid.index)), [f"{s:g}" for s in grid.index])
    ax.set(xlabel="NAG weight w", ylabel="CFG scale (1: off)", title=title)
    ax.grid(False)


def _trade(ax: Axes, numbers: Mapping, along: Mapping[str, Sequence[Point]]) -> None:
    """Recall against the bias-corrected distance along both axes."""
    quality = points(numbers["quality"])
    for arm, axis in along.items():
        look = style.arm_style(arm)
        x, y = ([quality[p][name]["value"] for p in axis] for name in ("fd_inf", "recall"))
        ax.plot(x, y, **look)
        for k, (p, *xy) in enumerate(zip(axis, x, y, strict=True)):
            left = arm == "nag" or k % 2 == 0  # alternating, so that close labels do not touch
            ax.annotate(
                f"{p[0] or p[1]:g}" if k else "",
                xy,
                (-7 if left else 7, 3 if arm == "nag" else -10),
                textcoords="offset points",
                fontsize=8,
                ha="right" if left else "left",
                color=look["color"],
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    none = quality[NONE]
    ax.plot(none["fd_inf"]["value"], none["recall"]["value"], **style.arm_style("none"), ms=9)
    ax.set(
        xlabel="Fréchet distance, bias-corrected",
        ylabel="recall",
        title="recall against distance",
    )
    ax.margins(0.2)
