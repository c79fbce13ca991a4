"""Where the shift comes from: limits and parts that add up, and answers that say the numbers."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest

from companion.studies import shift_sources as sources
from companion.studies.tell import shift_sources as tell
from nag.support.files import read_json
from nag.support.paths import STUDIES


@pytest.fixture
def committed():
    return read_json(STUDIES / "metrics" / "sources.json")


def curve(of, spread=0.0):
    """A curve over 10, 20 and 40 steps with 50 draws around it."""
    noise = np.r_[0, np.linspace(-spread, spread, 50)]
    return {n: of(n) + noise for n in (10, 20, 40)}


def test_the_limit_is_that_of_a_polynomial_in_one_over_steps():
    found = sources.limit(curve(lambda n: 0.3 + 2 / n - 5 / n**2))
    assert found == pytest.approx(np.full(51, 0.3))
    assert sources.limit(curve(lambda n: 0.3 + 2 / n), fit_from=20)[0] == pytest.approx(0.3)
    record = sources.record(curve(lambda n: 1 / n, spread=0.1))
    assert list(record["steps"]) == ["10", "20", "40"]
    assert record["steps"]["20"]["value"] == pytest.approx(0.05)
    low, high = (record["limit"][end] for end in ("low", "high"))
    assert low == pytest.approx(-high) and high == pytest.approx(0.095, abs=0.002)


def test_the_parts_add_up_to_the_raw_reading():
    curves = {"ode": curve(lambda n: 0.1 + 0.3 / n), "sde": curve(lambda n: 0.2 + 4 / n)}
    bias = np.full(51, 0.01)
    parts = sources.account(curves, bias, steps=20, fit_from=10)
    assert sum(part[0] for part in parts.values()) == pytest.approx(0.01 + 0.2 + 4 / 20)
    assert parts["network"][0] == pytest.approx(0.1)
    assert parts["stochasticity, limit"][0] == pytest.approx(0.1)
    assert parts["deterministic steps"][0] == pytest.approx(0.3 / 20)
    assert parts["stochastic steps"][0] == pytest.approx(4 / 20 - 0.3 / 20)


@pytest.mark.slow
def test_an_exact_field_has_the_solvers_shift_alone_and_a_planted_error_that_of_statement_1():
    world = sources.toy_world(200, 10)
    found = sources.toy_curve(world, "euler_maruyama", [10, 40], 20)
    assert found[10][0] > 3 * found[40][0] > 0
    smooth, noisy = sources.planted(world, [0.2], 40, 20)
    assert smooth["kind"] == "smooth bias" and noisy["kind"] == "independent error"
    t = np.array([0.1, 0.2])
    assert smooth["predicted"] == pytest.approx(np.mean(np.hypot(t, 0.2 * (1 - t)) - t))
    for error in (smooth, noisy):
        assert error["measured over predicted"] == pytest.approx(1, abs=0.35)


def test_answers_have_the_numbers(committed, unknown_intervals):
    answer = tell.answers(committed)["Q7"]
    assert not unknown_intervals(answer["sentence"], committed)
    assert "the finite length of the stochastic steps, in both networks" in answer["brief"]
    assert (
        "SiT-mini +0.0112, late shift +0.0115; DiT-mini +0.0040, late shift +0.0035"
        in (answer["brief"])
    )
    assert "within 95 % for 3 of 3 samplers" in answer["brief"]
    for table in (tell.table(committed), tell.one_step_table(committed)):
        assert table.index[-1] == "∞" and not table.isna().any().any()
    assert tell.parts_table(committed).shape == (5, 2)


def test_a_network_whose_shift_remains_is_said_so(committed):
    changed = copy.deepcopy(committed)
    network = {"value": 0.02, "low": 0.015, "high": 0.025}
    changed["networks"]["dit"]["parts"]["network"] = network
    changed["networks"]["dit"]["sde"]["limit"] = network
    answer = tell.answers(changed)["Q7"]["sentence"]
    assert answer.startswith("The largest part of the shift differs between the networks.")
    assert "of it +0.0200 [+0.0150, +0.0250] comes from the network" in answer
    assert tell.title(committed).endswith("vanishes as its steps become finer")
    assert tell.title(changed).startswith("Not all of")


def test_figure_of_one_network_and_of_two(committed):
    assert len(tell.figure(committed).axes) == 6
    del committed["networks"]["dit"]
    figure = tell.figure(committed)
    assert len(figure.axes) == 5
    texts = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
    assert "DiT" not in texts and "in both networks" not in tell.answers(committed)["Q7"]["brief"]
    plt.close("all")
