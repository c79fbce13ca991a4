"""What notebook 26 says of its numbers: Q8, whether another time grid asks for retraining."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from companion.plots import study_figures, style
from companion.studies.tell.words import listed, mini, sampler_name
from nag.interpolant import PATH_OF
from nag.samplers.registry import resolve
from nag.support.uncertainty import outcome, show, sign

NAMES = {
    "uniform": "uniform",
    "respaced": "respaced",
    "logsnr": "log SNR",
    "edm": "EDM",
    "shifted": "shifted",
    "sde": "its own",
}
HALVED = 0.5  # the gap of two solutions of one ODE at four times the steps is about a quarter
CAVEAT = "One network of each family; intervals are over images and not widened for their number"


def split(found: Mapping[str, dict]) -> dict[tuple[str, str, str], dict]:
    """{(family, grid, arm): number} of {"sit-logsnr-none": number, ...}, in the order of texts."""
    families, names = list(PATH_OF), list(NAMES)
    keys = {}
    for key, x in found.items():
        family, grid, arm = key.split("-", 2)
        keys[family, grid, arm] = x
    order = sorted(keys, key=lambda key: (families.index(key[0]), names.index(key[1])))
    return {key: keys[key] for key in order}


def families(numbers: Mapping) -> list[str]:
    return [family for family in PATH_OF if family in numbers["images_apart"]]


def grids(numbers: Mapping, family: str) -> list[str]:
    """The grids of a family, the usual one first: it is the one without a ratio over it."""
    mine = [grid for grid in NAMES if f"{family}-{grid}" in numbers["w_nag"]]
    return sorted(mine, key=lambda grid: f"{family}-{grid}-none" in numbers["to_usual"])


def other_grid(numbers: Mapping) -> str:
    """The grid that is also sampled in many steps."""
    keys = split(numbers["shift_at"] | numbers["to_usual"])
    long = {grid for family, grid, arm in keys if "long" in arm or "SDE" in arm} - {"sde"}
    return (long or {grids(numbers, family)[1] for family in families(numbers)}).pop()


def solvers_of(families: Iterable[str]) -> str:
    """ "Euler (SiT-mini) and DDIM (DiT-mini)"."""
    return listed(f"{sampler_name(resolve('ode', PATH_OF[f]))} ({mini(f)})" for f in families)


# ---- table


def table(numbers: Mapping) -> pd.DataFrame:
    """Fréchet ratios on every grid: over the usual grid, and of NAG over no guidance."""
    over, gain = split(numbers["to_usual"]), split(numbers["to_none"])

    def shown(found: Mapping, key: tuple) -> str:
        return show(found[key]) if key in found else "–"

    lines = [
        {
            "network": mini(family),
            "grid": NAMES[grid] + " (usual)" * (grid == grids(numbers, family)[0]),
            "w": numbers["w_nag"][f"{family}-{grid}"],
            "unguided, over usual grid": shown(over, (family, grid, "none")),
            "NAG, over usual grid": shown(over, (family, grid, "nag")),
            "many steps, over usual grid": shown(over, (family, grid, "none, long")),
            "NAG over no guidance": shown(gain, (family, grid, "nag")),
            "apart from usual in many steps": show(numbers["images_to_long"][f"{family}-{grid}"]),
        }
        for family in families(numbers)
        for grid in grids(numbers, family)
    ]
    return pd.DataFrame(lines)


# ---- sentences


def grouped(
    ratios: Mapping[tuple[str, str], Mapping],
    form: str = ".2f",
    word: Callable[[Mapping], str] = outcome,
) -> str:
    """Ratios of (family, what) by their outcome: "worse (SiT-mini 1.11 [1.04, 1.19] on EDM)"."""
    groups: dict[str, dict[str, list]] = {}
    for (family, what), x in ratios.items():
        of = groups.setdefault(word(x), {})
        of.setdefault(mini(family), []).append(f"{show(x, form)} {what}")
    return ", ".join(
        f"{word} (" + "; ".join(f"{name} {', '.join(some)}" for name, some in of.items()) + ")"
        for word, of in groups.items()
    )


def closing(found: Mapping) -> str:
    """Whether the gap between two grids closes with the steps: "closes", "narrows" or "stays"."""
    high = found["many over few"]["high"]
    return "closes" if high < HALVED else "narrows" if high < 1 else "stays"


def retraining(numbers: Mapping) -> str:
    """What many steps say of the need to retrain, for all families together."""
    meaning = {
        "closes": "the gap closes as between solutions of one ODE, so nothing here asks for "
        "retraining",
        "narrows": "the gap narrows but whether it is halved is inconclusive, so more than the "
        "solver's error may be behind it",
        "stays": "that the gap narrows is not shown, so more than the solver's error may be behind "
        "it",
    }
    groups: dict[str, list] = {}
    for family in families(numbers):
        groups.setdefault(closing(numbers["images_apart"][family]), []).append(mini(family))
    sizes = "; ".join(
        f"{mini(f)} {show(x['few'])} and {show(x['many'])}"
        for f in families(numbers)
        for x in [numbers["images_apart"][f]]
    )
    found = "; ".join(
        f"for {listed(names)} " * (len(groups) > 1) + meaning[word]
        for word, names in groups.items()
    )
    usual = ", ".join(f"{NAMES[grids(numbers, f)[0]]} for {mini(f)}" for f in families(numbers))
    return (
        f"Unguided images of a seed on the usual grid ({usual}) and on the "
        f"{NAMES[other_grid(numbers)]} grid lie this far apart at {numbers['steps']} and at "
        f"{numbers['long']['steps']} steps (1: as two images of a class): {sizes}; {found}."
    )


def stochastic(numbers: Mapping) -> str:
    """Whether another grid makes the shift of the stochastic sampler smaller."""
    words, parts, other = {"below": "smaller", "above": "larger"}, [], other_grid(numbers)
    for key, change in numbers["sde_change"].items():
        family, t = key.split("-")
        own, new = (
            show(numbers["shift_at"][f"{family}-{grid}-none, SDE-{t}"], "+.4f")
            for grid in ("sde", other)
        )
        side = sign(change)
        parts.append(
            f"{words.get(side, side)} at t = {t} ({mini(family)} {new} for {own} on the sampler's "
            "own grid)"
        )
    return (
        f" Noise shift of Euler–Maruyama on the {NAMES[other]} grid, {numbers['sde']['steps']} "
        f"steps, unguided: {', '.join(parts)}."
    ) * bool(parts)


def answers(numbers: Mapping) -> dict[str, dict]:
    usual = {f: grids(numbers, f)[0] for f in families(numbers)}
    plain = {
        (f, f"on {NAMES[grid]}"): x
        for (f, grid, arm), x in split(numbers["to_usual"]).items()
        if arm == "none"
    }
    guided = {
        (f, f"on {NAMES[grid]}"): x
        for (f, grid, _), x in split(numbers["to_none"]).items()
        if grid != usual[f]
    }
    ends = [f"{mini(f)} {NAMES[g]}" for f, g in (k.split("-") for k in numbers["tuning"]["at_end"])]
    weight = "w tuned on each grid" if numbers["tuning"]["tried"] else "w of the usual grid"
    weight += f", at an end of its list for {listed(ends)}" if ends else ""
    sentence = (
        f"{retraining(numbers)} At {numbers['steps']} steps of {solvers_of(families(numbers))}, "
        f"{numbers['n']} images, the unguided distance over the usual grid's: {grouped(plain)}. "
        f"NAG over no guidance on these grids ({weight}; twice the evaluations, equal cost is "
        f"question 2): {grouped(guided)}.{stochastic(numbers)} {CAVEAT} "
        f"({len(plain) + len(guided)} ratios)."
    )
    return {
        "Q8": {
            "sentence": sentence,
            "brief": retraining(numbers),
            "key": "to_usual",
            "figure": "figures/grids.png",
        }
    }


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers."""
    gaps = "; ".join(
        f"{mini(f)} {show(x['few'])} to {show(x['many'])}"
        for f in families(numbers)
        for x in [numbers["images_apart"][f]]
    )
    steps = f"{numbers['steps']} to {numbers['long']['steps']} steps"
    return f"{title(numbers)} ({steps}: {gaps}). The paper leaves this open."


