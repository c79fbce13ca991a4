"""The study of the exact null: its toy, its twins, its arms' terms, and what is said of them."""

import copy

import pytest
import torch
from torch.testing import assert_close

from companion.plots.style import save
from companion.studies import exact_null
from companion.studies.families import Family
from companion.studies.tell import exact_null as tell
from nag import checkpoint
from nag.estimator import NoiseEstimator, log_prob_gradient
from nag.guidance import GuidedField
from nag.interpolant import convert
from nag.pretrained.exact_null import ScoreAtOwnLevel
from nag.train import TrainConfig

TIMES = (0.02, 0.1, 0.5)


@pytest.fixture
def twins(tiny, tmp_path, monkeypatch, on_cpu):
    """A small network that predicts eps, its estimator, and where its twins go."""
    monkeypatch.setattr(exact_null, "CHECKPOINTS", tmp_path / "states")
    net, estimator = tiny(path="ddpm", prediction="eps", learn_sigma=True), NoiseEstimator()
    files = [tmp_path / "net.safetensors", tmp_path / "estimator.safetensors"]
    checkpoint.save(files[0], net)
    checkpoint.save_weights(files[1], estimator)
    family = Family("dit", checkpoint.load(files[0]), lambda x: x.flatten(1).mean(1), files)
    config = TrainConfig(images_seen=128, batch_size=32, precision="fp32", compile=False)
    return exact_null.load_twins(family, exact_null.all_layers(net), config, tmp_path / "twins")


def data(n=64):
    return torch.rand(n, 1, 8, 8) * 2 - 1, torch.arange(n) % 3


# ---- the toy


@pytest.mark.slow
def test_on_the_toy_dropout_points_the_wrong_way_near_the_data_and_its_own_level_mends_it():
    found = exact_null.on_toy(64, TIMES, 2.0)
    rows = {(r["t"], r["network"], r["null"]): r for r in found["directions"]}
    assert len(rows) == len(TIMES) * 4
    for network in ("v", "eps"):
        assert rows[0.02, network, "dropout"]["cosine"] < -0.5  # finding F5
        assert rows[0.5, network, "dropout"]["cosine"] > 0.9
        assert all(rows[t, network, "own level"]["cosine"] > 0.9 for t in TIMES)
    samples = found["samples"]
    far = {null: one["distance"]["value"] for null, one in samples.items()}
    assert far["own level"] < far["dropout"] < far["none"] < 1.1 * far["exact, of the model"]


# ---- the twins


def test_twins_are_made_once_and_leave_the_network_as_it_is(twins):
    images, labels = data()
    before = {name: value.clone() for name, value in twins.family.net.state_dict().items()}
    files = {kind: twins.file(kind, images, labels) for kind in exact_null.TRAINED}
    assert len(set(files.values())) == 2
    stamps = {file: file.stat().st_mtime_ns for file in files.values()}
    assert {kind: twins.file(kind, images, labels) for kind in files} == files
    assert {file: file.stat().st_mtime_ns for file in files.values()} == stamps
    branches = twins.branches(files)
    assert list(branches) == ["dropout", "own level", "dropout, longer", "exact"]
    assert all(torch.equal(v, before[k]) for k, v in twins.family.net.state_dict().items())
    x, t, y = images[:4], torch.full((4,), 0.3), labels[:4]
    drop = torch.ones(4, dtype=torch.bool)
    outputs = [branches[kind](x, t, y, drop) for kind in ("dropout", *exact_null.TRAINED)]
    assert not any(torch.equal(a, b) for a, b in zip(outputs, outputs[1:], strict=False))
    found = exact_null.held_out(twins, branches, images, labels)
    assert list(found) == ["own level", "dropout, longer, less own level", "exact, less own level"]
    rows = exact_null.directions(twins, branches, images[:6], labels[:6], [0.1, 0.5])
    assert len(rows) == 8 and all(-1 <= row["cosine"]["value"] <= 1 for row in rows)


