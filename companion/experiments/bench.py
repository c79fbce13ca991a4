"""`make bench`: speed of training and sampling in each precision, beside a plain fp32 reference of
the same network.

Of SiT-mini, and of a network of SiT-XL/2's size with random weights; `python -m
companion.experiments.bench mini` or `xl` does one of them. Only ratios within one run mean
something: the variants take turns, so a drift of the machine's speed touches all alike."""

import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from nag import checkpoint
from nag.guidance import GuidedField, noise_awareness
from nag.losses import denoising_loss
from nag.models import DiT, ModelConfig
from nag.samplers.one_step import euler
from nag.samplers.registry import last
from nag.samplers.time_grids import uniform
from nag.support.device import (
    autocast,
    best_device,
    can_compile,
    describe,
    has_fast_bf16,
    maybe_compile,
)
from nag.support.files import write_torch
from nag.support.paths import WEIGHTS
from nag.support.rng import generator

TRAIN_BATCH, IMAGES, STEPS, ROUNDS = 128, 300, 2, 5
XL = ModelConfig(
    input_size=32,
    patch=2,
    channels=4,
    width=1152,
    depth=28,
    heads=16,
    classes=1000,
    learn_sigma=True,
    **checkpoint.CONVENTIONS["sit"],
)
LATENTS, WEIGHT, XL_ROUNDS = 2, 1.0, 3
XL_DISK, XL_MEMORY = 3 * 2**30, 5 * 2**30  # bytes: the file; the weights and what a step needs
VARIANTS = {
    "fp32": ("fp32", False),
    "fp32 compiled": ("fp32", True),
    "bf16": ("bf16", False),
    "bf16 compiled": ("bf16", True),
}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def turns(
    work: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each callable, run in turn `rounds` times after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def training(config: ModelConfig, names: list[str], device: torch.device) -> dict[str, float]:
    """Images a second of one optimiser step, by variant."""
    shape = (TRAIN_BATCH, config.channels, config.input_size, config.input_size)
    images = torch.randn(shape, generator=generator(0))
    loss = denoising_loss(images, torch.arange(TRAIN_BATCH) % config.classes, 0.1, 0.1)
    index = torch.arange(TRAIN_BATCH)
    work: dict[str, Callable[[], object]] = {}
    for name in names:
        precision, compiled = VARIANTS[name]
        net = DiT(config).to(device)
        run = maybe_compile(net, device, compiled)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)

        def step(run=run, optimizer=optimizer, precision=precision):
            with autocast(device, precision):
                value = loss(run, index, generator(1))
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        work[name] = step
    return {name: TRAIN_BATCH / s for name, s in turns(work, ROUNDS, device).items()}


