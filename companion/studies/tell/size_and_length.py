"""What the study of size and length found (question 4): table, figure and sentences."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from scipy.stats import studentized_range

from companion.plots.study_figures import line_at, log_axis
from companion.plots.style import ARMS, OF_SAMPLER, WIDTH, frame, line, style
from nag.support.uncertainty import show, sign

Chains = Mapping[str, Sequence[str]]  # "size" and "length": networks, the least first
NONE = "no trend shown"
TREND = {"below": "falls", "above": "grows", "inconclusive": NONE}
ALONG = {"size": "parameters", "length": "images_seen"}
AXES = {"size": "parameters", "length": "training images seen"}
SHIFTS = {"Euler–Maruyama": "late shift, stochastic", "Euler": "late shift, Euler"}
SOLVERS = {
    "shift_sde": OF_SAMPLER["sde"] | {"label": "Euler–Maruyama"},
    "shift_ode": OF_SAMPLER["ode"] | {"label": "Euler"},
}
BESIDE = 1.13  # how far to the right, as a factor, another training seed of a network is drawn
DASHES = ("-", ":", "-.", "--")  # of NAG's weights


def weights(numbers: Mapping) -> list[str]:
    """NAG's weights as they are named in the numbers, such as "w=1.5"."""
    return list(next(iter(numbers["networks"].values()))["gain"])


def table(numbers: Mapping) -> pd.DataFrame:
    """Every trend: first and last value, change per doubling, rank correlation and the verdict."""
    return pd.DataFrame(
        [
            {
                "along": AXES[axis],
                "measure": what,
                "first": found["signed"]["first"],
                "last": found["signed"]["last"],
                "per doubling": show(found["per_doubling"], ".4f"),
                "rank correlation": found["rank"]["value"],
                "range over seed s.d.": found["range"] / max(found["seed_sd"], 1e-12),
                "trend": TREND[sign(found["per_doubling"])],
            }
            for axis in AXES
            for what, found in numbers["trends"][axis].items()
        ]
    ).round(4)


# ---- figure


def _short(amount: float) -> str:
    return f"{amount / 1e6:.2g} M" if amount >= 1e6 else f"{amount / 1e3:.0f} k"


