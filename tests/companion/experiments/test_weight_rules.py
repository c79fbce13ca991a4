"""The rules' weights, and when one of them is as good as the sweep."""

import pytest

from companion.experiments import weight_rules


def over(value, low, high):
    return {"best of sweep": {"value": value, "low": low, "high": high}}


def test_a_rule_is_surely_as_good_only_by_its_whole_interval():
    found = weight_rules.as_good(
        {"mean": over(1, 0.9, 1.04), "spread": over(1, 0.9, 1.06), "schedule": over(1.2, 1.1, 1.3)}
    )
    assert found == {
        "mean": {"value": True, "surely": True, "surely not": False},
        "spread": {"value": True, "surely": False, "surely not": False},
        "schedule": {"value": False, "surely": False, "surely not": True},
    }


def test_the_schedules_weight_is_its_mean():
    found = {
        "constant": {"mean": {"w": 0.5}, "spread": {"w": 1.5}},
        "schedule": {"weights": [0, 1, 2]},
        "swept": 3.0,
    }
    weights = weight_rules.mean_weights(found)
    assert weights["schedule"] == pytest.approx(1) and weights["best of sweep"] == 3.0
    assert list(weights) == ["none", "best of sweep", "mean", "spread", "schedule"]
