"""The study of rivals: how settings are chosen, ratios over trainings, and what is said."""

import re

import numpy as np
import pytest
import torch
from spread_arms import REAL, row

from companion.experiments import study
from companion.plots.style import save
from companion.studies import rivals
from companion.studies.tell import rivals as tell
from nag.models import DiT, ModelConfig
from nag.rivals.methods import METHODS
from nag.support.files import read_json
from nag.support.paths import STUDIES
from nag.support.uncertainty import mean_ratio

NAMES = ("rivals", "rivals-sde")


@pytest.fixture(params=NAMES)
def committed(request):
    return read_json(STUDIES / f"metrics/{request.param}.json")


def made_up(sampler="euler", **changes):
    """Numbers of NAG (better), CFG (inconclusive) and Epsilon Scaling (worse) on one training."""
    better, worse, unclear = (
        {"value": v, "low": low, "high": high, "n": 10, "trainings": 1}
        for v, low, high in ((0.5, 0.4, 0.6), (1.5, 1.4, 1.6), (1.01, 0.9, 1.1))
    )
    cost = {"nfe": 10, "parameters": 7, "training": 0.0, "time": 1.25}
    chosen = {"setting": "scale 2", "of": 1, "w_nag beside": 1.0}
    chosen |= {"setting at an end": False, "w at an end": False}
    arms = ["nag", "cfg", "epsilon-scaling", "cfg+nag", "epsilon-scaling+nag"]
    ratios = dict(zip(arms, (better, unclear, worse, better, unclear), strict=True))
    return {
        "n": 10,
        "seeds": [0, 9],
        "tuning_seeds": [100, 104],
        "networks": ["a"],
        "sampler": sampler,
        "nfe": 10,
        "chosen": {method: chosen for method in arms[:3]},
        "unguided": ratios,
        "nag_adds": {"cfg": better, "epsilon-scaling": worse},
        "rival_adds": {"cfg": unclear, "epsilon-scaling": worse},
        "costs": {arm: cost for arm in ["none", *arms]},
    } | changes


# ---- measuring


def test_the_setting_of_the_least_distance_is_taken_then_its_weight():
    seen = []

    def measure(method, setting, w):
        seen.append((setting[0], w))
        return abs(setting[0] - 1.5) + abs(w - 2)

    chosen, tried = rivals.tuned("cfg", [[1.1], [1.5], [2.0]], [1.0, 2.0], measure)
    assert seen == [(1.1, 0.0), (1.5, 0.0), (2.0, 0.0), (1.5, 1.0), (1.5, 2.0)]
    assert chosen["values"] == [1.5] and chosen["w_nag beside"] == 2.0 and chosen["of"] == 3
    assert not chosen["setting at an end"] and chosen["w at an end"]
    assert [one["fd_inf"] for one in tried] == pytest.approx([2.4, 2.0, 2.5, 1.0, 0.0])


def test_a_single_candidate_is_not_measured_and_has_no_end():
    chosen, tried = rivals.tuned("input-perturbation", [[]], [1.0], lambda *_: pytest.fail())
    assert not tried and chosen["setting"] == "none"
    assert not chosen["setting at an end"] and not chosen["w at an end"]
    nag, _ = rivals.tuned("nag", [[1.0], [2.0]], [], lambda m, setting, w: setting[0])
    assert nag["setting at an end"] and nag["w at an end"] is None


def test_an_arm_without_and_with_nag_for_every_method():
    chosen = {
        "nag": {"values": [2.0], "w_nag beside": 0.0},
        "cfg": {"values": [1.5], "w_nag beside": 0.5},
    }
    assert rivals.report_arms(chosen) == {
        "none": ("none", [], 0.0),
        "nag": ("nag", [2.0], 0.0),
        "cfg": ("cfg", [1.5], 0.0),
        "cfg+nag": ("cfg", [1.5], 0.5),
    }


def test_a_ratio_is_the_mean_over_the_networks():
    every = {k: {"none": row(2, k), "cfg": row(1.3 + 0.1 * k, k)} for k in range(3)}
    each = [study.ratio(rows["cfg"], rows["none"], REAL) for rows in every.values()]
    found = rivals.compared(every, "cfg", "none", REAL)
    assert found == mean_ratio(each) | {"trainings": 3}
    one = rivals.compared({0: every[0]}, "cfg", "none", REAL)
    assert one["value"] == pytest.approx(each[0]["value"]) and one["trainings"] == 1


@pytest.mark.parametrize("other", ["none", "input-perturbation"])
def test_one_training_of_ddpm_ip_has_the_spread_of_the_others(other):
    """Without a spread between the base's trainings its interval is that over images; with one it
    is wider, and the ratio to the base is to the mean of the trainings."""
    own = {"input-perturbation": row(1.5), "input-perturbation+nag": row(1.2)}
    alike = {k: {"none": row(2), "nag": row(1.6)} for k in range(3)}
    alike[0] |= own
    arm = "input-perturbation+nag" if other != "none" else "input-perturbation"
    over_images = study.ratio(own[arm], alike[0][other], REAL)
    found = rivals.compared(alike, arm, other, REAL)
    for end in ("value", "low", "high"):
        assert found[end] == pytest.approx(over_images[end])

    unlike = {k: {"none": row(2 + 0.3 * k), "nag": row(1.6 - 0.2 * k)} for k in range(3)}
    unlike[0] |= own
    wider = rivals.compared(unlike, arm, other, REAL)
    assert wider["high"] / wider["value"] > 1.5 * found["high"] / found["value"]
    if other == "none":
        logs = study.log_distances([own[arm], *(rows["none"] for rows in unlike.values())], REAL)
        assert np.log(wider["value"]) == pytest.approx(logs[0] - np.mean(logs[1:]))


