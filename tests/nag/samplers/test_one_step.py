"""Samplers on Gaussian data, where velocity, trajectory and moments are known in closed form."""

import math

import pytest
import torch
from torch.testing import assert_close

from nag.ddpm import Prediction
from nag.interpolant import coefficients
from nag.samplers.one_step import (
    DIFFUSIONS,
    ddim,
    ddpm,
    dopri5,
    euler,
    euler_maruyama,
    heun,
    midpoint,
    stochastic_heun,
)
from nag.samplers.registry import SAMPLERS, last, resolve, time_grid
from nag.samplers.time_grids import logsnr, respaced, sde_times, uniform
from nag.support.rng import ImageNoise

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
@pytest.mark.parametrize("sampler, order", [(euler, 1), (ddim, 1), (heun, 2), (midpoint, 2)])
def test_order_of_convergence(sampler, order, path):
    x = torch.randn(20, 1, dtype=torch.float64)
    errors = [
        (last(sampler(gaussian(path), x, uniform(k), path=path)) - exact(x, path)).abs().max()
        for k in (40, 80, 160, 320)
    ]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert errors[-1] < 0.02 and min(slopes) > order - 0.15
    if order == 1:
        assert max(slopes) < 1.15


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_euler_maruyama_has_the_moments_of_the_forward_process(path):
    n = 40_000
    mean1, variance1 = moments(path, 1.0)
    x = mean1 + variance1.sqrt() * torch.randn(n, 1, dtype=torch.float64)
    times = sde_times(400)
    wanted = [200, 399]  # half way, and just before the drift-only last step
    states = list(
        euler_maruyama(gaussian(path), x, times, lambda shape: torch.randn(n, *shape), path)
    )
    for k in wanted:
        state, t = states[k]
        mean, variance = moments(path, t)
        assert (
            abs(state.mean() - mean) < 4 * (variance / n).sqrt() + 0.005
        )  # Monte Carlo + discretisation, O(1/steps)
        assert abs(state.var() / variance - 1) < 4 * math.sqrt(2 / n) + 0.02


def test_euler_maruyama_is_stochastic_at_the_right_rate():
    """From one point, one small step adds variance 2 sigma_t (t - s)."""
    x = torch.full((40_000, 1), 0.3, dtype=torch.float64)
    times = torch.tensor([0.5, 0.49, 0.0], dtype=torch.float64)
    states = [
        s
        for s, _ in euler_maruyama(gaussian(), x, times, lambda shape: torch.randn(len(x), *shape))
    ]
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


@pytest.mark.parametrize(
    "sampler, per_step",
    [
        ("euler", 1),
        ("heun", 2),
        ("midpoint", 2),
        ("euler_maruyama", 1),
        ("stochastic_heun", 2),
        ("ddpm", 1),
        ("ddim", 1),
        ("ddim_eta1", 1),
        ("dpmpp_2m", 1),
        ("dpmpp_2m_sde", 1),
        ("unipc", 1),
    ],
)
def test_states_times_and_evaluations(sampler, per_step):
    seen = []

    def field(x, t):
        seen.append(t)
        return gaussian()(x, t)

    x, times = torch.randn(3, 1, 2, 2), time_grid(sampler, 7)
    states = list(SAMPLERS[sampler](field, x, times, lambda shape: torch.randn(3, *shape)))
    assert [t for _, t in states] == times.tolist() and len(states) == 8
    assert states[0][0] is x and all(s.shape == x.shape for s, _ in states)
    assert len(seen) == 7 * per_step - (per_step - 1) * (
        sampler != "midpoint"
    )  # Heun's last step is Euler's
    assert (
        len({s.data_ptr() for s, _ in states}) == 8
    )  # a kept state is not overwritten by the next


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_state_keeps_its_dtype(sampler, dtype):
    x = torch.randn(3, 1, dtype=dtype)
    for state, _ in SAMPLERS[sampler](
        gaussian(), x, time_grid(sampler, 4), lambda shape: torch.randn(3, *shape)
    ):
        assert state.dtype == dtype


def test_float64_state_is_more_exact_than_float32():
    x = torch.randn(200, 1, dtype=torch.float64)
    reference = last(euler(gaussian(), x, uniform(100)))
    single = last(euler(gaussian(), x.float(), uniform(100)))
    assert 1e-9 < (single - reference).abs().max() < 1e-4


