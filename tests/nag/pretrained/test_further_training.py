"""Further training: what it changes, what it leaves alone, and that a run in pieces equals one that
was never stopped.
"""

import json
import os
import shutil
import signal
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from nag import checkpoint
from nag.data import fashion_mnist
from nag.losses import denoising_loss
from nag.models import DiT, ModelConfig
from nag.pretrained import further_training
from nag.pretrained.further_training import (
    FurtherConfig,
    forget,
    held_out_errors,
    prepare,
    renew_classes,
    run,
    subset,
)
from nag.pretrained.null_branch import INITIAL, initial_null, load_null, separate_branch
from nag.support import distributed
from nag.support.files import write_json
from nag.train import TrainConfig, fit

STEPS, BATCH = 6, 8


@pytest.fixture(autouse=True)
def here(on_cpu, monkeypatch):
    monkeypatch.setattr(further_training, "best_device", lambda: torch.device("cpu"))


@pytest.fixture
def spec(tmp_path, tiny):
    """Builds a specification for a small network of Fashion-MNIST's size, whose file it writes."""
    weights = tmp_path / "base.safetensors"
    checkpoint.save(weights, tiny(input_size=28, classes=10))

    def build(name="run", steps=STEPS, **changes):
        settings = TrainConfig(
            images_seen=steps * BATCH,
            batch_size=BATCH,
            lr=5e-3,
            warmup_steps=0,
            precision="fp32",
            compile=False,
        )
        files = {
            "checkpoint": str(tmp_path / f"{name}.pt"),
            "out": str(tmp_path / f"{name}.safetensors"),
        }
        return FurtherConfig(
            **{
                "weights": str(weights),
                "split": "test",
                "images_per_class": 4,
                "train": settings,
                "log_steps": 2,
            }
            | files
            | changes
        )

    return build


def timeless(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def ask(net, drop):
    """Predictions of Fashion-MNIST's size at fixed states."""
    gen = torch.Generator().manual_seed(5)
    x, t = torch.randn(4, 1, 28, 28, generator=gen), torch.rand(4, generator=gen)
    with torch.no_grad():
        return net(x, t, torch.arange(4) % net.config.classes, torch.full((4,), drop))


# ---- which examples

LABELS = torch.tensor([2, 0, 5, 2, 5, 5, 0, 2, 2])


def test_a_subset_keeps_classes_and_numbers_them_in_the_order_given():
    positions, numbers = subset(LABELS, keep=[5, 2])
    assert positions.tolist() == [0, 2, 3, 4, 5, 7, 8] and numbers.tolist() == [1, 0, 1, 0, 0, 1, 1]
    positions, numbers = subset(LABELS)
    assert positions.tolist() == list(range(9)) and torch.equal(numbers, LABELS)


def test_a_fixed_number_of_each_class_is_chosen_by_the_seed_alone():
    labels = torch.arange(200) % 4
    positions, numbers = subset(labels, [3, 1], 10, seed=1)
    assert (
        numbers.bincount().tolist() == [10, 10]
        and positions.unique().tolist() == positions.tolist()
    )
    assert torch.equal(labels[positions], torch.tensor([3, 1])[numbers])
    torch.manual_seed(99)
    assert torch.equal(subset(labels, [3, 1], 10, seed=1)[0], positions)
    assert not torch.equal(subset(labels, [3, 1], 10, seed=2)[0], positions)
    assert set(subset(labels, [1], 10, seed=1)[0].tolist()) <= set(
        positions.tolist()
    )  # whatever other classes are kept


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(keep=[0], images_per_class=3), "class 0 has 2 images of 3 wanted"),
        (dict(keep=[1]), "class 1 has 0 images of 1 wanted"),
        (dict(keep=[2, 2]), r"keep names a class twice: \[2, 2\]"),
    ],
)
def test_an_impossible_subset_is_refused(how, words):
    with pytest.raises(ValueError, match=words):
        subset(LABELS, **how)


# ---- what is trained


