"""Official files, made as the public training scripts make them, are read without running code and
written back bit for bit.
"""

import argparse
import os

import pytest
import torch

from nag import checkpoint
from nag.pretrained import export
from nag.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden"  # state dicts of the public code's own networks
ARGS = dict(
    model="SiT-XL/2",
    data_path="/data/train",
    epochs=1400,
    cfg_scale=4.0,
    wandb=True,
    ckpt=None,
    z_dims=[768, 1024],
)


def public(kind):
    return torch.load(GOLDEN / f"{kind}_tiny.pt", weights_only=True)


def save_training(path, kind, args):
    """The dictionary that train.py of SiT, DiT and REPA saves, with a real optimiser's state."""
    ema = public(kind)
    model = {key: torch.nn.Parameter(value + 1) for key, value in ema.items()}
    optimiser = torch.optim.AdamW(model.values(), lr=1e-4)
    sum(value.sum() for value in model.values()).backward()
    optimiser.step()
    model = {key: value.detach() for key, value in model.items()}
    content = {"model": model, "ema": ema, "opt": optimiser.state_dict(), "args": args}
    torch.save(content | ({"steps": 400_000} if kind == "repa" else {}), path)
    return ema, model


def same(a, b):
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


@pytest.mark.parametrize("kind", export.KINDS)
def test_a_training_file_loads_as_its_averaged_weights(tmp_path, kind):
    model = "DiT-XL/2" if kind == "dit" else "SiT-XL/2"
    save_training(tmp_path / "a.pt", kind, argparse.Namespace(**ARGS | {"model": model}))
    trained, bare = (
        checkpoint.load(path, kind, heads=4)
        for path in (tmp_path / "a.pt", GOLDEN / f"{kind}_tiny.pt")
    )
    assert trained.config == bare.config and same(trained.state_dict(), bare.state_dict())


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Disguised(argparse.Namespace):
    """A Namespace by inheritance, with code of its own."""

    def __setstate__(self, state):
        os.mkdir(state["path"])


@pytest.mark.parametrize(
    "plant",
    [
        lambda path: argparse.Namespace(lr=1, callback=Bomb(path)),
        Bomb,
        lambda path: Disguised(path=str(path)),
        lambda path: {"transform": Bomb(path)},
    ],
    ids=["in the namespace", "as the namespace", "subclass", "in a dict"],
)
def test_code_in_the_arguments_is_refused_and_not_run(tmp_path, plant):
    path, trace = tmp_path / "a.pt", tmp_path / "ran"
    torch.save({"ema": public("sit"), "args": plant(trace)}, path)
    for read in (
        checkpoint.read_weights,
        lambda path: checkpoint.load(path, "sit", heads=4),
    ):
        with pytest.raises(
            ValueError, match=r"a\.pt holds objects other than weights .*would execute code"
        ) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert not trace.exists() and argparse.Namespace not in torch.serialization.get_safe_globals()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it was a live one


@pytest.mark.parametrize("kind", export.KINDS)
def test_the_public_file_comes_back_bit_for_bit(tmp_path, kind):
    first = checkpoint.load(GOLDEN / f"{kind}_tiny.pt", kind, heads=4)
    export.export(tmp_path / "a.pt", first, kind)
    wanted = {
        key: value for key, value in public(kind).items() if not key.startswith("projectors.")
    }
    assert same(torch.load(tmp_path / "a.pt", weights_only=True), wanted)
    again = checkpoint.load(tmp_path / "a.pt", kind, heads=4)
    assert again.config == first.config and same(again.state_dict(), first.state_dict())


def test_half_precision_is_written_as_float32(tmp_path):
    half = {key: value.half() for key, value in public("sit").items()}
    torch.save(half, tmp_path / "half.pt")
    export.export(tmp_path / "a.pt", checkpoint.load(tmp_path / "half.pt", "sit", heads=4), "sit")
    assert same(
        torch.load(tmp_path / "a.pt", weights_only=True),
        {key: value.float() for key, value in half.items()},
    )


