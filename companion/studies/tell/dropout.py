"""What the study of dropout found (claim C7): table, figure and sentences from its numbers."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.pyplot import figure as new_figure
from matplotlib.ticker import MaxNLocator

from companion.plots.study_figures import error_bars, line_at, ring, ring_handle
from companion.plots.style import ARMS, DIM, PALE, WIDTH, frame, line, style
from companion.studies.tell.words import listed, sampler_name
from nag.support.uncertainty import by_factor, outcome, over_trainings, show

ROUTES = {
    "null": "the null vector alone",
    "null + final layer": "the null vector and a last layer",
    "all": "the whole network",  # the paper's way
}
WITH_LEVEL: dict[str, Any] = {"color": "#7a2b8f", "marker": "o", "label": "noise level given"}
WITHOUT_LEVEL: dict[str, Any] = {"color": "#009e73", "marker": "s", "label": "noise level dropped"}
BLUE = ARMS["nag"]["color"]
Rates = Mapping[str, Sequence[float]]  # learning rates tried, by route


def percent(share: float) -> str:
    """0.007 as "0.7 %"."""
    return f"{100 * share:g} %"


def added(found: Mapping) -> str:
    """A way of adding the null condition, and after how much training."""
    return f"{ROUTES[found['route']]}, {percent(found['share'])}"


def ways(numbers: Mapping) -> dict[str, Mapping]:
    """What every way of adding the null condition gives, by its name in the numbers, the paper's
    last.
    """
    places = list(ROUTES)
    arms = numbers["afterthought"]["arms"].items()
    return dict(sorted(arms, key=lambda x: (places.index(x[1]["route"]), x[1]["share"])))


def at_end(numbers: Mapping) -> list[str]:
    """What has its best weight at an end of its list, in words."""
    rates, arms = numbers["dropout"]["rates"], numbers["afterthought"]["arms"]
    return [
        f"{percent(rates[what])} dropout" if what in rates else added(arms[what])
        for what in numbers["at_end_of_list"]
    ]


def base_of(numbers: Mapping) -> str:
    """The network of the usual rate: the one that others stand beside."""
    found = numbers["dropout"]
    return next(name for name in found["rates"] if name not in found["beside_base"])


def least(numbers: Mapping) -> list[Mapping]:
    """What the shortest further training gives, by every route."""
    arms = ways(numbers).values()
    share = min(found["share"] for found in arms)
    return [found for found in arms if found["share"] == share]


def joined(numbers: Mapping, ratio: Mapping, factor: float = 1.0) -> Mapping:
    """A ratio of one training whose interval also has the spread between trainings, if several were
    made; `factor` times that spread.
    """
    found = numbers["dropout"]
    if found["trainings"] == 1:
        return ratio
    return over_trainings(ratio, factor * found["spread_between_trainings"], found["trainings"])


def table(numbers: Mapping) -> pd.DataFrame:
    """NAG's weight and ratios at every rate of dropout and by every way of adding it."""
    found = numbers["dropout"]
    rows = [
        {
            "network": f"{percent(rate)} dropout from the start",
            "w": found["w"][name],
            "NAG / same network unguided": show(found["gain"][name]),
            "NAG / NAG at the usual rate": show(found["nag_over_base"][name]),
        }
        for name, rate in found["rates"].items()
    ]
    rows += [
        {
            "network": f"no dropout, then {added(one)}",
            "w": one["w"],
            "NAG / same network unguided": show(one["gain"]),
            "NAG / untouched network unguided": show(one["over untouched"]),
            "NAG / NAG at the usual rate": show(one["over base's NAG"]),
        }
        for one in ways(numbers).values()
    ]
    return pd.DataFrame(rows).set_index("network").fillna("–")


def starts(numbers: Mapping) -> pd.DataFrame:
    """Error without the noise level, less the untouched network's with it, by where the null vector
    started.
    """
    found, smallest = (numbers["afterthought"][what] for what in ("starts", "smallest"))
    rows = {
        ROUTES.get(stage, stage): {start: show(x, ".4f") for start, x in found[stage].items()}
        | {"smallest": smallest[stage]}
        for stage in ["before training", *ROUTES]
    }
    return pd.DataFrame(rows).T.rename_axis("trained further")


