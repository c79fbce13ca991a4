"""The measurement finds no shift where there is none and the known one where noise was added
(paper, Statement 1).
"""

import numpy as np
import pytest
import torch

from nag.interpolant import PATHS, add_noise, time_of_ratio
from nag.samplers.time_grids import uniform
from nag.shift import (
    LATE,
    MIDDLE,
    energy_residual,
    estimated_times,
    forward_states,
    is_late,
    late_ratio,
    noise_shift,
    posterior_kde,
    ranges,
    read_at,
    statement_1,
)
from nag.support.rng import ImageNoise
from nag.support.uncertainty import interval

TIMES = uniform(20)  # 1, 0.95 ... 0.05, 0
BLACK = torch.zeros(
    150, 1, 16, 16
)  # of these images x_t = t eps, so the noise level is the root mean square


def rms(x):
    return x.square().mean((1, 2, 3)).sqrt()


def test_forward_states_show_no_shift():
    sampled = estimated_times(rms, forward_states(BLACK, TIMES, first_seed=5))
    control = estimated_times(rms, forward_states(BLACK, TIMES))
    shift = noise_shift(sampled, control, TIMES.numpy())
    delta = shift["delta"]
    assert (
        np.abs(delta["value"] - 0).max() < 4 * (2 / (2 * 256 * 150)) ** 0.5
    )  # sd of a mean rms is t / sqrt(2 d M)
    assert (delta["low"] <= delta["value"]).all() and (delta["value"] <= delta["high"]).all()
    assert shift["late"]["low"] < 0 < shift["late"]["high"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_forward_states_of_bytes_are_refused(dtype):
    with pytest.raises(ValueError, match=f"images are {dtype}.*: give floats in"):
        forward_states(BLACK.to(dtype), TIMES)


@pytest.mark.parametrize("resamples", [0, 1])
def test_an_interval_of_one_resample_is_refused(resamples):
    levels = np.zeros((3, len(TIMES)))
    with pytest.raises(ValueError, match=f"{resamples} resamples: an interval needs 2"):
        noise_shift(levels, levels, TIMES.numpy(), resamples)


def sigma(path, t):
    return PATHS[path](torch.as_tensor(t, dtype=torch.float64)).sigma.numpy()


@pytest.mark.parametrize("path", sorted(PATHS))
def test_statement_1_adds_variances_and_its_first_order_is_the_papers(path):
    t, error = np.linspace(0.05, 0.6, 12) + 5e-4, 0.1  # between levels of "ddpm", which has kinks
    delta = statement_1(t, error, path)
    np.testing.assert_allclose(sigma(path, t + delta) ** 2, sigma(path, t) ** 2 + error**2)
    small = 1e-4  # an error whose shift is still within a level
    slope = PATHS[path](torch.as_tensor(t)).d_sigma.numpy()
    first = (np.hypot(sigma(path, t), small) - sigma(path, t)) / slope
    np.testing.assert_allclose(statement_1(t, small, path), first, rtol=1e-3, atol=1e-14)


def test_statement_1_on_the_linear_path_is_a_closed_form():
    t = np.linspace(0, 0.9, 10)
    np.testing.assert_allclose(statement_1(t, t / 5), np.hypot(t, t / 5) - t, atol=1e-14)
    assert statement_1(0.3, 0.4) == pytest.approx(0.2, abs=1e-14)
    assert np.isnan(statement_1(0.9, 0.5))  # sigma would be above 1


def test_posterior_kde_is_a_sum_of_normals_of_scotts_width():
    levels = np.random.default_rng(0).normal(0.4, 0.02, 50)
    t, density = posterior_kde(levels)
    h = levels.std(ddof=1) * 50 ** (-1 / 5)
    normals = np.exp(-(((t[:, None] - levels) / h) ** 2) / 2) / (h * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density, normals.mean(1))
    assert np.trapezoid(density, t) == pytest.approx(1, abs=0.005)
    assert posterior_kde(np.array([0.0, 0.001, 1]))[0][[0, -1]].tolist() == [0, 1]
    with pytest.raises(ValueError, match="are alike"):
        posterior_kde(np.full(5, 0.3))


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_added_noise_is_found_as_the_shift_of_statement_1(error):
    states = forward_states(BLACK, TIMES, first_seed=5)
    states = states + error * ImageNoise(range(9000, 9150))(states.shape[1:])
    control = estimated_times(rms, forward_states(BLACK, TIMES))
    shift = noise_shift(estimated_times(rms, states), control, TIMES.numpy())
    truth = np.sqrt(TIMES.numpy() ** 2 + error**2) - TIMES.numpy()
    np.testing.assert_allclose(shift["delta"]["value"], truth, atol=0.01)
    late = truth[(TIMES.numpy() > 0) & (TIMES.numpy() < 0.21)].mean()
    assert shift["late"]["value"] == pytest.approx(late, abs=0.0025)  # four standard errors
    assert 0 < shift["late"]["low"] < late < shift["late"]["high"]
    assert (
        shift["growth"]["low"] > 0
    )  # the same error weighs more at small t: the paper's systematic growth


def test_the_control_removes_the_estimators_own_bias():
    sampled, control = forward_states(BLACK, TIMES, first_seed=5), forward_states(BLACK, TIMES)
    honest, biased = (
        noise_shift(estimated_times(f, sampled), estimated_times(f, control), TIMES.numpy(), 10)
        for f in (rms, lambda x: rms(x) + 0.3)
    )
    np.testing.assert_allclose(biased["delta"]["value"], honest["delta"]["value"], atol=1e-6)


def test_late_is_the_mean_over_the_last_fifth():
    times = np.array([1.0, 0.95, 0.9, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0])
    truth = np.array([9.0, 9.0, -0.2, 0.6, 9.0, 0.3, -0.1, 0.1, 9.0])
    control = np.random.default_rng(0).normal(size=(30, 1)) + times
    shift = noise_shift(control + truth, control, times, resamples=50)
    np.testing.assert_allclose(shift["delta"]["value"], truth, atol=1e-12)
    assert shift["late"]["value"] == pytest.approx(0.1)
    assert shift["middle"]["value"] == pytest.approx(0.2)  # over 0.4 to 0.9
    assert shift["growth"]["value"] == pytest.approx(0.1 - 0.2)
    assert shift["spread"]["value"] == pytest.approx(0, abs=1e-12)
    assert shift["draws"].shape == (50, 9)


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "ddpm"])
def test_ranges_are_of_noise_over_signal_on_every_path(path):
    """Times just inside and outside of each end, found by bisection of sigma_t / alpha_t."""
    ends = torch.tensor([LATE, *MIDDLE], dtype=torch.float64)
    late, low, high = time_of_ratio(ends, path).tolist()
    times = np.array([0.99, high + 1e-4, high - 1e-4, low + 1e-4, low - 1e-4])
    times = np.append(times, [late + 1e-4, late - 1e-4, 0.002, 0])
    found = ranges(times, path)
    assert found[0].tolist() == [False] * 6 + [True, True, False]
    assert found[1].tolist() == [False] * 2 + [True] * 2 + [False] * 5