def test_every_kind_guides_by_its_formula(twins):
    """In the score: s + w (s - s_null), and s + w grad log g for the classifier."""
    net, (x, y), t = twins.family.net, data(4), 0.4
    branches = twins.branches({})
    keep, drop = (torch.full((4,), k) for k in (False, True))
    times = torch.full((4,), t)
    with torch.no_grad():
        eps, null = net(x, times, y, keep), net(x, times, y, drop)
    s = convert(eps, x, t, "eps", "score", "ddpm")
    with torch.no_grad():
        r = twins.level(x)
    nulls = {
        "dropout": convert(null, x, t, "eps", "score", "ddpm"),
        "own level": convert(null, x, r, "eps", "score", "ddpm"),
        "classifier": s - log_prob_gradient(twins.estimator, x, t),
    }
    for kind, negative in nulls.items():
        found = GuidedField(net, y, [twins.term(kind, 1.5, branches)]).predict(x, t).mean
        wanted = convert(s + 1.5 * (s - negative), x, t, "score", "eps", "ddpm")
        assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        plain = GuidedField(net, y).predict(x, 0.99).mean
        assert torch.equal(
            GuidedField(net, y, [twins.term(kind, 1.5, branches)]).predict(x, 0.99).mean, plain
        )
    assert isinstance(twins.term("own level", 1.0, branches).net, ScoreAtOwnLevel)


# ---- telling


def interval(value, half=0.05):
    return {"value": value, "low": value - half, "high": value + half}


def made_up(**exact):
    """Numbers of one sampler, in which the exact null over dropout's is `exact`."""
    kinds = list(tell.LOOKS)
    over = {kind: interval(0.5 + 0.1 * k) for k, kind in enumerate(kinds)}
    chosen = {kind: {"w": 2.0, "at_end": kind == "classifier"} for kind in kinds}
    directions = [
        {"t": t, "null": null, "cosine": interval(0.3), "strength": 1.0}
        for t in (0.05, 0.5)
        for null in kinds[:4]
    ]
    toy = [
        {"t": t, "network": network, "null": null, "cosine": c, "strength": 1.0}
        for t, c in ((0.05, -0.38), (0.5, 0.93))
        for network in ("v", "eps")
        for null in ("dropout", "own level")
    ]
    return {
        "family": "sit",
        "n": 10,
        "seeds": [0, 9],
        "tuning_images": 10,
        "images_seen": 640,
        "forward_images": 5,
        "nfe": {"ode": 48},
        "samplers": {"ode": "euler", "sde": "euler_maruyama_tweedie"},
        "toy": {"directions": toy, "w": 2.0, "samples": {"none": {"distance": interval(1.0)}}},
        "held_out": {"exact, less own level": {"all t": interval(-0.01, 0.001)}},
        "directions": directions,
        "chosen": {"ode": chosen},
        "ratios": {
            "ode": {
                "unguided": over,
                "dropout": {kind: interval(0.9) for kind in kinds[1:]} | {"exact": exact},
            }
        },
        "shift_late": {"ode": {kind: interval(0.01) for kind in ["none", *kinds]}},
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.8, "better than dropout's"),
        (1.2, "worse than dropout's"),
        (1.0, "not shown to differ from dropout's"),
    ],
)
def test_the_answer_follows_the_interval(value, words):
    numbers = made_up(**interval(value))
    said = tell.answers(numbers, "figures/x.png")["Q13"]
    assert f"the exact null is {words}" in said["sentence"] and words in said["brief"]
    assert f"of dropout's: {value:.2f} [{value - 0.05:.2f}, {value + 0.05:.2f}]" in said["sentence"]
    assert "cosine of -0.38 with the exact one by dropout's null" in said["sentence"]
    assert "estimator's gradient (Euler)" in said["sentence"]  # at an end of its list
    assert tell.title(numbers) == f"SiT-mini: the exact null is {words}"
    assert tell.in_a_sentence(numbers).startswith(tell.title(numbers))


def test_two_samplers_that_disagree_are_both_named():
    numbers = made_up(**interval(0.8))
    for what in ("chosen", "ratios", "shift_late"):
        numbers[what]["sde"] = copy.deepcopy(numbers[what]["ode"])
    numbers["nfe"]["sde"] = 100
    numbers["ratios"]["sde"]["dropout"]["exact"] = interval(1.0)
    assert tell.verdict(numbers) == "Euler: better; Euler–Maruyama (Tweedie): inconclusive"
    assert list(tell.shown(numbers, "sde"))[:2] == ["sde none", "sde dropout"]


@pytest.mark.slow
def test_the_figure_shows_every_arm(tmp_path):
    numbers = made_up(**interval(1.0))
    figure = save(tell.figure(numbers), "x", tmp_path)
    ratios = figure.axes[2]
    shown = [
        float(line.get_xdata()[0]) for line in ratios.lines
        if line.get_marker() not in ("None", "") and line.get_markersize() < 10
    ]  # fmt: skip
    assert shown == [x["value"] for x in numbers["ratios"]["ode"]["unguided"].values()]
    rings = [line for line in ratios.lines if line.get_markersize() > 10]
    assert len(rings) == 1 and (tmp_path / "x.png").is_file()
    assert tell.table(numbers).shape == (5, 4)
