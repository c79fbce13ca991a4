"""FID, sFID, IS, precision and recall of many images by the protocol of ADM's evaluation suite
(Dhariwal and Nichol, 2021).

Images come as ADM's npz (`arr_0`, uint8 (N, H, W, 3)), the reference as its npz of statistics
(`mu`, `sigma` of the pooled, `mu_s`, `sigma_s` of the spatial features of the whole training set)
with 10,000 images (`arr_0`). Where ADM computes distances in half precision, here it is single. KID
and FD-DINOv2 are second opinions, not part of that protocol."""

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from nag.data.image_folder import Crop, batches, list_images
from nag.data.published_files import record
from nag.evaluation.inception import Extract, features, image_batches, image_shape, load_extractor
from nag.evaluation.metrics import frechet_to
from nag.support.commands import refusing
from nag.support.device import best_device
from nag.support.files import UNREADABLE, atomic
from nag.support.uncertainty import Interval, around, show, wilson

SAMPLES, REFERENCE = 50_000, 10_000
K, SPLIT = 3, 5000
KID_SUBSETS, KID_SUBSET = 100, 1000
PRC_BATCH = (
    1000  # distances from this many images to all others are in memory at once: 0.2 GB of 50,000
)
DINO = "dinov2-vit-l-14"
STATISTICS = {
    "pool": ("mu", "sigma"),
    "spatial": ("mu_s", "sigma_s"),
    "dino": ("mu_dino", "sigma_dino"),
}
FRECHET = {"pool": "fid", "spatial": "sfid", "dino": "fd_dinov2"}
LABELS = {
    "fid": "FID",
    "sfid": "sFID",
    "is": "IS",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
    "fd_dinov2": "FD-DINOv2",
}


def _gather(parts: Iterator[dict], names: Iterable[str]) -> dict[str, Tensor]:
    """The named entries of all parts, joined; raises ValueError if one is not finite."""
    kept: dict[str, list[Tensor]] = {}
    for part in parts:
        for name in names:
            kept.setdefault(name, []).append(part[name])
    found = {name: torch.cat(values) for name, values in kept.items()}
    for name, values in found.items():
        if bad := int((~torch.isfinite(values).flatten(1).all(1)).sum()):
            raise ValueError(
                f"the extractor's {name} features of {bad} images are NaN or infinite: check its "
                "weights, and that these images are of its kind"
            )
    return found


def _second(dino: bool | str) -> tuple[Extract | None, dict | None]:
    """The extractor of FD-DINOv2 and its weights, if asked for."""
    return load_extractor(DINO if dino is True else dino) if dino else (None, None)


def reference_from_images(
    path: Path,
    images: Path | np.ndarray,
    extractor: str = "inception",
    count: int = REFERENCE,
    seed: int = 0,
    crop: Crop | None = None,
    dino: bool | str = False,
    batch_size: int = 64,
) -> None:
    """Write a reference npz like ADM's: statistics of all images, and `count` of them (all, if
    fewer) drawn by `seed`.

    `images` is uint8 (N, H, W, 3) or a folder of image files, each cropped by `crop` (a PIL image
    to a PIL image) if given. Streams: memory holds the images drawn and a few matrices. Raises
    ValueError for other images, FileNotFoundError."""
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"got images {images.dtype} {images.shape}: give uint8 (N, H, W, 3)")
        n = len(images)
        parts = (
            torch.from_numpy(images[i : i + batch_size]).permute(0, 3, 1, 2)
            for i in range(0, n, batch_size)
        )
    else:
        files = list_images(images)
        n, parts = len(files), batches(files, crop, batch_size)
    if n < 2:
        raise FileNotFoundError(
            f"{n} images in {images if isinstance(images, Path) else 'the array'}: give two or more"
        )
    if count < 1:
        raise ValueError(f"a reference of {count} images: give 1 or more")
    extract, (second, _) = load_extractor(extractor)[0], _second(dino)
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(seed).permutation(n)[:count]] = True
    sums: dict[str, list] = {}
    kept, start = [], 0
    for part in features(parts, n, extract, second):
        batch = part["images"].permute(0, 2, 3, 1).numpy()
        kept.append(batch[chosen[start : start + len(batch)]])
        start += len(batch)
        for name in STATISTICS.keys() & part.keys():
            x = part[name].double().numpy()
            shift, total, outer = sums.get(
                name, (x.mean(axis=0), 0.0, 0.0)
            )  # shifted, so that squares keep their digits
            sums[name] = [
                shift,
                total + (x - shift).sum(axis=0),
                outer + (x - shift).T @ (x - shift),
            ]
    arrays: dict[str, Any] = {"extractor": np.array(extractor), "arr_0": np.concatenate(kept)}
    for name, (shift, total, outer) in sums.items():
        mu, sigma = STATISTICS[name]
        arrays |= {mu: shift + total / n, sigma: (outer - np.outer(total, total) / n) / (n - 1)}
    with atomic(path) as part:
        np.savez(part, **arrays)


