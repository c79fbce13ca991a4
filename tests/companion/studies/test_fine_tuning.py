"""Fine-tuning: the choice of arms, ratios over runs, verdicts, and answers that say the numbers."""

import copy
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from companion.experiments.generate import Arm
from companion.studies import finetune, finetune_paper, finetune_signal
from companion.studies.tell import finetune as tell
from companion.studies.tell import finetune_signal as signal
from nag.models import DiT, ModelConfig
from nag.support.files import read_json
from nag.support.paths import DATA, STUDIES

FAMILIES = ("sit", "dit")


def numbers(name):
    return read_json(STUDIES / "metrics" / f"{name}.json")


def task(**changes):
    settings = {
        "name": "finetune-sit",
        "source": STUDIES / "none.safetensors",
        "kind": "nag",
        "classes": 3,
        "training": {},
        "data": {},
        "class_dropout": 0.1,
        "noise_dropout": 0.1,
        "w_values": [0.5, 1.0],
        "cfg_values": [1.5, 2.0],
        "dog_values": [1.25],
        "joint_w_values": [0.25],
        "joint_shares": [0.5, 1.0],
    }
    return finetune.Task(**settings | changes)


def test_the_choice_takes_the_best_of_each_arm_and_shares_of_the_best_scale():
    def distance(arm):
        return abs(arm.w_nag - 1) + abs(arm.cfg - 2) + abs(arm.dog - 1.125)

    chosen, tried = finetune.choose(task(), distance)
    assert chosen["none"] == Arm() and chosen["nag"].w_nag == 1.0
    assert chosen["cfg"].cfg == 2.0 and chosen["cfg+nag"].cfg == 2.0
    assert chosen["dog"].dog == 1.25 and chosen["dog+nag"].dog == 1.125
    assert len(tried) == 1 + 2 + 2 + 2 + 1 + 2
    assert {"arm", "w_nag", "cfg", "dog", "fd_inf"} == tried[0].keys()


def test_one_value_of_each_weight_is_not_tuned():
    single = task(w_values=[0.5], cfg_values=[1.5], joint_shares=[1.0])
    chosen, tried = finetune.choose(single, None)
    assert tried == [] and list(chosen) == ["none", "nag", "cfg", "cfg+nag", "dog", "dog+nag"]
    with pytest.raises(ValueError, match="one value of each weight"):
        finetune.choose(task(), None)


def test_the_interval_of_a_ratio_joins_images_and_runs(monkeypatch):
    values = iter([0.5, 0.4, 0.6])
    monkeypatch.setattr(
        finetune.study,
        "ratio",
        lambda a, b, real: {
            "value": next(values),
            "low": 0.45,
            "high": 0.55,
            "n": 500,
            "bias_corrected": True,
        },
    )
    runs = [{"features": np.zeros((250, 1))} for _ in range(2)]
    found = finetune.ratio_over_runs(({}, runs), ({}, runs), None)
    assert found["runs"] == [0.4, 0.6] and found["over_images"] == {"low": 0.45, "high": 0.55}
    assert found["low"] < 0.45 and found["high"] > 0.55 and found["value"] == 0.5
    values = iter([0.5])
    few = [{"features": np.zeros((100, 1))} for _ in range(2)]
    assert finetune.ratio_over_runs(({}, few), ({}, few), None)["low"] == 0.45


@pytest.mark.parametrize("family", FAMILIES)
def test_means_and_paper_are_those_of_the_committed_numbers(family):
    committed = numbers(f"finetune-{family}")
    found = finetune.mean_ratio(committed["ratios"], committed["arms"])
    for end in ("value", "low", "high"):
        assert found[end] == pytest.approx(committed["mean_ratio"][end])
    published = finetune.paper_ratios()
    assert published["mean"] == pytest.approx(committed["mean_ratio"]["paper"])
    for base, ratio in committed["ratios"].items():
        assert published[base] == pytest.approx(ratio["paper"])


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_have_the_numbers(family, unknown_intervals):
    committed = numbers(f"finetune-{family}")
    found = tell.answers(committed, f"finetune-{family}")
    for answer in found.values():
        assert not unknown_intervals(answer["sentence"], committed)
    mean = committed["mean_ratio"]
    assert f"mean {mean['value']:.2f}" in found["C9"]["brief"]
    verdicts = {claim: answer["verdict"] for claim, answer in found.items()}
    assert verdicts == tell.verdicts(committed["ratios"])
    assert len(tell.table(committed)) == 6
    assert len(tell.figure(committed).axes) == 4
    plt.close("all")


