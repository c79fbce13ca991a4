"""When to guide: schedules and their cost, and answers that respect weights at an end of a list."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from companion.studies import when_to_guide as when
from companion.studies.tell import when_to_guide as tell
from nag.support.files import read_json
from nag.support.paths import STUDIES

NAMES = {"sit": "SiT of 0.5 M parameters", "dit": "DiT of 0.5 M parameters"}


def committed(family):
    name = f"when-{family}"
    return (
        read_json(STUDIES / "metrics" / f"{name}.json"),
        pd.read_csv(STUDIES / "tables" / f"{name}.csv"),
    )


def ratio(value, half=0.01):
    return {"value": value, "low": value - half, "high": value + half}


def test_kinds_guide_where_they_say():
    kinds = when.kinds([[0.3, 0.7]])
    at = {
        name: [make(2.0).terms()[0].at(t) for t in (0.9, 0.5, 0.1)] for name, make in kinds.items()
    }
    assert at["everywhere"] == [2, 2, 2] and at["t from 0.3 to 0.7"] == [0, 2, 0]
    assert at["growing towards the data"] == pytest.approx([0.4, 2.0, 3.6], abs=0.05)
    assert at["shrinking towards the data"] == pytest.approx([3.6, 2.0, 0.4], abs=0.05)


def test_arms_cost_the_same():
    """Ten steps of NAG are 20 evaluations; guided in half of its steps an arm has 13 or 14."""
    kinds = when.kinds([[0.0, 0.5]])
    arms = {
        "none": when.Arm(),
        "all": kinds["everywhere"](1.0),
        "half": kinds["t from 0 to 0.5"](1.0),
    }
    steps = {name: when.equal_steps(arm, "euler", 10, "linear") for name, arm in arms.items()}
    assert steps["none"] == 20 and steps["all"] == 10 and 13 <= steps["half"] <= 14
    for name, arm in arms.items():
        assert abs(when.evaluations(arm, "euler", steps[name], "linear") - 20) <= 1


def test_the_best_and_the_estimators_arm_are_sampled_again():
    over = {"no guidance": ratio(0.1), "a": ratio(0.9), "b": ratio(0.8)}
    assert when.repeated(over) == ["b", "everywhere", "no guidance"]
    over[when.BY_ESTIMATOR] = ratio(1.1)
    assert when.repeated(over) == ["b", when.BY_ESTIMATOR, "everywhere", "no guidance"]


def test_a_weight_at_an_end_of_its_list_settles_no_loss_and_no_gain_over_it():
    over = {"no guidance": ratio(1.5), "a": ratio(1.2), "b": ratio(0.8), "c": ratio(1.0)}
    numbers = {"over_everywhere": over, "w_at_end_of_list": []}
    assert tell.outcomes(numbers) == {"a": "worse", "b": "better", "c": "inconclusive"}
    numbers["w_at_end_of_list"] = ["a", "b"]
    assert tell.outcomes(numbers) == {"a": tell.UNSETTLED, "b": "better", "c": "inconclusive"}
    numbers["w_at_end_of_list"] = ["everywhere"]
    assert tell.outcomes(numbers)["b"] == tell.BASE_UNSETTLED


@pytest.mark.parametrize("family", ["sit", "dit"])
def test_every_interval_in_the_answer_is_a_measured_one(family, unknown_intervals):
    numbers, table = committed(family)
    answer = tell.answers(numbers, table, family, NAMES[family])["Q10"]
    recalls = {
        row.arm: {"value": row.recall, "low": row.recall_low, "high": row.recall_high}
        for row in table.itertuples()
    }
    assert not unknown_intervals(answer["sentence"], numbers, recalls)
    assert not unknown_intervals(answer["brief"], numbers)


def test_nothing_is_better_than_a_weight_that_is_not_settled():
    numbers, table = copy.deepcopy(committed("sit"))
    assert "is better than" in tell.answers(numbers, table, "sit", "SiT")["Q10"]["brief"]
    numbers["w_at_end_of_list"] = ["everywhere"]
    brief = tell.answers(numbers, table, "sit", "SiT")["Q10"]["brief"]
    assert "none is shown to be better" in brief and tell.BASE_UNSETTLED in brief


def test_if_none_is_better_the_brief_says_so():
    numbers, table = copy.deepcopy(committed("sit"))
    numbers["best"]["over everywhere"] = ratio(0.99, 0.05)
    numbers["w_at_end_of_list"] = ["everywhere"]
    brief = tell.answers(numbers, table, "sit", "SiT")["Q10"]["brief"]
    assert "none is shown to be better" in brief and "0.99 [0.94, 1.04] (inconclusive)" in brief
    assert "the weight everywhere is at an end of its list" in brief


@pytest.mark.parametrize("family", ["sit", "dit"])
def test_schedules_are_those_that_were_measured(family):
    """Their mean over the arm's own steps is the committed one."""
    numbers, table = committed(family)
    steps = dict(zip(table.arm, table.steps, strict=True))
    process = {"sit": "linear", "dit": "ddpm"}[family]
    for arm, at in tell.schedules(numbers).items():
        times = when.time_grid(numbers["sampler"], int(steps[arm]), process)[:-1].tolist()
        assert np.mean([at(t) for t in times]) == pytest.approx(numbers["mean_w"][arm], abs=1e-6)


@pytest.mark.parametrize("family", ["sit", "dit"])
def test_the_figure_has_a_row_for_every_arm_and_every_fresh_sampling(family):
    numbers, table = committed(family)
    fig = tell.figure(numbers, table, NAMES[family])
    left = fig.axes[0]
    rows = [tick.get_text() for tick in left.get_yticklabels()]
    over, fresh = numbers["over_everywhere"], numbers["fresh"]
    assert len(rows) == len(over) + len(fresh)
    drawn = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    wanted = [v["value"] for v in over.values()]
    wanted += [v["over everywhere"]["value"] for v in fresh.values()]
    assert set(np.round(wanted, 12)) == set(np.round(drawn, 12))
    plt.close(fig)