def test_a_head_is_trained_once_and_explains_what_it_learned(tmp_path, monkeypatch):
    """Untrained it explains nothing; the file is kept, and belongs to its network and data."""
    monkeypatch.setattr(rivals.paths, "CHECKPOINTS", tmp_path / "states")
    net = DiT(ModelConfig(width=32, depth=1, heads=1)).eval()
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"any")
    images, labels = torch.rand(64, 1, 28, 28) * 2 - 1, torch.arange(64) % 10
    parts = rivals.Parts(net)
    head, file = rivals.trained_head(parts, weights, images, labels, 256, tmp_path)
    again, same = rivals.trained_head(parts, weights, images, labels, 256, tmp_path)
    assert file == same and all(
        torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True)
    )
    weights.write_bytes(b"other")
    assert rivals.trained_head(parts, weights, images, labels, 128, tmp_path)[1] != file
    silent = rivals.LevelHead(net.config.width)
    assert rivals.explained(silent, net, 64) == 0 != rivals.explained(head, net, 64)


def test_costs_are_relative_to_unguided_sampling(tiny):
    net = tiny()
    plans = {
        "none": rivals.Plan(net, []),
        "cfg+nag": rivals.Plan(net, [], parameters=9, extra="w"),
        "input-perturbation": rivals.Plan(net, []),
    }
    found = rivals.costs(
        plans,
        dict.fromkeys(plans, 48),
        {"none": 2.0, "cfg+nag": 3.0, "input-perturbation": 2.0},
        60,
        {"base": 200, "w": 50},
    )
    assert found["cfg+nag"]["time"] == 1.5 and found["cfg+nag"]["images_s"] == 20
    assert found["cfg+nag"]["nfe_images_s"] == 960 and found["cfg+nag"]["training"] == 25
    assert found["cfg+nag"]["needs"].startswith("null class, ")
    assert found["none"]["time_equal_steps"] == 1 and found["cfg+nag"]["time_equal_steps"] is None
    assert found["input-perturbation"]["training"] is None


# ---- telling


def test_labels_are_those_of_the_register():
    assert {name: METHODS[name].label for name in tell.LABELS} == tell.LABELS


def test_sentences_have_the_numbers(committed):
    said = tell.answers(committed, "figures/x.png")
    sentence, brief = said["Q3"]["sentence"], said["Q3"]["brief"]
    nag = committed["unguided"]["nag"]
    assert f"{nag['value']:.3f} [{nag['low']:.3f}, {nag['high']:.3f}]" in sentence
    assert f"At {committed['nfe']} network evaluations per image" in sentence
    for method in tell.rivals(committed):
        label = tell.LABELS[method]
        for what in (committed["nag_adds"], committed["rival_adds"], committed["unguided"]):
            assert f"{label} {what[method]['value']:.2f}" in sentence
        pair = [f"{committed['unguided'][arm]['value']:.2f}" for arm in (method, f"{method}+nag")]
        shown = re.search(rf"{label} \(?(\d.\d+)\)? and \(?(\d.\d+)", brief)
        assert list(shown.groups()) == pair
    assert ("Q5" in said) == (committed["sampler"] == "euler")
    if "Q5" in said:
        costs = committed["costs"]
        times = [costs[method]["time"] for method in tell.rivals(committed)]
        numbers = (costs["nag"]["time"], min(times), max(times))
        assert all(f"{time:.2f}" in said["Q5"]["brief"] for time in numbers)
        assert f"{costs['autoguidance']['parameters']:,}" in said["Q5"]["sentence"]


def test_outcomes_follow_the_intervals():
    numbers = made_up()
    assert numbers["unguided"]["cfg"]["low"] < 1 < numbers["unguided"]["cfg"]["high"]
    said = tell.answers(numbers, "x")["Q3"]
    assert "0.500 [0.400, 0.600] of the unguided one (better)" in said["sentence"]
    assert (
        "alone over unguided: worse: Epsilon Scaling 1.50; inconclusive: CFG 1.01."
        in (said["sentence"])
    )
    assert "CFG (1.01) and 0.50" in said["brief"] and "Epsilon Scaling 1.50 and" in said["brief"]
    assert "one training" not in said["sentence"] and "end of their list" not in said["sentence"]


def test_what_is_at_an_end_is_said_and_marked():
    numbers = made_up("euler_maruyama")
    end = numbers["chosen"]["cfg"] | {"w at an end": True}
    numbers["chosen"] = numbers["chosen"] | {"cfg": end}
    said = tell.answers(numbers, "x")
    assert "At an end of their list, so that more may be possible: CFG." in said["Q3"]["sentence"]
    assert "Q5" not in said
    figure = tell.figure(numbers)
    rings = [line for line in figure.axes[0].lines if line.get_markersize() > 10]
    assert len(rings) == 1 and rings[0].get_xdata()[0] == numbers["unguided"]["cfg+nag"]["value"]


def test_the_figure_shows_every_arm_once(committed, tmp_path):
    figure = save(tell.figure(committed), "x", tmp_path)
    ratios, times = (
        sorted(float(line.get_xdata()[0]) for line in ax.lines
               if line.get_marker() not in ("None", "") and line.get_markersize() < 10)
        for ax in figure.axes
    )  # fmt: skip
    assert ratios == sorted(found["value"] for found in committed["unguided"].values())
    assert times == sorted(c["time"] for arm, c in committed["costs"].items() if arm != "none")
    assert (tmp_path / "x.png").is_file()


def test_the_best_arm_of_each_method_is_shown():
    assert tell.shown(made_up()) == {
        "none": "no guidance",
        "nag": "NAG",
        "cfg+nag": "CFG + NAG",
        "epsilon-scaling+nag": "Epsilon Scaling + NAG",
    }
