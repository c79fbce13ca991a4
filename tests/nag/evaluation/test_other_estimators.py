"""Second opinions on the noise level: analytic estimates on states of known noise, and the plain
network.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from nag.estimator import estimator_loss, posterior_mean
from nag.evaluation import other_estimators
from nag.evaluation.other_estimators import (
    PlainEstimator,
    RegressedLevel,
    calibrated,
    energy_shift,
    energy_time,
    regression_loss,
    set_levels,
    sigma_time,
    solve_energy,
    wavelet_time,
)
from nag.interpolant import PATHS, add_noise
from nag.support.rng import generator
from nag.train import TrainConfig, fit

LATE = [0.02, 0.05, 0.1, 0.2]


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def flat_states(
    t: float, path: str, level: float = 0.8, images: int = 64, side: int = 64
) -> torch.Tensor:
    """Forward states of images that are `level` or -level everywhere: nothing but noise is in their
    details.
    """
    x0 = level * (1 - 2.0 * (torch.arange(images) % 2)).view(-1, 1, 1, 1).expand(-1, 1, side, side)
    return add_noise(x0, noise(images, 1, side, side), t, path)


def second_moment_energy(t, moment, path="linear"):
    c = PATHS[path](torch.as_tensor(t, dtype=torch.float64))
    return c.alpha**2 * moment + c.sigma**2


@pytest.mark.parametrize("path", sorted(PATHS))
def test_sigma_time_inverts_the_path(path):
    t = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    sigma = PATHS[path](t).sigma
    assert torch.allclose(PATHS[path](sigma_time(sigma, path)).sigma, sigma, atol=1e-9)
    early = (
        sigma < 0.999
    )  # later the variance-preserving paths are too flat to be inverted to many digits
    assert torch.allclose(sigma_time(sigma, path)[early], t[early], atol=1e-6)


@pytest.mark.parametrize("path", ["linear", "ddpm"])
@pytest.mark.parametrize("t", [*LATE, 0.4])
def test_wavelet_estimate_is_exact_on_flat_images(path, t):
    x = flat_states(t, path)
    sigma = PATHS[path](torch.tensor(t, dtype=torch.float64)).sigma.item()
    # The median of n |Normal| has the standard error 1 / (2 f(m) sqrt(n)), f the density of |z| at
    # the median m.
    m = stats.norm.ppf(0.75)
    error = 1 / (4 * stats.norm.pdf(m) * math.sqrt(32 * 32)) / m
    found = other_estimators.wavelet_sigma(x)
    assert found.shape == (64,) and (found / sigma).std().item() == pytest.approx(error, rel=0.3)
    assert found.mean().item() / sigma == pytest.approx(1, abs=4 * error / 8)
    assert sigma_time(found.mean(), path).item() == pytest.approx(t, rel=4 * error / 8 * 2)
    assert torch.equal(wavelet_time(x, path), sigma_time(found, path))


def test_wavelet_sigma_is_the_median_of_the_diagonal_filter():
    x = noise(3, 2, 9, 8)
    kernel = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2
    details = F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None], stride=2).view(3, -1)
    want = np.median(details.abs().numpy(), axis=1) / stats.norm.ppf(0.75)
    assert other_estimators.wavelet_sigma(x).numpy() == pytest.approx(want, rel=1e-5)


def test_wavelet_sees_no_edges_along_the_axes():
    x, edges = noise(4, 1, 8, 8), 3 * noise(4, 1, 8, 1, seed=2) + 5 * noise(4, 1, 1, 8, seed=3)
    assert torch.allclose(
        other_estimators.wavelet_sigma(x + edges), other_estimators.wavelet_sigma(x), atol=1e-5
    )


@pytest.mark.parametrize("shape", [(8, 8), (2, 1, 8, 1)])
def test_wavelet_explains_a_wrong_shape(shape):
    with pytest.raises(ValueError, match="diagonal details need"):
        wavelet_time(torch.zeros(shape))


@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.95])
def test_energy_is_solved_on_the_side_of_the_nominal_level(t):
    moment = 0.7
    value = (1 - t) ** 2 * moment + t**2
    roots = np.roots(
        [1 + moment, -2 * moment, moment - value]
    )  # of the quadratic that the linear path makes
    other = roots[np.abs(roots - t).argmax()]
    value = torch.tensor(value, dtype=torch.float64)
    assert solve_energy(value, moment, near=t).item() == pytest.approx(t, abs=1e-6)
    if 0 < other < 1:
        assert solve_energy(value, moment, near=float(other)).item() == pytest.approx(
            other, abs=1e-6
        )


@pytest.mark.parametrize("moment", [0.3, 2.0])
def test_energy_goes_one_way_on_a_variance_preserving_path(moment):
    t = torch.tensor([0.05, 0.3, 0.6], dtype=torch.float64)
    value = second_moment_energy(t, moment, "ddpm")
    assert torch.allclose(solve_energy(value, moment, "ddpm"), t, atol=1e-5)


def test_energy_that_no_level_has_is_not_a_number():
    least = 0.7 / 1.7  # of the linear path, at t = E / (1 + E)
    found = solve_energy(
        torch.tensor([least - 0.01, least + 0.01, 0.71]), torch.tensor(0.7), near=0.1
    )
    assert found.isnan().tolist() == [True, False, True]
    assert solve_energy(torch.tensor([0.71, 1.01]), 0.7, near=0.9).isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("path", "t"),
    [("linear", 0.05), ("linear", 0.2), ("linear", 0.8), ("ddpm", 0.1), ("ddpm", 0.4)],
)
def test_energy_estimate_is_exact_on_images_of_known_energy(path, t):
    found = energy_time(flat_states(t, path, level=0.8), 0.64, path, near=t)
    assert found.shape == (64,) and found.mean().item() == pytest.approx(
        t, abs=4 * found.std().item() / 8 + 1e-3
    )
    assert found.std() < 0.05


def test_set_levels_read_what_the_formula_says():
    times, moment = torch.tensor([0.8, 0.2, 0.1, 0.05, 0.0], dtype=torch.float64), 0.68
    exact = second_moment_energy(times, moment)
    for hold in (True, False):
        assert torch.allclose(set_levels(exact, times, hold_alpha=hold), times, atol=1e-6)
    error = 0.05 * (
        times > 0
    )  # Statement 1: an additive error of this standard deviation at the nominal alpha
    shifted = exact + error**2
    assert torch.allclose(set_levels(shifted, times), (times**2 + error**2).sqrt(), atol=1e-6)
    free = set_levels(shifted, times, hold_alpha=False)
    assert (
        free[0] > times[0] and (free[1:3] < times[1:3]).all()
    )  # energy rises with t early and falls late
    stack = set_levels(torch.stack([exact, shifted]), times)
    assert torch.equal(stack[1], set_levels(shifted, times))


def test_set_levels_need_the_last_state():
    with pytest.raises(ValueError, match="the last time is 0.04"):
        set_levels(torch.ones(2), torch.tensor([0.5, 0.04]))


@pytest.mark.parametrize("path", ["linear", "ddpm"])
def test_energy_shift_finds_a_known_one_and_none_where_there_is_none(path):
    late = {"linear": [0.2, 0.1], "ddpm": [0.07, 0.05]}[path]
    times, true = np.array([0.5, *late, 0.0]), 0.02
    seeds = iter(range(10, 20))

    def energies(offset: float) -> np.ndarray:
        x0, eps = (noise(600, 1, 16, 16, seed=next(seeds)) for _ in range(2))
        columns = [PATHS[path](torch.tensor(t)) for t in times]
        more = [PATHS[path](torch.tensor(t + offset * (t > 0))).sigma for t in times]
        return torch.stack(
            [
                other_estimators.energy(c.alpha * 0.8 * x0 + s * eps)
                for c, s in zip(columns, more, strict=True)
            ],
            1,
        ).numpy()

    control = energies(0.0)
    shifted, none = (
        energy_shift(energies(offset), control, times, path, resamples=200)
        for offset in (true, 0.0)
    )
    assert shifted["late"]["low"] < true < shifted["late"]["high"] and shifted["late"]["low"] > 0
    assert none["late"]["low"] < 0 < none["late"]["high"]
    assert shifted["draws"].shape == (200, 4) and shifted["delta"]["value"][-1] == pytest.approx(
        0, abs=1e-6
    )


def test_calibration_takes_a_known_bias_off():
    def crooked(x):
        return (
            0.1 + 0.5 * other_estimators.energy(x).sqrt() ** 1.5
        )  # of pure noise on the linear path: 0.1 + 0.5 t^1.5

    estimator = calibrated(crooked, torch.zeros(400, 1, 16, 16))
    for t in (0.1, 0.4, 0.7):
        found = estimator(t * noise(200, 1, 16, 16, seed=5))
        assert found.shape == (200,) and found.mean().item() == pytest.approx(t, abs=0.01)
    assert estimator(torch.zeros(1, 1, 16, 16)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (4, 32), (1, 5)])
def test_plain_network_shapes(channels, side):
    net = PlainEstimator(channels, width=8)
    x = noise(2, channels, side, side)
    assert net(x).shape == (2, 3, 3) and posterior_mean(net, x).shape == (2,)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8, 8), (2, 1, 3, 8)])
def test_plain_network_explains_a_wrong_shape(shape):
    with pytest.raises(
        ValueError, match="built for 1 channels, at least 4 x 4, and got a state of shape"
    ):
        PlainEstimator(width=4)(torch.zeros(shape))


def test_plain_network_sees_scale_but_not_its_batch_nor_autocast():
    net, x = PlainEstimator(width=8), noise(6, 1, 8, 8)
    together = net(x)
    assert torch.allclose(together, torch.cat([net(x[i : i + 1]) for i in range(6)]), atol=1e-5)
    assert not torch.allclose(net(2 * x), together, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x), together)


@pytest.mark.slow
def test_plain_network_learns_the_noise_level(tmp_path, on_cpu):
    net, images = PlainEstimator(width=8), 0.1 * noise(256, 1, 8, 8)
    config = TrainConfig(
        images_seen=40_000,
        batch_size=128,
        lr=5e-3,
        warmup_steps=20,
        cooldown=0.5,
        ema_decay=0.95,
        precision="fp32",
        compile=False,
    )
    log = list(
        fit(net, estimator_loss(images), len(images), config, tmp_path / "net.pt", log_every=20)
    )
    assert log[-1]["loss"] < log[0]["loss"] - 1
    t = torch.tensor([0.1, 0.3, 0.6])
    with torch.no_grad():
        x0, eps = 0.1 * noise(200, 1, 8, 8, seed=6), noise(200, 1, 8, 8, seed=7)
        found = torch.stack([posterior_mean(net, add_noise(x0, eps, float(s))) for s in t]).mean(1)
    assert torch.allclose(found, t, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_the_network_with_another_last_layer_regresses_the_level(tiny, tmp_path, on_cpu, frozen):
    """On flat images, whose noise is their spread; the network that it is made of stays as it is,
    and a frozen one learns its last layer alone.
    """
    net = tiny(learn_sigma=True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = RegressedLevel(net, frozen)
    learned = {name.split(".")[1] for name, p in made.named_parameters() if p.requires_grad}
    assert (learned == {"final_layer"}) == frozen and "pos_embed" not in learned
    images = (torch.arange(256) % 3 * 0.5 - 0.5).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    config = TrainConfig(
        images_seen=32_000,
        batch_size=128,
        lr=3e-3,
        warmup_steps=20,
        cooldown=0.5,
        ema_decay=0.95,
        precision="fp32",
        compile=False,
    )
    loss, index = regression_loss(images), torch.arange(256)
    start = loss(made, index, generator(3)).item()
    assert start == pytest.approx(1 / 12, abs=0.01)  # the variance of t: it begins at the mean
    list(fit(made, loss, len(images), config, tmp_path / "net.pt"))
    assert loss(made, index, generator(3)).item() < (0.7 if frozen else 0.2) * start
    x = noise(5, 1, 8, 8)
    together = made(x).detach()
    assert together.shape == (5,) and torch.allclose(together[2:3], made(x[2:3]), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x).detach(), together)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
