"""What the study of dropout found (Q14): table, figure and sentences from its numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.pyplot import subplots
from matplotlib.ticker import MaxNLocator

from companion.plots.study_figures import error_bars, line_at, ring, ring_handle
from companion.plots.style import ARMS, PALE, SERIES, WIDTH, frame, line, style
from companion.studies.tell.words import listed, sampler_name
from nag.support.uncertainty import outcome, show

WITH_LEVEL: dict[str, Any] = {"color": SERIES[0], "marker": "o", "label": "noise level given"}
WITHOUT_LEVEL: dict[str, Any] = {"color": SERIES[1], "marker": "s", "label": "noise level dropped"}
BLUE = ARMS["nag"]["color"]


def percent(share: float) -> str:
    """0.007 as "0.7 %"."""
    return f"{100 * share:g} %"


def at_end(numbers: Mapping) -> list[str]:
    """The rates whose best weight is at an end of its list, in words."""
    rates = numbers["dropout"]["rates"]
    return [percent(rates[name]) for name in numbers["at_end_of_list"] if name in rates]


def base_of(numbers: Mapping) -> str:
    """The network of the usual rate: the one that others stand beside."""
    found = numbers["dropout"]
    return next(name for name in found["rates"] if name not in found["beside_base"])


def table(numbers: Mapping) -> pd.DataFrame:
    """NAG's weight and ratios at every rate of dropout."""
    found = numbers["dropout"]
    rows = [
        {
            "dropout": percent(rate),
            "w": found["w"][name],
            "NAG / same network unguided": show(found["gain"][name]),
            "NAG / NAG at the usual rate": show(found["nag_over_base"][name]),
        }
        for name, rate in found["rates"].items()
    ]
    return pd.DataFrame(rows).set_index("dropout")


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


@style()
def figure(numbers: Mapping) -> Figure:
    """Errors and NAG's gain by the rate of dropout."""
    found, base = numbers["dropout"], base_of(numbers)
    fig, axes = subplots(1, 2, figsize=(WIDTH, 3.2))
    _errors(axes[0], numbers)
    _gains(axes[1], numbers)
    several = found["trainings"] > 1
    note = (
        f"SiT on Fashion-MNIST, {sampler_name(numbers['sampler'])}, {numbers['steps']} steps, N = "
        f"{numbers['n']}; weights chosen on other seeds. Bars: 95 % CI over images"
        + f". Band: {percent(found['rates'][base])} dropout, mean of {found['trainings']} "
        f"trainings, {found['trainings'] - 1} of them open" * several + "."
    )
    handles = [line(linestyle="none", **look) for look in (WITH_LEVEL, WITHOUT_LEVEL)]
    handles += [line(color=BLUE, marker="s", label="over the same network unguided")]
    return frame(fig, title(numbers), note, handles + ([ring_handle()] if at_end(numbers) else []))


def title(numbers: Mapping) -> str:
    """The finding of the figure."""
    found = numbers["dropout"]
    ratios = [found["gain"][name]["value"] for name in found["rates"]]
    rates = [percent(rate) for rate in found["rates"].values()]
    return (
        f"NAG's ratio is {min(ratios):.2f} to {max(ratios):.2f} with {rates[0]} to {rates[-1]} "
        f"dropout: {verdict(numbers)}"
    )


def shown(numbers: Mapping) -> dict[str, str]:
    """The arms whose first images are worth a look: every rate without and with NAG."""
    return {
        f"{name} {arm}": f"{percent(rate)}, {label}"
        for name, rate in numbers["dropout"]["rates"].items()
        for arm, label in (("none", "unguided"), ("NAG", "NAG"))
    }


# ---- sentences


def verdict(numbers: Mapping) -> str:
    """Whether another rate is shown to be better or worse, by the distance with NAG itself."""
    found = numbers["dropout"]
    said = {n: outcome(x["distance with NAG"]) for n, x in found["beside_base"].items()}
    words = [
        f"{percent(found['rates'][name])} is {word}"
        for name, word in said.items()
        if word != "inconclusive"
    ]
    usual = percent(found["rates"][base_of(numbers)])
    return f"{listed(words)} than {usual}" if words else f"none differs from {usual} for sure"


def answers(numbers: Mapping, figure: str) -> dict[str, dict]:
    """What the study says to question 14."""
    found = numbers["dropout"]
    rates, spread = found["rates"], found["spread_between_trainings"]
    usual = percent(rates[base_of(numbers)])
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
    ends = at_end(numbers)
    sentence = (
        f"By the rate of noise-condition dropout NAG takes the distance to {each} of the unguided "
        f"one ({between}). Distance with NAG over that at {usual}: {beside}."
        + (f" At an end of its list of weights: {listed(ends)}." if ends else "")
    )
    brief = (
        f"{verdict(numbers).capitalize()}; distance with NAG over the same network's without: "
        + ", ".join(
            f"{found['gain'][n]['value']:.2f} at {percent(rate)}" for n, rate in rates.items()
        )
        + "."
    )
    return {"Q14": {"sentence": sentence, "brief": brief, "key": "dropout/gain", "figure": figure}}
