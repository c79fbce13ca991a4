"""Weights come back as written, faults are named key by key, and no file can run code."""

import argparse
import hashlib
import json
import os
import struct
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from companion.experiments import bench, plain_sit
from companion.experiments.overhead import highest_allocation
from nag import checkpoint
from nag.guidance import GuidedField, classifier_free
from nag.models import DiT, ModelConfig
from nag.pretrained.null_branch import save_null, separate_branch
from nag.samplers.one_step import euler
from nag.samplers.registry import last
from nag.samplers.time_grids import uniform
from nag.support import weight_files
from nag.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden"
# Width, depth, heads, and millions of parameters as published (Peebles & Xie, 2023, Table 4; Ma et
# al., 2024).
SIZES = {
    "S": (384, 12, 6, 33),
    "B": (768, 12, 12, 130),
    "L": (1024, 24, 16, 458),
    "XL": (1152, 28, 16, 675),
}


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
    assert (
        metadata["trained_on"] == "random numbers"
        and ModelConfig.model_validate_json(metadata["config"]) == saved[0].config
    )


def test_sha256_is_hashlibs(saved):
    assert checkpoint.sha256(saved[1]) == hashlib.sha256(saved[1].read_bytes()).hexdigest()


def test_the_same_weights_are_the_same_bytes(tmp_path, tiny):
    """A file's hash decides what is recomputed, so equal content may not differ."""
    net, metadata = tiny(), {f"key{k}": "value" for k in range(8)}
    checkpoint.save(tmp_path / "a.safetensors", net, **metadata)
    checkpoint.save(tmp_path / "b.safetensors", net, **metadata)
    assert checkpoint.sha256(tmp_path / "a.safetensors") == checkpoint.sha256(
        tmp_path / "b.safetensors"
    )


def test_any_module_round_trips(tmp_path):
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.save_weights(tmp_path / "a.safetensors", a)
    checkpoint.load_weights(tmp_path / "a.safetensors", b)
    assert torch.equal(b.weight, a.weight.bfloat16().float())


def test_a_full_disk_leaves_the_old_file_and_gives_advice(tmp_path, tiny_disk):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with (
        pytest.raises(OSError, match=r"could not write .*a\.safetensors.*Free some disk space"),
        tiny_disk(),
    ):
        checkpoint.save_weights(path, nn.Linear(100, 100))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.safetensors"]


def test_missing_unknown_and_misshapen_keys_are_all_listed(tmp_path):
    state = {"weight": torch.zeros(2, 4), "gamma": torch.zeros(1), "beta": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pt")
    listed = (
        r"a\.pt does not fit Linear \(missing: bias; unknown: beta, gamma; wrong shape: weight\)"
    )
    with pytest.raises(ValueError, match=listed):
        checkpoint.load_weights(tmp_path / "a.pt", nn.Linear(3, 2))


def test_a_released_file_with_a_key_too_few_or_too_many(tmp_path):
    state = torch.load(GOLDEN / "sit_tiny.pt", weights_only=True)
    state["extra"] = state.pop("blocks.1.mlp.fc1.bias")
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.mlp\.fc1\.bias; unknown: extra"):
        checkpoint.load(tmp_path / "a.pt", "sit", heads=4)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    "spoil",
    [lambda b: b[:-100], lambda b: b[:50], lambda b: b"", lambda b: b"<html>404</html>" * 9],
    ids=["cut late", "cut early", "empty", "web page"],
)
def test_truncated_and_foreign_files(tmp_path, suffix, spoil):
    path, net = tmp_path / f"a{suffix}", nn.Linear(30, 20)
    if suffix == ".pt":
        torch.save(net.state_dict(), path)
    else:
        checkpoint.save_weights(path, net)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(
        ValueError, match=f"a{suffix} is truncated or no weights file: fetch or make it again"
    ):
        checkpoint.load_weights(path, net)


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"weight": torch.zeros(1), "surprise": Bomb(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt holds objects other than weights .*save its state_dict alone"
    ):
        checkpoint.load(tmp_path / "a.pt", "sit")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [torch.zeros(2), [1, 2], {"weight": 1, "bias": 2}], ids=["tensor", "list", "numbers"]
)
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt"):
        checkpoint.load_weights(tmp_path / "a.pt", nn.Linear(1, 1))


