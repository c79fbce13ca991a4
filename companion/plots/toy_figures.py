"""The figures of notebook 0, from curves/toy.json."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots.style import (
    ARMS,
    CLASSIFIER,
    DIM,
    INK,
    OF_SAMPLER,
    SERIES,
    WIDTH,
    frame,
    line,
    style,
)
from nag import toy
from nag.shift import statement_1
from nag.support.uncertainty import sign

LOOKS = [{"color": color, "marker": marker} for color, marker in zip(SERIES, "os^Dv", strict=True)]
OF_CAUSE = {
    "fine steps": OF_SAMPLER["ode"],
    "coarse steps": OF_SAMPLER["ode"] | {"marker": "^", "linestyle": ":", "mfc": "white"},
    "stochastic, coarse": OF_SAMPLER["sde"],
    "blurred network": LOOKS[1],
    "too weak": LOOKS[2],
    "too strong": LOOKS[3],
}
OF_NEGATIVE = {
    "exact s(x)": {"color": SERIES[1], "marker": "D"},
    "dropout": {"color": ARMS["nag"]["color"], "marker": "s"},
    "outside estimator": {"color": CLASSIFIER, "marker": "v"},
}
BLOBS = ("weights", "means", "variances", "axes")  # fields of a mixture, one row per blob
CASES = ("exact field, Euler", "exact field, stochastic", "blurred network, Euler")


def _bars(ax: Axes, x: Sequence[float], found: Mapping, **look) -> None:
    """A line through values with their intervals as thin bars."""
    ax.vlines(x, found["low"], found["high"], color=look["color"], lw=1)
    ax.plot(x, found["value"], **look)


@style()
def two_axes(t: float = 0.3, reach: float = 1.6, points: int = 13) -> Figure:
    """What CFG and NAG add to the score on the exact ring in two dimensions, and both together: the
    concept of the paper's Fig. 2.

    CFG's axis is s(x|t,c) − s(x|t) = ∇ log p(c|x,t), c the largest blob, and NAG's is
    s(x|t) − s(x) = ∇ log p(t|x), both in units of their mean length."""
    data = toy.ring(2)
    largest = data._replace(**{name: getattr(data, name)[-1:] for name in BLOBS})
    line_of = torch.linspace(-reach, reach, 101, dtype=torch.float64)
    density = toy.log_prob(data, torch.cartesian_prod(line_of, line_of), t).exp().reshape(101, 101)
    coarse = torch.linspace(-reach, reach, points, dtype=torch.float64)
    x = torch.cartesian_prod(coarse, coarse)
    x = x[toy.log_prob(data, x, t).exp() > 0.03 * density.max()]  # where a sampler comes by
    axes_of = {
        "cfg": toy.score(largest, x, t) - toy.score(data, x, t),
        "nag": toy.posterior_gradient(data, x, t, toy.time_prior("uniform", nodes=64)),
    }
    arrows = {arm: v / v.norm(dim=1).mean() for arm, v in axes_of.items()}
    cosine = torch.nn.functional.cosine_similarity(arrows["cfg"], arrows["nag"]).mean()
    arrows["cfg+nag"] = (arrows["cfg"] + arrows["nag"]) / 2**0.5
    names = {
        "cfg": "CFG: more like its class",
        "nag": "NAG: more like its noise level",
        "cfg+nag": "both",
    }
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.2))
    for ax, (arm, name) in zip(axes, names.items(), strict=True):
        ax.contourf(line_of, line_of, density.T, levels=6, cmap="Greys", alpha=0.5)
        ax.quiver(*x.T, *arrows[arm].T, color=ARMS[arm]["color"], scale=16, width=0.008)
        ax.plot(*((1 - t) * largest.means[0]), "x", color=INK, ms=8, mew=2)
        ax.set(title=name, aspect=1, xticks=[], yticks=[])
        ax.grid(False)
    title = f"CFG and NAG push along different axes: their mean cosine is {cosine:+.2f}"
    note = (
        f"Exact toy in two dimensions, t = {t:g}: darker: likelier states, × its class. "
        "Arrows: what each guidance adds, in units of its mean length. After the paper's Fig. 2."
    )
    return frame(fig, title, note)


@style()
def forward(clouds: Mapping[str, Sequence], beliefs: Mapping[str, Mapping], t: float) -> Figure:
    """Forward states in two dimensions at four times, and one state's p(t|x) by dimensions."""
    beliefs = {dims: beliefs[dims] for dims in sorted(beliefs, key=int)}
    fig, axes = plt.subplots(1, 5, figsize=(WIDTH * 1.2, 2.7), width_ratios=(1, 1, 1, 1, 1.6))
    clouds = {time: clouds[time] for time in sorted(clouds, key=float, reverse=True)}
    reach = 1.05 * max(np.abs(states).max() for states in clouds.values())
    for ax, (time, states) in zip(axes, clouds.items(), strict=False):
        ax.scatter(*np.array(states).T, s=3, color=LOOKS[0]["color"], lw=0)
        ax.set(title=f"$x_t$, t = {time}", xlim=(-reach, reach), ylim=(-reach, reach), aspect=1)
        ax.set(xticks=[], yticks=[])
    for one, look in zip(beliefs.values(), LOOKS, strict=False):
        axes[4].plot(one["t"], one["density"], color=look["color"], lw=1.4)
    axes[4].axvline(t, color=INK, lw=1, ls="--")
    axes[4].set(title=f"one state's p(t|x), true t = {t:g}", xlabel="t (noise → data)")
    axes[4].set(ylabel="p(t|x) / p(t)", xlim=(1, 0))
    legend = [
        line(color=look["color"], label=f"{dims} dimensions")
        for dims, look in zip(beliefs, LOOKS, strict=False)
    ]
    spread = (f"±{one['spread']:.2f} in {dims}" for dims, one in beliefs.items())
    title = f"A state shows its own noise level, t = {t:g} to {', '.join(spread)} dimensions"
    return frame(fig, title, "", legend)


