"""What notebook 36 says of its numbers: the headline over trainings, and claim C8."""

from collections.abc import Iterator, Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots.study_figures import line_at
from companion.plots.style import DIM, WIDTH, arm_style, frame, line, style
from companion.published import MODELS, fid_ratios
from companion.studies.tell.words import listed, mini, sampler_name
from nag.support.uncertainty import independent_ratio, mean_ratio, outcome, show, verdict

SPACES = {"first": "classifier", "second": "pixels"}
LOOKS = {"first": {"marker": "s"}, "second": {"marker": "o"}}
NAG = "nag over none"
PAPER = {"marker": "d", "color": DIM, "mfc": "white", "ls": "none"}
ARMS = ("none", "nag", "cfg", "cfg-nag")


def solver(numbers: Mapping, family: str, kind: str) -> str:
    """The sampler as texts name it, with its steps."""
    name = sampler_name(numbers["families"][family]["samplers"][kind])
    return f"{name}, {numbers['steps'][kind]} steps"


def in_space(ratio: Mapping, space: str) -> Mapping:
    """A ratio in the first or second feature space."""
    return ratio if space == "first" else ratio["second"]


def rows(numbers: Mapping, family: str) -> Iterator[tuple[str, str, list[Mapping], Mapping]]:
    """(kind of sampler, space, NAG's ratio of each training, their mean)."""
    for kind, ratios in numbers["families"][family]["ratios"].items():
        for space in SPACES:
            each = [in_space(x, space) for x in ratios[NAG]["each"]]
            yield kind, space, each, in_space(ratios[NAG]["mean"], space)


def table(numbers: Mapping) -> pd.DataFrame:
    """NAG's ratio of each training and their mean, by family, sampler and space."""
    found = {}
    for family in numbers["families"]:
        for kind, space, each, mean in rows(numbers, family):
            found[mini(family), solver(numbers, family, kind), SPACES[space]] = {
                f"training {k}": show(x) for k, x in enumerate(each)
            } | {"mean": show(mean), "": outcome(mean)}
    return pd.DataFrame(found).T


def shifts(numbers: Mapping) -> pd.DataFrame:
    """Late shift of every arm, mean over the trainings."""
    found = {
        (mini(family), solver(numbers, family, kind)): {
            arm_style(arm.replace("-", "+"))["label"]: show(arms[arm]["mean"], "+.4f")
            for arm in ARMS
            if arm in arms
        }
        for family, of in numbers["families"].items()
        for kind, arms in of["shift_late"].items()
    }
    return pd.DataFrame(found).T.fillna("")


# ---- figure


def _family(ax: Axes, numbers: Mapping, family: str) -> None:
    names, color = [], arm_style("nag")["color"]
    for place, (kind, space, each, mean) in enumerate(rows(numbers, family)):
        marker = LOOKS[space]["marker"]
        face = "white" if outcome(mean) == "inconclusive" else color
        ax.plot([mean["low"], mean["high"]], [place, place], color=color)
        ax.plot([x["value"] for x in each], [place] * len(each), "|", color=color, ms=9)
        ax.plot(mean["value"], place, marker, color=color, mfc=face)
        names.append(f"{solver(numbers, family, kind)},\n{SPACES[space]}")
    ax.plot(fid_ratios()[MODELS[family]]["nag"], len(names), **PAPER)
    ax.set_yticks(range(len(names) + 1), [*names, "the paper,\nImageNet FID"])
    line_at(ax, 1, vertical=True)
    ax.set(ylim=(len(names) + 0.5, -0.5), xlabel="NAG over no guidance", title=mini(family))
    ax.grid(axis="y", visible=False)


@style()
def figure(numbers: Mapping) -> Figure:
    """NAG's Fréchet ratio over trainings: both samplers and spaces, beside the paper's."""
    families = list(numbers["families"])
    fig, axes = plt.subplots(1, len(families), figsize=(WIDTH, 3.6), squeeze=False, sharex=True)
    for ax, family in zip(axes[0], families, strict=True):
        _family(ax, numbers, family)
    counts = {of["trainings"] for of in numbers["families"].values()}
    images = " or ".join(
        f"{n} ({'deterministic' if kind == 'ode' else 'stochastic'})"
        for kind, n in numbers["n"].items()
    )
    note = (
        f"Bias-corrected Fréchet distance, {images} images of each of "
        f"{listed(sorted(counts))} trainings; weights chosen on the first, on other seeds. Bars: "
        "95 % CI over trainings and images; open: it contains 1."
    )
    color = arm_style("nag")["color"]
    handles = [
        line(color=color, marker="s", label="mean, classifier"),
        line(color=color, marker="o", label="mean, pixels"),
        line(color=color, marker="|", ls="none", label="a training"),
    ]
    return frame(fig, title(numbers), note, handles)


