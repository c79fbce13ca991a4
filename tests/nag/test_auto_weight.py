"""Automatic weights: crossings worked out by hand, and a planted error that the right weight
undoes.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nag.auto_weight import ScheduledArm, excess, null_weight, stepwise, weight_schedule
from nag.guidance import GuidedField, noise_awareness
from nag.samplers.one_step import euler
from nag.samplers.registry import SAMPLERS, STEPS
from nag.samplers.time_grids import uniform


@pytest.mark.parametrize(
    "values, wanted",
    [
        ([0.4, 0.2, -0.2, -1.0], (1.5, True)),
        ([-0.1, 0.3, -0.2, -1.0], (0.0, True)),  # nothing to take away
        ([0.0, 1.0, 1.0, 1.0], (0.0, True)),
        ([0.5, 0.3, 0.1, 0.2], (2.0, False)),  # never nulled
        ([0.5, 0.25, 0.0, -1.0], (2.0, True)),
    ],
)
def test_null_weight(values, wanted):
    w, nulled = null_weight([0.0, 1.0, 2.0, 4.0], values)
    assert (pytest.approx(w), nulled) == wanted


def test_excess_is_late_and_against_the_control():
    times = np.array([1.0, 0.5, 0.2, 0.1, 0.0])
    control = np.tile(times, (2, 1)) + np.array([[0.01], [-0.01]])
    levels = np.tile(times + np.array([9, 9, 0.02, 0.04, 9]), (2, 1)) + np.array([[0.03], [-0.03]])
    assert excess(levels, control, times) == pytest.approx({"mean": 0.03, "spread": 0.02 * 2**0.5})


def test_stepwise_holds_each_weight_from_its_time_on():
    w = stepwise([1.0, 0.6, 0.3], [1.0, 2.0, 3.0])
    assert [w(t) for t in (1.0, 0.8, 0.6, 0.31, 0.3, 0.1)] == [1, 1, 2, 2, 3, 3]
    (term,) = ScheduledArm((1.0, 0.6), (0.0, 2.0)).terms()
    assert term.drop_noise and (term.at(1.0), term.at(0.5)) == (0, 2)


class Shifted:
    """A field whose samples keep their excess of noise unless the dropped branch, which has more of
    it, is pushed away.

    Every pixel decays as dx/dt = rate: the conditional branch removes too little by `error`, the
    dropped one by 2 `error`."""

    config = SimpleNamespace(prediction="v", path="linear", classes=1, channels=1, input_size=4)

    def __init__(self, error):
        self.error = error

    def __call__(self, x, t, y, drop_noise):
        return (1 - self.error * (1 + drop_noise.float())).view(-1, 1, 1, 1) * torch.ones_like(x)


def level(x):
    return x.flatten(1).mean(1)


def test_the_schedule_undoes_a_planted_shift():
    """x starts at 1 and should be t at t: with w = 1 the guided rate (1 - e) + w e is 1 and the
    level is exact throughout.
    """
    times, labels = uniform(8), torch.zeros(3, dtype=torch.long)
    control = np.tile(times.numpy(), (2, 1))
    at, weights = weight_schedule(
        Shifted(0.25), level, control, times, labels, lambda shape: torch.ones(3, *shape)
    )
    assert at == times[:-1].tolist() and weights == pytest.approx([1.0] * 8, abs=1e-4)
    field = GuidedField(Shifted(0.25), labels, [noise_awareness(stepwise(at, weights))])
    for x, t in euler(field, torch.ones(3, 1, 4, 4), times):
        assert level(x).tolist() == pytest.approx([t] * 3, abs=1e-4)


def test_without_a_shift_the_schedule_is_zero_and_a_negative_one_is_not_made_worse():
    times, labels = uniform(8), torch.zeros(3, dtype=torch.long)
    control = np.tile(times.numpy(), (2, 1))
    for error in (0.0, -0.25):
        _, weights = weight_schedule(
            Shifted(error), level, control, times, labels, lambda shape: torch.ones(3, *shape)
        )
        assert weights == [0.0] * 8


def test_a_step_is_affine_in_the_weight_for_every_sampler_of_one_evaluation():
    x, times = torch.randn(3, 1, 4, 4), torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64)
    fresh, labels = torch.randn(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    net, noise = Shifted(0.25), lambda shape: fresh
    for name, take in STEPS.items():
        step = {
            w: take(
                GuidedField(net, labels, [noise_awareness(w)]), x, 0.6, 0.4, noise, "linear", False
            )
            for w in (0.0, 1.0, 2.5)
        }
        torch.testing.assert_close(
            step[2.5], step[0.0] + 2.5 * (step[1.0] - step[0.0]), rtol=1e-4, atol=1e-5
        )
        whole = SAMPLERS[name](
            GuidedField(net, labels, [noise_awareness(1.0)]), x, times, noise, "linear"
        )
        assert torch.equal(list(whole)[1][0], step[1.0])  # the step is that of the sampler


@pytest.mark.parametrize("sampler", ["heun", "unipc", "dpmpp_2m"])
def test_a_sampler_that_it_cannot_follow_is_refused(sampler):
    with pytest.raises(ValueError, match=f"{sampler} has a memory or several evaluations a step"):
        weight_schedule(
            Shifted(0.1),
            level,
            np.zeros((2, 9)),
            uniform(8),
            torch.zeros(3),
            torch.ones,
            sampler=sampler,
        )
