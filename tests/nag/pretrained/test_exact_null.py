"""The score of the pooled noise levels: on the exact toy, where it is a closed form, and learned by
a twin that leaves the network as it is.
"""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from nag import toy
from nag.guidance import GuidedField
from nag.interpolant import add_noise, convert, time_of_sigma
from nag.models import ModelConfig
from nag.pretrained.exact_null import (
    ScoreAtOwnLevel,
    exact_noise_awareness,
    pooled_error,
    pooled_errors,
    pooled_score_loss,
)
from nag.pretrained.null_branch import separate_branch
from nag.support.rng import generator
from nag.train import TrainConfig, train

DATA, PRIOR = toy.ring(8), toy.time_prior("uniform", nodes=60, reach=3.0)
N = 8_000


def level(x):
    """The exact E[t | x], as an estimator gives it."""
    return toy.posterior_mean(DATA, x.double().flatten(1), PRIOR)


def branch_of(score):
    """A network without noise level whose v, read at t = `level`, is the score."""

    def v(x, t):
        return convert(score(x), x, t, "score", "v")

    net = toy.as_network(partial(toy.velocity, DATA), v)
    net.config = ModelConfig(prediction="v", classes=1)
    return net


def exact(x):
    return toy.unconditional_score(DATA, x, PRIOR)


@pytest.fixture(scope="module")
def pooled():
    """States x (N, 8) of the pooled levels, their times, noise, exact levels and exact scores."""
    gen = generator(1)
    t = PRIOR.times[torch.multinomial(PRIOR.weights, N, replacement=True, generator=gen)]
    x0, eps = toy.sample(DATA, N, gen), torch.randn(N, 8, generator=gen, dtype=torch.float64)
    x = add_noise(x0, eps, t)
    return x, t, eps, level(x), exact(x)


def test_denoising_score_matching_over_all_levels_learns_the_exact_score(pooled):
    """The residual of -eps / sigma_t is orthogonal to functions of x, weighted by one of x too."""
    x, t, eps, r, score = pooled
    residual = -eps / t[:, None] - score
    weight = r[:, None] ** 2
    for feature in (torch.ones_like(x), x, x.sin(), score, weight * x, weight * score):
        product = (residual * feature).sum(1)
        assert abs(product.mean()) < 4 * product.std() / math.sqrt(N)


def test_the_error_is_least_for_the_exact_score(pooled):
    """In pairs; what dropout learns, read at the sampler's t or at its own level, is farther."""
    flat, t, noise, r, score = pooled
    x, eps = (a.view(N, 1, 1, 8) for a in (flat, noise))
    y = torch.zeros(N, dtype=torch.long)

    def error(branch):
        branch.config = ModelConfig(prediction="v", classes=1)
        return pooled_error(branch, lambda x: r, x, t, eps, y)

    found = error(branch_of(lambda x: score))
    mean = partial(toy.average, DATA, prior=PRIOR, kind="v")
    others = [
        branch_of(lambda x: 1.07 * score),
        branch_of(lambda x: 0.93 * score),
        toy.as_network(partial(toy.velocity, DATA), lambda x, t: mean(x)),
    ]
    for other in others:
        excess = error(other) - found
        assert excess.mean() > 4 * excess.std() / math.sqrt(N)


def test_nag_in_the_score_form_is_the_gradient_of_the_posterior():
    """s(x|t) + w (s(x|t) - s(x)) = s(x|t) + w grad log p(t|x), by the code that guides nets."""
    t = PRIOR.times[30].item()
    x = toy.forward(DATA, 20, t, generator(2))
    labels = torch.zeros(20, dtype=torch.long)
    pooled = ScoreAtOwnLevel(branch_of(exact), level)
    states = x.view(20, 1, 1, 8)
    assert_close(pooled(states, None, labels).flatten(1).double(), exact(x), rtol=1e-3, atol=1e-3)
    net = toy.as_network(partial(toy.velocity, DATA), partial(toy.velocity, DATA))
    term = exact_noise_awareness(1.5, pooled)
    found = GuidedField(net, labels, [term])(states, t).flatten(1)
    score = toy.score(DATA, x, t) + 1.5 * toy.posterior_gradient(DATA, x, t, PRIOR)
    assert_close(found, convert(score, x, t, "score", "v"), rtol=1e-3, atol=1e-3)
    assert GuidedField(net, labels, [term])(states, 0.99).equal(
        GuidedField(net, labels)(states, 0.99)
    )


@pytest.mark.parametrize("prediction", ["v", pytest.param("eps", marks=pytest.mark.slow)])
def test_a_twin_learns_it_and_the_network_stays_as_it_is(tiny, tmp_path, on_cpu, prediction):
    """Of flat images, whose noise is their spread."""
    path = "linear" if prediction == "v" else "ddpm"
    net = tiny(awake=False, prediction=prediction, path=path, learn_sigma=prediction == "eps")
    labels = torch.arange(512) % 3
    images = (0.5 * labels - 0.5).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def seen(x):
        sigma = x.flatten(1).std(1)
        return (
            sigma if path == "linear" else time_of_sigma(sigma.clamp_max(0.999), path).float()
        ).clamp(0.01, 0.98)

    twin = separate_branch(net, ["blocks.0", "final_layer"])
    loss = pooled_score_loss(images[:384], labels[:384], seen, class_dropout=0.1)
    start = pooled_errors(twin, seen, images[384:], labels[384:], seed=3)
    config = TrainConfig(
        images_seen=9_600, batch_size=64, lr=3e-3, warmup_steps=10, ema_decay=0.95,
        precision="fp32", compile=False,
    )  # fmt: skip
    train(twin, loss, 384, config, tmp_path / "twin.pt")
    after = pooled_errors(twin, seen, images[384:], labels[384:], seed=3)
    assert torch.equal(start[0], after[0]) and after[1].mean() < 0.8 * start[1].mean()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_floor_outside_of_the_levels_is_refused():
    with pytest.raises(ValueError, match="least noise level"):
        pooled_score_loss(torch.zeros(1, 1, 8, 8), torch.zeros(1), level, floor=0.0)
