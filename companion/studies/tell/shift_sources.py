"""What notebook 24 says of its numbers: Q7, where the noise shift comes from."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

from companion.plots import study_figures, style
from companion.studies.tell.words import listed, mini, sampler_name
from nag.interpolant import PATH_OF
from nag.samplers.registry import resolve
from nag.support.uncertainty import Interval, show, sign

PARTS = {  # of the stochastic sampler's raw reading: in sentences, and in the figure
    "estimator bias": ("bias of the estimator", "estimator's bias"),
    "network": ("network (ODE, infinitely many steps)", "network"),
    "stochasticity, limit": ("stochasticity (SDE − ODE, infinitely many steps)", "stochasticity"),
    "deterministic steps": ("discretisation of the ODE", "ODE's discretisation"),
    "stochastic steps": ("finite length of the stochastic steps", "length of SDE's steps"),
}
LOOKS = {
    "ode": style.OF_SAMPLER["ode"] | {"label": "ODE (Euler, DDIM)"},
    "sde": style.OF_SAMPLER["sde"] | {"label": "SDE (Euler–Maruyama, DDPM)"},
    "heun": style.OF_SAMPLER["ode"]
    | {"label": "ODE (Heun)", "marker": "^", "linestyle": ":", "mfc": "white"},
}
OF_ERROR = {"smooth bias": "D", "independent error": "v"}


def shown(x: Interval, digits: int = 4) -> str:
    return show(x, f"+.{digits}f")


def families(numbers: Mapping) -> list[str]:
    return [family for family in PATH_OF if family in numbers["networks"]]


def curve(found: Mapping) -> dict[int, Interval]:
    """{steps: interval} in the order of the steps, which JSON writes as text."""
    return {steps: found["steps"][str(steps)] for steps in sorted(map(int, found["steps"]))}


def zero(x: Interval) -> bool:
    """Whether the interval contains zero."""
    return sign(x) == "inconclusive"


# ---- tables


def table(numbers: Mapping, digits: int = 4) -> pd.DataFrame:
    """Late shift by number of steps, and extrapolated to infinitely many."""
    columns = {f"exact field, {sampler_name(s)}": found for s, found in numbers["toy"].items()}
    for family in families(numbers):
        for kind in ("ode", "sde"):
            name = sampler_name(resolve(kind, PATH_OF[family]))
            columns[f"{mini(family)}, {name}"] = numbers["networks"][family][kind]
    return _by_steps(columns, digits)


def one_step_table(numbers: Mapping) -> pd.DataFrame:
    """Shift per unit of time of a single step from a true forward state."""
    names = {"toy": "exact field"} | {family: mini(family) for family in families(numbers)}
    columns = {
        f"{name}, {kind.upper()}": numbers["one_step"][f"{key}-{kind}"]
        for key, name in names.items()
        for kind in ("ode", "sde")
    }
    return _by_steps(columns, 3)


def _by_steps(columns: Mapping[str, Mapping], digits: int) -> pd.DataFrame:
    shown_in = {
        name: {n: shown(x, digits) for n, x in curve(found).items()}
        | {"∞": shown(found["limit"], digits)}
        for name, found in columns.items()
    }
    steps = sorted({n for column in shown_in.values() for n in column if n != "∞"})
    return pd.DataFrame(shown_in).reindex([*steps, "∞"]).fillna("")


def parts_table(numbers: Mapping) -> pd.DataFrame:
    """The parts of the stochastic sampler's raw late reading."""
    return pd.DataFrame(
        {
            mini(family): {
                sentence: shown(numbers["networks"][family]["parts"][part])
                for part, (sentence, _) in PARTS.items()
            }
            for family in families(numbers)
        }
    )


# ---- sentences


def causes(found: Mapping) -> tuple[str, dict[str, Interval]]:
    """The largest part of the late shift of a network, and all parts but the estimator's bias,
    which the control takes off."""
    parts = {name: found["parts"][name] for name in PARTS if name != "estimator bias"}
    return max(parts, key=lambda name: abs(parts[name]["value"])), parts


def of_network(numbers: Mapping, family: str) -> str:
    """The late shift of one network's stochastic sampler and its parts."""
    found, at = numbers["networks"][family], numbers["table_steps"]
    (largest, parts), sde = causes(found), curve(found["sde"])
    fewest, most = min(sde), max(sde)
    times = " and ".join(f"{t:.2g}" for t in numbers["late_times"][family])
    others = ", ".join(
        f"{PARTS[name][0]} {shown(x)}" for name, x in parts.items() if name != largest
    )
    return (
        f"{mini(family)} with {sampler_name(resolve('sde', PATH_OF[family]))} in {at} steps: late "
        f"shift {shown(sde[at])} (read at t = {times} only; {shown(sde[fewest])} in {fewest} "
        f"steps, {shown(sde[most])} in {most}); of it {shown(parts[largest])} comes from the "
        f"{PARTS[largest][0]}; {others}"
    )


