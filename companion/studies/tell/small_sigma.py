"""What notebook 30 says of its numbers: Q9, what NAG does as the noise goes to zero."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots import study_figures, style
from companion.studies.tell.grids import CAVEAT, NAMES, grouped, solvers_of, split
from companion.studies.tell.words import listed, mini
from nag.interpolant import PATH_OF
from nag.support.uncertainty import Interval, outcome, show, sign

SIZES = {
    "score": {"label": "score s(x|t)", "color": style.ARMS["forward"]["color"], "marker": "x"},
    "difference": {
        "label": "NAG's s(x|t) − s(x)",
        "color": style.ARMS["nag"]["color"],
        "marker": "s",
    },
    "gradient": {"label": "classifier's ∇ log p(t|x)", "color": style.CLASSIFIER, "marker": "^"},
}
IN_IMAGE = {
    "image_nag": {"label": "NAG", "color": style.ARMS["nag"]["color"], "marker": "s"},
    "image_rounding": {"label": "rounding", "color": style.SERIES[1], "marker": "D"},
}
LINES = {"sit": "-", "dit": (0, (4, 1.5))}
COLUMNS = (
    "score",
    "difference",
    "gradient",
    "cosine",
    "estimator_error",
    "image_nag",
    "image_rounding",
    "nag_over_v",
    "rounding_over_v",
    "error_over_target",
    "error_without_over_with",
)


def families(numbers: Mapping) -> list[str]:
    return [family for family in PATH_OF if family in numbers["small_sigma"]]


def other_grid(numbers: Mapping) -> str:
    return next(iter(numbers["w_nag"])).split("-")[1]


def at(found: Mapping, k: int) -> Interval:
    """The k-th entry of arrays of intervals."""
    value, low, high = (found[end][k] for end in ("value", "low", "high"))
    return {"value": value, "low": low, "high": high}


def trusted(small: Mapping, name: str) -> np.ndarray:
    """Where a size says something: the gradient only where its estimator reads t."""
    on = np.array(small["gradient_trusted"], bool)
    return on if name in ("gradient", "cosine") else np.ones_like(on)


def table(numbers: Mapping) -> pd.DataFrame:
    """All sizes by family and time."""
    parts = {}
    for family in families(numbers):
        small = numbers["small_sigma"][family]
        values = {"t": small["t"], "σ/α": small["ratio"]}
        values |= {name: small[name]["value"] for name in COLUMNS}
        parts[mini(family)] = pd.DataFrame(values).round(4)
    return pd.concat(parts)


# ---- sentences


def slopes(small: Mapping, name: str) -> list[tuple[int, Interval]]:
    """(k, power of sigma between times k and k + 1) where both are trusted, smallest first."""
    on = trusted(small, name)
    return [(k, at(small[f"slope_{name}"], k)) for k in range(len(on) - 1) if on[k] and on[k + 1]]


def turns(small: Mapping, name: str) -> list[str]:
    """Where a curve turns: where the sign of its power, if conclusive, is not that before."""
    signs = [(k, sign(x)) for k, x in slopes(small, name) if sign(x) != "inconclusive"]
    return [
        f"{small['sigma'][k]:.2g}"
        for (_, one), (k, two) in zip(signs, signs[1:], strict=False)
        if one != two
    ]


def growth(small: Mapping, name: str, bounds: bool = True) -> str:
    """How a size grows at the two ends of its trusted times. A power of −1 is that of a score whose
    noise is all seen; one line through all times would hide a bend."""
    found, sigma = slopes(small, name), small["sigma"]
    if not found:
        return "inconclusive, since the estimator reads too few of these times"
    parts = [
        f"sigma^{show(x) if bounds else format(x['value'], '.2f')} "
        f"from sigma {sigma[k]:.2g} to {sigma[k + 1]:.2g}"
        for k, x in dict([found[0], found[-1]]).items()
    ]
    turned = turns(small, name)
    at_sigma = f" (turning at sigma {', '.join(turned)})" if turned else ""
    return f"like {' and '.join(parts)}{at_sigma}"


def trend(found: Mapping) -> str:
    """How a size changes from the largest time to the smallest."""
    if found["high"][0] < found["low"][-1]:
        return "falls"
    return "grows" if found["low"][0] > found["high"][-1] else "shows no conclusive change"


def image_part(numbers: Mapping, family: str) -> str:
    """What the image gets of NAG, from the largest time to the smallest."""
    small = numbers["small_sigma"][family]
    far, near = (show(at(small["image_nag"], k)) for k in (-1, 0))
    rounding = (
        f", where rounding to {numbers['precision']} makes "
        f"{small['image_rounding']['value'][0]:.2f}" * (numbers["precision"] != "fp32")
    )
    return (
        f"for {mini(family)} it {trend(small['image_nag'])} ({far} at sigma/alpha "
        f"{small['ratio'][-1]:.2g}, {near} at {small['ratio'][0]:.2g}{rounding})"
    )


def score_part(numbers: Mapping, family: str) -> str:
    """How NAG's difference and the classifier's gradient grow, and whether they are the same."""
    small = numbers["small_sigma"][family]
    cosine = np.array(small["cosine"]["value"])[trusted(small, "cosine")]
    alike = f", with a cosine of {cosine.min():.2f} to {cosine.max():.2f}" if len(cosine) else ""
    return (
        f"{mini(family)}'s difference goes {growth(small, 'difference', bounds=False)}, its "
        f"classifier's gradient {growth(small, 'gradient', bounds=False)}{alike}"
    )


def answers(numbers: Mapping) -> dict[str, dict]:
    each = families(numbers)
    off = {
        (family, arm.replace("nag above", "below")): x
        for (family, _, arm), x in split(numbers["off_below"]).items()
    }
    brief = (
        "What the image gets of NAG near the data, in grey levels of 255: "
        f"{', '.join(image_part(numbers, family) for family in each)}."
    )
    sentence = (
        f"{brief} With NAG switched off below a sigma/alpha, the distance over that with NAG "
        f"everywhere ({numbers['n']} images): {grouped(off, '.3f')}. In units of the score, where "
        "for exact scores NAG's difference is the gradient of a noise-level classifier: "
        f"{'; '.join(score_part(numbers, family) for family in each)}. {CAVEAT} "
        f"({len(off)} ratios)."
    )
    return {
        "Q9": {
            "sentence": sentence,
            "brief": brief,
            "key": "small_sigma",
            "figure": "figures/small_sigma.png",
        }
    }


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers."""
    each = "; ".join(image_part(numbers, family) for family in families(numbers))
    return (
        f"What the image gets of NAG as the noise goes to zero: {each}. The paper leaves this open."
    )