@style()
def added_error(times: Sequence[float], added: Mapping[str, Mapping], sigma_e: float) -> Figure:
    """The measured shift of states with an added error against Statement 1, a panel per path."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.5), sharey=True)
    t = np.linspace(times[0], times[-1], 100)
    theory, measured = INK, SERIES[1]
    snr = {"color": DIM, "ls": "--"}
    titles = {
        "alpha-one": "$x_t = x_0 + t\\,\\varepsilon$",
        "linear": "$x_t = (1 - t)\\,x_0 + t\\,\\varepsilon$",
    }
    ratios = [
        value / statement_1(time, sigma_e)
        for delta in added.values()
        for time, value in zip(times, delta["value"], strict=True)
    ]
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
    title = f"The shift by an error is {min(ratios):.2f} to {max(ratios):.2f} of Statement 1's"
    return frame(fig, title, "", legend)


@style()
def causes(grid: Sequence[float], shifts: Mapping[str, Mapping]) -> Figure:
    """delta(t) of each cause: exact fields left, wrong ones right."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.9), sharey=True)
    for i, (name, look) in enumerate(OF_CAUSE.items()):
        ax, delta = axes[i // 3], shifts[name]["delta"]
        ax.fill_between(grid, delta["low"], delta["high"], color=look["color"], alpha=0.2, lw=0)
        ax.plot(grid, delta["value"], **look)
    for ax, title in zip(axes, ("exact field", "wrong field, fine steps"), strict=True):
        ax.axhline(0, color=INK, lw=1, zorder=1)
        ax.invert_xaxis()
        ax.set(title=title, xlabel="t (sampling →)")
    axes[0].set_ylabel("noise shift δ(t), in units of t")
    handles = [line(label=name, **look) for name, look in OF_CAUSE.items()]
    signs = [sign(shifts[name]["late"]) for name in OF_CAUSE]
    title = (
        f"Late in sampling {signs.count('above')} of {len(signs)} causes make states noisier than "
        f"scheduled, {signs.count('below')} cleaner"
    )
    return frame(fig, title, "", handles[:3], handles[3:])


@style()
def guidance(sweep: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Late shift and energy distance against w, a column per case, a line per negative."""
    fig, axes = plt.subplots(2, len(sweep), figsize=(WIDTH, 5.4), sharex=True)
    for column, case in zip(axes.T, CASES, strict=True):
        rows = sweep[case]
        for negative in dict.fromkeys(row["negative"] for row in rows[1:]):
            mine = [rows[0], *(row for row in rows if row["negative"] == negative)]
            for ax, name in zip(column, ("late shift", "distance"), strict=True):
                found = pd.DataFrame([row[name] for row in mine])
                _bars(ax, [row["w"] for row in mine], found, **OF_NEGATIVE[negative])
        column[0].axhline(0, color=INK, lw=1, zorder=1)
        column[0].set_title(case)
        column[1].set(xlabel="NAG weight w", ylim=(0, None))
    axes[0, 0].set_ylabel("late shift, in units of t")
    axes[1, 0].set_ylabel("energy distance")
    guided = [(row, sweep[case][0]) for case in CASES for row in sweep[case][1:]]
    smaller = [(row, none) for row, none in guided if _size(row) < _size(none)]
    nearer = sum(row["distance"]["value"] < none["distance"]["value"] for row, none in smaller)
    title = (
        f"{len(smaller)} of {len(guided)} guided settings reduce the shift, {nearer} of these "
        "also the distance to the truth"
    )
    legend = [line(label=name, **look) for name, look in OF_NEGATIVE.items()]
    return frame(fig, title, "", legend)


def _size(row: Mapping) -> float:
    return abs(row["late shift"]["value"])


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
        ax.set(title=name, xlabel="t (sampling →)", ylim=limits)
    t = np.linspace(0, 1, 50)
    axes[1].plot(t, np.full(50, 0.5), color=DIM, lw=1)
    axes[1].plot(t, (1 - t) / 2, color=DIM, lw=1, ls="--")
    rows = [line(label=name, **look) for name, look in priors.items()]
    networks = [
        line(color=INK, ls=kinds["eps"], label="ε-network"),
        line(color=INK, ls=kinds["v"], label="v-network"),
        line(color=DIM, lw=1, label="1/2 and (1 − t)/2"),
    ]
    early = table["t"] >= 0.2
    title = (
        f"Dropout's guidance: cosine with the exact one {table['cosine'][early].min():.2f} or more "
        f"for t ≥ 0.2, down to {table['cosine'][~early].min():.2f} near the data"
    )
    beyond = {
        name: table[name].max() for name, (_, top) in titles.items() if table[name].max() > top
    }
    note = "Curves leave their panels: " + ", ".join(
        f"{name} up to {value:.2g}" for name, value in beyond.items()
    )
    return frame(fig, title, f"{note}." * bool(beyond), rows, networks)


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
