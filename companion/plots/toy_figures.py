"""The figures of notebook 0, from curves/toy.json."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots.style import DIM, INK, WIDTH, frame, line, style
from nag.shift import statement_1

LOOKS = [
    {"color": "#0072b2", "marker": "o"},
    {"color": "#d55e00", "marker": "s"},
    {"color": "#009e73", "marker": "^"},
    {"color": "#cc79a7", "marker": "D"},
    {"color": "#e69f00", "marker": "v"},
    {"color": "#3d0f4a", "marker": "P"},
]
CAUSES = ("fine steps", "coarse steps", "stochastic, coarse")  # of an exact field
WRONG = ("blurred network", "too weak", "too strong")
CASES = ("exact field, Euler", "exact field, stochastic", "blurred network, Euler")


def _bars(ax: Axes, x: Sequence[float], found: Mapping, **look) -> None:
    """A line through values with their intervals as thin bars."""
    ax.vlines(x, found["low"], found["high"], color=look["color"], lw=1)
    ax.plot(x, found["value"], **look)


@style()
def forward(clouds: Mapping[str, Sequence], beliefs: Mapping[str, Mapping], t: float) -> Figure:
    """Forward states in two dimensions at four times, and one state's p(t|x) by dimensions."""
    beliefs = {dims: beliefs[dims] for dims in sorted(beliefs, key=int)}
    fig, axes = plt.subplots(1, 5, figsize=(WIDTH * 1.35, 2.7), width_ratios=(1, 1, 1, 1, 1.3))
    reach = 1.05 * max(np.abs(states).max() for states in clouds.values())
    for ax, (time, states) in zip(axes, clouds.items(), strict=False):
        ax.scatter(*np.array(states).T, s=3, color=LOOKS[0]["color"], lw=0)
        ax.set(title=f"$x_t$, t = {time}", xlim=(-reach, reach), ylim=(-reach, reach), aspect=1)
    for one, look in zip(beliefs.values(), LOOKS, strict=False):
        axes[4].plot(one["t"], one["density"], color=look["color"])
    axes[4].axvline(t, color=INK, lw=1, ls="--")
    axes[4].set(title=f"one state's p(t|x), true t = {t:g}", xlabel="t", ylabel="over p(t)")
    legend = [
        line(color=look["color"], label=f"{dims} dimensions")
        for dims, look in zip(beliefs, LOOKS, strict=False)
    ]
    return frame(fig, "In high dimension a state shows its own noise level", "", legend)


