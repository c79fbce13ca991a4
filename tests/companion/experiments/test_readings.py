"""The noise shift of several arms as it is kept: numbers of `nag.shift`, in JSON."""

import json

import numpy as np
import pytest
import torch

from companion.experiments import readings
from nag.shift import noise_shift

TIMES = np.linspace(1, 0, 21)
REAL = torch.zeros(40, 1, 4, 4)  # no signal: the level of a state is its standard deviation


def level(x):
    return x.flatten(1).std(1)


def states(excess, n=30, seed=0):
    gen = torch.Generator().manual_seed(seed)
    eps = torch.randn(n, 1, 4, 4, generator=gen)
    return torch.stack([(t + excess) * eps for t in TIMES], 1).numpy()


@pytest.fixture(scope="module")
def found():
    runs = {
        arm: {"times": TIMES, "states": states(e)} for arm, e in (("none", 0.05), ("nag", 0.02))
    }
    return readings.read(runs, REAL, level, "linear", resamples=50)


def test_shifts_are_those_of_the_readings(found):
    again = noise_shift(found.levels["nag"], found.control, TIMES, 50)
    np.testing.assert_array_equal(found.shifts["nag"]["delta"]["value"], again["delta"]["value"])
    numbers = readings.numbers(found, n=30)
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["none"]["shift_late"]["n"] == 30 and "n" not in numbers["none"]["middle"]
    more = numbers["none"]["shift_late"]["value"] - again["late"]["value"]
    assert more == pytest.approx(0.03, abs=0.01)
    assert numbers["none"]["late_ratio"]["value"] == 1
    assert 0 < numbers["nag"]["late_ratio"]["value"] < 1


def test_curves_have_every_time_above_zero(found):
    curves = readings.curves(found, n=30)
    assert curves["times"] == TIMES[:-1].tolist() and curves["n"] == 30
    assert all(len(curves["nag"][end]) == 20 for end in ("value", "low", "high"))
    assert len(curves["energy"]["none"]) == 20
    arrays = readings.arrays(found)
    assert set(arrays) == {"times", "control", "none", "nag"} and arrays["nag"].shape == (30, 21)


def test_without_images_there_is_no_stochastic_run():
    assert readings.stochastic("sit", 0, 5, 0, False) == {}


def test_the_stochastic_run_keeps_all_states_of_both_arms():
    specs = readings.stochastic("dit", 20, 5, 100, False)
    assert list(specs) == ["none", "nag"] and specs["none"].key() != specs["nag"].key()
    assert specs["nag"].arm.w_nag > 0 == specs["none"].arm.w_nag
    for spec in specs.values():
        assert (spec.config.seeds, spec.config.trajectories) == (range(100, 120), 20)
        assert spec.weights.endswith("dit.safetensors") and spec.config.sampler == "sde"
