import pickle

import pytest
import torch

from nag.data.fashion_mnist import to_float
from nag.evaluation.fashion_classifier import (
    FEATURES,
    Extractor,
    accuracy,
    classifier_loss,
    random_shift,
)
from nag.support.rng import generator
from nag.train import TrainConfig, fit


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Extractor().eval()


def images(n, seed=0):
    return torch.randint(256, (n, 1, 28, 28), generator=generator(seed), dtype=torch.uint8)


def test_shapes_size_and_that_the_head_reads_the_features(net):
    x = to_float(images(3))
    features = net.features(x)
    assert features.shape == (3, FEATURES) and net(x).shape == (3, 10)
    torch.testing.assert_close(net(x), features @ net.head.weight.T + net.head.bias)
    assert 300_000 < sum(p.numel() for p in net.parameters()) < 1_000_000


def test_features_of_an_image_do_not_depend_on_its_batch_or_on_training_mode(net):
    x = to_float(images(8))
    alone = net.features(x[2:3])
    torch.testing.assert_close(net.features(x)[2:3], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.train().features(x[2:3]), alone, rtol=0, atol=0)


def test_survives_pickling(net):
    x = to_float(images(2))
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), net(x), rtol=0, atol=0)


def test_shift_moves_whole_images_by_up_to_two_pixels_each_way_and_fills_with_black():
    point = torch.full((2000, 1, 28, 28), -1.0)
    point[:, :, 14, 9] = 1
    moved = random_shift(point, 2, generator(0))
    assert ((moved == 1).sum(dim=(1, 2, 3)) == 1).all() and (
        (moved == -1).sum(dim=(1, 2, 3)) == 28 * 28 - 1
    ).all()
    places = {divmod(int(p), 28) for p in moved.flatten(1).argmax(1)}
    assert places == {(14 + i, 9 + j) for i in range(-2, 3) for j in range(-2, 3)}
    white = random_shift(torch.ones(200, 1, 28, 28), 2, generator(0))
    assert white.min() == -1 and white[:, :, 2:-2, 2:-2].min() == 1


def test_shift_by_nothing_is_the_identity():
    x = to_float(images(5))
    torch.testing.assert_close(random_shift(x, 0, generator(0)), x, rtol=0, atol=0)


def test_loss_is_cross_entropy_reads_both_kinds_of_images_and_draws_from_the_generator_alone(net):
    x, y, index = images(6), torch.arange(6), torch.tensor([4, 1, 2])
    loss = classifier_loss(x, y, smoothing=0.0)
    value = loss(net, index, generator(7))
    log_p = net(random_shift(to_float(x[index]), 2, generator(7))).log_softmax(1)
    torch.testing.assert_close(value, -log_p[[0, 1, 2], [4, 1, 2]].mean())
    torch.rand(3)  # the global generator moves on, the loss does not notice
    assert loss(net, index, generator(7)) == value != loss(net, index, generator(8))
    assert classifier_loss(to_float(x), y, smoothing=0.0)(net, index, generator(7)) == value


def test_smoothing_mixes_in_the_uniform_distribution(net):
    x, y, index = images(4), torch.tensor([3, 1, 4, 1]), torch.arange(4)
    log_p = net(random_shift(to_float(x), 2, generator(0))).log_softmax(1)
    expected = -(0.9 * log_p[index, y] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(
        classifier_loss(x, y, smoothing=0.1)(net, index, generator(0)), expected
    )


def test_accuracy_counts_right_answers(net):
    x = images(7)
    answers = net(to_float(x)).argmax(1)
    answers[:2] = (answers[:2] + 1) % 10
    assert accuracy(net, x, answers, batch_size=3) == pytest.approx(5 / 7)
    assert accuracy(net, to_float(x), answers) == pytest.approx(5 / 7)


@pytest.mark.parametrize("n, m", [(3, 2), (0, 0)])
def test_accuracy_wants_one_label_for_each_image(net, n, m):
    with pytest.raises(ValueError, match="a label for each"):
        accuracy(net, images(n), torch.zeros(m, dtype=torch.long))


@pytest.mark.slow
def test_learns_an_easy_task_through_fit(net, tmp_path):
    """Class = row of a bright bar, two rows apart from the next even when shifted: a net that
    learns gets it all.
    """
    labels = torch.arange(200) % 4
    x = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    for i, label in enumerate(labels):
        x[i, :, 3 + 6 * label : 5 + 6 * label] = 255
    assert accuracy(net, x, labels) < 0.6
    config = TrainConfig(
        images_seen=1280, batch_size=32, lr=2e-3, warmup_steps=5, ema_decay=0.8, compile=False
    )
    list(fit(net, classifier_loss(x, labels), len(x), config, tmp_path / "net.pt"))
    assert accuracy(net, x, labels) > 0.95
