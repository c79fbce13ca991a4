"""Quality of the arms: balanced sets, both spaces, and arms of different seeds are not compared."""

import numpy as np
import pytest
import torch

from companion.experiments import evaluation, spaces
from companion.experiments.spaces import Features
from nag.data.fashion_mnist import load_fashion_mnist


def test_arms_of_different_seeds_or_labels_are_refused():
    images = np.zeros((2, 1, 28, 28), np.uint8)
    for differ in ("seeds", "labels"):
        runs = {
            arm: {name: np.arange(2) + k * (name == differ) for name in ("seeds", "labels")}
            | {"images": images}
            for k, arm in enumerate("ab")
        }
        with pytest.raises(ValueError, match=f"differ in their {differ}"):
            evaluation.features_of(runs)


@pytest.mark.slow
def test_real_images_are_near_themselves_and_ratios_are_paired():
    reference = evaluation.reference_features(400)
    images, labels = load_fashion_mnist("test")
    x, labels = images[:400].numpy(), labels[:400].numpy()
    noisy = (x + np.random.default_rng(0).normal(0, 60, x.shape)).clip(0, 255).astype(np.uint8)
    runs = {
        arm: {"seeds": np.arange(400), "labels": labels, "images": of}
        for arm, of in (("none", noisy), ("nag", x), ("cfg", noisy), ("cfg-nag", x))
    }
    features = evaluation.features_of(runs)
    assert torch.equal(features["nag"].first, reference.first)
    ratios = evaluation.paired_ratios(features, reference, labels)
    assert set(ratios) == set(evaluation.PAIRS)
    gain = ratios["nag over none"]
    assert not gain["bias_corrected"] and gain["high"] < 0.1  # no distance from themselves
    assert gain["second"]["raw"]["high"] < 0.5
    assert ratios["cfg over none"]["value"] == pytest.approx(1)
    found = evaluation.quality(features, reference, [0, 399], labels)
    assert found["none"]["fd_inf_second"]["value"] > 5 > found["cfg+nag"]["fd_inf_second"]["value"]
    assert found["none"]["fd"]["seeds"] == [0, 399] and "cfg+nag" in found


def test_balanced_places_have_the_classes_in_turn():
    labels = np.repeat([2, 0, 1], [5, 4, 6])
    places = spaces.balanced(labels, 8)
    assert labels[places].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    more = spaces.balanced(labels, 3, skip=3)
    assert len({*places, *more}) == 11
    with pytest.raises(ValueError, match="need 5 of each class"):
        spaces.balanced(labels, 13)


def test_floor_and_ceiling_bound_what_real_images_have(monkeypatch):
    """Three classes of Gaussians a known distance apart: the floor is near zero, the ceiling is
    the mean squared distance of neighbours."""
    rng = np.random.default_rng(0)
    labels = torch.arange(1800) % 3
    centres = np.array([[0, 0], [2, 0], [0, 3.0]])

    def drawn():
        return torch.from_numpy(centres[labels] + 0.5 * rng.normal(size=(1800, 2))).float()

    train, test = drawn(), drawn()
    monkeypatch.setattr(spaces.fashion_mnist, "CLASSES", "abc")
    monkeypatch.setattr(spaces, "_training_images", lambda: (train, labels))
    monkeypatch.setattr(spaces, "features_of", lambda images: Features(images, 2 * images))
    floor = spaces.floor(Features(test, 2 * test), 300)
    assert abs(floor["fd_inf"]["value"]) < 0.05 and floor["recall"]["value"] > 0.8
    ceiling = spaces.ceiling()
    truth = (4 + 13 + 9) / 3
    assert ceiling["fd_inf"]["value"] == pytest.approx(truth, rel=0.03)
    assert ceiling["fd_inf"]["low"] < truth < ceiling["fd_inf"]["high"]
    assert ceiling["fd_inf_second"]["value"] == pytest.approx(4 * truth, rel=0.03)
    monkeypatch.undo()
    monkeypatch.setattr(
        spaces.fashion_mnist,
        "load_fashion_mnist",
        lambda split: (_ for _ in ()).throw(FileNotFoundError),
    )
    assert spaces.ceiling() is None
