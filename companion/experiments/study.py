"""One arm of a study: sampled, seen by the extractor and the estimator, and kept, so that a study
goes on where it was stopped.

An arm is kept as numbers: features of its images, levels read from its states, NFE and seconds.
What decided them is its key; an arm of another key is made again."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from companion.experiments import search, spaces
from companion.experiments.generate import (
    SampleConfig,
    batches,
    forget,
    load_arrays,
    sample,
    save_arrays,
)
from companion.experiments.spaces import EXTRACTOR, Features
from companion.pipeline import fingerprint
from nag import checkpoint
from nag.data import fashion_mnist
from nag.estimator import NoiseEstimator, posterior_mean
from nag.evaluation import metrics
from nag.guidance import Term
from nag.models import DiT
from nag.samplers.registry import time_grid
from nag.shift import Estimator, estimated_times, forward_states, noise_shift
from nag.support.device import best_device, resolve_precision
from nag.support.paths import WEIGHTS
from nag.support.uncertainty import Interval, mean_ratio, over_trainings  # noqa: F401, notebooks use them

Row = dict[str, np.ndarray]
OWN_SEED = 2 * 10**6  # of the noise on an arm's own images; that on real ones begins at 10^6
OF_EACH = ("seeds", "labels", "features", "second")  # what is kept of every image of an arm
K = TypeVar("K")  # what names an arm


def reference(images: Tensor | None = None) -> Features:
    """Features of real images, uint8 (M, 1, 28, 28), in both spaces (`spaces.real`); the 10,000
    test images unless others are given. Registers the extractor."""
    return spaces.real(images)


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
    own: bool,
) -> Row:
    """What is kept of an arm: features of all images, levels of some, the first ten images."""
    run = sample(net, terms, config, progress=False, solver=solver, keep=keep)
    row = {name: run[name] for name in ("times", "seeds", "labels", "nfe", "seconds")}
    row["levels"] = np.zeros((0, len(run["times"])))
    if reader and len(run["states"]):
        row["levels"] = estimated_times(reader, run["states"])
        if own:
            control = own_states(run["states"], run["times"], net.config.path)
            row["own"] = estimated_times(reader, control)
    images = np.split(run["images"], run["images"].shape[1] // net.config.channels, axis=1)
    for suffix, of in zip(_suffixes(len(images)), images, strict=True):
        features = spaces.features_of(of)
        row |= {
            f"images{suffix}": of[:10],
            f"features{suffix}": features.first.numpy(),
            f"second{suffix}": features.second.numpy(),
        }
    return row


def own_states(states: np.ndarray, times: np.ndarray, path: str) -> Tensor:
    """Forward states (M, K, C, H, W) of an arm's own images, the last of its states (M, K, C, H, W)
    at times (K,): the control of `own_shifts`."""
    images = torch.as_tensor(states[:, -1]).float()
    return forward_states(images, times, path, first_seed=OWN_SEED)


def _suffixes(ends: int) -> list[str]:
    """What follows the names of an arm's images and features, of the first end none."""
    return ["", *(f" {k}" for k in range(1, ends))]


def first(row: Row, n: int) -> Row:
    """An arm with the seeds, labels and features of its first n images only."""
    return row | {name: x[:n] for name, x in row.items() if name.split()[0] in OF_EACH}


def at_end(row: Row, k: int) -> Row:
    """An arm with the images of its solver's end number k in the place of the first (0)."""
    if k == 0:
        return row
    return row | {name: row[f"{name} {k}"] for name in ("images", "features", "second")}


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
    own: bool = False,
    **settings: object,
) -> Row:
    """The arm kept in `folder` as NAME-KEY8.npz; sampled, measured and kept there if absent. A
    killed run goes on from its last batch.

    features (N, 192) and in the second space (N, 64), levels (M, K) that `reader` sees in the
    states of `config.trajectories` images at times (K,), if `own` also those in forward states of
    these images (`own_states`), the first ten images, seeds, labels, nfe, seconds; more images and
    features if `solver` gives several images at its end (`at_end`). The key has all that decides
    them: `config`, the guidance, `settings`, PyTorch, the code's fingerprint, the contents of the
    files of `weights`: name every network that is run (guided, negative, head, estimator); the
    extractor is added. `code` is other functions of ours that decide them, such as `solver`. Call
    `reference` first, which registers the extractor. Raises ValueError if there is a reader and no
    file of an estimator among `weights`."""
    files = sorted({Path(file) for file in weights} | {EXTRACTOR})
    if reader and not any("estimator" in file.name for file in files):
        raise ValueError(f"{name}: the estimator decides the levels, so add its file to weights")
    precision = resolve_precision(config.precision, best_device())  # not "auto", which differs
    made = {
        "config": config.model_dump(mode="json") | {"precision": precision},
        "guidance": _guidance(net, terms, config),
        "settings": settings,
        "weights": [checkpoint.sha256(file) for file in files],
        "reader": [reader is not None, own],
        "code": fingerprint.digest(fingerprint.of_objects(_measured, *code)),
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()
    path, keep = Path(folder) / f"{name}-{key[:8]}.npz", batches(key[:16])
    new = not path.is_file()
    if new:
        save_arrays(path, _measured(net, terms, config, reader, solver, keep, own))
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
    row: Row, real: Features, resamples: int = 100, allow_rank_deficient: bool = False
) -> Interval:
    """Fréchet distance of an arm without its finite-N bias, {"value", "low", "high"}."""
    return metrics.frechet_intervals(
        torch.from_numpy(row["features"]),
        real.first,
        resamples=resamples,
        labels=row["labels"],
        allow_rank_deficient=allow_rank_deficient,
    )["fd_inf"]