# ---- figure


def _errors(ax: Axes, numbers: Mapping) -> None:
    """How the rate changes the error of each branch."""
    rates, base = numbers["dropout"]["rates"], base_of(numbers)
    x = 100 * np.array(list(rates.values()))
    for look, what in ((WITH_LEVEL, "with level"), (WITHOUT_LEVEL, "without level")):
        found = [numbers["held_out"][name][f"{what}, less base"] for name in rates]
        ax.plot(x, [f["value"] for f in found], color=look["color"], lw=1)
        error_bars(ax, x, found, linestyle="none", **look)
    line_at(ax, 0)
    ax.set(
        xlabel="noise-condition dropout (%)",
        ylabel=f"held-out error less\nthat at {percent(rates[base])}",
        title="what the rate does to the error",
    )
    ax.set_xticks(x)
    ax.legend(handles=[line(linestyle="none", **look) for look in (WITH_LEVEL, WITHOUT_LEVEL)])


def _gains(ax: Axes, numbers: Mapping) -> None:
    """NAG's ratio at every rate; the base's other trainings as open points to the right of it."""
    found, base = numbers["dropout"], base_of(numbers)
    mean, usual = found["gain_of_base"], 100 * found["rates"][base]
    if found["trainings"] > 1:
        ax.axhspan(mean["low"], mean["high"], color=PALE, alpha=0.45, lw=0, zorder=0)
    x = 100 * np.array(list(found["rates"].values()))
    error_bars(
        ax, x, [found["gain"][n] for n in found["rates"]], linestyle="none", color=BLUE, marker="s"
    )
    repeats = [name for name in found["gain"] if name not in found["rates"]]
    step = 0.06 * max(np.ptp(x), 1)
    for k, name in enumerate(repeats, 1):
        error_bars(
            ax, [usual + k * step], [found["gain"][name]], color=BLUE, marker="s", mfc="white"
        )
    marked = [100 * found["rates"][n] for n in found["rates"] if n in numbers["at_end_of_list"]]
    ring(
        ax,
        marked,
        [found["gain"][n]["value"] for n in found["rates"] if n in numbers["at_end_of_list"]],
    )
    ax.set_xticks(x)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set(
        xlabel="noise-condition dropout (%)",
        ylabel="distance with NAG /\nsame network unguided",
        title="what it does to NAG's gain",
    )


def _afterwards(ax: Axes, numbers: Mapping) -> None:
    """NAG's ratio by every way of adding the null condition, beside dropout from the start."""
    arms, usual = ways(numbers), numbers["dropout"]["gain_of_base"]
    ax.axvspan(usual["low"], usual["high"], color=PALE, alpha=0.45, lw=0, zorder=0)
    looks = (("gain", -0.15, BLUE, "s"), ("over untouched", 0.15, DIM, "D"))
    for place, (label, found) in enumerate(arms.items()):
        for what, offset, color, marker in looks:
            x, y = joined(numbers, found[what]), place + offset
            face = "white" if outcome(x) == "inconclusive" else color
            ax.plot([x["low"], x["high"]], [y, y], color=color, lw=1.2)
            ax.plot(x["value"], y, marker, color=color, mfc=face)
            if what == "gain" and label in numbers["at_end_of_list"]:
                ring(ax, [x["value"]], [y])
    line_at(ax, 1, vertical=True)
    ax.set_yticks(
        range(len(arms)),
        [
            textwrap.fill(added(found).replace(" %", "\N{NO-BREAK SPACE}%"), 22)
            for found in arms.values()
        ],
    )
    ax.set(
        ylim=(len(arms) - 0.5, -0.5),
        xlabel="Fréchet distance with NAG / … (below 1 is better)",
        title="no dropout in training, what is trained further, and for how long",
    )
    ax.grid(axis="y", visible=False)


