"""Several processes do what one does: rows of the batch, the loss curve, and resuming on another
number of them.
"""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from gloo_worker import parts
from torch.testing import assert_close

from nag.estimator import NoiseEstimator, estimator_loss
from nag.losses import denoising_loss
from nag.support import distributed
from nag.support.paths import ROOT
from nag.support.rng import generator
from nag.train import fit

pytestmark = pytest.mark.usefixtures("on_cpu")


def losses(records):
    return torch.tensor([record["loss"] for record in records])


def whole(tmp_path, **how):
    net, loss, config = parts()
    return list(fit(net, loss, 50, config, tmp_path / "whole.pt", log_every=1, **how)), net


def assert_same_weights(net, other, tolerance):
    """All weights but the keys' bias: softmax does not see it, so that its gradient is rounding,
    which Adam makes steps of.
    """

    def seen(name, value):
        return (
            torch.cat([value.chunk(3)[k] for k in (0, 2)]) if name.endswith("qkv.bias") else value
        )

    for name, value in other.state_dict().items():
        assert_close(
            seen(name, net.state_dict()[name]), seen(name, value), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(
    "world, micro, expected",
    [
        (1, None, [[(0, 24)]]),
        (1, 8, [[(0, 8), (8, 16), (16, 24)]]),
        (2, None, [[(0, 12)], [(12, 24)]]),
        (3, 4, [[(0, 4), (4, 8)], [(8, 12), (12, 16)], [(16, 20), (20, 24)]]),
        (2, 100, [[(0, 12)], [(12, 24)]]),
    ],
)
def test_every_row_belongs_to_one_process(monkeypatch, world, micro, expected):
    for rank in range(world):
        monkeypatch.setattr(distributed, "place", lambda rank=rank: (rank, world))
        assert [(s.start, s.stop) for s in distributed.share_rows(24, micro)] == expected[rank]


@pytest.mark.parametrize("world, micro", [(5, None), (1, 7), (2, 5)])
def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch, world, micro):
    monkeypatch.setattr(distributed, "place", lambda: (0, world))
    with pytest.raises(ValueError, match="batch of 24 cannot be divided equally"):
        distributed.share_rows(24, micro)


@pytest.fixture
def alone(monkeypatch):
    """No launcher's variables, and a group that is only noted."""
    for name in (
        *distributed.NEEDED,
        *distributed.SIZES,
        *distributed.RANKS,
        "TORCHELASTIC_RUN_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    joined = []
    monkeypatch.setattr(
        distributed.dist, "init_process_group", lambda backend, **_: joined.append(backend)
    )
    return joined


GROUP = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_a_group_is_joined_whatever_launched_it(alone, monkeypatch):
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)
    distributed.start()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    distributed.start()  # alone
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    distributed.start()  # torchrun with one process
    assert alone == ["gloo", "gloo"]


@pytest.mark.parametrize(
    "given, words",
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "WORLD_SIZE says .* but MASTER_ADDR, MASTER_PORT is not",
        ),
        ({"RANK": "1"}, "RANK says that several processes were started"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK says that several processes were started"),
        ({"PMIX_RANK": "3"}, "PMIX_RANK says that several processes were started"),
        ({"MV2_COMM_WORLD_SIZE": "4"}, "MV2_COMM_WORLD_SIZE says that several processes were"),
        ({"WORLD_SIZE": "8", "MASTER_ADDR": ""}, "but RANK, MASTER_ADDR, MASTER_PORT is not set"),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"},
            "SLURM_STEP_NUM_TASKS says .*torchrun",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            "OMPI_COMM_WORLD_SIZE says .*each would do the work of all",
        ),
        (GROUP | {"RANK": "2"}, "RANK is 2 and WORLD_SIZE 2: ranks are 0 to 1"),
        (GROUP | {"RANK": "one"}, "RANK is 'one' in the environment: set a whole number"),
    ],
)
def test_processes_that_would_each_do_all_are_refused(alone, monkeypatch, given, words):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        distributed.start()
    assert not alone


