"""The noise-level estimator against closed-form posteriors, quadrature and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from nag import estimator
from nag.estimator import (
    T_MIN,
    NoiseEstimator,
    calibration,
    estimator_loss,
    log_prob_gradient,
    mixture,
    moments,
    posterior,
    posterior_mean,
)
from nag.interpolant import add_noise
from nag.support.rng import generator
from nag.train import TrainConfig, fit

GRID = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]


@pytest.fixture
def mixtures():
    """Five random three-part mixtures in float64, standard deviations of z from 0.02 to 2."""
    raw = torch.randn(5, 3, 3, generator=generator(1), dtype=torch.float64)
    raw[..., 2] = torch.linspace(math.log(0.02), math.log(2), 15, dtype=torch.float64).view(5, 3)
    return mixture(raw)


def random_net(width: int = 4, channels: int = 1) -> NoiseEstimator:
    torch.manual_seed(0)
    return NoiseEstimator(channels, width)


def states(
    batch: int, channels: int = 1, side: int = 8, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.randn(batch, channels, side, side, generator=generator(2), dtype=dtype)


def exact_moments(x: torch.Tensor, s: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of p(t | x) for pixels x_0 ~ N(0, s^2) on the linear path and t uniform in
    [T_MIN, 1 - T_MIN].
    """
    t = torch.linspace(T_MIN, 1 - T_MIN, 20_001, dtype=torch.float64)
    variance = (1 - t) ** 2 * s**2 + t**2
    square = x.double().flatten(1).square().sum(1, keepdim=True)
    p = (-0.5 * x[0].numel() * variance.log() - square / (2 * variance)).softmax(1)
    mean = p @ t
    return mean, (p @ t**2 - mean**2).sqrt()


def test_density_integrates_to_one(mixtures):
    density = mixtures.log_prob(GRID[:, None]).exp()
    assert torch.trapezoid(density, GRID, dim=0).numpy() == pytest.approx(1, abs=1e-4)


def test_cdf_is_the_integral_of_the_density(mixtures):
    density = mixtures.log_prob(GRID[:, None]).exp()
    integral = torch.cumulative_trapezoid(density, GRID, dim=0)
    assert torch.allclose(mixtures.cdf(GRID[1:, None]), integral, atol=1e-4)


def test_moments_match_the_grid(mixtures):
    density = mixtures.log_prob(GRID[:, None]).exp()
    mean = torch.trapezoid(GRID[:, None] * density, GRID, dim=0)
    std = torch.trapezoid((GRID[:, None] - mean) ** 2 * density, GRID, dim=0).sqrt()
    got = moments(mixtures)
    assert torch.allclose(got[0], mean, atol=1e-4) and torch.allclose(got[1], std, atol=1e-4)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_gradient_matches_finite_differences(t):
    net, x, h = random_net().double(), states(2, dtype=torch.float64), 1e-5
    gradient = log_prob_gradient(net, x, t)
    assert gradient.shape == x.shape and not gradient.requires_grad
    for seed in range(3):
        direction = torch.randn(x.shape, generator=generator(3, seed), dtype=torch.float64)
        with torch.no_grad():
            up, down = (
                posterior(net, x + sign * h * direction).log_prob(torch.tensor(t).double())
                for sign in (1, -1)
            )
        along = (gradient * direction).sum((1, 2, 3))
        assert torch.allclose(along, (up - down) / (2 * h), rtol=1e-5, atol=1e-7)


def test_gradient_takes_one_t_per_state_and_works_in_inference_mode():
    net = random_net()
    with torch.inference_mode():
        x, t = states(3), torch.tensor([0.1, 0.5, 0.8])
        together = log_prob_gradient(net, x, t)
        alone = torch.cat([log_prob_gradient(net, x[i : i + 1], float(t[i])) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in net.parameters())


def test_a_state_does_not_see_its_batch():
    net, x = random_net(), states(6)
    alone = torch.cat([net(x[i : i + 1]) for i in range(6)])
    assert torch.allclose(net(x), alone, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)


def test_autocast_does_not_coarsen_the_instrument():
    net, x = random_net(), states(4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = net(x)
    assert inside.dtype == torch.float32 and torch.equal(inside, net(x))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (4, 32)])
def test_shapes(channels, side):
    net = random_net(channels=channels)
    x = states(2, channels, side)
    assert net(x).shape == (2, 3, 3) and posterior_mean(net, x).shape == (2,)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8, 8)])
def test_wrong_shape_is_explained(shape):
    with pytest.raises(ValueError, match="built for 1 channels and got a state of shape"):
        random_net()(torch.zeros(shape))