@style()
def figure(numbers: Mapping) -> Figure:
    """Errors and NAG's gain by the rate of dropout; NAG's gain where it was added afterwards."""
    found, base = numbers["dropout"], base_of(numbers)
    fig = new_figure(figsize=(WIDTH, 6.6))
    grid = fig.add_gridspec(2, 2, height_ratios=(1, 0.95))
    _errors(fig.add_subplot(grid[0, 0]), numbers)
    _gains(fig.add_subplot(grid[0, 1]), numbers)
    _afterwards(fig.add_subplot(grid[1, :]), numbers)
    several = found["trainings"] > 1
    note = (
        f"SiT on Fashion-MNIST, {sampler_name(numbers['sampler'])}, {numbers['steps']} steps, N = "
        f"{numbers['n']}; weights chosen on other seeds. Bars: 95 % CI over images, below also "
        "over trainings"
        + f". Band: {percent(found['rates'][base])} dropout from the start, mean of "
        f"{found['trainings']} trainings, {found['trainings'] - 1} of them open above"
        * several
        + ". Below, open: the interval contains 1. The paper trains the whole network."
    )
    ratios = [found["gain"][name]["value"] for name in found["rates"]]
    later = [one["gain"]["value"] for one in least(numbers)]
    title = (
        f"NAG's ratio is {min(ratios):.2f} to {max(ratios):.2f} with dropout in training, "
        f"{min(later):.2f} to {max(later):.2f} added later"
    )
    handles = [
        line(color=BLUE, marker="s", label="over the same network unguided"),
        line(color=DIM, marker="D", label="over the untouched network"),
        ring_handle(),
    ]
    return frame(fig, title, note, handles)


def shown(numbers: Mapping) -> dict[str, str]:
    """The arms whose first images are worth a look, in words: the usual rate without and with NAG,
    and every way of adding it.
    """
    base, labels = base_of(numbers), ways(numbers)
    rate = percent(numbers["dropout"]["rates"][base])
    found = {f"{base} none": f"{rate} dropout, unguided", f"{base} NAG": f"{rate} dropout, NAG"}
    return found | {f"{label} NAG": textwrap.fill(added(x), 22) for label, x in labels.items()}


# ---- sentences


def half_of_gain(numbers: Mapping) -> Mapping[str, float]:
    """The whole network's ratio over the square root of the base's: surely below one if it has more
    than half of the gain (of the logarithm) that dropout from the start gives.
    """
    found, gain = numbers["dropout"], least(numbers)[-1]["gain"]
    base, own = found["gain_of_base"]["value"], found["gain"][base_of(numbers)]
    halves = np.log(gain["high"] / gain["value"]), 0.5 * np.log(own["high"] / own["value"])
    ratio = by_factor(gain["value"] / base**0.5, float(np.hypot(*halves)))
    return joined(numbers, ratio, (1 + 0.25 / found["trainings"]) ** 0.5)


def verdict(numbers: Mapping) -> str:
    """Of C7 in small. "reproduced": after the shortest further training of the whole network NAG is
    surely better than that network and than the untouched one unguided, with surely half of the
    gain of dropout from the start; "contradicted": surely worse than one of the two.
    """
    whole, base = least(numbers)[-1], numbers["dropout"]["gain_of_base"]["value"]
    both = {outcome(joined(numbers, whole[what])) for what in ("gain", "over untouched")}
    if "worse" in both:
        return "contradicted"
    enough = base >= 1 or outcome(half_of_gain(numbers)) == "better"
    return "reproduced" if both == {"better"} and enough else "inconclusive"


def _at_an_end(what: str, names: Sequence[str]) -> str:
    return f" At an end of its {what}: {listed(names)}." if names else ""


