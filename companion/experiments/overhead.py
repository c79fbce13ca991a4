"""What every arm costs beside the unguided one, all measured in one run from the same noise and
labels.

Costs do not depend on the values of weights, so a second network or a head that nobody has trained
costs what a trained one does. Weights of guidance are arbitrary for the same reason. All sample
uncompiled, with a deterministic method of one evaluation a step: Euler's, or DDIM's where noise
levels are corrected."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from companion.experiments.bench import turns
from nag.estimator import NoiseEstimator, log_prob_gradient, posterior_mean
from nag.guidance import (
    GuidedField,
    autoguidance,
    classifier_free,
    classifier_noise_awareness,
    noise_awareness,
)
from nag.models import DiT, ModelConfig
from nag.rivals.corrections import (
    Adjust,
    by_estimate,
    by_variance,
    corrected,
    epsilon_scaling,
    noise_level_correction,
    time_shift,
)
from nag.rivals.noise_level_head import LevelHead
from nag.samplers.one_step import euler
from nag.samplers.registry import last
from nag.samplers.time_grids import uniform
from nag.support.device import best_device
from nag.support.rng import ImageNoise

WEIGHT, SCALE = 1.0, 1.5
INTERVAL = (0.0, 0.7)  # of CFG in REPA's published command (Yu et al., 2025)
WEAKER_TRAINING = 1 / 16  # of the main network's, in the preset of EDM2-S (Karras et al., 2024)
WINDOW, CUTOFF = 0.03, 0.3  # of the time-shift sampler's published commands (Li et al., 2024)


class Parts(NamedTuple):
    """The networks of all arms: the main one, autoguidance's smaller one, g_phi, and noise level
    correction's head.
    """

    net: DiT
    weaker: DiT
    estimator: NoiseEstimator
    head: LevelHead


class Arm(NamedTuple):
    """How an arm makes its field, field(parts, guided) with guided(*terms) -> GuidedField, and what
    it needs besides.

    With adjust(parts, labels), steps go between corrected noise levels. `branches` is the most rows
    that an image has in one call of the main network, `trained` the part with a training of its
    own."""

    label: str
    field: Callable[[Parts, Callable], Callable] = lambda parts, guided: guided()
    adjust: Callable[[Parts, Tensor], Adjust] | None = None
    needs: str = "nothing"
    parameters: Callable[[Parts], int] = lambda parts: 0
    trained: str = ""
    branches: int = 1


def size(module: nn.Module) -> int:
    """Number of parameters, a fixed table of positions among them."""
    return sum(p.numel() for p in module.parameters())


def _vectors(number: int) -> Callable[[Parts], int]:
    return lambda parts: number * parts.net.config.width


def _nag_by_classifier(parts: Parts, guided: Callable) -> Callable:
    def estimator(x: Tensor) -> Tensor:
        return parts.estimator(
            x.view_as(x)
        )  # FlopCounterMode does not follow a module whose input is a leaf

    return guided(
        classifier_noise_awareness(WEIGHT, lambda x, t: log_prob_gradient(estimator, x, t))
    )


def _shift_by_estimate(parts: Parts, labels: Tensor) -> Adjust:
    return time_shift(
        WINDOW, CUTOFF, "destination", by_estimate(lambda x: posterior_mean(parts.estimator, x))
    )


def _level_correction(parts: Parts, labels: Tensor) -> Adjust:
    return noise_level_correction(lambda x, t: parts.head(x, t, labels), path=parts.net.config.path)


ARMS = {
    "none": Arm("no guidance"),
    "nag": Arm(
        "NAG",
        lambda parts, guided: guided(noise_awareness(WEIGHT)),
        needs="null noise level, by dropout in training",
        parameters=_vectors(1),
        branches=2,
    ),
    "cfg": Arm(
        "CFG",
        lambda parts, guided: guided(classifier_free(SCALE)),
        needs="null class, by dropout in training",
        parameters=_vectors(1),
        branches=2,
    ),
    "cfg+nag": Arm(
        "CFG + NAG",
        lambda parts, guided: guided(classifier_free(SCALE), noise_awareness(WEIGHT)),
        needs="both, by dropout in training",
        parameters=_vectors(2),
        branches=3,
    ),
    "cfg-interval": Arm(
        f"CFG, t ≤ {INTERVAL[1]}",
        lambda parts, guided: guided(classifier_free(SCALE, interval=INTERVAL)),
        needs="null class, by dropout in training",
        parameters=_vectors(1),
        branches=2,
    ),
    "nag-classifier": Arm(
        "NAG by classifier",
        _nag_by_classifier,
        needs="estimator of the noise level and its gradient",
        parameters=lambda parts: size(parts.estimator),
        trained="estimator",
    ),
    "autoguidance": Arm(
        "autoguidance",
        lambda parts, guided: guided(autoguidance(SCALE, parts.weaker)),
        needs="second network, half as wide and deep",
        parameters=lambda parts: size(parts.weaker),
        trained="weaker",
    ),
    "epsilon-scaling": Arm(
        "Epsilon Scaling",
        lambda parts, guided: epsilon_scaling(guided(), 1.005, parts.net.config.path),
    ),
    "time-shift": Arm(
        "Time-Shift",
        adjust=lambda parts, labels: time_shift(
            WINDOW, CUTOFF, "destination", by_variance(parts.net.config.path)
        ),
    ),
    "time-shift-estimator": Arm(
        "Time-Shift by estimator",
        adjust=_shift_by_estimate,
        needs="estimator of the noise level",
        parameters=lambda parts: size(parts.estimator),
        trained="estimator",
    ),
    "level-correction": Arm(
        "Noise Level Correction",
        adjust=_level_correction,
        needs="head on the network's first block",
        parameters=lambda parts: size(parts.head),
        trained="head",
    ),
}


def untrained(config: ModelConfig) -> Parts:
    """All parts for a network of this configuration, with random weights, in evaluation mode on the
    best device.
    """
    half = config.model_copy(
        update={"width": config.width // 2, "depth": max(1, config.depth // 2)}
    )
    net = DiT(config)
    parts = Parts(net, DiT(half), NoiseEstimator(config.channels), LevelHead(net))
    return Parts(*(part.eval().requires_grad_(False).to(best_device()) for part in parts))


def _batch(arm: Arm, parts: Parts, seeds: range, steps: int, precision: str) -> Tensor:
    c, device = parts.net.config, next(parts.net.parameters()).device
    noise, labels = (
        ImageNoise(seeds, device),
        torch.tensor([seed % c.classes for seed in seeds], device=device),
    )
    field = arm.field(parts, lambda *terms: GuidedField(parts.net, labels, terms, precision))
    sampler = euler if arm.adjust is None else partial(corrected, adjust=arm.adjust(parts, labels))
    return last(
        sampler(
            field, noise((c.channels, c.input_size, c.input_size)), uniform(steps), noise, c.path
        )
    )


def sample(
    name: str,
    parts: Parts,
    n_images: int,
    steps: int,
    precision: str = "auto",
    network_batch: int | None = None,
) -> Tensor:
    """Samples (n_images, C, H, W) of an arm, image i from seed i.

    All images at once, or `network_batch` rows in one call of the network, all branches together.
    Raises ValueError for an unknown arm."""
    if name not in ARMS:
        raise ValueError(f"unknown arm {name!r}: choose one of {list(ARMS)}")
    size = max(1, (network_batch or n_images * ARMS[name].branches) // ARMS[name].branches)
    return torch.cat(
        [
            _batch(ARMS[name], parts, range(first, min(first + size, n_images)), steps, precision)
            for first in range(0, n_images, size)
        ]
    )


def counts(name: str, parts: Parts, steps: int) -> dict:
    """Evaluations and arithmetic of one image, counted while it is sampled.

    `nfe`: evaluations of denoising networks; `other`: passes of the estimator or head; `gflop`:
    10^9 operations of matrix products and convolutions, forward and backward, a multiply-add being
    two."""
    seen = {part: 0 for part in Parts._fields}

    def watch(part: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            seen[part] += len(inputs[0])

        return hook

    handles = [
        module.register_forward_hook(watch(part)) for part, module in parts._asdict().items()
    ]
    try:
        with FlopCounterMode(display=False) as flops:
            sample(name, parts, 1, steps, "fp32")
    finally:
        for handle in handles:
            handle.remove()
    nfe = seen.pop("net") + seen.pop("weaker")
    return {"nfe": nfe, "other": sum(seen.values()), "gflop": flops.get_total_flops() / 1e9}


def seconds(
    names: Sequence[str],
    parts: Parts,
    n_images: int,
    steps: int,
    rounds: int,
    precision: str = "auto",
    network_batch: int | None = None,
) -> dict[str, float]:
    """Seconds an image of each arm, the median of `rounds` in which the arms take turns."""
    work = {
        name: partial(sample, name, parts, n_images, steps, precision, network_batch)
        for name in names
    }
    found = turns(work, rounds, next(parts.net.parameters()).device)
    return {name: value / n_images for name, value in found.items()}


def highest_allocation(work: Callable[[], object]) -> int:
    """The most bytes of CPU tensors that `work` has alive at a time, its operators' temporaries
    included.
    """
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # else the profiler reports its own start on the screen
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    alive = highest = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]
        highest = max(highest, alive)
    return highest


def peak_memory(name: str, parts: Parts, n_images: int, precision: str = "auto") -> float | None:
    """MiB of tensors that sampling n_images in one batch needs at its peak, the networks' own not
    counted; None on MPS.

    Counted as the allocator sees it, on a CPU as on CUDA, so that it is the same in each run; two
    steps have every state that more would have."""
    device = next(parts.net.parameters()).device
    work = partial(sample, name, parts, n_images, 2, precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return highest_allocation(work) / 2**20 if device.type == "cpu" else None


def rows(
    parts: Parts,
    images_seen: dict[str, int | None],
    n_images: int,
    steps: int,
    rounds: int,
    precision: str = "auto",
    network_batch: int | None = None,
    names: Sequence[str] | None = None,
) -> list[dict]:
    """The costs of each arm, the first of which is the one to compare with.

    A row has what `counts` gives, `seconds` an image, `relative` to the first arm, `memory` (MiB
    for n_images at once), `parameters` beyond the network's and `training` beyond it, in % of the
    images it saw. `images_seen` is a number for "net" and for each part trained apart, None where
    that is unknown, and so is `training`; raises ValueError if one is missing."""
    names = list(ARMS if names is None else names)
    needed = {"net"} | {ARMS[name].trained for name in names} - {""}
    if needed - images_seen.keys():
        raise ValueError(
            f"images_seen lacks {sorted(needed - images_seen.keys())}: give the images that each was trained on"
        )
    timed = seconds(names, parts, n_images, steps, rounds, precision, network_batch)
    found = []
    for name in names:
        arm = ARMS[name]
        extra = images_seen[arm.trained] if arm.trained else 0
        found.append(
            {"arm": name, "label": arm.label}
            | counts(name, parts, steps)
            | {
                "seconds": timed[name],
                "relative": timed[name] / timed[names[0]],
                "memory": peak_memory(name, parts, n_images, precision),
                "parameters": arm.parameters(parts),
                "training": None if extra is None else 100 * extra / images_seen["net"],
                "needs": arm.needs,
            }
        )
    return found