def tuned(
    candidates: Iterable[float],
    measure: Callable[[float], Mapping[str, Any]],
    budget: int | None = None,
) -> dict:
    """The candidate of the smallest bias-corrected distance: {"w", "at_end", "tried"}.

    `measure(candidate)` is that distance, {"value", "low", "high"}; "tried" has it of each. While
    the best is at an end, up to two others are tried beyond it, each twice or half as large. With a
    `budget` as many are tried in any case: beyond an end first, then between (`search.search`).
    "at_end" says that the best is still the smallest or largest, so that another may be better. A
    single candidate is taken without measuring it, unless the budget is larger."""
    ws = sorted(set(candidates))
    if len(ws) == 1 == (budget or 1):
        return {"w": ws[0], "at_end": False, "tried": {}}
    most = budget or len(ws) + 2
    more = most - len(ws)
    tried = search.search(
        [(w,) for w in ws],
        lambda point: dict(measure(point[0])),
        lambda found: found["value"],
        most,
        [(ws[0] / 2**more, ws[-1] * 2**more)],
        refine=budget is not None,
    )
    best = search.least(tried, lambda found: found["value"])
    return {
        "w": best[0],
        "at_end": search.at_an_end([*tried], best)[0],
        "tried": {f"{w:g}": found for (w,), found in sorted(tried.items())},
    }


def save_images(
    path: Path, rows: Mapping[str, Row], more: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write the first ten images of arms, {name: uint8 (10, C, H, W)}, for a study's figures, and
    other small arrays."""
    save_arrays(path, {name: row["images"] for name, row in rows.items()} | dict(more or {}))


def quality(rows: Mapping[K, Row], real: Features, resamples: int = 100) -> dict[K, dict]:
    """Distances of every arm in both spaces, precision and recall, with 95 % intervals
    (`metrics.METRICS`), stratified by its labels.
    """
    return {
        name: spaces.quality(spaces.of_row(row), real, row["labels"], resamples)
        for name, row in rows.items()
    }


def ratio(row: Row, baseline: Row, real: Features) -> dict:
    """Fréchet distance of an arm over another's of the same seeds, paired: {"value", "low", "high",
    "n", "bias_corrected", "raw", "second"}, as `metrics.distance_ratio` has it.

    "second" is the ratio in the second space. Raises ValueError if the seeds differ."""
    if row["seeds"].tolist() != baseline["seeds"].tolist():
        raise ValueError("the two arms have other seeds: a paired ratio needs the same ones")
    return spaces.ratio(spaces.of_row(row), spaces.of_row(baseline), real, row["labels"])


def uncorrected(ratio: Mapping[str, Any]) -> dict:
    """A ratio of `ratio` as that of the distances at this number of images."""
    return {**ratio, **ratio["raw"], "bias_corrected": False}


def log_distances(rows: Sequence[Row], real: Features, corrected: bool = True) -> np.ndarray:
    """Logarithms (rows,) of the arms' bias-corrected Fréchet distances, or of the raw ones; NaN of
    one that is not above zero."""
    name = "fd_inf" if corrected else "fd"
    found = [
        metrics.frechet_intervals(
            torch.from_numpy(row["features"]), real.first, labels=row["labels"]
        )[name]["value"]
        for row in rows
    ]
    return np.log(np.where(np.array(found) > 0, found, np.nan))


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
        found[name] = noise_shift(row["levels"], controls[key], row["times"], resamples, path=path)
    return found


def own_shifts(rows: Mapping[K, Row], path: str, resamples: int = 1000) -> dict[K, dict]:
    """The noise shift of every arm, kept with `own`, against forward states of its own images, so
    that an estimator that misreads the look of sampled images errs on both sides alike."""
    return {
        name: noise_shift(row["levels"], row["own"], row["times"], resamples, path=path)
        for name, row in rows.items()
    }
