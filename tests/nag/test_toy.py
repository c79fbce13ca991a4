"""The exact toy against autograd, Gaussian closed forms, other libraries and its own laws."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import energy_distance, multivariate_normal

from nag import toy as T
from nag.guidance import GuidedField, noise_awareness
from nag.interpolant import PATHS, Coefficients, convert
from nag.samplers.one_step import euler, heun
from nag.samplers.registry import last
from nag.samplers.time_grids import uniform
from nag.support.rng import generator

VE = {
    "alpha one": lambda t: Coefficients(
        torch.ones_like(t), t, torch.zeros_like(t), torch.ones_like(t)
    )
}


@pytest.fixture
def alpha_one(monkeypatch):
    """The path x_t = x_0 + t eps, on which the paper's Statement 1 is exact."""
    monkeypatch.setitem(PATHS, *next(iter(VE.items())))
    return "alpha one"


def example(dims: int = 3, components: int = 3, path: str = "linear", seed: int = 0) -> T.Mixture:
    """A mixture with full, unequal covariances."""
    gen = generator(seed)
    roots = 0.4 * torch.randn(components, dims, dims, generator=gen, dtype=torch.float64)
    covariances = roots @ roots.mT + 0.02 * torch.eye(dims)
    weights, means = (
        torch.rand(components, generator=gen) + 0.2,
        torch.randn(components, dims, generator=gen),
    )
    return T.mixture(weights, means, covariances, path)


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


@pytest.mark.parametrize("path", sorted(PATHS))
def test_log_prob_and_score(path):
    toy, gen = example(path=path), generator(1)
    t = 0.05 + 0.9 * torch.rand(40, generator=gen, dtype=torch.float64)
    x = T.forward(toy, 40, t, gen)
    c = Coefficients(*(a.numpy() for a in PATHS[path](t)))
    density = np.zeros(40)
    for w, mean, variances, axes in zip(*(a.numpy() for a in toy[:4]), strict=True):
        covariance = (axes * variances) @ axes.T
        for i in range(40):
            law = multivariate_normal(
                c.alpha[i] * mean, c.alpha[i] ** 2 * covariance + c.sigma[i] ** 2 * np.eye(3)
            )
            density[i] += w * law.pdf(x[i].numpy())
    torch.testing.assert_close(
        T.log_prob(toy, x, t), torch.as_tensor(density).log(), atol=1e-10, rtol=1e-10
    )
    expected = gradient(lambda x: T.log_prob(toy, x, t), x)
    torch.testing.assert_close(T.score(toy, x, t), expected, atol=1e-10, rtol=1e-10)
    for kind in (
        "v",
        "eps",
        "x0",
    ):  # each has its own closed form; the interpolant's algebra must agree
        converted = convert(expected, x, t, "score", kind, path)
        torch.testing.assert_close(T.predict(toy, x, t, kind), converted, atol=1e-9, rtol=1e-9)


def test_single_gaussian():
    mean, covariance, t = (
        torch.tensor([0.5, -1.0]).double(),
        torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double(),
        0.3,
    )
    toy = T.mixture([1.0], mean[None], covariance[None])
    x = T.forward(toy, 10, t, generator(2))
    precision = torch.linalg.inv(0.7**2 * covariance + t**2 * torch.eye(2))
    residual = x - 0.7 * mean
    torch.testing.assert_close(T.score(toy, x, t), -residual @ precision)
    x0, eps = mean + 0.7 * residual @ precision @ covariance, t * residual @ precision
    torch.testing.assert_close(T.predict(toy, x, t, "x0"), x0)
    torch.testing.assert_close(T.velocity(toy, x, t), eps - x0)


def test_both_ends_are_finite():
    toy, x = example(), torch.randn(5, 3, generator=generator(3), dtype=torch.float64)
    torch.testing.assert_close(T.predict(toy, x, 0.0, "x0"), x)
    torch.testing.assert_close(T.predict(toy, x, 1.0, "eps"), x)
    torch.testing.assert_close(T.velocity(toy, x, 1.0), x - (toy.weights @ toy.means))


