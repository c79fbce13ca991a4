"""Networks that notebooks train in seconds: named after what decides them, and trained once."""

import pytest
import torch

from companion.studies import small_networks
from nag import checkpoint

IMAGES, LABELS = torch.rand(64, 1, 28, 28) * 2 - 1, torch.arange(64) % 10


def test_a_network_is_trained_once_for_each_setting(tmp_path, monkeypatch):
    calls = []
    train = small_networks.train
    monkeypatch.setattr(small_networks, "train", lambda *a: calls.append(1) or train(*a))
    names = ["tiny-d10", "tiny-d10", "tiny-d30", "tiny-d10-s1"]
    files = [small_networks.trained_by_name(tmp_path, name, IMAGES, LABELS, 128) for name in names]
    assert files[0] == files[1] and len(set(files)) == len(calls) == 3
    assert not list(tmp_path.glob("*.pt"))
    assert checkpoint.read_weights(files[3])[1]["seed"] == "1"
    wider = small_networks.trained(tmp_path, IMAGES, LABELS, width=32, images_seen=128)
    assert checkpoint.load(wider).config.width == 32 and wider not in files


def test_test_images_stand_in_for_absent_training_images_in_a_small_run_only(monkeypatch, capsys):
    real = small_networks.fashion_mnist.load_fashion_mnist

    def only_test(split):
        if split == "train":
            raise FileNotFoundError("no training images: run `dvc repro`")
        return real(split)

    monkeypatch.setattr(small_networks.fashion_mnist, "load_fashion_mnist", only_test)
    images, labels, split = small_networks.training_images(small=True)
    assert split == "test" and len(images) == len(labels) == 10_000 and images.min() == -1
    assert "Using the 10,000 test images instead" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no training images"):
        small_networks.training_images(small=False)
