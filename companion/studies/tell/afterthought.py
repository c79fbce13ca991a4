"""What notebook 35 says of its numbers: claim C7, a null noise condition added afterwards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.pyplot import subplots

from companion.plots.study_figures import error_bars, line_at, ring, ring_handle
from companion.plots.style import ARMS, PALE, SERIES, WIDTH, frame, line, style
from companion.studies.tell.words import listed, sampler_name
from nag.support.uncertainty import by_factor, outcome, over_trainings, show

LOOKS: dict[str, dict[str, Any]] = {  # by route
    "branch": {"color": ARMS["nag"]["color"], "marker": "s", "label": "a null branch beside it"},
    "vector": {"color": SERIES[1], "marker": "^", "label": "the null vector alone"},
    "all": {"color": SERIES[2], "marker": "D", "label": "the whole network"},
}
MAIN = "branch"
PAPERS_IMAGES = 12_800_000  # ten epochs of ImageNet


def of_route(numbers: Mapping, route: str) -> list[Mapping]:
    """What a route gives, by its lengths in rising order."""
    found = [one for one in numbers["arms"].values() if one["route"] == route]
    return sorted(found, key=lambda one: one["images"])


def joined(numbers: Mapping, ratio: Mapping, factor: float = 1.0) -> Mapping:
    """A ratio of one training whose interval also has the spread between trainings, if dropout from
    the start was trained several times; `factor` times that spread.
    """
    usual = numbers["from_start"]
    if usual["trainings"] == 1:
        return ratio
    return over_trainings(ratio, factor * usual["spread"], usual["trainings"])


def table(numbers: Mapping) -> pd.DataFrame:
    """Learning rate, weight and ratios of every route by length."""
    rows = {}
    for route, look in LOOKS.items():
        for one in of_route(numbers, route):
            rows[look["label"], f"{one['images']:,} images"] = {
                "learning rate": f"{one['lr']:g}" + " (end of list)" * one["lr_at_end"],
                "w": f"{one['w']:g}" + " (end of list)" * one["w_at_end"],
                "NAG / same network unguided": show(one["gain"]),
                "NAG / untouched network unguided": show(one["over untouched"]),
                "share of the usual gain": "–" if one["share"] is None else f"{one['share']:.2f}",
            }
    return pd.DataFrame(rows).T


# ---- figure


def _ratios(ax: Axes, numbers: Mapping, what: str, title: str) -> None:
    usual = numbers["from_start"]["gain"]
    ax.axhspan(usual["low"], usual["high"], color=PALE, alpha=0.45, lw=0, zorder=0)
    for k, (route, look) in enumerate(LOOKS.items()):
        found = of_route(numbers, route)
        x = [one["images"] * 1.06 ** (k - 1) for one in found]  # side by side
        ratios = [joined(numbers, one[what]) for one in found]
        ax.plot(x, [r["value"] for r in ratios], color=look["color"], lw=1)
        for place, ratio, one in zip(x, ratios, found, strict=True):
            face = "white" if outcome(ratio) == "inconclusive" else look["color"]
            looks = {"color": look["color"], "marker": look["marker"], "mfc": face}
            error_bars(ax, [place], [ratio], **looks)
            if one["w_at_end"]:
                ring(ax, [place], [ratio["value"]])
    line_at(ax, 1)
    lengths = sorted({one["images"] for one in numbers["arms"].values()})
    ax.set(xscale="log", xlabel="images of further training", title=title)
    ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
    ax.minorticks_off()


@style()
def figure(numbers: Mapping) -> Figure:
    """NAG's ratio by the length of further training, over the same and the untouched network."""
    fig, axes = subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True)
    _ratios(axes[0], numbers, "gain", "over the same network unguided")
    _ratios(axes[1], numbers, "over untouched", "over the untouched network")
    axes[0].set_ylabel("Fréchet distance with NAG / …")
    usual = numbers["from_start"]
    over = f" and over {usual['trainings']} trainings" * (usual["trainings"] > 1)
    note = (
        f"SiT on Fashion-MNIST, {numbers['images_seen']:,} images seen without dropout; "
        f"{sampler_name(numbers['sampler'])}, {numbers['steps']} steps, N = {numbers['n']}; "
        "weights and learning rates chosen on others. Band: dropout from the start. Bars: "
        f"95 % CI over images{over}; open: it contains 1."
    )
    handles = [line(**look) for look in LOOKS.values()]
    ends = any(one["w_at_end"] for one in numbers["arms"].values())
    return frame(fig, title(numbers), note, handles + ([ring_handle()] if ends else []))


