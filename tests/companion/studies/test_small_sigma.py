"""As the noise goes to zero: sizes of one state in closed form, and an answer about both ends."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from companion.studies import small_sigma
from companion.studies.families import Family
from companion.studies.tell import small_sigma as tell
from nag.estimator import NoiseEstimator
from nag.models import DiT, ModelConfig
from nag.support.files import read_json
from nag.support.paths import STUDIES


@pytest.fixture
def committed():
    return read_json(STUDIES / "metrics" / "small_sigma.json")


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    config = ModelConfig(
        input_size=28, channels=1, patch=14, width=32, depth=1, heads=1, classes=10, path="linear"
    )
    net = DiT(config)
    for parameter in net.parameters():  # the last layer starts at zero
        torch.nn.init.normal_(parameter, std=0.05)
    family = Family("sit", net.eval(), lambda x: x, [])
    data = small_sigma.test_images(6)
    times = [0.3, 0.01, 0.1]
    return small_sigma.along(family, NoiseEstimator().eval(), data, times, 2.0, "fp32", 20, 0.1)


def test_sizes_are_those_of_the_formulas(measured):
    """SiT: sigma = t, alpha = 1 - t; the image gets t w |v - v_null| of NAG."""
    t = np.array([0.01, 0.1, 0.3])
    assert measured["t"] == list(t) and measured["sigma"] == pytest.approx(list(t))
    assert measured["ratio"] == pytest.approx(list(t / (1 - t)))
    value = {name: np.array(x["value"]) for name, x in measured.items() if isinstance(x, dict)}
    assert value["image_nag"] == pytest.approx(127.5 * t * value["nag"], rel=1e-3)
    assert value["nag"] == pytest.approx(2 * value["difference"] * t / (1 - t), rel=1e-3)
    assert value["nag_over_v"] == pytest.approx(value["nag"] / value["v"], rel=1e-4)
    slope = np.diff(np.log(value["difference"])) / np.diff(np.log(t))
    assert value["slope_difference"] == pytest.approx(slope, rel=1e-3)
    assert not value["rounding"].any()
    largest = small_sigma.largest_nag_over_v(measured)
    assert largest["value"] == max(value["nag_over_v"]) and largest["t"] in measured["t"]


def test_answer_has_the_numbers(committed, unknown_intervals):
    answer = tell.answers(committed)["Q9"]
    intervals = [
        tell.at(found["image_nag"], k)
        for found in committed["small_sigma"].values()
        for k in (0, -1)
    ]
    ratios = [
        {end: float(format(x[end], ".3f")) for end in ("value", "low", "high")}
        for x in committed["off_below"].values()
    ]
    for x in ratios:
        assert f"{x['value']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" in answer["sentence"]
    assert not unknown_intervals(answer["brief"], *intervals)
    assert answer["brief"].count("it falls") == 2 and "rounding" not in answer["sentence"]
    assert "worse (SiT-mini 1.257" in answer["sentence"]
    assert "inconclusive (DiT-mini 0.995" in answer["sentence"]
    assert "sigma^-0.71 from sigma 0.001 to 0.002" in answer["sentence"]
    assert "cosine of -0.25 to 0.06" in answer["sentence"]


def test_only_trusted_times_count_and_turns_are_said():
    power = {"value": [1.0, -1.0, -1.0], "low": [0.9, -1.1, -3.0], "high": [1.1, -0.9, 1.0]}
    small = {
        "slope_gradient": power,
        "slope_difference": power,
        "gradient_trusted": [False, False, True, True],
        "sigma": [0.01, 0.02, 0.05, 0.1],
    }
    assert [k for k, _ in tell.slopes(small, "gradient")] == [2]
    assert [k for k, _ in tell.slopes(small, "difference")] == [0, 1, 2]
    assert tell.turns(small, "difference") == ["0.02"]
    assert tell.growth(small, "difference", bounds=False) == (
        "like sigma^1.00 from sigma 0.01 to 0.02 and sigma^-1.00 from sigma 0.05 to 0.1 "
        "(turning at sigma 0.02)"
    )
    small["gradient_trusted"] = [False] * 4
    assert tell.growth(small, "gradient").startswith("inconclusive")


def test_trends_and_rounding(committed):
    changed = copy.deepcopy(committed)
    for found in changed["small_sigma"].values():
        found["image_nag"] |= {"low": [1.0, 1.0], "high": [2.0, 2.0], "value": [1.5, 1.5]}
    changed["precision"] = "bf16"
    answer = tell.answers(changed)["Q9"]["brief"]
    assert "it shows no conclusive change" in answer and "rounding to bf16 makes 0.00" in answer
    assert tell.title(changed).endswith("need not change")
    assert tell.title(committed) == "As the noise goes to zero, what NAG does to the image fades"


def test_figure(committed):
    figure = tell.figure(committed)
    assert len(figure.axes) == 4 and figure.axes[0].xaxis_inverted()
    plt.close(figure)
