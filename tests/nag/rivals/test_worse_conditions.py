"""Guidance away from the same network under a worse condition: on the exact toy and on small
networks, against the formulas written out here.
"""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from nag import toy
from nag.guidance import GuidedField
from nag.interpolant import convert
from nag.models import ModelConfig
from nag.rivals.worse_conditions import (
    OtherClass,
    OtherLevel,
    disturbed_time,
    estimated_level,
    independent_condition,
    other_class,
    previous_output,
    self_guidance,
    time_step_guidance,
)
from nag.samplers.one_step import ddim, euler
from nag.samplers.registry import last
from nag.samplers.time_grids import respaced, uniform
from nag.support.rng import generator

T, N = 0.4, 6


@pytest.fixture
def exact():
    """A mixture in four dimensions, its velocity as a network, and forward states at T."""
    data = toy.ring(4)
    net = toy.as_network(partial(toy.velocity, data), partial(toy.velocity, data))
    states = toy.forward(data, N, T, generator(3))
    return data, net, states


def guided(net, terms, x, t):
    """The guided velocity (N, d) of states of the toy."""
    labels = torch.zeros(len(x), dtype=torch.long)
    return GuidedField(net, labels, terms)(x.view(len(x), 1, 1, -1), t).flatten(1)


# ---- Self-Guidance


def test_self_guidance_is_its_formula_on_the_exact_toy(exact):
    data, net, x = exact
    v, noisier = toy.velocity(data, x, T), toy.velocity(data, x, T + 0.05)
    found = guided(net, [self_guidance(3.0, net, 0.05)], x, T)
    assert_close(found, v + 3 * (v - noisier), rtol=1e-5, atol=1e-5)  # t is float32


def test_to_first_order_self_guidance_lowers_the_level(exact):
    """Halving the shift divides the difference from f(x, t - w shift) by four."""
    data, net, x = exact
    gaps = [
        guided(net, [self_guidance(2.0, net, shift)], x, T) - toy.velocity(data, x, T - 2 * shift)
        for shift in (0.004, 0.002)
    ]
    assert 3.5 < (gaps[0].norm() / gaps[1].norm()).item() < 4.5
    assert (
        gaps[1].norm() < 0.05 * (toy.velocity(data, x, T - 0.004) - toy.velocity(data, x, T)).norm()
    )


@pytest.mark.parametrize(("path", "lowest"), [("linear", 0.0), ("ddpm", 0.001)])
def test_the_level_stays_within_the_path(tiny, path, lowest):
    net, x, y = tiny(path=path), torch.randn(3, 1, 8, 8), torch.arange(3)
    keep, t = torch.zeros(3, dtype=torch.bool), torch.tensor([0.005, 0.5, 0.995])
    with torch.no_grad():
        assert_close(OtherLevel(net, 0.1)(x, t, y, keep), net(x, (t + 0.1).clamp_max(1), y, keep))
        told = torch.tensor([lowest, 0.4, 0.895])
        assert_close(OtherLevel(net, -0.1)(x, t, y, keep), net(x, told, y, keep))


def test_other_conditions_reach_a_network_that_learns_its_variance(tiny):
    net = tiny(learn_sigma=True, prediction="eps", path="ddpm", time_scale=1000.0, time_offset=-1.0)
    x, y, t = torch.randn(3, 1, 8, 8), torch.arange(3), torch.full((3,), 0.5)
    field = GuidedField(net, y, [self_guidance(1.0, net, 0.2), independent_condition(1.5, net)])
    found = field.with_variance(x, 0.5)
    with torch.no_grad():
        keep = torch.zeros(3, dtype=torch.bool)
        here = net(x, t, y, keep)
        noisier = net(x, t + 0.2, y, keep)
        other = net(x, t, other_class(y, t, 3), keep)
    eps = here + (here - noisier) + 0.5 * (here - other)
    assert_close(found.mean, convert(eps, x, 0.5, "eps", "v", "ddpm"), rtol=1e-4, atol=1e-4)
    assert found.fraction.shape == x.shape and field.nfe == 3


# ---- the level that a state looks to have


