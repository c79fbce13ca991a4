"""Figures from plain arrays: every function returns a matplotlib Figure and draws an arm the same
way everywhere.

Times follow the convention t = 1 noise, t = 0 data. `note` is a small line below: N, seeds, solver,
steps."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from companion.plots.style import (
    ARMS,
    DIM,
    INK,
    PALE,
    SERIES,
    WIDTH,
    arm_style,
    frame,
    line,
    need,
    ordered,
    panels,
    save,
    style,
)
from nag.shift import posterior_kde
from nag.support.uncertainty import Z95

__all__ = [
    "calibration",
    "posterior_density",
    "quality",
    "sample_grid",
    "save",
    "shift_curves",
    "style",
    "training_curves",
    "tuning",
]
ROUND = (1, 2, 2.5, 5, 10)  # steps between ticks
OUTLIERS = 0.02  # of the readings of an arm, on either side, may be counted instead of drawn
QUALITY = {
    "fd_inf": "Fréchet distance, bias-\ncorrected (lower is better)",
    "kid": "KID\n(lower is better)",
    "precision": "precision, 0 to 1\n(higher is better)",
    "recall": "recall, 0 to 1\n(higher is better)",
}


def _column(times: np.ndarray, t: float) -> int:
    """Index of the time nearest to t; raises ValueError if t is farther than a step from all of
    them.
    """
    gap = np.abs(times - t)
    if gap.min() > np.abs(np.diff(times)).max(initial=0) + 1e-9:
        raise ValueError(f"no state near t = {t}: choose from [{times.min():g}, {times.max():g}]")
    return int(gap.argmin())


def _range(sets: Sequence[np.ndarray]) -> tuple[float, float]:
    """The levels between which all of every set lie but OUTLIERS of it, and half as far again on
    either side."""
    low = min(np.quantile(values, OUTLIERS) for values in sets)
    high = max(np.quantile(values, 1 - OUTLIERS) for values in sets)
    return low - (high - low) / 2, high + (high - low) / 2


@style()
def posterior_density(
    sampled: Mapping[str, np.ndarray],
    control: np.ndarray,
    times: np.ndarray,
    at: Sequence[float],
    *,
    title: str = "Estimated noise level of sampled and of forward states",
    note: str = "",
) -> Figure:
    """Density of estimated levels t' of sampled (M, K) against forward (M', K) states at `times`
    (K,), a panel per t.

    `at` picks the nearest of the times; kernel density (Scott, 1992), means marked on the curves
    (paper, Fig. 1). A few readings far from all others are counted, not drawn. Raises ValueError
    for an unknown arm, other shapes, a t off the grid, or estimates that are all alike."""
    times, sets = (
        np.asarray(times),
        {arm: sampled[arm] for arm in ordered(sampled)} | {"forward": control},
    )
    for arm, levels in sets.items():
        if np.ndim(levels) != 2 or np.shape(levels)[1] != len(times):
            raise ValueError(
                f"estimates of {arm!r} are {np.shape(levels)}: give one column per time "
                f"({len(times)})"
            )
    fig, axes = panels(len(at), 4)
    for ax, t in zip(axes, at, strict=True):
        k = _column(times, t)
        ax.axvline(times[k], color=INK, lw=1, zorder=1)
        low, high = _range([np.asarray(levels)[:, k] for levels in sets.values()])
        beyond = []
        for arm, levels in sets.items():
            values, look = np.asarray(levels)[:, k], arm_style(arm)
            if np.ptp(values) == 0:
                raise ValueError(
                    f"all estimates of {arm!r} at t = {times[k]:g} are alike: choose another t"
                )
            near = values[(values >= low) & (values <= high)]
            x, y = posterior_kde(near)
            y *= len(near) / len(values)
            if far := len(values) - len(near):
                beyond.append(f"{look['label']}: {far} beyond")
            ax.plot(x, y, color=look["color"], linestyle=look["linestyle"])
            ax.fill_between(
                x, y, color=look["color"], alpha=0.25 if arm == "forward" else 0.08, lw=0
            )
            mean = values.mean()
            ax.plot(
                mean,
                np.interp(mean, x, y),
                color=look["color"],
                marker=look["marker"],
                ms=7,
                mew=1.5,
                zorder=4,
            )
        first = ax.get_subplotspec().is_first_col()
        ax.set(
            xlabel="estimated level t′",
            ylabel="density (per unit of t′)" if first else "",
            ylim=(0, None),
            title=f"t = {times[k]:.3g}",
        )
        where = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 8}
        ax.text(1, 1, "\n".join(beyond), color=DIM, **where)
        ax.xaxis.set_major_locator(MaxNLocator(3, steps=ROUND))
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
        ax.grid(False)
    handles = [line(**arm_style(arm)) for arm in sets] + [line(color=INK, lw=1, label="nominal t")]
    return frame(fig, title, note, handles)


@style()
def shift_curves(
    times: np.ndarray,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    late: float = 0.2,
    *,
    title: str = "Noise shift along sampling",
    note: str = "",
) -> Figure:
    """delta(t) with 95 % bands, {arm: {"value", "low", "high"}} each (K,) at `times` (K,); sampling
    runs left to right.

    The second panel shows t <= `late` (paper, Figs. 4 and 5). Raises ValueError for an unknown arm
    or other lengths."""
    times, arms = np.asarray(times), ordered(curves)
    for arm in arms:
        need(curves[arm], ("value", "low", "high"), f"the curve of {arm!r}")
        if any(np.shape(curves[arm][key]) != times.shape for key in ("value", "low", "high")):
            raise ValueError(
                f"the curve of {arm!r} must have one value, low and high per time ({len(times)})"
            )
    end = times <= late + 1e-9
    if not end.any():
        raise ValueError(f"no time at or below late = {late:g}: give a larger one")
    fig, (whole, zoom) = plt.subplots(1, 2, figsize=(WIDTH, 3.7), width_ratios=(1.25, 1))
    for ax, keep in ((whole, np.full(len(times), True)), (zoom, end)):
        ax.axhline(0, color=INK, lw=1, zorder=1)
        every = max(1, keep.sum() // 10)
        for i, arm in enumerate(arms):
            value, low, high = (
                np.asarray(curves[arm][key])[keep] for key in ("value", "low", "high")
            )
            look = arm_style(arm)
            if len(arms) < 3:  # filled bands of more would mix to a colour of no arm
                ax.fill_between(times[keep], low, high, color=look["color"], alpha=0.08, lw=0)
            for edge in (low, high):
                ax.plot(times[keep], edge, color=look["color"], lw=0.5, alpha=0.7, zorder=2)
            ax.plot(times[keep], value, markevery=(i * every // len(arms), every), zorder=3, **look)
        ax.margins(x=0.02)
        ax.invert_xaxis()
        ax.set_xlabel("nominal noise level t (sampling →)")
    zoom.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    whole.axvspan(late, 0, color=PALE, alpha=0.4, lw=0, zorder=0)
    whole.set(
        ylabel="shift δ(t), in units of t\n(sampled − forward estimate)",
        title="all of sampling, t from 1 to 0",
    )
    zoom.set(ylabel="shift δ(t)", title=f"shaded part, t ≤ {late:.3g}")
    return frame(fig, title, note, [line(**arm_style(arm)) for arm in arms])


@style()
def sample_grid(
    images: Mapping[str, np.ndarray],
    labels: Sequence[str],
    *,
    real: np.ndarray | None = None,
    settings: Mapping[str, str] | None = None,
    title: str = "Samples from the same seeds",
    note: str = "",
) -> Figure:
    """Rows of uint8 images (n, H, W) or (n, C, H, W), C of 1 or 3, a row per arm; column i has the
    i-th of n labels.

    `settings` are shown below the names of arms, such as "w = 2"; `real` images of the same labels
    make the last row. Raises ValueError for an unknown arm or images of another number, type or
    size.
    """
    arms, settings = ordered(images), settings or {}
    names = ["\n".join([ARMS[arm]["label"], settings.get(arm, "")]).strip() for arm in arms]
    stacks = {arm: np.asarray(images[arm]) for arm in arms}
    if real is not None:
        stacks["real images"] = np.asarray(real)
        names.append("real images")
    stacks = {arm: x[:, None] if x.ndim == 3 else x for arm, x in stacks.items()}
    n, shape, gap = len(labels), (len(labels), *stacks[arms[0]].shape[1:]), 2
    for arm, x in stacks.items():
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape != shape or x.shape[1] not in (1, 3):
            raise ValueError(
                f"images of {arm!r} are {x.dtype} {x.shape}: give uint8 ({n}, 1 or 3, H, W), the "
                "same size for all arms"
            )
    padded = [
        np.pad(x, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
        for x in stacks.values()
    ]
    canvas = np.concatenate([np.concatenate(list(x), axis=2) for x in padded], axis=1)[
        :, :-gap, :-gap
    ]
    height, width = shape[2] + gap, shape[3] + gap
    fig, ax = plt.subplots(figsize=(WIDTH, 0.8 + (WIDTH - 1) * len(names) * height / (n * width)))
    ax.imshow(np.moveaxis(canvas, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=255)
    ax.set_xticks(np.arange(n) * width + (width - gap) / 2, labels)
    ax.set_yticks(np.arange(len(names)) * height + (height - gap) / 2, names)
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelsize=9.5)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return frame(fig, title, note)


@style()
def calibration(
    cal: Mapping[str, np.ndarray],
    *,
    pit_bins: int = 20,
    title: str = "Noise-level estimator on states of known level",
    note: str = "",
) -> Figure:
    """Four checks of `nag.estimator.calibration`'s arrays: PIT histogram, coverage, bias and
    posterior std against t.

    Bands hold 95 % of what N calibrated answers would give. Raises ValueError if an array is
    missing."""
    need(cal, ("pit", "level", "coverage", "t", "bias", "bias_se", "std"), "the calibration")
    n, level = len(cal["pit"]), np.asarray(cal["level"])
    look = {"color": INK, "marker": "o"}
    fig, ((pit, cover), (bias, std)) = plt.subplots(2, 2, figsize=(WIDTH, 5.8))
    count, edges = np.histogram(cal["pit"], pit_bins, (0, 1))
    pit.bar(
        edges[:-1],
        count * pit_bins / n,
        1 / pit_bins,
        align="edge",
        color=PALE,
        edgecolor="white",
        lw=0.5,
    )
    spread = Z95 * math.sqrt((pit_bins - 1) / n)
    pit.axhspan(1 - spread, 1 + spread, color=SERIES[1], alpha=0.3, lw=0, zorder=3)
    pit.set(
        xlabel="cdf at the true t (PIT), 0 to 1",
        ylabel="density",
        title="PIT histogram",
        xlim=(0, 1),
    )
    grid = np.linspace(0, 1, 101)
    spread = Z95 * np.sqrt(grid * (1 - grid) / n)
    cover.fill_between(grid, grid - spread, grid + spread, color=SERIES[1], alpha=0.3, lw=0)
    cover.plot(level, cal["coverage"], **look, lw=1.2)
    cover.set(
        xlabel="nominal mass of the interval, 0 to 1",
        ylabel="coverage, 0 to 1",
        title="coverage of central intervals",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    bias.axhline(0, color=INK, lw=1)
    bias.errorbar(
        cal["t"],
        cal["bias"],
        Z95 * np.asarray(cal["bias_se"]),
        **look,
        ls="none",
        capsize=2,
        lw=1.2,
    )
    bias.set(
        xlabel="true noise level t (noise → data)",
        ylabel="mean t′ − t, in units of t",
        xlim=(1, 0),
        title="bias, with 95 % intervals",
    )
    std.plot(cal["t"], cal["std"], **look, lw=1.2)
    std.set(
        xlabel="true noise level t (noise → data)",
        ylabel="std, in units of t",
        title="mean posterior standard deviation",
        xlim=(1, 0),
        ylim=(0, None),
    )
    return frame(
        fig,
        title,
        note,
        [
            line(**look, lw=1.2, label="measured"),
            line(color=SERIES[1], alpha=0.3, lw=7, label="expected if calibrated, 95 %"),
        ],
    )


@style()
def training_curves(
    logs: Mapping[str, pd.DataFrame], *, title: str = "Training loss", note: str = ""
) -> Figure:
    """Loss against images seen, a panel per log with columns images, loss and seconds; logarithmic
    where positive.

    Raw values are light, their mean over ±10 % of the images dark. Raises ValueError if a log or
    column is missing."""
    if not logs:
        raise ValueError("nothing to draw: pass at least one training log")
    fig, axes = panels(len(logs), 3)
    for ax, (name, log) in zip(axes, logs.items(), strict=True):
        need(log, ("images", "loss", "seconds"), f"the log of {name!r}")
        images, loss = log["images"].to_numpy(), log["loss"].to_numpy()
        start, end = (
            np.searchsorted(images, images / 1.1),
            np.searchsorted(images, images * 1.1, side="right"),
        )
        ax.plot(images, loss, color=PALE, lw=0.8)
        ax.plot(
            images,
            [loss[a:b].mean() for a, b in zip(start, end, strict=True)],
            color=INK,
        )
        ax.set(
            xscale="log",
            xlabel="images seen",
            ylabel="loss",
            title=f"{name}, {log['seconds'].max() / 60:.0f} min",
        )
        if (loss > 0).all():
            ax.set_yscale("log")
            ax.yaxis.set(
                major_locator=LogLocator(subs=(1, 2, 3, 5)),
                minor_locator=NullLocator(),
                major_formatter="{x:g}",
            )
    return frame(
        fig,
        title,
        note,
        [
            line(color=PALE, lw=0.8, label="as logged"),
            line(color=INK, label="running mean"),
        ],
    )


@style()
def quality(
    summary: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    floor: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "Distance and diversity of the samples, with 95 % intervals",
    note: str = "",
) -> Figure:
    """Fréchet distance, KID, precision and recall with intervals, {arm: {metric: {"value", "low",
    "high"}}}.

    A panel per metric, a row per arm; `floor` is the same of as many real training images, drawn as
    a line. Raises ValueError for an unknown arm or a missing metric.
    """
    arms = ordered(summary)
    for arm in arms:
        need(summary[arm], list(QUALITY), f"the summary of {arm!r}")
    fig, axes = plt.subplots(1, len(QUALITY), figsize=(WIDTH, 1.5 + 0.42 * len(arms)), sharey=True)
    for ax, (metric, name) in zip(axes, QUALITY.items(), strict=True):
        for row, arm in enumerate(arms):
            cell, look = summary[arm][metric], ARMS[arm]
            ax.plot(
                [cell["low"], cell["high"]],
                [row, row],
                color=look["color"],
                marker="|",
                ms=8,
                mew=1.5,
                lw=1.5,
            )
            ax.plot(cell["value"], row, look["marker"], color=look["color"], ms=6, zorder=3)
            ax.annotate(
                f"{cell['value']:#.3g}".rstrip("."),
                (cell["value"], row),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
        if floor is not None:
            ax.axvline(floor[metric]["value"], color=INK, ls=":", lw=1.2, zorder=1)
        ax.set_xlabel(name)
        ax.margins(x=0.2)
        if metric in ("fd_inf", "kid"):
            ax.autoscale_view()
            lows = [summary[arm][metric]["low"] for arm in arms]
            lows += [] if floor is None else [floor[metric]["value"]]
            low, high = min(0, *lows), ax.get_xlim()[1]
            ax.set_xlim(low - 0.04 * (high - low) * (low < 0), high)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(arms)), [ARMS[arm]["label"] for arm in arms], fontsize=10)
    axes[0].set_ylim(len(arms) - 0.6, -0.7)
    legend = [line(color=INK, ls=":", lw=1.2, label="as many real training images")]
    return frame(fig, title, note, *([legend] if floor is not None else []))


@style()
def tuning(
    table: pd.DataFrame,
    chosen: Mapping[str, tuple[float, float]],
    *,
    title: str = "Bias-corrected distance and late noise shift against the NAG weight",
    note: str = "",
) -> Figure:
    """Bias-corrected distance and late shift against w_nag, a line per CFG scale, from columns
    w_nag, cfg, fd_inf, shift_late; `chosen` is {arm: (w_nag, cfg)}.

    Columns fd_inf_low and fd_inf_high, if there, are drawn as 95 % intervals. Raises ValueError for
    a missing column, an unknown arm, or a chosen point that is not in the table."""
    need(table, ("w_nag", "cfg", "fd_inf", "shift_late"), "the tuning table")
    intervals = {"fd_inf_low", "fd_inf_high"} <= set(table)
    scales = sorted(table["cfg"].unique())
    colors, markers = sns.color_palette("viridis", len(scales)), "o^sDvPX*"
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.2))
    lines = [line(ls="none", label="CFG scale:")]
    for i, scale in enumerate(scales):
        rows = table[table["cfg"] == scale].sort_values("w_nag")
        look = {"color": colors[i], "marker": markers[i % len(markers)], "lw": 1.3}
        left.plot(rows["w_nag"], rows["fd_inf"], **look)
        if intervals:
            left.vlines(rows["w_nag"], rows["fd_inf_low"], rows["fd_inf_high"], look["color"], lw=1)
        right.plot(rows["w_nag"], rows["shift_late"], **look)
        lines.append(line(label=f"{scale:g}" + (" (off)" if scale == 1 else ""), **look))
    rings = [line(ls="none", label="chosen:")]
    for arm in ordered(chosen) if chosen else ():
        w, scale = chosen[arm]
        row = table[np.isclose(table["w_nag"], w) & np.isclose(table["cfg"], scale)]
        if row.empty:
            raise ValueError(
                f"the choice of {arm!r}, w_nag = {w:g} and cfg = {scale:g}, is not in the table: "
                "sweep it"
            )
        ring = arm_style(arm) | {"linestyle": "none", "ms": 13, "mfc": "none", "mew": 2}
        left.plot(w, row["fd_inf"].iloc[0], zorder=4, **ring)
        right.plot(w, row["shift_late"].iloc[0], zorder=4, **ring)
        rings.append(line(**ring | {"ms": 9}))
    right.axhline(0, color=INK, lw=1, zorder=1)
    for ax in (left, right):
        ax.margins(x=0.08, y=0.1)  # room for the rings
    weight = r"NAG weight $w_\mathrm{nag}$"
    left.set(
        xlabel=weight,
        ylabel="bias-corrected Fréchet distance" + "\n(95 % intervals)" * intervals,
        title="sample quality (lower is better)",
    )
    right.set(
        xlabel=weight,
        ylabel="late shift, in units of t",
        title="mean shift late in sampling (0: none)",
    )
    return frame(fig, title, note, lines, *([rings] if chosen else []))