def test_the_null_noise_condition_is_kept_only_if_asked(tmp_path, tiny):
    net = tiny()
    export.export(tmp_path / "with.pt", net, "repa", null=True)
    export.export(tmp_path / "without.pt", net, "repa")
    kept, dropped = (
        checkpoint.load(tmp_path / name, "repa", heads=2) for name in ("with.pt", "without.pt")
    )
    assert same(kept.state_dict(), net.state_dict()) and net.t_embedder.null.all()
    assert torch.equal(dropped.t_embedder.null, torch.zeros(32))
    assert "t_embedder.null" not in torch.load(tmp_path / "without.pt", weights_only=True)


@torch.no_grad()
@pytest.mark.parametrize(
    "kind, sizes",
    [
        ("repa", {}),
        ("repa", dict(sign=-1.0)),
        ("sit", dict(time_scale=-1.0, time_offset=1.0, learn_sigma=True)),
        ("sit", dict(time_scale=-1.0, time_offset=1.0, sign=-1.0, learn_sigma=True)),
        (
            "dit",
            dict(
                prediction="eps",
                path="ddpm",
                time_scale=1000.0,
                time_offset=-1.0,
                learn_sigma=True,
                sign=-1.0,
            ),
        ),
    ],
)
def test_a_network_of_ours_stays_the_same_function_with_either_sign(tmp_path, tiny, kind, sizes):
    net = tiny(**sizes)
    export.export(tmp_path / "a.pt", net, kind)
    back = checkpoint.load(tmp_path / "a.pt", kind, heads=2)
    x, t, y = torch.randn(5, 1, 8, 8), torch.linspace(0, 1, 5), torch.tensor([0, 1, 2, 3, 3])
    out = net(x, t, y, full=True)
    assert torch.equal(back(x, t, y, full=True), out) and out.abs().max() > 0.1


@pytest.mark.parametrize(
    "kind, sizes, fault",
    [
        (
            "sit",
            {},
            r"'time_scale': 1\.0.*'sit', which has \{'time_scale': -1\.0.*: write it as 'repa'",
        ),
        (
            "repa",
            dict(time_scale=-1.0, time_offset=1.0, learn_sigma=True),
            r"'time_offset': 1\.0.*: write it as 'sit'",
        ),
        (
            "sit",
            dict(time_scale=-1.0, time_offset=1.0),
            r"\{'learn_sigma': False\} .*'sit', which has \{'learn_sigma': True\}: keep it",
        ),
        ("repa", dict(learn_sigma=True), r"\{'learn_sigma': True\} .*'repa'.*: keep it"),
        ("dit", {}, r"'prediction': 'v', 'path': 'linear'.*write it as 'repa'"),
        ("repa", dict(prediction="x0"), "'prediction': 'x0'.*keep it with checkpoint.save"),
        ("repa", dict(sign=2.0), r"'sign': 2\.0.*keep it with checkpoint.save"),
        (
            "dit",
            checkpoint.CONVENTIONS["diffusers"],
            r"'freq_shift': 1\.0, 'norm_eps': 1e-05.*keep it",
        ),
        ("diffusers", {}, "unknown official kind 'diffusers': choose one of"),
        ("nag", {}, "unknown official kind 'nag'"),
    ],
)
def test_what_cannot_be_written_exactly_is_refused(tmp_path, tiny, kind, sizes, fault):
    with pytest.raises(ValueError, match=fault):
        export.export(tmp_path / "a.pt", tiny(**sizes), kind)
    assert os.listdir(tmp_path) == []


def test_the_file_must_be_named_as_one_of_pytorch(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"a\.safetensors must end in \.pt"):
        export.export(tmp_path / "a.safetensors", tiny(), "repa")


def test_equal_weights_are_equal_bytes_and_a_full_disk_leaves_the_old_file(
    tmp_path, tiny, tiny_disk
):
    net, a, b = tiny(), tmp_path / "a.pt", tmp_path / "b.pt"
    export.export(a, net, "repa")
    export.export(b, net, "repa")
    assert checkpoint.sha256(a) == checkpoint.sha256(b)
    with (
        pytest.raises(OSError, match=r"could not write .*a\.pt.*Free some disk space"),
        tiny_disk(),
    ):
        export.export(a, tiny(), "repa")
    assert checkpoint.sha256(a) == checkpoint.sha256(b) and sorted(os.listdir(tmp_path)) == [
        "a.pt",
        "b.pt",
    ]
