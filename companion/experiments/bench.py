"""`make bench`: speed of training and sampling of this project's network, beside a plain reference.

The reference (companion.experiments.plain_sit) is written as SiT's public code is: eager fp32. Of
SiT-mini, and of a network of SiT-XL/2's size with random weights; `python -m
companion.experiments.bench mini` or `xl` does one of them. Only ratios within one run mean
something: the variants take turns, so a drift of the machine's speed touches all alike. So do
products of large matrices, whose speed is the peak that a share is taken of."""

import argparse
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from companion.experiments import plain_sit
from nag import checkpoint
from nag.guidance import GuidedField, classifier_free
from nag.losses import denoising_loss
from nag.models import DiT, ModelConfig
from nag.samplers.one_step import euler
from nag.samplers.registry import last
from nag.samplers.time_grids import uniform
from nag.support.commands import any_terminal
from nag.support.device import (
    autocast,
    best_device,
    can_compile,
    describe,
    has_fast_bf16,
    maybe_compile,
)
from nag.support.files import write_json, write_torch
from nag.support.paths import RESULTS, WEIGHTS
from nag.support.rng import generator
from nag.train import TrainConfig, TrainState

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
LATENTS, SCALE, XL_ROUNDS = 2, 1.5, 3
XL_DISK, XL_MEMORY = 3 * 2**30, 5 * 2**30  # bytes: the file; the weights and what a step needs
PLAIN = "plain fp32"
VARIANTS = {
    "fp32": ("fp32", False),
    "fp32 compiled": ("fp32", True),
    "bf16": ("bf16", False),
    "bf16 compiled": ("bf16", True),
}
PEAKS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRIX = 1024  # rows and columns of the matrices whose product is the peak
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of a CPU, as Linux names them


