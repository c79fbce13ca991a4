"""Study of notebook 21, from its numbers: table, figure and the answer to Q2."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product, takewhile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from companion.plots import study_figures as drawing
from companion.plots import style
from companion.studies.solvers import kind_of
from companion.studies.tell.words import FAMILIES, counts, listed, sampler_name
from nag.support.uncertainty import outcome, show, sign

Cell = tuple[str, str, int]
Plan = Mapping[str, Sequence[str]]  # {family: solvers}
KINDS = {"deterministic": ("first order", "higher order"), "stochastic": ("stochastic",)}
NEARER = {"below": "better", "above": "worse", "inconclusive": "inconclusive"}
TOLD = {"nearer to zero": "better", "farther from zero": "worse"}  # words of the first measurement


def cell(name: str) -> Cell:
    """The cell of a name such as "sit-dpmpp_2m@logsnr-20"."""
    family, solver, evaluations = name.split("-")
    return family, solver, int(evaluations)


def by_cell(found: Mapping[str, Mapping]) -> dict[Cell, Mapping]:
    """The same by cell, the evaluations of each solver ascending."""
    return {cell(name): found[name] for name in sorted(found, key=cell)}


def solvers_of(table: pd.DataFrame) -> Plan:
    """{family: its solvers} in the order of the table, which is that of the plan."""
    pairs = table[["family", "solver"]].drop_duplicates()
    return {f: pairs.solver[pairs.family == f].tolist() for f in pairs.family.unique()}


def widened(ratio: Mapping, pairs: int) -> dict[str, float]:
    """A ratio's interval for so many that are looked at together (Bonferroni)."""
    wider = norm.ppf(1 - 0.025 / pairs) / norm.ppf(0.975)
    ends = {end: (ratio[end] / ratio["value"]) ** wider for end in ("low", "high")}
    return {"value": ratio["value"]} | {end: ratio["value"] * v for end, v in ends.items()}


def nearer(found: Mapping) -> str:
    """Whether NAG's shift is nearer to zero than the unguided one at equal steps."""
    if "nearer" in found:
        return NEARER[sign(found["nearer"])]
    return TOLD.get(found["verdict"], "inconclusive")


def table_of(table: pd.DataFrame) -> pd.DataFrame:
    """Every arm with names as in the text, and its ratio to no guidance at equal evaluations."""
    found = table.assign(
        family=table.family.map(FAMILIES),
        solver=table.solver.map(sampler_name),
        guidance=table.guidance.map({"none": "no guidance", "nag": "NAG"}),
    )
    ratio = [
        show({end: row[f"ratio_{end}"] for end in ("value", "low", "high")})
        if row.guidance == "NAG"
        else ""
        for _, row in found.iterrows()
    ]
    columns = ["family", "solver", "guidance", "w_nag", "steps", "nfe"]
    return found[[*columns, "fd", "fd_inf", "precision", "recall"]].round(3).assign(ratio=ratio)


# ---- the answer


def answers(numbers: Mapping, table: pd.DataFrame, names: Mapping[str, str]) -> dict[str, dict]:
    """The answer to question Q2 in sentences and in brief; `names` are those of the networks."""
    plan = solvers_of(table)
    brief = _in_brief(numbers, plan, names)
    parts = (
        [brief],
        _by_kind(numbers, plan),
        _catching_up(numbers, plan),
        _longer(numbers, plan),
        _best(numbers, plan),
        _order(numbers),
        _shift(numbers, plan),
        [f"N = {numbers['n']}, one network per family, 95 % CI over images."],
    )
    return {
        "Q2": {
            "sentence": " ".join(sentence for part in parts for sentence in part),
            "brief": brief,
            "key": "equal_evaluations",
            "figure": "figures/solvers.png",
        }
    }