def _statistics(x: Tensor) -> dict[str, np.ndarray]:
    return fid_features_to_statistics(x.double())


def given_statistics(path: Path, kinds: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """Means (D,) and covariances (D, D) that a reference npz has, of these kinds of features.

    Raises FileNotFoundError, or ValueError if the file is damaged, one is not finite, they do not
    fit each other, or a covariance is none."""
    found = {}
    try:
        with np.load(path, allow_pickle=False) as npz:
            read = {
                kind: [npz[key].astype(np.float64, casting="same_kind") for key in STATISTICS[kind]]
                for kind in kinds
                if set(STATISTICS[kind]) <= set(npz.files)
            }
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is truncated or no npz file of numbers: fetch or make it again"
        ) from error
    for kind, (mu, sigma) in read.items():
        if mu.ndim != 1 or sigma.shape != (*mu.shape, *mu.shape):
            fault = f"shapes {mu.shape} and {sigma.shape}, where (D,) and (D, D) are wanted"
        elif not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            fault = "NaN or infinite values"
        elif (np.diag(sigma) < 0).any() or not np.allclose(
            sigma, sigma.T, rtol=1e-3, atol=1e-5 * np.abs(sigma).max()
        ):
            fault = "negative variances or unequal halves, which no covariance has"
        elif (spectrum := np.linalg.eigvalsh(sigma))[0] < -1e-3 * max(spectrum[-1], 1e-12):
            fault = "a negative variance in some direction, which no covariance has"
        else:
            found[kind] = {"mu": mu, "sigma": sigma}
            continue
        raise ValueError(
            f"{path} has {' and '.join(STATISTICS[kind])} with {fault}: fetch or make it again"
        )
    return found


def _reference(
    path: Path, extractor: str, extract: Extract, dino: Extract | None, batch_size: int
) -> tuple[dict, dict, dict]:
    """Features of the reference's images, its statistics per kind of features, and the number of
    images behind those.
    """
    kinds = [kind for kind in STATISTICS if kind != "dino" or dino]
    given = given_statistics(path, kinds)  # before the images, which take long
    found = _gather(
        features(image_batches(path, batch_size), image_shape(path)[0], extract, dino), kinds
    )
    with np.load(path, allow_pickle=False) as npz:
        maker = str(npz["extractor"]) if "extractor" in npz.files else extractor
        if maker != extractor:
            raise ValueError(
                f"{path} was made with the extractor {maker!r}, not {extractor!r}: make it again, "
                "or use that one"
            )
    for kind, statistics in given.items():
        if statistics["mu"].shape != found[kind].shape[1:]:
            raise ValueError(
                f"{path} has statistics of {statistics['mu'].shape[0]} {kind} features where "
                f"{extractor!r} has {found[kind].shape[1]}: it was made with another extractor"
            )
    origin = {
        kind: "of the file" if kind in given else f"of its {len(found[kind]):,} images"
        for kind in kinds
    }
    return found, {kind: given.get(kind) or _statistics(found[kind]) for kind in kinds}, origin


def frechet(
    x: Tensor, reference: dict[str, np.ndarray], blocks: int = 20, seed: int = 0
) -> Interval:
    """Fréchet distance of features (N, D) to {"mu", "sigma"} (Heusel et al., 2017), with a 95 %
    interval over the N images.

        FD = |m - mu|^2 + tr(C + sigma - 2 (C sigma)^(1/2))

    The interval is a jackknife: each of `blocks` random blocks is left out once, for which only the
    sums of that block are needed."""
    value = fid_statistics_to_metric(_statistics(x), reference, verbose=False)[KEY_METRIC_FID]
    mean, cov = reference["mu"], reference["sigma"]
    x = x.double().numpy() - mean
    total, outer = x.sum(axis=0), x.T @ x
    distance, left_out = frechet_to(mean, cov), []
    # Random blocks: files are often ordered by class, and a block of few classes does not
    # represent them all
    for block in np.array_split(np.random.default_rng(seed).permutation(len(x)), blocks):
        n, part = len(x) - len(block), x[block]
        m = (total - part.sum(axis=0)) / n
        c = (outer - part.T @ part - n * np.outer(m, m)) / (n - 1)
        left_out.append(distance(mean + m, c))
    error = math.sqrt((blocks - 1) * np.var(left_out))
    return around(value, error, limits=(0.0, math.inf), degrees=blocks - 1)


