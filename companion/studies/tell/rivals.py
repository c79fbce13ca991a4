"""What the study of rivals found (questions 3 and 5): table, figure and sentences."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots.study_figures import RING, line_at, ring
from companion.plots.style import ARMS, INK, WIDTH, frame, line, style
from companion.studies.tell.words import listed, sampler_name
from nag.support.uncertainty import outcome, show

LABELS = {  # of nag.rivals.methods.METHODS, without the code that they come with
    "none": "no guidance",
    "nag": "NAG",
    "cfg": "CFG",
    "cfg-interval": "CFG in an interval",
    "autoguidance": "autoguidance",
    "epsilon-scaling": "Epsilon Scaling",
    "time-shift": "Time-Shift",
    "level-correction": "Noise Level Correction",
    "input-perturbation": "DDPM-IP",
    "nag-classifier": "NAG by classifier",
    "self-guidance": "Self-Guidance",
    "self-guidance-prev": "Self-Guidance by the step before",
    "other-level": "shifted noise condition",
    "estimated-level": "NAG by the estimated level",
    "estimated-score": "NAG by the score at the estimated level",
    "tsg": "Time-Step Guidance",
    "icg": "Independent Condition Guidance",
    "dcw": "wavelet correction (DCW)",
    "tsr": "Temporal Score Rescaling",
}
OUTCOMES = ("better", "worse", "inconclusive")
ALONE = {"label": "method alone", "color": INK, "marker": "o", "linestyle": "-"}
WITH = ARMS["nag"] | {"label": "NAG, or method with NAG", "linestyle": "-"}


def rivals(numbers: Mapping) -> list[str]:
    """The methods that NAG is compared with, the least distance alone first."""
    return sorted(numbers["nag_adds"], key=lambda method: numbers["unguided"][method]["value"])


def bounds(numbers: Mapping) -> list[str]:
    """Labels of the methods whose best setting or weight is at an end of its list."""
    return [
        LABELS[method]
        for method, chosen in numbers["chosen"].items()
        if chosen["setting at an end"] or chosen["w at an end"]
    ]


def name(arm: str) -> str:
    """An arm in words, such as "CFG + NAG"."""
    method, _, nag = arm.partition("+")
    return LABELS[method] + " + NAG" * bool(nag)


def table(numbers: Mapping) -> pd.DataFrame:
    """Each method's best setting, its ratio to the unguided distance alone and with NAG, and what
    one adds to the other.
    """

    def said(ratios: Mapping, key: str) -> str:
        return f"{show(ratios[key])} {outcome(ratios[key])}" if key in ratios else "–"

    return pd.DataFrame(
        [
            {
                "method": LABELS[method],
                "best setting": numbers["chosen"][method]["setting"],
                "alone / unguided": said(numbers["unguided"], method),
                "with NAG / unguided": said(numbers["unguided"], f"{method}+nag"),
                "NAG adds": said(numbers["nag_adds"], method),
                "it adds to NAG": said(numbers["rival_adds"], method),
                "time / unguided": f"{numbers['costs'][method]['time']:.2f}",
            }
            for method in ["nag", *rivals(numbers)]
        ]
    ).set_index("method")


# ---- figure


def _points(ax: Axes, order: list[str], values: Mapping[str, Mapping]) -> None:
    """A row for each method: the method alone, and below it with NAG; NAG itself has one point.

    Filled if the interval excludes 1, or if there is none."""
    for place, method in enumerate(order):
        for arm, offset, look in ((method, -0.16, ALONE), (f"{method}+nag", 0.16, WITH)):
            if arm in values:
                look, y = (WITH, place) if method == "nag" else (look, place + offset)
                x, color = values[arm], look["color"]
                ax.plot([x["low"], x["high"]], [y, y], color=color)
                face = "white" if x["low"] < 1 < x["high"] else color
                ax.plot(x["value"], y, look["marker"], color=color, mfc=face)
    line_at(ax, 1, vertical=True)
    ax.set(ylim=(len(order) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)


def _rings(ax: Axes, order: list[str], numbers: Mapping) -> bool:
    """Rings around ratios whose own setting, or weight of NAG, is at an end of its list."""
    places = []
    for place, method in enumerate(order):
        ends = numbers["chosen"][method]
        if ends["setting at an end"]:
            places.append((numbers["unguided"][method], place - 0.16 * (method != "nag")))
        if ends["w at an end"]:
            places.append((numbers["unguided"][f"{method}+nag"], place + 0.16))
    for ratio, y in places:
        ring(ax, [ratio["value"]], [y])
    return bool(places)


@style()
def figure(numbers: Mapping) -> Figure:
    """Distance and time over the unguided arm's, of every method alone and with NAG."""
    order = ["nag", *rivals(numbers)]
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 1.75 + 0.42 * len(order)), width_ratios=(2.2, 1), sharey=True
    )
    _points(left, order, numbers["unguided"])
    times = {arm: cost["time"] for arm, cost in numbers["costs"].items()}
    _points(
        right, order, {arm: dict.fromkeys(("value", "low", "high"), t) for arm, t in times.items()}
    )
    left.set_yticks(range(len(order)), [LABELS[method] for method in order])
    left.set(xlabel="Fréchet distance / unguided (below 1 is better)")
    right.set(xlabel="time / unguided", xlim=(0, 1.1 * max(times.values())))
    handles = [
        line(**{k: look[k] for k in ("color", "marker", "label", "linestyle")})
        for look in (ALONE, WITH)
    ]
    if _rings(left, order, numbers):
        handles.append(line(linestyle="none", label="at an end of its list", **RING))
    trainings = len(numbers["networks"])
    first, last = numbers["seeds"]
    tuning = numbers["tuning_seeds"][1] - numbers["tuning_seeds"][0] + 1
    note = (
        f"SiT, {numbers['nfe']} network evaluations per image in every arm; {numbers['n']} images "
        f"of each of {trainings} training{'s' * (trainings > 1)}, seeds {first} to {last}. Ratios "
        "paired by seed, 95 % CI over images and trainings; open: it contains 1. Each method tuned "
        f"on {tuning} images per setting of other seeds."
    )
    return frame(fig, title(numbers), note, handles)


