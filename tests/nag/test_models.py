"""The backbone against the official layout, the noise-condition dropout, and each rewritten part
against a library's.
"""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.testing import assert_close

from nag.models import Attention, DiT, ModelConfig, PatchEmbed, gelu, sincos_2d
from nag.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def inputs():
    return (
        torch.randn(4, 1, 8, 8),
        torch.tensor([0.1, 0.4, 0.7, 1.0]),
        torch.tensor([0, 1, 2, 3]),
    )  # 3 is the null class


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_keys_and_shapes_are_the_official_ones_plus_the_null_condition():
    official = torch.load(GOLDEN / "sit_tiny.pt", weights_only=True)
    ours = DiT(
        ModelConfig(input_size=8, patch=2, channels=4, width=48, depth=2, heads=4, learn_sigma=True)
    ).state_dict()
    assert ours.pop("t_embedder.null").shape == (48,)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in official.items()}


def test_position_table_is_the_official_one():
    official = torch.load(GOLDEN / "sit_tiny.pt", weights_only=True)["pos_embed"]
    assert_close(sincos_2d(48, 4)[None], official, rtol=0, atol=1e-6)


def test_the_default_has_4_18_million_parameters():
    d = 192
    block = (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d) + (6 * d * d + 6 * d)
    ends = (16 * d + d) + (256 * d + d + d * d + d) + 11 * d + (16 * d + 16) + (2 * d * d + 2 * d)
    assert parameters(DiT(ModelConfig())) == 6 * block + ends + 49 * d + d == 4_177_168


@pytest.mark.parametrize(
    "depth, width, heads, millions",
    [(12, 384, 6, 33), (12, 768, 12, 130), (24, 1024, 16, 458), (28, 1152, 16, 675)],
)
def test_published_sizes(depth, width, heads, millions):
    with torch.device("meta"):
        net = DiT(
            ModelConfig(
                input_size=32,
                patch=2,
                channels=4,
                width=width,
                depth=depth,
                heads=heads,
                classes=1000,
                learn_sigma=True,
            )
        )
    assert parameters(net) / 1e6 == pytest.approx(
        millions, abs=0.9
    )  # DiT and SiT papers, S/2 to XL/2


def test_with_dropped_noise_condition_the_time_does_not_matter(tiny, inputs):
    net, (x, t, y) = tiny(), inputs
    drop = torch.ones(4, dtype=torch.bool)
    assert torch.equal(net(x, t, y, drop), net(x, 1 - t, y, drop))
    assert not torch.allclose(net(x, t, y, ~drop), net(x, 1 - t, y, ~drop), atol=1e-2)


def test_without_dropping_the_null_condition_does_not_matter(tiny, inputs):
    net, (x, t, y) = tiny(), inputs
    keep, drop = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    before, dropped = net(x, t, y, keep), net(x, t, y, drop)
    nn.init.constant_(net.t_embedder.null, 3.0)
    assert torch.equal(net(x, t, y, keep), before) and torch.equal(net(x, t, y), before)
    assert not torch.allclose(net(x, t, y, drop), dropped, atol=1e-2)


def test_the_noise_condition_is_dropped_sample_by_sample(tiny, inputs):
    net, (x, t, y) = tiny(), inputs
    drop = torch.tensor([True, False, False, True])
    known, unknown = net(x, t, y), net(x, t, y, torch.ones(4, dtype=torch.bool))
    assert_close(net(x, t, y, drop), torch.where(drop[:, None, None, None], unknown, known))
    assert not torch.allclose(known, unknown, atol=1e-2)


@pytest.mark.parametrize("tokens", [16, 256, 257])  # written out up to 256, the fused kernel beyond
def test_attention_is_pytorchs(tokens):
    ours, theirs = Attention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = 3 * torch.randn(2, tokens, 32)
    assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-5)


def test_gelu_as_it_is_compiled_is_pytorchs(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = torch.linspace(-12, 12, 1001, dtype=torch.float64)
    assert_close(gelu(x), nn.functional.gelu(x, approximate="tanh"), rtol=1e-12, atol=1e-14)


def test_unpatchify_inverts_patching(tiny):
    net = tiny(channels=2, patch=2, learn_sigma=False)
    x = torch.arange(3 * 2 * 8 * 8.0).view(3, 2, 8, 8)
    patches = nn.functional.unfold(
        x, kernel_size=2, stride=2
    )  # (B, C p p, N), channels first in a patch
    tokens = (
        patches.view(3, 2, 4, 16).permute(0, 3, 2, 1).reshape(3, 16, 8)
    )  # channels last, as DiT's linear layer
    assert torch.equal(net.unpatchify(tokens), x)


def test_tokens_come_in_the_order_that_unpatchify_expects():
    embed = PatchEmbed(1, 4, 6)
    x = torch.randn(1, 1, 8, 12)
    weight = embed.proj.weight.flatten(1)
    truth = (
        nn.functional.unfold(x, kernel_size=4, stride=4).transpose(1, 2) @ weight.T
        + embed.proj.bias
    )
    assert_close(embed(x), truth, rtol=1e-4, atol=1e-5)


def test_a_fresh_network_is_silent(tiny, inputs):
    assert torch.equal(tiny(awake=False)(*inputs), torch.zeros(4, 1, 8, 8))  # adaLN-zero


def test_variance_channels_are_returned_only_on_request(tiny, inputs):
    net = tiny(learn_sigma=True)
    full = net(*inputs, full=True)
    assert full.shape == (4, 2, 8, 8) and torch.equal(net(*inputs), full[:, :1])


def test_native_time_and_sign(tiny, inputs):
    """A network that counts 1 = data and predicts the opposite velocity is the same function,
    converted.
    """
    x, t, y = inputs
    ours, theirs = tiny(), tiny(time_scale=-1.0, time_offset=1.0, sign=-1.0)
    theirs.load_state_dict(ours.state_dict())
    assert_close(theirs(x, 1 - t, y), -ours(x, t, y), rtol=1e-4, atol=1e-5)


def test_an_unknown_setting_is_named():
    with pytest.raises(ValidationError, match="widht"):
        ModelConfig(widht=3)
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().width = 3