def test_a_new_class_table_depends_on_the_seed_alone_and_the_rest_is_kept(tiny):
    net = tiny(classes=3, width=64)
    torch.manual_seed(1)
    one = renew_classes(net, 40, seed=0)
    torch.manual_seed(2)
    two, other = renew_classes(net, 40, seed=0), renew_classes(net, 40, seed=1)
    assert (
        same(one, two)
        and not same(one, other)
        and one.config == net.config.model_copy(update={"classes": 40})
    )
    bare = DiT(net.config.model_copy(update={"null_class": False}))
    assert renew_classes(bare, 40, seed=0).config == one.config  # the new table has its last row
    table, old = one.state_dict().pop(checkpoint.TABLE), net.state_dict()
    assert (
        table.shape == (41, 64)
        and table.std().item() == pytest.approx(0.02, rel=0.05)
        and abs(table.mean()) < 2e-3
    )
    for key, value in one.state_dict().items():
        assert key == checkpoint.TABLE or value.data_ptr() == old[key].data_ptr()
    assert {name for name, p in one.named_parameters() if not p.requires_grad} == {"pos_embed"}


def test_the_null_vector_starts_as_told(spec):
    kept, _ = prepare(spec(null_init="keep"))
    assert kept.t_embedder.null.abs().max() > 0.1
    for how in ("zero", "mean", "middle"):
        net, trained = prepare(spec(null_init=how, mode="null"))
        assert torch.equal(trained.t_embedder.null, initial_null(kept, how)) and trained is not net


@pytest.mark.parametrize("layers", [[], ["final_layer"]], ids=["null", "layers"])
def test_mode_null_writes_a_twin_whose_network_is_untouched(spec, layers):
    config = spec(mode="null", layers=layers)
    records = run(config)
    base = checkpoint.load(config.weights)
    twin = load_null(
        config.out, base, checkpoint.sha256(further_training.paths.ROOT / config.weights)
    )
    start = separate_branch(prepare(config)[0])
    assert (ask(twin, True) - ask(start, True)).abs().max() > 1e-3 and (
        ask(twin, True) - ask(twin, False)
    ).abs().max() > 1e-2
    assert torch.equal(ask(twin, False), ask(base, False)) == (layers == [])
    assert len(load_file(config.out)) == (1 if layers == [] else 5)
    table = pd.read_csv(config.out.replace(".safetensors", ".csv"))
    assert table.step.tolist() == [2, 4, 6] == [r["step"] for r in records]
    assert_close(table.loss.tolist(), [r["loss"] for r in records], rtol=1e-5, atol=0)


def test_mode_all_trains_the_whole_network_for_new_classes(spec):
    config = spec(keep=[9, 5, 7], classes=3, noise_dropout=0.5)
    run(config)
    net, start = checkpoint.load(config.out), prepare(config)[0]
    assert net.config.classes == 3 and net.y_embedder.embedding_table.weight.shape[0] == 4
    for name, value in start.named_parameters():
        assert torch.equal(value, dict(net.named_parameters())[name]) == (name == "pos_embed"), name
    assert (ask(net, True) - ask(net, False)).abs().max() > 1e-2


def test_the_dropouts_reach_the_loss(spec, monkeypatch):
    seen = []
    real = further_training.denoising_loss
    monkeypatch.setattr(
        further_training, "denoising_loss", lambda *a: seen.append(a[2:]) or real(*a)
    )
    run(spec("a", steps=1, class_dropout=0.3, noise_dropout=0.2))
    run(spec("b", steps=1, mode="null", class_dropout=0.3, noise_dropout=0.2))
    assert seen == [(0.3, 0.2), (0.3, 1.0)]


@pytest.mark.parametrize("layers", [(), ("final_layer",)], ids=["null", "layers"])
def test_training_a_twin_lowers_its_own_error_without_noise_level(tmp_path, tiny, layers):
    """Images that are all alike: knowing them tells the noise, even without its level."""
    net = tiny()
    images, labels = torch.full((64, 1, 8, 8), 0.5), torch.arange(64) % 3
    settings = TrainConfig(
        images_seen=64 * 60, batch_size=64, lr=0.02, warmup_steps=0, precision="fp32", compile=False
    )
    twin = separate_branch(net, layers)
    before = held_out_errors(twin, images, labels, seed=9)[1].mean()
    list(fit(twin, denoising_loss(images, labels, 0.0, 1.0), 64, settings, tmp_path / "a.pt"))
    assert held_out_errors(twin, images, labels, seed=9)[1].mean() < 0.9 * before


# ---- in pieces