def inception_score(logits: Tensor, split: int = SPLIT) -> dict[str, Any]:
    """Inception score (Salimans et al., 2016), the mean over splits of about `split` images in the
    order of the file.

        IS = exp E_x KL(p(y|x) || E_x p(y|x))

    The N images are divided equally, to one image, into round(N / split) splits or one: a short
    split would have a low score. logits (N, K) are without the last layer's bias. The interval is
    from the spread of the splits; with one split it is None. Raises ValueError for no images, or
    splits of none."""
    if not len(logits) or split < 1:
        raise ValueError(f"{len(logits)} images in splits of {split}: give 1 or more of both")
    scores = [
        isc_features_to_metric(part, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN]
        for part in logits.tensor_split(max(1, round(len(logits) / split)))
    ]
    value, n = float(np.mean(scores)), len(scores)
    if n > 1:
        error = float(np.std(scores, ddof=1)) / math.sqrt(n)
        found = around(value, error, degrees=n - 1)
    else:
        found = {"value": value, "low": None, "high": None}
    return {**found, "std": float(np.std(scores)), "splits": n}


def precision_recall(x: Tensor, reference: Tensor, k: int = K) -> dict[str, Interval]:
    """Improved precision and recall (Kynkäänniemi et al., 2019) of samples (N, D) against reference
    images (M, D).

    A ball around each point reaches to its k-th neighbour, itself not counted. Precision is the
    share of samples in balls of the reference, recall the reverse. Intervals are
    binomial (Wilson): precision's over the N samples with the reference held fixed; recall's, a
    fraction of the M reference images, over those with the samples held fixed. Raises ValueError
    for fewer than k + 2 points."""
    if min(len(x), len(reference)) < k + 2:
        raise ValueError(
            f"{len(x)} samples and {len(reference)} reference images: k = {k} needs {k + 2} of each"
        )
    device = best_device()
    found = prc_features_to_metric(
        x.to(device),
        reference.to(device),
        prc_neighborhood=k,
        prc_batch_size=PRC_BATCH,
        save_cpu_ram=True,
        verbose=False,
    )
    return {
        "precision": wilson(found[KEY_METRIC_PRECISION], len(x)),
        "recall": wilson(found[KEY_METRIC_RECALL], len(reference)),
    }