def test_late_is_a_fifth_of_the_linear_path_and_a_fourteenth_of_ddpms():
    times = np.arange(1000, 0, -1) / 1000
    late = {path: times[is_late(times, path)].max() for path in ("linear", "ddpm")}
    assert late == {"linear": 0.2, "ddpm": 0.073}
    assert ranges(times)[1].sum() == 501  # 0.4 to 0.9, ends included
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # Ho et al., 2020
    expected = times[np.sqrt(1 / alpha_bar - 1)[::-1] <= LATE]
    np.testing.assert_array_equal(times[is_late(times, "ddpm")], expected)


def test_a_shift_is_read_between_two_states_and_nowhere_else():
    times = np.array([1.0, 0.6, 0.5, 0.25, 0.1, 0.0])  # falling, as samplers have them
    truth = 0.3 - 0.2 * times  # linear, so that reading between states is exact
    control = np.random.default_rng(0).normal(size=(30, 1)) + times
    shift = noise_shift(control + truth, control, times, resamples=50)
    for t in (0.0, 0.1, 0.2, 0.55, 1.0):
        assert interval(*read_at(shift, times, t))["value"] == pytest.approx(0.3 - 0.2 * t)
    between, ends = (
        interval(*read_at(shift, times, 0.55)),
        [{k: v[k_at] for k, v in shift["delta"].items()} for k_at in (1, 2)],
    )
    assert between["low"] == pytest.approx(
        np.mean([end["low"] for end in ends])
    )  # one constant per image: draws move together
    with pytest.raises(ValueError, match="not between two states"):
        read_at(shift, times[:-1], 0.05)