def title(numbers: Mapping) -> str:
    """The finding of the figure: NAG's ratio beside that of the best rival."""
    best = rivals(numbers)[0]
    own, other = (numbers["unguided"][method]["value"] for method in ("nag", best))
    return (
        f"{sampler_name(numbers['sampler'])}, {numbers['nfe']} evaluations: NAG {own:.2f} of the "
        f"unguided distance, {LABELS[best]} {other:.2f}"
    )


def shown(numbers: Mapping) -> dict[str, str]:
    """The arms whose first images are worth a look, in words: none, NAG, and each rival's better
    arm.
    """
    ratios = numbers["unguided"]
    better = [min((m, f"{m}+nag"), key=lambda arm: ratios[arm]["value"]) for m in rivals(numbers)]
    return {arm: name(arm) for arm in ["none", "nag", *better]}


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers, and whether the paper agrees."""
    ratios = numbers["unguided"]
    beside = (
        f", and finds them close: here {show(ratios['nag'])} and {show(ratios['cfg'])} of the "
        "unguided distance"
        if "cfg" in ratios
        else ""
    )
    return f"{title(numbers)}. The paper compares NAG with CFG only{beside}."


# ---- sentences


def _grouped(ratios: Mapping[str, Mapping]) -> str:
    """Methods by outcome with their ratios, such as "better: CFG 0.60; worse: Time-Shift 1.20"."""
    groups = {kind: [m for m in ratios if outcome(ratios[m]) == kind] for kind in OUTCOMES}
    return "; ".join(
        f"{kind}: " + ", ".join(f"{LABELS[m]} {ratios[m]['value']:.2f}" for m in methods)
        for kind, methods in groups.items()
        if methods
    )


def _comparison(numbers: Mapping) -> str:
    """Question 3 with its intervals."""
    ratios, trainings = numbers["unguided"], len(numbers["networks"])
    least = min(ratios, key=lambda arm: ratios[arm]["value"])
    ends = bounds(numbers)
    return (
        f"At {numbers['nfe']} network evaluations per image ({sampler_name(numbers['sampler'])}, "
        f"{trainings} training{'s' * (trainings > 1)}, {numbers['n']} images of each) the Fréchet "
        f"distance with NAG is {show(ratios['nag'], '.3f')} of the unguided one "
        f"({outcome(ratios['nag'])}). Rivals alone over unguided: "
        f"{_grouped({m: ratios[m] for m in rivals(numbers)})}. With NAG over without: "
        f"{_grouped(numbers['nag_adds'])}. With the rival over NAG alone: "
        f"{_grouped(numbers['rival_adds'])}. The smallest ratio to unguided, picked on these "
        f"seeds, is {name(least)}: {show(ratios[least], '.3f')} ({outcome(ratios[least])})."
        + (
            f" At an end of their list, so that more may be possible: {listed(ends)}."
            if ends
            else ""
        )
        + " DDPM-IP is one training, whose spread is taken to be that of the others."
        * ("input-perturbation" in ratios and trainings > 1)
    )


def _in_brief(numbers: Mapping) -> str:
    """Question 3 in figures; those whose interval contains 1 are in brackets."""

    def figures(arm: str) -> str:
        ratio = numbers["unguided"][arm]
        value = f"{ratio['value']:.2f}"
        return f"({value})" if outcome(ratio) == "inconclusive" else value

    each = ", ".join(f"{LABELS[m]} {figures(m)} and {figures(f'{m}+nag')}" for m in rivals(numbers))
    return (
        f"Distance over the unguided one at {numbers['nfe']} evaluations per image "
        f"({sampler_name(numbers['sampler'])}; in brackets: inconclusive): NAG {figures('nag')}; "
        f"alone and with NAG: {each}."
    )


def _costs(numbers: Mapping) -> tuple[str, str]:
    """Question 5 at equal evaluations: the sentence, and in brief."""
    costs, methods = numbers["costs"], rivals(numbers)
    fast, slow = (pick(methods, key=lambda m: costs[m]["time"]) for pick in (min, max))
    most = max(costs[m]["parameters"] for m in methods)
    training = max(costs[m]["training"] or 0 for m in methods)
    own = costs["nag"]["time"]
    start = f"At equal evaluations NAG takes {own:.2f} of the unguided time per image"
    brief = (
        f"{start}, the rivals {costs[fast]['time']:.2f} to {costs[slow]['time']:.2f}; NAG adds "
        f"{costs['nag']['parameters']:,} parameters, the rivals up to {most:,}."
    )
    return brief, (
        f"{start}, the rivals {costs[fast]['time']:.2f} ({LABELS[fast]}) to "
        f"{costs[slow]['time']:.2f} ({LABELS[slow]}). NAG adds "
        f"{costs['nag']['parameters']:,} parameters and no training of its own, the rivals up to "
        f"{most:,} parameters and {training:.0f} % more training images; NAG and CFG need dropped "
        "conditions and DDPM-IP perturbed inputs in the network's own training, which is not "
        "counted."
    )


def answers(numbers: Mapping, figure: str) -> dict[str, dict]:
    """What the study says to question 3 and, where all rivals take part, to question 5.

    Costs are alike with any sampler; those of Euler are reported."""
    found = {
        "Q3": {
            "sentence": _comparison(numbers),
            "brief": _in_brief(numbers),
            "key": "unguided",
            "figure": figure,
        }
    }
    if numbers["sampler"] == "euler":
        brief, sentence = _costs(numbers)
        found["Q5"] = {"sentence": sentence, "brief": brief, "key": "costs", "figure": figure}
    return found
