"""One arm of a study: sampled, seen by the extractor and the estimator, and kept, so that a study
goes on where it was stopped.

An arm is kept as numbers: features of its images, levels read from its states, NFE and seconds.
What decided them is its key; an arm of another key is made anew."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from companion.experiments.generate import (
    SampleConfig,
    code_version,
    load_arrays,
    sample,
    save_arrays,
)
from nag import checkpoint
from nag.data import fashion_mnist
from nag.estimator import NoiseEstimator, posterior_mean
from nag.evaluation import metrics
from nag.evaluation.fashion_classifier import Extractor
from nag.guidance import Term
from nag.models import DiT
from nag.shift import estimated_times, forward_states, noise_shift
from nag.support.paths import ROOT, WEIGHTS

Judge = Callable[[Tensor], Tensor]
Row = dict[str, np.ndarray]


def reference(images: Tensor | None = None) -> Tensor:
    """Features (M, 192) of real images, uint8 (M, 1, 28, 28), by the committed extractor; the
    10,000 test images unless told.
    """
    metrics.register_extractor(
        checkpoint.load_weights(WEIGHTS / "extractor.safetensors", Extractor())
    )
    return metrics.extract_features(
        fashion_mnist.load_fashion_mnist("test")[0] if images is None else images
    )


def judge(path: str, weights: Path = WEIGHTS) -> Judge:
    """The committed estimator of a path as x (B, 1, 28, 28) -> E[t | x] (B,)."""
    net = checkpoint.load_weights(weights / f"estimator-{path}.safetensors", NoiseEstimator())
    return lambda x: posterior_mean(net, x)


def key_of(**settings: object) -> str:
    """Short hash of the settings, as JSON can write them, and of the code, extractor and PyTorch
    that decide an arm's numbers.
    """
    extractor = checkpoint.sha256(WEIGHTS / "extractor.safetensors")
    made = (
        json.dumps(settings, sort_keys=True, default=str),
        code_version(),
        extractor,
        torch.__version__,
    )
    return hashlib.sha256(repr(made).encode()).hexdigest()[:16]


def code_of(*modules: str) -> list[str]:
    """Short hashes of modules of `nag` that decide an arm's numbers beside the sampling code, for
    its key.
    """
    return [checkpoint.sha256(ROOT / f"{module}.py")[:12] for module in modules]


def arm(
    path: Path,
    key: str,
    net: DiT,
    terms: Sequence[Term],
    config: SampleConfig,
    reader: Judge | None = None,
    solver: Callable | None = None,
) -> Row:
    """The arm kept at `path` if it has this key; otherwise sampled by `generate.sample`, measured,
    and kept there.

    features (N, 192), levels (M, K) read from the states of `config.trajectories` images at times
    (K,), the first ten images, seeds, nfe, seconds. Call `reference` first, which registers the
    extractor."""
    if path.is_file():
        row = load_arrays(path)
        if str(row["key"]) == key:
            return row
    run = sample(net, terms, config, progress=False, solver=solver)
    levels = estimated_times(reader, run["states"]) if reader else np.zeros((0, len(run["times"])))
    row = {name: run[name] for name in ("times", "seeds", "nfe", "seconds")} | {
        "key": np.array(key),
        "levels": levels,
        "images": run["images"][:10],
        "features": metrics.extract_features(torch.from_numpy(run["images"])).numpy(),
    }
    save_arrays(path, row)
    return row


def quality(rows: Mapping[str, Row], real: Tensor, resamples: int = 100) -> dict[str, dict]:
    """Fréchet distance, the same without its finite-N bias, KID, precision and recall of every arm,
    with 95 % intervals.
    """
    return {
        name: metrics.with_intervals(torch.from_numpy(row["features"]), real, resamples=resamples)
        for name, row in rows.items()
    }


def ratio(row: Row, baseline: Row, real: Tensor) -> dict:
    """Fréchet distance of an arm over another's of the same seeds, paired: {"value", "low", "high",
    "n", "bias_off"}.

    "bias_off" is the same of the distances without their finite-N bias, which draws a raw ratio
    towards one; None if one of them is not above zero. Raises ValueError if the seeds differ."""
    if row["seeds"].tolist() != baseline["seeds"].tolist():
        raise ValueError("the two arms have other seeds: a paired ratio needs the same ones")
    raw, bias_off = metrics.distance_ratios(
        torch.from_numpy(row["features"]), torch.from_numpy(baseline["features"]), real
    )
    return raw | {"bias_off": bias_off}


def over_trainings(ratio: dict, spread: float, trainings: int) -> dict:
    """A ratio whose interval over images is joined with the error of its logarithm over trainings.

    `spread` is that error, one standard deviation, found from so many trainings (Student's t).
    """
    half = np.hypot(
        np.log(ratio["high"] / ratio["value"]), student.ppf(0.975, trainings - 1) * spread
    )
    return ratio | {
        "low": float(ratio["value"] * np.exp(-half)),
        "high": float(ratio["value"] * np.exp(half)),
    }


def mean_ratio(ratios: Sequence[dict]) -> dict:
    """Geometric mean over trainings of what `ratio` found for each, with its 95 % interval over
    trainings and images.

    The interval is the wider of two, both of the logarithm: Student's t over the trainings, and the
    mean of their own over images, which more trainings do not make narrower, as the same noise
    gives like images in all of them."""
    logs, k = np.log([found["value"] for found in ratios]), len(ratios)
    half = np.mean([np.log(found["high"] / found["value"]) for found in ratios])
    if k > 1:
        half = max(half, student.ppf(0.975, k - 1) * logs.std(ddof=1) / k**0.5)
    low, value, high = (float(np.exp(logs.mean() + end * half)) for end in (-1, 0, 1))
    offs = [found.get("bias_off") for found in ratios]
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": sum(found["n"] for found in ratios),
        "bias_off": mean_ratio(offs) if all(offs) else None,
    }


def control(row: Row, path: str, reader: Judge, images: int = 800) -> np.ndarray:
    """Levels (images, K) that the judge reads from forward states of test images at an arm's times."""
    real = fashion_mnist.to_float(fashion_mnist.load_fashion_mnist("test")[0][:images])
    return estimated_times(reader, forward_states(real, row["times"], path))


def shifts(
    rows: Mapping[str, Row], path: str, reader: Judge, resamples: int = 1000
) -> dict[str, dict]:
    """The noise shift of every arm against forward states at its own times (`shift.noise_shift`),
    of four times as many images.

    At most 800: beyond that the control's error is small beside that of the arms.
    """
    controls: dict[tuple, np.ndarray] = {}
    found = {}
    for name, row in rows.items():
        images = min(800, 4 * len(row["levels"]))
        key = *row["times"].tolist(), images
        if key not in controls:
            controls[key] = control(row, path, reader, images)
        found[name] = noise_shift(row["levels"], controls[key], row["times"], resamples)
    return found