@pytest.mark.parametrize("read_at", ["t", "own"])
def test_the_estimated_level_takes_the_place_of_the_null(exact, read_at):
    data, net, x = exact
    seen = torch.linspace(0.35, 0.45, N)
    net.config = ModelConfig(prediction="v", classes=1)
    term = estimated_level(1.5, net, lambda x: seen, read_at)
    net = toy.as_network(net.conditional, net.dropped)
    here, there = toy.velocity(data, x, T), toy.velocity(data, x, seen.double())
    if read_at == "own":
        score = toy.score(data, x, seen.double())
        there = convert(score, x, T, "score", "v")
    found = guided(net, [term], x, T)
    assert_close(found, here + 1.5 * (here - there), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="read at"):
        estimated_level(1.0, net, lambda x: seen, "elsewhere")


# ---- the step before


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_the_step_before_is_the_negative(tiny, prediction):
    """By hand in the network's own terms, below t = 0.5 only, at no further evaluation."""
    path = "linear" if prediction == "v" else "ddpm"
    solver, times = (euler, uniform(6)) if prediction == "v" else (ddim, respaced(6))
    net, x, y = tiny(prediction=prediction, path=path), torch.randn(3, 1, 8, 8), torch.arange(3)
    plain, state, before = GuidedField(net, y), x, None
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        f = plain.predict(state, t).mean
        d = f + 3 * (f - before) if t < 0.5 else f
        before, v = f, convert(d, state, t, prediction, "v", path)
        step = torch.tensor([t, s], dtype=torch.float64)
        state = last(solver(lambda x, t, v=v: v, state, step, None, path))
    field = GuidedField(net, y)
    found = last(solver(previous_output(field, 3.0), x, times, None, path))
    assert_close(found, state, rtol=1e-4, atol=1e-4)
    assert field.nfe == 6


# ---- Time-Step Guidance


def test_the_embedding_is_disturbed_as_its_formula_says(tiny):
    net, x, y = (
        tiny(time_scale=1000.0, time_offset=-1.0),
        torch.randn(4, 1, 8, 8),
        torch.arange(4) % 3,
    )
    t, keep = torch.tensor([0.1, 0.3, 0.6, 1.0]), torch.zeros(4, dtype=torch.bool)
    n = torch.randn(net.config.width, generator=generator(5, 6))
    with torch.no_grad():
        tokens, c = net.embed(x, t, y, keep)
        e = net.t_embedder(1000 * t - 1, keep)
        c = c + 2 * (t**1.5 * e.std(1))[:, None] * n
        for block in net.blocks:
            tokens = block(tokens, c)
        wanted = net.unpatchify(net.final_layer(tokens, c))
        twin = disturbed_time(net, 2.0, 1.5, seed=5)
        assert_close(twin(x, t, y, keep), wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(disturbed_time(net, 0.0, 1.5)(x, t, y, keep), net(x, t, y, keep))
    assert twin.blocks[0] is net.blocks[0] and "noise" not in net.state_dict()
    field = GuidedField(net, y, [time_step_guidance(2.5, net, 2.0, 1.5)])
    v, disturbed = net(x, t, y, keep), disturbed_time(net, 2.0, 1.5)(x, t, y, keep)
    assert_close(field(x, t), (v + 1.5 * (v - disturbed)).detach(), rtol=1e-4, atol=1e-4)


# ---- Independent Condition Guidance


def test_with_two_classes_the_other_one_is_the_negative(tiny):
    net, x, y = tiny(classes=2), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 1, 0])
    keep, t = torch.zeros(4, dtype=torch.bool), torch.full((4,), 0.7)
    with torch.no_grad():
        own, other = net(x, t, y, keep), net(x, t, 1 - y, keep)
    found = GuidedField(net, y, [independent_condition(1.4, net)])(x, 0.7)
    assert_close(found, own + 0.4 * (own - other), rtol=1e-4, atol=1e-4)


def test_the_other_class_is_never_its_own_and_each_as_likely():
    y, times = torch.arange(10), uniform(500)[:-1]
    drawn = torch.stack([other_class(y, t.expand(10), 10) for t in times])
    assert not (drawn == y).any() and drawn.min() == 0 and drawn.max() == 9
    counts = torch.stack([(drawn[:, k] == (k + 1 + j) % 10).sum() for k in y for j in range(9)])
    chi_squared = (counts - 500 / 9).square().sum() / (500 / 9)  # 80 degrees of freedom
    assert chi_squared < 130
    for row, t in enumerate(times[:5]):  # an image does not depend on its batch
        assert other_class(y[3:4], t[None], 10) == drawn[row, 3]


def test_a_network_of_one_class_has_no_other(tiny):
    with pytest.raises(ValueError, match="no other class"):
        OtherClass(tiny(classes=1))