# ---- figures


def images(file: Path, numbers: Mapping) -> Figure:
    """The first images of every network with NAG everywhere and switched off near the data."""
    with np.load(file) as arrays:
        keys = [name.split("-", 2) for name in arrays.files]
    rows = {
        "-".join((family, grid, arm)): f"{mini(family)},\n{arm.replace('nag', 'NAG')}"
        for family, grid, arm in keys
    }
    return study_figures.first_images(file, rows, title(numbers))


def title(numbers: Mapping) -> str:
    """The finding of the figure: what becomes of NAG in the image."""
    trends = {trend(numbers["small_sigma"][family]["image_nag"]) for family in families(numbers)}
    words = {"falls": "fades", "grows": "grows", "shows no conclusive change": "need not change"}
    what = words[trends.pop()] if len(trends) == 1 else "depends on the network"
    return f"As the noise goes to zero, what NAG does to the image {what}"


def _curves(ax: Axes, numbers: Mapping, looks: Mapping[str, Mapping]) -> None:
    """Sizes over sigma / alpha, noise on the left, data on the right; one kind of line for each
    network."""
    for family in families(numbers):
        small = numbers["small_sigma"][family]
        for name, look in looks.items():
            x, on = np.array(small["ratio"]), trusted(small, name)
            value, low, high = (np.array(small[name][end])[on] for end in ("value", "low", "high"))
            ax.plot(x[on], value, color=look["color"], marker=look["marker"], ls=LINES[family])
            ax.fill_between(x[on], low, high, color=look["color"], alpha=0.2, linewidth=0)
    ax.set(xscale="log", xlabel="σ/α (noise → data)")
    ax.invert_xaxis()


