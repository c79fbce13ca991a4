"""What notebook 32 says of its numbers: the paper's own samplers in 250 steps."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.plots import study_figures as drawing
from companion.plots.figures import posterior_density
from companion.plots.style import DIM, INK, TITLES, WIDTH, arm_style, frame, line, style
from companion.published import MODELS, fid_ratios
from companion.studies.tell.words import listed, mini, sampler_name
from nag.interpolant import PATH_OF
from nag.shift import late_time
from nag.support.uncertainty import outcome, show, sign

ARMS = ("nag", "cfg", "cfg+nag")
ALL = ("none", *ARMS)
ENDS = {"": "", "tweedie": "Tweedie's last step", "mean": "SiT's last step"}
PAPER = {"marker": "d", "color": DIM, "mfc": "white", "ls": "none"}


def solver(numbers: Mapping) -> str:
    """The sampler with its steps: "DDPM, 250 steps"."""
    return f"{sampler_name(numbers['sampler'])}, {numbers['steps']} steps"


def ratios(numbers: Mapping) -> Iterator[tuple[str, dict[str, Mapping]]]:
    """(name, ratios by pair) of both feature spaces at the first last step, and of the other."""
    head = ENDS[numbers["last_step"]]
    yield head, numbers["ratios"]
    if all("second" in x for x in numbers["ratios"].values()):
        second = {pair: x["second"] for pair, x in numbers["ratios"].items()}
        yield ", ".join(filter(None, (head, "pixels"))), second
    for end, found in numbers["ends"].items():
        yield ENDS[end], found["ratios"]


def table(numbers: Mapping) -> pd.DataFrame:
    """The arms with weights, distances in both spaces, recall, and the late shift against forward
    states of real images and of the arm's own.
    """
    rows = {}
    for arm in ALL:
        found = numbers["arms"][arm]
        guidance = found["protocol"]["guidance"]
        rows[arm_style(arm)["label"]] = {
            "w": f"{guidance['w_nag']:g}",
            "CFG": f"{guidance['cfg']:g}",
            "bias-corrected distance": show(found["fd_inf"]),
            "pixels": show(found["fd_inf_second"]),
            "precision": show(found["precision"], ".3f"),
            "recall": show(found["recall"], ".3f"),
            "late shift": show(found["shift_late"], "+.4f"),
            "by its own images": show(numbers["shift_own"][arm]["shift_late"], "+.4f"),
            "noise in the corners": f"{numbers['corner_noise'][arm]:.3f}",
        }
    return pd.DataFrame(rows).T


def table_of_ratios(numbers: Mapping) -> pd.DataFrame:
    """The Fréchet ratios of all pairs in both spaces and at both last steps."""
    return pd.DataFrame(
        {
            name or "classifier": {pair: f"{show(x)} {outcome(x)}" for pair, x in found.items()}
            for name, found in ratios(numbers)
        }
    )


def shown(numbers: Mapping) -> dict[str, str]:
    """The arms of the file of first images, with their names."""
    return {arm.replace("+", "-"): arm_style(arm)["label"] for arm in ALL}


# ---- the answer


def answers(numbers: Mapping, figure: str) -> dict[str, dict]:
    """What the paper's sampler gives, for question 2; the claims read the numbers themselves."""
    brief = _in_brief(numbers)
    parts = (brief, _by_recall(numbers), _other_end(numbers), _by_shift(numbers), _how(numbers))
    sentence = " ".join(part for part in parts if part)
    return {"Q2": {"sentence": sentence, "brief": brief, "key": "ratios", "figure": figure}}


def _in_brief(numbers: Mapping) -> str:
    found = [
        f"{name or 'classifier'} "
        + listed(
            f"{show(of[f'{arm} over none'])} with {arm_style(arm)['label']} "
            f"({outcome(of[f'{arm} over none'])})"
            for arm in ARMS
        )
        for name, of in ratios(numbers)
    ]
    return (
        f"{mini(numbers['family'])} with the paper's own sampler ({solver(numbers)}), Fréchet "
        f"ratio to no guidance: {'; '.join(found)}. The paper has "
        f"{fid_ratios()[MODELS[numbers['family']]]['nag']:.2f} with NAG."
    )


def _by_recall(numbers: Mapping) -> str:
    recall = {arm: numbers["arms"][arm]["recall"]["value"] for arm in ALL}
    precision = {arm: numbers["arms"][arm]["precision"]["value"] for arm in ALL}
    return (
        f"NAG takes precision from {precision['none']:.3f} to {precision['nag']:.3f} and recall "
        f"from {recall['none']:.3f} to {recall['nag']:.3f}; CFG has {precision['cfg']:.3f} and "
        f"{recall['cfg']:.3f}."
    )


def _other_end(numbers: Mapping) -> str:
    if not numbers["ends"]:
        return ""
    ((end, other),) = numbers["ends"].items()
    head, left = numbers["corner_noise"], other["corner_noise"]
    return (
        f"{ENDS[end]} leaves noise in the images: from black, corners are {left['none']:.3f} away "
        f"without guidance and {left['nag']:.3f} with NAG; by Tweedie's {head['none']:.3f} and "
        f"{head['nag']:.3f}, real images {head['real images']:.3f}."
    )