@pytest.mark.parametrize(
    "text, number", [("3", 3), ("0", 0), (" 2 ", 2), ("", 5), (" ", 5), (None, 5)]
)
def test_the_number_of_processes_from_the_environment(monkeypatch, text, number):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("NAG_PROCESSES", raising=False)
    if text is not None:
        monkeypatch.setenv("NAG_PROCESSES", text)
    assert distributed.local_processes(-1) == number and distributed.local_processes(7) == 7


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "٣"])
def test_what_is_no_number_of_processes_is_named(monkeypatch, text):
    monkeypatch.setenv("NAG_PROCESSES", text)
    with pytest.raises(ValueError, match=f"NAG_PROCESSES is '{text}' in the environment: set a"):
        distributed.local_processes(-1)


def test_alone_there_is_nothing_to_agree_on(alone):
    assert distributed.start() == (0, 1) and distributed.any_of([True, False]) == [True, False]
    value = torch.tensor(2.5)
    assert distributed.mean(value) is value


@pytest.mark.parametrize(
    "rows", [[slice(0, 6), slice(6, 12)], [slice(0, 4), slice(4, 8), slice(8, 12)]]
)
def test_parts_of_a_batch_make_up_the_whole(tiny, rows):
    net, images, labels = tiny(), torch.randn(20, 1, 8, 8), torch.arange(20) % 3
    index = torch.arange(3, 15)

    def source(index, gen, rows):
        return (images[index] + torch.randn(len(index), 1, 8, 8, generator=gen))[rows]

    for loss, module in (
        (denoising_loss(images, labels, 0.3, 0.3, 0.1), net),
        (denoising_loss(source, labels, 0.3, 0.3), net),
    ):
        one = loss(module, index, generator(7))
        split = [loss(module, index, generator(7), part) for part in rows]
        assert_close(torch.stack(split).mean(), one, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(split[0], split[1])


def test_the_estimator_takes_a_source_of_latents():
    torch.manual_seed(0)
    images, index, net = torch.randn(20, 4, 8, 8), torch.arange(10), NoiseEstimator(4)
    drawn = estimator_loss(lambda i, gen, rows: images[i][rows])(net, index, generator(3))
    assert_close(drawn, estimator_loss(images)(net, index, generator(3)), rtol=0, atol=0)


def test_gradient_accumulation_changes_nothing_but_memory(tmp_path):
    one, net = whole(tmp_path)
    (tmp_path / "whole.pt").unlink()
    split, other = whole(tmp_path, micro_batch=4)
    assert_close(losses(split), losses(one), rtol=1e-5, atol=0)
    assert_same_weights(other, net, 1e-5)


def test_checkpoints_by_steps(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("nag.train.write_torch", lambda path, state: saved.append(state["step"]))
    net, loss, config = parts()
    list(fit(net, loss, 50, config, tmp_path / "state.pt", save_steps=5))
    assert saved == [5, 10, 12]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
def test_two_processes_killed_and_resumed_by_one(tmp_path, monkeypatch):
    """The loss curve of two gloo processes with gradient accumulation, stopped by a signal to one
    of them, is that of one.
    """
    one, net = whole(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    spec, state = tmp_path / "spec.json", tmp_path / "state.pt"
    wanted = {"state": str(state), "out": str(tmp_path / "out.pt"), "micro_batch": 4, "stop_at": 5}
    spec.write_text(json.dumps(wanted))
    with pytest.raises(
        RuntimeError, match="gloo_worker failed in one of 2 processes .* run again to go on"
    ):
        distributed.launch("gloo_worker", spec, 2)
    assert (
        torch.load(state, weights_only=True)["step"] == 6
    )  # the signal came after the record of step 5
    other, loss, config = parts()
    resumed = list(fit(other, loss, 50, config, state, log_every=1))
    assert_close(losses(resumed), losses(one), rtol=1e-4, atol=0)
    assert_same_weights(other, net, 1e-4)


def test_what_a_failed_run_printed_is_in_its_error(tmp_path, monkeypatch):
    class Fake(SimpleNamespace):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

    fake = Fake(stdout=iter(["one\n", "disk full\n"]), returncode=3)
    monkeypatch.setattr(distributed.subprocess, "Popen", lambda *a, **k: fake)
    with pytest.raises(
        RuntimeError, match=r"companion\.experiments\.shards failed .*exit code 3[\s\S]*disk full"
    ):
        distributed.launch("companion.experiments.shards", tmp_path / "s.json", 2)
