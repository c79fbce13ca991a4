"""DDIM between believed levels against plain DDIM."""

import pytest
import torch
from rival_fields import EVEN, PATHS, float64, states, wavy
from torch.testing import assert_close

from nag.rivals.corrected_ddim import Step, corrected_ddim
from nag.samplers.one_step import ddim


@pytest.mark.parametrize("path", PATHS)
def test_without_adjustment_the_sampler_is_ddim(path):
    x = states(4, 1, 2, 2)
    plain = list(ddim(wavy, x, EVEN, path=path))
    same = list(corrected_ddim(wavy, x, EVEN, path=path, adjust=Step))
    assert [t for _, t in same] == [t for _, t in plain] == EVEN.tolist()
    for (a, _), (b, _) in zip(same, plain, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_state_moved_to_the_level_it_is_believed_at_is_ddim_from_there():
    """A batch whose members are at different levels, sent to one, equals DDIM for each alone."""
    x, now = states(3, 2), torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    *_, (together, s) = corrected_ddim(
        wavy, x, float64([0.5, 0.2]), adjust=lambda x, t, s: Step(x, now, s)
    )
    alone = [
        list(ddim(wavy, x[i : i + 1], float64([now[i], 0.2]), path="linear"))[-1][0]
        for i in range(3)
    ]
    assert s == 0.2
    assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)
