"""Weights come back as written, faults are named key by key, and no file can run code."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from nag import checkpoint
from nag.models import DiT, ModelConfig

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def saved(tmp_path, tiny):
    net, path = tiny(), tmp_path / "net.safetensors"
    checkpoint.save(path, net, trained_on="random numbers")
    return net, path


def test_a_network_comes_back_as_its_bf16_rounding(saved):
    net, path = saved
    back = checkpoint.load(path)
    assert back.config == net.config and not back.training
    own = net.state_dict()
    for key, value in back.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, own[key].bfloat16().float())
    assert not any(p.requires_grad for p in back.parameters())


def test_the_file_holds_bf16_and_its_metadata(saved):
    state, metadata = checkpoint.read_weights(saved[1])
    assert {v.dtype for v in state.values()} == {torch.bfloat16}
    assert metadata["trained_on"] == "random numbers" and ModelConfig.model_validate_json(metadata["config"]) == saved[0].config


def test_sha256_is_hashlibs(saved):
    assert checkpoint.sha256(saved[1]) == hashlib.sha256(saved[1].read_bytes()).hexdigest()


def test_the_same_weights_are_the_same_bytes(tmp_path, tiny):
    """A file's hash decides what is recomputed, so equal content may not differ."""
    net, metadata = tiny(), {f"key{k}": "value" for k in range(8)}
    checkpoint.save(tmp_path / "a.safetensors", net, **metadata)
    checkpoint.save(tmp_path / "b.safetensors", net, **metadata)
    assert checkpoint.sha256(tmp_path / "a.safetensors") == checkpoint.sha256(tmp_path / "b.safetensors")


def test_any_module_round_trips(tmp_path):
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.save_weights(tmp_path / "a.safetensors", a)
    checkpoint.load_weights(tmp_path / "a.safetensors", b)
    assert torch.equal(b.weight, a.weight.bfloat16().float())


def test_a_full_disk_leaves_the_old_file_and_gives_advice(tmp_path, tiny_disk):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with pytest.raises(OSError, match=r"could not write .*a\.safetensors.*Free some disk space"), tiny_disk():
        checkpoint.save_weights(path, nn.Linear(100, 100))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.safetensors"]


def test_missing_unknown_and_misshapen_keys_are_all_listed(tmp_path):
    state = {"weight": torch.zeros(2, 4), "gamma": torch.zeros(1), "beta": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pt")
    listed = r"a\.pt does not fit Linear \(missing: bias; unknown: beta, gamma; wrong shape: weight\)"
    with pytest.raises(ValueError, match=listed):
        checkpoint.load_weights(tmp_path / "a.pt", nn.Linear(3, 2))


def test_a_released_file_with_a_key_too_few_or_too_many(tmp_path):
    state = torch.load(GOLDEN / "sit_tiny.pt", weights_only=True)
    state["extra"] = state.pop("blocks.1.mlp.fc1.bias")
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.mlp\.fc1\.bias; unknown: extra"):
        checkpoint.load(tmp_path / "a.pt", "sit", heads=4)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("spoil", [lambda b: b[:-100], lambda b: b[:50], lambda b: b"", lambda b: b"<html>404</html>" * 9],
                         ids=["cut late", "cut early", "empty", "web page"])
def test_truncated_and_foreign_files(tmp_path, suffix, spoil):
    path, net = tmp_path / f"a{suffix}", nn.Linear(30, 20)
    if suffix == ".pt":
        torch.save(net.state_dict(), path)
    else:
        checkpoint.save_weights(path, net)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"a{suffix} is truncated or no weights file: fetch or make it again"):
        checkpoint.load_weights(path, net)


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"weight": torch.zeros(1), "surprise": Bomb(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds objects other than weights .*save its state_dict alone"):
        checkpoint.load(tmp_path / "a.pt", "sit")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [torch.zeros(2), [1, 2], {"weight": 1, "bias": 2}], ids=["tensor", "list", "numbers"])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt"):
        checkpoint.load_weights(tmp_path / "a.pt", nn.Linear(1, 1))


def test_an_unknown_kind_lists_the_known_ones(saved):
    with pytest.raises(ValueError, match="unknown kind 'edm': choose one of .*nag.*sit.*repa.*dit"):
        checkpoint.load(saved[1], "edm")


def test_a_file_of_another_project_must_say_its_kind():
    with pytest.raises(ValueError, match=r"sit_tiny\.pt was not written by this project .*name its kind.*sit"):
        checkpoint.load(GOLDEN / "sit_tiny.pt")


def test_weights_of_another_architecture(tmp_path):
    checkpoint.save_weights(tmp_path / "a.safetensors", nn.Linear(3, 2))
    with pytest.raises(ValueError, match="not in the DiT/SiT layout.*x_embedder"):
        checkpoint.load(tmp_path / "a.safetensors", "dit")


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*a\.pt: check the path, or make them with `dvc repro`"):
        checkpoint.load(tmp_path / "a.pt", "sit")


def test_the_averaged_weights_are_taken_from_a_training_file(tmp_path):
    torch.save({"ema": {"weight": torch.ones(1, 1), "bias": torch.ones(1)}, "model": {}}, tmp_path / "a.pt")
    net = checkpoint.load_weights(tmp_path / "a.pt", nn.Linear(1, 1))
    assert net.weight.item() == net.bias.item() == 1


def test_released_weights_get_a_zero_null_condition_and_keep_their_own(tmp_path):
    net = checkpoint.load(GOLDEN / "sit_tiny.pt", "sit", heads=4)
    assert torch.equal(net.t_embedder.null, torch.zeros(48))
    state = {k: v.clone() for k, v in net.state_dict().items()} | {checkpoint.NULL: torch.ones(48)}
    torch.save(state, tmp_path / "tuned.pt")
    assert torch.equal(checkpoint.load(tmp_path / "tuned.pt", "sit", heads=4).t_embedder.null, torch.ones(48))


@pytest.mark.parametrize("kind", checkpoint.CONVENTIONS)
@pytest.mark.parametrize("depth, width, heads", [(12, 384, 6), (12, 768, 12), (24, 1024, 16), (28, 1152, 16)])
def test_the_published_sizes_are_read_from_the_weights(kind, depth, width, heads):
    config = ModelConfig(input_size=32, patch=2, channels=4, width=width, depth=depth, heads=heads, classes=1000,
                         learn_sigma=kind != "repa", **checkpoint.CONVENTIONS[kind])
    with torch.device("meta"):
        state = DiT(config).state_dict()
    assert checkpoint.infer_config(state, kind) == config