def test_spread_is_the_excess_of_the_standard_deviation_over_images():
    rng, times = np.random.default_rng(0), np.array([0.8, 0.5, 0.2, 0.1, 0.0])
    control, wider = rng.normal(0, 0.1, (4000, 5)) + times, rng.normal(0, 0.15, (4000, 5)) + times
    shift = noise_shift(wider, control, times, resamples=200)
    error = (
        (0.1**2 + 0.15**2) / (2 * 4000) / 2
    ) ** 0.5  # of a standard deviation s: s / sqrt(2 n); two late times
    assert shift["spread"]["value"] == pytest.approx(0.05, abs=4 * error)
    assert (
        2 < (shift["spread"]["high"] - shift["spread"]["low"]) / error < 6
    )  # 95 %: 3.9 standard errors
    assert shift["late"]["low"] < 0 < shift["late"]["high"]


def test_late_ratio_compares_two_arms_resampled_alike():
    rng, times = np.random.default_rng(0), np.array([0.8, 0.5, 0.2, 0.1, 0.0])
    control, images = rng.normal(0, 0.1, (300, 5)) + times, rng.normal(0, 0.1, (200, 5)) + times
    whole, half, minus = (
        noise_shift(images + d, control, times, resamples=300) for d in (0.4, 0.2, -0.4)
    )
    ratio = late_ratio(half, whole, times)
    truth = abs(half["late"]["value"]) / abs(whole["late"]["value"])
    assert ratio["value"] == pytest.approx(truth) and truth == pytest.approx(0.5, abs=0.03)
    assert ratio["low"] < ratio["value"] < ratio["high"] and ratio["high"] - ratio["low"] < 0.05
    same = late_ratio(whole, whole, times)
    assert same["value"] == same["low"] == same["high"] == 1
    assert late_ratio(minus, whole, times)["value"] == pytest.approx(
        1, abs=0.1
    )  # of sizes, not signs


@pytest.mark.slow
def test_the_bootstrap_interval_covers_as_promised():
    rng, times, truth = np.random.default_rng(0), np.linspace(0.9, 0.09, 10), np.linspace(-1, 1, 10)
    late = truth[times <= 0.2].mean()
    hits = []
    for _ in range(60):
        sampled, control = truth + rng.normal(0, 2, (60, 10)), rng.normal(0, 1, (80, 10))
        shift = noise_shift(sampled, control, times, resamples=200, seed=int(rng.integers(10**6)))
        hits += [
            (shift["delta"]["low"] < truth) & (truth < shift["delta"]["high"]),
            [shift["late"]["low"] < late < shift["late"]["high"]],
        ]
    assert np.mean(np.concatenate(hits)) == pytest.approx(
        0.94, abs=0.03
    )  # 95 %, minus what 60 images and percentiles cost


def test_the_two_sets_are_resampled_independently():
    values = np.random.default_rng(0).normal(size=(100, 3))
    shift = noise_shift(
        values, values, np.array([0.5, 0.1, 0.0])
    )  # the variances of both means add
    np.testing.assert_allclose(shift["draws"].std(0), values.std(0) * np.sqrt(2 / 100), rtol=0.1)


