"""Study of notebook 29, from its numbers: table, figure and the answer to Q10."""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots import study_figures as drawing
from companion.plots import style
from companion.studies.tell.words import sampler_name
from companion.studies.when_to_guide import (
    BY_ESTIMATOR,
    EVERYWHERE,
    LARGEST,
    NONE,
    ScheduledArm,
    kinds,
)
from nag.support.uncertainty import outcome, show

UNSETTLED, BASE_UNSETTLED = "weight not settled", "weight everywhere not settled"


def outcomes(numbers: Mapping) -> dict[str, str]:
    """What every guided arm is, compared with NAG everywhere at equal cost.

    An arm whose weight is at an end of its list is not called worse; if that of NAG everywhere is,
    no arm is called better."""
    at_end, found = numbers["w_at_end_of_list"], {}
    for name, ratio in numbers["over_everywhere"].items():
        kind = outcome(ratio)
        if name in at_end and kind != "better":
            kind = UNSETTLED
        elif EVERYWHERE in at_end and kind == "better":
            kind = BASE_UNSETTLED
        found[name] = kind
    return {name: kind for name, kind in found.items() if name != NONE}


def table_of(numbers: Mapping, table: pd.DataFrame) -> pd.DataFrame:
    """Every arm: weight, cost, quality, ratio to NAG everywhere and what it says, late shift."""
    over, kind = numbers["over_everywhere"], outcomes(numbers)
    columns = ["arm", "w", "mean_w", "steps", "nfe", "fd", "fd_inf", "precision", "recall"]
    return (
        table[columns]
        .round(3)
        .assign(
            ratio=[show(over[arm]) if arm in over else "" for arm in table.arm],
            outcome=[kind.get(arm, "") for arm in table.arm],
            late_shift=[show(numbers["shift_late"][arm], "+.4f") for arm in table.arm],
        )
    )


def phrase(arm: str) -> str:
    """An arm as the subject of a sentence."""
    if arm == BY_ESTIMATOR:
        return "the estimator's own schedule"
    return f"NAG for {arm}" if arm.startswith("t ") else f"NAG {arm}"


# ---- the answer


def answers(numbers: Mapping, table: pd.DataFrame, family: str, name: str) -> dict[str, dict]:
    """The answer to question Q10 in sentences and in brief; `name` is that of the network."""
    return {
        "Q10": {
            "sentence": _in_full(numbers, table, name),
            "brief": _in_brief(numbers, name),
            "key": "over_everywhere",
            "figure": f"figures/when-{family}.png",
        }
    }


def _on_fresh_seeds(numbers: Mapping) -> tuple[str, str]:
    """The best arm's ratios to NAG everywhere and to no guidance, with what they say."""
    best = numbers["best"]
    none = best["over none"]
    return (
        f"{show(best['over everywhere'])} ({_best_is(numbers)})",
        f"{show(none)} ({outcome(none)})",
    )


def _best_is(numbers: Mapping) -> str:
    """What the best arm is on fresh seeds; never better than a weight that is not settled."""
    found = outcome(numbers["best"]["over everywhere"])
    unsettled = EVERYWHERE in numbers["w_at_end_of_list"]
    return BASE_UNSETTLED if found == "better" and unsettled else found


