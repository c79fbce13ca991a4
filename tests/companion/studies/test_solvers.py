"""Solvers at equal cost: steps, weights carried over, comparisons, and answers from the numbers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from companion.experiments import study
from companion.experiments.spaces import Features
from companion.studies import solvers
from companion.studies.tell import solvers as tell
from nag.samplers.one_step import heun
from nag.support.files import read_json
from nag.support.paths import STUDIES

NAMES = {"sit": "SiT of 0.5 M parameters", "dit": "DiT of 0.5 M parameters"}


@pytest.fixture(scope="module")
def numbers():
    return read_json(STUDIES / "metrics" / "solvers.json")


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(STUDIES / "tables" / "solvers.csv")


def test_heuns_steps_cost_what_they_are_said_to():
    """Its evaluations are counted on a field that counts them, with one branch and with two."""
    for branches in (1, 2):
        for evaluations in (10, 20, 50):
            steps, calls = solvers.steps_of("heun", evaluations, branches), []

            def field(x, t, calls=calls):
                calls.append(t)
                return torch.zeros_like(x)

            times = torch.linspace(1, 0, steps + 1)
            for _ in heun(field, torch.zeros(1, 1, 2, 2), times, None, "linear"):
                pass
            assert abs(branches * len(calls) - evaluations) <= branches
    assert solvers.steps_of("euler", 10, 2) == 5


def test_weights_are_tuned_where_asked_and_carried_over_elsewhere():
    cells = solvers.cells_of({"sit": {"euler": [100, 10, 20], "heun": [20]}})
    best = {10: 1.0, 20: 2.0, 100: 4.0}
    asked, weights = [], []

    def measure(cell, w):
        asked.append(cell)
        weights.append((cell, w))
        return {"value": abs(w - best[cell[2]]), "low": 0.0, "high": 9.0}

    found = solvers.choose_weights(cells, {"sit": [1.0, 2.0, 4.0]}, [20], measure)
    assert [found["sit", "euler", n]["w"] for n in (10, 20, 100)] == [1.0, 2.0, 2.0]
    assert 0.5 in {w for cell, w in weights if cell[2] == 10}  # the best was at an end
    assert not any(found["sit", "euler", n]["at_end"] for n in (10, 100))
    assert ("sit", "euler", 100) not in asked and found["sit", "euler", 100]["tried"] == {}
    one = solvers.choose_weights(cells, {"sit": [3.0]}, [20], lambda *_: 1 / 0)
    assert {v["w"] for v in one.values()} == {3.0}


def rows_of(distances, real_mean):
    """Arms whose images are real ones moved by so much: their Fréchet distance is its square."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(400, 4)).astype(np.float32)
    seeds = np.arange(400)
    both = torch.from_numpy(base + real_mean)
    return Features(both, both), {
        arm: {"features": base + moved, "second": base + moved, "seeds": seeds}
        | {"labels": seeds % 2, "nfe": np.array(1)}
        for arm, moved in distances.items()
    }


def test_ratios_are_those_of_the_named_arms():
    """Distances 16 and 4 of Euler (none, NAG), 36 and 9 at 20, and 64 of Heun: ratios follow."""
    arms = {
        ("sit", "euler", 10, "none"): 2.0,
        ("sit", "euler", 10, "nag"): 1.0,
        ("sit", "euler", 20, "none"): 3.0,
        ("sit", "euler", 20, "nag"): 1.5,
        ("sit", "heun", 10, "none"): 4.0,
        ("sit", "ddpm", 10, "none"): 0.1,
    }
    real, rows = rows_of(arms, 0.0)
    quality = {
        arm: {"fd_inf": {"value": 4 * moved**2}} for arm, moved in arms.items()
    }  # four features
    found = solvers.ratios(rows, quality, real, catch=10)

    def values(key):
        return {name: v["value"] for name, v in found[key].items()}

    close = {"rel": 0.01}
    assert values("equal_evaluations") == pytest.approx(
        {"sit-euler-10": 1 / 4, "sit-euler-20": 1 / 4}, **close
    )
    assert values("nag_at_catch_over_unguided") == pytest.approx(
        {"sit-euler-10": 1 / 4, "sit-euler-20": 1 / 9}, **close
    )
    assert values("first_order_nag_over_higher_order") == pytest.approx(
        {"sit-euler-10 over heun": 1 / 16}, **close
    )
    assert values("higher_order_over_first_unguided") == pytest.approx(
        {"sit-heun-10 over euler": 4}, **close
    )
    assert found["unguided_most_over_fewest"]["sit-euler"]["over"]["value"] == pytest.approx(
        9 / 4, **close
    )
    best = found["best_nag_over_best_unguided"]["sit"]
    assert (best["nag"], best["none"]) == ("sit-euler-10", "sit-euler-10")  # not the stochastic one


