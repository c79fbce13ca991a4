"""Grids: their spacing in the quantity they are named after, their ends, and that any solver takes
any of them.
"""

import numpy as np
import pytest
import torch
from test_one_step import exact, gaussian, moments
from torch.testing import assert_close

from nag.interpolant import PATHS, time_of_ratio
from nag.samplers.registry import SAMPLERS, last
from nag.samplers.time_grids import GRIDS, edm, grid, logsnr, respaced, sde_times, shifted, uniform


def ratio(times, path):
    c = PATHS[path](times)
    return c.sigma / c.alpha


def test_uniform_and_sde():
    assert_close(uniform(4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    assert_close(uniform(2, 0.9, 0.1), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64))
    times = sde_times(25)
    assert len(times) == 26 and times[0] == 1 and times[-2:].tolist() == [0.04, 0.0]
    assert_close(times[:-1].diff(), torch.full((24,), -0.04, dtype=torch.float64))
    last = {n: sde_times(n)[-2].item() for n in (2, 50, 250, 500, 1000)}
    assert last == pytest.approx({2: 0.04, 50: 0.04, 250: 0.04, 500: 0.02, 1000: 0.01})
    assert sde_times(1000, 0.04)[-2] == 0.04


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "ddpm"])
def test_logsnr_and_edm_are_even_in_what_they_are_named_after(path):
    for count in (10, 60):
        steps = ratio(logsnr(count, path)[1:-1], path).log().diff()
        assert_close(steps, steps[:1].expand(count - 2), rtol=1e-4, atol=1e-6)
    inner = ratio(edm(10, path)[1:-1], path)
    karras = (
        80 ** (1 / 7)
        + torch.arange(10, dtype=torch.float64) / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    ) ** 7
    assert_close(inner, karras[1:], rtol=1e-4, atol=1e-6)


def test_shifted_is_that_of_stable_diffusion_3():
    u = np.linspace(1, 0, 9)
    assert_close(shifted(8, 3.0).numpy(), 3 * u / (1 + 2 * u))
    assert torch.equal(shifted(8, 1.0), uniform(8))


def test_respaced_keeps_whole_levels_and_both_ends():
    times = respaced(25)
    levels = times[:-1] * 1000 - 1
    assert_close(levels, levels.round())
    assert levels[0] == 999 and levels[-1].abs() < 1e-9
    assert_close(respaced(1000)[:-1], torch.arange(1000, 0, -1, dtype=torch.float64) / 1000)


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "ddpm"])
def test_time_of_ratio_inverts_the_path(path):
    t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)
    assert_close(time_of_ratio(ratio(t, path), path), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("path", ["linear", "ddpm", "vp"])
def test_every_grid_falls_from_noise_to_data(name, path):
    for steps in (2, 17, 60):
        times = grid(name, steps, path)
        assert (
            len(times) == steps + 1 and (times.diff() < 0).all() and (times[0], times[-1]) == (1, 0)
        )


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("path", ["linear", "ddpm", "cosine"])
def test_any_solver_takes_any_grid(sampler, name, path):
    n = 2000
    mean1, variance1 = moments(path, 1.0)
    x = mean1 + variance1.sqrt() * torch.randn(n, 1, dtype=torch.float64)
    out = last(
        SAMPLERS[sampler](
            gaussian(path), x, grid(name, 60, path), lambda shape: torch.randn(n, *shape), path
        )
    )
    mean, variance = moments(path, 0.0)
    assert abs(out.mean() - mean) < 0.08 and abs(out.std() / variance.sqrt() - 1) < 0.25
    stochastic = ("stochastic_heun", "ddpm", "ddim_eta1", "dpmpp_2m_sde")
    if not sampler.startswith("euler_maruyama") and sampler not in stochastic:
        assert (out - exact(x, path)).abs().max() < 0.25


@pytest.mark.parametrize("arguments", [(0,), (5, 0.2, 0.4), (5, 1.2), (5, 1.0, -0.1)])
def test_impossible_grids_are_refused(arguments):
    with pytest.raises(
        ValueError, match="a grid needs steps >= 1 and 1 >= start > end >= 0, not steps="
    ):
        uniform(*arguments)


def test_what_a_grid_needs_is_said():
    with pytest.raises(ValueError, match="the SDE grid needs steps >= 2, not 1"):
        sde_times(1)
    with pytest.raises(ValueError, match="1001 steps cannot be picked from 1000 levels"):
        respaced(1001)
    with pytest.raises(ValueError, match="a grid needs steps >= 1, not 0"):
        logsnr(0)
    with pytest.raises(ValueError, match="unknown grid 'karras': choose one of .*'edm'"):
        grid("karras", 10)