def _in_full(numbers: Mapping, table: pd.DataFrame, name: str) -> str:
    kind, over, best = outcomes(numbers), numbers["over_everywhere"], numbers["best"]["arm"]
    arms = [arm for arm in table.arm if arm in kind]
    groups = {
        one: ", ".join(f"{arm} {show(over[arm])}" for arm in arms if kind[arm] == one)
        for one in ("better", BASE_UNSETTLED, "inconclusive", UNSETTLED, "worse")
    }
    fresh_everywhere, fresh_none = _on_fresh_seeds(numbers)
    recall = {
        row.arm: show({"value": row.recall, "low": row.recall_low, "high": row.recall_high})
        for row in table.itertuples()
    }
    return " ".join(
        (
            f"{name}, at about {2 * numbers['steps']} evaluations: NAG everywhere at w =",
            f"{numbers['w'][EVERYWHERE]:g} has {show(numbers['everywhere_over_none'])} of the",
            "distance of no guidance with twice the steps. Ratios to NAG everywhere, each by",
            f"itself: {'; '.join(f'{one}: {arms}' for one, arms in groups.items() if arms)}.",
            f"On fresh seeds {phrase(best)}, picked on the others, has {fresh_everywhere} of the",
            f"distance of NAG everywhere and {fresh_none} of the unguided one; recall",
            f"{recall[best]}, everywhere {recall[EVERYWHERE]}.",
            *_of_the_estimator(numbers, arms),
            *_of_shifts(numbers),
            *_of_ends(numbers),
            f"N = {numbers['n']}, one network, 95 % CI over images.",
        )
    )


def _of_the_estimator(numbers: Mapping, arms: list[str]) -> list[str]:
    if BY_ESTIMATOR not in arms:
        return ["The estimator's schedule is no guidance at all."]
    found = []
    if numbers["best"]["arm"] != BY_ESTIMATOR:
        ratio = numbers["fresh"][BY_ESTIMATOR]["over everywhere"]
        found.append(f"The estimator's own schedule has {show(ratio)} on fresh seeds.")
    missed = numbers["calibrated"]["not nulled"]
    if missed["steps"]:
        found.append(
            f"In {missed['steps']} of the {missed['of']} guided steps of that schedule no w up to "
            f"{LARGEST:g} takes the shift to zero."
        )
    return found


def _of_shifts(numbers: Mapping) -> list[str]:
    arms = dict.fromkeys([*numbers["fresh"], EVERYWHERE, NONE])
    shown = [f"{arm} {show(numbers['shift_late'][arm], '+.4f')}" for arm in arms]
    return [
        "The late noise shift, by the estimator that made the schedule and at each arm's own "
        f"steps: {', '.join(shown)}."
    ]


def _of_ends(numbers: Mapping) -> list[str]:
    at_end = numbers["w_at_end_of_list"]
    return [f"w is at an end of its list for: {', '.join(at_end)}."] if at_end else []


def _in_brief(numbers: Mapping, name: str) -> str:
    best, tried = numbers["best"], len(outcomes(numbers))
    fresh_everywhere, fresh_none = _on_fresh_seeds(numbers)
    start = (
        f"{name}, at about {2 * numbers['steps']} evaluations, {tried} intervals and schedules: "
    )
    if _best_is(numbers) == "better":
        start += f"{phrase(best['arm'])} is better than one weight everywhere, with"
    else:
        start += (
            "none is shown to be better than one weight everywhere; the best on the seeds that "
            f"picked it, {phrase(best['arm'])}, has"
        )
    at_end = "; the weight everywhere is at an end of its list"
    return (
        f"{start} {fresh_everywhere} of its distance and {fresh_none} of the unguided one on fresh "
        f"seeds{at_end if EVERYWHERE in numbers['w_at_end_of_list'] else ''}; one network."
    )


# ---- figures


def samples(file: Path, numbers: Mapping, name: str) -> Figure:
    """First images of no guidance, of NAG everywhere, and of the arm that is best."""
    best = numbers["best"]["arm"]
    return drawing.first_images(
        file,
        {
            NONE: NONE,
            EVERYWHERE: "NAG everywhere",
            best: phrase(best).replace(" towards", "\ntowards"),
        },
        title(numbers, name),
        f"{sampler_name(numbers['sampler'])}, about {2 * numbers['steps']} evaluations.",
    )