def test_part_of_the_way():
    x = torch.randn(20, 1, dtype=torch.float64)
    assert_close(
        last(heun(gaussian(), x, uniform(400, end=0.3))),
        exact(x, "linear", 0.3),
        rtol=1e-3,
        atol=1e-3,
    )


def test_default_grids():
    for name in SAMPLERS:
        times = time_grid(name, 10)
        assert len(times) == 11 and (times.diff() < 0).all() and (times[0], times[-1]) == (1, 0)
    assert torch.equal(time_grid("euler_maruyama", 10), sde_times(10)) and torch.equal(
        time_grid("heun", 10), uniform(10)
    )
    assert torch.equal(time_grid("heun", 10, "cosine", "logsnr"), logsnr(10, "cosine"))


def test_a_paths_usual_samplers():
    assert [resolve(kind, path) for kind in ("ode", "sde") for path in ("linear", "ddpm")] == [
        "euler",
        "ddim",
        "euler_maruyama",
        "ddpm",
    ]
    assert torch.equal(time_grid("ode", 10, "ddpm"), respaced(10)) and torch.equal(
        time_grid("sde", 10), sde_times(10)
    )


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown sampler 'dpm': choose one of .*euler.*euler_maruyama.*heun"
    ):
        time_grid("dpm", 5)


@pytest.mark.parametrize("diffusion", sorted(DIFFUSIONS))
@pytest.mark.parametrize("sampler", [euler_maruyama, stochastic_heun])
def test_every_diffusion_coefficient_keeps_the_marginals(sampler, diffusion):
    """D is free: whatever it is, the reverse SDE has the forward process's moments (SiT, eq. 6)."""
    n, path = 20_000, "cosine"
    start = 0.95  # "sbdm" is infinite at pure noise
    mean1, variance1 = moments(path, start)
    x = mean1 + variance1.sqrt() * torch.randn(n, 1, dtype=torch.float64)
    times = torch.cat([uniform(200, start, 0.04), torch.zeros(1, dtype=torch.float64)])
    states = list(
        sampler(
            gaussian(path),
            x,
            times,
            lambda shape: torch.randn(n, *shape),
            path,
            diffusion=diffusion,
        )
    )
    for k in (100, 200):
        mean, variance = moments(path, states[k][1])
        assert abs(states[k][0].mean() - mean) < 4 * (variance / n).sqrt() + 0.01
        assert abs(states[k][0].var() / variance - 1) < 4 * math.sqrt(2 / n) + 0.04


def test_the_score_sde_is_dpms():
    """D of "sbdm" on the VP path is beta(t)/2 (Song et al., 2021)."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    beta = 0.1 + t * (20.0 - 0.1)
    assert_close(DIFFUSIONS["sbdm"](t, coefficients("vp", t, t)), beta / 2)


def test_last_steps():
    x, times = torch.randn(6, 1, dtype=torch.float64), torch.tensor([0.1, 0.0], dtype=torch.float64)
    field = gaussian()
    run = {
        kind: last(euler_maruyama(field, x, times, None, last_step=kind))
        for kind in ("mean", "euler", "tweedie")
    }
    assert_close(run["euler"], last(euler(field, x, times)))
    assert_close(
        run["tweedie"], x - 0.1 * field(x, 0.1)
    )  # on the linear path x_0 = x - t v: Euler's step
    assert (run["mean"] - run["euler"]).abs().max() > 1e-3


def test_stochastic_heun_is_of_second_order_where_there_is_no_noise():
    """With D = 0 it is Heun's method, apart from the last step."""
    x = torch.randn(20, 1, dtype=torch.float64)
    DIFFUSIONS["none"] = lambda t, c: 0 * c.sigma
    try:
        ours = list(
            stochastic_heun(
                gaussian(), x, uniform(10), lambda shape: torch.zeros(20, *shape), diffusion="none"
            )
        )
    finally:
        del DIFFUSIONS["none"]
    for (a, _), (b, _) in zip(ours, heun(gaussian(), x, uniform(10)), strict=True):
        assert_close(a, b)


def test_unknown_sde_choices_are_refused():
    for choice in ({"diffusion": "sigmoid"}, {"last_step": "none"}):
        with pytest.raises(ValueError, match="unknown diffusion .* or last step .*: choose from"):
            next(euler_maruyama(gaussian(), torch.zeros(1, 1), uniform(3), None, **choice))