def _in_brief(numbers: Mapping, plan: Plan, names: Mapping[str, str]) -> str:
    equal = by_cell(numbers["equal_evaluations"])
    budgets = sorted({c[2] for c in equal})

    def course(family: str, solver: str) -> str:
        found = [v for c, v in equal.items() if c[:2] == (family, solver)]
        shown = [
            f"({v['value']:.2f})" if outcome(v) == "inconclusive" else f"{v['value']:.2f}"
            for v in found
        ]
        return f"{sampler_name(solver)} {', '.join(shown)}"

    families = [
        f"{names[family]}: {'; '.join(course(family, solver) for solver in solvers)}."
        for family, solvers in plan.items()
    ]
    at_end = len(numbers["w_at_end_of_list"])
    return " ".join(
        (
            "Fréchet ratio of NAG to no guidance at equal evaluations per image,",
            f"{listed(budgets)} (in brackets: inconclusive, each by itself).",
            *families,
            f"In all, NAG is {counts([outcome(v) for v in equal.values()])}",
            f"(w at an end of its list in {at_end} of {len(numbers['w_nag'])}).",
        )
    )


def _groups(cells: Iterable[Cell], plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """The cells of every family and kind of solver, "SiT, deterministic solvers" and so on."""
    cells = list(cells)
    for family, (kind, orders) in product(plan, KINDS.items()):
        mine = [c for c in cells if c[0] == family and kind_of(c[1]) in orders]
        if mine:
            yield f"{FAMILIES[family]}, {kind} solvers", mine


def _by_kind(numbers: Mapping, plan: Plan) -> Iterator[str]:
    equal = by_cell(numbers["equal_evaluations"])
    for group, cells in _groups(equal, plan):
        alone = counts([outcome(equal[c]) for c in cells])
        together = counts([outcome(widened(equal[c], len(equal))) for c in cells])
        yield (
            f"{group}: NAG is {alone}; with intervals widened for all {len(equal)} pairs at once, "
            f"{together}."
        )


def _by_family(plan: Plan, shown: Callable[[str, str], str]) -> str:
    """What is shown of the solvers, by family, without those of which nothing is."""
    families = {}
    for family, solvers in plan.items():
        found = [text for solver in solvers if (text := shown(family, solver))]
        if found:
            families[family] = f"{FAMILIES[family]} {', '.join(found)}"
    return "; ".join(families.values())


def _catching_up(numbers: Mapping, plan: Plan) -> Iterator[str]:
    later = by_cell(numbers["nag_at_catch_over_unguided"])
    catch = min((c[2] for c in later), default=0)

    def ahead(family: str, solver: str) -> str:
        ratios = [(c[2], v) for c, v in later.items() if c[:2] == (family, solver)]
        better = [n for n, _ in takewhile(lambda pair: outcome(pair[1]) == "better", ratios)]
        return f"{sampler_name(solver)} {better[-1]}" if better else ""

    if any(c[2] > catch for c in later):
        yield (
            f"NAG at {catch} evaluations has a smaller distance than the same solver without "
            "guidance at as many and more, up to this number of evaluations: "
            f"{_by_family(plan, ahead) or 'nowhere'}."
        )


def _longer(numbers: Mapping, plan: Plan) -> Iterator[str]:
    courses = numbers["unguided_most_over_fewest"]

    def rise(family: str, solver: str) -> str:
        found = courses.get(f"{family}-{solver}")
        if found is None or outcome(found["over"]) != "worse":
            return ""
        return f"{sampler_name(solver)} ({found['from']:.1f} to {found['to']:.1f})"

    if rising := _by_family(plan, rise):
        budgets = sorted({cell(name)[2] for name in numbers["equal_evaluations"]})
        yield (
            f"From {budgets[0]} to {budgets[-1]} evaluations the unguided distance itself rises: "
            f"{rising}; there, ratios at many evaluations flatter NAG."
        )


def _best(numbers: Mapping, plan: Plan) -> Iterator[str]:
    best = numbers["best_nag_over_best_unguided"]
    if best:
        shown = [f"{FAMILIES[family]} {show(best[family])}" for family in plan if family in best]
        yield (
            "Whatever the cost, the best deterministic arm with NAG over the best without, both "
            f"picked on these seeds: {listed(shown)}."
        )


def _order(numbers: Mapping) -> Iterator[str]:
    order = numbers["higher_order_over_first_unguided"].values()
    simple = numbers["first_order_nag_over_higher_order"].values()
    if order:
        yield (
            "Without guidance, solvers of higher order are, compared with the one of first order, "
            f"{counts([outcome(v) for v in order])}. The one of first order with NAG is, compared "
            f"with them without it, {counts([outcome(v) for v in simple])}."
        )


def _shift(numbers: Mapping, plan: Plan) -> Iterator[str]:
    found = {
        cell(name.removesuffix("-nag")): v
        for name, v in numbers["shift_at_equal_steps"].items()
        if name.endswith("-nag")
    }
    words = {"better": "nearer to zero", "worse": "farther from zero"}
    parts = []
    for group, cells in _groups(found, plan):
        mine = [nearer(found[c]) for c in cells]
        shown = [f"{words.get(one, one)} in {mine.count(one)}" for one in sorted(set(mine))]
        parts.append(f"{group}: {', '.join(shown)} of {len(mine)}")
    if parts:
        yield (
            f"NAG's shift at t = {numbers['shift_at']:g} compared with the unguided one at equal "
            f"steps: {'; '.join(parts)}."
        )


# ---- figures


def samples(file: Path, numbers: Mapping, family: str, name: str) -> Figure:
    """First images of a family's best deterministic arms without NAG and with it."""
    best = numbers["best_nag_over_best_unguided"][family]
    rows = {}
    for arm, label in (("none", "no guidance"), ("nag", "NAG")):
        _, solver, evaluations = cell(best[arm])
        rows[f"{best[arm]}-{arm}"] = f"{label}, {sampler_name(solver)},\n{evaluations} evaluations"
    title = f"{name}: the best arm with NAG has {show(best)} of the best unguided one's distance"
    return drawing.first_images(file, rows, title, "The best deterministic arms.")


def title(numbers: Mapping) -> str:
    """The finding of the figure: where NAG is better at equal evaluations."""
    equal = [outcome(v) for v in numbers["equal_evaluations"].values()]
    return (
        f"At equal evaluations NAG is better in {equal.count('better')} of {len(equal)} pairs of "
        "solver and cost"
    )


def figure(numbers: Mapping, table: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """For every solver: ratio and distances over evaluations, and shifts over steps."""
    plan = solvers_of(table)
    with style.style():
        fig, axes = plt.subplots(
            3,
            len(plan),
            figsize=(style.WIDTH * 1.25, 8.4),
            squeeze=False,
            sharey="row",
            width_ratios=[len(solvers) for solvers in plan.values()],
        )
        for column, (family, solvers) in enumerate(plan.items()):
            top, middle, bottom = axes[:, column]
            _ratios(top, numbers, family, solvers)
            _distances(middle, numbers, table, family, solvers)
            _shifts(bottom, numbers, family, solvers)
            top.set_title(names[family])
        drawing.log_axis(axes[0, 0])
        drawing.log_axis(axes[1, 0])
        axes[0, 0].set_ylabel("Fréchet ratio\nat equal evaluations")
        axes[1, 0].set_ylabel("Fréchet distance,\nbias-corrected")
        axes[2, 0].set_ylabel(f"shift at t = {numbers['shift_at']:g}, × 1000,\nat equal steps")
        handles = [style.line(**style.arm_style(arm)) for arm in ("none", "nag")]
        return style.frame(
            fig,
            title(numbers),
            "Numbers under the axes: evaluations per image (equal evaluations: NAG takes half the "
            "steps) and steps (equal steps: NAG costs twice as much). w is chosen for each solver "
            f"and cost on other seeds. Bars: 95 % CI over {numbers['n']} images of one network "
            f"({numbers['trajectories']} for the shift); open: inconclusive.",
            [*handles, drawing.ring_handle()],
        )


def _places(
    solvers: Sequence[str], counts_of: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Places on the axis of every solver's points, with a gap between solvers."""
    found, start = {}, 0.0
    for solver in solvers:
        found[solver] = start + np.arange(len(counts_of[solver]))
        start += len(counts_of[solver]) + 0.8
    return found


def _name_groups(ax: Axes, places: Mapping[str, np.ndarray], counts_of: Mapping) -> None:
    """Evaluations or steps as ticks, and the solver's name under its ticks."""
    used = [solver for solver in places if len(places[solver])]
    ticks = np.concatenate([places[solver] for solver in used])
    ax.set_xticks(ticks, [str(n) for solver in used for n in counts_of[solver]], fontsize=7.5)
    ax.set_xlim(ticks[0] - 0.7, ticks[-1] + 0.7)
    ax.grid(visible=False, axis="x")
    for solver in used:
        centre = places[solver].mean()
        ax.annotate(
            sampler_name(solver),
            (centre, 0),
            (0, -17),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8.5,
        )


def _ratios(ax: Axes, numbers: Mapping, family: str, solvers: Sequence[str]) -> None:
    equal = by_cell(numbers["equal_evaluations"])
    at_end = {cell(name) for name in numbers["w_at_end_of_list"]}
    budgets = {s: [c[2] for c in equal if c[:2] == (family, s)] for s in solvers}
    places = _places(solvers, budgets)
    for solver, x in places.items():
        cells = [(family, solver, n) for n in budgets[solver]]
        drawing.ratio_points(ax, x, [equal[c] for c in cells], style.arm_style("nag")["color"])
        marked = [k for k, c in enumerate(cells) if c in at_end]
        drawing.ring(ax, x[marked], [equal[cells[k]]["value"] for k in marked])
    drawing.line_at(ax, 1)
    _name_groups(ax, places, budgets)


def _distances(
    ax: Axes, numbers: Mapping, table: pd.DataFrame, family: str, solvers: Sequence[str]
) -> None:
    equal = by_cell(numbers["equal_evaluations"])
    budgets = {s: [c[2] for c in equal if c[:2] == (family, s)] for s in solvers}
    places = _places(solvers, budgets)
    for solver, x in places.items():
        for arm, aside in (("none", -0.1), ("nag", 0.1)):
            mine = table[
                (table.family == family) & (table.solver == solver) & (table.guidance == arm)
            ].sort_values("nfe")
            values = [
                {"value": row.fd_inf, "low": row.fd_inf_low, "high": row.fd_inf_high}
                for row in mine.itertuples()
            ]
            drawing.error_bars(ax, x + aside, values, **style.arm_style(arm))
    _name_groups(ax, places, budgets)


def _shifts(ax: Axes, numbers: Mapping, family: str, solvers: Sequence[str]) -> None:
    of = numbers["shift_at_equal_steps"]
    found = {
        arm: by_cell({n.removesuffix(f"-{arm}"): v for n, v in of.items() if n.endswith(arm)})
        for arm in ("none", "nag")
    }
    cells = {s: [c for c in found["nag"] if c[:2] == (family, s)] for s in solvers}
    steps = {s: [found["nag"][c]["steps"] for c in cells[s]] for s in solvers}
    places = _places([s for s in solvers if steps[s]], steps)
    for solver, x in places.items():
        for arm, aside in (("none", -0.1), ("nag", 0.1)):
            values = [found[arm][c] for c in cells[solver]]
            drawing.error_bars(ax, x + aside, values, 1000, **style.arm_style(arm))
    drawing.line_at(ax, 0)
    ax.set_yscale("symlog", linthresh=3)
    marks = [-10, -3, -1, 0, 1, 3, 10, 30, 100]
    low, high = ax.get_ylim()
    ax.set_yticks([m for m in marks if low <= m <= high])
    ax.set_yticklabels([f"{m:g}" for m in marks if low <= m <= high])
    ax.minorticks_off()
    if places:
        _name_groups(ax, places, steps)
