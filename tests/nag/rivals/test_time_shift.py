"""The time-shift sampler against the loop of its paper and the exact posterior."""

import math

import pytest
import torch
from rival_fields import ABAR, EVEN, ONE, float64, gaussian, noise_of, states, wavy
from torch.testing import assert_close

from nag import toy
from nag.interpolant import coefficients
from nag.rivals.corrected_ddim import Step, corrected_ddim
from nag.rivals.time_shift import MODES, by_estimate, by_variance, time_shift


def shift(found, **changes):
    settings = {"window": 0.2, "cutoff": 0.1, "mode": "both", "level": found} | changes
    return time_shift(**settings)


@pytest.mark.slow
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
        for s, _ in corrected_ddim(
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
            assert step.x is x and step == Step(x, t, 0.04)


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


def test_no_gradient_is_kept_through_the_trajectory():
    weight = torch.nn.Parameter(torch.zeros(()))
    adjust = shift(by_estimate(lambda x: weight + x.mean(1)))
    *_, (x, _) = corrected_ddim(wavy, states(2, 3), EVEN, adjust=adjust)
    assert not x.requires_grad
