"""Noise level correction: the step against the official loop; the head's training target, what it
learns, and that its denoiser stays as it is.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from rival_fields import EVEN, ONE, PATHS, float64, gaussian, noise_of, states, wavy
from torch import nn
from torch.testing import assert_close

from nag.guidance import GuidedField
from nag.interpolant import add_noise, coefficients
from nag.rivals.corrected_ddim import Step, corrected_ddim
from nag.rivals.noise_level_correction import (
    STYLES,
    LevelHead,
    first_tokens,
    level_loss,
    noise_excess,
    noise_level_correction,
)
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
    r = noise_excess(LevelHead(32), tiny(), x, t, y)
    assert r.shape == (5,) and r.tolist() == [0.0] * 5


def test_the_features_are_the_tokens_of_the_first_blocks(tiny):
    net = tiny(depth=3, time_scale=1000.0, time_offset=-1.0)
    seen = []
    net.blocks[1].register_forward_hook(lambda module, args, out: seen.append((out, args[1])))
    x, t, y = inputs(4)
    with torch.no_grad():
        net(x, t, y)
    tokens, c = first_tokens(net, 2, x, t, y)
    assert_close(tokens, seen[0][0])
    assert_close(c, seen[0][1])


def test_one_time_for_all_is_the_same_as_one_each(tiny):
    x, _, y = inputs(4)
    net, head = tiny(), LevelHead(32)
    nn.init.normal_(head.head[-1].weight)
    together = noise_excess(head, net, x, 0.3, y)
    assert torch.equal(together, noise_excess(head, net, x, torch.full((4,), 0.3), y))
    assert together.std() > 0
    assert_close(together[1:2], noise_excess(head, net, x[1:2], 0.3, y[1:2]))


def test_autocast_does_not_coarsen_the_head(tiny):
    x, t, y = inputs(4)
    net, head = tiny(), LevelHead(32)
    nn.init.normal_(head.head[-1].weight)
    with torch.autocast("cpu", torch.bfloat16):
        inside = noise_excess(head, net, x, t, y)
    assert torch.equal(inside, noise_excess(head, net, x, t, y))


@pytest.mark.parametrize("path, prediction", [("linear", "v"), ("ddpm", "eps")])
def test_a_head_corrects_the_sampling_of_its_denoiser(tiny, path, prediction):
    net = tiny(path=path, prediction=prediction)
    x, _, y = inputs(4)
    head, times = LevelHead(32), torch.linspace(0.8, 0, 5, dtype=torch.float64)
    *_, (plain, _) = ddim(GuidedField(net, y), x, times, path=path)
    for bias in (0.0, 0.1):
        nn.init.constant_(head.head[-1].bias, bias)
        for style in STYLES:
            field = GuidedField(net, y)
            adjust = noise_level_correction(
                lambda x, t: noise_excess(head, net, x, t, y), style, path
            )
            *_, (end, s) = corrected_ddim(field, x, times, path=path, adjust=adjust)
            assert s == 0 and field.nfe == 4 and not end.requires_grad
            difference = ((end - plain).norm() / plain.norm()).item()
            assert (
                difference < 1e-4 if bias == 0 else difference > 1e-2
            )  # a head that sees no excess leaves plain DDIM


class Unchanged:
    """A denoiser of no blocks that hands on its state and time, and remembers its labels."""

    blocks, config = (), SimpleNamespace(classes=10)

    def embed(self, x, t, y):
        self.labels = y
        return x, t


class Oracle(nn.Module):
    """Reads the size of the noise off states of black images: ||x / sigma_t|| / sqrt(n)."""

    depth = 0

    def __init__(self, sigma):
        super().__init__()
        self.zero, self.sigma = nn.Parameter(torch.zeros(())), sigma

    def forward(self, x, t):
        self.size = (x / self.sigma(t).view(-1, 1, 1, 1)).flatten(1).norm(dim=1) / SIZE
        self.times = t
        return self.size - 1 + self.zero


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
    head, labels, net = Oracle(sigma), torch.arange(count) % 3, Unchanged()
    loss = level_loss(net, torch.zeros(count, 1, SIZE, SIZE), labels, path)
    assert loss(head, torch.arange(count), generator(2)) < 1e-8
    assert torch.equal(net.labels, labels)
    # size = (1 + eta) chi_n / sqrt(n): mean about 1 - 1/4n and variance 1/12 + 13/12 / 2n, from 0.5
    # to 1.5 but for chi's spread
    mean, variance = head.size.mean().item(), head.size.var().item()
    assert mean == pytest.approx(1 - 1 / (4 * SIZE**2), abs=4 * math.sqrt(variance / count))
    assert variance == pytest.approx(1 / 12 + 13 / 12 / (2 * SIZE**2), rel=0.06)
    assert head.size.min() > 0.3 and head.size.max() < 2.0
    assert head.times.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / count))
    with torch.no_grad():
        head.zero += 0.1
    assert loss(head, torch.arange(count), generator(2)).item() == pytest.approx(0.01, rel=1e-3)


def test_the_loss_draws_only_from_the_generator(tiny):
    loss, head, index = (
        level_loss(tiny(), images(8), torch.arange(8) % 3),
        LevelHead(32),
        torch.arange(8),
    )
    before = torch.get_rng_state()
    first = loss(head, index, generator(5))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, loss(head, index, generator(5))) and not torch.equal(
        first, loss(head, index, generator(6))
    )


@pytest.mark.slow
def test_the_head_learns_to_see_a_planted_excess(tmp_path, tiny):
    """20 % too much noise, 20 % too little and none, on Gaussian images at four noise levels of the
    straight path.
    """
    net = tiny(awake=False, patch=2, time_scale=10.0)
    before = copied(net)
    torch.manual_seed(0)
    head = LevelHead(32, hidden=32)
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
    loss = level_loss(net, data, torch.arange(4000) % 3)
    list(fit(head, loss, 4000, settings, tmp_path / "head.pt"))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    x0, eps = 0.1 * torch.randn(400, 1, SIZE, SIZE), torch.randn(400, 1, SIZE, SIZE)
    for t in (0.4, 0.6, 0.8, 0.95):
        for planted in (-0.2, 0.0, 0.2):
            with torch.no_grad():
                r = noise_excess(
                    head, net, add_noise(x0, (1 + planted) * eps, t), t, torch.arange(400) % 3
                )
            assert r.mean().item() == pytest.approx(planted, abs=0.05)


# ---- the step


def known_excess(z, rho):
    """A known r(x/alpha, sigma/alpha), other for each sample."""
    return 0.05 + 0.1 * torch.tanh(z.flatten(1).mean(1)) * rho / (1 + rho)


def nlc(z, rhos, style):
    """The official denoising loop in variance-exploding terms: z = x_0 + rho eps."""
    trajectory = [z]
    for rho, after in zip(rhos[:-1], rhos[1:], strict=True):
        level = rho * (1 + known_excess(z, rho))[:, None]
        goal = level * after / rho if style == "pred" else after
        eps = noise_of(z, level)
        z = z - level * eps + goal * eps
        trajectory.append(z)
    return trajectory


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("style", STYLES)
def test_noise_level_correction_is_the_variance_exploding_loop(path, style):
    times = torch.tensor([0.95, 0.7, 0.5, 0.25, 0.05, 0.0], dtype=torch.float64)
    scales = [coefficients(path, t, ONE) for t in times[:-1]]
    alphas = [c.alpha.item() for c in scales] + [1.0]
    rhos = [(c.sigma / c.alpha).item() for c in scales] + [0.0]
    x = states(5, 4)
    truth = nlc(x / alphas[0], rhos, style)

    def head(x, t):
        c = coefficients(path, t, x)
        return known_excess(x / c.alpha, (c.sigma / c.alpha).item())

    found = [
        s
        for s, _ in corrected_ddim(
            gaussian(path), x, times, path=path, adjust=noise_level_correction(head, style, path)
        )
    ]
    for a, z, alpha in zip(found, truth, alphas, strict=True):
        assert_close(a / alpha, z, rtol=1e-8, atol=1e-8)


def test_the_styles_differ_only_in_where_they_step_to():
    pred, partial_ = (
        noise_level_correction(lambda x, t: float64([0.2, -0.1]), style)(states(2, 3), 0.5, 0.25)
        for style in STYLES
    )
    assert_close(
        pred.now, float64([1.2 / 2.2, 0.9 / 1.9]), rtol=1e-12, atol=1e-12
    )  # rho = t / (1 - t)
    assert_close(pred.now, partial_.now)
    assert pred.seen is None
    assert_close(pred.then, float64([0.4 / 1.4, 0.3 / 1.3]), rtol=1e-12, atol=1e-12)
    assert partial_.then == 0.25 and partial_.scale == 1.0


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_pure_noise_is_not_corrected(path):
    x = torch.randn(2, 3)
    step = noise_level_correction(lambda x, t: torch.ones(len(x)), "pred", path)(x, 1.0, 0.9)
    assert step.x is x and step == Step(x, 1.0, 0.9)


def test_no_gradient_is_kept_through_the_trajectory():
    weight = torch.nn.Parameter(torch.zeros(()))
    adjust = noise_level_correction(lambda x, t: weight * x.mean(1))
    *_, (x, _) = corrected_ddim(wavy, states(2, 3), EVEN, adjust=adjust)
    assert not x.requires_grad


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="unknown style 'base'"):
        noise_level_correction(lambda x, t: x, "base")