@pytest.mark.parametrize("mode", ["all", "null"])
def test_a_stopped_and_resumed_run_equals_an_unbroken_one(spec, monkeypatch, mode):
    whole, parts = spec("whole", mode=mode), spec("parts", mode=mode)
    records, calls = run(whole), []
    real = further_training.denoising_loss

    def stopped_in_step_three(*how):
        loss = real(*how)

        def wrapped(*arguments):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(further_training, "denoising_loss", stopped_in_step_three)
        with pytest.raises(KeyboardInterrupt, match="stopped at step 3 of 6"):
            run(parts)
    assert not os.path.exists(parts.out)
    assert timeless(run(parts)) == timeless(records)
    one, other = load_file(whole.out), load_file(parts.out)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    forget(parts)
    assert not [
        name
        for name in os.listdir(os.path.dirname(parts.out))
        if name in ("parts.pt", "parts.json")
    ]


def test_a_state_of_another_network_or_other_data_is_refused(spec, tiny):
    config = spec()
    run(config)
    for other in (spec(keep=[1, 2]), spec(null_init="zero"), spec(noise_dropout=0.2)):
        with pytest.raises(
            ValueError, match=r"run\.pt is of another network, other data or settings: delete it"
        ):
            run(other)
    assert run(spec(micro_batch=4, save_steps=1))[-1]["step"] == STEPS
    checkpoint.save(config.weights, tiny(input_size=28, classes=10))
    with pytest.raises(ValueError, match=r"run\.pt is of another network"):
        run(config)


def test_parts_of_a_batch_make_up_the_batch(spec):
    whole, parts = run(spec("whole")), run(spec("parts", micro_batch=2))
    assert_close([r["loss"] for r in parts], [r["loss"] for r in whole], rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
def test_two_processes_train_what_one_does(spec, tmp_path):
    one, two = spec("one", mode="null"), spec("two", mode="null")
    records = run(one)
    (tmp_path / "two.spec.json").write_text(two.model_dump_json())
    distributed.launch("nag.pretrained.further_training", tmp_path / "two.spec.json", 2)
    shared = pd.read_csv(two.out.replace(".safetensors", ".csv"))
    assert_close(shared.loss.tolist(), [r["loss"] for r in records], rtol=1e-4, atol=0)
    assert load_file(two.out).keys() == load_file(one.out).keys()


# ---- faults


def test_data_that_do_not_fit_the_network_are_refused(spec, tiny, tmp_path):
    for classes in (3, 9, 11):  # with a class folder missing, later labels would move
        words = rf"data of 10 classes do not fit a network of {classes} classes"
        with pytest.raises(ValueError, match=words):
            run(spec(classes=classes))
    with pytest.raises(ValueError, match="labels 0 to 3 for a network of 3 classes"):
        run(spec(classes=3, keep=[0, 1, 2, 3]))
    checkpoint.save(tmp_path / "small.safetensors", tiny(classes=10))
    with pytest.raises(ValueError, match=r"do not fit a network for \(1, 8, 8\)"):
        run(spec(weights=str(tmp_path / "small.safetensors")))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(steps_per_epoch=3), "steps_per_epoch"),
        (dict(mode="some"), "mode"),
        (dict(kind="edm"), "kind"),
        (dict(null_init="median"), "null_init"),
        (dict(noise_dropout=1.5), "noise_dropout"),
        (dict(keep=[]), "keep"),
        (dict(out="a.pt"), "must end in .safetensors"),
        (dict(layers=["final_layer"]), "mode 'all' trains every layer"),
        (dict(mode="null", classes=3), "a new class table must be trained"),
    ],
)
def test_a_wrong_specification_is_refused(spec, wrong, words):
    with pytest.raises(ValidationError, match=words):
        FurtherConfig(**spec().model_dump() | wrong)


def test_main_reads_a_specification_from_a_file(spec, tmp_path):
    config = spec(steps=1, mode="null")
    (tmp_path / "spec.json").write_text(config.model_dump_json())
    further_training.main([str(tmp_path / "spec.json")])
    assert os.path.exists(config.out)