def test_dopri5_is_accurate_and_the_grid_only_says_what_is_yielded():
    x, calls = torch.randn(20, 1, dtype=torch.float64), []

    def field(x, t):
        calls.append(t)
        return gaussian()(x, max(t, 1e-12))  # at the data itself v is 0/0

    few = [s for s, _ in dopri5(field, x, uniform(2), rtol=1e-8, atol=1e-8)]
    count = len(calls)
    assert_close(few[-1], exact(x, "linear"), rtol=1e-6, atol=1e-6)
    assert_close(
        few[1],
        list(dopri5(field, x, uniform(50), rtol=1e-8, atol=1e-8))[25][0],
        rtol=1e-6,
        atol=1e-6,
    )
    assert min(calls) >= 0
    assert len(calls) - count < 2 * count  # 25 times the points, about the same evaluations


@pytest.mark.parametrize("path", ["ddpm", "linear"])
def test_ddpm_and_ddim_with_eta_1_are_the_same_steps(path):
    x, draws = torch.randn(30, 1, dtype=torch.float64), torch.randn(9, 30, 1, dtype=torch.float64)
    runs = []
    for sampler, options in ((ddpm, {}), (ddim, {"eta": 1.0})):
        noise = iter(draws)
        runs.append(
            [
                s
                for s, _ in sampler(
                    gaussian(path),
                    x,
                    time_grid("ddpm", 10),
                    lambda shape, n=noise: next(n),
                    path,
                    **options,
                )
            ]
        )
    assert_close(torch.stack(runs[0]), torch.stack(runs[1]), rtol=1e-6, atol=1e-8)


def test_ddpm_takes_the_fields_learned_variance():
    field, x = gaussian("ddpm"), torch.zeros(50_000, 1, dtype=torch.float64)

    class Learned:
        __call__ = staticmethod(field)

        def with_variance(self, x, t):
            return Prediction(field(x, t), torch.full_like(x, 0.25))

    times = torch.tensor([0.5, 0.3, 0.0], dtype=torch.float64)
    state = list(ddpm(Learned(), x, times, lambda shape: torch.randn(len(x), *shape)))[1][0]
    now, then = coefficients("ddpm", 0.5, x), coefficients("ddpm", 0.3, x)
    beta = 1 - (now.alpha / then.alpha) ** 2
    smallest = beta * then.sigma**2 / now.sigma**2
    wanted = (beta.log() * 0.25 + smallest.log() * 0.75).exp()
    assert state.var().item() == pytest.approx(wanted.item(), rel=4 * math.sqrt(2 / len(x)))


def test_a_grid_that_ends_above_the_data_keeps_its_noise():
    """Every state of a stochastic sampler has the forward process's variance, the last one too."""
    n, times = 20_000, uniform(200, 0.9, 0.2)
    mean1, variance1 = moments("linear", 0.9)
    x = mean1 + variance1.sqrt() * torch.randn(n, 1, dtype=torch.float64)
    for name in ("ddpm", "ddim_eta1", "dpmpp_2m_sde"):
        out = last(
            SAMPLERS[name](gaussian(), x, times, lambda shape: torch.randn(n, *shape), "linear")
        )
        assert out.var().item() == pytest.approx(moments("linear", 0.2)[1].item(), rel=0.04), name


@pytest.mark.parametrize("sampler", [*SAMPLERS.values(), dopri5], ids=[*SAMPLERS, "dopri5"])
def test_times_that_rise_and_noise_for_other_states_are_refused(sampler):
    x = torch.randn(3, 1, 2, 2)

    def field(x, t):
        return x

    with pytest.raises(ValueError, match="take 1 - t of times in SiT's own direction"):
        last(sampler(field, x, uniform(5).flip(0), ImageNoise(range(3))))
    for seeds in (range(1), range(4)):
        try:
            last(sampler(field, x, uniform(5, 0.99), ImageNoise(seeds)))
        except ValueError as error:
            assert f"{len(seeds)} noise streams for 3 states" in str(error)
        else:
            last(sampler(field, x, uniform(5, 0.99)))  # it draws nothing


@pytest.mark.parametrize("sampler", [euler_maruyama, stochastic_heun])
def test_the_score_sde_cannot_begin_where_there_is_no_signal(sampler):
    x, noise = torch.randn(2, 1, 2, 2), ImageNoise(range(2))
    with pytest.raises(ValueError, match="'sbdm' has no bound at t = 1.*begin the grid below 1"):
        last(sampler(gaussian(), x, uniform(5), noise, diffusion="sbdm"))
    assert last(sampler(gaussian(), x, uniform(5, 0.99), noise, diffusion="sbdm")).isfinite().all()
