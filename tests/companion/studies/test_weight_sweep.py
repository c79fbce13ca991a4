"""The map of weights: its points, recall at equal distance, and answers that say the numbers."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest

from companion.studies import weight_sweep
from companion.studies.tell import weight_sweep as tell
from nag.support.files import read_json
from nag.support.paths import STUDIES

NONE = weight_sweep.NONE


def interval(value, half):
    return {"value": value, "low": value - half, "high": value + half, "n": 100}


def made_up():
    """Numbers of a small map: NAG helps alone, and beside CFG 1.1 only."""
    ratios = {
        "w0 cfg1": interval(1.0, 0.0),
        "w0 cfg1.1": interval(0.9, 0.05),
        "w0 cfg1.5": interval(1.4, 0.1),
        "w1 cfg1": interval(0.7, 0.1),
        "w1 cfg1.1": interval(0.6, 0.1),
        "w1 cfg1.5": interval(1.9, 0.1),
    }
    quality = {
        name: {
            "fd": interval(3 * r["value"], 0.2),
            "fd_inf": interval(2 * r["value"], 0.2),
            "precision": interval(0.85, 0.01),
            "recall": interval(0.8 - 0.01 * k, 0.02),
        }
        for k, (name, r) in enumerate(ratios.items())
    }
    recall = interval(-0.05, 0.02)
    over_cfg = {"w1 cfg1.1": interval(0.67, 0.1), "w1 cfg1.5": interval(1.36, 0.1)}
    nag = [name for name in ratios if name.endswith("cfg1")]
    return {
        "family": "sit",
        "sampler": "euler",
        "steps": 5,
        "n": 100,
        "chosen": {"w_nag": 1.0, "cfg": 1.1, "joint": [1.0, 1.1]},
        "quality": quality,
        "ratio_to_unguided": ratios,
        "ratio_to_cfg_alone": over_cfg,
        "recall_minus_unguided": dict.fromkeys(ratios, recall),
        "nag_at_chosen": {"ratio": ratios["w1 cfg1"], "recall_difference": recall},
        "cfg_at_chosen": {"recall_difference": recall},
        "equal_gain": {"fd_inf": None, "strength": None, "recall_difference": None},
        "pair_over_cfg_alone": {"cfg1.1": over_cfg["w1 cfg1.1"] | {"recall_difference": recall}},
        "least": {
            "NAG": ratios["w1 cfg1"] | {"w_nag": 1.0, "cfg": 1.0},
            "CFG": ratios["w0 cfg1.1"] | {"w_nag": 0.0, "cfg": 1.1},
            "all": ratios["w1 cfg1.1"] | {"w_nag": 1.0, "cfg": 1.1},
        },
        "late_shift": {
            "ode": dict.fromkeys(ratios, interval(0.001, 0.001)),
            "sde": {"n": 20, "steps": 12} | dict.fromkeys(nag, interval(0.012, 0.001)),
        },
    }


def test_the_map_has_the_values_asked_for_and_the_tuned_ones():
    chosen = {"nag": {"w_nag": 3.0}, "cfg": {"cfg": 1.25}, "cfg-nag": {"w_nag": 0.5, "cfg": 1.1}}
    grid = weight_sweep.plan(chosen, [0.0, 1.0], [1.5], [2.0])
    assert grid.nag_axis == [(w, 1.0) for w in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert grid.cfg_axis == [(0.0, s) for s in (1.0, 1.1, 1.25, 1.5)]
    assert grid.inside == [(w, s) for s in (1.1, 1.25, 1.5) for w in (0.5, 2.0)]
    assert grid.rivals == [(0.0, 1.1), (0.0, 1.25)] and grid.pair in grid.inside
    assert all(tell.point(weight_sweep.label(p)) == p for p in grid.axes + grid.inside)


def test_recall_is_compared_where_both_axes_have_the_same_distance():
    """NAG reaches distance 2 half-way from w = 1 to 2, CFG at its scale 1.2."""
    axes = {"NAG": [NONE, (1.0, 1.0), (2.0, 1.0)], "CFG": [NONE, (0.0, 1.2)]}
    values = {
        NONE: np.array([4.0, 0.8]),
        (1.0, 1.0): np.array([3.0, 0.7]),
        (2.0, 1.0): np.array([1.0, 0.5]),
        (0.0, 1.2): np.array([2.0, 0.75]),
    }
    draws = {p: np.tile(v, (20, 1)) for p, v in values.items()}
    found = weight_sweep.equal_gain(axes, values, draws)
    assert found["fd_inf"] == 2.0 and found["strength"] == {"NAG": 1.5, "CFG": 1.2}
    assert found["recall_difference"]["value"] == pytest.approx(0.6 - 0.75)
    assert found["recall_difference"]["low"] == pytest.approx(0.6 - 0.75)
    worse = values | {(0.0, 1.2): np.array([5.0, 0.9])}
    assert weight_sweep.equal_gain(axes, worse, draws)["strength"] is None


def test_answers_say_the_numbers():
    found = tell.answers(made_up())
    assert "0.70 [0.60, 0.80] at w = 1" in found["Q1"]["sentence"]
    assert "better at CFG 1.1 (w = 1) and worse at CFG 1.5 (w = 1)" in found["Q1"]["brief"]
    assert "not compared at equal distance" in found["Q1"]["sentence"]
    assert found["C6"]["verdict"] == "reproduced" and "0.67 [0.57, 0.77]" in found["C6"]["sentence"]


def test_what_is_inconclusive_is_called_so():
    numbers = made_up()
    open_ratio = interval(0.95, 0.1) | {"recall_difference": interval(0.0, 0.1)}
    numbers["pair_over_cfg_alone"]["cfg1.1"] = open_ratio
    numbers["ratio_to_cfg_alone"] = dict.fromkeys(numbers["ratio_to_cfg_alone"], open_ratio)
    numbers["nag_at_chosen"]["ratio"] = interval(0.9, 0.2)
    found = tell.answers(numbers)
    assert found["C6"]["verdict"] == "inconclusive"
    assert "nowhere better and nowhere worse" in found["Q1"]["brief"]
    assert "chosen on other seeds, is inconclusive" in found["Q1"]["sentence"]


@pytest.mark.parametrize("family", ["sit", "dit"])
def test_every_interval_in_the_answers_is_a_measured_one(family, unknown_intervals):
    numbers = read_json(STUDIES / "metrics" / f"weight_sweep-{family}.json")
    for answer in tell.answers(numbers).values():
        assert not unknown_intervals(answer["sentence"], numbers)
        assert not unknown_intervals(answer["brief"], numbers)


def test_the_figure_shows_the_measured_values():
    numbers = made_up()
    fig = tell.figure(numbers)
    distance, _, shift, ratios, recall, trade = fig.axes
    lines = [container[0].get_ydata().tolist() for container in distance.containers]
    assert lines[0] == pytest.approx([3.0, 2.1]) and lines[1] == pytest.approx([2.0, 1.4])
    assert shift.containers[1][0].get_ydata() == pytest.approx([12, 12])
    texts = {text.get_text() for text in ratios.texts}
    assert texts == {"1.00", "0.90*", "1.40*", "0.70*", "0.60*", "1.90*"}
    assert "0.8" in fig.texts[0].get_text() or "0.70" in fig.texts[0].get_text()
    assert len(recall.texts) == 6 and len(trade.lines) == 3
    plt.close(fig)


def test_telling_leaves_the_numbers_alone():
    numbers = made_up()
    before = copy.deepcopy(numbers)
    tell.answers(numbers)
    tell.table(numbers)
    plt.close(tell.figure(numbers))
    assert numbers == before
