"""The rivals against their own papers' formulas, written out here by hand, and against closed
forms.
"""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nag import toy
from nag.interpolant import coefficients, convert
from nag.rivals.corrections import (
    MODES,
    STYLES,
    by_estimate,
    by_variance,
    corrected,
    epsilon_scaling,
    linear_scale,
    noise_level_correction,
    time_shift,
)
from nag.samplers.one_step import ddim, ddpm, euler, euler_maruyama, heun

PATHS = ["linear", "cosine", "vp", "ddpm"]
ONE = torch.ones((), dtype=torch.float64)
BETAS = np.linspace(1e-4, 0.02, 1000)
ABAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])  # ABAR[i] at t = i/1000
EVEN = torch.linspace(1, 0, 6, dtype=torch.float64)
CENTRE, SPREAD = (
    0.7,
    0.4,
)  # of Gaussian data, whose noise is known: eps = rho (x/alpha - m) / (v + rho^2), rho = sigma/alpha


def noise_of(z, rho):
    """E[eps | x] for z = x/alpha and rho = sigma/alpha, any shapes that broadcast."""
    return rho * (z - CENTRE) / (SPREAD**2 + rho**2)


def gaussian(path):
    def field(x, t):
        c = coefficients(path, t, x)
        pull = (x - c.alpha * CENTRE) / ((c.alpha * SPREAD) ** 2 + c.sigma**2)
        return c.d_alpha * (CENTRE + c.alpha * SPREAD**2 * pull) + c.d_sigma * c.sigma * pull

    return field


def wavy(x, t):
    """No velocity of anything: per-sample, curved in x and t."""
    t = t.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(t, torch.Tensor) else t
    return torch.sin(2 * x) + t**2 * x.mean(tuple(range(1, x.ndim)), keepdim=True)


