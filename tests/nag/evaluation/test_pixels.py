"""The second feature space: coordinates on principal axes, and what its distance sees."""

import numpy as np
import pytest
import torch

from nag.data.fashion_mnist import load_fashion_mnist, to_float, to_uint8
from nag.evaluation.metrics import frechet
from nag.evaluation.pixels import AXES, features

IMAGES = load_fashion_mnist("test")[0]


@pytest.mark.slow
def test_coordinates_are_uncorrelated_and_hold_the_largest_variance():
    y = features(IMAGES).double().numpy()
    x = to_float(IMAGES).flatten(1).double().numpy()
    assert y.shape == (10_000, AXES) and np.abs(y.mean(0)).max() < 1e-4
    cov = np.cov(y, rowvar=False)
    singular = np.linalg.svd((x - x.mean(0))[::1], compute_uv=False) ** 2 / (len(x) - 1)
    np.testing.assert_allclose(cov, np.diag(singular[:AXES]), atol=1e-3)
    assert singular[:AXES].sum() / singular.sum() == pytest.approx(0.88, abs=0.005)


def test_the_distance_of_moved_images_is_that_of_their_means():
    """All of one image more, so that only the mean moves: the squared length of its coordinates."""
    flat = IMAGES[:500] // 2
    moved = flat + 100
    shift = (features(moved)[0] - features(flat)[0]).double()
    assert frechet(features(moved), features(flat)) == pytest.approx(float(shift @ shift), rel=1e-5)


def test_it_sees_contrast_and_hardly_any_pixel_noise():
    real, x = features(IMAGES[5000:]), to_float(IMAGES[:5000])
    noise = 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    plain, noisy, dull = (
        frechet(features(to_uint8(y)), real) for y in (x, x + noise, 0.9 * (x + 1) - 1)
    )
    assert abs(noisy / plain - 1) < 0.1 and dull > 3 * plain


def test_other_images_are_refused():
    for images in (IMAGES.float(), IMAGES[:0], IMAGES[:, :, :14, :14]):
        with pytest.raises(ValueError, match=r"give uint8 \(N, 1, 28, 28\)"):
            features(images)