def test_shifts_at_equal_steps_compare_distances_from_zero(monkeypatch):
    arm = ("sit", "euler", 20, "nag")
    times = np.array([1.0, 0.4, 0.0])
    row = {"times": times, "levels": np.zeros((5, 3))}

    def shifts(pairs, *_):
        delta = {"none": -0.03, "nag": 0.01}
        return {
            key: {
                "delta": {"value": np.full(3, delta[key[1]])},
                "draws": np.full((9, 3), delta[key[1]]),
            }
            for key in pairs
        }

    monkeypatch.setattr(study, "shifts", shifts)
    found = solvers.shifts({arm: row}, {arm: row}, {"sit": "linear"}, {"sit": None}, 0.2)
    assert found["sit-euler-20"]["nag"]["value"] == pytest.approx(0.01)
    assert found["sit-euler-20"]["nearer"]["value"] == pytest.approx(-0.02)
    assert tell.nearer(found["sit-euler-20"]) == "better"


def test_widened_intervals_are_bonferronis():
    """z at 1 - 0.025 / 28 is 3.125 (tables), so the logarithm grows 3.125 / 1.960-fold."""
    ratio = {"value": 0.8, "low": 0.8 / 1.1, "high": 0.8 * 1.1}
    wide = tell.widened(ratio, 28)
    assert np.log(wide["high"] / 0.8) == pytest.approx(np.log(1.1) * 3.125 / 1.960, rel=1e-3)
    assert tell.widened(ratio, 1) == pytest.approx(ratio)


def test_the_answer_has_the_measured_numbers(numbers, table, unknown_intervals):
    answer = tell.answers(numbers, table, NAMES)["Q2"]
    assert not unknown_intervals(answer["sentence"], numbers)
    outcomes = []
    for family, solver_names in tell.solvers_of(table).items():
        for solver in solver_names:
            course = []
            for cell, v in tell.by_cell(numbers["equal_evaluations"]).items():
                if cell[:2] == (family, solver):
                    open_ratio = v["low"] <= 1 <= v["high"]
                    course.append(f"({v['value']:.2f})" if open_ratio else f"{v['value']:.2f}")
                    outcomes.append("open" if open_ratio else v["value"] < 1)
            assert f"{tell.sampler_name(solver)} {', '.join(course)}" in answer["brief"]
    better, worse = outcomes.count(True), outcomes.count(False)
    assert f"better in {better}" in answer["brief"]
    assert f"worse in {worse} of {len(outcomes)}" in answer["brief"]


def test_the_course_ends_at_the_first_that_is_not_better():
    """NAG at 20 evaluations is ahead of 20 and 50, not surely of 100."""
    better, open_ratio = (
        {"value": 0.8, "low": 0.7, "high": 0.9},
        {"value": 1, "low": 0.9, "high": 1.1},
    )
    later = {"sit-euler-20": better, "sit-euler-50": better, "sit-euler-100": open_ratio}
    (sentence,) = tell._catching_up({"nag_at_catch_over_unguided": later}, {"sit": ["euler"]})
    assert sentence.endswith("SiT Euler 50.")
    assert not list(tell._catching_up({"nag_at_catch_over_unguided": {}}, {"sit": ["euler"]}))


@pytest.mark.slow
def test_the_figure_shows_ratios_distances_and_rings(numbers, table):
    fig = tell.figure(numbers, table, NAMES)
    axes = {
        (ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start): ax
        for ax in fig.axes
    }
    drawn = sorted(c[0].get_ydata()[0] for c in axes[0, 0].containers)
    sit = [v["value"] for name, v in numbers["equal_evaluations"].items() if name.startswith("sit")]
    assert drawn == pytest.approx(sorted(sit))
    rings = [
        y for line in axes[0, 0].lines if line.get_markersize() == 11 for y in line.get_ydata()
    ]
    at_end = [numbers["equal_evaluations"][name]["value"] for name in numbers["w_at_end_of_list"]]
    assert sorted(rings) == pytest.approx(sorted(at_end))
    distances = sorted(y for c in axes[1, 1].containers for y in c[0].get_ydata())
    assert distances == pytest.approx(sorted(table.fd_inf[table.family == "dit"]))
    plt.close(fig)
