"""The study of NAG's cousins: how settings are searched, what is compared, and what is said."""

import math

import pytest

from companion.experiments.generate import SampleConfig
from companion.plots.style import save
from companion.studies import cousins
from companion.studies.tell import cousins as tell
from nag.rivals.methods import METHODS


def plan(start, budget=7, weights=(1.0,), beside=3):
    config = SampleConfig()
    return cousins.Plan(start, budget, weights, beside, {"ode": 48}, config, config, None, None)


@pytest.mark.parametrize("method", cousins.SETTINGS)
def test_a_setting_has_the_entries_of_its_method(method):
    make = cousins.SETTINGS[method]
    setting = make(*[0.5] * make.__code__.co_argcount)
    assert len(setting) == len(METHODS[method].entries)


def test_the_least_distance_is_searched_for_within_the_budget():
    """A bowl around w = 4, shift = 0.02, and around w_nag = 2 on top of it."""

    def measure(method, setting, w):
        x, y = (math.log2(a / b) for a, b in zip(setting, (4.0, 0.02), strict=True))
        return x**2 + y**2 + (math.log2(w / 2) ** 2 if w else 5)

    found, tried = cousins.tuned(
        plan({"self-guidance": [[1.0, 0.03], [3.0, 0.03]]}), "self-guidance", True, measure
    )
    alone = [one for one in tried if one["w_nag"] == 0]
    assert len(alone) == 7 == found["of"] and len(tried) == 7 + 3
    assert [4.0, 0.02] == pytest.approx(found["values"], rel=0.5)
    assert found["w_nag beside"] == 2.0 and not found["w at an end"]
    assert min(one["fd_inf"] for one in tried) == pytest.approx(measure("", found["values"], 2.0))
    _, tried = cousins.tuned(plan({"nag": [[1.0]]}, 2), "nag", False, lambda m, s, w: s[0])
    assert [one["setting"] for one in tried] == ["w 1", "w 2"]


def test_what_is_compared_with_what():
    rows = {arm: arm for arm in ("none", "nag", "tsg", "tsg+nag")}
    found = cousins.compared(rows, lambda row, other: f"{row} / {other}")
    assert found == {
        "unguided": {arm: f"{arm} / none" for arm in ("nag", "tsg", "tsg+nag")},
        "over_nag": {"tsg": "tsg / nag"},
        "adds_to_nag": {"tsg": "tsg+nag / nag"},
        "nag_adds": {"tsg": "tsg+nag / tsg"},
    }
    without = {"none": "plain none", "tsg": "plain tsg"}
    assert cousins.compared(without, lambda a, b: f"{a} / {b}") == {
        "unguided": {"tsg": "plain tsg / plain none"}
    }
    assert cousins.across(rows, without, lambda a, b: f"{a} / {b}") == {
        "none over none": "plain none / none",
        "tsg over nag": "plain tsg / nag",
    }


# ---- telling


def interval(value, half=0.05):
    return {"value": value, "low": value - half, "high": value + half}


def made_up(over_nag=1.2, nag=0.6):
    """Numbers of a SiT with Euler: Time-Step Guidance over NAG has the ratio `over_nag`,
    Self-Guidance is worse than NAG.
    """
    over = {"tsg": interval(over_nag), "self-guidance": interval(1.4)}
    unguided = {"nag": interval(nag)} | {m: interval(x["value"] * nag) for m, x in over.items()}
    unguided |= {f"{m}+nag": interval(0.55) for m in over}
    chosen = {"setting": "w 1", "setting at an end": False, "w at an end": False}
    with_end = {"nag": chosen, "tsg": chosen, "self-guidance": chosen | {"setting at an end": True}}
    return {
        "family": "sit",
        "n": 10,
        "seeds": [0, 9],
        "settings": 7,
        "tuning_images": 10,
        "nfe": {"ode": 48},
        "samplers": {"ode": "euler"},
        "chosen": {
            "with dropout, ode": with_end,
            "without dropout, ode": {m: chosen for m in over},
        },
        "ratios": {
            "with dropout, ode": {
                "unguided": unguided,
                "over_nag": over,
                "adds_to_nag": {m: interval(0.92) for m in over},
                "nag_adds": {m: interval(0.8) for m in over},
            },
            "without dropout, ode": {"unguided": {m: interval(0.77) for m in over}},
        },
        "across": {
            "ode": {"none over none": interval(0.98), "tsg over nag": interval(1.31)}
            | {"self-guidance over nag": interval(1.45)}
        },
    }


@pytest.mark.parametrize(
    ("over_nag", "nag", "words"),
    [
        (0.8, 0.6, "Time-Step Guidance better than NAG"),
        (1.0, 0.6, "Time-Step Guidance about as good as NAG"),
        (1.2, 0.6, "every cousin worse than NAG"),
        (0.8, 1.0, "NAG itself is not better than no guidance"),
    ],
)
def test_the_answer_follows_the_intervals(over_nag, nag, words):
    numbers = made_up(over_nag, nag)
    said = tell.answers(numbers, "figures/x.png")["Q11"]
    assert f"({words})" in said["brief"] and tell.verdict(numbers, "ode") == words
    assert f"NAG takes the distance to {nag:.2f} [" in said["sentence"]
    assert "the unguided distance is 0.98 [0.93, 1.03] of that with" in said["sentence"]
    assert "the best, Time-Step Guidance, 1.31 [1.26, 1.36] of the distance" in said["sentence"]
    assert said["sentence"].endswith("At an end of its list: Self-Guidance (with dropout, ode).")
    as_good = 1 if over_nag <= 1 else 0
    assert f"{as_good} of 2 with Euler" in tell.title(numbers)


def test_the_figure_shows_every_arm_once(tmp_path):
    numbers = made_up()
    ax = save(tell.figure(numbers), "x", tmp_path).axes[0]
    shown = sorted(
        float(line.get_xdata()[0]) for line in ax.lines
        if line.get_marker() not in ("None", "") and line.get_markersize() < 10
    )  # fmt: skip
    wanted = [*numbers["ratios"]["with dropout, ode"]["unguided"].values()]
    wanted += numbers["ratios"]["without dropout, ode"]["unguided"].values()
    assert shown == sorted(x["value"] for x in wanted)
    assert len([line for line in ax.lines if line.get_markersize() > 10]) == 1
    assert list(tell.shown(numbers, "ode").values()) == [
        "no guidance",
        "NAG",
        "Time-Step Guidance + NAG",
        "Self-Guidance + NAG",
    ]
    assert tell.table(numbers).shape == (3, 5)