def test_an_unknown_kind_lists_the_known_ones(saved):
    with pytest.raises(ValueError, match="unknown kind 'edm': choose one of .*nag.*sit.*repa.*dit"):
        checkpoint.load(saved[1], "edm")


def test_a_file_of_another_project_must_say_its_kind():
    with pytest.raises(
        ValueError, match=r"sit_tiny\.pt was not written by this project .*name its kind.*sit"
    ):
        checkpoint.load(GOLDEN / "sit_tiny.pt")


def test_weights_of_another_architecture(tmp_path):
    checkpoint.save_weights(tmp_path / "a.safetensors", nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"a\.safetensors is not in the DiT/SiT layout.*x_embedder"
    ):
        checkpoint.load(tmp_path / "a.safetensors", "dit")


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"no weights at .*a\.pt: check the path, or make them with `dvc repro`",
    ):
        checkpoint.load(tmp_path / "a.pt", "sit")


def test_the_averaged_weights_are_taken_from_a_training_file(tmp_path):
    torch.save(
        {"ema": {"weight": torch.ones(1, 1), "bias": torch.ones(1)}, "model": {}}, tmp_path / "a.pt"
    )
    net = checkpoint.load_weights(tmp_path / "a.pt", nn.Linear(1, 1))
    assert net.weight.item() == net.bias.item() == 1


def test_released_weights_get_a_zero_null_condition_and_keep_their_own(tmp_path):
    net = checkpoint.load(GOLDEN / "sit_tiny.pt", "sit", heads=4)
    assert torch.equal(net.t_embedder.null, torch.zeros(48))
    state = {k: v.clone() for k, v in net.state_dict().items()} | {checkpoint.NULL: torch.ones(48)}
    torch.save(state, tmp_path / "tuned.pt")
    assert torch.equal(
        checkpoint.load(tmp_path / "tuned.pt", "sit", heads=4).t_embedder.null, torch.ones(48)
    )


def golden_state(kind):
    return torch.load(GOLDEN / f"{kind}_tiny.pt", weights_only=True)


def stripped(state):
    return {key: value for key, value in state.items() if not key.startswith("projectors.")}


SIT_ARGS = dict(model="SiT-XL/2", path_type="Linear", prediction="velocity")
REPA_ARGS = dict(model="SiT-XL/2", path_type="linear", prediction="v", proj_coeff=0.5)


@pytest.mark.parametrize(
    "of, kind, change, words",
    [
        ("repa", "sit", dict(projectors=True), r"tensors named projectors\.\*.*: name kind 'repa'"),
        ("repa", "dit", dict(projectors=True), r"projectors\.\*.*: name kind 'repa'"),
        ("repa", "sit", {}, "no learned variance.*: name kind 'repa' or 'dit'"),
        ("sit", "repa", {}, "a learned variance.*: name kind 'sit' or 'dit'"),
        ("dit", "repa", {}, "a learned variance.*: name kind 'sit' or 'dit'"),
        ("sit", "dit", dict(args=SIT_ARGS), "the argument path_type.*: name kind 'sit' or 'repa'"),
        ("sit", "dit", dict(args=dict(model="SiT-B/4")), "the name of a SiT.*'sit' or 'repa'"),
        ("dit", "sit", dict(args=dict(model="DiT-XL/2")), "the name of a DiT.*: name kind 'dit'"),
        ("dit", "sit", dict(name="DiT-XL-2-256x256.pt"), "the name of a DiT.*: name kind 'dit'"),
        ("sit", "dit", dict(name="SiT-XL-2-256.pt"), "the name of a SiT.*'sit' or 'repa'"),
        ("dit", "sit", dict(name="dit_xl_2.pt"), "the name of a DiT.*: name kind 'dit'"),
        ("sit", "dit", dict(idle=True), "a variance that was never trained.*: name kind 'sit'"),
        ("repa", "dit", dict(args=REPA_ARGS), "REPA's arguments.*: name kind 'repa'"),
        (
            "sit",
            "sit",
            dict(args=SIT_ARGS | {"prediction": "noise"}),
            "trained with prediction noise",
        ),
        ("sit", "sit", dict(args=SIT_ARGS | {"path_type": "GVP"}), "trained with path_type gvp"),
        ("repa", "repa", dict(args=REPA_ARGS | {"path_type": "cosine"}), "with path_type cosine"),
    ],
)
def test_a_file_of_one_project_is_not_read_as_anothers(tmp_path, of, kind, change, words):
    """A REPA file read as SiT's gave the opposite velocity without a word."""
    state, path = stripped(golden_state(of)), tmp_path / change.get("name", "a.pt")
    if "projectors" in change:
        state["projectors.0.0.weight"] = torch.ones(3, 48)
    if "idle" in change:  # SiT drops these channels, so that they stay zero
        channels = state[checkpoint.ANCHOR].shape[1]
        state[checkpoint.LAST].unflatten(0, (-1, 2, channels))[:, 1] = 0
    args = change.get("args")
    torch.save({"ema": state, "args": argparse.Namespace(**args)} if args else state, path)
    with pytest.raises(ValueError, match=f"{path.name} (has|was) .*{words}"):
        checkpoint.load(path, kind, heads=4)


