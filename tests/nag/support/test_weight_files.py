"""Whatever wrote a file of weights, its tensors are read, or one sentence says what it is; nothing
in it is ever run.
"""

import io
import json
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nag.checkpoint import load_weights, read_weights
from nag.support.weight_files import joined, read_file, sha256, weight_files


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def same(read, net):
    own = net.state_dict()
    return read.keys() == own.keys() and all(torch.equal(read[key], own[key]) for key in own)


def old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_file, torch.save, old])
@pytest.mark.parametrize(
    "name", ["a.safetensors", "A.SAFETENSORS", "a.pt", "a.PTH", "a.ckpt", "a.bin", "größe"]
)
def test_the_content_says_what_a_file_is_not_its_name(tmp_path, net, save, name):
    save(net.state_dict(), tmp_path / name)
    assert same(read_weights(tmp_path / name)[0], net)
    (tmp_path / "link").symlink_to(name)
    assert same(read_weights(tmp_path / "link")[0], net)


WRAPPED = {
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "pytorch-lightning_version": "2.5"},
    "ema": lambda state: {"ema": state, "model": {k: v + 1 for k, v in state.items()}},
    "the averaged one, wrapped": lambda state: {"ema": {"module": state}, "loss": torch.ones(())},
    "no averaged one": lambda state: {"ema": None, "state_dict": {}, "model": state},
    "both": lambda state: {"state_dict": {k: v + 1 for k, v in state.items()}, "model_ema": state},
    "module": lambda state: {"module": state, "dp_world_size": 8},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("save", [torch.save, old])
def test_state_dicts_are_found_where_training_codes_put_them(tmp_path, net, wrap, save):
    save(wrap(net.state_dict()), tmp_path / "a.pt")
    assert same(read_weights(tmp_path / "a.pt")[0], net)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "ema.model."]
)
def test_prefixes_that_all_names_share_are_left_out(tmp_path, net, prefix):
    state = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert same(load_weights(tmp_path / "a.safetensors", other).state_dict(), net)


def test_a_module_whose_own_names_have_such_a_prefix_keeps_it(tmp_path, net):
    outer = nn.Module()
    outer.model = net
    torch.save(outer.state_dict(), tmp_path / "a.pt")
    fresh = nn.Module()
    fresh.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert same(load_weights(tmp_path / "a.pt", fresh).model.state_dict(), net)


def test_what_compiling_single_blocks_puts_into_names_is_left_out(tmp_path, net):
    state = net.state_dict()
    torch.save({k.replace(".", "._orig_mod.", 1): v for k, v in state.items()}, tmp_path / "a.pt")
    assert same(load_weights(tmp_path / "a.pt", net).state_dict(), net)