def title(numbers: Mapping) -> str:
    """The finding of the figure."""
    means = [mean for family in numbers["families"] for *_, mean in rows(numbers, family)]
    said = [outcome(mean) for mean in means]
    parts = [
        f"{word} in {said.count(word)}" for word in ("better", "worse", "inconclusive")
        if word in said
    ]  # fmt: skip
    return f"NAG over several trainings: {listed(parts)} of {len(said)} comparisons"


def shown(numbers: Mapping) -> dict[str, str]:
    """The arms whose first images are worth a look, "FAMILY KIND ARM", of the first training."""
    return {
        f"{family} {kind} {arm}": f"{mini(family)}, {sampler_name(of['samplers'][kind])}, {label}"
        for family, of in numbers["families"].items()
        for kind in of["samplers"]
        for arm, label in (("none", "unguided"), ("nag", "NAG"))
    }


# ---- sentences


def compared(numbers: Mapping) -> dict[str, Mapping]:
    """SiT's ratio over DiT's by kind of sampler: above 1 the DiT gains more."""
    both = [numbers["families"][family]["ratios"] for family in ("sit", "dit")]
    return {kind: independent_ratio(*(of[kind][NAG]["mean"] for of in both)) for kind in both[0]}


def judged(numbers: Mapping) -> str:
    """The verdict on C8: that of all samplers if they agree, else inconclusive."""
    said = {verdict(x, 1, 1) for x in compared(numbers).values()}
    return said.pop() if len(said) == 1 else "inconclusive"


def null_branches(numbers: Mapping) -> dict[str, Mapping]:
    """By range of noise over signal, the DiT's excess of error without the noise level over the
    SiT's, means over the trainings: below 1 the DiT's null branch is the better one."""

    def mean(family: str, name: str) -> Mapping:
        return mean_ratio([of[name] for of in numbers["families"][family]["excess"]])

    names = numbers["families"]["sit"]["excess"][0]
    return {name: independent_ratio(mean("dit", name), mean("sit", name)) for name in names}


def _reason(numbers: Mapping) -> str:
    """Whether the paper's reason for C8 is seen: DDPM's schedule trains a better null branch."""
    found = null_branches(numbers)
    words = {"better": "better than", "worse": "worse than", "inconclusive": "as good as"}
    each = ", ".join(f"{name} {show(x)} ({words[outcome(x)]} SiT's)" for name, x in found.items())
    return (
        "The paper's reason is that DDPM's schedule trains a better null branch. How much larger "
        "the error is without the noise level than with it, DiT over SiT, by range of noise over "
        f"signal: {each}."
    )


def answers(numbers: Mapping, figure: str) -> dict[str, dict]:
    """What the study says to claim C8."""
    ratios = compared(numbers)
    named = {kind: "deterministic" if kind == "ode" else "stochastic" for kind in ratios}
    gains = "; ".join(
        f"{mini(family)} {solver(numbers, family, kind)} {show(mean)} ({SPACES[space]})"
        for family in numbers["families"]
        for kind, space, _, mean in rows(numbers, family)
    )
    over = "; ".join(f"{named[kind]} sampler {show(x)}" for kind, x in ratios.items())
    count = numbers["families"]["sit"]["trainings"]
    sentence = (
        f"Over {count} trainings of each mini NAG takes the distance to: {gains}. SiT's ratio over "
        f"DiT's (above 1 DiT gains more), classifier: {over}. {_reason(numbers)} The claim is "
        f"{judged(numbers)}."
    )
    brief = f"Over {count} trainings, SiT's ratio over DiT's: {over}."
    return {
        "C8": {
            "sentence": sentence,
            "brief": brief,
            "verdict": judged(numbers),
            "key": "families/dit/ratios",
            "figure": figure,
        }
    }