def rates_sentence(numbers: Mapping) -> str:
    """NAG's gain at every rate, and each rate beside the usual one."""
    found, base = numbers["dropout"], base_of(numbers)
    rates, spread = found["rates"], found["spread_between_trainings"]
    each = ", ".join(
        f"{show(found['gain'][n])} at {percent(rate)} (w = {found['w'][n]:g})"
        for n, rate in rates.items()
    )
    between = (
        "one training only"
        if spread is None
        else f"standard deviation of the log ratio over {found['trainings']} trainings {spread:.3f}"
    )
    beside = "; ".join(
        f"{percent(rates[n])} {show(x['distance with NAG'])} ({outcome(x['distance with NAG'])}; "
        f"its gain {outcome(x['gain'])})"
        for n, x in found["beside_base"].items()
    )
    ends = [name for name in numbers["at_end_of_list"] if name in rates]
    return (
        f"By the rate of noise-condition dropout NAG takes the distance to {each} of the unguided "
        f"one ({between}). Distance with NAG over that at {percent(rates[base])}: {beside}."
        + _at_an_end("weights", [percent(rates[name]) for name in ends])
    )


def _ends(numbers: Mapping, rates: Rates) -> str:
    """Which weights and learning rates are at an end of their lists."""
    found, arms = numbers["afterthought"], numbers["afterthought"]["arms"]
    ws = [ROUTES[arms[n]["route"]] for n in numbers["at_end_of_list"] if n in arms]
    lrs = [
        ROUTES[one["route"]]
        for one in least(numbers)
        if len(rates[one["route"]]) > 1
        and found["lr"][f"{one['route']} from {one['start']}"]
        in (min(rates[one["route"]]), max(rates[one["route"]]))
    ]
    return _at_an_end("weights", ws) + _at_an_end("learning rates", lrs)


def answers(numbers: Mapping, rates: Rates, batch: int, figure: str) -> dict[str, dict]:
    """What the study says to claim C7 in small; `rates` are the learning rates tried by route,
    `batch` the images of a step.
    """
    found, base = numbers["dropout"], base_of(numbers)
    first, whole = least(numbers), least(numbers)[-1]
    sure = [joined(numbers, one["gain"]) for one in first]
    untouched = joined(numbers, whole["over untouched"])
    share = percent(whole["share"])
    images = max(batch, round(whole["share"] * numbers["afterthought"]["images_seen"]))
    start = f"After {share} of the training of a network without noise dropout"
    least_ways = list(zip(first, sure, strict=True))
    later = "".join(
        f"; after {percent(one['share'])} to {show(one['gain'])} of the unguided one (over images)"
        for one in ways(numbers).values()
        if one["route"] == "all" and one is not whole
    )
    smallest = numbers["afterthought"]["smallest"]
    usual = f"{percent(found['rates'][base])} dropout from the start"
    sentence = (
        f"{start} (here {images:,} images, {-(-images // batch)} steps), NAG takes the distance to "
        + "; ".join(
            f"{show(x)} with {ROUTES[one['route']]} ({outcome(x)})" for one, x in least_ways
        )
        + f" of the unguided one, with the whole network to {show(untouched)} of that of the "
        f"untouched network ({outcome(untouched)}){later}; with {usual} to "
        f"{show(found['gain_of_base'])} ({found['trainings']} "
        f"training{'s' * (found['trainings'] > 1)}). Smallest error without the noise level: from "
        f'the start "{smallest["before training"]}" before training, '
        + ", ".join(f'"{smallest[route]}" after {name}' for route, name in ROUTES.items())
        + f".{_ends(numbers, rates)} At this size the claim is {verdict(numbers)}. "
        + rates_sentence(numbers)
    )
    brief = (
        f"{start}, NAG takes the distance to "
        + ", ".join(
            f"{x['value']:.2f} with {ROUTES[one['route']]} ({outcome(x)})" for one, x in least_ways
        )
        + f" of the unguided one; with {usual} to {found['gain_of_base']['value']:.2f}. Distance "
        f"with NAG at other rates over that at {percent(found['rates'][base])}: "
        + ", ".join(
            f"{percent(found['rates'][n])} {outcome(x['distance with NAG'])}"
            for n, x in found["beside_base"].items()
        )
        + "."
    )
    key = next(k for k, v in numbers["afterthought"]["arms"].items() if v is whole)
    return {
        "C7": {
            "sentence": sentence,
            "brief": brief,
            "verdict": verdict(numbers),
            "key": f"afterthought/arms/{key}/gain",
            "figure": figure,
        }
    }
