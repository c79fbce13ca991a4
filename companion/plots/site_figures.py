"""The first figure that a visitor sees, and the frames of its animation."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots.style import ARMS, DIM, INK, PALE, WIDTH, style

PAIR = ("none", "nag")


def _row(ax: Axes, images: np.ndarray, arm: str, per_row: int, label: str) -> None:
    """Images (n, H, W) in [-1, 1] in rows of `per_row`, in a frame of the arm's colour."""
    n, high, wide = images.shape
    padded = np.pad(images, ((0, 0), (0, 2), (0, 2)), constant_values=1.0)
    grid = padded.reshape(n // per_row, per_row, high + 2, wide + 2)
    canvas = grid.transpose(0, 2, 1, 3).reshape(-1, per_row * (wide + 2))[:-2, :-2]
    ax.imshow(canvas, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.set_title(label, color=ARMS[arm]["color"], loc="left", weight="bold")
    for spine in ax.spines.values():
        spine.set(visible=True, color=ARMS[arm]["color"], linewidth=2)


def _axis(ax: Axes, low: float, high: float) -> None:
    ax.axhline(0, color=INK, lw=1)
    ax.set(xlim=(1, 0), ylim=(low, high), xlabel="scheduled noise level t (sampling →)")


def _curve(ax: Axes, times: np.ndarray, curve: Mapping, arm: str) -> None:
    look = {name: ARMS[arm][name] for name in ("color", "linestyle", "label")}
    ax.fill_between(times, curve["low"], curve["high"], color=look["color"], alpha=0.2, lw=0)
    ax.plot(times, curve["value"], lw=2.4, **look)


@style()
def teaser(
    times: np.ndarray,
    curves: Mapping[str, Mapping],
    images: Mapping[str, np.ndarray],
    late: float,
    title: str,
    note: str,
) -> Figure:
    """Shift curves of both arms, {arm: {"value", "low", "high"}} each (K,), beside ten images
    (10, H, W) of each from the same seeds; t <= `late` is shaded."""
    fig = plt.figure(figsize=(WIDTH, 3.5))
    left, right = fig.subfigures(1, 2, width_ratios=(1.15, 1))
    ax = left.subplots()
    for arm in PAIR:
        _curve(ax, times, curves[arm], arm)
    high = max(max(curves[arm]["high"]) for arm in PAIR)
    _axis(ax, -0.15 * high, 1.3 * high)
    ax.axvspan(late, 0, color=PALE, alpha=0.4, lw=0, zorder=0)
    ax.text(late / 2, -0.12 * high, "late", ha="center", fontsize=9, color=DIM)
    ax.set_ylabel("noise shift δ(t)\nabove 0: noisier than scheduled", fontsize=9)
    ax.legend(loc="upper left")
    for ax, arm in zip(right.subplots(2, 1), PAIR, strict=True):
        _row(ax, images[arm], arm, 5, ARMS[arm]["label"])
    fig.suptitle(title, x=0.012, ha="left", fontsize=11, weight="bold")
    fig.supxlabel(note, x=0.012, ha="left", fontsize=8, color=DIM)
    plt.close(fig)
    return fig


@style()
def frame(
    k: int,
    times: np.ndarray,
    states: Mapping[str, np.ndarray],
    shifts: Mapping[str, np.ndarray],
    title: str,
) -> Figure:
    """The k-th frame: states (10, K, H, W) of both arms as images, and below them the shifts (K,)
    read so far."""
    fig, axes = plt.subplots(3, 1, figsize=(WIDTH, 4.6), height_ratios=(1, 1, 2))
    for ax, arm in zip(axes[:2], PAIR, strict=True):
        _row(ax, np.clip(states[arm][:, k], -1, 1), arm, 10, ARMS[arm]["label"])
    reach = 1.1 * max(np.abs(shift[times > 0]).max() for shift in shifts.values())
    _axis(axes[2], -0.4 * reach, reach)
    on = (times > 0) & (np.arange(len(times)) <= k)
    for arm in PAIR:
        look = {name: ARMS[arm][name] for name in ("color", "linestyle", "label")}
        axes[2].plot(times[on], shifts[arm][on], lw=2.4, **look)
    axes[2].legend(loc="upper left")
    axes[2].set_ylabel("level read\nminus scheduled", fontsize=9)
    fig.suptitle(f"{title}   t = {times[k]:.2f}", x=0.012, ha="left", fontsize=11, weight="bold")
    plt.close(fig)
    return fig