def test_samples_have_the_mixture_s_moments():
    toy = example()
    x = T.forward(toy, 200_000, 0.4, generator(4))
    mean = toy.weights @ toy.means
    covariance = torch.einsum("k,kde,ke,kfe->df", toy.weights, toy.axes, toy.variances, toy.axes)
    centred = toy.means - mean
    covariance = covariance + torch.einsum("k,kd,ke->de", toy.weights, centred, centred)
    torch.testing.assert_close(x.mean(0), 0.6 * mean, atol=0.01, rtol=0)
    torch.testing.assert_close(
        x.T.cov(), 0.36 * covariance + 0.16 * torch.eye(3), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("name", sorted(T.PRIORS))
def test_score_identity(name):
    """grad log p(x|t) = grad log p(x) + grad log p(t|x) (paper, Sec. 3), each side by a road of its
    own.
    """
    toy, prior = example(), T.time_prior(name)
    place = 60
    t = prior.times[place]
    x = T.forward(toy, 30, t, generator(5))
    of_x = gradient(lambda x: T.log_joint(toy, x, prior).logsumexp(-1), x)
    of_t = gradient(lambda x: T.posterior(toy, x, prior)[:, place].log(), x)
    tight = dict(atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(T.score(toy, x, t), of_x + of_t, **tight)
    torch.testing.assert_close(T.unconditional_score(toy, x, prior), of_x, **tight)
    torch.testing.assert_close(T.posterior_gradient(toy, x, t, prior), of_t, **tight)
    torch.testing.assert_close(
        T.posterior(toy, x, prior).sum(1), torch.ones(30).double(), atol=1e-12, rtol=0
    )


def test_posterior_by_bayes_and_calibrated():
    toy, prior, gen = T.ring(8), T.time_prior("uniform"), generator(6)
    x = T.forward(toy, 3, 0.2, gen)
    joint = torch.stack([w * T.log_prob(toy, x, t).exp() for t, w in zip(*prior, strict=True)], 1)
    torch.testing.assert_close(
        T.posterior(toy, x, prior), joint / joint.sum(1, keepdim=True), atol=1e-12, rtol=1e-9
    )
    t = prior.times[torch.multinomial(prior.weights, 5000, replacement=True, generator=gen)]
    error = T.posterior_mean(toy, T.forward(toy, 5000, t, gen), prior) - t
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(
        5000
    )  # E[E[t|x]] = E[t] when t comes from the prior


def test_rows_in_pieces(monkeypatch):
    toy, prior = example(), T.time_prior()
    x = T.forward(toy, 7, 0.3, generator(7))
    whole = T.average(toy, x, prior, "v"), T.log_joint(toy, x, prior)
    monkeypatch.setattr(T, "CELLS", 1)
    torch.testing.assert_close((T.average(toy, x, prior, "v"), T.log_joint(toy, x, prior)), whole)


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
def test_average_is_the_least_squares_answer(kind):
    """Training without a noise condition regresses the target on x alone; the average over p(t|x)
    is that mean.
    """
    toy, prior = example(), T.time_prior("logit-normal", nodes=40)
    x = T.forward(toy, 6, 0.3, generator(8))
    by_hand = sum(
        p[:, None] * T.predict(toy, x, t, kind)
        for t, p in zip(prior.times, T.posterior(toy, x, prior).T, strict=True)
    )
    torch.testing.assert_close(T.average(toy, x, prior, kind), by_hand)


def test_average_beats_its_neighbours_in_regression():
    toy, prior, gen = example(dims=2), T.time_prior("uniform"), generator(9)
    n = 10_000
    t = prior.times[torch.multinomial(prior.weights, n, replacement=True, generator=gen)]
    x0, eps = T.sample(toy, n, gen), torch.randn(n, 2, generator=gen, dtype=torch.float64)
    x, target = (1 - t)[:, None] * x0 + t[:, None] * eps, eps - x0
    learned = T.average(toy, x, prior, "v")
    residual = target - learned
    for feature in (
        torch.ones_like(x),
        x,
        x.sin(),
        learned,
    ):  # orthogonal to functions of x: no better predictor
        product = (residual * feature).sum(1)
        assert abs(product.mean()) < 4 * product.std() / math.sqrt(n)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_ode_maps_gaussian_quantiles(path):
    """A flow on the line keeps order, so it maps the quantiles of N(alpha m, alpha^2 s^2 + sigma^2)
    exactly.
    """
    toy = T.mixture([1.0], [[0.7]], [0.3**2], path)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def quantiles(t):
        c = PATHS[path](torch.tensor(t, dtype=torch.float64))
        return c.alpha * 0.7 + (c.alpha**2 * 0.3**2 + c.sigma**2).sqrt() * z

    finite_difference = (quantiles(0.4 + 1e-5) - quantiles(0.4 - 1e-5)) / 2e-5
    torch.testing.assert_close(
        T.velocity(toy, quantiles(0.4), 0.4), finite_difference, atol=1e-8, rtol=1e-8
    )
    x = last(heun(partial(T.velocity, toy), quantiles(1.0), uniform(400), path=path))
    torch.testing.assert_close(x, quantiles(0.0), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("sampler, order", [(euler, 1), (heun, 2)])
def test_order_of_convergence(sampler, order):
    toy = example(dims=2)
    x = T.forward(toy, 50, 0.9, generator(10))
    ends = {
        n: last(sampler(partial(T.velocity, toy), x, uniform(n, 0.9, 0.1))) for n in (40, 80, 1280)
    }
    error = {n: (ends[n] - ends[1280]).square().mean().sqrt() for n in (40, 80)}
    # Heun's last step is Euler's: one step of local error h^2, which leaves the global order at two
    assert abs(math.log2(error[40] / error[80]) - order) < 0.25


def test_statement_1_exact_where_alpha_is_one(alpha_one):
    """x_t + N(0, s^2 I) has exactly the law of level sqrt(t^2 + s^2) when alpha = 1, as quadrature
    confirms.
    """
    toy, t, s = T.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.1], alpha_one), 0.3, 0.25
    nodes, mass = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(80))
    x = torch.linspace(-2, 2, 15, dtype=torch.float64)
    convolved = (T.log_prob(toy, (x[:, None] - s * nodes)[..., None], t).exp() * mass).sum(
        1
    ) / mass.sum()
    torch.testing.assert_close(
        convolved.log(), T.log_prob(toy, x[:, None], math.hypot(t, s)), atol=1e-7, rtol=0
    )
    prior = T.time_prior("uniform", nodes=128)
    many, gen = T.ring(64, path=alpha_one), generator(11)
    noisy = T.forward(many, 500, t, gen) + s * torch.randn(
        500, 64, generator=gen, dtype=torch.float64
    )
    shift = T.posterior_mean(many, noisy, prior) - T.posterior_mean(
        many, T.forward(many, 500, t, gen), prior
    )
    assert shift.mean().item() == pytest.approx(math.hypot(t, s) - t, abs=0.008)


