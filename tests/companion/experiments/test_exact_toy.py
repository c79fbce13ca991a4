"""The exact toy: small runs against closed forms, and notebook 0's text against its numbers."""

import numpy as np
import pytest

from companion.experiments import exact_toy
from nag import toy
from nag.shift import statement_1
from nag.support.files import read_json
from nag.support.paths import RESULTS


def test_an_added_error_shifts_as_statement_1_says():
    times = np.array([0.2, 0.4])
    for path in ("alpha-one", "linear"):
        delta = exact_toy.added_error(path, times, 0.15, n=32, seed=0)
        np.testing.assert_allclose(delta["value"], statement_1(times, 0.15), atol=0.01)
        assert (np.array(delta["low"]) <= delta["value"]).all()


def test_the_exact_field_with_fine_steps_has_no_shift():
    b = exact_toy.bench(16, seed=0)
    field = exact_toy.scaled_noise(b.data, 1.0)
    states, s = exact_toy.sample(b, field, 150)
    assert abs(s["late"]["value"]) < 0.01 and states.shape == (16, 24)
    np.testing.assert_allclose(
        field(b.forward[:, 3], b.grid[3]), toy.velocity(b.data, b.forward[:, 3], b.grid[3])
    )


def test_without_a_weight_the_guided_field_is_the_exact_one():
    b = exact_toy.bench(8, seed=0)
    x = b.forward[:, 5].view(8, 1, 1, -1)
    t = float(b.grid[5])
    plain = exact_toy.guided(b, b.data, "dropout", 0.0)(x, t)
    np.testing.assert_allclose(
        plain.flatten(1), toy.velocity(b.data, x.flatten(1), b.grid[5]), atol=1e-6
    )


@pytest.fixture(scope="module")
def found():
    return read_json(RESULTS / "curves" / "toy.json")


def test_what_notebook_0_says_of_states_and_causes_holds(found):
    spread = {dims: one["spread"] for dims, one in found["beliefs"].items()}
    assert spread["64"] < spread["16"] < spread["2"]
    times = np.array(found["times"])
    for path, tolerance in (("alpha-one", 0.015), ("linear", 0.02)):
        gap = np.array(found["added"][path]["value"]) - statement_1(times, found["sigma_e"])
        assert np.abs(gap).max() < tolerance
    late = {name: s["late"]["value"] for name, s in found["causes"].items()}
    assert abs(late["fine steps"]) < 0.005 and late["coarse steps"] < late["fine steps"]
    assert late["stochastic, coarse"] > 0.005 and late["too weak"] > 0 > late["too strong"]
    assert late["blurred network"] > 0.02
    assert found["causes"]["blurred network"]["growth"]["low"] > 0


def test_what_notebook_0_says_of_guidance_holds(found):
    def value(case, negative, w, name):
        return exact_toy.value(found["sweep"][case], negative, w, name)

    net, ode, sde = "blurred network, Euler", "exact field, Euler", "exact field, stochastic"
    for name in ("late shift", "distance"):
        none = value(net, "", 0, name)
        outside, dropout = (
            value(net, negative, 2, name) for negative in ("outside estimator", "dropout")
        )
        assert outside < dropout < 0.8 * none
        assert value(net, "exact s(x)", 2, name) > 0.9 * none
    assert value(ode, "dropout", 2, "distance") > 2 * value(ode, "", 0, "distance")
    assert value(ode, "exact s(x)", 2, "distance") < value(ode, "", 0, "distance")
    assert value(sde, "dropout", 2, "late shift") < 0.7 * value(sde, "", 0, "late shift")
    assert value(sde, "dropout", 2, "distance") > value(sde, "", 0, "distance")
    nowhere, everywhere = value(net, "", 0, "distance"), value(net, "dropout", 2, "distance")
    late = found["guided where t <= 0.12"]["value"]
    assert nowhere - late > 0.4 * (nowhere - everywhere)


def test_what_notebook_0_says_of_dropout_holds(found):
    middle = [row for row in found["gap"] if 0.2 <= row["t"] <= 0.9]
    for row in middle:
        expected = 0.5 if row["network"] == "eps" else (1 - row["t"]) / 2
        assert abs(row["strength"] - expected) < 0.15 and row["cosine"] > 0.85
    assert max(row["cosine"] for row in found["gap"] if row["t"] == 0.02) < 0
