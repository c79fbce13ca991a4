"""What every arm costs next to the unguided one, all measured in one run from the same noise and
labels.

Costs do not depend on the values of weights, so a second network or a head that nobody has trained
costs what a trained one does. Weights of guidance are arbitrary for the same reason. All sample
uncompiled, with a deterministic method of one evaluation a step: Euler's, or DDIM's where noise
levels are corrected."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from companion.experiments.bench import turns
from nag.estimator import NoiseEstimator
from nag.guidance import GuidedField
from nag.models import DiT, ModelConfig
from nag.rivals import methods
from nag.rivals.methods import METHODS, Parts, Plan, Setting
from nag.rivals.noise_level_correction import LevelHead
from nag.samplers.one_step import euler
from nag.samplers.registry import last
from nag.samplers.time_grids import uniform
from nag.support.device import best_device
from nag.support.rng import ImageNoise

WEAKER_TRAINING = 1 / 16  # of the main network's, in the preset of EDM2-S (Karras et al., 2024)


class Arm(NamedTuple):
    """A method of nag.rivals.methods at one setting, with NAG of weight w_nag on top.

    What is not given is the method's own: its published setting, its label and what it needs."""

    method: str
    setting: Setting | None = None
    w_nag: float = 0.0
    label: str | None = None
    needs: str | None = None


_BY_ESTIMATOR = ("estimator", *METHODS["time-shift"].published[1:])
ARMS = {
    "none": Arm("none"),
    "nag": Arm("nag"),
    "cfg": Arm("cfg"),
    "cfg+nag": Arm("cfg", w_nag=1.0, label="CFG + NAG", needs="both, by dropout in training"),
    "cfg-interval": Arm("cfg-interval", label=f"CFG, t ≤ {METHODS['cfg-interval'].published[-1]}"),
    "nag-classifier": Arm("nag-classifier"),
    "autoguidance": Arm("autoguidance", needs="second network, half as wide and deep"),
    "epsilon-scaling": Arm("epsilon-scaling"),
    "time-shift": Arm("time-shift", needs=""),
    "time-shift-estimator": Arm(
        "time-shift",
        _BY_ESTIMATOR,
        label="Time-Shift by estimator",
        needs="estimator of the noise level",
    ),
    "level-correction": Arm("level-correction"),
}


def plan(name: str, parts: Parts) -> Plan:
    """What to sample with for an arm; raises ValueError for an unknown one."""
    if name not in ARMS:
        raise ValueError(f"unknown arm {name!r}: choose one of {list(ARMS)}")
    arm = ARMS[name]
    setting = METHODS[arm.method].published if arm.setting is None else arm.setting
    return methods.plan(arm.method, setting, parts, arm.w_nag)


def untrained(config: ModelConfig) -> Parts:
    """All parts for a network of this configuration, with random weights, in evaluation mode on the
    best device.
    """
    half = config.model_copy(
        update={"width": config.width // 2, "depth": max(1, config.depth // 2)}
    )
    net, weaker = DiT(config), DiT(half)
    estimator, head = NoiseEstimator(config.channels), LevelHead(config.width)
    for part in (net, weaker, estimator, head):
        part.eval().requires_grad_(False).to(best_device())
    return Parts(net, {"weaker": weaker}, None, head, estimator, sampler="euler")


def modules(parts: Parts) -> dict[str, nn.Module]:
    """The networks of all arms by name: the main one, autoguidance's smaller one, g_phi, and the
    head of noise level correction.
    """
    assert parts.estimator is not None and parts.head is not None
    found: dict[str, nn.Module] = {"net": parts.net, "weaker": parts.weaker["weaker"]}
    return found | {"estimator": parts.estimator, "head": parts.head}


def _branches(found: Plan) -> int:
    """The most rows that an image has in one call of the main network."""
    return 1 + sum(term.net is None and term.gradient is None for term in found.terms)


def _batch(found: Plan, seeds: range, steps: int, precision: str) -> Tensor:
    c, device = found.net.config, next(found.net.parameters()).device
    noise = ImageNoise(seeds, device)
    labels = torch.tensor([seed % c.classes for seed in seeds], device=device)
    field = GuidedField(found.net, labels, found.terms, precision)
    start = noise((c.channels, c.input_size, c.input_size))
    return last((found.solver or euler)(field, start, uniform(steps), noise, c.path))


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
    found = plan(name, parts)
    size = max(1, (network_batch or n_images * _branches(found)) // _branches(found))
    return torch.cat(
        [
            _batch(found, range(first, min(first + size, n_images)), steps, precision)
            for first in range(0, n_images, size)
        ]
    )


def counts(name: str, parts: Parts, steps: int) -> dict:
    """Evaluations and arithmetic of one image, counted while it is sampled.

    `nfe`: evaluations of denoising networks; `other`: passes of the estimator or head; `gflop`:
    10^9 operations of matrix products and convolutions, forward and backward, a multiply-add being
    two."""
    seen = dict.fromkeys(modules(parts), 0)

    def watch(part: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            seen[part] += len(inputs[0])

        return hook

    handles = [module.register_forward_hook(watch(part)) for part, module in modules(parts).items()]
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
    images_seen: Mapping[str, float | None],
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
    plans = {name: plan(name, parts) for name in names}
    needed = {"net"} | {found.extra for found in plans.values()} - {""}
    if needed - images_seen.keys():
        raise ValueError(
            f"images_seen lacks {sorted(needed - images_seen.keys())}: give the images that each "
            "was trained on"
        )
    base = images_seen["net"] or math.nan
    timed = seconds(names, parts, n_images, steps, rounds, precision, network_batch)
    rows = []
    for name, found in plans.items():
        arm, method = ARMS[name], METHODS[ARMS[name].method]
        needs = method.needs if arm.needs is None else arm.needs
        extra = images_seen[found.extra] if found.extra else 0
        rows.append(
            {"arm": name, "label": arm.label or method.label}
            | counts(name, parts, steps)
            | {
                "seconds": timed[name],
                "relative": timed[name] / timed[names[0]],
                "memory": peak_memory(name, parts, n_images, precision),
                "parameters": found.parameters,
                "training": None if extra is None else 100 * extra / base,
                "needs": needs or "nothing",
            }
        )
    return rows
