"""What notebook 31 says of its numbers: NAG's signal and the noise shift after fine-tuning."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots import study_figures, style
from companion.studies.tell.words import mini, sampler_name
from nag.interpolant import PATH_OF
from nag.samplers.registry import resolve
from nag.support.uncertainty import Interval, show, sign

LOOKS = {
    "NAG": style.ARMS["nag"] | {"label": "NAG (drops t)"},
    "NAG before fine-tuning": style.ARMS["nag"]
    | {"label": "NAG before", "marker": "s", "linestyle": ":", "markerfacecolor": "white"},
    "CFG": style.ARMS["cfg"] | {"label": "CFG (drops the class)"},
    "DoG": {
        "label": "DoG (network before)",
        "color": style.DOMAIN_GUIDANCE,
        "marker": "D",
        "linestyle": "-",
    },
}
LEVEL = 0.2  # where the sentence reads the differences
MOMENTS = ("before", "after")


def ends(x: Mapping) -> Interval:
    """The interval of {"value", "half"}."""
    return {"value": x["value"], "low": x["value"] - x["half"], "high": x["value"] + x["half"]}


def table(numbers: Mapping) -> pd.DataFrame:
    """Relative sizes of the differences and NAG's cosines with the others, by t."""
    return pd.DataFrame(numbers["differences"]).set_index("t").round(4)


def learning_by_heart(numbers: Mapping) -> str:
    """Errors before and after, and of images that were fine-tuned on."""
    errors = numbers["errors"]
    before, after = (errors[f"{moment}, held out"]["value"] for moment in MOMENTS)
    trained_on = errors["after, fine-tuned on"]["value"]
    return (
        f"fine-tuning takes {1 - after / before:.1%} off the error of held-out images "
        f"({before:.4f} to {after:.4f}), which is then {after / trained_on - 1:+.1%} from that of "
        f"images fine-tuned on ({trained_on:.4f})"
    )


def at_level(numbers: Mapping) -> dict[str, float]:
    """Relative sizes at the time next to LEVEL."""
    found = numbers["differences"]
    k = min(range(len(found["t"])), key=lambda k: abs(found["t"][k] - LEVEL))
    return {name: found[name][k] for name in LOOKS if name in found}


def late(x: Interval) -> str:
    """A shift, times 1000."""
    return show({end: 1000 * x[end] for end in ("value", "low", "high")}, "+.1f")


def answers(numbers: Mapping, name: str) -> dict[str, dict]:
    """`name` is that of the figure's file."""
    sizes, shift = at_level(numbers), numbers["shift"]
    who = f"{mini(numbers['family'])} on footwear"
    before = (
        f" ({sizes['NAG before fine-tuning']:.1%} before fine-tuning)"
        if "NAG before fine-tuning" in sizes
        else ""
    )
    signal = (
        f"{who}: at t = {LEVEL} NAG's difference is {sizes['NAG']:.1%} of the prediction{before}, "
        f"CFG's {sizes['CFG']:.1%}, Domain Guidance's {sizes['DoG']:.1%}"
    )
    solver = sampler_name(resolve("sde", PATH_OF[numbers["family"]]))
    shifts = (
        f"the late shift × 1000 with {solver} is {late(shift['before, none'])} before fine-tuning, "
        f"{late(shift['after, none'])} after, {late(shift['after, nag'])} after, with NAG"
    )
    return {
        "Q12": {
            "brief": f"{signal}; {shifts}.",
            "sentence": f"{signal}; {shifts}; {learning_by_heart(numbers)}.",
            "key": "shift",
            "figure": f"figures/{name}.png",
        }
    }


# ---- figures


def images(file: Path, numbers: Mapping) -> Figure:
    """The first images of the stochastic sampler before and after, without and with NAG."""
    rows = {
        f"{moment}, {arm}": f"{moment}, {style.ARMS[arm]['label']}"
        for moment in MOMENTS
        for arm in ("none", "nag")
    }
    return study_figures.first_images(file, rows, title(numbers))


