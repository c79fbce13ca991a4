"""Samplers on Gaussian data, where velocity, trajectory and moments are known in closed form."""

import math

import pytest
import torch
from torch.testing import assert_close

from nag.interpolant import coefficients
from nag.samplers import SAMPLERS, euler, euler_maruyama, heun, last, sde_times, time_grid, uniform

MEAN, STD = 1.5, 0.5  # of the data
ONE = torch.ones((), dtype=torch.float64)


def moments(path, t):
    """Mean and variance of x_t for data N(MEAN, STD^2)."""
    c = coefficients(path, t, ONE)
    return c.alpha * MEAN, (c.alpha * STD) ** 2 + c.sigma**2


def gaussian(path="linear"):
    """v(x, t) = E[d_alpha x0 + d_sigma eps | x], by conditioning a joint Normal."""
    def field(x, t):
        assert t > 0, "evaluated at t = 0"
        c, (mean, variance) = coefficients(path, t, x), moments(path, t)
        centred = (x - mean) / variance
        return c.d_alpha * (MEAN + c.alpha * STD**2 * centred) + c.d_sigma * c.sigma * centred
    return field


def exact(x, path, end=0.0):
    """The probability flow of a Gaussian is affine: it keeps (x - mean) / std."""
    (m1, v1), (m0, v0) = moments(path, 1.0), moments(path, end)
    return m0 + (x - m1) * (v0 / v1).sqrt()


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("sampler, order", [(euler, 1), (heun, 2)])
def test_order_of_convergence(sampler, order, path):
    x = torch.randn(20, 1, dtype=torch.float64)
    errors = [(last(sampler(gaussian(path), x, uniform(k), path=path)) - exact(x, path)).abs().max() for k in (40, 80, 160, 320)]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert errors[-1] < 0.02 and slopes == pytest.approx([order] * 3, abs=0.15)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_euler_maruyama_has_the_moments_of_the_forward_process(path):
    n = 40_000
    mean1, variance1 = moments(path, 1.0)
    x = mean1 + variance1.sqrt() * torch.randn(n, 1, dtype=torch.float64)
    times = sde_times(400)
    wanted = [200, 399]  # half way, and just before the drift-only last step
    states = list(euler_maruyama(gaussian(path), x, times, lambda shape: torch.randn(n, *shape), path))
    for k in wanted:
        state, t = states[k]
        mean, variance = moments(path, t)
        assert abs(state.mean() - mean) < 4 * (variance / n).sqrt() + 0.005  # Monte Carlo + discretisation, O(1/steps)
        assert abs(state.var() / variance - 1) < 4 * math.sqrt(2 / n) + 0.02


def test_euler_maruyama_is_stochastic_at_the_right_rate():
    """From one point, one small step adds variance 2 sigma_t (t - s)."""
    x = torch.full((40_000, 1), 0.3, dtype=torch.float64)
    times = torch.tensor([0.5, 0.49, 0.0], dtype=torch.float64)
    states = [s for s, _ in euler_maruyama(gaussian(), x, times, lambda shape: torch.randn(len(x), *shape))]
    assert states[1].var().item() == pytest.approx(2 * 0.5 * 0.01, rel=4 * math.sqrt(2 / len(x)))


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_euler_maruyamas_last_step_is_the_drift_alone(path):
    x, draws = torch.randn(6, 1, dtype=torch.float64), []

    def noise(shape):
        draws.append(shape)
        return torch.randn(6, *shape)

    states = list(euler_maruyama(gaussian(path), x, sde_times(5), noise, path))
    (before, t), (after, end) = states[-2:]
    mean, variance = moments(path, t)
    score, sigma = -(before - mean) / variance, coefficients(path, t, before).sigma
    assert_close(after, before - t * (gaussian(path)(before, t) - sigma * score))
    assert len(draws) == 4 and set(draws) == {(1,)} and (t, end) == (0.04, 0.0)


@pytest.mark.parametrize("sampler, per_step", [("euler", 1), ("heun", 2), ("euler_maruyama", 1)])
def test_states_times_and_evaluations(sampler, per_step):
    seen = []

    def field(x, t):
        seen.append(t)
        return gaussian()(x, t)

    x, times = torch.randn(3, 1, 2, 2), time_grid(sampler, 7)
    states = list(SAMPLERS[sampler](field, x, times, lambda shape: torch.randn(3, *shape)))
    assert [t for _, t in states] == times.tolist() and len(states) == 8
    assert states[0][0] is x and all(s.shape == x.shape for s, _ in states)
    assert len(seen) == 7 * per_step - (per_step - 1)  # Heun's last step is Euler's
    assert len({s.data_ptr() for s, _ in states}) == 8  # a kept state is not overwritten by the next


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_state_keeps_its_dtype(sampler, dtype):
    x = torch.randn(3, 1, dtype=dtype)
    for state, _ in SAMPLERS[sampler](gaussian(), x, time_grid(sampler, 4), lambda shape: torch.randn(3, *shape)):
        assert state.dtype == dtype


def test_float64_state_is_more_exact_than_float32():
    x = torch.randn(200, 1, dtype=torch.float64)
    reference = last(euler(gaussian(), x, uniform(100)))
    single = last(euler(gaussian(), x.float(), uniform(100)))
    assert 1e-9 < (single - reference).abs().max() < 1e-4


def test_part_of_the_way():
    x = torch.randn(20, 1, dtype=torch.float64)
    assert_close(last(heun(gaussian(), x, uniform(400, end=0.3))), exact(x, "linear", 0.3), rtol=1e-3, atol=1e-3)


def test_grids():
    assert_close(uniform(4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    assert_close(uniform(2, 0.9, 0.1), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64))
    times = sde_times(25)
    assert len(times) == 26 and times[0] == 1 and times[-2:].tolist() == [0.04, 0.0]
    assert_close(times[:-1].diff(), torch.full((24,), -0.04, dtype=torch.float64))
    for name in SAMPLERS:
        grid = time_grid(name, 10)
        assert len(grid) == 11 and (grid.diff() < 0).all() and (grid[0], grid[-1]) == (1, 0)


@pytest.mark.parametrize("arguments", [(0,), (5, 0.2, 0.4), (5, 1.2), (5, 1.0, -0.1)])
def test_impossible_grids_are_refused(arguments):
    with pytest.raises(ValueError, match="a grid needs steps >= 1 and 1 >= start > end >= 0, not steps="):
        uniform(*arguments)


def test_the_sde_grid_says_that_it_needs_two_steps():
    with pytest.raises(ValueError, match="2"):
        sde_times(1)


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown sampler 'dpm': choose one of .*euler.*euler_maruyama.*heun"):
        time_grid("dpm", 5)