# ---- figures


def images(file: Path, numbers: Mapping) -> Figure:
    """The first images of every network on every grid, without and with NAG."""
    rows = {
        f"{family}-{grid}-{arm}": f"{mini(family)}, {NAMES[grid]},\n{style.ARMS[arm]['label']}"
        for family in families(numbers)
        for arm in ("none", "nag")
        for grid in grids(numbers, family)
    }
    return study_figures.first_images(file, rows, title(numbers), f"{numbers['steps']} steps.")


def title(numbers: Mapping) -> str:
    """The finding of the figure: whether the gap between two grids closes."""
    words = [closing(numbers["images_apart"][family]) for family in families(numbers)]
    if set(words) == {"closes"}:
        return "Two time grids come to the same images as the steps become finer"
    return "Two time grids need not come to the same images as the steps become finer"


def _gap(ax: Axes, numbers: Mapping) -> None:
    """How far the images of a seed lie apart on two grids, in few and in many steps."""
    steps = [numbers["steps"], numbers["long"]["steps"]]
    for family in families(numbers):
        found, at = numbers["images_apart"][family], style.OF_FAMILY[family]
        study_figures.error_bars(ax, steps, [found["few"], found["many"]], **at)
        ax.annotate(
            mini(family),
            (steps[1], found["many"]["value"]),
            (8, 0),
            va="center",
            textcoords="offset points",
            fontsize=9,
            color=at["color"],
        )
    ax.set(
        xscale="log",
        xlabel="steps (log)",
        ylabel="gap between images\n(1: two of a class)",
        ylim=(0, None),
    )
    ax.minorticks_off()
    ax.set_xticks(steps, [f"{n}" for n in steps])
    ax.set_xlim(0.8 * steps[0], 2 * steps[1])


