"""The correction of the low band against a Haar transform written out here, and a step by hand."""

import pytest
import torch
from rival_fields import alpha_sigma, gaussian, states, wavy
from torch.testing import assert_close

from nag.rivals.wavelet_correction import haar_low, wavelet_corrected
from nag.samplers.one_step import ddim_step, euler_maruyama_step, euler_step
from nag.samplers.registry import SAMPLERS
from nag.samplers.time_grids import respaced, uniform
from nag.support.rng import ImageNoise


def haar(x):
    """The four orthonormal bands of a 2-D Haar transform."""
    rows = [(x[..., ::2, :] + sign * x[..., 1::2, :]) / 2**0.5 for sign in (1, -1)]
    return [(band[..., ::2] + sign * band[..., 1::2]) / 2**0.5 for band in rows for sign in (1, -1)]


def test_the_low_band_alone_is_moved():
    x, y, gain = states(2, 3, 8, 6), states(2, 3, 8, 6), 0.3
    low, *high = haar(x + gain * haar_low(x - y))
    assert_close(low, haar(x)[0] + gain * (haar(x)[0] - haar(y)[0]))
    for found, wanted in zip(high, haar(x)[1:], strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("path", ["linear", "ddpm"])
def test_a_step_by_its_formula(path):
    """On Gaussian data, whose prediction of the image is exact."""
    field, x, times = gaussian(path), states(3, 1, 4, 4), torch.tensor([0.6, 0.4, 0.0])
    step = euler_step if path == "linear" else ddim_step
    _, (found, _), *_ = wavelet_corrected(step, 0.05, field, x, times, None, path)
    new = step(field, x, 0.6, 0.4, None, path)
    image = ddim_step(field, x, 0.6, 0.0, None, path)
    share = alpha_sigma(path, 0.6)[1] / alpha_sigma(path, 1.0)[1]
    assert_close(found, new + 0.05 * share * haar_low(new - image))


@pytest.mark.parametrize("name", ["euler", "euler_maruyama", "ddim"])
def test_strength_zero_is_the_plain_sampler_bit_for_bit(name):
    step = {"euler": euler_step, "euler_maruyama": euler_maruyama_step, "ddim": ddim_step}[name]
    path, times = ("ddpm", respaced(5)) if name == "ddim" else ("linear", uniform(5))
    x = ImageNoise(range(3))((1, 4, 4))

    def run(solver, *first):
        return [x for x, _ in solver(*first, wavy, x, times, ImageNoise(range(3)), path)]

    for found, plain in zip(run(wavelet_corrected, step, 0.0), run(SAMPLERS[name]), strict=True):
        assert torch.equal(found, plain)


def test_an_odd_side_is_refused():
    with pytest.raises(ValueError, match="must be even"):
        haar_low(torch.zeros(1, 1, 7, 8))
