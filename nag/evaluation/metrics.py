"""Distances between generated and real images by torch-fidelity: its extraction, its Fréchet,
kernel and manifold code.

Our small classifier is registered beside Inception, so both take the same path. Features (N, D) are
extracted once per set of images; every distance and its interval is computed from them. Generated
comes first, real second, everywhere."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kernel_poly, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id_cached

from nag.data.fashion_mnist import to_float
from nag.evaluation.fashion_classifier import FEATURES

FASHION = "fashion-mnist"
INCEPTION = "inception-v3-compat"
LAYERS = {FASHION: str(FEATURES), INCEPTION: "2048"}
METRICS = ("fd", "fd_inf", "kid", "precision", "recall")
KID_SUBSET, KID_SUBSETS = 1000, 50
KEEP = 0.8
LIMITS = {
    "fd": (0.0, math.inf),
    "fd_inf": (-math.inf, math.inf),
    "kid": (-math.inf, math.inf),
    "recall": (0.0, 1.0),
}
Z95 = 1.959964


class _FashionFeatures(torch_fidelity.FeatureExtractorBase):
    """torch-fidelity's view of an Extractor: uint8 (B, 1 or 3 equal channels, 28, 28) to layers
    "192" and "logits".
    """

    source: tuple[nn.Module, ...] = ()

    def __init__(self, name: str, features_list: list[str], **_):
        super().__init__(name, features_list)
        self.net = copy.deepcopy(self.source[0])  # torch-fidelity freezes and moves what it gets

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return str(FEATURES), "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else str(FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        grey = images[:, :1]
        if (
            images.dtype != torch.uint8
            or images.shape[1] not in (1, 3)
            or not bool((images == grey).all())
        ):
            raise ValueError(
                f"{self.name} got {images.dtype} {tuple(images.shape)}: give uint8 (B, C, 28, 28) with "
                "one channel or three equal ones"
            )
        features = self.net.features(to_float(grey)).float()
        layers = {str(FEATURES): features, "logits": self.net.head(features)}
        return tuple(layers[name] for name in self.features_list)


class _Images(Dataset):
    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def register_extractor(net: nn.Module) -> None:
    """Make torch-fidelity know a trained Extractor as "fashion-mnist"; a later call replaces the
    network.
    """
    _FashionFeatures.source = (net,)
    if FASHION not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(FASHION, _FashionFeatures)


def extract_features(
    images: Tensor, extractor: str = FASHION, batch_size: int = 256, weights: Path | None = None
) -> Tensor:
    """Features (N, D) float32 of uint8 images (N, C, H, W) through torch-fidelity; Inception's D is
    2048, ours 192.

    `weights` is a file of Inception weights (torch-fidelity's own copy unless told). Raises
    ValueError for an unknown or unregistered extractor or images of another kind, FileNotFoundError
    if Inception's weights cannot be had."""
    if extractor not in LAYERS:
        raise ValueError(f"unknown extractor {extractor!r}: choose one of {sorted(LAYERS)}")
    if extractor not in FEATURE_EXTRACTORS_REGISTRY:
        raise ValueError(
            f"{extractor!r} has no network yet: call register_extractor(net) with the trained classifier"
        )
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"got images {images.dtype} {tuple(images.shape)}: give uint8 (N, C, H, W) with N > 0"
        )
    if extractor == INCEPTION and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    settings = dict(
        cuda=torch.cuda.is_available(), verbose=False, feature_extractor_weights_path=weights
    )
    try:
        network = create_feature_extractor(extractor, [LAYERS[extractor]], **settings)
    except OSError as error:  # URLError is one
        place = weights or Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
        raise FileNotFoundError(
            f"no weights for {extractor} ({error}): put {URL_INCEPTION_V3} at {place}"
        ) from error
    out = extract_featuresdict_from_input_id_cached(
        1,
        network,
        input1=_Images(images.cpu()),
        batch_size=batch_size,
        save_cpu_ram=True,
        cache=False,
        **settings,
    )
    return out[LAYERS[extractor]]


def _check(
    features: Tensor, reference: Tensor, k: int, allow_rank_deficient: bool, keep: float = 1.0
) -> None:
    if (
        features.ndim != 2
        or reference.ndim != 2
        or features.shape[1] != reference.shape[1]
        or features.shape[1] < 2
    ):
        raise ValueError(
            f"got features {tuple(features.shape)}, {tuple(reference.shape)}: give (N, D), (M, D), D > 1"
        )
    for name, x, kept in (("generated", features, keep), ("real", reference, 1.0)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"the {name} features are not finite: look at the images they come from"
            )
        need = math.ceil((k + 2) / kept)
        if len(x) < need:
            raise ValueError(
                f"{len(x)} {name} images are too few for k = {k}: give at least {need}"
            )
        need = math.ceil((x.shape[1] + 1) / kept)
        if len(x) < need and not allow_rank_deficient:
            raise ValueError(
                f"{len(x)} {name} images are too few: the Fréchet distance on {x.shape[1]} features needs "
                f"at least {need} here, or its covariance is singular; give more images, or pass "
                "allow_rank_deficient=True to compare like with like all the same"
            )


