import math
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from torch_fidelity import feature_extractor_inceptionv3, registry

from nag.data.fashion_mnist import to_float
from nag.evaluation import metrics
from nag.evaluation.fashion_classifier import Extractor
from nag.evaluation.features import (
    FASHION,
    INCEPTION,
    _Images,
    extract_features,
    register_extractor,
)
from nag.evaluation.metrics import (
    METRICS,
    distance_ratio,
    distances,
    frechet_intervals,
    with_intervals,
)
from nag.support.uncertainty import Z95


def normal(n, d, seed, scale=1.0, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, scale, (n, d))).float()


def with_moments(x, mean, cov):
    """x moved so that its sample mean and covariance are exactly those given."""
    x = x.double().numpy()
    white = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), (x - x.mean(0)).T).T
    return torch.from_numpy(white @ np.linalg.cholesky(cov).T + mean)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Extractor().train()
    register_extractor(net)
    yield net
    registry.FEATURE_EXTRACTORS_REGISTRY.pop(FASHION, None)


def images(n, channels=1, seed=0):
    return torch.randint(
        256, (n, channels, 28, 28), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


# distances


def test_frechet_distance_of_gaussians_in_closed_form():
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2 over the axes' standard deviations."""
    s1, s2, m1, m2 = (
        np.array([1.0, 2.0, 0.5]),
        np.array([0.3, 2.5, 1.5]),
        np.array([0.0, 1, 2]),
        np.array([1.0, 1, -1]),
    )
    x = with_moments(normal(50, 3, 0), m1, np.diag(s1**2))
    y = with_moments(normal(60, 3, 1), m2, np.diag(s2**2))
    expected = np.square(m1 - m2).sum() + np.square(s1 - s2).sum()
    assert distances(x, y)["fd"] == pytest.approx(expected, rel=1e-9)
    assert distances(x, x)["fd"] == pytest.approx(0, abs=1e-6)


def test_frechet_distance_against_a_matrix_square_root():
    x, y = normal(80, 6, 0) @ normal(6, 6, 1), normal(90, 6, 2, shift=0.3) @ normal(6, 6, 3)
    a, b = np.cov(x.double().numpy(), rowvar=False), np.cov(y.double().numpy(), rowvar=False)
    gap = np.square(x.double().numpy().mean(0) - y.double().numpy().mean(0)).sum()
    expected = gap + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert distances(x, y)["fd"] == pytest.approx(expected, rel=1e-8)


def test_kid_is_the_unbiased_squared_mmd_of_the_cubic_kernel():
    """With one subset size = N = M every subset is the whole set, so the mean is the U-statistic
    itself.
    """
    n, d = 12, 4
    x, y = normal(n, d, 0).double().numpy(), normal(n, d, 1, shift=0.5).double().numpy()

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / d + 1) ** 3

    within = [
        sum(kernel(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        for z in (x, y)
    ]
    across = sum(kernel(a, b) for a in x for b in y) / n**2
    found = distances(torch.from_numpy(x), torch.from_numpy(y))["kid"]
    assert found == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_kid_of_unequal_sets_depends_on_the_seed_alone():
    x, y = normal(30, 4, 0), normal(60, 4, 1)
    assert distances(x, y)["kid"] == distances(x, y)["kid"] != distances(x, y, seed=1)["kid"]


def test_precision_and_recall_on_a_line_and_not_swapped():
    """k = 1. Real: 0, 1, 10, 11 with balls of radius 1. Generated: 0.3, 0.5, 5 have radii 0.2, 0.2,
    4.5.

    Precision: 0.3 and 0.5 are in a real ball, 5 is not: 2/3. Recall: only 1 is in a ball, that of 5
    ([0.5, 9.5]): 1/4."""
    generated, real = (
        torch.tensor([[p, 0.0] for p in line]) for line in ([0.3, 0.5, 5], [0, 1, 10, 11])
    )
    found = distances(generated, real, k=1)
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == pytest.approx(1 / 4)


@pytest.mark.slow
def test_collapse_keeps_precision_and_loses_recall_and_noise_does_the_reverse():
    real, collapsed, noisy = (
        normal(300, 2, 0),
        normal(300, 2, 1, scale=0.05),
        normal(300, 2, 2, scale=20),
    )
    found = distances(collapsed, real)
    assert found["precision"] > 0.95 and found["recall"] < 0.05
    found = distances(noisy, real)
    assert found["precision"] < 0.1 and found["recall"] > 0.9


# errors


def test_too_few_images_for_the_covariance():
    x, y = normal(8, 8, 0), normal(9, 8, 1)
    with pytest.raises(ValueError, match="8 generated images are too few.*at least 9"):
        distances(x, y)
    with pytest.raises(ValueError, match="8 real images are too few"):
        distances(y, x)
    assert distances(x, y, allow_rank_deficient=True).keys() == set(METRICS) - {
        "fd_inf",
        "fd_inf_second",
    }
    with pytest.raises(ValueError, match="11 generated images are too few.*at least 12"):
        with_intervals(normal(11, 8, 0), y)


@pytest.mark.parametrize(
    "x, y, match",
    [
        (normal(20, 3, 0), normal(20, 4, 0), r"\(20, 3\), \(20, 4\)"),
        (normal(20, 3, 0)[0], normal(20, 3, 0), "give"),
        (normal(20, 3, 0) * math.nan, normal(20, 3, 0), "generated features are not finite"),
        (normal(20, 1, 0), normal(20, 1, 0), "D > 1"),
        (normal(4, 2, 0), normal(20, 2, 0), "too few for k = 3"),
    ],
)
def test_bad_features(x, y, match):
    with pytest.raises(ValueError, match=match):
        distances(x, y)


# extraction


@pytest.mark.parametrize("channels", [1, 3])
def test_extraction_through_torch_fidelity_equals_the_network(net, channels):
    x = images(37)
    found = extract_features(x.expand(-1, channels, -1, -1), batch_size=16)
    expected = net.features(to_float(x)).detach()
    assert found.dtype == torch.float32 and found.shape == (37, 192)
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    assert net.training and all(p.requires_grad for p in net.parameters())  # ours is left as it was


@pytest.mark.slow
def test_calculate_metrics_runs_on_the_registered_name_and_agrees(net):
    x, y = images(200, seed=0), images(220, seed=1) // 2
    whole = torch_fidelity.calculate_metrics(
        input1=_Images(x),
        input2=_Images(y),
        feature_extractor="fashion-mnist",
        fid=True,
        kid=True,
        prc=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        kid_subset_size=200,
        kid_subsets=50,
        rng_seed=0,
    )
    found = distances(extract_features(x), extract_features(y))
    assert found["fd"] == pytest.approx(whole["frechet_inception_distance"], rel=1e-4)
    assert found["kid"] == pytest.approx(whole["kernel_inception_distance_mean"], rel=1e-3)
    assert (found["precision"], found["recall"]) == (whole["precision"], whole["recall"])


def test_registering_again_replaces_the_network(net):
    before = extract_features(images(2))
    torch.manual_seed(1)
    register_extractor(Extractor())
    assert not torch.allclose(extract_features(images(2)), before)


def test_extraction_refuses_what_it_cannot_do(net):
    with pytest.raises(ValueError, match="choose one of.*fashion-mnist.*inception"):
        extract_features(images(2), "inception")
    with pytest.raises(ValueError, match="give uint8"):
        extract_features(images(2).float())
    with pytest.raises(ValueError, match="three equal ones"):
        extract_features(images(2, channels=3))
    registry.FEATURE_EXTRACTORS_REGISTRY.pop("fashion-mnist")
    with pytest.raises(ValueError, match="call register_extractor"):
        extract_features(images(2))


def test_missing_inception_weights_are_named(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", offline)
    with pytest.raises(FileNotFoundError, match="put .*inception.* at .*checkpoints"):
        extract_features(images(2), INCEPTION)
    with pytest.raises(FileNotFoundError, match="at .*mine.pth"):
        extract_features(images(2), INCEPTION, weights=tmp_path / "mine.pth")


# intervals


def test_intervals_hold_the_value_and_repeat():
    x, y = normal(200, 5, 0, scale=1.2), normal(400, 5, 1)
    found, value = with_intervals(x, y, resamples=40), distances(x, y)
    assert found == with_intervals(x, y, resamples=40)
    for name in value:
        assert found[name]["low"] < value[name] == found[name]["value"] < found[name]["high"]
        assert found[name]["n"] == 200


def test_subsample_statistics_are_those_of_torch_fidelity():
    """The cheap forms used on subsamples equal the real thing on the same images (KID up to the
    real images' term).
    """
    x, y = normal(100, 4, 0, scale=1.3), normal(80, 4, 1)
    found = {name: draws.item() for name, draws in metrics.resampled(x, y, 3, 1, 5).items()}
    expected = distances(x[np.random.default_rng(5).permutation(100)[:80]], y)
    kernel = (y.double() @ y.double().T / 4 + 1) ** 3
    own = (kernel.sum() - kernel.trace()) / (80 * 79)
    assert found["fd"] == pytest.approx(expected["fd"], rel=1e-8)
    assert found["kid"] + own.item() == pytest.approx(expected["kid"], rel=1e-8)
    assert found["recall"] == pytest.approx(expected["recall"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_width_matches_the_true_spread_of_repeated_draws(name, repeated):
    """Against 40 fresh sets of 150 images: mean half-width / 1.96 over their standard deviation is
    near 1.
    """
    found = [f[name] for f in repeated]
    width = np.mean([f["high"] - f["low"] for f in found]) / (2 * Z95)
    assert 0.7 < width / np.std([f["value"] for f in found], ddof=1) < 1.45


@pytest.fixture(scope="module")
def repeated():
    y, other = normal(200, 4, 999), normal(200, 3, 998)
    return [
        with_intervals(
            normal(150, 4, seed, scale=1.25, shift=0.4),
            y,
            resamples=25,
            second=(normal(150, 3, 100 + seed, shift=0.5), other),
        )
        for seed in range(40)
    ]


def test_the_bias_corrected_distance_is_nearer_the_truth():
    """Gaussians N(0, I) against N(0.5 e_1, I): the true Fréchet distance is 0.25, and few images
    add about d (d+1) / 4N.
    """
    gaps = []
    for seed in range(5):
        x, y = normal(200, 16, seed), normal(8_000, 16, 100 + seed)
        y[:, 0] += 0.5
        cell = frechet_intervals(x, y, resamples=50, seed=seed)
        gaps.append([cell["fd"]["value"] - 0.25, cell["fd_inf"]["value"] - 0.25])
    raw, corrected = np.mean(gaps, axis=0)
    assert raw > 0.2 and abs(corrected) < raw / 3


def test_paired_ratio():
    shared, y = normal(300, 8, 0), normal(5000, 8, 1)
    near, far = shared + torch.tensor([0.5] + [0.0] * 7), shared + torch.tensor([1.0] + [0.0] * 7)
    same = distance_ratio(near, near, y)
    assert same["low"] == same["value"] == same["high"] == 1
    found = distance_ratio(near, far, y)
    half = found["raw"]
    assert half["low"] < half["value"] < half["high"] < 1
    alone = [frechet_intervals(x, y) for x in (near, far)]
    a, b = (each["fd"] for each in alone)
    assert half["value"] == pytest.approx(a["value"] / b["value"], rel=1e-9)
    unpaired = sum(((c["high"] - c["low"]) / c["value"]) ** 2 for c in (a, b)) ** 0.5
    assert (half["high"] - half["low"]) / half["value"] < unpaired  # what the arms share cancels
    p, q = (each["fd_inf"]["value"] for each in alone)
    assert found["value"] == pytest.approx(p / q, rel=1e-9) and found["bias_corrected"]
    assert found["low"] < found["value"] < found["high"] and found["n"] == 300
    # the true distances are 0.5 ** 2 and 1, and the bias is common to both
    assert found["value"] < half["value"]
    same_as_real = distance_ratio(y[:300], near, y)  # no farther than its bias
    assert not same_as_real["bias_corrected"]
    assert same_as_real["value"] == same_as_real["raw"]["value"]
    with pytest.raises(ValueError, match="paired ratio needs the same seeds"):
        distance_ratio(near, far[:-1], y)
