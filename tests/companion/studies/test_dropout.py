"""The study of dropout: comparisons over trainings, and what is said of them."""

import copy

import numpy as np
import pytest
import torch
from spread_arms import REAL, row

from companion.experiments import study
from companion.plots.style import save
from companion.studies import dropout
from companion.studies.tell import dropout as tell
from nag.support.files import read_json
from nag.support.paths import STUDIES
from nag.support.uncertainty import mean_ratio


@pytest.fixture
def committed():
    return read_json(STUDIES / "metrics/dropout.json")


def arms(**scales):
    """Arms with and without NAG of networks by the spread of their images without it."""
    found = {f"{name} none": row(scale) for name, scale in scales.items()}
    return found | {f"{name} NAG": row(0.5 + scale / 2) for name, scale in scales.items()}


# ---- measuring


def test_the_mean_has_the_normal_interval():
    found = dropout.mean_of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    half = 1.96 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert found["value"] == 2.5 and found["high"] - 2.5 == pytest.approx(half, rel=1e-4)


def test_errors_less_the_base_are_paired():
    errors = {
        "a": {False: torch.tensor([1.0, 5.0]), True: torch.tensor([2.0, 6.0])},
        "b": {False: torch.tensor([1.5, 5.5]), True: torch.tensor([2.0, 7.0])},
    }
    found = dropout.held_out(errors, "a")["b"]
    assert found["with level, less base"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["without level"]["value"] == 4.5
    assert found["without level, less base"]["value"] == 0.5


def test_a_rate_stands_beside_the_mean_of_the_trainings():
    rows = arms(a=2.0, a1=2.2, a2=1.9, b=2.5)
    found = dropout.compare_rates(rows, "a", ["b"], ["a1", "a2"], REAL)
    gain = {
        n: study.ratio(rows[f"{n} NAG"], rows[f"{n} none"], REAL) for n in ("a", "a1", "a2", "b")
    }
    logs = [np.log(gain[n]["value"]) for n in ("a", "a1", "a2")]
    assert found["gain_of_base"] == mean_ratio([gain[n] for n in ("a", "a1", "a2")])
    assert found["spread_between_trainings"] == pytest.approx(np.std(logs, ddof=1))
    beside = found["beside_base"]["b"]["gain"]
    assert np.log(beside["value"]) == pytest.approx(np.log(gain["b"]["value"]) - np.mean(logs))
    fd = {n: study.bias_corrected(rows[f"{n} NAG"], REAL)["value"] for n in gain}
    mean = np.mean([np.log(fd[n]) for n in ("a", "a1", "a2")])
    beside = found["beside_base"]["b"]["distance with NAG"]
    assert np.log(beside["value"]) == pytest.approx(np.log(fd["b"]) - mean)
    assert (
        beside["high"] / beside["value"]
        > found["nag_over_base"]["b"]["high"] / (found["nag_over_base"]["b"]["value"])
    )


def test_without_repeats_the_interval_is_that_over_images():
    rows = arms(a=2.0, b=2.5)
    found = dropout.compare_rates(rows, "a", ["b"], [], REAL)
    assert found["spread_between_trainings"] is None and found["trainings"] == 1
    for end in ("value", "low", "high"):
        assert found["beside_base"]["b"]["distance with NAG"][end] == pytest.approx(
            found["nag_over_base"]["b"][end]
        )


def test_the_gain_from_the_start_is_the_mean_over_trainings():
    rows = arms(a=2.0, a1=2.2)
    found = dropout.gain_from_start(rows, ["a", "a1"], REAL)
    each = [study.ratio(rows[f"{n} NAG"], rows[f"{n} none"], REAL) for n in ("a", "a1")]
    assert found["gain"] == mean_ratio(each) and [*found["each"].values()] == each
    logs = [np.log(x["value"]) for x in each]
    assert found["spread"] == pytest.approx(abs(logs[0] - logs[1]) / 2**0.5)
    alone = dropout.gain_from_start(rows, ["a"], REAL)
    assert alone["spread"] is None and alone["trainings"] == 1


def test_records_have_a_row_for_every_arm():
    rows = {name: row | {"nfe": 5, "seconds": 2.0} for name, row in arms(a=2.0).items()}
    one = {"value": 1.0, "low": 0.5, "high": 2.0}
    table = dropout.records(
        rows,
        {"a": 3.0},
        {"a": one},
        dict.fromkeys(rows, {"fd": one}),
        dict.fromkeys(rows, {"late": one}),
    ).set_index("arm")
    assert table.w.tolist() == [0, 3] and table.images_per_s.tolist() == [50, 50]
    assert np.isnan(table.ratio["a none"]) and table.ratio_high["a NAG"] == 2


# ---- telling


def test_sentences_have_the_numbers(committed):
    said = tell.answers(committed, "figures/dropout.png")["Q14"]
    found = committed["dropout"]
    for name, rate in found["rates"].items():
        x = found["gain"][name]
        assert (
            f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}] at {100 * rate:g} % "
            f"(w = {found['w'][name]:g})" in said["sentence"]
        )
        assert f"{x['value']:.2f} at {100 * rate:g} %" in said["brief"]
    for x in found["beside_base"].values():
        assert tell.show(x["distance with NAG"]) in said["sentence"]
    assert said["key"] == "dropout/gain"


