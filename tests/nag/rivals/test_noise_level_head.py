"""The head of noise level correction: its training target, what it learns, and that its denoiser
stays as it is.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nag.guidance import GuidedField
from nag.interpolant import add_noise
from nag.rivals.corrections import STYLES, corrected, noise_level_correction
from nag.rivals.noise_level_head import LevelHead, level_loss
from nag.samplers.one_step import ddim
from nag.support.rng import generator
from nag.train import TrainConfig, fit

pytestmark = pytest.mark.usefixtures("on_cpu")
SIZE = 8


def images(count, spread=0.1):
    return spread * torch.randn(count, 1, SIZE, SIZE, generator=generator(1))


def inputs(count):
    return torch.randn(count, 1, SIZE, SIZE), torch.rand(count), torch.arange(count) % 3


def copied(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_a_new_head_corrects_nothing(tiny):
    x, t, y = inputs(5)
    r = LevelHead(tiny())(x, t, y)
    assert r.shape == (5,) and r.tolist() == [0.0] * 5


def test_the_denoiser_is_no_part_of_the_head(tiny):
    net = tiny()
    head = LevelHead(net, hidden=16)
    own = {id(p) for p in head.parameters()}
    assert own and not own & {id(p) for p in net.parameters()}
    assert sum(v.numel() for v in head.state_dict().values()) == sum(
        p.numel() for p in head.parameters()
    )
    head.double()
    assert net.pos_embed.dtype == torch.float64  # it moves with the head


def test_the_features_are_the_tokens_of_the_first_blocks(tiny):
    net = tiny(depth=3, time_scale=1000.0, time_offset=-1.0)
    seen = []
    net.blocks[1].register_forward_hook(lambda module, args, out: seen.append((out, args[1])))
    x, t, y = inputs(4)
    with torch.no_grad():
        net(x, t, y)
    tokens, c = LevelHead(net, depth=2).features(x, t, y)
    assert_close(tokens, seen[0][0])
    assert_close(c, seen[0][1])


def test_one_time_for_all_is_the_same_as_one_each(tiny):
    x, _, y = inputs(4)
    head = LevelHead(tiny())
    nn.init.normal_(head.head[-1].weight)
    together = head(x, 0.3, y)
    assert torch.equal(together, head(x, torch.full((4,), 0.3), y)) and together.std() > 0
    assert_close(together[1:2], head(x[1:2], 0.3, y[1:2]))


def test_autocast_does_not_coarsen_the_head(tiny):
    x, t, y = inputs(4)
    head = LevelHead(tiny())
    nn.init.normal_(head.head[-1].weight)
    with torch.autocast("cpu", torch.bfloat16):
        inside = head(x, t, y)
    assert torch.equal(inside, head(x, t, y))


@pytest.mark.parametrize("path, prediction", [("linear", "v"), ("ddpm", "eps")])
def test_a_head_corrects_the_sampling_of_its_denoiser(tiny, path, prediction):
    net = tiny(path=path, prediction=prediction)
    x, _, y = inputs(4)
    head, times = LevelHead(net), torch.linspace(0.8, 0, 5, dtype=torch.float64)
    *_, (plain, _) = ddim(GuidedField(net, y), x, times, path=path)
    for bias in (0.0, 0.1):
        nn.init.constant_(head.head[-1].bias, bias)
        for style in STYLES:
            field = GuidedField(net, y)
            adjust = noise_level_correction(lambda x, t: head(x, t, y), style, path)
            *_, (end, s) = corrected(field, x, times, path=path, adjust=adjust)
            assert s == 0 and field.nfe == 4 and not end.requires_grad
            difference = ((end - plain).norm() / plain.norm()).item()
            assert (
                difference < 1e-4 if bias == 0 else difference > 1e-2
            )  # a head that sees no excess leaves plain DDIM


class Oracle(nn.Module):
    """Reads the size of the noise off states of black images: ||x / sigma_t|| / sqrt(n)."""

    def __init__(self, sigma):
        super().__init__()
        self.zero, self.sigma = nn.Parameter(torch.zeros(())), sigma

    def forward(self, x, t, y):
        self.asked = SimpleNamespace(
            t=t, y=y, size=(x / self.sigma(t).view(-1, 1, 1, 1)).flatten(1).norm(dim=1) / SIZE
        )
        return self.asked.size - 1 + self.zero


@pytest.mark.parametrize(
    "path, sigma",
    [
        ("linear", lambda t: t),
        (
            "ddpm",
            lambda t: (
                (
                    1
                    - torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0)[
                        (1000 * t).round().long() - 1
                    ]
                )
                .sqrt()
                .float()
            ),
        ),
    ],
)
def test_the_target_is_the_size_of_the_noise(path, sigma):
    count = 4000
    head, labels = Oracle(sigma), torch.arange(count) % 3
    loss = level_loss(torch.zeros(count, 1, SIZE, SIZE), labels, path)
    assert loss(head, torch.arange(count), generator(2)) < 1e-8
    assert torch.equal(head.asked.y, labels)
    # size = (1 + eta) chi_n / sqrt(n): mean about 1 - 1/4n and variance 1/12 + 13/12 / 2n, from 0.5
    # to 1.5 but for chi's spread
    mean, variance = head.asked.size.mean().item(), head.asked.size.var().item()
    assert mean == pytest.approx(1 - 1 / (4 * SIZE**2), abs=4 * math.sqrt(variance / count))
    assert variance == pytest.approx(1 / 12 + 13 / 12 / (2 * SIZE**2), rel=0.06)
    assert head.asked.size.min() > 0.3 and head.asked.size.max() < 2.0
    assert head.asked.t.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / count))
    with torch.no_grad():
        head.zero += 0.1
    assert loss(head, torch.arange(count), generator(2)).item() == pytest.approx(0.01, rel=1e-3)


def test_the_loss_draws_only_from_the_generator(tiny):
    loss, head, index = (
        level_loss(images(8), torch.arange(8) % 3),
        LevelHead(tiny()),
        torch.arange(8),
    )
    before = torch.get_rng_state()
    first = loss(head, index, generator(5))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, loss(head, index, generator(5))) and not torch.equal(
        first, loss(head, index, generator(6))
    )


def test_the_head_learns_to_see_a_planted_excess(tmp_path, tiny):
    """20 % too much noise, 20 % too little and none, on Gaussian images at four noise levels of the
    straight path.
    """
    net = tiny(awake=False, patch=2, time_scale=10.0)
    before = copied(net)
    torch.manual_seed(0)
    head = LevelHead(net, hidden=32)
    settings = TrainConfig(
        images_seen=500 * 64,
        batch_size=64,
        lr=1e-2,
        warmup_steps=20,
        cooldown=0.5,
        ema_decay=0.98,
        precision="fp32",
        compile=False,
    )
    data = images(4000)
    list(fit(head, level_loss(data, torch.arange(4000) % 3), 4000, settings, tmp_path / "head.pt"))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    x0, eps = 0.1 * torch.randn(400, 1, SIZE, SIZE), torch.randn(400, 1, SIZE, SIZE)
    for t in (0.4, 0.6, 0.8, 0.95):
        for planted in (-0.2, 0.0, 0.2):
            with torch.no_grad():
                r = head(add_noise(x0, (1 + planted) * eps, t), t, torch.arange(400) % 3)
            assert r.mean().item() == pytest.approx(planted, abs=0.05)