@pytest.mark.parametrize(
    "kind, args", [("sit", SIT_ARGS), ("repa", REPA_ARGS), ("dit", dict(model="DiT-S/2"))]
)
@pytest.mark.parametrize("form", [dict, lambda **args: argparse.Namespace(**args)])
def test_a_file_of_its_own_kind_is_read(tmp_path, kind, args, form):
    state = golden_state(kind)
    args = form(**args, num_classes=len(state[checkpoint.TABLE]) - 1)
    torch.save({"ema": state, "args": args}, tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the arguments say the number of classes
        net = checkpoint.load(tmp_path / "a.pt", kind, heads=4)
    assert net.config == checkpoint.load(GOLDEN / f"{kind}_tiny.pt", kind, heads=4).config


@pytest.mark.parametrize("kind", checkpoint.CONVENTIONS)
def test_a_file_of_ours_is_not_read_as_a_released_one(saved, kind):
    words = "config.json" if kind == "diffusers" else "has this project's configuration.*'nag'"
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        checkpoint.load(saved[1], kind)


def test_a_null_condition_is_not_taken_for_a_network(saved, tmp_path):
    save_null(tmp_path / "null.safetensors", separate_branch(saved[0]), "0" * 64)
    with pytest.raises(ValueError, match="as a network .a null condition for load_null in it"):
        checkpoint.load(tmp_path / "null.safetensors")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module.model."])
@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "ema"])
@pytest.mark.parametrize("suffix", [".pt", ".SAFETENSORS"])
def test_a_wrapped_network_is_the_network(tmp_path, prefix, wrap, suffix):
    state = {f"{prefix}{key}": value for key, value in golden_state("sit").items()}
    if suffix == ".pt":
        torch.save({wrap: state, "step": 7} if wrap else state, tmp_path / "a.pt")
    else:
        save_file(state, tmp_path / "a.SAFETENSORS")
    found = checkpoint.load(tmp_path / f"a{suffix}", "sit", heads=4).state_dict()
    plain = checkpoint.load(GOLDEN / "sit_tiny.pt", "sit", heads=4).state_dict()
    assert all(torch.equal(found[key], value) for key, value in plain.items())


def test_a_network_among_other_tensors_is_named_not_guessed(tmp_path):
    state = golden_state("sit")
    two = {f"{name}.{key}": value for name in ("model", "ema") for key, value in state.items()}
    torch.save({"state_dict": two}, tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match=r"two\.ckpt has networks under ema\. and model\.: save"):
        checkpoint.load(tmp_path / "two.ckpt", "sit")
    one = {f"net.{key}": value for key, value in state.items()} | {"vae.a": torch.ones(1)}
    torch.save(one, tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=r"under net\. and other tensors such as vae\.a: save"):
        checkpoint.load(tmp_path / "one.ckpt", "sit")