def _draw(ax: Axes, numbers: Mapping, axis: str, chain: Sequence[str], looks: Mapping) -> None:
    """One line for each look along a chain; networks of other training seeds as open points, to the
    right of their like.
    """
    networks, along = numbers["networks"], ALONG[axis]

    def read(name: str, what: str) -> Mapping[str, float]:
        return networks[name][what] if what in SOLVERS else networks[name]["gain"][what]

    for k, (what, look) in enumerate(looks.items()):
        x = np.array([networks[name][along] for name in chain])
        low, value, high = (
            np.array([read(name, what)[end] for name in chain]) for end in ("low", "value", "high")
        )
        ax.errorbar(x, value, [value - low, high - value], capsize=3, zorder=3, **look)
        for first, *repeats in numbers["training_seeds"]:
            for j, name in enumerate(repeats if first in chain else [], 1):
                ax.plot(
                    networks[name][along] * BESIDE ** (j + k / 2),
                    read(name, what)["value"],
                    marker=look["marker"],
                    ms=5,
                    mfc="white",
                    mec=look["color"],
                    mew=1.3,
                    zorder=4,
                )
    ax.set_xscale("log")
    amounts = sorted({networks[name][along] for name in chain})
    ax.xaxis.set_major_locator(FixedLocator(amounts))
    ax.xaxis.set_major_formatter(FixedFormatter([_short(amount) for amount in amounts]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.08)


def _shift_scale(ax: Axes, numbers: Mapping, chain: Sequence[str]) -> None:
    """Log where no interval reaches down by more than a factor of two, else linear with zero in
    view.
    """
    found = [numbers["networks"][name][what] for name in chain for what in SOLVERS]
    if all(0 < x["value"] < 2 * x["low"] for x in found):
        log_axis(ax, "y", apart=0.15)
        ax.set_ylabel("late noise shift (log)")
    else:
        line_at(ax, 0)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.set_ylabel("late noise shift (units of t)")


@style()
def figure(numbers: Mapping, chains: Chains) -> Figure:
    """Late shift and NAG's gain against size and against length of training."""
    looks = {
        w: ARMS["nag"] | {"label": f"NAG, w = {w[2:]}", "marker": marker, "linestyle": dash}
        for w, marker, dash in zip(weights(numbers), "s^vP", DASHES, strict=False)
    }
    fig, axes = plt.subplots(2, 2, figsize=(WIDTH, 6.3), squeeze=False)
    for column, (axis, chain) in enumerate(chains.items()):
        top, bottom = axes[:, column]
        _draw(top, numbers, axis, chain, SOLVERS)
        _shift_scale(top, numbers, chain)
        _draw(bottom, numbers, axis, chain, looks)
        line_at(bottom, 1)
        bottom.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        found = numbers["trends"][axis]
        shift, gain = (
            found[SHIFTS["Euler"]],
            found[f"log distance ratio of NAG, {weights(numbers)[0]}"],
        )
        top.set_title(
            f"Euler's shift: {shift['signed']['first']:.4f} to {shift['signed']['last']:.4f}"
        )
        bottom.set_title(
            f"NAG's ratio, w = {weights(numbers)[0][2:]}: {np.exp(gain['first']):.2f} to "
            f"{np.exp(gain['last']):.2f} ({TREND[sign(gain['per_doubling'])]})"
        )
        for ax in (top, bottom):
            ax.set_xlabel(f"{AXES[axis]} (log)")
    axes[1, 1].sharey(axes[1, 0])
    axes[1, 1].autoscale(axis="y")
    axes[1, 0].set_ylabel("distance with NAG / without\n(below 1 is better)")
    networks = numbers["networks"]
    note = (
        f"SiT on Fashion-MNIST; left {networks[chains['size'][0]]['images_seen']:,} training "
        f"images each, right {networks[chains['length'][0]]['parameters'] / 1e6:.2g} M parameters. "
        f"Late shift: σ/α ≤ 0.25, {numbers['trajectories']} trajectories, "
        f"Euler–Maruyama {numbers['sde_steps']} steps, Euler {numbers['steps']}. Distance: Euler, "
        f"N = {numbers['n']}{', bias-corrected' * numbers['gain_bias_corrected']}. Bars: 95 % CI "
        "over images; open points: the same network from another training seed, moved to the right."
    )
    handles = [line(**look) for look in (SOLVERS | looks).values()]
    return frame(fig, title(numbers), note, handles)


def title(numbers: Mapping) -> str:
    """The finding in one line: how Euler's shift and NAG's gain go along both axes."""

    def verdicts(what: str) -> set[str]:
        return {TREND[sign(found[what]["per_doubling"])] for found in numbers["trends"].values()}

    shift = verdicts(SHIFTS["Euler"])
    gain = verdicts(f"log distance ratio of NAG, {weights(numbers)[0]}")
    first = {
        frozenset({"falls"}): "The noise shift shrinks with size and with training",
        frozenset({"grows"}): "The noise shift grows with size and with training",
    }.get(frozenset(shift), "The noise shift has no common trend in size and training")
    second = (
        "; NAG's gain shrinks too"
        if gain == {"grows"}
        else ("; that NAG's gain shrinks is not shown" if "grows" not in gain else "")
    )
    return first + second


def shown(numbers: Mapping, chains: Chains) -> dict[str, str]:
    """The arms whose first images are worth a look, in words: the smallest and the largest network
    without guidance and with the best of NAG's weights.
    """
    found: dict[str, str] = {}
    for name in (chains["size"][0], chains["size"][-1]):
        network = numbers["networks"][name]
        gain = network["gain"]
        best = min(weights(numbers), key=lambda w: gain[w]["value"])
        size = f"{network['parameters'] / 1e6:.2g} M"
        found |= {f"{name}-w=0": f"{size}, unguided", f"{name}-{best}": f"{size}, NAG {best}"}
    return found


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers."""
    ends = (
        f"{signed['first']:.4f} to {signed['last']:.4f} along {AXES[axis]}"
        for axis, found in numbers["trends"].items()
        for signed in [found[SHIFTS["Euler"]]["signed"]]
    )
    return (
        f"{title(numbers)} (Euler's late shift {'; '.join(ends)}). The paper has one size per "
        "family and looks at neither."
    )


# ---- sentences


def _course(numbers: Mapping, axis: str, solver: str, length: int) -> str:
    """How the late shift goes along a chain of so many networks, in words that hold whatever its
    sign.
    """
    found = numbers["trends"][axis][SHIFTS[solver]]
    signed, first_seeds = found["signed"], numbers["training_seeds"]
    freedom = sum(len(alike) - 1 for alike in first_seeds)
    word = {"below": "nearer to zero", "above": "farther from zero"}.get(
        sign(found["per_doubling"]), NONE
    )
    if word == NONE and sign(signed["per_doubling"]) != "inconclusive":
        word = f"{TREND[sign(signed['per_doubling'])]}, no nearer to zero"
    elif word == NONE and found["range"] > found["seed_sd"] * studentized_range.ppf(
        0.95, length, freedom
    ):
        word = f"no steady trend, but a range of {found['range']:.4f}"
    return f"with {solver} from {signed['first']:+.4f} to {signed['last']:+.4f} ({word})"


def _gain(numbers: Mapping, axis: str, w: str) -> str:
    found = numbers["trends"][axis][f"log distance ratio of NAG, {w}"]
    return (
        f"at w = {w[2:]} from {np.exp(found['first']):.2f} to {np.exp(found['last']):.2f} "
        f"({TREND[sign(found['per_doubling'])]})"
    )


def _answer(numbers: Mapping, axis: str, chain: Sequence[str], ws: Sequence[str]) -> str:
    ends = [numbers["networks"][name][ALONG[axis]] for name in (chain[0], chain[-1])]
    span = (
        f"{ends[0] / 1e6:.1f} to {ends[1] / 1e6:.1f} M parameters"
        if axis == "size"
        else f"{ends[0]:,} to {ends[1]:,} training images"
    )
    loss = numbers["trends"][axis]["held-out loss"]
    return (
        f"From {span} (held-out loss {loss['first']:.3f} to {loss['last']:.3f}, "
        f"{TREND[sign(loss['per_doubling'])]}) the late shift goes "
        + ", ".join(_course(numbers, axis, solver, len(chain)) for solver in SHIFTS)
        + f"; the{' bias-corrected' * numbers['gain_bias_corrected']} distance with NAG over that "
        "without goes " + ", ".join(_gain(numbers, axis, w) for w in ws)
    )


def answers(numbers: Mapping, chains: Chains, figure: str) -> dict[str, dict]:
    """What the study says to question 4."""
    networks, ws = numbers["networks"], weights(numbers)
    alone = " and ".join(
        f"{numbers['seed_sd'][what]:.4f} ({solver})" for solver, what in SHIFTS.items()
    )
    several = " and ".join(
        f"{networks[alike[0]]['parameters'] / 1e6:.1f} M" for alike in numbers["training_seeds"]
    )
    limits = (
        f" A training seed alone moves these shifts by {alone} (s.d. from repeats at {several} "
        "parameters, taken to hold for all)."
    )

    def said(weights: Sequence[str]) -> str:
        return ". ".join(_answer(numbers, axis, c, weights) for axis, c in chains.items()) + "."

    return {
        "Q4": {
            "sentence": said(ws) + limits + " Shifts are read by one estimator against forward "
            "states of real images: below about 0.005 estimators disagree (Q6), and images of a "
            "poor network are foreign to it. What a stochastic sampler's shift is made of, network "
            f"or steps, is Q7. Each trend is judged by itself at 95 %; N = {numbers['n']}, "
            f"{numbers['trajectories']} trajectories.",
            "brief": said(ws[:1]) + limits,
            "key": "trends",
            "figure": figure,
        }
    }