def test_verdicts_of_ratios_on_all_sides():
    below, above, open_ = ({"value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.5, 1.5, 1.0))
    assert tell.verdicts(dict.fromkeys(tell.PAIRS, below)) == {
        "C9": "reproduced",
        "C6": "reproduced",
    }
    assert tell.verdicts(dict.fromkeys(tell.PAIRS, above))["C9"] == "contradicted"
    mixed = {"none": below, "cfg": above, "dog": open_}
    assert tell.verdicts(mixed) == {"C9": "partly", "C6": "inconclusive"}
    assert tell.verdicts(dict.fromkeys(tell.PAIRS, open_))["C9"] == "inconclusive"


def test_weights_at_the_end_of_their_list_are_named():
    committed = numbers("finetune-dit")
    assert tell.at_end(committed) == ["CFG"]
    assert tell.title(committed).endswith("NAG improves CFG only")
    for ratio in committed["ratios"].values():
        ratio |= {"low": 0.9, "high": 1.1}
    assert tell.title(committed).endswith("no gain by NAG is conclusive")


def test_the_papers_size_has_fids_beside_the_papers():
    committed = copy.deepcopy(numbers("finetune-sit"))
    committed |= {"dataset": "cub200", "tuning": [], "finetune_seeds": [0]}
    for arm in committed["arms"].values():
        del arm["fd_inf"], arm["late_shift"]
    published = tell.published(committed)
    assert len(published) == 6 and tell.published(numbers("finetune-sit")) is None
    beside = tell.beside_paper(committed, published)
    fid = pd.read_csv(DATA / "paper_results.csv").query("dataset == 'cub200' and guidance == 'dog'")
    assert beside.paper["dog+nag"] == fid[fid.nag == 1].value.item()
    sentence = tell.answers(committed, "finetune-cub200")["C9"]["sentence"]
    assert sentence.startswith("DiT-XL/2 on CUB-200-2011") and "FID with NAG" in sentence
    assert "images of 1 fine-tuning run," in sentence
    figure = tell.figure(committed, published)
    assert len(figure.axes) == 3
    plt.close(figure)


def test_ratios_of_fids_take_the_arms_as_independent():
    arm = {"fd": {"value": 10.0, "low": 9.5, "high": 10.5}}
    quality = dict.fromkeys([name for pair in finetune.PAIRS.items() for name in pair], arm)
    found = finetune_paper.ratios(quality, 100)["dog"]
    assert found["value"] == 1 and found["runs"] == [] and found["n"] == 100
    half = np.log(10.5 / 9.5) / 2
    assert np.log(found["high"]) == pytest.approx(half * 2**0.5)


# ---- notebook 31


def test_differences_are_relative_and_vanish_for_a_network_that_ignores_the_level():
    torch.manual_seed(0)
    config = ModelConfig(
        input_size=28, channels=1, patch=14, width=32, depth=1, heads=1, classes=3, path="linear"
    )
    net = DiT(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x0, labels = torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 2, 0])
    found = finetune_signal.differences(net, x0, labels, net)
    assert found["t"] == list(finetune_signal.TIMES)
    assert found["DoG"] == pytest.approx(found["CFG"])  # the same network without a class
    assert found["cos NAG, DoG"] == pytest.approx(found["cos NAG, CFG"], abs=1e-5)
    blind = lambda x, t, y, *drop: x * (1 + y).view(-1, 1, 1, 1)  # noqa: E731
    blind_net = type("Blind", (), {"__call__": staticmethod(blind), "config": config})()
    blind_net.parameters = net.parameters
    assert finetune_signal.differences(blind_net, x0, labels)["NAG"] == [0.0] * 8


@pytest.mark.parametrize("family", FAMILIES)
def test_the_signals_answer_has_the_numbers(family):
    committed = numbers(f"finetune_signal-{family}")
    whole = numbers(f"finetune-{family}")
    for name in ("errors", "differences", "shift"):
        assert committed[name] == whole[name]  # copied when notebook 28 became two
    answer = signal.answers(committed, "x")["Q12"]["sentence"]
    for x in (committed["shift"]["before, none"], committed["shift"]["after, nag"]):
        assert (
            f"{1000 * x['value']:+.1f} [{1000 * x['low']:+.1f}, {1000 * x['high']:+.1f}]" in answer
        )
    k = committed["differences"]["t"].index(0.2)
    assert f"NAG's difference is {committed['differences']['NAG'][k]:.1%}" in answer
    assert signal.change(committed["shift"]) == "change inconclusive"
    assert len(signal.figure(committed).axes) == 4
    plt.close("all")


def test_a_network_without_null_condition_has_no_before():
    committed = numbers("finetune_signal-sit")
    del committed["differences"]["NAG before fine-tuning"]
    assert "before fine-tuning)" not in signal.answers(committed, "x")["Q12"]["brief"]
    assert "before" not in signal.title(committed)
    before = committed["shift"]["before, none"]
    committed["shift"]["after, none"] = {end: x + 0.01 for end, x in before.items()}
    assert signal.change(committed["shift"]) == "larger"


def test_a_network_is_named_after_its_latents_too(monkeypatch, tmp_path):
    """Other latents in the same folder make another network."""
    (tmp_path / "net").write_bytes(b"weights")
    training = {"images_seen": 64, "batch_size": 8}

    def name(made_of):
        monkeypatch.setattr(finetune, "open_latents", lambda path: SimpleNamespace(digest=made_of))
        given = task(source=tmp_path / "net", data={"latents": "build/x"}, training=training)
        return finetune.further_config(given, 0, tmp_path, "fp32", False).out

    assert name("a") == name("a") != name("b")
