"""One arm of a study: sampled, seen by the extractor and the estimator, and kept, so that a study
goes on where it was stopped.

An arm is kept as numbers: features of its images, levels read from its states, NFE and seconds.
What decided them is its key; an arm of another key is made anew."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from companion.experiments.generate import (
    SampleConfig,
    batches,
    code_version,
    forget,
    load_arrays,
    sample,
    save_arrays,
)
from companion.pipeline import fingerprint
from nag import checkpoint
from nag.data import fashion_mnist
from nag.estimator import NoiseEstimator, posterior_mean
from nag.evaluation import metrics
from nag.evaluation.fashion_classifier import Extractor
from nag.guidance import Term
from nag.models import DiT
from nag.samplers.registry import time_grid
from nag.shift import Estimator, estimated_times, forward_states, noise_shift
from nag.support.paths import ROOT, WEIGHTS
from nag.support.uncertainty import mean_ratio, over_trainings  # noqa: F401, notebooks use them

Row = dict[str, np.ndarray]
K = TypeVar("K")  # what names an arm
EXTRACTOR = WEIGHTS / "extractor.safetensors"


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


def judge(path: str, weights: Path = WEIGHTS) -> Estimator:
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
    reader: Estimator | None = None,
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


def estimator_file(process: str) -> Path:
    """Where the committed estimator of a forward process ("linear" or "ddpm") is."""
    return WEIGHTS / f"estimator-{process}.safetensors"


def load_reader(process: str) -> Estimator:
    """The committed estimator of a forward process as x (B, 1, 28, 28) -> E[t | x] (B,)."""
    net = checkpoint.load_weights(estimator_file(process), NoiseEstimator())
    return lambda x: posterior_mean(net, x)


def _measured(
    net: DiT,
    terms: Sequence[Term],
    config: SampleConfig,
    reader: Estimator | None,
    solver: Callable | None,
    keep: Path,
) -> Row:
    """What is kept of an arm: features of all images, levels of some, the first ten images."""
    run = sample(net, terms, config, progress=False, solver=solver, keep=keep)
    levels = estimated_times(reader, run["states"]) if reader else np.zeros((0, len(run["times"])))
    return {name: run[name] for name in ("times", "seeds", "labels", "nfe", "seconds")} | {
        "levels": levels,
        "images": run["images"][:10],
        "features": metrics.extract_features(torch.from_numpy(run["images"])).numpy(),
    }


def _guidance(net: DiT, terms: Sequence[Term], config: SampleConfig) -> list:
    """What every term drops and guides, and its weight at every time of the grid."""
    times = time_grid(config.sampler, config.steps, net.config.path, config.grid).tolist()
    return [
        [t.name, t.drop_class, t.drop_noise, t.channels, [t.at(time) for time in times]]
        for t in terms
    ]


def kept_arm(
    folder: Path,
    name: str,
    net: DiT,
    terms: Sequence[Term],
    config: SampleConfig,
    *,
    weights: Iterable[Path],
    reader: Estimator | None = None,
    solver: Callable | None = None,
    code: Iterable[Callable] = (),
    **settings: object,
) -> Row:
    """The arm kept in `folder` as NAME-KEY8.npz; sampled, measured and kept there if absent. A
    killed run goes on from its last batch.

    features (N, 192), levels (M, K) that `reader` sees in the states of `config.trajectories`
    images at times (K,), the first ten images, seeds, labels, nfe, seconds. The key has all that
    decides them: `config`, the guidance, `settings`, PyTorch, the code's fingerprint, the contents
    of the files of `weights`: name every network that is run (guided, negative, head, estimator);
    the extractor is added. `code` is other functions of ours that decide them, such as `solver`.
    Call `reference` first, which registers the extractor. Raises ValueError if there is a reader
    and no file of an estimator among `weights`."""
    files = sorted({Path(file) for file in weights} | {EXTRACTOR})
    if reader and not any("estimator" in file.name for file in files):
        raise ValueError(f"{name}: the estimator decides the levels, so add its file to weights")
    made = {
        "config": config.model_dump(mode="json"),
        "guidance": _guidance(net, terms, config),
        "settings": settings,
        "weights": [checkpoint.sha256(file) for file in files],
        "reader": reader is not None,
        "code": fingerprint.digest(fingerprint.of_objects(_measured, *code)),
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()
    path, keep = Path(folder) / f"{name}-{key[:8]}.npz", batches(key[:16])
    new = not path.is_file()
    if new:
        save_arrays(path, _measured(net, terms, config, reader, solver, keep))
    forget(keep, config)
    row = load_arrays(path)
    print(
        f"{name}: {config.steps} steps, {int(row['nfe'])} evaluations per image, "
        f"{len(row['seeds'])} images from seed {config.first_seed}, "
        + (f"{float(row['seconds']):.0f} s" if new else "kept"),
        flush=True,
    )
    return row


def bias_corrected(
    row: Row, real: Tensor, resamples: int = 100, allow_rank_deficient: bool = False
) -> dict[str, float]:
    """Fréchet distance of an arm without its finite-N bias, {"value", "low", "high", "n"}."""
    features = torch.from_numpy(row["features"])
    return metrics.with_intervals(
        features,
        real,
        resamples=resamples,
        allow_rank_deficient=allow_rank_deficient,
        labels=row.get("labels"),
    )["fd_inf"]


def tuned(candidates: Iterable[float], measure: Callable[[float], Mapping[str, Any]]) -> dict:
    """The candidate of the smallest bias-corrected distance: {"w", "at_end", "tried"}.

    `measure(candidate)` is that distance, {"value", "low", "high"}; "tried" has it of each.
    "at_end" says that the best is the smallest or largest of several, so that another may be
    better. A single candidate is taken without measuring it."""
    ws = sorted(set(candidates))
    tried = {f"{w:g}": dict(measure(w)) for w in ws} if len(ws) > 1 else {}
    best = min(ws, key=lambda w: tried[f"{w:g}"]["value"]) if tried else ws[0]
    return {"w": best, "at_end": bool(tried) and best in (ws[0], ws[-1]), "tried": tried}


def save_images(path: Path, rows: Mapping[str, Row]) -> None:
    """Write the first ten images of arms, {name: uint8 (10, C, H, W)}, for a study's figures."""
    save_arrays(path, {name: row["images"] for name, row in rows.items()})


def quality(rows: Mapping[K, Row], real: Tensor, resamples: int = 100) -> dict[K, dict]:
    """Fréchet distance, the same without its finite-N bias, KID, precision and recall of every arm,
    with 95 % intervals.
    """
    return {
        name: metrics.with_intervals(
            torch.from_numpy(row["features"]),
            real,
            resamples=resamples,
            labels=row.get("labels"),
        )
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
        torch.from_numpy(row["features"]),
        torch.from_numpy(baseline["features"]),
        real,
        labels=row.get("labels"),
    )
    return raw | {"bias_off": bias_off}


def control(row: Row, path: str, reader: Estimator, images: int = 800) -> np.ndarray:
    """Levels (images, K) that the estimator reads from forward states of test images at an arm's
    times.
    """
    real = fashion_mnist.to_float(fashion_mnist.load_fashion_mnist("test")[0][:images])
    return estimated_times(reader, forward_states(real, row["times"], path))


def shifts(
    rows: Mapping[K, Row], path: str, reader: Estimator, resamples: int = 1000
) -> dict[K, dict]:
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
