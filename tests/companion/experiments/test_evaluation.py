"""Quality of the arms: arms of different seeds are not compared."""

import numpy as np
import pytest

from companion.experiments import evaluation


def test_arms_of_different_seeds_are_refused():
    images = np.zeros((2, 1, 28, 28), np.uint8)
    runs = {arm: {"seeds": np.arange(2) + k, "images": images} for k, arm in enumerate("ab")}
    with pytest.raises(ValueError, match="differ in their seeds"):
        evaluation.features_of(runs)


def test_real_images_are_near_themselves_and_ratios_are_paired():
    import torch

    from nag.data.fashion_mnist import load_fashion_mnist

    reference = evaluation.reference_features(400)
    x = load_fashion_mnist("test")[0][:400].numpy()
    noisy = (x + np.random.default_rng(0).normal(0, 60, x.shape)).clip(0, 255).astype(np.uint8)
    runs = {
        arm: {"seeds": np.arange(400), "images": images}
        for arm, images in (("none", noisy), ("nag", x), ("cfg", noisy), ("cfg-nag", x))
    }
    features = evaluation.features_of(runs)
    assert torch.equal(features["nag"], reference)
    ratios = evaluation.paired_ratios(features, reference)
    assert ratios["nag over none"]["high"] < 0.1 and set(ratios) == set(evaluation.PAIRS)
