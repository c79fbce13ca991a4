"""What the figures of studies share: points with 95 % bars, axes of ratios, marks, rows of images.

One colour per meaning, as `style.ARMS` has it. A filled point is a conclusive one, an open point is
inconclusive; a ring is around a point whose weight is at an end of its list."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from companion.plots import style
from nag.support.uncertainty import Interval, outcome

TICKS = np.array([c * 10.0**k for k in range(-4, 5) for c in (1, 1.5, 2, 3, 5, 7)])
RING = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": style.INK}


Numbers = Sequence[float] | np.ndarray


def error_bars(
    ax: Axes, x: Numbers, values: Sequence[Mapping], scale: float = 1.0, **look: Any
) -> None:
    """Points with their 95 % bars, all times `scale`; `look` is Line2D keywords such as those of
    `style.arm_style`.
    """
    middle, low, high = (
        scale * np.array([v[end] for v in values], float) for end in ("value", "low", "high")
    )
    bars = [(middle - low).clip(0), (high - middle).clip(0)]
    ax.errorbar(x, middle, bars, **{"capsize": 2, "elinewidth": 1.2} | look | {"label": None})


def ratio_points(ax: Axes, x: Numbers, ratios: Sequence[Mapping], color: str, **look: Any) -> None:
    """Ratios over x joined by a line, each with its bar: filled if its interval excludes 1."""
    ax.plot(x, [r["value"] for r in ratios], color=color, linewidth=1, zorder=2)
    for place, found in zip(x, ratios, strict=True):
        face = "white" if outcome(found) == "inconclusive" else color
        error_bars(ax, [place], [found], color=color, **{"marker": "o", "mfc": face} | look)


def rows_of_ratios(
    ax: Axes, ratios: Mapping[str, Mapping], colors: Mapping[str, str], unsettled=()
) -> None:
    """One row for each ratio, the first on top, with a line at 1: left of it is better.

    Filled if the interval excludes 1; a ring around those of `unsettled`, whose weight is at an end
    of its list."""
    for place, (name, found) in enumerate(ratios.items()):
        color = colors[name]
        face = "white" if outcome(found) == "inconclusive" else color
        ax.plot([found["low"], found["high"]], [place, place], color=color)
        ax.plot(found["value"], place, "o", color=color, mfc=face)
        if name in unsettled:
            ring(ax, [found["value"]], [place])
    line_at(ax, 1, vertical=True)
    ax.set_yticks(range(len(ratios)), list(ratios))
    ax.set_ylim(len(ratios) - 0.5, -0.5)


def ring(ax: Axes, x: Numbers, y: Numbers) -> None:
    """A ring around points whose weight is at an end of its list, so that another may be better."""
    ax.plot(x, y, linestyle="none", **RING)


def ring_handle() -> Line2D:
    """The legend's line for `ring`."""
    return style.line(linestyle="none", label="w at an end of its list", **RING)


def line_at(ax: Axes, value: float, vertical: bool = False) -> None:
    """The line of no effect: 1 of a ratio, 0 of a difference or shift."""
    (ax.axvline if vertical else ax.axhline)(value, color=style.INK, linewidth=0.9, zorder=1)


def floor(ax: Axes, found: Interval | float) -> None:
    """A dotted line, with its band if it is an interval, at what real images themselves have."""
    value = found if isinstance(found, float) else found["value"]
    look = style.arm_style("forward")["color"]
    ax.axhline(value, color=look, linestyle=":", linewidth=1.2, zorder=1)
    if not isinstance(found, float):
        ax.axhspan(found["low"], found["high"], color=look, alpha=0.15, linewidth=0)


def log_axis(ax: Axes, axis: str = "y", apart: float = 0.1) -> None:
    """A logarithmic axis whose ticks are plain numbers, at least `apart` of its length from each
    other; 1 goes first.
    """
    (ax.set_yscale if axis == "y" else ax.set_xscale)("log")
    low, high = ax.get_ylim() if axis == "y" else ax.get_xlim()
    inside = TICKS[(min(low, high) <= TICKS) & (max(low, high) >= TICKS)]
    place = np.log(inside / low) / np.log(high / low)
    kept: list[int] = []
    for k in sorted(range(len(inside)), key=lambda k: (inside[k] != 1, -_roundness(inside[k]))):
        if all(abs(place[k] - place[other]) >= apart for other in kept):
            kept.append(k)
    ticks = sorted(inside[kept])
    side = ax.yaxis if axis == "y" else ax.xaxis
    side.set_major_locator(FixedLocator(ticks))
    side.set_ticklabels([f"{tick:g}" for tick in ticks])
    side.set_minor_locator(NullLocator())


def _roundness(tick: float) -> int:
    """The first digits that read best: 1, then 2 and 5, then the others."""
    first = f"{tick:e}"[:3]
    return 2 if first == "1.0" else 1 if first in ("2.0", "5.0") else 0


def legend_above(ax: Axes, handles: Sequence[Line2D], columns: int = 2) -> None:
    """A panel's own legend, above its axes instead of a title."""
    ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=columns,
        fontsize=8.5,
        handlelength=2.4,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def first_images(file: Path, names: Mapping[str, str], title: str, note: str = "") -> Figure:
    """Rows of the first images of arms from a file of `study.save_images`: {arm: row's name}.

    The images of a column start from the same noise, as the note says. Raises KeyError for an arm
    that is not there.
    """
    with np.load(file) as arrays:
        rows = [arrays[arm] for arm in names]
    with style.style():
        fig, axes = plt.subplots(
            len(rows), 1, figsize=(style.WIDTH, 0.6 + 0.75 * len(rows)), squeeze=False
        )
        for ax, images, name in zip(axes.flat, rows, names.values(), strict=True):
            ax.imshow(np.hstack(images[:, 0]), cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            ax.set_ylabel(name, rotation=0, ha="right", va="center")
            ax.spines[:].set_visible(False)
            ax.grid(False)
        return style.frame(fig, title, f"{note} A column starts from the same noise.".strip())
