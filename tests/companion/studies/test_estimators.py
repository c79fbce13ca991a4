"""Other estimators: their spread and errors, and an answer that respects what is inconclusive."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from companion.studies import estimators
from companion.studies.tell import estimators as tell
from nag.support.files import read_json
from nag.support.paths import STUDIES
from nag.train import TrainConfig


@pytest.fixture
def committed():
    return read_json(STUDIES / "metrics" / "estimator.json")


def test_spread_joins_seeds_and_pairs_kinds():
    """Readings with known means: attention 1 and 3, plain 5 and 7, wavelet 10, energy 20."""
    times = np.array([0.5, 0.2, 0.0])
    values = {"attention 0": 1, "attention 1": 3, "plain 0": 5, "plain 1": 7}
    values |= {"wavelet": 10, "energy": 20, "paper": 8, estimators.MOVING: -99}
    shifts = {
        name: {"late": {"value": v, "low": v, "high": v}, "draws": np.full((10, 3), float(v))}
        for name, v in values.items()
    }
    found = estimators.spread(shifts, times, [0, 1])
    assert (found["lowest"], found["highest"]) == (1, 20)
    assert found["mean"] == pytest.approx(54 / 7)
    assert found["seed_sd"] == pytest.approx(2**0.5)
    assert found["plain_minus_attention"] == {"value": 4, "low": 4, "high": 4}
    assert found["wavelet_minus_networks"]["value"] == 6
    assert found["energy_minus_networks"]["value"] == 16
    assert found["paper_minus_networks"]["value"] == 4
    one_seed = {name: shifts[name] for name in shifts if "1" not in name}
    assert estimators.spread(one_seed, times, [0])["seed_sd"] is None


def test_the_paper_s_kind_is_made_once_and_reads_with_the_others(tiny, tmp_path, monkeypatch):
    """Its file belongs to the network it was made of; it stands beside the others and is told of
    only where it was measured.
    """
    monkeypatch.setattr(estimators, "CHECKPOINTS", tmp_path / "states")
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"any")
    net, images = tiny(), torch.rand(48, 1, 8, 8) * 2 - 1
    config = TrainConfig(images_seen=96, batch_size=48, compile=False, precision="fp32")
    made = estimators.fine_tuned(net, weights, images, config, tmp_path)
    again = estimators.fine_tuned(net, weights, images, config, tmp_path)
    assert torch.equal(made(images), again(images))
    assert len(list(tmp_path.glob("paper-*.safetensors"))) == 1
    weights.write_bytes(b"other")
    estimators.fine_tuned(net, weights, images, config, tmp_path)
    assert len(list(tmp_path.glob("paper-*.safetensors"))) == 2
    readers = estimators.readers_of({}, made, images, "linear")
    assert list(readers) == ["paper", "wavelet"] and readers["paper"](images).shape == (48,)


def test_the_paper_s_kind_is_told_of_where_it_was_measured(committed):
    assert "paper" not in tell.answers(committed, "sit")["Q6"]["sentence"]
    measured = copy.deepcopy(committed)
    for row in (*measured["shifts"].values(), *measured["foreign"].values(), measured["bias"]):
        row["paper"] = row["committed"]
    for found in measured["spread"].values():
        found["paper_minus_networks"] = {"value": 0.00123, "low": 0.001, "high": 0.002}
    said = tell.answers(measured, "sit")["Q6"]["sentence"]
    assert "the paper's kind minus networks +0.0012" in said and "over 10 estimators" in said
    legends = [
        [text.get_text() for text in legend.get_texts()]
        for numbers in (committed, measured)
        for legend in tell.figure(numbers, "sit").legends
    ]
    assert ["paper" in legend for legend in legends] == [False, True]


def test_a_perfect_estimator_has_no_error_and_reads_known_noise():
    """On empty images the level is the standard deviation of the state."""
    empty = torch.zeros(30, 1, 28, 28)
    images = {"real images": empty, "blurred": empty}
    readers = {"exact": lambda x: x.flatten(1).double().std(1)}
    bias, errors = estimators.foreign_errors(images, readers, [0.1, 0.2, 0.5], 0.01, "linear")
    assert all(abs(b) < 0.005 for b in bias["exact"].values())
    assert errors["blurred"]["exact"]["value"] == 0
    known = errors["known extra noise"]["exact"]
    assert known["value"] == pytest.approx(0.01, abs=5e-4)
    assert known["low"] < known["value"] < known["high"]


def test_answer_has_the_numbers(committed):
    answer = tell.answers(committed, "sit")["Q6"]
    spread = committed["spread"]["sde none"]
    assert "robust in sign for the largest shift only" in answer["brief"]
    for value in (spread["lowest"], spread["highest"]):
        assert f"{value:+.4f}" in answer["sentence"] and f"{value:+.4f}" in answer["brief"]
    assert "contradict each other for Euler, no guidance and for Euler, NAG." in answer["brief"]
    assert (
        "for 0 of 9 estimators (Euler) and for 8 of 9 estimators (Euler–Maruyama)"
        in (answer["sentence"])
    )
    assert "0.0069 to 0.0102" in answer["sentence"] and "0.1976 (inverted)" in answer["sentence"]
    assert tell.table(committed, "sit").shape == (10, 4)
    assert tell.calibration_table(committed).loc["wavelet", "coverage gap"] != 0


def test_words_follow_the_signs(committed):
    """Contradiction of the largest shift, some inconclusive, all on one side, all inconclusive."""

    def sides(name, low, high):
        changed = copy.deepcopy(committed)
        changed["shifts"]["sde none"][name] = {"value": (low + high) / 2, "low": low, "high": high}
        return changed

    against = sides("plain 0", -0.02, -0.01)
    assert tell.robust(against) == "not robust" and tell.contradictory(against, "sde none")
    unclear = sides("plain 0", -0.01, 0.02)
    assert tell.robust(unclear).startswith("not settled")
    assert tell.agreement(unclear, "sde none").startswith("some estimators see more noise")
    agreed = copy.deepcopy(committed)
    for arm in agreed["shifts"]:
        agreed["shifts"][arm] = agreed["shifts"]["sde none"]
    assert tell.robust(agreed) == "robust in sign, not in size"
    assert "No two estimators contradict" in tell.answers(agreed, "sit")["Q6"]["sentence"]
    agreed["spread"]["sde none"] |= {"lowest": 0.014, "highest": 0.016}
    assert tell.robust(agreed) == "robust in sign and size"
    for x in agreed["shifts"]["sde none"].values():
        x |= {"low": -1, "high": 1}
    assert tell.agreement(agreed, "sde none") == "for every estimator it is inconclusive"


def test_figure_writes_what_lies_beyond_its_edge(committed):
    figure = tell.figure(committed, "sit")
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == ["0.037", "0.05 to 0.20"]
    plt.close(figure)