def title(numbers: Mapping) -> str:
    """The finding of the figure."""
    longest = of_route(numbers, MAIN)[-1]
    return (
        f"{longest['images']:,} further images give NAG a ratio of "
        f"{longest['gain']['value']:.2f}, dropout from the start "
        f"{numbers['from_start']['gain']['value']:.2f}"
    )


def shown(numbers: Mapping) -> dict[str, str]:
    """The arms whose first images are worth a look: untouched, and NAG after the longest training
    by every route.
    """
    found = {f"{numbers['plain']} none": "untouched, unguided"}
    for route, look in LOOKS.items():
        one = of_route(numbers, route)[-1]
        found[f"{route}, {one['images']} NAG"] = f"{look['label']}, NAG"
    return found


# ---- sentences


def half_of_gain(numbers: Mapping) -> Mapping:
    """The ratio of the main route at its longest over the square root of the usual one: surely
    below 1 if it has more than half of the gain (of the logarithm) of dropout from the start.
    """
    gain, usual = of_route(numbers, MAIN)[-1]["gain"], numbers["from_start"]["gain"]
    halves = np.log(gain["high"] / gain["value"]), 0.5 * np.log(usual["high"] / usual["value"])
    ratio = by_factor(gain["value"] / usual["value"] ** 0.5, float(np.hypot(*halves)))
    trainings = numbers["from_start"]["trainings"]
    return joined(numbers, ratio, (1 + 0.25 / trainings) ** 0.5)  # half the mean of so many


def verdict(numbers: Mapping) -> str:
    """Of C7 in small, by the null branch at its longest: "reproduced" if NAG surely helps, with
    surely half of the gain of dropout from the start; "contradicted" if it surely harms.
    """
    found = outcome(joined(numbers, of_route(numbers, MAIN)[-1]["gain"]))
    if found == "worse":
        return "contradicted"
    enough = numbers["from_start"]["gain"]["value"] >= 1 or (
        outcome(half_of_gain(numbers)) == "better"
    )
    return "reproduced" if found == "better" and enough else "inconclusive"


def _by_length(numbers: Mapping, route: str, what: str = "gain") -> str:
    return ", ".join(
        f"{show(ratio)} after {one['images']:,} ({outcome(ratio)})"
        for one in of_route(numbers, route)
        for ratio in [joined(numbers, one[what])]
    )


def _ends(numbers: Mapping, what: str) -> Sequence[str]:
    return [
        f"{LOOKS[one['route']]['label']} after {one['images']:,}"
        for one in numbers["arms"].values()
        if one[what]
    ]


def answers(numbers: Mapping, figure: str) -> dict[str, dict]:
    """What the study says to claim C7 in small."""
    usual, longest = numbers["from_start"], of_route(numbers, MAIN)[-1]
    whole = of_route(numbers, "all")
    trainings = f"{usual['trainings']} training{'s' * (usual['trainings'] > 1)}"
    ends = [
        f" At an end of its {name}: {listed(found)}."
        for what, name in (("w_at_end", "weights"), ("lr_at_end", "learning rates"))
        if (found := _ends(numbers, what))
    ]
    sentence = (
        "A SiT of 0.5 M parameters that was trained without noise-condition dropout, on "
        f"{numbers['images_seen']:,} images, is trained further. NAG then takes the distance, by "
        "the number of further images, with a null branch beside the frozen network to "
        f"{_by_length(numbers, 'branch')}; with the null vector alone to "
        f"{_by_length(numbers, 'vector')}; with the whole network, of its own unguided distance, "
        f"to {_by_length(numbers, 'all')}, and of the untouched network's to "
        f"{_by_length(numbers, 'all', 'over untouched')}. With 10 % dropout from the start: "
        f"{show(usual['gain'])} ({trainings}). The paper's further training is about "
        f"{PAPERS_IMAGES:,} images.{''.join(ends)} At this size the claim is {verdict(numbers)}."
    )
    brief = (
        f"After {longest['images']:,} further images NAG takes the distance to "
        f"{longest['gain']['value']:.2f} with a null branch beside the frozen network "
        f"({outcome(joined(numbers, longest['gain']))}) and to {whole[-1]['gain']['value']:.2f} "
        f"with the whole network; with dropout from the start to {usual['gain']['value']:.2f}."
    )
    return {
        "C7": {
            "sentence": sentence,
            "brief": brief,
            "verdict": verdict(numbers),
            "key": f"arms/{longest['route']}, {longest['images']}/gain",
            "figure": figure,
        }
    }
