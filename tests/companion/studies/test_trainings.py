"""The study of several trainings: what is chosen, compared and said."""

import copy

import pytest
import torch
from spread_arms import REAL, row

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig
from companion.plots.style import save
from companion.studies import trainings
from companion.studies.families import Family
from companion.studies.tell import trainings as tell
from nag.interpolant import time_of_ratio
from nag.support.files import read_json
from nag.support.paths import RESULTS
from nag.support.uncertainty import independent_ratio, mean_ratio

# ---- measuring


def test_weights_come_from_the_file_of_a_search():
    file = "results/metrics/tune-sit.json"
    asked = {"ode": ["none", "nag", "cfg", "cfg-nag"], "sde": ["none", "nag"]}
    found = trainings.choose("sit", {"ode": file}, 2.0, 1.5, asked)
    chosen = read_json(RESULTS.parent / file)["chosen"]
    assert found["ode"] == {name: Arm(**of) for name, of in chosen.items()}
    assert found["sde"] == {"none": Arm(), "nag": Arm(w_nag=2.0)}


def test_ratios_are_of_each_training_and_their_mean():
    scales = {"none": 2.0, "nag": 1.5, "cfg": 1.6, "cfg-nag": 1.4}
    rows = [{arm: row(x + k / 10, k) for arm, x in scales.items()} for k in range(3)]
    found = trainings.ratios(rows, REAL)
    assert [*found] == ["nag over none", "cfg over none", "cfg-nag over cfg"]
    each = [study.ratio(of["cfg-nag"], of["cfg"], REAL) for of in rows]
    assert found["cfg-nag over cfg"] == {"each": each, "mean": mean_ratio(each, independent=True)}
    few = [{arm: of[arm] for arm in ("none", "nag")} for of in rows]
    assert trainings.ratios(few, REAL) == {"nag over none": found["nag over none"]}


def test_the_mean_of_numbers_has_the_wider_interval():
    near = [{"value": x, "low": x - 0.5, "high": x + 0.5} for x in (1.0, 1.01, 0.99)]
    mean, half = trainings.over(near), 0.5 / 3**0.5
    assert (mean["value"], mean["low"], mean["high"]) == pytest.approx((1.0, 1 - half, 1 + half))
    far = [{"value": x, "low": x - 0.01, "high": x + 0.01} for x in (-1.0, 0.0, 1.0)]
    half = 4.303 / 3**0.5  # Student's t of two degrees of freedom
    assert trainings.over(far)["high"] == pytest.approx(half, rel=1e-3)


def test_trainings_have_seeds_of_their_own():
    config = SampleConfig(n_images=30, first_seed=100)
    of = [trainings.with_own_seeds(config, k).seeds for k in range(3)]
    assert [seed for seeds in of for seed in seeds] == list(range(100, 190))


@pytest.mark.parametrize("path", ["linear", "ddpm"])
def test_the_excess_is_that_of_a_network_that_errs_by_a_known_factor(tiny, path, monkeypatch):
    images = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
    t = torch.linspace(0.001, 1, 400)
    late = t <= time_of_ratio(torch.tensor(0.25), path)

    def errors(net, x0, labels, seed, drop_noise):
        assert seed == 2
        return t, torch.where(late, 3.0, 1.5) if drop_noise else torch.ones(400)

    monkeypatch.setattr(trainings, "held_out_errors", errors)
    name = "sit" if path == "linear" else "dit"
    family = Family(name, tiny(), lambda x: x[:, 0, 0, 0], [])
    found = trainings.excess(family, images, torch.zeros(400, dtype=torch.long), 20)
    assert [*found] == ["0 to 0.25", "0.25 to 1", "1 to 4", "4 to up"]
    assert found["0 to 0.25"] == {"value": 3.0, "low": 3.0, "high": 3.0}
    assert all(x["value"] == 1.5 for key, x in found.items() if key != "0 to 0.25")


# ---- telling


def ratio(value, factor=1.05):
    own = {"value": value, "low": value / factor, "high": value * factor}
    return own | {"second": {end: x * 1.5 for end, x in own.items()}}


def of_family(nag, names):
    each = [ratio(nag * x) for x in (0.98, 1.0, 1.02)]
    pairs = {"nag over none": {"each": each, "mean": ratio(nag)}}
    late = {"value": 0.001, "low": 0.0005, "high": 0.0015}
    shift = {arm: {"each": [late] * 3, "mean": late} for arm in tell.ARMS}
    return {
        "trainings": 3,
        "samplers": names,
        "ratios": dict.fromkeys(names, pairs),
        "shift_late": dict.fromkeys(names, shift),
        "excess": [{"0 to 0.25": ratio(x * nag, 1.01)} for x in (1.04, 1.05, 1.06)],
    }


@pytest.fixture
def numbers():
    names = {
        "sit": {"ode": "euler", "sde": "euler_maruyama_tweedie"},
        "dit": {"ode": "ddim", "sde": "ddpm"},
    }
    families = {f: of_family(x, names[f]) for f, x in (("sit", 0.9), ("dit", 0.6))}
    return {"n": {"ode": 2400, "sde": 1200}, "steps": {"ode": 25, "sde": 250}, "families": families}


def test_the_claim_is_judged_by_the_means_of_all_samplers(numbers):
    found = tell.compared(numbers)
    assert found["ode"] == independent_ratio(ratio(0.9), ratio(0.6))
    assert tell.judged(numbers) == "reproduced"
    other = copy.deepcopy(numbers)
    other["families"]["sit"]["ratios"]["sde"] = {"nag over none": {"each": [], "mean": ratio(0.4)}}
    assert tell.judged(other) == "inconclusive"
    other["families"]["sit"]["ratios"]["ode"] = other["families"]["sit"]["ratios"]["sde"]
    assert tell.judged(other) == "contradicted"


def test_sentences_have_the_numbers(numbers):
    said = tell.answers(numbers, "figures/x.png")["C8"]
    assert f"SiT-mini Euler, 25 steps {tell.show(ratio(0.9))} (classifier)" in said["sentence"]
    assert (
        f"DiT-mini DDPM, 250 steps {tell.show(ratio(0.6)['second'])} (pixels)" in said["sentence"]
    )
    (null,) = tell.null_branches(numbers).values()
    assert null["value"] == pytest.approx(0.6 / 0.9)
    assert f"0 to 0.25 {tell.show(null)} (better than SiT's)" in said["sentence"]
    assert said["verdict"] == "reproduced" and "deterministic sampler 1.50" in said["brief"]


def test_the_figure_has_every_training_and_mean(numbers, tmp_path):
    figure = save(tell.figure(numbers), "x", tmp_path)
    for ax, family in zip(figure.axes, ("sit", "dit"), strict=True):
        ticks = [x for line in ax.lines if line.get_marker() == "|" for x in line.get_xdata()]
        means = [line.get_xdata()[0] for line in ax.lines if line.get_marker() in ("s", "o")]
        found = list(tell.rows(numbers, family))
        assert sorted(ticks) == pytest.approx(
            sorted(x["value"] for *_, each, _ in found for x in each)
        )
        assert sorted(means) == pytest.approx(sorted(mean["value"] for *_, mean in found))
    assert "better in 6" in tell.title(numbers)
    assert tell.table(numbers).shape == (8, 5) and tell.shifts(numbers).shape == (4, 4)
    assert "sit sde nag" in tell.shown(numbers)
