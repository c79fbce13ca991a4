"""Distances between generated and real images, each with its 95 % interval.

Every distance is computed from features (N, D) of generated and (M, D) of real images, which are
extracted once (`nag.evaluation.features`). Generated comes first, real second. Values are
torch-fidelity's; what is found on subsets, for the intervals, uses cheaper forms of the same."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
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

from nag.evaluation.features import FASHION, INCEPTION, extract_features, register_extractor
from nag.support.uncertainty import (
    KEEP,
    Z95,
    Interval,
    around,
    bias_corrected,
    by_factor,
    corrected_error,
    jackknife,
    subsets,
    wilson,
)

__all__ = [
    "FASHION",
    "INCEPTION",
    "METRICS",
    "distance_ratio",
    "distances",
    "extract_features",
    "frechet",
    "frechet_intervals",
    "frechet_to",
    "register_extractor",
    "resampled",
    "with_intervals",
]

METRICS = ("fd", "fd_inf", "fd_inf_second", "kid", "precision", "recall")
KID_SUBSET, KID_SUBSETS = 1000, 50
LIMITS = {
    "fd": (0.0, math.inf),
    "kid": (-math.inf, math.inf),
    "recall": (0.0, 1.0),
}


# ---- values


def _check(
    features: Tensor, reference: Tensor, k: int, allow_rank_deficient: bool, keep: float = 1.0
) -> None:
    """Raise ValueError for features that have no distance; `keep` is the share of the generated
    images that the smallest measured subset has."""
    shapes = tuple(features.shape), tuple(reference.shape)
    if [len(shape) for shape in shapes] != [2, 2] or not shapes[0][1] == shapes[1][1] > 1:
        raise ValueError(f"got features {shapes[0]}, {shapes[1]}: give (N, D), (M, D), D > 1")
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
                f"{len(x)} {name} images are too few: the Fréchet distance on {x.shape[1]} "
                f"features needs at least {need} here, or its covariance is singular; give more "
                "images, or pass allow_rank_deficient=True to compare like with like all the same"
            )


def frechet(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of generated (N, D) to real (M, D) features, in float64.

        FD = |m - m_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2))

    with the means m and covariances C of both (Heusel et al., 2017)."""
    statistics = (fid_features_to_statistics(x.double()) for x in (features, reference))
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def distances(
    features: Tensor,
    reference: Tensor,
    k: int = 3,
    seed: int = 0,
    allow_rank_deficient: bool = False,
) -> dict[str, float]:
    """{"fd", "kid", "precision", "recall"} of generated (N, D) against real (M, D) features.

    fd: the Fréchet distance (`frechet`).
    kid: E k(x, x') + E k(y, y') - 2 E k(x, y), k(x, y) = (x·y / D + 1)^3, unbiased; the mean over
        50 subsets of min(1000, N, M) images drawn with `seed` (Binkowski et al., 2018).
    precision: the share of generated images that lie within the distance of a real image to its
        k-th nearest real neighbour; recall: the share of real images that lie within that of a
        generated image to its k-th generated one (Kynkäänniemi et al., 2019).

    Raises ValueError for unlike shapes, values that are not finite, or N or M below D + 1 unless
    `allow_rank_deficient`."""
    _check(features, reference, k, allow_rank_deficient)
    kid = kid_features_to_metric(
        features.double(),
        reference.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET, len(features), len(reference)),
        rng_seed=seed,
        verbose=False,
    )
    manifold = prc_features_to_metric(
        features, reference, prc_neighborhood=k, save_cpu_ram=True, verbose=False
    )
    return {
        "fd": frechet(features, reference),
        "kid": kid[KEY_METRIC_KID_MEAN],
        "precision": manifold[KEY_METRIC_PRECISION],
        "recall": manifold[KEY_METRIC_RECALL],
    }


# ---- the same on many subsets of the generated images


