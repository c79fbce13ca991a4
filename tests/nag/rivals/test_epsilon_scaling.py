"""Epsilon scaling against its papers' formulas, written out here, and against closed forms."""

from functools import partial

import pytest
import torch
from rival_fields import (
    ABAR,
    BETAS,
    CENTRE,
    EVEN,
    PATHS,
    SPREAD,
    alpha_sigma,
    float64,
    gaussian,
    noise_of,
    states,
    wavy,
)
from torch.testing import assert_close

from nag.ddpm import Prediction
from nag.interpolant import coefficients, convert
from nag.rivals.epsilon_scaling import epsilon_scaling, score_rescaling
from nag.samplers.one_step import ddim, ddpm, euler, euler_maruyama


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


def test_the_learned_variance_of_a_field_is_kept():
    class Learned:
        __call__ = staticmethod(wavy)

        def with_variance(self, x, t):
            return Prediction(wavy(x, t), torch.full_like(x, t))

    x = states(2, 2)
    field = epsilon_scaling(Learned(), 1.1, "ddpm")
    v, fraction = field.with_variance(x, 0.25)
    assert torch.equal(v, field(x, 0.25)) and torch.equal(fraction, torch.full_like(x, 0.25))
    assert epsilon_scaling(wavy, 1.1).with_variance(x, 0.25).fraction is None


@pytest.mark.parametrize("scale", [0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="give a positive number, 1 for none"):
        epsilon_scaling(wavy, scale)


# ---- Temporal Score Rescaling


@pytest.mark.parametrize("path", PATHS)
def test_score_rescaling_is_one_at_noise_and_k_at_the_data(path):
    scale = score_rescaling(0.95, 0.7, path)
    assert float(scale(0.0)) == pytest.approx(1 / 0.95, abs=1e-6)
    assert float(scale(1.0)) == pytest.approx(1, abs=1e-4)
    between = scale(torch.linspace(0.01, 0.99, 50))
    assert (between.diff() < 0).all() and torch.equal(
        score_rescaling(1.0, 0.7, path)(0.3), 1 + 0 * scale(0.3)
    )


@pytest.mark.parametrize("k", [0.8, 1.25])
def test_score_rescaling_samples_the_narrower_gaussian(k):
    """Of N(mu, sigma^2) data it is the exact field of N(mu, sigma^2 / k)."""
    x, field = states(5, 3), gaussian("linear")
    scaled = epsilon_scaling(field, score_rescaling(k, SPREAD), "linear")
    for t in (0.1, 0.5, 0.9):
        variance = (1 - t) ** 2 * SPREAD**2 / k + t**2
        score = -(x - (1 - t) * CENTRE) / variance
        # the noise part alone is scaled, about the mean of a centred path
        found = convert(scaled(x, t), x, t, "v", "score", "linear")
        assert_close(found, score)
    with pytest.raises(ValueError, match="positive numbers"):
        score_rescaling(-1.0)