def title(numbers: Mapping) -> str:
    """The finding of the figure: what is left of NAG's difference."""
    sizes = at_level(numbers)
    before = sizes.get("NAG before fine-tuning")
    was = "" if before is None else f" (before {before:.1%})"
    return (
        f"Fine-tuned {mini(numbers['family'])}: NAG's difference is {sizes['NAG']:.1%} of the "
        f"prediction at t = {LEVEL}{was}"
    )


def change(shift: Mapping[str, Interval]) -> str:
    """What fine-tuning does to the late shift without guidance; the two arms are independent."""
    before, after = (shift[f"{moment}, none"] for moment in MOMENTS)
    half = np.hypot(*((x["high"] - x["low"]) / 2 for x in (before, after)))
    difference = after["value"] - before["value"]
    side = sign({"low": difference - half, "high": difference + half})
    return {"above": "larger", "below": "smaller"}.get(side, "change inconclusive")


def _shift(ax: Axes, shift: Mapping[str, Interval]) -> None:
    """Late shift before and after, without and with NAG."""
    for y, moment in enumerate(MOMENTS):
        for k, arm in enumerate(("none", "nag")):
            x, look = shift[f"{moment}, {arm}"], style.arm_style(arm)
            place = y + 0.24 * (k - 0.5)
            ax.plot([1000 * x["low"], 1000 * x["high"]], [place] * 2, color=look["color"])
            ax.plot(1000 * x["value"], place, marker=look["marker"], color=look["color"])
    study_figures.line_at(ax, 0, vertical=True)
    ax.set_yticks(range(len(MOMENTS)), [f"{moment}\nfine-tuning" for moment in MOMENTS])
    ax.set_ylim(len(MOMENTS) - 0.5, -0.5)


def _errors(ax: Axes, errors: Mapping[str, Mapping]) -> None:
    """Denoising errors; the last two would differ after learning by heart."""
    rows = {name.replace(", ", ",\n"): ends(x) for name, x in errors.items()}
    order = sorted(rows, key=lambda name: (name.startswith("after"), "fine-tuned" in name))
    for y, name in enumerate(order):
        x = rows[name]
        ax.plot([x["low"], x["high"]], [y, y], color=style.INK)
        ax.plot(x["value"], y, "o", color=style.INK)
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.5, -0.5)


@style.style()
def figure(numbers: Mapping) -> Figure:
    """Sizes of the differences by t, their cosines, the shift and the errors before and after."""
    found = numbers["differences"]
    fig, (size, cosine, shift, error) = style.panels(4, 2)
    for name, look in LOOKS.items():
        if name in found:
            size.plot(found["t"], found[name], **look | {"markersize": 4})
        if f"cos NAG, {name}" in found:
            cosine.plot(found["t"], found[f"cos NAG, {name}"], **look | {"markersize": 4})
    study_figures.log_axis(size)
    size.set(title="Size of each guidance's difference", ylabel="relative to prediction")
    cosine.set(title="NAG's cosine with the others", ylim=(-1, 1), ylabel="cosine")
    study_figures.line_at(cosine, 0)
    for ax in (size, cosine):
        ax.set_xlabel("t (noise → data)")
        ax.invert_xaxis()
    _shift(shift, numbers["shift"])
    solver = sampler_name(resolve("sde", PATH_OF[numbers["family"]]))
    shift.set(
        title=f"Late shift, unguided: {change(numbers['shift'])}",
        xlabel=f"late noise shift × 1000, {solver}",
    )
    _errors(error, numbers["errors"])
    error.set(title="Denoising error", xlabel="mean squared error")
    trajectories = numbers["shift"]["after, none"]["n"]
    note = (
        f"{len(numbers['finetune_seeds'])} fine-tuning runs of "
        f"{numbers['training']['images_seen']:,} images seen; differences and errors of the first. "
        f"Shift: {trajectories} trajectories, against forward states of held-out images of the "
        "network's own classes. Bars: 95 % CI over images."
    )
    legend = [style.line(**look) for name, look in LOOKS.items() if name in found]
    arms = [style.line(**style.arm_style(arm) | {"linestyle": "-"}) for arm in ("none", "nag")]
    return style.frame(fig, title(numbers), note, legend, arms)