def frechet_to(mean: np.ndarray, cov: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """The Fréchet distance of a mean (D,) and covariance (D, D) to these, made cheap to repeat.

    tr (C C_r)^(1/2) = tr (R C R)^(1/2) with R = C_r^(1/2): R is found once, and R C R is symmetric,
    where torch-fidelity takes the spectrum of a general matrix."""
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T

    def distance(m: np.ndarray, c: np.ndarray) -> float:
        cross = np.sqrt(np.linalg.eigvalsh(root @ c @ root).clip(0)).sum()
        return np.square(m - mean).sum() + np.trace(c + cov) - 2 * cross

    return distance


def _frechet_draws(features: Tensor, reference: Tensor, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Fréchet distance (resamples,) of each subset."""
    x, y = features.double().numpy(), reference.double().numpy()
    distance = frechet_to(y.mean(axis=0), np.cov(y, rowvar=False))
    return np.array([distance(x[s].mean(axis=0), np.cov(x[s], rowvar=False)) for s in chosen])


def _kid_draws(features: Tensor, reference: Tensor, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """KID (resamples,) of each subset, less E k(y, y'), which is the same for all."""
    x, y = features.double().numpy(), reference.double().numpy()
    within, across = kernel_poly(x, x), kernel_poly(x, y).mean(axis=1)
    found = []
    for s in chosen:
        weight, size = np.zeros(len(x)), len(s)
        weight[s] = 1
        pairs = weight @ within @ weight - within.diagonal()[s].sum()
        found.append(pairs / (size * (size - 1)) - 2 * across[s].mean())
    return np.array(found)


def _recall_draws(
    features: Tensor, reference: Tensor, chosen: Sequence[np.ndarray], k: int
) -> np.ndarray:
    """Recall (resamples,) of each subset."""
    n, to_real = len(features), torch.cdist(features, reference).numpy()
    # Of so many neighbours, k + 1 (the image itself is one) are in any subset of 80 %: for k = 3
    # that fails with a chance below 1e-30
    nearest = torch.cdist(features, features).topk(min(16 * (k + 1), n), largest=False)
    distance, neighbour = (a.numpy() for a in nearest)
    found = []
    for s in chosen:
        weight = np.zeros(n)
        weight[s] = 1
        place = (weight[neighbour[s]].cumsum(axis=1) == k + 1).argmax(axis=1)
        radii = distance[s, place]
        found.append((to_real[s] <= radii[:, None]).any(axis=0).mean())
    return np.array(found)


def resampled(
    features: Tensor,
    reference: Tensor,
    k: int = 3,
    resamples: int = 100,
    seed: int = 0,
    labels: Sequence[int] | np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """{"fd", "kid", "recall"}, each (resamples,), of random 80 % of the generated images.

    KID is less the real images' own term E k(y, y'). Equal N, seed and labels draw the same places,
    so that two sets are paired. `labels` (N,) are the classes of the generated images: if given,
    every subset has the same share of each class."""
    chosen = list(subsets(len(features), resamples, seed, labels))
    return {
        "fd": _frechet_draws(features, reference, chosen),
        "kid": _kid_draws(features, reference, chosen),
        "recall": _recall_draws(features, reference, chosen, k),
    }


# ---- with intervals


def frechet_intervals(
    features: Tensor,
    reference: Tensor,
    resamples: int = 100,
    seed: int = 0,
    labels: Sequence[int] | np.ndarray | None = None,
    allow_rank_deficient: bool = False,
) -> dict[str, Interval]:
    """{"fd", "fd_inf"} with 95 % intervals over the N generated images, as `with_intervals` has
    them, without what takes longer."""
    n = len(features)
    _check(features, reference, 1, allow_rank_deficient, keep=KEEP)
    draws = _frechet_draws(features, reference, list(subsets(n, resamples, seed, labels)))
    return _frechet_with_interval(frechet(features, reference), draws, n)


def _frechet_with_interval(value: float, draws: np.ndarray, n: int) -> dict[str, Interval]:
    """The distance, raw and bias-corrected, from the value on n images and its draws on subsets."""
    error = float(jackknife(draws, n))
    corrected = bias_corrected(value, draws, n)
    return {
        "fd": around(value, error, LIMITS["fd"]),
        "fd_inf": around(corrected, corrected_error(error, n, len(draws))),
    }


def with_intervals(
    features: Tensor,
    reference: Tensor,
    k: int = 3,
    resamples: int = 100,
    seed: int = 0,
    allow_rank_deficient: bool = False,
    labels: Sequence[int] | np.ndarray | None = None,
    second: tuple[Tensor, Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """`distances` with 95 % intervals over the N generated images: {metric: {"value", "low",
    "high", "n"}}.

    The interval is for the value at this N, against these real images. "fd_inf" is the
    bias-corrected Fréchet distance, the limit of FD(n) = FD_inf + c / n (Chong and Forsyth, 2020),
    here between N images and subsets of 80 % of them. With `second`, the features (N, E) and
    (M, E) of the same images in another space, "fd_inf_second" is that distance there.

    `labels` (N,) are the classes of the generated images. Give them if their numbers were fixed,
    as in a balanced set: subsets then keep the share of every class. Without labels the numbers
    count as random, which makes the error and the correction of a balanced set too large.

    Raises ValueError as `distances` does, and for N below (D + 1) / 0.8, because subsets are
    measured. Takes about 8 N (N + M) bytes."""
    # Subsets drawn without replacement repeat no image. A bootstrap would: that narrows the
    # covariance, which raises the Fréchet distance by as much again as its finite-N bias, and it
    # puts neighbours at distance zero, which shrinks recall's balls. The subsets' own bias does not
    # matter, since only their spread is used. Where first-order terms vanish (generated like real)
    # the jackknife is too wide, by sqrt(1 + N / m) at most: so m is large, not N / 2.
    _check(features, reference, k, allow_rank_deficient, keep=KEEP)
    n = len(features)
    drawn = resampled(features, reference, k, resamples, seed, labels)
    value = distances(features, reference, k, seed, allow_rank_deficient)
    found: dict[str, Interval] = dict(_frechet_with_interval(value["fd"], drawn["fd"], n))
    if second is not None:
        of = frechet_intervals(*second, resamples, seed, labels, allow_rank_deficient)
        found["fd_inf_second"] = of["fd_inf"]
    for name in ("kid", "recall"):
        found[name] = around(value[name], float(jackknife(drawn[name], n)), LIMITS[name])
    # precision is a mean over images that are independent given the real ones
    found["precision"] = wilson(value["precision"], n)
    return {name: {**found[name], "n": n} for name in METRICS if name in found}


def distance_ratio(
    features: Tensor,
    baseline: Tensor,
    reference: Tensor,
    resamples: int = 100,
    seed: int = 0,
    labels: Sequence[int] | np.ndarray | None = None,
) -> dict[str, Any]:
    """Fréchet ratio of one set (N, D) over another made from the same N seeds: {"value", "low",
    "high", "n", "bias_corrected", "raw"}.

    The value is the ratio of the bias-corrected distances, and "raw" that of the distances at this
    N, which their common bias draws towards one. Where a corrected distance is not above zero there
    is no such ratio: then the value is the raw one and "bias_corrected" False. Paired: both sets
    are measured on the same subsets, so what they share cancels (jackknife of the log ratio).
    `labels` as in `with_intervals`. Raises ValueError for sets of other sizes, and as
    `with_intervals` does."""
    n = len(features)
    if n != len(baseline):
        raise ValueError(
            f"{n} and {len(baseline)} images: a paired ratio needs the same seeds in both"
        )
    for x in (features, baseline):
        _check(x, reference, 3, False, keep=KEEP)
    chosen = list(subsets(n, resamples, seed, labels))
    top, bottom = frechet(features, reference), frechet(baseline, reference)
    tops = _frechet_draws(features, reference, chosen)
    bottoms = _frechet_draws(baseline, reference, chosen)
    raw = by_factor(top / bottom, Z95 * jackknife(np.log(tops / bottoms), n))
    top, bottom = bias_corrected(top, tops, n), bias_corrected(bottom, bottoms, n)
    corrected = min(top, bottom) > 0
    # to first order; a draw's own bias is larger than that of all N, but only its spread is used
    half = Z95 * jackknife(tops / top - bottoms / bottom, n) if corrected else 0.0
    shown = by_factor(top / bottom, half) if corrected else raw
    return {**shown, "n": n, "bias_corrected": corrected, "raw": {**raw, "n": n}}
