"""DPM-Solver++ and UniPC: order on a closed form, agreement with diffusers' schedulers, behaviour
at both ends.
"""

import math

import diffusers
import pytest
import torch
from test_one_step import exact, gaussian, moments
from torch.testing import assert_close

from nag.interpolant import coefficients, convert
from nag.samplers.multistep import dpmpp_2m, unipc
from nag.samplers.one_step import ddim
from nag.samplers.registry import last
from nag.samplers.time_grids import logsnr, sde_times, uniform

# Away from both ends, where lambda is infinite and every method drops to first order.
INNER = {"start": 0.9, "end": 0.1}


def between(x, path, start, end):
    """The probability flow of the Gaussian from one time to another."""
    (m1, v1), (m0, v0) = moments(path, start), moments(path, end)
    return m0 + (x - m1) * (v0 / v1).sqrt()


def error_before_the_last_step(sampler, steps, path, **options):
    """The error of a run from an exact start without its last step, of first order by design."""
    x = torch.randn(20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    times = torch.cat([uniform(steps, **INNER), torch.tensor([0.05], dtype=torch.float64)])
    state, t = list(sampler(gaussian(path), x, times, path=path, **options))[-2]
    return (state - between(x, path, 0.9, t)).abs().max().item()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["linear", "cosine", "vp"])
@pytest.mark.parametrize(
    "sampler, options, order",
    [
        (dpmpp_2m, {}, 2),
        (unipc, {"order": 1}, 2),
        (unipc, {"order": 2}, 3),
        (unipc, {"order": 3}, 4),
    ],
)
def test_order_of_convergence(sampler, options, order, path):
    """UniPC's corrector adds one to the order of its predictor (Zhao et al., 2023, Theorem 3.1)."""
    coarse, fine = (error_before_the_last_step(sampler, k, path, **options) for k in (320, 640))
    assert fine < 1e-5 and math.log2(coarse / fine) > order - 0.2


@pytest.mark.parametrize("sampler", [dpmpp_2m, unipc])
@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "ddpm"])
def test_few_steps_beat_ddim_and_arrive_at_the_data(sampler, path):
    x = moments(path, 1.0)[0] + moments(path, 1.0)[1].sqrt() * torch.randn(
        50, 1, dtype=torch.float64
    )
    times = logsnr(20, path)
    error = (last(sampler(gaussian(path), x, times, path=path)) - exact(x, path)).abs().max()
    assert (
        error < 0.3 * (last(ddim(gaussian(path), x, times, path=path)) - exact(x, path)).abs().max()
    )


def test_the_first_and_the_last_step_from_pure_noise_are_ddims():
    x = torch.randn(5, 1, dtype=torch.float64)
    times = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    wanted = [state for state, _ in ddim(gaussian(), x, times, path="linear")]
    for sampler in (dpmpp_2m, unipc):
        for (state, _), other in zip(sampler(gaussian(), x, times), wanted, strict=True):
            assert_close(state, other)


@pytest.mark.parametrize("path", ["linear", "vp"])
def test_the_sde_solver_has_the_moments_of_the_forward_process(path):
    n = 40_000
    mean1, variance1 = moments(path, 1.0)
    x = mean1 + variance1.sqrt() * torch.randn(n, 1, dtype=torch.float64)
    times = sde_times(100)
    states = list(
        dpmpp_2m(
            gaussian(path), x, times, lambda shape: torch.randn(n, *shape), path, stochastic=True
        )
    )
    for k in (50, 99):
        mean, variance = moments(path, states[k][1])
        assert abs(states[k][0].mean() - mean) < 4 * (variance / n).sqrt() + 0.002
        assert abs(states[k][0].var() / variance - 1) < 4 * math.sqrt(2 / n) + 0.005


# ---- against diffusers, which wants a network of eps and integer timesteps

BETAS = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def theirs(scheduler, x, steps, draws=None, **options):
    """The states of a diffusers scheduler on the Gaussian's exact eps, and the times that it
    visited.
    """
    scheduler.set_timesteps(steps)
    states = [x]
    for k, level in enumerate(scheduler.timesteps.tolist()):
        t = (level + 1) / 1000
        eps = convert(gaussian("ddpm")(x, t), x, t, "v", "eps", "ddpm")
        fresh = {} if draws is None else {"variance_noise": draws[k]}
        x = scheduler.step(eps, level, x, **options, **fresh).prev_sample
        states.append(x)
    return states, torch.tensor(
        [*((i + 1) / 1000 for i in scheduler.timesteps.tolist()), 0], dtype=torch.float64
    )


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_agrees_with_diffusers(steps):
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="leading")
    x = torch.randn(40, 1, dtype=torch.float64)
    states, times = theirs(scheduler, x, steps)
    ours = [s for s, _ in ddim(gaussian("ddpm"), x, times)]
    assert (
        len(ours) == len(states)
        and max(relative(a, b) for a, b in zip(ours, states, strict=True)) < 1e-5
    )


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_agrees_with_diffusers(eta):
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="leading")
    start, draws = (
        torch.randn(40, 1, dtype=torch.float64),
        torch.randn(10, 40, 1, dtype=torch.float64),
    )
    states, times = theirs(scheduler, start, 10, draws, eta=eta)
    noise = iter(draws)
    ours = [s for s, _ in ddim(gaussian("ddpm"), start, times, lambda shape: next(noise), eta=eta)]
    assert max(relative(a, b) for a, b in zip(ours, states, strict=True)) < 1e-5


@pytest.mark.parametrize("stochastic", [False, True])
def test_dpmpp_agrees_with_diffusers(stochastic):
    """With so many steps that theirs too is of first order in the last step alone."""
    kind = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        algorithm_type=kind,
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    x, draws = torch.randn(40, 1, dtype=torch.float64), torch.randn(20, 40, 1, dtype=torch.float64)
    states, times = theirs(scheduler, x, 20, draws if stochastic else None)
    noise = iter(draws)
    ours = [
        s
        for s, _ in dpmpp_2m(
            gaussian("ddpm"), x, times, lambda shape: next(noise), "ddpm", stochastic
        )
    ]
    assert max(relative(a, b) for a, b in zip(ours, states, strict=True)) < 1e-4


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_agrees_with_diffusers(order):
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS,
        solver_order=order,
        solver_type="bh2",
        lower_order_final=True,
        final_sigmas_type="zero",
        predict_x0=True,
    )
    x = torch.randn(40, 1, dtype=torch.float64)
    states, times = theirs(scheduler, x, 12)
    ours = last(unipc(gaussian("ddpm"), x, times, path="ddpm", order=order))
    assert relative(ours, states[-1]) < 1e-4


def test_coefficients_are_those_of_the_scheduler():
    scheduler = diffusers.DDIMScheduler(**BETAS)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert_close(
        coefficients("ddpm", t, t).alpha ** 2,
        scheduler.alphas_cumprod.double(),
        rtol=1e-4,
        atol=1e-7,
    )