def test_what_is_at_an_end_is_said_in_words(committed):
    numbers = copy.deepcopy(committed) | {"at_end_of_list": ["d05"]}
    assert "At an end of its list of weights: 5 %." in tell.answers(numbers, "x")["Q14"]["sentence"]
    numbers["at_end_of_list"] = []
    assert "At an end" not in tell.answers(numbers, "x")["Q14"]["sentence"]


def test_the_verdict_names_the_rates_that_differ(committed):
    numbers = copy.deepcopy(committed)
    for x in numbers["dropout"]["beside_base"].values():
        x["distance with NAG"] = {"value": 1.0, "low": 0.9, "high": 1.1}
    assert tell.verdict(numbers) == "none differs from 10 % for sure"
    for name, value in (("d05", 1.5), ("d30", 0.5)):
        x = {"value": value, "low": 0.9 * value, "high": 1.1 * value}
        numbers["dropout"]["beside_base"][name]["distance with NAG"] = x
    assert tell.verdict(numbers) == "5 % is worse and 30 % is better than 10 %"
    assert tell.title(numbers).endswith("5 % is worse and 30 % is better than 10 %")


def single(numbers):
    """The same study without repeats and with one rate besides the base's."""
    numbers = copy.deepcopy(numbers)
    found = numbers["dropout"]
    found |= {"trainings": 1, "spread_between_trainings": None}
    keep = {"d10", "d30"}
    for what in ("rates", "gain", "w", "beside_base", "nag_over_base", "none_over_base"):
        found[what] = {name: x for name, x in found[what].items() if name in keep}
    return numbers | {"at_end_of_list": []}


def test_a_study_of_one_training_says_so(committed):
    said = tell.answers(single(committed), "x")["Q14"]["sentence"]
    assert "one training only" in said and "At an end" not in said


@pytest.mark.slow
def test_the_figure_shows_every_rate(committed, tmp_path):
    for name, numbers in (("whole", committed), ("single", single(committed))):
        figure = save(tell.figure(numbers), name, tmp_path)
        found = numbers["dropout"]
        ticks = [100 * rate for rate in found["rates"].values()]
        assert all(ax.get_xticks().tolist() == pytest.approx(ticks) for ax in figure.axes)
        points = [line for line in figure.axes[1].lines if line.get_marker() == "s"]
        shown = np.concatenate([line.get_ydata() for line in points])
        gains = [x["value"] for x in found["gain"].values()]
        assert sorted(shown) == pytest.approx(sorted(gains))


def test_the_table_has_a_row_for_every_rate(committed):
    assert tell.table(committed).index.tolist() == ["5 %", "10 %", "20 %", "30 %"]
