"""Paths against autograd, numpy and their definitions; conversions against known x0 and eps."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nag.interpolant import (
    PATHS,
    PREDICTIONS,
    add_noise,
    coefficients,
    convert,
    falling,
    from_score,
    velocity_target,
)

TIMES = torch.tensor(
    [0.0137, 0.2104, 0.50037, 0.7702, 0.9931], dtype=torch.float64
)  # none is a node of the DDPM table

OWN = ("linear", "cosine", "vp", "ddpm")  # notebook 0 registers one more path, for its toy alone


@pytest.mark.parametrize("path", OWN)
def test_derivatives_are_those_of_autograd(path):
    t = TIMES.clone().requires_grad_()
    c = PATHS[path](t)
    for value, slope in ((c.alpha, c.d_alpha), (c.sigma, c.d_sigma)):
        (truth,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert_close(slope.detach(), truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", ["cosine", "vp", "ddpm"])
def test_variance_is_preserved(path):
    c = PATHS[path](TIMES)
    assert_close(c.alpha**2 + c.sigma**2, torch.ones_like(TIMES))


# alpha_1 from the definitions: exp(-1/2 integral of beta) for vp, the product of the 1000 sqrt(1 -
# beta) for DDPM.
ALPHA_ONE = {
    "linear": 0.0,
    "cosine": 0.0,
    "vp": np.exp(-0.5 * (20.0 + 0.1) / 2),
    "ddpm": np.sqrt(np.prod(1 - np.linspace(1e-4, 0.02, 1000))),
}


@pytest.mark.parametrize("path", OWN)
def test_ends(path):
    c = PATHS[path](torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert_close(
        c.alpha, torch.tensor([1.0, ALPHA_ONE[path]], dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    assert_close(
        c.sigma, torch.tensor([0.0, np.sqrt(1 - ALPHA_ONE[path] ** 2)], dtype=torch.float64)
    )


def test_vp_is_the_integral_of_linear_beta():
    u = np.linspace(0, 0.6, 2001)
    integral = np.trapezoid(0.1 + u * (20 - 0.1), u)
    assert PATHS["vp"](torch.tensor(0.6, dtype=torch.float64)).alpha.item() == pytest.approx(
        np.exp(-integral / 2)
    )


def test_ddpm_between_its_levels_is_their_geometric_mean():
    low, middle, high = PATHS["ddpm"](
        torch.tensor([0.300, 0.3005, 0.301], dtype=torch.float64)
    ).alpha
    assert middle.item() == pytest.approx((low * high).sqrt().item(), rel=1e-12)


@pytest.mark.parametrize("path", OWN)
@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_every_conversion_finds_the_known_truth(path, source, target):
    x0, eps = torch.randn(2, len(TIMES), 1, 3, 2, dtype=torch.float64)
    truth = {
        "x0": x0,
        "eps": eps,
        "v": velocity_target(x0, eps, TIMES, path),
        "score": -eps / coefficients(path, TIMES, x0).sigma,
    }
    x = add_noise(x0, eps, TIMES, path)
    there = convert(truth[source], x, TIMES, source, target, path)
    assert_close(there, truth[target], rtol=1e-8, atol=1e-8)
    assert_close(
        convert(there, x, TIMES, target, source, path), truth[source], rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("path", OWN)
def test_velocity_is_the_states_time_derivative(path):
    x0, eps = torch.randn(2, 1, 1, 2, 2, dtype=torch.float64)
    h = 1e-6
    for t in TIMES.tolist():
        slope = (add_noise(x0, eps, t + h, path) - add_noise(x0, eps, t - h, path)) / (2 * h)
        assert_close(velocity_target(x0, eps, t, path), slope, rtol=1e-5, atol=1e-6)


def test_one_is_noise_and_zero_is_data():
    x0, eps = torch.randn(2, 3, 1, 4, 4)
    assert torch.equal(add_noise(x0, eps, 0.0), x0) and torch.equal(add_noise(x0, eps, 1.0), eps)


@pytest.mark.parametrize("path", OWN)
def test_a_number_and_a_batch_of_times_agree(path):
    x0, eps = torch.randn(2, 3, 2, 4, 4)
    assert_close(add_noise(x0, eps, torch.full((3,), 0.3), path), add_noise(x0, eps, 0.3, path))
    assert coefficients(path, 0.3, x0).alpha.dtype == x0.dtype


def test_unknown_names_list_the_known_ones():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="unknown path 'straight'.*cosine.*ddpm.*linear.*vp"):
        add_noise(x, x, 0.5, "straight")
    for pair in (("noise", "v"), ("v", "noise")):
        with pytest.raises(ValueError, match="unknown prediction 'noise'.*v.*eps.*x0.*score"):
            convert(x, x, 0.5, *pair)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("source", ["eps", "score"])
def test_pure_noise_says_nothing_of_the_image(path, source):
    x = torch.randn(2, 1, 3, 3)
    for target in ("v", "x0"):
        for t in (1, 1.0, torch.tensor(1.0)):
            with pytest.raises(ValueError, match=f"nothing of x_0 at t = 1.*{path!r} is pure"):
                convert(x, x, t, source, target, path)
            with pytest.raises(ValueError, match="begin the grid below 1"):
                from_score(x, t, target, path)
        assert convert(x, x, 0.999, source, target, path).isfinite().all()
    for target in ("eps", "score"):
        assert convert(x, x, 1.0, source, target, path).isfinite().all()


@pytest.mark.parametrize("path", ["vp", "ddpm"])
def test_paths_that_keep_some_signal_may_begin_at_one(path):
    x = torch.randn(2, 1, 3, 3)
    assert convert(x, x, 1.0, "eps", "v", path).isfinite().all()


def test_falling_times_are_numbers_and_others_are_refused():
    assert falling(torch.tensor([1, 0.5, 0])) == falling(np.array([1, 0.5, 0])) == [1.0, 0.5, 0.0]
    for bad in ([0, 0.5, 1], [1, 0.5, 0.5], [1.001, 0.5], [0.5, -0.1], [1, math.nan, 0]):
        with pytest.raises(ValueError, match=r"times must fall.*go from \S+ to \S+: take 1 - t"):
            falling(torch.tensor(bad))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_states_of_whole_numbers_are_refused(dtype):
    """t would be rounded to 0, and the image given back without noise."""
    images = torch.ones(2, 1, 4, 4, dtype=dtype)
    for call in (
        lambda: add_noise(images, torch.randn(2, 1, 4, 4), 0.5),
        lambda: convert(torch.randn(2, 1, 4, 4), images, 0.5, "v", "x0"),
    ):
        with pytest.raises(
            ValueError, match=f"is {dtype}, to which t would be rounded: give floats"
        ):
            call()


@pytest.mark.parametrize("t", [500, 1.5, -0.1, math.nan, torch.tensor([0.2, 999.0])])
def test_times_outside_of_0_to_1_are_refused(t):
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"is not in \[0, 1\]: take 1 - t of times in SiT's own"):
        add_noise(x, x, t)
    assert add_noise(x, x, 1 + 1e-9).isfinite().all()  # rounding


def test_times_may_be_a_list_and_make_a_step():
    assert falling([1, 0.5, 0]) == [1, 0.5, 0]
    for times in ([], [1.0], torch.tensor([])):
        with pytest.raises(ValueError, match=f"{len(times)} times make no step"):
            falling(times)