def _ratios(ax: Axes, numbers: Mapping, ratios: Mapping, arms: list[str], usual: bool) -> None:
    """A row for each network and grid (without the usual one if it is what is compared with), a
    point for each arm; left of 1 is better."""
    rows = [
        (family, grid)
        for family in families(numbers)
        for grid in grids(numbers, family)[0 if usual else 1 :]
    ]
    for y, (family, grid) in enumerate(rows):
        for k, arm in enumerate(arms):
            x = ratios.get((family, grid, arm))
            if x is None:
                continue
            look, place = style.arm_style(arm), y + 0.24 * (k - (len(arms) - 1) / 2)
            face = "white" if outcome(x) == "inconclusive" else look["color"]
            ax.plot([x["low"], x["high"]], [place] * 2, color=look["color"])
            ax.plot(x["value"], place, marker=look["marker"], color=look["color"], mfc=face)
            if arm == "nag" and f"{family}-{grid}" in numbers["tuning"]["at_end"]:
                study_figures.ring(ax, [x["value"]], [place])
    study_figures.line_at(ax, 1, vertical=True)
    ax.set_yticks(range(len(rows)), [f"{mini(f)}, {NAMES[g]}" for f, g in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _shift(ax: Axes, numbers: Mapping) -> None:
    """The stochastic sampler's shift on its own grid and on the other."""
    rows = [key.split("-") for key in numbers["sde_change"]]
    for y, (family, t) in enumerate(rows):
        for k, (grid, look) in enumerate(_of_grid(numbers).items()):
            x, place = numbers["shift_at"][f"{family}-{grid}-none, SDE-{t}"], y + 0.24 * (k - 0.5)
            ax.plot([x["low"], x["high"]], [place] * 2, color=look["color"])
            ax.plot(x["value"], place, **{k: look[k] for k in ("color", "marker")})
    study_figures.line_at(ax, 0, vertical=True)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_yticks(range(len(rows)), [f"{mini(f)}, t = {t}" for f, t in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)


def _of_grid(numbers: Mapping) -> dict[str, dict]:
    other = other_grid(numbers)
    return {
        "sde": {"color": style.INK, "marker": "o", "label": "own grid"},
        other: {"color": style.SERIES[1], "marker": "s", "label": f"{NAMES[other]} grid"},
    }


@style.style()
def figure(numbers: Mapping) -> Figure:
    """The gap between two grids by steps; ratios over the usual grid and of NAG; the shift of the
    stochastic sampler, if it was measured on two grids."""
    has_shift = bool(numbers["sde_change"])
    fig, (gap, over, gain, *rest) = style.panels(3 + has_shift, 2)
    _gap(gap, numbers)
    gap.set_title(f"Images of a seed: usual and {NAMES[other_grid(numbers)]} grid")
    _ratios(over, numbers, split(numbers["to_usual"]), ["none", "nag"], usual=False)
    over.set(title="Another grid over the usual one", xlabel="Fréchet ratio")
    _ratios(gain, numbers, split(numbers["to_none"]), ["nag"], usual=True)
    gain.set(title="NAG over no guidance, same grid", xlabel="Fréchet ratio")
    legend = [style.line(**style.arm_style(arm) | {"ls": "none"}) for arm in ("none", "nag")]
    if numbers["tuning"]["at_end"]:
        legend.append(study_figures.ring_handle())
    for ax in rest:
        _shift(ax, numbers)
        ax.set(title="Shift of Euler–Maruyama, unguided", xlabel="noise shift (units of t)")
        legend += [style.line(**look, ls="none") for look in _of_grid(numbers).values()]
    weights = "; ".join(
        f"{mini(f)} "
        + ", ".join(f"{NAMES[g]} {numbers['w_nag'][f'{f}-{g}']:g}" for g in grids(numbers, f))
        for f in families(numbers)
    )
    note = (
        f"N = {numbers['n']}, {numbers['steps']} steps of {solvers_of(families(numbers))}, "
        f"{numbers['precision']}; {numbers['long']['n']} images in {numbers['long']['steps']} "
        f"steps and with Euler–Maruyama ({numbers['sde']['steps']} steps). NAG takes two "
        f"evaluations a step; its w: {weights}. Open points: inconclusive. One network of each "
        "family; bars: 95 % CI over images."
    )
    return style.frame(fig, title(numbers), note, legend)
