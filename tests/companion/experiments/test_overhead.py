"""What an arm costs: evaluations against what its formula says, arithmetic and parameters against
hand counts.
"""

import pytest
import torch

from companion.experiments import overhead
from companion.experiments.overhead import (
    ARMS,
    counts,
    highest_allocation,
    modules,
    peak_memory,
    plan,
    rows,
    sample,
    seconds,
    untrained,
)
from nag.guidance import GuidedField

STEPS = 5  # t = 1, 0.8, 0.6, 0.4, 0.2
# arm: (evaluations of networks an image, passes of the estimator or head)
EXPECTED = {
    "none": (STEPS, 0),
    "nag": (2 * STEPS, 0),
    "cfg": (2 * STEPS, 0),
    "cfg+nag": (3 * STEPS, 0),
    "cfg-interval": (STEPS + 3, 0),  # t = 0.6, 0.4, 0.2
    "nag-classifier": (STEPS, STEPS - 1),  # not at pure noise
    "autoguidance": (2 * STEPS, 0),
    "epsilon-scaling": (STEPS, 0),
    "time-shift": (STEPS, 0),
    "time-shift-estimator": (
        STEPS,
        3,
    ),  # t = 0.8, 0.6, 0.4: not the first step, and above the cutoff
    "level-correction": (STEPS, STEPS - 1),  # not at pure noise
}


@pytest.fixture
def parts(tiny, monkeypatch):
    monkeypatch.setattr(overhead, "best_device", lambda: torch.device("cpu"))
    found = untrained(tiny().config)
    for part in modules(found).values():
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return found