def variants(device: torch.device) -> list[str]:
    """The VARIANTS worth a trial here: bf16 where it is native, compiled where that works."""
    return [
        name
        for name, (precision, compiled) in VARIANTS.items()
        if (precision == "fp32" or has_fast_bf16(device))
        and (not compiled or can_compile(device.type))
    ]


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers are of: the processor, what it can do, and the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    pairs = (line.partition(":") for line in lines)
    told = {key.strip(): value.strip() for key, _, value in pairs}
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "cpu": told.get("model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in told.get("flags", "").split()],
        "threads": torch.get_num_threads(),
        "native_bf16": has_fast_bf16(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
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


def _product(dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    a = torch.randn(MATRIX, MATRIX, generator=generator(4)).to(device, dtype)
    return lambda: a @ a


def compare(
    work: Mapping[str, Callable[[], object]], flop: float, rounds: int, device: torch.device
) -> dict[str, Any]:
    """What each variant's `flop` operations take, PLAIN being one of them.

    "peaks": GFLOP/s of a large matrix product by precision, in turn with the rest. "rows", one a
    variant: "ratio", how many times as fast as PLAIN; "share" of its precision's peak."""
    products = {f"product {name}": _product(dtype, device) for name, dtype in PEAKS.items()}
    seconds = turns({**work, **products}, rounds, device)
    peaks = {name: 2 * MATRIX**3 / seconds[f"product {name}"] for name in PEAKS}
    rows = []
    for name in work:
        precision = "fp32" if name == PLAIN else VARIANTS[name][0]
        rows.append(
            {
                "variant": name,
                "ratio": seconds[PLAIN] / seconds[name],
                "share": flop / seconds[name] / peaks[precision],
            }
        )
    return {"peaks": {name: peak / 1e9 for name, peak in peaks.items()}, "rows": rows}


def operations(config: ModelConfig, rows: int, backward: bool = False) -> int:
    """Operations of matrix products in one evaluation of `rows` samples, a multiply-add being two.

    Counted on tensors without storage."""
    with torch.device("meta"):
        net = DiT(config)
        x = torch.zeros(rows, config.channels, config.input_size, config.input_size)
        t, y = torch.zeros(rows), torch.zeros(rows, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            out = net(x, t, y)
            if backward:
                out.sum().backward()
    return counter.get_total_flops()


def training(config: ModelConfig, names: Iterable[str], device: torch.device) -> dict[str, Any]:
    """`compare` of one step on a batch, with its optimiser and EMA."""
    shape = (TRAIN_BATCH, config.channels, config.input_size, config.input_size)
    images = torch.randn(shape, generator=generator(0))
    index = torch.arange(TRAIN_BATCH)
    labels = index % config.classes
    loss = denoising_loss(images, labels, 0.1, 0.1)
    plain = plain_sit.of(DiT(config)).to(device).train()
    work = {PLAIN: plain_sit.trainer(plain, images.to(device), labels.to(device))}
    for name in names:
        precision, compiled = VARIANTS[name]
        net = DiT(config).to(device).train()
        run = maybe_compile(net, device, compiled)
        settings = TrainConfig(images_seen=10**6, lr=1e-4)
        state = TrainState(net, settings, Path("never written"), device, TRAIN_BATCH)

        def step(run=run, state=state, precision=precision) -> None:
            with autocast(device, precision):
                value = loss(run, index, generator(1))
            value.backward()
            state.update()

        work[name] = step
    return compare(work, operations(config, TRAIN_BATCH, backward=True), ROUNDS, device)


def sampling(
    net: DiT, names: Iterable[str], images: int, steps: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """`compare` of sampling by Euler's method with CFG, two branches; rows have besides

    "first": seconds of the first call, with what is compiled; "error" of the sample relative to
    what PLAIN moves."""
    c = net.to(device).config
    shape = (images, c.channels, c.input_size, c.input_size)
    x = torch.randn(shape, generator=generator(2)).to(device)
    labels = (torch.arange(images) % c.classes).to(device)
    plain = plain_sit.of(net)
    work = {PLAIN: partial(plain_sit.sample, plain, x, labels, SCALE, steps)}

    def ours(field: GuidedField) -> Tensor:
        return last(euler(field, x, uniform(steps)))

    for name in names:
        precision, compiled = VARIANTS[name]
        run = maybe_compile(net, device, compiled)
        field = GuidedField(run, labels, [classifier_free(SCALE)], precision)
        work[name] = partial(ours, field)
    more, truth = [], work[PLAIN]()
    for run in work.values():
        start = time.perf_counter()
        error = (run() - truth).norm() / (truth - x).norm()
        more.append({"error": error.item(), "first": time.perf_counter() - start})
    found = compare(work, steps * operations(c, 2 * images), rounds, device)
    found["rows"] = [a | b for a, b in zip(found["rows"], more, strict=True)]
    return found


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


def xl(device: torch.device) -> dict[str, Any]:
    """What loading a network of SiT-XL/2's size costs ("load"), and one guided step ("sampling").

    {"left_out": why} where the machine is too small."""
    if why := lacking(tempfile.gettempdir()):
        print(f"\nThe network of SiT-XL/2's size is left out: {why}.")
        return {"left_out": why}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "xl.pt"
        random_file(path, XL)
        size, cost = path.stat().st_size, loading(path, "sit")
        net = checkpoint.load(path, "sit")
        found = sampling(net, variants(device), LATENTS, 1, XL_ROUNDS, device)
    memory = cost["memory"] / size
    print(
        f"\nSiT-XL/2's size, random weights in {size / 1e9:.2f} GB: loaded in {cost['load']:.1f} "
        f"s, then read in {cost['read']:.1f} s, peak memory {memory:.2f} of the file"
    )
    show(f"Sampling, one step with CFG for {LATENTS} latents, {XL_ROUNDS} rounds", found)
    load = {"bytes": size} | ({} if math.isnan(memory) else {"memory": memory})
    return {"load": load, "sampling": found, "latents": LATENTS, "rounds": XL_ROUNDS}


def mini(device: torch.device) -> dict[str, Any]:
    """Training and sampling of SiT-mini, the committed weights."""
    net, names = checkpoint.load(WEIGHTS / "sit.safetensors"), variants(device)
    trained = training(net.config, names, device)
    sampled = sampling(net, names, IMAGES, STEPS, ROUNDS, device)
    show(f"\nSiT-mini, training, batch {TRAIN_BATCH}, {ROUNDS} rounds", trained)
    show(f"SiT-mini, sampling with CFG, {IMAGES} images at once, {ROUNDS} rounds", sampled)
    sizes = {"batch": TRAIN_BATCH, "images": IMAGES, "rounds": ROUNDS}
    return {"training": trained, "sampling": sampled} | sizes


def show(title: str, found: dict[str, Any]) -> None:
    """Print a table of `compare`."""
    peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in found["peaks"].items())
    print(f"{title}; matrix products, GFLOP/s: {peaks}")
    print(f"{'':15}{'ratio':>8}{'share of peak':>16}{'first call, s':>16}{'relative error':>16}")
    for row in found["rows"]:
        more = f"{row['first']:16.1f}{row['error']:16.1e}" if "first" in row else ""
        print(f"{row['variant']:15}{row['ratio']:8.2f}{row['share']:15.0%} {more}")


SECTIONS = {"mini": mini, "xl": xl}


def main(arguments: Sequence[str] | None = None, out: Path = RESULTS / "bench.json") -> None:
    """Print the tables of the sections named on the command line, and write `out` if all are."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.experiments.bench", description="Speed of training and sampling"
    )
    listed = ", ".join(SECTIONS)
    parser.add_argument("sections", nargs="*", help=f"of {listed} (default: all)")
    sections = parser.parse_args(arguments).sections or list(SECTIONS)
    if unknown := sorted(set(sections) - SECTIONS.keys()):
        parser.error(f"unknown section {', '.join(unknown)}: choose from {listed}")
    any_terminal()
    device = best_device()
    torch.manual_seed(0)
    print(describe(device, "bf16" if has_fast_bf16(device) else "fp32", can_compile(device.type)))
    found = {section: SECTIONS[section](device) for section in sections}
    if set(sections) == SECTIONS.keys():
        write_json(out, {"machine": machine(device), **found})


if __name__ == "__main__":
    main()
