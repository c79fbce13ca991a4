"""The images of a run, with and without Fashion-MNIST's training images."""

from types import SimpleNamespace

import pytest
import torch

from companion.experiments import images
from nag.data import fashion_mnist


@pytest.fixture
def no_training_images(monkeypatch):
    original = fashion_mnist.load_fashion_mnist

    def load(split):
        if split == "train":
            raise FileNotFoundError("no training images")
        return original(split)

    monkeypatch.setattr(fashion_mnist, "load_fashion_mnist", load)


def test_by_hand_test_images_take_the_place_of_training_images(no_training_images, capsys):
    test, labels = fashion_mnist.load_fashion_mnist("test")
    both = images.fashion(images.BY_HAND)
    assert torch.equal(both.images, test) and torch.equal(both.held_out, test)
    first = images.fashion(images.BY_HAND, half=0)
    assert torch.equal(first.images, test[:5000]) and torch.equal(first.held_out, test[5000:])
    assert torch.equal(first.held_out_labels, labels[5000:])
    source, size = images.training(images.BY_HAND)
    assert size == 5000 and torch.equal(fashion_mnist.to_uint8(source), test[5000:])
    assert "no training images" in capsys.readouterr().out


def test_a_pipeline_without_training_images_stops(no_training_images):
    with pytest.raises(FileNotFoundError):
        images.fashion("results")


def test_kept_classes_are_relabelled(no_training_images):
    data = images.denoising_data(images.BY_HAND, keep=[7, 5])
    assert data.labels.unique().tolist() == [0, 1] and len(data.images) == 2000
    assert data.images.min() == -1 and data.images.max() == 1


def test_held_out_images_are_the_first_test_images():
    x, labels = images.held_out("", 5)
    test, classes = fashion_mnist.load_fashion_mnist("test")
    assert torch.equal(fashion_mnist.to_uint8(x), test[:5]) and torch.equal(labels, classes[:5])


def test_damage_grows_with_the_strength_and_zero_is_none():
    x = fashion_mnist.load_fashion_mnist("test")[0][:10]
    found = images.damaged(x, (0.0, 0.2, 0.8))
    assert torch.equal(found[0.0], x)
    off = [(y.float() - x).abs().mean() for y in found.values()]
    assert off[0] < off[1] < off[2]


def test_held_out_latents_of_other_classes_are_refused(monkeypatch, tmp_path):
    """With a class folder missing, later labels would be those of other classes."""
    monkeypatch.setattr(images, "open_latents", lambda folder: SimpleNamespace(classes=["a", "b"]))
    with pytest.raises(ValueError, match="val has 2 classes where the network has 3: complete"):
        images.held_out("val", 5, classes=3)
    x, labels = images.held_out("", 5, classes=10)
    assert len(x) == len(labels) == 5