@style()
def added_error(times: Sequence[float], added: Mapping[str, Mapping], sigma_e: float) -> Figure:
    """The measured shift of states with an added error against Statement 1, a panel per path."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.5), sharey=True)
    t = np.linspace(times[0], times[-1], 100)
    theory, measured = LOOKS[0]["color"], LOOKS[1]["color"]
    snr = {"color": LOOKS[2]["color"], "ls": "--"}
    titles = {"alpha-one": "$x_t = x_0 + t\\,\\varepsilon$", "linear": "linear path"}
    for ax, (path, delta) in zip(axes, added.items(), strict=True):
        ax.plot(t, statement_1(t, sigma_e), color=theory)
        if path == "linear":
            r = t + statement_1(t, sigma_e)
            ax.plot(t, r / (1 - t + r) - t, **snr)
        _bars(ax, times, delta, color=measured, marker="o", ls="none")
        ax.invert_xaxis()
        ax.set(title=titles[path], xlabel="t (sampling →)")
    axes[0].set_ylabel("noise shift δ, in units of t")
    legend = [
        line(color=theory, label="Statement 1"),
        line(label="equal signal-to-noise ratio", **snr),
        line(color=measured, marker="o", ls="none", label="measured by the exact p(t|x)"),
    ]
    return frame(fig, "An error on top of a state is a shift of its time", "", legend)


@style()
def causes(grid: Sequence[float], shifts: Mapping[str, Mapping]) -> Figure:
    """delta(t) of each cause: exact fields left, wrong ones right."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.9), sharey=True)
    for i, name in enumerate(CAUSES + WRONG):
        ax, delta, look = axes[i // 3], shifts[name]["delta"], LOOKS[i]
        ax.fill_between(grid, delta["low"], delta["high"], color=look["color"], alpha=0.2, lw=0)
        ax.plot(grid, delta["value"], **look)
    for ax, title in zip(axes, ("exact field", "wrong field, fine steps"), strict=True):
        ax.axhline(0, color=INK, lw=1, zorder=1)
        ax.invert_xaxis()
        ax.set(title=title, xlabel="t (sampling →)")
    axes[0].set_ylabel("noise shift δ(t), in units of t")
    handles = [line(label=name, **look) for name, look in zip(CAUSES + WRONG, LOOKS, strict=True)]
    return frame(fig, "The sign of the shift depends on its cause", "", handles[:3], handles[3:])


@style()
def guidance(sweep: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Late shift and energy distance against w, a column per case, a line per negative."""
    fig, axes = plt.subplots(2, len(sweep), figsize=(WIDTH, 5.4), sharex=True)
    looks = dict(
        zip(dict.fromkeys(row["negative"] for row in sweep[CASES[-1]][1:]), LOOKS, strict=False)
    )
    for column, case in zip(axes.T, CASES, strict=True):
        rows = sweep[case]
        for negative in dict.fromkeys(row["negative"] for row in rows[1:]):
            mine = [rows[0], *(row for row in rows if row["negative"] == negative)]
            for ax, name in zip(column, ("late shift", "distance"), strict=True):
                found = pd.DataFrame([row[name] for row in mine])
                _bars(ax, [row["w"] for row in mine], found, **looks[negative])
        column[0].axhline(0, color=DIM, lw=1, zorder=1)
        column[0].set_title(case)
        column[1].set(xlabel="NAG weight w", ylim=(0, None))
    axes[0, 0].set_ylabel("late shift, in units of t")
    axes[1, 0].set_ylabel("energy distance")
    legend = [line(label=name, **look) for name, look in looks.items()]
    return frame(fig, "Less shift is not by itself a better distribution", "", legend)


@style()
def dropout(gap: Sequence[Mapping]) -> Figure:
    """Guidance by dropout against the exact one: cosine, strength and relative error by t."""
    table = pd.DataFrame(gap)
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH * 1.15, 3.7))
    titles = {"cosine": (-1, 1.05), "strength": (0, 1.2), "error": (0, 2)}
    priors = dict(zip(table["prior"].unique(), LOOKS, strict=False))
    kinds = {"eps": "-", "v": "--"}
    for ax, (name, limits) in zip(axes, titles.items(), strict=True):
        for (prior, kind), rows in table.groupby(["prior", "network"], sort=False):
            ax.plot(rows["t"], rows[name], ls=kinds[kind], ms=4, **priors[prior])
        ax.invert_xaxis()
        ax.set(title=name, xlabel="t", ylim=limits)
    t = np.linspace(0, 1, 50)
    axes[1].plot(t, np.full(50, 0.5), color=DIM, lw=1)
    axes[1].plot(t, (1 - t) / 2, color=DIM, lw=1, ls="--")
    rows = [line(label=name, **look) for name, look in priors.items()]
    networks = [
        line(color=INK, ls=kinds["eps"], label="ε-network"),
        line(color=INK, ls=kinds["v"], label="v-network"),
        line(color=DIM, lw=1, label="1/2 and (1 − t)/2"),
    ]
    return frame(fig, "Dropout's guidance against the exact one", "", rows, networks)


def summary(sweep: Mapping[str, Sequence[Mapping]]) -> pd.DataFrame:
    """Late shift and energy distance without guidance and at w = 2, a row per case and negative."""
    rows = []
    for case in CASES:
        found = sweep[case]
        for row in found:
            if row["w"] == 2:
                numbers = {
                    f"{name}, w = {w:g}": source[name]["value"]
                    for name in ("late shift", "distance")
                    for w, source in ((0, found[0]), (2, row))
                }
                rows.append({"case": case, "negative": row["negative"]} | numbers)
    return pd.DataFrame(rows).round(4)