def test_pit_of_own_samples_is_uniform():
    net, x = random_net(), states(1000)
    torch.manual_seed(4)
    with torch.no_grad():
        t = posterior(net, x).sample()
    c = calibration(net, x, t, bins=4)
    assert stats.kstest(c["pit"], "uniform").pvalue > 0.01
    assert np.abs(c["coverage"] - c["level"]).max() < 3 * math.sqrt(0.25 / 1000)
    assert (
        np.abs(c["bias"] / c["bias_se"]).max() > 3
    )  # t given x is calibrated, x given t is not: the net is untrained


class Reader(nn.Module):
    """A net that reads t off the state's mean and adds `offset`, almost sure of itself."""

    def __init__(self, offset: float):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, x):
        z = (x.mean((1, 2, 3)) + self.offset).logit()
        return torch.stack([torch.zeros_like(z), z, torch.full_like(z, -5.0)], -1)[:, None]


def test_calibration_finds_a_known_bias():
    t = torch.linspace(0.1, 0.9, 300)
    x = t[:, None, None, None].expand(-1, 1, 4, 4)
    shifted, honest = (
        calibration(Reader(offset), x, t, bins=[0, 0.3, 0.6, 1.0], batch=64)
        for offset in (0.02, 0.0)
    )
    assert shifted["bias"] == pytest.approx(0.02, abs=1e-4) and shifted["pit"].max() < 0.01
    assert honest["bias"] == pytest.approx(0, abs=1e-5) and honest["pit"] == pytest.approx(
        0.5, abs=0.01
    )
    assert honest["count"].sum() == 300 and len(honest["std"]) == 3
    middle = honest["t"]
    assert honest["std"] == pytest.approx(
        math.exp(-5) * middle * (1 - middle), rel=0.1
    )  # delta method


def test_calibration_needs_one_t_per_state():
    with pytest.raises(ValueError, match="one t per state"):
        calibration(random_net(), states(3), torch.full((2,), 0.5))


def test_loss_draws_only_from_the_generator():
    loss, net, index = estimator_loss(states(8).clamp(-1, 1)), random_net(), torch.arange(8)
    before = torch.get_rng_state()
    first = loss(net, index, generator(5))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, loss(net, index, generator(5))) and not torch.equal(
        first, loss(net, index, generator(6))
    )


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_loss_is_finite_at_both_ends_of_t(monkeypatch, extreme):
    monkeypatch.setattr(estimator.torch, "rand", lambda n, generator: torch.full((n,), extreme))
    value = estimator_loss(states(8))(random_net(), torch.arange(8), generator(5))
    assert torch.isfinite(value)


def test_loss_is_the_likelihood_of_the_forward_state():
    x0, net, gen = states(8), random_net(), generator(5)
    strata = (torch.arange(8) + torch.rand(8, generator=gen)) / 8
    t = T_MIN + (1 - 2 * T_MIN) * strata
    x_t = add_noise(x0, torch.randn(x0.shape, generator=gen), t, "cosine")
    want = -posterior(net, x_t).log_prob(t).mean()
    assert torch.allclose(estimator_loss(x0, "cosine")(net, torch.arange(8), generator(5)), want)


@pytest.mark.slow
@pytest.mark.parametrize("s", [0.0, 0.1])
def test_trained_posterior_is_the_exact_one(tmp_path, s):
    """Pixels N(0, s^2): posterior mean within half an exact posterior std (rms), and its own std
    right within 30 %.
    """
    torch.manual_seed(0)
    net = NoiseEstimator(width=8)
    config = TrainConfig(
        images_seen=80_000,
        batch_size=128,
        lr=5e-3,
        warmup_steps=50,
        cooldown=0.5,
        ema_decay=0.99,
        precision="fp32",
        compile=False,
    )
    images = s * torch.randn(20_000, 1, 8, 8, generator=generator(6))
    list(fit(net, estimator_loss(images), len(images), config, tmp_path / "net.pt"))
    t = torch.linspace(0.03, 0.9, 500)
    x0, eps = (
        s * torch.randn(500, 1, 8, 8, generator=generator(7)),
        torch.randn(500, 1, 8, 8, generator=generator(8)),
    )
    x_t = add_noise(x0, eps, t)
    exact_mean, exact_std = exact_moments(x_t, s)
    with torch.no_grad():
        mean, std = moments(posterior(net, x_t))
    assert ((mean - exact_mean) / exact_std).square().mean().sqrt() < 0.5
    assert (std / exact_std).log().abs().mean() < 0.3
    assert np.abs(np.sort(calibration(net, x_t, t)["pit"]) - np.linspace(0, 1, 500)).max() < 0.15
