"""Calibration of the estimator: densities integrate to one, the summary is the arrays' extremes."""

import numpy as np
import pytest
import torch

from companion.experiments import calibration
from nag.estimator import NoiseEstimator


def test_examples_are_densities_near_their_truth():
    net = NoiseEstimator(1).eval()
    curves = calibration.example(net, torch.zeros(1, 1, 8, 8), "linear", (0.3, 0.5), reach=0.7)
    assert [curve["truth"] for curve in curves] == [0.3, 0.5]
    for curve in curves:
        mass = np.trapezoid(curve["density"], curve["t"])
        assert 0.9 < mass <= 1.01  # what lies within reach
        assert len(curve["t"]) == 400 and curve["t"][0] == pytest.approx(1e-3)


def test_summary_has_the_largest_gap_and_late_bias():
    cal = {
        "level": np.array([0.5, 0.9]),
        "coverage": np.array([0.6, 0.87]),
        "t": [0.1, 0.2, 0.7],
        "bias": [0.01, -0.02, 0.5],
    }
    found = calibration.summary(cal, "linear")
    assert found["coverage_gap"] == pytest.approx(0.1) and found["late_bias"] == 0.02
    assert calibration.summary(cal | {"t": [0.07, 0.1, 0.7]}, "ddpm")["late_bias"] == 0.01


def test_calibration_asks_at_levels_on_an_even_grid():
    net = NoiseEstimator(1).eval()
    cal = calibration.calibrate(net, torch.zeros(20, 1, 8, 8), "linear", rounds=2)
    assert len(cal["pit"]) == 40
    assert set(calibration.spread(net, torch.zeros(5, 1, 8, 8), "linear")) == {
        "0.02",
        "0.06",
        "0.10",
        "0.20",
        "0.50",
        "0.90",
    }