def _off(ax: Axes, numbers: Mapping) -> None:
    """Ratios of the arm without NAG near the data over NAG everywhere."""
    ratios = {
        f"{mini(family)},\nNAG off below {arm.split()[-1]}": (family, x)
        for (family, _, arm), x in split(numbers["off_below"]).items()
    }
    for y, (family, x) in enumerate(ratios.values()):
        color = style.OF_FAMILY[family]["color"]
        face = "white" if outcome(x) == "inconclusive" else color
        ax.plot([x["low"], x["high"]], [y, y], color=color)
        ax.plot(x["value"], y, marker=style.OF_FAMILY[family]["marker"], color=color, mfc=face)
    study_figures.line_at(ax, 1, vertical=True)
    ax.set_yticks(range(len(ratios)), list(ratios))
    ax.set_ylim(len(ratios) - 0.5, -0.5)


@style.style()
def figure(numbers: Mapping) -> Figure:
    """Sizes in the image and in units of the score; the cosine; distances without NAG near the
    data."""
    fig, (image, score, cosine, off) = style.panels(4, 2)
    in_image = dict(IN_IMAGE)
    if numbers["precision"] == "fp32":
        del in_image["image_rounding"]  # there is no rounding to show
    _curves(image, numbers, in_image)
    study_figures.log_axis(image)
    image.set(title="In the image", ylabel="grey levels of 255")
    _curves(score, numbers, SIZES)
    study_figures.log_axis(score)
    score.set(title="In units of the score", ylabel="RMS per pixel")
    for family in families(numbers):
        small, look = numbers["small_sigma"][family], style.OF_FAMILY[family]
        on = trusted(small, "cosine")
        found = [at(small["cosine"], k) for k in np.flatnonzero(on).tolist()]
        x = np.array(small["ratio"])[on]
        study_figures.error_bars(cosine, x, found, **look, ls=LINES[family])
    study_figures.line_at(cosine, 0)
    cosine.set(
        xscale="log",
        ylim=(-1, 1),
        xlabel="σ/α (noise → data)",
        ylabel="cosine",
        title="NAG's difference and classifier's gradient",
    )
    cosine.invert_xaxis()
    _off(off, numbers)
    off.set(title="Without NAG near the data, over with it", xlabel="Fréchet ratio")
    each = families(numbers)
    weights = listed(f"{numbers['small_sigma'][f]['w']:g} ({mini(f)})" for f in each)
    times = numbers["small_sigma"][each[0]]["t"]
    note = (
        f"Forward states of {numbers['small_sigma'][each[0]]['n']} test images at t = {times[0]:g} "
        f"to {times[-1]:g}; one network of each family. Classifier only where its estimator reads "
        f"t. Grey levels: (σ/α) w |ε − ε without level|, w = {weights}. Lower right: "
        f"{numbers['n']} images, {NAMES[other_grid(numbers)]} grid, {numbers['steps']} steps of "
        f"{solvers_of(each)}, {numbers['precision']}; open points: inconclusive. Bands and bars: "
        "95 % CI over images."
    )
    sizes = [style.line(**look) for look in (*SIZES.values(), *list(in_image.values())[1:])]
    lines = [style.line(label=mini(f), ls=LINES[f], **style.OF_FAMILY[f]) for f in each]
    return style.frame(fig, title(numbers), note, sizes, lines)
