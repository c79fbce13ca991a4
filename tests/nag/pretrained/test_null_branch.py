"""The null condition added to a network: where it starts, and a twin that never touches the network
it shares tensors with.
"""

import json
import math

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from nag import checkpoint
from nag.checkpoint import NULL
from nag.guidance import GuidedField, noise_awareness
from nag.pretrained.null_branch import add_null, initial_null, load_null, save_null, separate_branch

SHA = "a" * 64


def inputs(n=3):
    return torch.randn(n, 1, 8, 8), torch.rand(n), torch.arange(n) % 3


def dropped(net, x, t, y):
    return net(x, t, y, torch.ones(len(x), dtype=torch.bool))


def trained(net, layers, steps=5):
    """A twin after some steps of Adam that change its predictions a lot."""
    twin = separate_branch(net, layers)
    optimizer = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        x, t, y = inputs()
        optimizer.zero_grad()
        (dropped(twin, x, t, y) - x).square().mean().backward()
        optimizer.step()
    return twin


# ---- where it starts


def embedding(net, native):
    """The time embedding by its formula (Vaswani et al., 2017; DiT): an MLP with SiLU of 128
    cosines and 128 sines.
    """
    state = {key: value.double() for key, value in net.t_embedder.state_dict().items()}
    angles = torch.tensor(
        [[u * 10000 ** (-k / 128) for k in range(128)] for u in native], dtype=torch.float64
    )
    hidden = (
        torch.cat([angles.cos(), angles.sin()], 1) @ state["mlp.0.weight"].T + state["mlp.0.bias"]
    )
    return (hidden / (1 + (-hidden).exp())) @ state["mlp.2.weight"].T + state["mlp.2.bias"]


@pytest.mark.parametrize(
    "path, scale, offset, native, middle",
    [
        ("linear", -1.0, 1.0, [1 - k / 1000 for k in range(1, 1001)], 0.5),
        ("ddpm", 1000.0, -1.0, list(range(1000)), 499.0),
    ],
    ids=["sit", "dit"],
)
def test_each_start_is_what_its_name_says(tiny, path, scale, offset, native, middle):
    net = tiny(path=path, time_scale=scale, time_offset=offset)
    truth = {
        "zero": torch.zeros(32, dtype=torch.float64),
        "mean": embedding(net, native).mean(0),
        "middle": embedding(net, [middle])[0],
    }
    for how, expected in truth.items():
        assert_close(initial_null(net, how).double(), expected, rtol=1e-3, atol=1e-3)
        add_null(net, how)
        assert torch.equal(net.t_embedder.null, initial_null(net, how))
    assert math.dist(truth["mean"], truth["middle"]) > 0.05


def test_with_the_middle_start_no_level_means_the_middle_level(tiny):
    net, (x, _, y) = tiny(), inputs()
    add_null(net, "middle")
    assert_close(dropped(net, x, torch.rand(3), y), net(x, torch.full((3,), 0.5), y))


def test_an_unknown_start_is_refused(tiny):
    with pytest.raises(
        ValueError, match=r"unknown start 'median' .*: choose one of \['mean', 'middle', 'zero'\]"
    ):
        add_null(tiny(), "median")


# ---- the twin


