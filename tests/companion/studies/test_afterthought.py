"""NAG as an afterthought: what is trained, how it is chosen and judged, and what is said of it."""

import copy

import numpy as np
import pytest
import torch

from companion.plots.style import save
from companion.studies import afterthought
from companion.studies.tell import afterthought as tell
from nag import checkpoint
from nag.data import fashion_mnist
from nag.support import paths


def ratio(value, factor=1.01):
    return {"value": value, "low": value / factor, "high": value * factor, "n": 10}


def arm(route, images, gain, untouched=None):
    return {
        "route": route,
        "images": images,
        "lr": 1e-3,
        "lr_at_end": False,
        "w": 1.0,
        "w_at_end": False,
        "gain": ratio(gain),
        "over untouched": ratio(untouched or gain),
        "share": 0.5,
    }


@pytest.fixture
def numbers():
    """Three routes at two lengths."""
    gains = {"branch": (0.95, 0.8), "vector": (0.97, 0.96), "all": (0.9, 0.85)}
    arms = {
        f"{route}, {images}": arm(route, images, gain, gain + 0.1 * (route == "all"))
        for route, of in gains.items()
        for images, gain in zip((3000, 100000), of, strict=True)
    }
    start = {"gain": ratio(0.78), "spread": 0.01, "trainings": 3}
    return {
        "n": 10,
        "sampler": "euler",
        "steps": 25,
        "plain": "d00",
        "images_seen": 400_000,
        "from_start": start,
        "arms": arms,
    }


# ---- training


@pytest.fixture
def later(tiny, tmp_path, monkeypatch):
    """A tiny network without a null condition, on 64 of Fashion-MNIST's test images."""
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "states")
    images, labels = fashion_mnist.load_fashion_mnist("test")
    monkeypatch.setattr(
        fashion_mnist, "load_fashion_mnist", lambda split: (images[:64], labels[:64])
    )
    torch.manual_seed(0)
    net = tiny(input_size=28, channels=1, classes=10, patch=7)
    file = tmp_path / "plain.safetensors"
    checkpoint.save(file, net, images_seen="640")
    made = afterthought.Afterthought("plain", file, "test", 32, "fp32", tmp_path / "made")
    return made, afterthought.Held(images[64:96], labels[64:96])


def test_a_frozen_network_stays_as_it_was(later):
    of, _ = later
    plain = checkpoint.load(of.file)
    for route in ("branch", "vector"):
        net, twin = of.opened(route, of.further(route, 64, 1e-2))
        assert twin is not None
        for name, value in plain.state_dict().items():
            assert torch.equal(net.state_dict()[name], value)
            if route == "vector" and name != "t_embedder.null":
                assert torch.equal(twin.state_dict()[name], value)
    changed = [n for n, v in plain.state_dict().items() if not torch.equal(v, twin.state_dict()[n])]
    assert changed == ["t_embedder.null"]
    branch = of.opened("branch", of.further("branch", 64, 1e-2))[1].state_dict()
    assert not torch.equal(branch["blocks.0.mlp.fc1.weight"], plain.blocks[0].mlp.fc1.weight)
    net, twin = of.opened("all", of.further("all", 64, 1e-2))
    assert twin is None and not torch.equal(
        net.x_embedder.proj.weight, plain.x_embedder.proj.weight
    )


@pytest.mark.slow
def test_the_learning_rate_has_the_least_error_and_is_sought_beyond_an_end(later):
    of, held = later
    rates = {"branch": [1e-4, 1e-2], "vector": [1e-4, 1e-2], "all": [1e-4, 1e-2]}
    made = list(afterthought.trained(of, [96, 64], rates, held, 64))
    assert [one.label for one in made] == [
        f"{route}, {images}" for route in ("branch", "vector", "all") for images in (64, 96)
    ]
    assert all(longer.lr == one.lr for one, longer in zip(made[::2], made[1::2], strict=True))
    assert made[1].file == of.further("branch", 96, made[0].lr["w"])
    with pytest.raises(ValueError, match="all lengths are above 32"):
        next(afterthought.trained(of, [64], rates, held, 32))
    for one in made[::2]:
        errors = {float(lr): x["value"] for lr, x in one.lr["tried"].items()}
        assert len(errors) >= 3 and one.lr["w"] == min(errors, key=errors.get)
        assert of.error(one.route, one.file, held) == pytest.approx(errors[one.lr["w"]])
        assert one.file == of.further(one.route, 64, one.lr["w"])


# ---- telling


def judged(numbers, gain, usual=0.78, trainings=1):
    found = copy.deepcopy(numbers)
    found["arms"]["branch, 100000"]["gain"] = ratio(gain)
    found["from_start"] |= {"gain": ratio(usual), "trainings": trainings}
    return tell.verdict(found)


def test_the_verdict_asks_for_half_of_the_usual_gain_at_the_longest(numbers):
    assert judged(numbers, 0.8) == "reproduced"
    assert judged(numbers, 0.95) == "inconclusive"  # less than half
    assert judged(numbers, 1.0) == "inconclusive"
    assert judged(numbers, 1.1) == "contradicted"
    assert judged(numbers, 0.95, usual=1.1) == "reproduced"
    numbers["from_start"]["spread"] = 0.1  # three trainings that differ much leave it open
    assert judged(numbers, 0.8, trainings=3) == "inconclusive"


def test_half_of_the_gain_is_measured_on_the_logarithm(numbers):
    numbers["from_start"] = {"gain": ratio(0.64, 1.02), "spread": None, "trainings": 1}
    numbers["arms"]["branch, 100000"]["gain"] = ratio(0.8, 1.03)
    found = tell.half_of_gain(numbers)
    assert found["value"] == pytest.approx(1)
    assert found["high"] == pytest.approx(np.exp(np.hypot(np.log(1.03), np.log(1.02) / 2)))


def test_sentences_have_the_numbers(numbers):
    said = tell.answers(numbers, "figures/x.png")["C7"]
    for one in numbers["arms"].values():
        shown = tell.show(tell.joined(numbers, one["gain"]))
        assert f"{shown} after {one['images']:,}" in said["sentence"]
    whole = tell.joined(numbers, numbers["arms"]["all, 3000"]["over untouched"])
    assert f"{tell.show(whole)} after 3,000 (inconclusive)" in said["sentence"]
    assert said["verdict"] == "reproduced" and said["key"] == "arms/branch, 100000/gain"
    assert "to 0.80 with a null branch" in said["brief"] and "At an end" not in said["sentence"]
    numbers["arms"]["vector, 3000"] |= {"w_at_end": True, "lr_at_end": True}
    said = tell.answers(numbers, "x")["C7"]["sentence"]
    for what in ("weights", "learning rates"):
        assert f"At an end of its {what}: the null vector alone after 3,000." in said


def test_the_figure_shows_every_route_and_length(numbers, tmp_path):
    figure = save(tell.figure(numbers), "x", tmp_path)
    for ax, what in zip(figure.axes, ("gain", "over untouched"), strict=True):
        points = [line for line in ax.lines if line.get_marker() in [*"s^D"]]
        shown = sorted(float(line.get_ydata()[0]) for line in points)
        assert shown == pytest.approx(
            sorted(one[what]["value"] for one in numbers["arms"].values())
        )
    assert "a ratio of 0.80" in tell.title(numbers) and len(tell.table(numbers)) == 6
    assert list(tell.shown(numbers)) == [
        "d00 none",
        "branch, 100000 NAG",
        "vector, 100000 NAG",
        "all, 100000 NAG",
    ]
