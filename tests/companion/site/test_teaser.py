"""The teaser and its animation, at tiny size."""

import numpy as np
import pytest

from companion.site import teaser
from nag.support.paths import RESULTS


@pytest.fixture(scope="module")
def found():
    return teaser.sampled(steps=15, images=10, control=8)


def test_both_arms_start_from_the_same_noise_and_part(found):
    none, nag = (found["states"][arm] for arm in ("none", "nag"))
    assert none.shape == nag.shape == (10, 4, 28, 28)
    assert np.array_equal(none[:, 0], nag[:, 0]) and not np.array_equal(none[:, -1], nag[:, -1])
    assert abs(found["shifts"]["none"][0]) < 0.02 < found["shifts"]["none"][-2]


def test_the_title_says_what_was_found(found):
    figure = teaser.teaser(found)
    texts = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    assert any(
        text.startswith("Late states look noisier than scheduled; NAG takes") for text in texts
    )


def test_a_frame_for_every_state(found):
    frames = teaser.forming(found)
    assert len(frames) == 4 and len({frame.size for frame in frames}) == 1
    assert len({frame.tobytes() for frame in frames}) == 4


def test_the_committed_animation_is_small():
    assert (RESULTS / "site/forming.webp").stat().st_size <= teaser.LONGEST