def frechet(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of generated (N, D) to real (M, D) features by torch-fidelity, in float64
    (Heusel et al., 2017).
    """
    statistics = (fid_features_to_statistics(x.double()) for x in (features, reference))
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def distances(
    features: Tensor,
    reference: Tensor,
    k: int = 3,
    seed: int = 0,
    allow_rank_deficient: bool = False,
) -> dict[str, float]:
    """Fréchet distance, KID, precision and recall (k-th neighbour) of generated (N, D) against real
    (M, D) features.

    Heusel et al. (2017), Binkowski et al. (2018), Kynkäänniemi et al. (2019), all by
    torch-fidelity. KID, the unbiased squared MMD, is the mean over 50 subsets of min(1000, N, M)
    images drawn with `seed`. Raises ValueError for unlike shapes, values that are not finite, or N
    or M below D + 1 unless `allow_rank_deficient`."""
    _check(features, reference, k, allow_rank_deficient)
    x, y = features.double(), reference.double()
    kid = kid_features_to_metric(
        x,
        y,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET, len(x), len(y)),
        rng_seed=seed,
        verbose=False,
    )[KEY_METRIC_KID_MEAN]
    prc = prc_features_to_metric(
        features, reference, prc_neighborhood=k, save_cpu_ram=True, verbose=False
    )
    return {
        "fd": frechet(features, reference),
        "kid": kid,
        "precision": prc[KEY_METRIC_PRECISION],
        "recall": prc[KEY_METRIC_RECALL],
    }


def _draws(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Places of random 80 % of n images, the same for any two sets of n images."""
    rng = np.random.default_rng(seed)
    return (rng.permutation(n)[: int(KEEP * n)] for _ in range(resamples))


def frechet_to(mean: np.ndarray, cov: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """The Fréchet distance of a mean (D,) and covariance (D, D) to these, many times cheaper than
    one by one.

    tr sqrt(C_s C) = tr sqrt(R C_s R) with R = sqrt(C), which is symmetric, where torch-fidelity
    takes a general spectrum."""
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T

    def distance(m: np.ndarray, c: np.ndarray) -> float:
        cross = np.sqrt(np.linalg.eigvalsh(root @ c @ root).clip(0)).sum()
        return np.square(m - mean).sum() + np.trace(c + cov) - 2 * cross

    return distance


def _frechet_draws(features: Tensor, reference: Tensor, resamples: int, seed: int) -> np.ndarray:
    """Fréchet distances (resamples,) of the images of `_draws`."""
    x, y = features.double().numpy(), reference.double().numpy()
    distance = frechet_to(y.mean(axis=0), np.cov(y, rowvar=False))
    return np.array(
        [
            distance(x[s].mean(axis=0), np.cov(x[s], rowvar=False))
            for s in _draws(len(x), resamples, seed)
        ]
    )


def subsamples(
    features: Tensor, reference: Tensor, k: int = 3, resamples: int = 100, seed: int = 0
) -> np.ndarray:
    """Fréchet distance, KID (less the real images' own term) and recall (resamples, 3) of random 80
    % of (N, D) features.

    Equal N and seed draw alike, so that two sets are paired. `jackknife` turns their spread into
    that of all N."""
    x, y = features.double().numpy(), reference.double().numpy()
    within, across = kernel_poly(x, x), kernel_poly(x, y).mean(axis=1)
    to_real = torch.cdist(features, reference).numpy()
    # Enough neighbours that k + 1 of them are in any subsample: for k = 3 that fails with a chance
    # below 1e-30
    near, order = (
        a.numpy()
        for a in torch.cdist(features, features).topk(min(16 * (k + 1), len(x)), largest=False)
    )
    found = []
    for s in _draws(len(x), resamples, seed):
        chosen, size = np.zeros(len(x)), len(s)
        chosen[s] = 1
        pairs = chosen @ within @ chosen - within.diagonal()[s].sum()
        kid = pairs / (size * (size - 1)) - 2 * across[s].mean()
        place = (chosen[order[s]].cumsum(axis=1) == k + 1).argmax(axis=1)
        radii = near[s, place]
        found.append([kid, (to_real[s] <= radii[:, None]).any(axis=0).mean()])
    return np.c_[_frechet_draws(features, reference, resamples, seed), np.array(found)]


def stretch(n: int) -> float:
    """How many times wider all n images scatter than random 80 % of them do about their own mean."""
    size = int(KEEP * n)
    return math.sqrt(size / (n - size))


def jackknife(draws: np.ndarray, n: int) -> np.ndarray:
    """Standard error (...) for all n images of what was found on random 80 % of them, (resamples,
    ...) (Shao and Wu, 1989).
    """
    return draws.std(axis=0, ddof=1) * stretch(n)


def _without_bias(fd: float, draws: np.ndarray, n: int) -> float:
    """fd_inf of fd(n) = fd_inf + c / n, from all n images and from m = 80 %: c / n = (mean fd(m) -
    fd(n)) m / (n - m).
    """
    size = int(KEEP * n)
    return float(fd - size / (n - size) * (draws.mean() - fd))


def _wilson(p: float, n: int) -> tuple[float, float]:
    """95 % interval of a binomial fraction (Wilson, 1927), which keeps a width at p = 0 and p = 1."""
    centre, width = p + Z95**2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    low, high = ((centre + sign * width) / (1 + Z95**2 / n) for sign in (-1, 1))
    return max(0.0, min(low, p)), min(
        1.0, max(high, p)
    )  # at p = 0 and p = 1 a limit is p but for rounding


def distance_ratios(
    features: Tensor, baseline: Tensor, reference: Tensor, resamples: int = 100, seed: int = 0
) -> tuple[dict, dict | None]:
    """Fréchet distance of one set over that of another made from the same N seeds, raw and with the
    finite-N bias off.

    Each is {"value", "low", "high", "n"}; the second is None if a distance without its bias is not
    above zero. Paired: both sets are measured on the same subsamples of seeds, so what the arms
    share cancels (jackknife of the log ratio). Raises ValueError for sets of other sizes, and as
    `with_intervals` does."""
    if len(features) != len(baseline):
        raise ValueError(
            f"{len(features)} and {len(baseline)} images: a paired ratio needs the same seeds in both"
        )
    whole, draws, n = [], [], len(features)
    for x in (features, baseline):
        _check(x, reference, 3, False, keep=KEEP)
        whole.append(frechet(x, reference))
        draws.append(_frechet_draws(x, reference, resamples, seed))

    def ratio(values: list[float], log_draws: np.ndarray) -> dict:
        value, error = values[0] / values[1], jackknife(log_draws, n)
        return {
            "value": value,
            "low": value * math.exp(-Z95 * error),
            "high": value * math.exp(Z95 * error),
            "n": n,
        }

    off = [_without_bias(fd, drawn, n) for fd, drawn in zip(whole, draws, strict=True)]
    # a draw's own bias is larger than that of all N, but only its spread is used
    linear = draws[0] / off[0] - draws[1] / off[1]
    return ratio(whole, np.log(draws[0] / draws[1])), ratio(off, linear) if min(off) > 0 else None


def distance_ratio(
    features: Tensor, baseline: Tensor, reference: Tensor, resamples: int = 100, seed: int = 0
) -> dict:
    """The raw one of `distance_ratios`."""
    return distance_ratios(features, baseline, reference, resamples, seed)[0]


def with_intervals(
    features: Tensor,
    reference: Tensor,
    k: int = 3,
    resamples: int = 100,
    seed: int = 0,
    allow_rank_deficient: bool = False,
) -> dict[str, dict[str, float]]:
    """`distances` with 95 % intervals over the N generated images: {metric: {"value", "low",
    "high", "n"}}.

    The interval is for the value at this N, against these real images. "fd_inf" is the Fréchet
    distance with the bias of a finite N taken off, by its 1/N law (Chong and Forsyth, 2020) between
    N and the subsamples. Raises ValueError as `distances` does, and for N below (D + 1) / 0.8,
    because subsamples are measured. Takes about 8 N (N + M) bytes."""
    _check(features, reference, k, allow_rank_deficient, keep=KEEP)
    value, n = distances(features, reference, k, seed, allow_rank_deficient), len(features)
    # Drawing with replacement would repeat images: that narrows the covariance, raising the Fréchet
    # distance by as much
    # again as its finite-N bias, and it puts neighbours at distance zero, shrinking recall's balls.
    # Subsamples drawn
    # without replacement (delete-d jackknife, Shao and Wu, 1989) repeat nothing. m of N images vary
    # about their mean by
    # (1 - m/N) var / m, which times m / (N - m) is var / N; their own bias cancels as only this
    # spread is used. Where
    # first-order terms vanish (both sets alike) it is too wide, by sqrt(1 + N/m) at most: so m is
    # large, not N / 2.
    # Precision is a mean over images that are independent given the real ones: binomial.
    draws = subsamples(features, reference, k, resamples, seed)
    size, out = int(KEEP * n), {}
    errors = dict(zip(("fd", "kid", "recall"), jackknife(draws, n), strict=True))
    value["fd_inf"] = _without_bias(value["fd"], draws[:, 0], n)
    errors["fd_inf"] = errors["fd"] * math.sqrt(
        1 + size / (n - size) / resamples
    )  # the draws' mean has an error of its own
    for name, error in errors.items():
        limits = LIMITS[name]
        low, high = (
            min(max(float(value[name] + z * error), limits[0]), limits[1]) for z in (-Z95, Z95)
        )
        out[name] = {"low": low, "high": high}
    out["precision"] = dict(zip(("low", "high"), _wilson(value["precision"], n), strict=True))
    return {name: {"value": value[name], **out[name], "n": n} for name in METRICS}