def float64(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def states(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def alpha_sigma(path, t):
    """alpha and sigma at a number t as numbers, from the definitions of the two paths used below."""
    if path == "linear":
        return 1 - t, t
    abar = ABAR[round(1000 * t)]
    return math.sqrt(abar), math.sqrt(1 - abar)


# ---- epsilon scaling


@pytest.mark.parametrize("path", ["linear", "ddpm"])
@pytest.mark.parametrize("scale", [1.01, 0.99, lambda t: 1 + 0.02 * t])
def test_epsilon_scaling_is_ddim_with_eps_divided_by_lambda(path, scale):
    x = start = states(4, 3)
    for t, s in zip(EVEN[:-1].tolist(), EVEN[1:].tolist(), strict=True):
        (a, b), (a_next, b_next) = alpha_sigma(path, t), alpha_sigma(path, s)
        v = wavy(x, t)
        eps = convert(v, x, t, "v", "eps", path)
        if a == 0:  # pure noise: not scaled
            x0 = x - v
        else:
            eps = eps / (scale(t) if callable(scale) else scale)
            x0 = (x - b * eps) / a
        x = a_next * x0 + b_next * eps
    field = epsilon_scaling(wavy, scale, path)
    for sampler in [partial(ddim, path=path)] + [euler] * (
        path == "linear"
    ):  # on the straight path Euler is DDIM
        *_, (end, _) = sampler(field, start, EVEN)
        assert_close(end, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_epsilon_scaling_is_the_edm_form(path):
    """EDM's D = x - sigma eps / lambda, in EDM's coordinates x/alpha and sigma/alpha (Ning et al.,
    EDM-ES).
    """
    x, t, scale = states(5, 3), torch.linspace(0.1, 0.9, 5, dtype=torch.float64), 1.03
    c, field = coefficients(path, t, x), gaussian(path)
    rho = c.sigma / c.alpha
    denoised = x / c.alpha - rho * noise_of(x / c.alpha, rho) / scale
    scaled = epsilon_scaling(field, scale, path)(x, t)
    assert_close(convert(scaled, x, t, "v", "x0", path), denoised, rtol=1e-9, atol=1e-10)
    assert_close(
        convert(scaled, x, t, "v", "eps", path),
        noise_of(x / c.alpha, rho) / scale,
        rtol=1e-9,
        atol=1e-10,
    )


def test_epsilon_scaling_reaches_the_mean_of_ddpm():
    """ADM-ES: the posterior mean with x_0 from eps / lambda; coefficients as in Ho et al., eq. 7,
    between two levels.
    """
    x, i, scale = states(4, 2), 500, 1.02
    (_, (after, _)) = list(
        ddpm(
            epsilon_scaling(gaussian("ddpm"), scale, "ddpm"),
            x,
            float64([0.5, 0.499]),
            lambda shape: torch.zeros(4, *shape),
        )
    )
    abar, before, beta = ABAR[i], ABAR[i - 1], BETAS[i - 1]
    eps = noise_of(x / abar**0.5, ((1 - abar) / abar) ** 0.5) / scale
    x0 = (x - (1 - abar) ** 0.5 * eps) / abar**0.5
    mean = before**0.5 * beta / (1 - abar) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - abar) * x
    assert_close(after, mean, rtol=1e-9, atol=1e-10)


def test_epsilon_scaling_reaches_the_score_of_the_sde():
    """score' = -eps/(lambda sigma): one drift-only step of SiT's SDE on the straight path."""
    x, t, scale = states(4, 2), 0.6, 1.05
    eps = noise_of(x / 0.4, 1.5) / scale
    drift = (eps - (x - t * eps) / (1 - t)) - t * (-eps / t)
    *_, (after, _) = euler_maruyama(
        epsilon_scaling(gaussian("linear"), scale), x, float64([t, 0.4]), None
    )
    assert_close(after, x - 0.2 * drift, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_one_changes_nothing(path, dtype):
    x = torch.randn(4, 3, dtype=dtype)
    for t in (1.0, 0.999, 0.4, torch.linspace(0.2, 1, 4)):
        for scale in (1.0, 1, lambda t: t * 0 + 1):
            assert torch.equal(epsilon_scaling(wavy, scale, path)(x, t), wavy(x, t))


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pure_noise_is_not_scaled(path, dtype):
    x = torch.randn(3, 2, dtype=dtype)
    t = torch.tensor([1.0, 0.5, 1.0], dtype=dtype)
    scaled, plain = epsilon_scaling(wavy, 1.1, path)(x, t), wavy(x, t)
    assert torch.equal(scaled[[0, 2]], plain[[0, 2]]) and not torch.equal(scaled[1], plain[1])


def test_epsilon_scaling_keeps_the_fields_attributes():
    class Field:
        nfe = 0

        def __call__(self, x, t):
            self.nfe, self.fraction = self.nfe + 1, torch.full_like(x, t)
            return wavy(x, t)

    inner = Field()
    field = epsilon_scaling(inner, 1.1, "ddpm")
    assert getattr(field, "fraction", None) is None
    field(states(2, 2), 0.25)
    assert field.nfe == 1 and field.fraction is inner.fraction


def test_linear_scale_counts_respaced_steps_from_the_data():
    """CIFAR-10's published schedule at T' = 20: 1.0 at the last step, 1.0475 at the first."""
    times = torch.cat([torch.linspace(1000, 1, 20).double().round() / 1000, torch.zeros(1)])
    scale = linear_scale(0.0025, 1.0, times)
    assert [scale(t) for t in times[:-1].tolist()] == pytest.approx(
        [1 + 0.0025 * i for i in reversed(range(20))]
    )
    assert scale(float(times[3] + times[4]) / 2) == pytest.approx(1 + 0.0025 * 15.5)
    assert scale(0.0) == 1.0
    asked = []
    list(
        heun(
            epsilon_scaling(wavy, lambda t: asked.append(float(scale(t))) or scale(t), "ddpm"),
            states(1, 2),
            times,
        )
    )
    assert asked[:3] == pytest.approx(
        [1.0475, 1.045, 1.045]
    )  # Heun's corrector has the schedule of its own time
    assert_close(
        torch.as_tensor(scale(times[:3])),
        1 + 0.0025 * torch.tensor([19.0, 18, 17], dtype=torch.float64),
    )


@pytest.mark.parametrize("scale", [0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="give a positive number, 1 for none"):
        epsilon_scaling(wavy, scale)


# ---- the sampler


@pytest.mark.parametrize("path", PATHS)
def test_without_adjustment_the_sampler_is_ddim(path):
    x = states(4, 1, 2, 2)
    plain = list(ddim(wavy, x, EVEN, path=path))
    same = list(corrected(wavy, x, EVEN, path=path, adjust=lambda x, t, s: (x, t, t, s)))
    assert [t for _, t in same] == [t for _, t in plain] == EVEN.tolist()
    for (a, _), (b, _) in zip(same, plain, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_state_moved_to_the_level_it_is_believed_at_is_ddim_from_there():
    """A batch whose members are at different levels, sent to one, equals DDIM for each alone."""
    x, now = states(3, 2), torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    *_, (together, s) = corrected(
        wavy, x, float64([0.5, 0.2]), adjust=lambda x, t, s: (x, now, now, s)
    )
    alone = [
        list(ddim(wavy, x[i : i + 1], float64([now[i], 0.2]), path="linear"))[-1][0]
        for i in range(3)
    ]
    assert s == 0.2
    assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


# ---- time shift


def shift(found, **changes):
    settings = {"window": 0.2, "cutoff": 0.1, "mode": "both", "level": found} | changes
    return time_shift(**settings)


@pytest.mark.parametrize("planted", [-0.05, 0.0, 0.04])
def test_time_shift_recovers_a_planted_shift_with_the_exact_posterior(planted):
    ring, prior = toy.ring(dims=64), toy.time_prior()
    x = toy.forward(ring, 1500, 0.5 + planted, torch.Generator().manual_seed(1))
    estimate = toy.posterior_mean(ring, x, prior)
    step = shift(by_estimate(lambda x: estimate), window=0.5)(x, 0.5, 0.4)
    assert step.now.mean().item() == pytest.approx(
        0.5 + planted, abs=4 * estimate.std().item() / math.sqrt(1500) + 0.003
    )
    narrow = shift(by_estimate(lambda x: estimate), window=0.08)(x, 0.5, 0.4).now
    assert_close(narrow, estimate.clamp(0.46, 0.54), rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", ["ddpm", "linear"])
@pytest.mark.parametrize("v0", [0.0, 0.09])
@pytest.mark.parametrize("planted", [-0.03, 0.05])
def test_time_shift_recovers_a_planted_shift_from_the_variance(path, v0, planted):
    c = coefficients(path, 0.3 + planted, ONE)
    x = (c.alpha**2 * v0 + c.sigma**2).sqrt() * states(50, 10_000)
    step = shift(by_variance(path, v0))(x, 0.3, 0.2)
    assert step.now.mean().item() == pytest.approx(0.3 + planted, abs=0.004)
    if v0:  # with the paper's own target, data of that variance reads as noise
        naive = shift(by_variance(path))(x, 0.3, 0.2).now.mean()
        assert naive > step.now.mean() + 0.005


def ts_dpm(x, levels, window, cutoff, mode, v0=0.0):
    """The rule of TS-DPM with DDIM on 1000 levels, one sample and one step at a time; levels
    counted 1 to 1000.
    """
    trajectory = [x]
    for k, (i, j) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        rows = []
        for row in trajectory[-1]:
            told, from_, to = i, i, j
            if k > 0 and i > cutoff:
                nearby = list(range(max(1, i - window // 2), min(1000, i + window // 2) + 1))
                variance = row.flatten().var().item()
                guess = min(nearby, key=lambda n: (variance - (ABAR[n] * v0 + 1 - ABAR[n])) ** 2)
                told = guess if mode != "destination" else i
                from_ = guess if mode == "both" else i
                to = max(0, j + guess - i) if mode == "destination" and j > 0 else j
            rho = ((1 - ABAR[told]) / ABAR[told]) ** 0.5
            eps = noise_of(row / ABAR[told] ** 0.5, rho)
            x0 = (row - (1 - ABAR[from_]) ** 0.5 * eps) / ABAR[from_] ** 0.5
            rows.append(ABAR[to] ** 0.5 * x0 + (1 - ABAR[to]) ** 0.5 * eps)
        trajectory.append(torch.stack(rows))
    return trajectory


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("v0", [0.0, 0.2])
def test_time_shift_is_the_loop_of_ts_dpm(mode, v0):
    levels, window, cutoff = [1000, 820, 640, 450, 280, 100, 0], 41, 100
    x = states(6, 1, 3, 3)  # few pixels, so that variances and with them the shifts differ widely
    truth = ts_dpm(x, levels, window, cutoff, mode, v0)
    plain = ts_dpm(x, levels, 0, cutoff, mode, v0)
    adjust = time_shift(window / 1000, cutoff / 1000, mode, by_variance("ddpm", v0))
    found = [
        s
        for s, _ in corrected(
            gaussian("ddpm"), x, float64(levels) / 1000, path="ddpm", adjust=adjust
        )
    ]
    for a, b in zip(found, truth, strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert (truth[-1] - plain[-1]).abs().max() > 1e-3


def test_time_shift_leaves_the_first_step_and_those_below_the_cutoff_alone():
    def never(x, candidates):
        raise AssertionError("asked")

    x = states(2, 4)
    for mode in MODES:
        for t, start in ((1.0, 1.0), (0.9, 0.9), (0.1, 1.0), (0.05, 1.0)):
            step = shift(never, mode=mode, start=start)(x, t, 0.04)
            assert step.x is x and step[1:] == (t, t, 0.04, 1.0)


def test_candidates_of_the_window_are_centred_on_t_and_end_at_the_ends_of_time():
    seen = []

    def watch(x, candidates):
        seen.append(candidates)
        return candidates[:1].expand(len(x))

    for t, low, high in ((0.5, 0.498, 0.502), (0.999, 0.997, 1.0), (0.002, 0.001, 0.004)):
        shift(watch, window=0.005, cutoff=0.0)(states(2, 4), t, 0.0)
        assert_close(
            seen[-1],
            torch.arange(round(1000 * low), round(1000 * high) + 1).double() / 1000,
            rtol=0,
            atol=1e-12,
        )


def test_a_destination_stays_within_time_and_the_data_stay_the_data():
    lowest = by_estimate(lambda x: torch.zeros(len(x)))
    assert shift(lowest, mode="destination")(states(2, 4), 0.5, 0.05).then.tolist() == [0, 0]
    assert shift(lowest, mode="destination")(states(2, 4), 0.5, 0.0).then == 0


@pytest.mark.parametrize(
    "changes, message", [({"mode": "paper"}, "unknown mode 'paper'"), ({"window": -0.1}, "window")]
)
def test_an_impossible_time_shift_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        shift(by_variance(), **changes)


def test_a_negative_data_variance_is_refused():
    with pytest.raises(ValueError, match="a variance cannot be -1"):
        by_variance("linear", -1)


# ---- noise level correction


def excess(z, rho):
    """A known r(x/alpha, sigma/alpha), other for each sample."""
    return 0.05 + 0.1 * torch.tanh(z.flatten(1).mean(1)) * rho / (1 + rho)


def nlc(z, rhos, style):
    """The official denoising loop in variance-exploding terms: z = x_0 + rho eps."""
    trajectory = [z]
    for rho, after in zip(rhos[:-1], rhos[1:], strict=True):
        level = rho * (1 + excess(z, rho))[:, None]
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
        return excess(x / c.alpha, (c.sigma / c.alpha).item())

    found = [
        s
        for s, _ in corrected(
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
    assert_close(pred.now, partial_.now) and pred.seen is pred.now
    assert_close(pred.then, float64([0.4 / 1.4, 0.3 / 1.3]), rtol=1e-12, atol=1e-12)
    assert partial_.then == 0.25 and partial_.scale == 1.0


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_pure_noise_is_not_corrected(path):
    x = torch.randn(2, 3)
    step = noise_level_correction(lambda x, t: torch.ones(len(x)), "pred", path)(x, 1.0, 0.9)
    assert step.x is x and step[1:] == (1.0, 1.0, 0.9, 1.0)


def test_no_gradient_is_kept_through_the_trajectory():
    weight = torch.nn.Parameter(torch.zeros(()))
    net = SimpleNamespace(
        head=lambda x, t: weight * x.mean(1), estimate=lambda x: weight + x.mean(1)
    )
    for adjust in (noise_level_correction(net.head), shift(by_estimate(net.estimate))):
        *_, (x, _) = corrected(wavy, states(2, 3), EVEN, adjust=adjust)
        assert not x.requires_grad


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="unknown style 'base'"):
        noise_level_correction(lambda x, t: x, "base")