def test_a_prefix_that_only_some_names_have_is_not_guessed(tmp_path, net):
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    torch.save(state | {"loss.weight": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt does not fit .*unknown: loss\.weight, model\.0\."):
        load_weights(tmp_path / "a.pt", net)


def tar(path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info, content = tarfile.TarInfo(name), pickle.dumps(0)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def script(path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)), path)


OTHERS = {
    "tar": (tar, "is a tar archive, as PyTorch 0.1 wrote them, .*: save it again"),
    "script": (script, "is a TorchScript archive, which holds code: save its state_dict alone"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is a pickle that torch.save did"),
    "npz": (lambda p: np.savez(open(p, "wb"), a=np.ones(1)), "is truncated or no weights file"),
    "lfs": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9"),
        "only points to a file kept by Git LFS: run `git lfs pull`",
    ),
    "web page": (lambda p: p.write_text("<html>404</html>"), "is truncated or no weights file"),
    "training": (
        lambda p: torch.save({"ema": [torch.ones(1)], "optimizer": {}, "settings": "{}"}, p),
        "is the state of a training: run the training to its end",
    ),
    "list": (lambda p: torch.save({"ema": [1], "model": {}}, p), "holds no named tensors"),
    "numbers": (lambda p: torch.save({"state_dict": {"a": 1}}, p), "holds no named tensors but a"),
    "unknown": (
        lambda p: torch.save({"epoch": 3, "gen": {"a": torch.ones(1)}}, p),
        "holds no named tensors but epoch, gen: save a module's state_dict",
    ),
    "itself": (lambda p: torch.save(within_itself(), p), "holds no named tensors"),
}


def within_itself():
    content = {}
    content["model"] = content
    return content


@pytest.mark.parametrize("make, words", OTHERS.values(), ids=OTHERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_files_are_called_what_they_are(tmp_path, make, words):
    make(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt {words}") as error:
        read_weights(tmp_path / "a.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.3, 0.95])
@pytest.mark.parametrize("save", [save_file, torch.save, old])
def test_a_file_cut_off_is_said(tmp_path, save, share):
    save({"weight": torch.zeros(500)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"a\.pt is truncated or no weights file"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("save", [torch.save, old])
def test_code_is_named_and_not_run(tmp_path, save):
    save({"weight": torch.zeros(1), "x": Bomb(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds objects other than weights \(getattr\)"):
        read_file(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder: name the file .* kind 'diffusers'"):
        read_file(tmp_path)


def test_integers_in_the_place_of_weights_are_refused(tmp_path):
    state = {"weight": torch.ones(1, 1, dtype=torch.int8), "bias": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"does not fit Linear \(of whole numbers: weight\)"):
        load_weights(tmp_path / "a.pt", nn.Linear(1, 1))


# ---- folders of diffusers

NAME = "diffusion_pytorch_model"


def folder(tmp_path, *names):
    for name in names:
        (tmp_path / f"{NAME}{name}").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "names, chosen, variant",
    [
        ([".bin", ".safetensors", ".fp16.safetensors"], ".safetensors", ""),
        ([".bin", ".fp16.safetensors"], ".bin", ""),
        ([".fp16.bin", ".fp16.safetensors"], ".fp16.safetensors", "fp16"),
        ([".non_ema.bin"], ".non_ema.bin", "non_ema"),
        ([".SAFETENSORS"], ".SAFETENSORS", ""),
    ],
)
def test_the_weights_of_a_folder(tmp_path, names, chosen, variant):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = weight_files(folder(tmp_path, *names, ".msgpack"))
    assert found == ([tmp_path / f"{NAME}{chosen}"], variant) and len(said) == bool(variant)


@pytest.mark.parametrize("index", [".safetensors.index.json", ".bin.index.json"])
def test_shards_are_those_of_the_index(tmp_path, index):
    end = index.split(".")[1]
    names = [f"{NAME}-0000{k}-of-00002.{end}" for k in (1, 2)]
    where = {"a": names[1], "b": names[0], "c": names[1]}
    (tmp_path / f"{NAME}{index}").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (tmp_path / names[0]).touch()
    with pytest.raises(FileNotFoundError, match=f"lists 1 files .*such as {names[1]}"):
        weight_files(tmp_path)
    (tmp_path / names[1]).touch()
    assert weight_files(tmp_path) == ([tmp_path / name for name in names], "")
    (tmp_path / f"{NAME}{index}").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is damaged: fetch or make it again"):
        weight_files(tmp_path)


def test_faults_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no weights in .*: place {NAME}.safetensors or"):
        weight_files(folder(tmp_path, ".onnx", ".msgpack"))
    folder(tmp_path, ".fp16.bin", ".non_ema.bin")
    with pytest.raises(ValueError, match="variants fp16, non_ema and none without a name: leave"):
        weight_files(tmp_path)


def test_several_files_have_one_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    one = sha256(tmp_path / "a")
    assert joined([one]) == one
    assert len({joined([one]), joined([one, one]), joined([one, one, one])}) == 3


def test_weights_with_one_other_byte_are_refused(tmp_path, net):
    path, value = tmp_path / "a.pt", net[0].weight.detach()
    torch.save(net.state_dict(), path)
    content = bytearray(path.read_bytes())
    content[content.index(value.numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="fetch or make it again"):
        read_weights(path)