@pytest.mark.parametrize(
    "layers, own",
    [
        ((), {NULL}),
        (("final_layer.linear",), {NULL, "final_layer.linear.weight", "final_layer.linear.bias"}),
        (
            ("blocks.0.adaLN_modulation", "t_embedder"),
            {
                NULL,
                "blocks.0.adaLN_modulation.1.weight",
                "blocks.0.adaLN_modulation.1.bias",
                *(f"t_embedder.mlp.{k}.{kind}" for k in (0, 2) for kind in ("weight", "bias")),
            },
        ),
    ],
    ids=["null", "linear", "modulation"],
)
def test_a_twin_copies_what_it_trains_and_shares_the_rest(tiny, layers, own):
    net = tiny(depth=2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    twin = separate_branch(net, layers)
    mine, theirs = dict(net.named_parameters()), dict(twin.named_parameters())
    assert list(mine) == list(theirs) and twin.config == net.config
    for name, parameter in theirs.items():
        assert (
            (parameter.data_ptr() != mine[name].data_ptr())
            == (name in own)
            == parameter.requires_grad
        ), name
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("layers", [(), ("final_layer", "blocks")], ids=["null", "layers"])
def test_training_the_twin_leaves_the_network_bit_for_bit_as_it_was(tiny, layers):
    net, (x, t, y) = tiny(depth=2), inputs()
    before, said = {key: value.clone() for key, value in net.state_dict().items()}, net(x, t, y)
    unconditional = dropped(net, x, t, y)
    twin = trained(net, layers)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(net(x, t, y), said) and torch.equal(dropped(net, x, t, y), unconditional)
    assert (dropped(twin, x, t, y) - unconditional).abs().max() > 0.01
    assert torch.equal(twin(x, t, y), said) == (layers == ())


def test_the_twin_is_the_negative_of_guidance(tiny):
    net, (x, _, y) = tiny(), inputs()
    twin, t = trained(net, ("final_layer",)), torch.full((3,), 0.4)
    guided = GuidedField(net, y, [noise_awareness(1.5, net=twin)])(x, 0.4)
    said = net(x, t, y)
    assert_close(guided, said + 1.5 * (said - dropped(twin, x, t, y)))


def test_unknown_layers_are_named_with_those_that_exist(tiny):
    with pytest.raises(
        ValueError,
        match=r"no layers blocks\.7, head in .* of 2 blocks .*blocks\.K\.attn, .*final_layer",
    ):
        separate_branch(tiny(depth=2), ["head", "final_layer", "blocks.7"])
    with pytest.raises(ValueError, match="no layers final"):
        separate_branch(tiny(), ["final"])  # half a name is no name


# ---- its file


def test_a_twin_comes_back_bit_for_bit_from_a_file_of_its_own_tensors_alone(tmp_path, tiny):
    net, (x, t, y) = tiny(), inputs()
    twin, path = trained(net, ("final_layer",)), tmp_path / "null.safetensors"
    save_null(path, twin, SHA, layers="final_layer")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {NULL} | {
            name for name, _ in net.named_parameters() if name.startswith("final_layer.")
        }
        assert json.loads(file.metadata()["nag"]) == {"base_sha256": SHA, "layers": "final_layer"}
        assert all(file.get_tensor(key).dtype == torch.float32 for key in file.keys())
    again = load_null(path, net, SHA)
    assert torch.equal(dropped(again, x, t, y), dropped(twin, x, t, y)) and not again.training
    assert again.blocks[0].attn.qkv.weight.data_ptr() == net.blocks[0].attn.qkv.weight.data_ptr()
    save_null(tmp_path / "again.safetensors", again, SHA, layers="final_layer")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_null_condition_of_another_network_is_refused(tmp_path, tiny):
    path = tmp_path / "null.safetensors"
    save_null(path, separate_branch(tiny()), SHA)
    load_null(path, tiny())
    with pytest.raises(
        ValueError,
        match=rf"null\.safetensors belongs to the network of SHA-256 {SHA}, not to b+: train",
    ):
        load_null(path, tiny(), "b" * 64)
    with pytest.raises(
        ValueError,
        match=r"does not fit this network \(t_embedder\.null\): it was made for another shape",
    ):
        load_null(path, tiny(width=64), SHA)
    save_null(path, separate_branch(tiny(depth=2), ["blocks.1"]), SHA)
    with pytest.raises(
        ValueError, match=r"does not fit this network \(blocks\.1\.adaLN_modulation\.1\.bias"
    ):
        load_null(path, tiny(depth=1), SHA)


def test_a_file_that_holds_no_null_condition_is_refused(tmp_path, tiny):
    checkpoint.save(tmp_path / "whole.safetensors", tiny())
    with pytest.raises(
        ValueError, match=r"whole\.safetensors is no null condition written by save_null"
    ):
        load_null(tmp_path / "whole.safetensors", tiny())
    with pytest.raises(ValueError, match="no trainable tensor to save"):
        save_null(tmp_path / "none.safetensors", tiny().requires_grad_(False), SHA)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_null(tmp_path / "none.safetensors", tiny())