def lead(numbers: Mapping) -> str:
    largest = {causes(numbers["networks"][family])[0] for family in families(numbers)}
    if len(largest) > 1:
        return "The largest part of the shift differs between the networks"
    alike = ", in both networks" * (len(families(numbers)) > 1)
    return (
        "With a stochastic sampler the largest part of the shift is the "
        f"{PARTS[largest.pop()][0]}{alike}"
    )


def answers(numbers: Mapping) -> dict[str, dict]:
    toy_sde = list(curve(numbers["toy"]["euler_maruyama"]).items())
    some = toy_sde[len(toy_sde) // 3 :][:2]
    vanish = [zero(found["limit"]) for found in numbers["toy"].values()]
    honest = [zero(found["forward"]["less control"]) for found in numbers["networks"].values()]
    steps, each = numbers["table_steps"], families(numbers)
    exact = f"is zero within 95 % for {sum(vanish)} of {len(vanish)} samplers"
    sentence = (
        f"{lead(numbers)}. {'. '.join(of_network(numbers, family) for family in each)}. An exact "
        f"field has such a shift, too: in the toy, with {sampler_name('euler_maruyama')}, "
        f"{', '.join(f'{shown(x)} in {n} steps' for n, x in some)}; its limit {exact}. Forward "
        f"states minus the control read zero for {sum(honest)} of {len(honest)} estimators."
    )
    parts = []
    for family in each:
        largest, found = causes(numbers["networks"][family])
        late = numbers["networks"][family]["sde"]["steps"][str(steps)]
        parts.append(
            f"{mini(family)} {found[largest]['value']:+.4f}, late shift {late['value']:+.4f}"
        )
    brief = (
        f"{lead(numbers)}: {'; '.join(parts)} in {steps} steps. In an exact field the limit of the "
        f"shift {exact}."
    )
    return {
        "Q7": {
            "sentence": sentence,
            "brief": brief,
            "key": "networks",
            "figure": "figures/sources.png",
        }
    }


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers, and whether the paper agrees."""
    parts = {family: numbers["networks"][family]["parts"] for family in families(numbers)}
    found = "; ".join(
        f"{mini(family)}: length of the steps {shown(of['stochastic steps'])}, network "
        f"{shown(of['network'])}"
        for family, of in parts.items()
    )
    causes = {"the steps": "stochastic steps", "the network": "network"}
    here = [
        cause
        for cause, part in causes.items()
        if all(sign(of[part]) == "above" for of in parts.values())
    ]
    agrees = {0: "neither is shown", 1: f"only {here and here[0]} is shown", 2: "both are shown"}
    return (
        f"Parts of the late shift of a stochastic sampler, {found}. The paper names steps and "
        f"network as its causes: {agrees[len(here)]} here."
    )


# ---- figures


def images(file: Path, numbers: Mapping) -> Figure:
    """The first images of every network by the stochastic sampler, from few steps to many."""
    with np.load(file) as arrays:
        arms = [name.split() for name in arrays.files]
    rows = {
        f"{family} {kind} {steps}": f"{mini(family)}, {steps} steps"
        for family, kind, steps in sorted(arms, key=lambda arm: (arm[0], int(arm[2])))
        if kind == "sde"
    }
    return study_figures.first_images(file, rows, title(numbers))


def title(numbers: Mapping) -> str:
    """The finding of the figure, from the limits of the stochastic samplers."""
    limits = [numbers["networks"][family]["sde"]["limit"] for family in families(numbers)]
    if all(map(zero, limits)):
        return "A stochastic sampler's noise shift vanishes as its steps become finer"
    return "Not all of a stochastic sampler's noise shift vanishes as its steps become finer"


def _refined(ax: Axes, curves: Mapping[str, Mapping], linear: float, **look) -> None:
    """Curves over steps, linear around zero, the extrapolation as an open point at the right."""
    ax.set_yscale("symlog", linthresh=linear)
    ax.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=(1, 3)))
    ax.yaxis.set_major_formatter("{x:g}")
    for kind, found in curves.items():
        by_steps = curve(found)
        end, style_of = 2.5 * max(by_steps), LOOKS[kind] | look
        study_figures.error_bars(ax, [*by_steps], [*by_steps.values()], **style_of)
        open_point = style_of | {"mfc": "white", "linestyle": "none"}
        study_figures.error_bars(ax, [end], [found["limit"]], **open_point)
    study_figures.line_at(ax, 0)
    ax.set_xscale("log")
    ax.set_xticks([*by_steps, end], [*map(str, by_steps), "∞"], fontsize=8)
    ax.minorticks_off()
    ax.set_xlabel("steps")


def _planted(ax: Axes, found: list[dict]) -> None:
    """Shift by the size of a planted error, and as Statement 1 predicts it (lines)."""
    for kind, marker in OF_ERROR.items():
        rows = sorted((x for x in found if x["kind"] == kind), key=lambda x: x["size"])
        sizes = [x["size"] for x in rows]
        ax.plot(sizes, [x["predicted"] for x in rows], color=style.DIM, lw=1)
        study_figures.error_bars(ax, sizes, rows, color=style.INK, marker=marker, ls="none")
        ax.annotate(
            kind,
            (sizes[0], rows[0]["value"]),
            (6, -2),
            textcoords="offset points",
            fontsize=8.5,
            va="top",
        )
    ax.set(xscale="log", xlabel="size b of the planted error")
    study_figures.log_axis(ax)
    ax.minorticks_off()
    ax.set_xticks(sizes, [f"{b:g}" for b in sizes])


def _parts(ax: Axes, numbers: Mapping) -> None:
    each = families(numbers)
    for k, family in enumerate(each):
        for y, part in enumerate(PARTS):
            x = numbers["networks"][family]["parts"][part]
            place, look = y + 0.3 * (k - (len(each) - 1) / 2), style.OF_FAMILY[family]
            ax.plot([x["low"], x["high"]], [place] * 2, color=look["color"])
            ax.plot(x["value"], place, **look)
    study_figures.line_at(ax, 0, vertical=True)
    ax.set_yticks(range(len(PARTS)), [name for _, name in PARTS.values()], fontsize=8.5)
    ax.set_ylim(len(PARTS) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(4))


@style.style()
def figure(numbers: Mapping) -> Figure:
    """Shift by steps of the exact field and the networks; a planted error; single steps; parts."""
    each, late = families(numbers), "late shift (units of t)"
    fig, axes = style.panels(4 + len(each), 2)
    toy = numbers["toy"]
    exact = {"ode": toy["euler"], "sde": toy["euler_maruyama"], "heun": toy["heun"]}
    _refined(axes[0], exact, 0.01)
    axes[0].set(title="Exact field: no network error", ylabel=late)
    for ax, family in zip(axes[1:], each, strict=False):
        _refined(ax, {kind: numbers["networks"][family][kind] for kind in ("ode", "sde")}, 0.01)
        ax.set(title=mini(family), ylabel=late)
    planted, one_step, parts = axes[-3:]
    _planted(planted, numbers["planted"])
    planted.set(title="Planted error; lines: Statement 1", ylabel=late)
    for family, lw in zip(each, (1.8, 0.8), strict=False):
        curves = {kind: numbers["one_step"][f"{family}-{kind}"] for kind in ("ode", "sde")}
        _refined(one_step, curves, 0.1, lw=lw, ms=3 * lw)
    widths = " and ".join(
        f"{mini(f)} {look}" for f, look in zip(each, ("thick", "thin"), strict=False)
    )
    one_step.set(title=f"A single step: {widths}", ylabel="shift per unit of time")
    _parts(parts, numbers)
    parts.set(title=f"Parts of the SDE's reading, {numbers['table_steps']} steps", xlabel=late)
    times = listed(f"{t:g}" for t in sorted(numbers["late_times"]["toy"]))
    note = (
        f"Late: mean over t = {times}. Open points at ∞: polynomial in 1/steps, from "
        f"{numbers['fit_from']} steps on. Networks: {numbers['n']} trajectories on uniform grids, "
        f"control of {numbers['control_images']} test images. Exact field: {numbers['toy_n']} "
        "trajectories, exact posterior. Bars: 95 % CI over images. Vertical axes of shift: linear "
        "around zero, else logarithmic. Single steps start from forward states."
    )
    kinds = [style.line(**look) for look in LOOKS.values()]
    networks = [style.line(**style.OF_FAMILY[f], label=mini(f), linestyle="none") for f in each]
    return style.frame(fig, title(numbers), note, kinds, networks)