def kernel_distance(x: Tensor, reference: Tensor, seed: int = 0) -> dict[str, Any]:
    """KID (Binkowski et al., 2018) of (N, D) against (M, D), the unbiased squared MMD with the
    kernel (x·y / D + 1)^3.

    The mean over 100 random subsets of min(1000, N/2, M/2) each."""
    size, n = min(KID_SUBSET, len(x) // 2, len(reference) // 2), len(x)
    found = kid_features_to_metric(
        x.double(),
        reference.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    # Subsets of m of N images vary by var/m - var/N (drawn without replacement), the whole by
    # var/N, the mean by 1/subsets
    error = found[KEY_METRIC_KID_STD] * math.sqrt(1 / KID_SUBSETS + size / (n - size))
    return {**around(found[KEY_METRIC_KID_MEAN], error), "subset": size}


def evaluate(
    samples: Path,
    reference: Path,
    *,
    extractor: str = "inception",
    expected: int = SAMPLES,
    expected_reference: int = REFERENCE,
    allow_fewer: bool = False,
    kid: bool = True,
    dino: bool | str = False,
    blocks: int = 20,
    batch_size: int = 64,
    uint8: str = "not stated",
) -> dict[str, dict]:
    """All metrics of an npz of samples against a reference npz: {name: {"value", "low", "high",
    ...}, "protocol": {...}}.

    `extractor` is a name or "package.module:function" (see `nag.evaluation.inception`), and so is
    `dino` if it is not a bool. `uint8` says by what rule floats became bytes. Raises ValueError if
    there are fewer than `expected` samples or other than `expected_reference` images in the
    reference, unless `allow_fewer`; FileNotFoundError for a file that has to be put in place."""
    (n, *size, _), (m, *reference_size, _) = image_shape(samples), image_shape(reference)
    if not allow_fewer and (n < expected or m != expected_reference):
        raise ValueError(
            f"{n:,} samples and {m:,} reference images, where the protocol has {expected:,} and "
            f"{expected_reference:,}: such numbers cannot be compared with published ones; pass "
            "allow_fewer=True (--allow-fewer) to measure them all the same"
        )
    if size != reference_size:
        raise ValueError(
            f"samples of {size} pixels and a reference of {reference_size}: take the reference of "
            "that size"
        )
    blocks = min(blocks, n // 2)  # two samples or more in each
    if blocks < 2:
        raise ValueError(
            f"{n} samples in {blocks} blocks: give at least four samples, and two blocks"
        )
    (extract, weights), (second, second_weights) = load_extractor(extractor), _second(dino)
    real, statistics, origin = _reference(reference, extractor, extract, second, batch_size)
    x = _gather(features(image_batches(samples, batch_size), n, extract, second), [*real, "logits"])
    result: dict[str, Any] = {
        FRECHET[kind]: frechet(x[kind], statistics[kind], blocks) for kind in real
    }
    result |= {"is": inception_score(x["logits"])} | precision_recall(x["pool"], real["pool"])
    if kid:
        result["kid"] = kernel_distance(x["pool"], real["pool"])
    result["protocol"] = {
        "samples": n,
        "reference": m,
        "statistics": origin,
        "expected": expected,
        "expected_reference": expected_reference,
        "k": K,
        "split": n // result["is"]["splits"],
        "splits": result["is"]["splits"],
        "blocks": blocks,
        "extractor": extractor,
        "weights": weights,
        "dino": second_weights or dino,
        "features": {kind: x[kind].shape[1] for kind in x},
        "size": size,
        "uint8": uint8,
        "files": {"samples": record(samples), "reference": record(reference)},
        "torch": torch.__version__,
        "torch-fidelity": torch_fidelity.__version__,
    }
    return result


def report(result: dict[str, dict]) -> str:
    """The numbers of `evaluate`, each with its interval and what it was measured on, and the
    protocol they share.
    """
    p = result["protocol"]
    used = {
        "fid": p["statistics"]["pool"],
        "sfid": p["statistics"]["spatial"],
        "fd_dinov2": p["statistics"].get("dino"),
    }
    how = {name: f"statistics {origin}" for name, origin in used.items()}
    how |= dict.fromkeys(
        ("precision", "recall"), f"k = {p['k']}, {p['reference']:,} reference images"
    )
    how |= {
        "is": f"{p['splits']} split{'s' * (p['splits'] > 1)} of {p['split']:,} in file order",
        "kid": f"{KID_SUBSETS} subsets of {result.get('kid', {}).get('subset')}",
    }
    lines = []
    for name in [name for name in LABELS if name in result]:
        number = show(result[name], ".4f")
        lines.append(f"{LABELS[name]:<10}{number:<32}{p['samples']:,} samples, {how[name]}")
    digest = f" {p['weights']['sha256'][:8]}" if p["weights"] else ""
    fewer = p["samples"] < p["expected"] or p["reference"] != p["expected_reference"]
    shared = (
        f"protocol: ADM's{', with other numbers of images' if fewer else ''}; "
        f"extractor {p['extractor']}{digest}; uint8 {p['uint8']}; torch {p['torch']}, "
        f"torch-fidelity {p['torch-fidelity']}"
    )
    return "\n".join([*lines, shared])


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m nag.evaluation.adm samples.npz reference.npz`: print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m nag.evaluation.adm", description="ADM's metrics of an npz of samples"
    )
    parser.add_argument("samples", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument(
        "--extractor", default="inception", help="a name, or package.module:function"
    )
    parser.add_argument(
        "--expected", type=int, default=SAMPLES, help="fewest samples (10,000 in fine-tuning)"
    )
    parser.add_argument(
        "--allow-fewer", action="store_true", help="measure whatever number of images there is"
    )
    parser.add_argument("--dino", action="store_true", help="FD-DINOv2 as well")
    parser.add_argument(
        "--uint8",
        default="not stated",
        help="the rule by which floats became bytes, for the record",
    )
    given = parser.parse_args(arguments)
    with refusing(parser):
        print(report(evaluate(**vars(given))))


if __name__ == "__main__":
    main()