def test_a_class_table_without_a_row_for_no_class(tmp_path):
    """Ten rows may be ten classes, or nine and one for none: only the caller or the file knows."""
    state = golden_state("sit")
    state[checkpoint.TABLE] = state[checkpoint.TABLE][:10]
    torch.save(state, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="10 rows of classes: assuming 9 classes .* classes=10"):
        guessed = checkpoint.load(tmp_path / "a.pt", "sit", heads=4)
    assert guessed.config.classes == 9 and guessed.config.null_class
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = checkpoint.load(tmp_path / "a.pt", "sit", heads=4, classes=10)
        nine = checkpoint.load(tmp_path / "a.pt", "sit", heads=4, classes=9)
    assert bare.config.classes == 10 and not bare.config.null_class and nine.config.null_class
    for wrong in (8, 11):
        with pytest.raises(ValueError, match=f"10 rows, which is neither {wrong} nor {wrong + 1}"):
            checkpoint.load(tmp_path / "a.pt", "sit", heads=4, classes=wrong)
    args = argparse.Namespace(num_classes=10, model="SiT-S/2")
    torch.save({"ema": state, "args": args}, tmp_path / "b.pt")
    assert checkpoint.load(tmp_path / "b.pt", "sit", heads=4).config == bare.config
    args.num_classes = 1000  # a default that was not heeded
    torch.save({"ema": state, "args": args}, tmp_path / "b.pt")
    with pytest.warns(UserWarning, match="assuming 9 classes"):
        checkpoint.load(tmp_path / "b.pt", "sit", heads=4)
    checkpoint.save(tmp_path / "c.safetensors", bare)
    again = checkpoint.load(tmp_path / "c.safetensors")
    assert again.config == bare.config
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 9])
    assert torch.equal(bare(x, t, y), guessed(x, t, y))


def released(kind, name, input_size=32, learn_sigma=True):
    """Configuration and shapes of a public network of patch 2, in its own layout."""
    width, depth, heads, _ = SIZES[name]
    config = ModelConfig(
        input_size=input_size,
        patch=2,
        channels=4,
        width=width,
        depth=depth,
        heads=heads,
        classes=1000,
        learn_sigma=learn_sigma,
        **checkpoint.CONVENTIONS[kind],
    )
    with torch.device("meta"):
        state = DiT(config).state_dict()
    del state[checkpoint.NULL]
    return config, state


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("input_size", [32, 64])
@pytest.mark.parametrize("name", SIZES)
def test_the_published_sizes(name, input_size, learn_sigma):
    for kind in checkpoint.CONVENTIONS:
        config, state = released(kind, name, input_size, learn_sigma)
        assert checkpoint.infer_config(state, kind) == config
    d, depth, _, millions = SIZES[name]
    out = 2 * 2 * 4 * (2 if learn_sigma else 1)
    embedders = (
        17 * d + (input_size // 2) ** 2 * d + (258 * d + d * d) + 1001 * d
    )  # of patches, places, times, classes
    expected = embedders + depth * (18 * d * d + 15 * d) + (d + 1) * out + 2 * (d + 1) * d
    assert sum(value.numel() for value in state.values()) == expected
    assert expected / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_number_of_parameters_that_the_public_codes_print():
    assert sum(value.numel() for value in released("sit", "XL")[1].values()) == 675_129_632


def write_hollow(path, content):
    """A file of the given shapes whose numbers are a hole, so that XL's takes neither disk nor
    memory.
    """

    def hollow(state):
        return {key: torch.empty(value.shape) for key, value in state.items()}

    with torch.serialization.skip_data():
        torch.save(
            {
                key: hollow(value) if key in ("model", "ema") else value
                for key, value in content.items()
            }
            if "ema" in content
            else hollow(content),
            path,
        )


@pytest.mark.parametrize(
    "kind, name, input_size, training",
    [
        ("sit", "S", 32, False),
        ("sit", "B", 32, True),
        ("sit", "L", 32, True),
        ("sit", "XL", 32, False),
        ("sit", "XL", 64, True),
        ("dit", "XL", 32, False),
        ("dit", "XL", 64, False),
        ("repa", "XL", 32, True),
        ("repa", "XL", 64, True),
        ("repa", "B", 32, False),
    ],
)
def test_released_files_load_at_their_sizes(
    tmp_path, monkeypatch, kind, name, input_size, training
):
    monkeypatch.setattr(weight_files, "check_archive", lambda path: None)  # of a hole it is wrong
    config, state = released(kind, name, input_size, learn_sigma=kind != "repa")
    own = (
        state | {"projectors.0.0.weight": torch.empty(2048, config.width)}
        if kind == "repa"
        else state
    )
    args = argparse.Namespace(model=f"SiT-{name}/2", image_size=8 * input_size)
    write_hollow(
        tmp_path / "a.pt", {"model": own, "ema": own, "opt": {}, "args": args} if training else own
    )
    net = checkpoint.load(tmp_path / "a.pt", kind)
    assert net.config == config
    assert {
        key: value.shape for key, value in net.state_dict().items() if key != checkpoint.NULL
    } == {key: value.shape for key, value in state.items()}


@pytest.fixture
def official_file(tmp_path):
    """Writes random official weights as a .pt or .safetensors file of about 4 MB."""
    config = ModelConfig(
        input_size=8,
        patch=2,
        channels=4,
        width=192,
        depth=2,
        heads=3,
        classes=4,
        learn_sigma=True,
        **checkpoint.CONVENTIONS["sit"],
    )

    def write(suffix):
        path = tmp_path / f"a{suffix}"
        bench.random_file(tmp_path / "a.pt", config)
        if suffix == ".safetensors":
            save_file(torch.load(tmp_path / "a.pt", weights_only=True), path)
        return path, torch.load(tmp_path / "a.pt", weights_only=True)

    return write


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loading_neither_initialises_nor_copies(official_file, suffix):
    path, wanted = official_file(suffix)
    checkpoint.load(path, "sit")
    before = torch.get_rng_state()
    assert highest_allocation(lambda: checkpoint.load(path, "sit")) < 1.1 * path.stat().st_size
    assert torch.equal(torch.get_rng_state(), before)
    found = checkpoint.load(path, "sit").state_dict()
    assert not found.pop(checkpoint.NULL).any() and found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_training_a_loaded_network_leaves_its_file_alone(official_file, suffix):
    path, wanted = official_file(suffix)
    digest, net = checkpoint.sha256(path), checkpoint.load(path, "sit").train().requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net(
        torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 4]), torch.tensor([False, True])
    ).square().mean().backward()
    optimizer.step()
    assert not any(
        torch.equal(value, wanted[key]) for key, value in net.state_dict().items() if key in wanted
    )
    assert checkpoint.sha256(path) == digest
    again = checkpoint.load(path, "sit").state_dict()
    assert all(torch.equal(again[key], value) for key, value in wanted.items())