def _by_shift(numbers: Mapping) -> str:
    shift = numbers["shift"]
    shown = listed(
        f"{show(shift[arm]['shift_late'], '+.4f')} ({arm_style(arm)['label']})" for arm in ALL
    )
    there = sign(shift["none"]["shift_late"]) == "above"
    over = [f"{arm_style(arm)['label']} {show(shift[arm]['late_ratio'])}" for arm in ARMS if there]
    own = listed(
        f"{show(numbers['shift_own'][arm]['shift_late'], '+.4f')} ({arm_style(arm)['label']})"
        for arm in ("none", "nag")
    )
    return (
        f"Late shift: {shown}."
        + f" |Late shift| over no guidance: {listed(over)}." * there
        + f" Against forward states of the arm's own images instead of real ones: {own}."
    )


def _how(numbers: Mapping) -> str:
    tuning = numbers["tuning"]
    return (
        f"{_counts(numbers)}, {numbers['trajectories']} trajectories for the shift, 95 % CI "
        f"over images. Weights: at most {tuning['budget']} candidates of each method, "
        f"{tuning['n']} images of other seeds in {tuning['steps']} steps"
        + (
            f"; at an end of what was tried: {listed(tuning['at_an_end'])}"
            if tuning["at_an_end"]
            else ""
        )
        + "."
    )


def _counts(numbers: Mapping) -> str:
    n, pair = numbers["n"], numbers["ratios"]["nag over none"]["n"]
    return f"{n} images per arm" + f" (NAG's ratio to no guidance: {pair})" * (pair != n)


def in_a_sentence(numbers: Mapping) -> str:
    """What the study showed in one sentence with its numbers, and whether the paper agrees."""
    published = fid_ratios()[MODELS[numbers["family"]]]["nag"]
    gain, shift = numbers["ratios"]["nag over none"], numbers["shift"]["none"]["shift_late"]
    return (
        f"{title(numbers)} ({outcome(gain)}), and the unguided late shift {show(shift, '+.4f')}. "
        f"The paper: {published:.2f}, and above zero."
    )


# ---- the figure


def title(numbers: Mapping) -> str:
    """What was found, in a line."""
    ratio = numbers["ratios"]["nag over none"]
    return f"{mini(numbers['family'])}, {solver(numbers)}: NAG's Fréchet ratio is {show(ratio)}"


@style()
def figure(numbers: Mapping) -> Figure:
    """Ratios to no guidance in both spaces beside the paper's, and the shift along sampling."""
    fig, (left, whole, late) = plt.subplots(
        1, 3, figsize=(WIDTH * 1.25, 3.9), width_ratios=[1.1, 1, 1]
    )
    _ratios(left, numbers)
    _shift(whole, numbers, 1.0)
    _shift(late, numbers, late_time(PATH_OF[numbers["family"]]))
    whole.set_title("shift along sampling")
    late.set_title("the same, late (σ/α ≤ 0.25)")
    handles = [line(**arm_style(arm)) for arm in ALL] + [line(**PAPER, label="the paper's FIDs")]
    note = (
        f"{TITLES[numbers['family']]}, {_counts(numbers)}, "
        f"{numbers['trajectories']} trajectories. Bars and thin lines: 95 % CI over images; open: "
        "inconclusive. Pixels: the second feature space."
    )
    return frame(fig, title(numbers), note, handles)


def posteriors(file: Path, numbers: Mapping) -> Figure:
    """The paper's Fig. 1: densities of the estimated levels of sampled and of forward states, from
    the file of first images."""
    with np.load(file) as found:
        arrays = dict(found)
    levels = {arm: arrays[f"levels {arm.replace('+', '-')}"] for arm in ALL}
    return posterior_density(
        levels,
        arrays["levels forward"],
        arrays["times"],
        arrays["times"],
        title=f"The paper's Fig. 1 for {mini(numbers['family'])}, {solver(numbers)}",
        note=f"{numbers['trajectories']} trajectories per arm; a mark is a mean.",
    )


def _ratios(ax: Axes, numbers: Mapping) -> None:
    groups = list(ratios(numbers))
    published = fid_ratios()[MODELS[numbers["family"]]]
    for k, (_, found) in enumerate(groups):
        for j, arm in enumerate(ARMS):
            look, x = arm_style(arm), k + 0.22 * (j - 1)
            ratio = found[f"{arm} over none"]
            face = "white" if outcome(ratio) == "inconclusive" else look["color"]
            drawing.error_bars(
                ax, [x], [ratio], color=look["color"], marker=look["marker"], mfc=face, ls="none"
            )
            if k == 0:
                ax.plot(x + 0.08, published[arm], **PAPER)
    drawing.line_at(ax, 1)
    drawing.log_axis(ax)
    names = [
        (name or "classifier").replace(", ", ",\n").replace(" last", "\nlast") for name, _ in groups
    ]
    ax.set_xticks(range(len(groups)), names, fontsize=8)
    ax.set(ylabel="Fréchet ratio to no guidance", xlim=(-0.5, len(groups) - 0.5))
    ax.grid(visible=False, axis="x")


def _shift(ax: Axes, numbers: Mapping, start: float) -> None:
    times = np.array(numbers["curves"]["times"])
    on = times <= start + 1e-9
    for arm in ALL:
        curve = {end: 1000 * np.array(v)[on] for end, v in numbers["curves"][arm].items()}
        look = arm_style(arm)
        ax.plot(times[on], curve["value"], color=look["color"], ls=look["linestyle"], lw=1.3)
        for end in ("low", "high"):  # filled bands of four arms would mix to a colour of none
            ax.plot(times[on], curve[end], color=look["color"], lw=0.5, alpha=0.7)
    ax.axhline(0, color=INK, lw=1, zorder=1)
    ax.invert_xaxis()
    ax.set(xlabel="noise level t (sampling →)", ylabel="shift δ(t) × 1000")
