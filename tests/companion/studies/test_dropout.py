"""The study of dropout: comparisons over trainings, further training, and the verdict on C7."""

import copy
import json

import numpy as np
import pytest
import torch

from companion.experiments import study
from companion.experiments.spaces import Features
from companion.plots.style import save
from companion.studies import dropout
from companion.studies.tell import dropout as tell
from nag.support.files import read_json
from nag.support.paths import ROOT, STUDIES
from nag.support.uncertainty import mean_ratio

RATES = {
    "null": [0.01, 0.03],
    "null + final layer": [0.001, 0.01],
    "all": [0.0001, 0.0003, 0.001],
}
REAL = torch.randn(400, 3, generator=torch.Generator().manual_seed(9))
REAL = Features(REAL, REAL[:, :2])


@pytest.fixture
def committed():
    return read_json(STUDIES / "metrics/dropout.json")


def row(scale, seed=0):
    """An arm of 100 images whose features are spread `scale` times as far as the real ones."""
    features = scale * torch.randn(100, 3, generator=torch.Generator().manual_seed(seed))
    seeds = np.arange(100)
    found = {"features": features.numpy(), "second": features[:, :2].numpy()}
    return found | {"seeds": seeds, "labels": seeds % 2}


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


# ---- telling


def test_sentences_have_the_numbers(committed):
    said = tell.answers(committed, RATES, 32, "figures/dropout.png")["C7"]
    found, later = committed["dropout"], committed["afterthought"]["arms"]
    for name, rate in found["rates"].items():
        x = found["gain"][name]
        assert (
            f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}] at {100 * rate:g} % "
            f"(w = {found['w'][name]:g})" in said["sentence"]
        )
    for x in found["beside_base"].values():
        assert tell.show(x["distance with NAG"]) in said["sentence"]
    for label in ("null, 0.7%", "null + final layer, 0.7%", "all, 0.7%"):
        assert f"{later[label]['gain']['value']:.2f} with" in said["brief"]
    assert tell.show(found["gain_of_base"]) in said["sentence"]
    assert f"to {tell.show(later['all, 7.0%']['gain'])} of the unguided" in said["sentence"]
    assert "(here 2,800 images, 88 steps)" in said["sentence"]
    assert said["key"] == "afterthought/arms/all, 0.7%/gain" and said["verdict"] == "inconclusive"


def test_what_is_at_an_end_is_said_in_words(committed):
    said = tell.answers(committed, RATES, 32, "x")["C7"]["sentence"]
    ways = "the null vector alone and the null vector and a last layer"
    assert f"At an end of its weights: {ways}." in said
    assert "At an end of its weights: 5 %." in said
    assert "At an end of its learning rates: the null vector alone, " in said
    wide = {route: [1e-9, *lrs, 1.0] for route, lrs in RATES.items()}
    assert "learning rates" not in tell.answers(committed, wide, 32, "x")["C7"]["sentence"]


def ratio(value, factor=1.01):
    return {"value": value, "low": value / factor, "high": value * factor, "n": 10}


def judged(numbers, gain, untouched, base=0.8, trainings=1):
    """The verdict if the whole network has these ratios after the shortest further training."""
    numbers = copy.deepcopy(numbers)
    numbers["afterthought"]["arms"]["all, 0.7%"] |= {"gain": gain, "over untouched": untouched}
    numbers["dropout"] |= {"gain_of_base": ratio(base), "trainings": trainings}
    numbers["dropout"]["gain"]["d10"] = ratio(base)
    return tell.verdict(numbers)


def test_the_verdict_asks_for_both_gains_and_half_of_the_usual_one(committed):
    assert judged(committed, ratio(0.8), ratio(0.8)) == "reproduced"
    assert judged(committed, ratio(0.95), ratio(0.95)) == "inconclusive"  # less than half
    assert judged(committed, ratio(0.8), ratio(1.0)) == "inconclusive"
    assert judged(committed, ratio(0.8), ratio(1.2)) == "contradicted"
    assert judged(committed, ratio(1.2), ratio(0.8)) == "contradicted"
    assert judged(committed, ratio(0.95), ratio(0.95), base=1.1) == "reproduced"
    # the spread between three trainings, .048 of the logarithm, leaves a tenth open
    assert judged(committed, ratio(0.9), ratio(0.9), base=1.1, trainings=3) == "inconclusive"


def test_half_of_the_gain_is_measured_on_the_logarithm(committed):
    numbers = copy.deepcopy(committed)
    numbers["dropout"] |= {"gain_of_base": ratio(0.64), "trainings": 1}
    numbers["dropout"]["gain"]["d10"] = ratio(0.64, 1.02)
    numbers["afterthought"]["arms"]["all, 0.7%"]["gain"] = ratio(0.8, 1.03)
    found = tell.half_of_gain(numbers)
    assert found["value"] == pytest.approx(1)
    half = np.hypot(np.log(1.03), np.log(1.02) / 2)
    assert found["high"] == pytest.approx(np.exp(half))


def single(numbers):
    """The same study without repeats and with one rate besides the base's."""
    numbers = copy.deepcopy(numbers)
    found = numbers["dropout"]
    found |= {"trainings": 1, "spread_between_trainings": None}
    keep = {"d10", "d30"}
    for what in ("rates", "gain", "w", "beside_base", "nag_over_base", "none_over_base"):
        found[what] = {name: x for name, x in found[what].items() if name in keep}
    numbers["at_end_of_list"] = []
    return numbers


def test_a_study_of_one_training_says_so(committed):
    numbers = single(committed)
    said = tell.answers(numbers, RATES, 32, "x")["C7"]["sentence"]
    assert (
        "one training only" in said and "(1 training)" in said and "end of its weights" not in said
    )
    gain = numbers["afterthought"]["arms"]["null, 0.7%"]["gain"]
    assert f"{tell.show(gain)} with the null vector alone (better)" in said  # over images alone


def test_the_figure_shows_every_rate_and_way(committed, tmp_path):
    for name, numbers in (("whole", committed), ("single", single(committed))):
        figure = save(tell.figure(numbers), name, tmp_path)
        below = figure.axes[2]
        points = [float(line.get_xdata()[0]) for line in below.lines if line.get_marker() in "sD"]
        arms = numbers["afterthought"]["arms"].values()
        expected = [x[what]["value"] for x in arms for what in ("gain", "over untouched")]
        assert sorted(points) == pytest.approx(sorted(expected))
        assert [label.get_text().replace("\n", " ") for label in below.get_yticklabels()][0] == (
            "the null vector alone, 0.7\N{NO-BREAK SPACE}%"
        )


def test_tables_have_a_row_for_every_network(committed):
    assert len(tell.table(committed)) == 4 + 4
    starts = tell.starts(committed)
    assert starts.loc["the whole network", "smallest"] == "mean" and len(starts) == 4


def test_the_text_of_the_notebook_has_the_committed_numbers(committed):
    cells = json.loads((ROOT / "notebooks/27_dropout.ipynb").read_text())["cells"]
    text = " ".join("".join(cells[0]["source"]).split())
    gains = [committed["dropout"]["gain"][n]["value"] for n in committed["dropout"]["rates"]]
    assert f"ratio is {min(gains):.2f} to {max(gains):.2f}" in text
    later = {k: f"{v['gain']['value']:.2f}" for k, v in committed["afterthought"]["arms"].items()}
    assert f"NAG has {later['all, 0.7%']} of that network's unguided distance" in text
    assert f"and {later['all, 7.0%']} after 7 %" in text
    assert f"the null vector alone has {later['null, 0.7%']}" in text