def test_a_run_on_latents_takes_the_ones_chosen(spec, tiny, tmp_path):
    """Latents of std 0 whose mean is their number: their labels are 0, 0, 0, 1, 1, 1, 2, 2, 2."""
    numbers = torch.arange(9.0).view(9, 1, 1, 1, 1, 1).expand(9, 1, 2, 4, 8, 8).clone()
    numbers[:, :, 1] = 0
    folder = tmp_path / "latents"
    folder.mkdir()
    np.save(folder / "shard-00000.npy", numbers.half().numpy())
    shard = {
        "name": "shard-00000.npy",
        "rows": 9,
        "bytes": (folder / "shard-00000.npy").stat().st_size,
        "sha256": "",
    }
    write_json(
        folder / "index.json",
        {
            "images": 9,
            "shape": [4, 8, 8],
            "scale": 0.5,
            "flip": False,
            "shard_size": 9,
            "classes": [["a", 3], ["b", 3], ["c", 3]],
            "shards": [shard],
        },
    )
    checkpoint.save(tmp_path / "base.safetensors", tiny(channels=4))
    fields = dict(latents=str(folder), keep=[2, 0], images_per_class=None, micro_batch=4)
    config = spec(**fields)
    data = further_training._examples(config)
    x0 = data.images(torch.tensor([0, 5, 3]), torch.Generator(), slice(1, 3))
    assert x0[:, 0, 0, 0].tolist() == [4.0, 3.0]
    assert data.labels.tolist() == [1, 1, 1, 0, 0, 0] and data.shape == (4, 8, 8)
    assert run(config)[-1]["step"] == STEPS
    assert checkpoint.load(config.out).config.channels == 4
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert run(spec(**fields | {"latents": str(moved)}))[-1]["step"] == STEPS  # goes on
    index = json.loads((moved / "index.json").read_text())
    index["shards"][0]["sha256"] = "0" * 64
    (moved / "index.json").write_text(json.dumps(index))
    for wrong in (moved, folder):
        index["classes"] = [["a", 2], ["b", 4], ["c", 3]]
        with pytest.raises(ValueError, match=r"run\.pt is of another network, other data"):
            run(spec(**fields | {"latents": str(wrong)}))
        (folder / "index.json").write_text(json.dumps(index))


# ---- the held-out error


class Fixed(nn.Module):
    """Predicts zero, or two where the noise level is dropped."""

    def __init__(self, **config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.config = SimpleNamespace(
            **{"path": "linear", "prediction": "v", "classes": 1} | config
        )

    def forward(self, x, t, y, drop_noise):
        return torch.zeros_like(x) + 2.0 * drop_noise.view(-1, 1, 1, 1)


def test_held_out_errors_without_a_class_need_a_row_for_it():
    net = DiT(ModelConfig(input_size=8, width=32, depth=1, heads=2, classes=3, null_class=False))
    with pytest.raises(ValueError, match="no row for no class"):
        held_out_errors(net, torch.zeros(4, 1, 8, 8), None, 0)


@pytest.mark.parametrize("batch", [100, 7000])
def test_the_held_out_error_of_a_known_answer(batch):
    images, labels = torch.full((4000, 1, 2, 2), 3.0), torch.zeros(4000, dtype=torch.long)
    t, error = held_out_errors(Fixed(), images, labels, 1, drop_noise=False, batch=batch)
    assert_close(t.sort().values, (torch.arange(4000) + 0.5) / 4000)
    assert error.mean().item() == pytest.approx(10, abs=0.15)  # E (eps - 3)^2
    _, unknown = held_out_errors(Fixed(), images, labels, 1, batch=batch)
    assert unknown.mean().item() == pytest.approx(26, abs=0.25)  # E (eps - 5)^2, with the same eps:
    assert (unknown - error).mean().item() == pytest.approx(16, abs=4 * 4 / (4 * 4000) ** 0.5)
    t, _ = held_out_errors(Fixed(path="ddpm", prediction="eps"), images, labels, 1)
    assert_close(t * 1000, (t * 1000).round())


def test_the_data_of_a_run_are_the_images_chosen(spec):
    images, labels = fashion_mnist.load_fashion_mnist("test")
    data = further_training._examples(spec(keep=[9, 5], images_per_class=None))
    assert (
        data.shape == (1, 28, 28)
        and data.classes == 2
        and torch.equal(data.images, fashion_mnist.to_float(images[(labels == 9) | (labels == 5)]))
    )
    assert data.labels.bincount().tolist() == [1000, 1000]


def test_the_names_that_a_specification_takes_are_those_of_their_modules():
    fields = further_training.FurtherConfig.model_fields
    assert get_args(fields["kind"].annotation) == checkpoint.KINDS
    assert get_args(fields["null_init"].annotation) == ("keep", *INITIAL)