def sampling(
    net: DiT, names: list[str], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """(Network evaluations times images) a second with NAG, and the relative error of v against
    fp32, by variant.
    """
    net.to(device)
    c = net.config
    x = torch.randn(IMAGES, c.channels, c.input_size, c.input_size, generator=generator(2)).to(
        device
    )
    labels = (torch.arange(IMAGES) % c.classes).to(device)
    fields = {}
    for name in names:
        precision, compiled = VARIANTS[name]
        run = maybe_compile(net, device, compiled)
        fields[name] = GuidedField(run, labels, [noise_awareness(1.0)], precision)
    with torch.inference_mode():
        v = {name: field(x, 0.5) for name, field in fields.items()}
    error = {name: ((v[name] - v["fp32"]).norm() / v["fp32"].norm()).item() for name in names}

    def drawn(field: GuidedField) -> Tensor:
        return last(euler(field, x, uniform(STEPS)))

    work = {name: partial(drawn, field) for name, field in fields.items()}
    return {name: 2 * STEPS * IMAGES / s for name, s in turns(work, ROUNDS, device).items()}, error


def random_file(path: Path, config: ModelConfig) -> None:
    """Write random weights in the official layout, none zero, so that no block is silent."""
    with torch.device("meta"):
        shapes = {
            key: value.shape
            for key, value in DiT(config).state_dict().items()
            if key != checkpoint.NULL
        }
    gen = generator(3)
    write_torch(
        path, {key: 0.02 * torch.randn(shape, generator=gen) for key, shape in shapes.items()}
    )


def _told(file: str, key: str) -> float:
    """Bytes that Linux tells in /proc/`file`, NaN on other systems: of this process, "VmRSS" now
    and "VmHWM" at the highest.
    """
    if not Path("/proc", file).is_file():
        return math.nan
    lines = dict(line.split(":", 1) for line in Path("/proc", file).read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def lacking(folder: Path | str) -> str:
    """What this machine has too little of for a network of XL's size, with its file in `folder`; ""
    if it has enough.
    """
    if shutil.disk_usage(folder).free < XL_DISK:
        return f"it needs {XL_DISK / 2**30:.0f} GiB free in {folder}"
    return (
        f"it needs {XL_MEMORY / 2**30:.0f} GiB of memory"
        if _told("meminfo", "MemAvailable") < XL_MEMORY
        else ""
    )


def _load_here(path: Path, kind: str) -> dict[str, float]:
    before, start = _told("self/status", "VmRSS"), time.perf_counter()
    net = checkpoint.load(path, kind)
    loaded = time.perf_counter()
    for parameter in net.parameters():
        parameter.sum()  # reads what was only mapped so far
    return {
        "load": loaded - start,
        "read": time.perf_counter() - loaded,
        "memory": _told("self/status", "VmHWM") - before,
    }


def loading(path: Path, kind: str) -> dict[str, float]:
    """Cost of `checkpoint.load` in a fresh process.

    "load": its seconds, "read": those of going through all weights once, "memory": the most bytes
    that both needed, file-mapped ones included (NaN where the system does not tell)."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_load_here, path, kind).result()


@torch.inference_mode()
def plain_step(net: DiT, x: Tensor, labels: Tensor) -> Tensor:
    """One step of NAG from noise to data, plainly: fp32, uncompiled, a forward for each branch,
    attention written out.
    """
    t, drop = (
        torch.ones(len(x), device=x.device),
        torch.ones(len(x), dtype=torch.bool, device=x.device),
    )
    v = net(x, t, labels)
    return x - (v + WEIGHT * (v - net(x, t, labels, drop)))


def guided_step(net: DiT, x: Tensor, labels: Tensor, precision: str) -> Tensor:
    """The same step as this project takes it: both branches in one batch, under autocast."""
    return last(
        euler(GuidedField(net, labels, [noise_awareness(WEIGHT)], precision), x, uniform(1))
    )


def xl_steps(path: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Of one guided step of the network in `path`, by variant: "seconds", "first" (with what is
    compiled), "error" of v.
    """
    net = checkpoint.load(path, "sit").to(device)
    c = net.config
    x = torch.randn(LATENTS, c.channels, c.input_size, c.input_size, generator=generator(2)).to(
        device
    )
    labels = (torch.arange(LATENTS) % c.classes).to(device)
    work = {
        "plain fp32": lambda: plain_step(net, x, labels),
        "fp32": lambda: guided_step(net, x, labels, "fp32"),
    }
    fast = "bf16" if has_fast_bf16(device) else "fp32"
    if fast == "bf16":
        work["bf16"] = lambda: guided_step(net, x, labels, "bf16")
    if can_compile(device.type):
        compiled = checkpoint.load(path, "sit").to(device)
        for block in compiled.blocks:
            block.compile()  # once for all blocks, not the whole network at its full length
        work[f"{fast} compiled"] = lambda: guided_step(compiled, x, labels, fast)
    rows, plain = {}, plain_step(net, x, labels)
    for name, step in work.items():
        start = time.perf_counter()
        error = (step() - plain).norm() / (x - plain).norm()
        rows[name] = {"error": error.item(), "first": time.perf_counter() - start}
    for name, seconds in turns(work, XL_ROUNDS, device).items():
        rows[name]["seconds"] = seconds
    return rows


def xl(device: torch.device) -> None:
    """Print what loading a network of SiT-XL/2's size costs, and the table of one guided step."""
    if why := lacking(tempfile.gettempdir()):
        print(f"the network of SiT-XL/2's size is left out: {why}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "xl.pt"
        random_file(path, XL)
        size, cost = path.stat().st_size, loading(path, "sit")
        rows = xl_steps(path, device)
    print(
        f"SiT-XL/2's size, random weights in {size / 1e9:.2f} GB: loaded in {cost['load']:.1f} s, "
        "then read in "
        f"{cost['read']:.1f} s, peak memory {cost['memory'] / size:.2f} of the file"
    )
    print(
        f"One step with NAG (two branches) for {LATENTS} latents; median of {XL_ROUNDS}; plain: a "
        "forward for each branch"
    )
    print(f"{'':15}{'seconds':>12}{'ratio':>8}{'first call':>16}{'relative error':>24}")
    for name, row in rows.items():
        ratio = rows["plain fp32"]["seconds"] / row["seconds"]
        print(
            f"{name:15}{row['seconds']:12.2f}{ratio:8.2f}{row['first']:16.2f}{row['error']:24.1e}"
        )


def mini(device: torch.device) -> None:
    """Print the table of speeds, ratios and errors of SiT-mini."""
    names = [
        name for name, (_, compiled) in VARIANTS.items() if not compiled or can_compile(device.type)
    ]
    weights: Path = WEIGHTS / "sit.safetensors"
    net = checkpoint.load(weights)
    trained = training(net.config, names, device)
    sampled, error = sampling(net, names, device)
    print(
        f"SiT-mini, batch {TRAIN_BATCH} in training, {IMAGES} images with NAG (two branches) in "
        f"sampling; median of {ROUNDS}"
    )
    print(f"{'':15}{'training':>12}{'':>8}{'sampling':>16}{'':>8}{'relative error':>16}")
    print(f"{'':15}{'images/s':>12}{'ratio':>8}{'evaluations/s':>16}{'ratio':>8}{'of v':>16}")
    for name in names:
        print(
            f"{name:15}{trained[name]:12.0f}{trained[name] / trained['fp32']:8.2f}"
            f"{sampled[name]:16.0f}"
            f"{sampled[name] / sampled['fp32']:8.2f}{error[name]:16.1e}"
        )


SECTIONS = {"mini": mini, "xl": xl}


def main(sections: Sequence[str] = tuple(SECTIONS)) -> None:
    """Print the tables of these sections; raises ValueError for an unknown one."""
    if unknown := set(sections) - SECTIONS.keys():
        raise ValueError(
            f"unknown section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}"
        )
    device = best_device()
    torch.manual_seed(0)
    print(describe(device, "bf16" if has_fast_bf16(device) else "fp32", can_compile(device.type)))
    for section in sections:
        SECTIONS[section](device)


if __name__ == "__main__":
    main(sys.argv[1:] or tuple(SECTIONS))