def test_forward_states_share_an_images_noise_over_time_and_ignore_the_batch():
    images = torch.randn(4, 1, 5, 5)
    states = forward_states(images, TIMES, "cosine")
    assert states.shape == (4, 21, 1, 5, 5) and torch.equal(states[:, -1], images)
    eps = states[:, 0]  # t = 1, where the cosine path's alpha is 6e-17
    torch.testing.assert_close(states[:, 7], add_noise(images, eps, float(TIMES[7]), "cosine"))
    assert torch.equal(forward_states(images[:2], TIMES, "cosine"), states[:2])


def test_estimates_do_not_depend_on_the_batch():
    states = forward_states(BLACK[:7], TIMES)
    many, few = (estimated_times(rms, states, batch=size) for size in (1000, 4))
    assert many.shape == (7, 21)
    np.testing.assert_allclose(many, few, rtol=1e-6)
    np.testing.assert_allclose(estimated_times(rms, states.half().numpy()), many, rtol=1e-3)


def test_wrong_shapes_and_grids_are_refused():
    times = TIMES.numpy()
    with pytest.raises(
        ValueError, match=r"estimates \(3, 21\) and \(3, 20\) must have one column per time \(21\)"
    ):
        noise_shift(np.zeros((3, 21)), np.zeros((3, 20)), times)
    with pytest.raises(
        ValueError,
        match=r"no time in \(0, 0.2\] or in \[0.4, 0.9\], late and middle.*: use more steps",
    ):
        noise_shift(np.zeros((3, 3)), np.zeros((3, 3)), np.array([1.0, 0.5, 0.0]))


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "ddpm"])
def test_energy_residual_is_zero_for_the_forward_process(path):
    images = 0.3 + 0.5 * torch.randn(400, 1, 12, 12)
    times = TIMES.numpy()
    states = forward_states(images, TIMES, path).numpy()
    n = states[:, 0].size
    assert np.abs(energy_residual(states, times, path)).max() < 4 * np.sqrt(
        3 / n
    )  # var of eps^2 is 2, plus a cross term
    assert energy_residual(states, times, path)[-1] == pytest.approx(0, abs=1e-9)


def test_energy_residual_is_the_energy_of_added_noise():
    images = 0.5 * torch.randn(400, 1, 12, 12)
    times = TIMES.numpy()
    states = forward_states(images, TIMES).numpy()
    states[:, :-1] += 0.2 * np.random.default_rng(0).normal(size=states[:, :-1].shape).astype(
        np.float32
    )
    residual = energy_residual(states, times)
    np.testing.assert_allclose(residual[:-1], 0.04, atol=4 * np.sqrt(3 / states[:, 0].size))


def test_unknown_paths_and_other_shapes_are_refused():
    levels, times = np.random.default_rng(0).random((5, 11)), np.linspace(1, 0, 11)
    with pytest.raises(ValueError, match="unknown path 'flow': choose one of"):
        noise_shift(levels, levels, times, path="flow")
    with pytest.raises(ValueError, match="unknown path 'flow': choose one of"):
        statement_1(0.5, 0.1, "flow")
    with pytest.raises(ValueError, match=r"estimates \(11,\) and \(11,\) must be of"):
        noise_shift(levels[0], levels[0], times)
    for t, error in ((500, 0.1), (0.5, -0.1)):
        with pytest.raises(ValueError, match="a time is not in"):
            statement_1(t, error)
    with pytest.raises(ValueError, match=r"images have shape \(1, 8, 8\): give \(M, C, H, W\)"):
        forward_states(torch.zeros(1, 8, 8), times)
    as_lists = noise_shift(levels.tolist(), levels.tolist(), times.tolist(), 5)
    assert as_lists["late"] == noise_shift(levels, levels, times, 5)["late"]


@pytest.mark.parametrize("levels", [[0.1, np.nan, 0.3], [[0.1, 0.2]], []])
def test_a_density_needs_finite_levels_of_one_time(levels):
    with pytest.raises(ValueError, match="give the finite levels"):
        posterior_kde(levels)
