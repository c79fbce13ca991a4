"""Errors and bias corrections of balanced sets, against the spread of many such sets and the
distance of very many images.
"""

import numpy as np
import pytest
import torch

from nag import checkpoint
from nag.data.fashion_mnist import load_fashion_mnist, to_float, to_uint8
from nag.evaluation import pixels
from nag.evaluation.fashion_classifier import Extractor
from nag.evaluation.metrics import (
    _frechet_draws,
    distance_ratio,
    extract_features,
    frechet,
    register_extractor,
    with_intervals,
)
from nag.support.paths import WEIGHTS
from nag.support.uncertainty import Z95, bias_corrected, jackknife, subsets

CLASSES, EACH = 10, 30  # 300 images in a set
LABELS = np.arange(CLASSES).repeat(EACH)
CENTRES = 3 * np.random.default_rng(1).normal(size=(CLASSES, 4))


def balanced(seed, each=EACH, spread=1.2, shift=0.5):
    """Features (10 each, 4) of as many images of every class, whose centres lie far apart."""
    noise = np.random.default_rng(seed).normal(size=(CLASSES * each, 4))
    return torch.from_numpy(CENTRES.repeat(each, axis=0) + spread * noise + shift).float()


REAL = balanced(999, 500, spread=1, shift=0)


def measured(sets, real, labels, resamples):
    """(sets, 3): Fréchet distance, its standard error, and the bias-corrected distance."""
    found = []
    for x in sets:
        draws = _frechet_draws(x, real, list(subsets(len(x), resamples, 0, labels)))
        fd = frechet(x, real)
        found.append([fd, jackknife(draws, len(x)), bias_corrected(fd, draws, len(x))])
    return np.array(found)


def test_labels_give_a_balanced_set_its_true_error_and_bias():
    """Without them the class counts count as random, which adds variance and bias."""
    sets = [balanced(seed) for seed in range(60)]
    truth = frechet(balanced(1000, 20_000), REAL)
    fd, error, corrected = measured(sets, REAL, LABELS, 30).T
    assert error.mean() / fd.std(ddof=1) == pytest.approx(1, abs=0.25)
    assert corrected.mean() == pytest.approx(truth, abs=3 * corrected.std() / 60**0.5)
    _, error, corrected = measured(sets, REAL, None, 30).T
    assert error.mean() / fd.std(ddof=1) > 2
    assert corrected.mean() < truth - 3 * corrected.std() / 60**0.5


@pytest.mark.slow
def test_intervals_take_labels():
    x, real = balanced(0), balanced(999, 60, spread=1, shift=0)
    [[fd, error, corrected]] = measured([x], real, LABELS, 10)
    found = with_intervals(x, real, resamples=10, labels=LABELS)
    assert found["fd"]["high"] - fd == pytest.approx(Z95 * error)
    assert found["fd_inf"]["value"] == pytest.approx(corrected)
    blind = with_intervals(x, real, resamples=10)
    assert {name: f["value"] for name, f in blind.items() if name != "fd_inf"} == {
        name: f["value"] for name, f in found.items() if name != "fd_inf"
    }
    with pytest.raises(ValueError, match="299 labels for 300 images"):
        with_intervals(x, real, labels=LABELS[1:])


@pytest.mark.slow
def test_ratios_take_labels():
    """The error of the log ratio of balanced sets with the same noise, against its spread."""
    pairs = [(balanced(seed), balanced(seed, spread=1.25, shift=0.6)) for seed in range(50)]
    for labels, least, most in ((LABELS, 0.75, 1.25), (None, 1.3, 9)):
        found = [distance_ratio(*pair, REAL, 30, 0, labels) for pair in pairs]
        assert all(f["bias_corrected"] for f in found)
        for of in (found, [f["raw"] for f in found]):
            logs = np.log([[f["value"], f["high"]] for f in of])
            error = np.diff(logs).mean() / Z95
            assert least < error / logs[:, 0].std(ddof=1) < most


# real images

SETS, SIZE, REST = 8, 30, 200  # disjoint sets of 300 test images; 2000 others are the reference


@pytest.fixture(scope="module")
def halves():
    """{space: (features (10, 240, D) by class, of the reference (2000, D))} of slightly noisy test
    images."""
    images, labels = load_fashion_mnist("test")
    order = torch.stack([(labels == c).nonzero().flatten() for c in range(CLASSES)])
    ours, rest = order[:, : SETS * SIZE], images[order[:, -REST:].flatten()]
    clean = to_float(images[ours.flatten()])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = to_uint8(clean + 0.05 * noise)
    register_extractor(checkpoint.load_weights(WEIGHTS / "extractor.safetensors", Extractor()))
    spaces = {"classifier": extract_features, "pixels": pixels.features}
    return {name: (of(noisy).unflatten(0, ours.shape), of(rest)) for name, of in spaces.items()}


def disjoint(by_class, seed):
    """Random disjoint balanced sets (8, 300, D)."""
    order = np.random.default_rng(seed).permuted(
        np.tile(np.arange(SETS * SIZE), (CLASSES, 1)), axis=1
    )
    mixed = by_class[torch.arange(CLASSES)[:, None], torch.from_numpy(order)]
    return mixed.unflatten(1, (SETS, SIZE)).transpose(0, 1).flatten(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("space, between", [("classifier", 0.8), ("pixels", 0.45)])
def test_balanced_sets_of_real_images(halves, space, between):
    """Distances of 300 and of all 2400 images give the limit by FD(n) = limit + c / n; the spread
    over disjoint sets, three times, gives the error. The jackknife of 80 % may be up to 1.5 times
    too wide. Without labels both are wrong by what lies between classes."""
    by_class, real = halves[space]
    labels = np.arange(CLASSES).repeat(SIZE)
    parts = [measured(disjoint(by_class, k), real, labels, 20) for k in range(3)]
    fd, error, corrected = np.concatenate(parts).T
    whole = frechet(by_class.flatten(0, 1), real)
    limit = whole - (fd.mean() - whole) / (SETS - 1)
    bias = fd.mean() - limit
    spread = np.mean([part[:, 0].var(ddof=1) for part in parts]) ** 0.5
    assert corrected.mean() == pytest.approx(limit, abs=0.15 * bias)
    assert 0.7 < error.mean() / spread < 1.8
    _, blind_error, blind = measured(disjoint(by_class, 0), real, None, 20).T
    assert blind.mean() < limit - between / 4 * bias
    assert blind_error.mean() > (1 + between / 5) * error.mean()
