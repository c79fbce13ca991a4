"""DDPM's discrete side against the joint Normal it comes from, and its bound against numerical
integration.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from nag.ddpm import discretise, grey_log_likelihood, log_variance, posterior, variational_bound
from nag.interpolant import add_noise, coefficients


@pytest.mark.parametrize("path", ["ddpm", "linear", "cosine"])
def test_posterior_is_the_conditional_of_the_joint_normal(path):
    """x_s = alpha_s x_0 + sigma_s e and x_t = r x_s + sqrt(beta) e': condition x_s on x_t by the
    textbook formula.
    """
    t, s, one = 0.6, 0.35, torch.ones((), dtype=torch.float64)
    now, then = coefficients(path, t, one), coefficients(path, s, one)
    r = now.alpha / then.alpha
    a, b, variance, beta = posterior(t, s, one, path)
    gain = r * then.sigma**2 / now.sigma**2  # cov(x_s, x_t) / var(x_t), given x_0
    assert_close(b, gain)
    assert_close(a, then.alpha - gain * now.alpha)
    assert_close(variance, then.sigma**2 - gain * r * then.sigma**2)
    assert_close(beta, now.sigma**2 - r**2 * then.sigma**2)


def test_the_step_to_the_data_is_x0_itself():
    a, b, variance, _ = posterior(0.2, 0.0, torch.ones(2, 1), "linear")
    assert (a.item(), b.item(), variance.item()) == pytest.approx((1, 0, 0))


def test_discretise_gives_every_level_its_share():
    times = discretise(torch.linspace(0, 1 - 1e-6, 100_000, dtype=torch.float64))
    levels, counts = times.unique(return_counts=True)
    assert_close(levels, torch.arange(1, 1001, dtype=torch.float64) / 1000)
    assert counts.max() - counts.min() <= 1


def test_log_variance_runs_from_the_posteriors_to_beta():
    like = torch.ones(1, 1, dtype=torch.float64)
    *_, variance, beta = posterior(0.5, 0.499, like)
    assert_close(log_variance(0 * like, 0.5, 0.499).squeeze(), variance.log().squeeze())
    assert_close(log_variance(like, 0.5, 0.499).squeeze(), beta.log().squeeze())
    *_, at_second_level, _ = posterior(0.002, 0.001, like)
    assert_close(
        log_variance(0 * like, 0.001, 0.0).squeeze(), at_second_level.log().squeeze()
    )  # not minus infinity


@pytest.mark.parametrize("level", [2, 50, 999])
def test_the_bound_is_the_kl_of_the_two_normals(level):
    """By the library's own KL, for a mean and a variance that are both wrong."""
    t = torch.full((3,), level / 1000, dtype=torch.float64)
    x0 = torch.rand(3, 1, 4, 4, dtype=torch.float64) * 2 - 1
    x_t, wrong = add_noise(x0, torch.randn_like(x0), t, "ddpm"), x0 + 0.1 * torch.randn_like(x0)
    fraction = torch.rand_like(x0)
    a, b, variance, _ = posterior(t, t - 0.001, x0)
    true = torch.distributions.Normal(a * x0 + b * x_t, variance.sqrt())
    model = torch.distributions.Normal(
        a * wrong + b * x_t, (0.5 * log_variance(fraction, t, t - 0.001)).exp()
    )
    kl = torch.distributions.kl_divergence(true, model).flatten(1).mean(1) / math.log(2)
    assert_close(variational_bound(fraction, wrong, x0, x_t, t), kl, rtol=1e-4, atol=1e-9)


def test_the_bound_of_the_first_level_is_the_likelihood_of_the_grey_level():
    grey = (
        torch.tensor([-1.0, -0.2, 0.6, 1.0], dtype=torch.float64)
        .mul(127.5)
        .round()
        .div(127.5)
        .view(1, 1, 2, 2)
    )
    t = torch.tensor([0.001], dtype=torch.float64)
    x_t, fraction = add_noise(grey, torch.randn_like(grey), t, "ddpm"), torch.full_like(grey, 0.5)
    std = (0.5 * log_variance(fraction, t, torch.zeros_like(t))).exp()
    model = torch.distributions.Normal(
        grey, std
    )  # a perfect x0 is the mean of the step to the data
    edges = [
        torch.where(grey < -0.999, -math.inf, grey - 1 / 255),
        torch.where(grey > 0.999, math.inf, grey + 1 / 255),
    ]
    wanted = -(model.cdf(edges[1]) - model.cdf(edges[0])).log().mean() / math.log(2)
    assert_close(variational_bound(fraction, grey, grey, x_t, t)[0], wanted, rtol=1e-6, atol=1e-9)


def test_the_grey_levels_probabilities_sum_to_one():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, std in ((0.3, 0.1), (-1.2, 0.5), (0.99, 0.01)):
        log_p = grey_log_likelihood(
            levels, torch.full_like(levels, mean), torch.full_like(levels, 2 * math.log(std))
        )
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_learned_variance_minimises_the_bound_at_the_error_of_the_mean():
    """A larger error of x0 asks for a larger variance: the bound's best fraction rises with it."""
    t = torch.full((200,), 0.02, dtype=torch.float64)
    x0 = torch.rand(200, 1, 4, 4, dtype=torch.float64) * 2 - 1
    x_t = add_noise(x0, torch.randn_like(x0), t, "ddpm")
    grid, best = torch.linspace(-1, 6, 71, dtype=torch.float64), []
    for error in (0.02, 0.1, 0.3):
        wrong = x0 + error * torch.randn_like(x0)
        bounds = [
            variational_bound(torch.full_like(x0, f.item()), wrong, x0, x_t, t).mean() for f in grid
        ]
        best.append(grid[torch.stack(bounds).argmin()].item())
    assert best[0] < best[1] < best[2]