def flop(c):
    """Multiply-adds, counted twice, of one DiT evaluation's matrix products, from its sizes."""
    tokens, patch = (c.input_size // c.patch) ** 2, c.patch**2 * c.channels
    block = tokens * (12 * c.width**2 + 2 * tokens * c.width) + 6 * c.width**2
    ends = tokens * 2 * patch * c.width + 2 * c.width**2 + (256 + c.width) * c.width
    return 2 * (c.depth * block + ends)


@pytest.mark.parametrize("name", ARMS)
def test_evaluations_of_every_arm(parts, name):
    found = counts(name, parts, STEPS)
    assert (found["nfe"], found["other"]) == EXPECTED[name]


def test_arithmetic_is_that_of_the_matrix_products(parts):
    c, half = parts.net.config, parts.weaker["weaker"].config
    assert (half.width, half.depth) == (c.width // 2, max(1, c.depth // 2))
    found = {
        name: counts(name, parts, STEPS)["gflop"] * 1e9
        for name in ("none", "nag", "cfg+nag", "epsilon-scaling", "autoguidance", "nag-classifier")
    }
    assert found["none"] == STEPS * flop(c) == found["epsilon-scaling"]
    assert (found["nag"], found["cfg+nag"]) == (2 * found["none"], 3 * found["none"])
    assert found["autoguidance"] == found["none"] + STEPS * flop(half)
    assert found["nag-classifier"] > found["none"]


def test_the_count_leaves_no_hook_behind(parts):
    counts("autoguidance", parts, 2)
    assert not any(
        module._forward_hooks for part in modules(parts).values() for module in part.modules()
    )


def test_an_arm_changes_the_sample_and_starts_from_the_same_noise(parts):
    """Were a term lost on the way, its arm would cost what it costs and change nothing."""
    found = {name: sample(name, parts, 3, STEPS, "fp32") for name in ARMS}
    assert all(torch.isfinite(x).all() for x in found.values())
    for name, x in found.items():
        assert torch.equal(x, sample(name, parts, 3, STEPS, "fp32"))
        assert name == "none" or (x - found["none"]).abs().max() > 1e-4, name


def test_parameters_are_those_that_the_arm_adds(parts):
    width = parts.net.config.width
    added = {name: plan(name, parts).parameters for name in ARMS}
    assert (added["none"], added["nag"], added["cfg"], added["cfg+nag"]) == (
        0,
        width,
        width,
        2 * width,
    )
    assert added["nag"] == parts.net.t_embedder.null.numel()
    assert (
        added["cfg"]
        == parts.net.y_embedder.embedding_table.weight[parts.net.config.classes].numel()
    )
    assert (added["epsilon-scaling"], added["time-shift"]) == (0, 0)
    assert (
        added["nag-classifier"]
        == added["time-shift-estimator"]
        == sum(p.numel() for p in parts.estimator.parameters())
    )
    assert added["level-correction"] == sum(
        p.numel() for p in parts.head.parameters()
    )  # without the denoiser's own
    assert added["autoguidance"] == sum(p.numel() for p in parts.weaker["weaker"].parameters())


def test_seconds_follow_the_work(parts, monkeypatch):
    """A field that waits 1 ms an evaluation and 3 ms with guidance: per image, the median of the
    rounds.
    """
    clock = iter(range(10**6))
    monkeypatch.setattr("companion.experiments.bench.time.perf_counter", lambda: now[0])
    now, call = [0.0], GuidedField.__call__

    def slow(self, x, t):
        now[0] += 3e-3 if self.terms else 1e-3
        now[0] += 1.0 if next(clock) == 0 else 0.0  # the unmeasured round
        return call(self, x, t)

    monkeypatch.setattr(GuidedField, "__call__", slow)
    found = seconds(["none", "nag"], parts, 4, STEPS, 3, "fp32")
    assert found == pytest.approx({"none": STEPS * 1e-3 / 4, "nag": STEPS * 3e-3 / 4})


def test_the_highest_allocation_is_counted_to_the_byte():
    def work():
        a = torch.zeros(1000, dtype=torch.uint8)
        b = torch.zeros(5000, dtype=torch.uint8)
        del b
        c = torch.zeros(3000, dtype=torch.uint8)
        return a, c

    assert highest_allocation(work) == 6000


def test_memory_grows_with_the_branches(parts):
    """The widest activations, 4 width numbers a token, in and out of the GELU, for every branch of
    every image.
    """
    c, n = parts.net.config, 64
    widest = 2 * n * (c.input_size // c.patch) ** 2 * 4 * c.width * 4 / 2**20  # MiB in fp32
    memory = {
        name: peak_memory(name, parts, n, "fp32")
        for name in ("none", "nag", "cfg", "cfg+nag", "cfg-interval")
    }
    assert widest < memory["none"] < 2 * widest
    assert memory["nag"] / memory["none"] == pytest.approx(2, abs=0.1)
    assert memory["cfg+nag"] / memory["none"] == pytest.approx(3, abs=0.2)
    assert memory["cfg-interval"] == pytest.approx(memory["cfg"], rel=0.02)


@pytest.mark.parametrize("name", ARMS)
def test_the_network_never_sees_more_rows_than_told_and_the_images_stay_the_same(parts, name):
    calls = []
    handle = parts.net.register_forward_hook(
        lambda module, inputs, output: calls.append(len(inputs[0]))
    )
    few = sample(name, parts, 7, STEPS, "fp32", network_batch=6)
    assert max(calls) == 6
    handle.remove()
    torch.testing.assert_close(few, sample(name, parts, 7, STEPS, "fp32"), rtol=1e-3, atol=1e-3)


def test_rows_are_complete(parts, monkeypatch):
    monkeypatch.setattr(overhead, "peak_memory", lambda *_: 7.0)
    found = rows(
        parts, {"net": 1000, "estimator": 600, "weaker": 62.5, "head": None}, 2, 2, 1, "fp32"
    )
    assert [row["arm"] for row in found] == list(ARMS)
    keys = {
        "arm",
        "label",
        "nfe",
        "other",
        "gflop",
        "seconds",
        "relative",
        "memory",
        "parameters",
        "training",
        "needs",
    }
    assert all(set(row) == keys for row in found)
    by = {row["arm"]: row for row in found}
    assert by["none"]["relative"] == 1 and all(row["seconds"] > 0 for row in found)
    trained = {name: row["training"] for name, row in by.items() if row["training"] != 0}
    assert trained == {
        "nag-classifier": 60,
        "time-shift-estimator": 60,
        "autoguidance": 6.25,
        "level-correction": None,
    }


def test_a_missing_training_and_an_unknown_arm_are_named(parts):
    with pytest.raises(ValueError, match="images_seen lacks .*estimator"):
        rows(parts, {"net": 1000}, 2, STEPS, 1, names=["none", "nag-classifier"])
    with pytest.raises(ValueError, match="unknown arm 'dog'.*nag"):
        sample("dog", parts, 2, STEPS)