def test_statement_1_on_the_linear_path():
    """With alpha = 1 - t the noisy state is exact only after rescaling to equal alpha/sigma: t' = r
    / (1 - t + r).
    """
    toy, t, s = T.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.1]), 0.3, 0.25
    r = math.hypot(t, s)
    exact, scale = r / (1 - t + r), 1 / (1 - t + r)
    nodes, mass = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(80))
    x = torch.linspace(-2, 2, 15, dtype=torch.float64)
    convolved = (T.log_prob(toy, (x[:, None] - s * nodes)[..., None], t).exp() * mass).sum(
        1
    ) / mass.sum()
    rescaled = T.log_prob(toy, scale * x[:, None], exact) + math.log(scale)
    torch.testing.assert_close(convolved.log(), rescaled, atol=1e-7, rtol=0)
    assert (
        convolved.log() - T.log_prob(toy, x[:, None], r)
    ).abs().max() > 0.05  # no such law at the paper's level


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_classifier_based_equals_classifier_free(weight):
    """s + w grad log p(t|x) = (w + 1) s - w grad log p(x): the two NAG forms with exact fields
    (paper, Sec. 3).
    """
    toy, prior = T.ring(16), T.time_prior("log-uniform")
    place = 50
    t = prior.times[place]
    x = T.forward(toy, 50, t, generator(12))
    classifier = gradient(lambda x: T.posterior(toy, x, prior)[:, place].log(), x)
    based = T.score(toy, x, t) + weight * classifier
    free = (weight + 1) * T.score(toy, x, t) - weight * T.unconditional_score(toy, x, prior)
    torch.testing.assert_close(based, free, atol=1e-10, rtol=1e-10)


def test_network_wrapper_guides_as_the_formula():
    toy, prior, w, t = T.ring(16), T.time_prior(), 0.7, 0.4
    dropped = lambda x, t: T.average(toy, x, prior, "v")  # noqa: E731
    net = T.as_network(partial(T.velocity, toy), dropped)
    x = T.forward(toy, 9, t, generator(13))
    field = GuidedField(net, torch.zeros(9, dtype=torch.long), [noise_awareness(w)])
    v = T.velocity(toy, x, t)
    guided = field(x.view(9, 1, 1, 16), t).flatten(1)
    torch.testing.assert_close(guided, v + w * (v - dropped(x, t)), atol=1e-4, rtol=1e-4)


def test_energy_distance():
    gen = generator(14)
    x, y = torch.randn(300, 1, generator=gen), torch.randn(400, 1, generator=gen) + 0.5
    result = T.energy_distance(x, y)
    biased = (
        energy_distance(x.flatten().numpy(), y.flatten().numpy()) ** 2
    )  # scipy counts a row against itself
    extra = torch.cdist(x, x).mean() / 299 + torch.cdist(y, y).mean() / 399
    assert result["value"] == pytest.approx(biased - extra.item(), abs=1e-6)
    assert result["low"] < result["value"] < result["high"]
    same = T.energy_distance(torch.randn(300, 4, generator=gen), torch.randn(400, 4, generator=gen))
    assert same["low"] < 0 < same["high"]


def test_bad_input():
    with pytest.raises(ValueError, match="unknown path"):
        T.mixture([1.0], [[0.0]], [1.0], "curved")
    with pytest.raises(ValueError, match="give \\(K,\\)"):
        T.mixture([1.0], [[0.0], [1.0]], [1.0])
    with pytest.raises(ValueError, match="positive"):
        T.mixture([1.0], [[0.0]], [0.0])
    with pytest.raises(ValueError, match="dims >= 2"):
        T.ring(1)
    with pytest.raises(ValueError, match="unknown prediction"):
        T.predict(T.ring(2), torch.zeros(1, 2), 0.5, "velocity")
    with pytest.raises(ValueError, match="unknown prior"):
        T.time_prior("beta")