def test_a_file_may_be_replaced_while_its_network_lives(official_file):
    path, wanted = official_file(".pt")
    net = checkpoint.load(path, "sit")
    bench.write_torch(path, {"other": torch.zeros(1)})
    assert all(torch.equal(net.state_dict()[key], value) for key, value in wanted.items())


def test_weights_stored_once_or_out_of_order_become_separate_and_contiguous(official_file):
    path, state = official_file(".pt")
    one, other = "blocks.0.attn.proj.weight", "blocks.1.attn.proj.weight"
    state |= {
        other: state[one],
        "blocks.0.mlp.fc1.weight": state["blocks.0.mlp.fc1.weight"].T.contiguous().T,
    }
    torch.save(state, path)
    own = dict(checkpoint.load(path, "sit").named_parameters())
    assert all(
        torch.equal(own[key], value) and own[key].is_contiguous() for key, value in state.items()
    )
    own[one].zero_()
    assert torch.equal(own[other], state[other])


def test_weights_at_odd_places_of_a_file_are_aligned(official_file):
    path, state = official_file(".safetensors")
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(json.loads(content[8 : 8 + size])).encode()
    header += b" " * ((1 - len(header)) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    own = checkpoint.load(path, "sit").state_dict()
    assert all(
        torch.equal(own[key], value) and own[key].data_ptr() % 4 == 0
        for key, value in state.items()
    )


def test_the_hash_of_a_file_is_checked_before_it_is_loaded(official_file):
    path, _ = official_file(".pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for right in (digest, digest[:8], digest[:20].upper()):
        assert checkpoint.load(path, "sit", sha256=right).config.width == 192
    for wrong in ("0" * 64, digest[:-1] + ("0" if digest[-1] != "0" else "1"), "00000000"):
        with pytest.raises(
            ValueError, match=rf"a\.pt has the SHA-256 {digest}, not {wrong}: .*fetch it again"
        ):
            checkpoint.load(path, "sit", sha256=wrong)
    for strange in ("", digest[:7], digest + "0", "g" * 64, digest + "\n"):
        with pytest.raises(
            ValueError,
            match="is no SHA-256: give its 64 hexadecimal digits, or the first 8 or more",
        ):
            checkpoint.load(path, "sit", sha256=strange)
    with pytest.raises(FileNotFoundError, match=r"no weights at .*b\.pt: check the path"):
        checkpoint.load(path.with_name("b.pt"), "sit", sha256=digest)


@pytest.mark.parametrize("inner", ["", "transformer"])
def test_of_a_folder_the_hash_is_that_of_its_weights(tmp_path, inner):
    file = tmp_path / inner / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"weights")
    with pytest.raises(ValueError, match=f"{tmp_path}.* has the SHA-256"):
        checkpoint.load(tmp_path, "diffusers", sha256="0" * 64)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        checkpoint.load(tmp_path, "diffusers", sha256=hashlib.sha256(b"weights").hexdigest())


@pytest.mark.slow
def test_a_network_of_xl_width_needs_little_more_memory_than_its_file(tmp_path):
    """Four of XL's 28 blocks."""
    if why := bench.lacking(tmp_path):
        pytest.skip(why)
    config = bench.XL.model_copy(update={"depth": 4})
    path, x, labels = tmp_path / "xl.pt", torch.randn(2, 4, 32, 32), torch.tensor([207, 999])
    try:
        bench.random_file(path, config)
        size, memory = path.stat().st_size, bench.loading(path, "sit")["memory"]
        assert not memory < size and not memory > 1.3 * size  # NaN where the system does not tell
        net = checkpoint.load(path, "sit")
        assert net.config == config
        net.blocks = net.blocks[::2]
        net.config = net.config.model_copy(update={"depth": len(net.blocks)})
        plain = plain_sit.sample(plain_sit.of(net), x, labels, scale=1.5, steps=1)
        for precision, tolerance in {"fp32": 1e-5, "bf16": 0.03}.items():
            field = GuidedField(net, labels, [classifier_free(1.5)], precision)
            ours = last(euler(field, x, uniform(1)))
            assert (ours - plain).norm() < tolerance * (x - plain).norm()
    finally:
        path.unlink(missing_ok=True)  # 0.4 GB


@pytest.mark.parametrize("config", ["{", "[]", '{"width": "wide"}', '{"unknown": 1}'])
def test_a_network_whose_configuration_is_damaged_is_named(tmp_path, tiny, config):
    path = tmp_path / "net.safetensors"
    checkpoint.save_weights(path, tiny(), config=config)
    with pytest.raises(ValueError, match=r"net\.safetensors is damaged: its configuration"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["config", "cfg", "hparams", "hyper_parameters"])
def test_arguments_count_under_any_usual_name(tmp_path, name):
    state = golden_state("sit")
    torch.save({"state_dict": state, name: {"path_type": "GVP"}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="was trained with path_type gvp"):
        checkpoint.load(tmp_path / "a.pt", "sit")


@pytest.mark.parametrize(
    "args", [{"class_dropout_prob": 0.0}, {"cfg_prob": 0}, {"num_classes": "ROWS"}]
)
def test_without_class_dropout_the_table_has_no_row_more(tmp_path, args):
    state = golden_state("sit")
    rows = len(state[checkpoint.TABLE])
    args = {k: str(rows) if v == "ROWS" else v for k, v in args.items()}
    torch.save({"ema": state, "args": argparse.Namespace(**args)}, tmp_path / "a.pt")
    config = checkpoint.load(tmp_path / "a.pt", "sit", heads=4).config
    assert (config.classes, config.null_class) == (rows, False)


@pytest.mark.parametrize("heads", [0, -2, 5])
def test_heads_must_divide_the_width(tmp_path, heads):
    torch.save(golden_state("sit"), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"{heads} heads do not divide the width .*: check heads"):
        checkpoint.load(tmp_path / "a.pt", "sit", heads=heads)
