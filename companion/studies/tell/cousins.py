"""What notebook 33 says of its numbers: Q11, whether NAG's gain needs a null noise condition."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots.study_figures import line_at, ring, ring_handle
from companion.plots.style import ARMS, SERIES, WIDTH, frame, line, style
from companion.studies.tell.rivals import LABELS, name
from companion.studies.tell.words import FAMILIES, in_both, listed, sampler_name
from nag.support.uncertainty import outcome, show

WITH, WITHOUT = "with dropout", "without dropout"
LOOKS = {
    WITH: {
        "label": "trained with noise-condition dropout",
        "color": SERIES[0],
        "marker": "o",
        "linestyle": "-",
    },
    "nag": ARMS["nag"] | {"label": "NAG, or method with NAG", "linestyle": "-"},
    WITHOUT: {"label": "trained without", "color": SERIES[1], "marker": "D", "linestyle": "-"},
}


def samplers(numbers: Mapping) -> list[str]:
    """The samplers, "ode" first."""
    return list(numbers["nfe"])


def key(network: str, sampler: str) -> str:
    """What the numbers call one network with one sampler."""
    return f"{network}, {sampler}"


def solver(numbers: Mapping, sampler: str) -> str:
    """The sampler as texts name it, with its cost: "Euler, 48 evaluations"."""
    return f"{sampler_name(numbers['samplers'][sampler])}, {numbers['nfe'][sampler]} evaluations"


def cousins(numbers: Mapping) -> list[str]:
    """The methods beside NAG, the least mean ratio to NAG first."""
    found = [numbers["ratios"][key(WITH, sampler)]["over_nag"] for sampler in samplers(numbers)]
    return sorted(found[0], key=lambda method: sum(ratios[method]["value"] for ratios in found))


def table(numbers: Mapping) -> pd.DataFrame:
    """Ratios of every method by sampler: over no guidance, over NAG, and with NAG over NAG."""
    rows = {}
    for sampler in samplers(numbers):
        found, without = (numbers["ratios"][key(n, sampler)] for n in (WITH, WITHOUT))
        for method in ["nag", *cousins(numbers)]:
            rows[solver(numbers, sampler), LABELS[method]] = {
                "setting": numbers["chosen"][key(WITH, sampler)][method]["setting"],
                "over no guidance": _said(found["unguided"], method),
                "over NAG": _said(found["over_nag"], method),
                "with NAG, over NAG": _said(found["adds_to_nag"], method),
                "without dropout, over no guidance": _said(without["unguided"], method),
            }
    return pd.DataFrame(rows).T


def _said(ratios: Mapping, arm: str) -> str:
    return in_both(ratios[arm]) if arm in ratios else "–"


# ---- figure


def _rows(ax: Axes, numbers: Mapping, sampler: str, order: Sequence[str]) -> bool:
    """A row for each method: alone, with NAG, and alone on the network without dropout; whether a
    ring marks a setting at an end of its list.
    """
    found, without = (numbers["ratios"][key(n, sampler)]["unguided"] for n in (WITH, WITHOUT))
    ends = []
    for place, method in enumerate(order):
        look = "nag" if method == "nag" else WITH
        points = [
            (found.get(method), look, -0.2 * (method != "nag"), WITH),
            (found.get(f"{method}+nag"), "nag", 0.0, None),
            (without.get(method), WITHOUT, 0.2, WITHOUT),
        ]
        for ratio, look, offset, network in points:
            if ratio is None:
                continue
            color, y = LOOKS[look]["color"], place + offset
            face = "white" if outcome(ratio) == "inconclusive" else color
            ax.plot([ratio["low"], ratio["high"]], [y, y], color=color)
            ax.plot(ratio["value"], y, LOOKS[look]["marker"], color=color, mfc=face)
            if network and numbers["chosen"][key(network, sampler)][method]["setting at an end"]:
                ends.append((ratio["value"], y))
    for x, y in ends:
        ring(ax, [x], [y])
    line_at(ax, 1, vertical=True)
    ax.set(
        ylim=(len(order) - 0.5, -0.5),
        title=solver(numbers, sampler),
        xlabel="Fréchet distance / unguided",
    )
    ax.grid(axis="y", visible=False)
    return bool(ends)


@style()
def figure(numbers: Mapping) -> Figure:
    """Distance over the unguided one of the same network, for every method and sampler."""
    order = ["nag", *cousins(numbers)]
    shown = samplers(numbers)
    fig, axes = plt.subplots(
        1, len(shown), figsize=(WIDTH, 1.9 + 0.5 * len(order)), sharey=True, squeeze=False
    )
    ends = [_rows(ax, numbers, s, order) for ax, s in zip(axes[0], shown, strict=True)]
    axes[0, 0].set_yticks(range(len(order)), [LABELS[method] for method in order])
    handles = [
        line(**{k: look[k] for k in ("color", "marker", "label", "linestyle")})
        for look in LOOKS.values()
    ]
    handles += [ring_handle()] if any(ends) else []
    note = (
        f"{FAMILIES[numbers['family']]} of 0.5 M parameters, one training with and one without "
        f"noise-condition dropout; {numbers['n']} images, seeds {numbers['seeds'][0]} to "
        f"{numbers['seeds'][1]}; every method tuned on {numbers['settings']} settings of "
        f"{numbers['tuning_images']} other images. Bars: 95 % CI over images; open: it contains 1."
    )
    return frame(fig, title(numbers), note, handles)


def title(numbers: Mapping) -> str:
    """The finding of the figure."""
    many = len(cousins(numbers))
    each = (
        f"{many - len(rivals_of_nag(numbers, kind)['worse'])} of {many} with "
        f"{sampler_name(numbers['samplers'][kind])}"
        for kind in samplers(numbers)
    )
    return (
        f"{FAMILIES[numbers['family']]}: cousins of NAG not worse than it, without a null: "
        f"{', '.join(each)}"
    )


def shown(numbers: Mapping, sampler: str) -> dict[str, str]:
    """The arms whose first images are worth a look: unguided beside NAG and every cousin, the
    better of alone and with NAG.
    """
    ratios = numbers["ratios"][key(WITH, sampler)]["unguided"]
    better = [min((m, f"{m}+nag"), key=lambda arm: ratios[arm]["value"]) for m in cousins(numbers)]
    return {f"{WITH}, {sampler}, {arm}": name(arm) for arm in ["none", "nag", *better]}


# ---- sentences


def rivals_of_nag(numbers: Mapping, sampler: str) -> dict[str, list[str]]:
    """The cousins by what they are beside NAG: "better", "inconclusive" or "worse"."""
    found = numbers["ratios"][key(WITH, sampler)]["over_nag"]
    return {
        kind: [method for method in cousins(numbers) if outcome(found[method]) == kind]
        for kind in ("better", "inconclusive", "worse")
    }


def verdict(numbers: Mapping, sampler: str) -> str:
    """Whether a cousin does without a null condition what NAG does, in a few words."""
    found = rivals_of_nag(numbers, sampler)
    own = numbers["ratios"][key(WITH, sampler)]["unguided"]["nag"]
    if outcome(own) != "better":
        return "NAG itself is not better than no guidance"
    if found["better"]:
        return f"{listed(LABELS[m] for m in found['better'])} better than NAG"
    if found["inconclusive"]:
        return f"{listed(LABELS[m] for m in found['inconclusive'])} about as good as NAG"
    return "every cousin worse than NAG"


def _sampler_sentence(numbers: Mapping, sampler: str) -> str:
    found = numbers["ratios"][key(WITH, sampler)]
    each = "; ".join(
        f"{LABELS[m]} {show(found['unguided'][m])} (of NAG's: {in_both(found['over_nag'][m])}; "
        f"with NAG {show(found['adds_to_nag'][m])})"
        for m in cousins(numbers)
    )
    across = numbers["across"][sampler]
    alone = [m for m in cousins(numbers) if f"{m} over nag" in across]
    best = min(alone, key=lambda m: across[f"{m} over nag"]["value"])
    own = numbers["ratios"][key(WITHOUT, sampler)]["unguided"]
    return (
        f"{solver(numbers, sampler)}: NAG takes the distance to {show(found['unguided']['nag'])} "
        f"of the unguided one ({outcome(found['unguided']['nag'])}); {each}. Trained without "
        f"dropout, the unguided distance is {show(across['none over none'])} of that with; there "
        + ", ".join(f"{LABELS[m]} has {show(own[m])}" for m in alone)
        + f" of the unguided one, and the best, {LABELS[best]}, "
        f"{show(across[f'{best} over nag'])} of the distance with dropout and NAG."
    )


def _ends(numbers: Mapping) -> str:
    """Which settings or weights are at an end of their lists."""
    names = dict.fromkeys(
        f"{LABELS[method]} ({where})"
        for where, methods in numbers["chosen"].items()
        for method, one in methods.items()
        if one["setting at an end"] or one["w at an end"]
    )
    return f" At an end of its list: {listed(names)}." if names else ""


def answers(numbers: Mapping, figure: str) -> dict[str, dict]:
    """What the study says to question 11, for one family."""
    family = FAMILIES[numbers["family"]]
    sentence = f"{family} of 0.5 M parameters. " + " ".join(
        _sampler_sentence(numbers, sampler) for sampler in samplers(numbers)
    )
    brief = f"{family}: " + "; ".join(
        f"{solver(numbers, s)}: NAG "
        f"{numbers['ratios'][key(WITH, s)]['unguided']['nag']['value']:.2f} of the unguided "
        "distance, "
        + ", ".join(
            f"{LABELS[m]} {numbers['ratios'][key(WITH, s)]['unguided'][m]['value']:.2f}"
            for m in cousins(numbers)
        )
        + f" ({verdict(numbers, s)})"
        for s in samplers(numbers)
    )
    return {
        "Q11": {
            "sentence": sentence + _ends(numbers),
            "brief": brief + ".",
            "key": "ratios",
            "figure": figure,
        }
    }