def schedules(numbers: Mapping) -> dict[str, Callable[[float], float]]:
    """The weight w(t) of every arm, no guidance included."""
    spans = [arm.split()[2::2] for arm in numbers["w"] if arm.startswith("t from")]
    made = kinds([[float(low), float(high)] for low, high in spans])
    arms = {arm: made[arm](w) for arm, w in numbers["w"].items()}
    found = numbers["calibrated"]
    arms[BY_ESTIMATOR] = ScheduledArm(tuple(found["times"]), tuple(found["weights"]))
    return {NONE: lambda t: 0.0} | {arm: made.terms()[0].at for arm, made in arms.items()}


def title(numbers: Mapping, name: str) -> str:
    """The finding of the figures: what the best arm has of the distance of NAG everywhere."""
    best, ratio = numbers["best"]["arm"], numbers["best"]["over everywhere"]
    return f"{name}: {phrase(best)}, {ratio['value']:.2f} of NAG everywhere ({_best_is(numbers)})"


def figure(numbers: Mapping, table: pd.DataFrame, name: str) -> Figure:
    """Left, every arm's ratio to NAG everywhere; right, in the same row, its weight over t."""
    steps = dict(zip(table.arm, table.steps, strict=True))
    over, fresh = numbers["over_everywhere"], numbers["fresh"]
    rows = {arm: over[arm] for arm in table.arm if arm in over}
    again = {f"{arm}, fresh seeds": fresh[arm]["over everywhere"] for arm in rows if arm in fresh}
    arm_of = {row: row.removesuffix(", fresh seeds") for row in rows | again}
    colors = {row: style.arm_style("nag")["color"] for row in arm_of}
    colors[NONE] = style.arm_style("none")["color"]
    labels = {
        row: f"{row.replace(' towards the data', '')} ({steps[arm]} steps)"
        for row, arm in arm_of.items()
    }
    with style.style():
        fig, (left, right) = plt.subplots(
            1,
            2,
            figsize=(style.WIDTH * 1.15, 1.9 + 0.36 * len(arm_of)),
            width_ratios=[1.5, 1],
        )
        drawing.rows_of_ratios(left, rows | again, colors, numbers["w_at_end_of_list"])
        left.set_yticks(range(len(arm_of)), [labels[row] for row in arm_of])
        left.set(xlabel="Fréchet ratio to NAG everywhere (left: better)")
        _weights(right, numbers, arm_of, colors)
        legends = [[drawing.ring_handle()]] if numbers["w_at_end_of_list"] else []
        return style.frame(
            fig,
            title(numbers, name),
            f"{sampler_name(numbers['sampler'])}, about {2 * numbers['steps']} evaluations per "
            f"image for every arm, N = {numbers['n']}; w chosen on {numbers['tuning']['n']} images "
            "of other seeds. Bars: 95 % CI over images of one network; open: inconclusive. The "
            "best on these seeds, and the estimator's schedule, are sampled again on fresh ones.",
            *legends,
        )


def _weights(ax: Axes, numbers: Mapping, arm_of: Mapping[str, str], colors: Mapping) -> None:
    """w(t) of every arm as an area in its row, all on one scale; noise is on the left."""
    of, ts = schedules(numbers), np.linspace(1, 0, 401)
    places = {row: place for place, (row, arm) in enumerate(arm_of.items()) if row == arm}
    weights = {row: np.array([of[row](t) for t in ts]) for row in places}
    top = max(w.max() for w in weights.values())
    for row, w in weights.items():
        base = places[row] + 0.35
        ax.fill_between(ts, base - 0.75 * w / top, base, color=colors[row], alpha=0.6, linewidth=0)
        ax.axhline(base, color=style.DIM, linewidth=0.6)
        label = f"w ≤ {w.max():.3g}" if w.max() else "off"
        ax.text(-0.03, base, label, fontsize=8, va="bottom", ha="left")
    ax.set(xlabel="t, from noise to data", xlim=(1.0, 0.0), yticks=[], title="w over t")
    ax.set_ylim(len(arm_of) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
