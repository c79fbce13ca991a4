"""`make bench`: speed of training and sampling in each precision, beside a plain fp32 reference of the same network.

Only ratios within one run mean something: the variants take turns, so a drift of the machine's speed touches all alike.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from nag import checkpoint
from nag.device import autocast, best_device, can_compile, describe, has_fast_bf16
from nag.grids import uniform
from nag.guidance import GuidedField, noise_awareness
from nag.models import DiT, ModelConfig
from nag.paths import WEIGHTS
from nag.rng import generator
from nag.samplers import euler, last
from nag.train import denoising_loss

TRAIN_BATCH, IMAGES, STEPS, ROUNDS = 128, 300, 2, 5
VARIANTS = {"fp32": ("fp32", False), "fp32 compiled": ("fp32", True), "bf16": ("bf16", False), "bf16 compiled": ("bf16", True)}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def turns(work: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
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
    index, work = torch.arange(TRAIN_BATCH), {}
    for name in names:
        precision, compiled = VARIANTS[name]
        net = DiT(config).to(device)
        run = torch.compile(net) if compiled else net
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)

        def step(run=run, optimizer=optimizer, precision=precision):
            with autocast(device, precision):
                value = loss(run, index, generator(1))
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        work[name] = step
    return {name: TRAIN_BATCH / s for name, s in turns(work, ROUNDS, device).items()}


def sampling(net: DiT, names: list[str], device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """(Network evaluations times images) a second with NAG, and the relative error of v against fp32, by variant."""
    net.to(device)
    c = net.config
    x = torch.randn(IMAGES, c.channels, c.input_size, c.input_size, generator=generator(2)).to(device)
    labels = (torch.arange(IMAGES) % c.classes).to(device)
    fields = {}
    for name in names:
        precision, compiled = VARIANTS[name]
        run = torch.compile(net) if compiled else net
        fields[name] = GuidedField(run, labels, [noise_awareness(1.0)], precision)
    with torch.inference_mode():
        v = {name: field(x, 0.5) for name, field in fields.items()}
    error = {name: ((v[name] - v["fp32"]).norm() / v["fp32"].norm()).item() for name in names}
    work = {name: (lambda f=field: last(euler(f, x, uniform(STEPS)))) for name, field in fields.items()}
    return {name: 2 * STEPS * IMAGES / s for name, s in turns(work, ROUNDS, device).items()}, error


def main() -> None:
    """Print the table of speeds, ratios and errors of SiT-mini."""
    device = best_device()
    torch.manual_seed(0)
    print(describe(device, "bf16" if has_fast_bf16(device) else "fp32", can_compile(device.type)))
    names = [name for name, (_, compiled) in VARIANTS.items() if not compiled or can_compile(device.type)]
    weights: Path = WEIGHTS / "sit.safetensors"
    net = checkpoint.load(weights)
    trained = training(net.config, names, device)
    sampled, error = sampling(net, names, device)
    print(f"SiT-mini, batch {TRAIN_BATCH} in training, {IMAGES} images with NAG (two branches) in sampling; median of {ROUNDS}")
    print(f"{'':15}{'training':>12}{'':>8}{'sampling':>16}{'':>8}{'relative error':>16}")
    print(f"{'':15}{'images/s':>12}{'ratio':>8}{'evaluations/s':>16}{'ratio':>8}{'of v':>16}")
    for name in names:
        print(f"{name:15}{trained[name]:12.0f}{trained[name] / trained['fp32']:8.2f}{sampled[name]:16.0f}"
              f"{sampled[name] / sampled['fp32']:8.2f}{error[name]:16.1e}")


if __name__ == "__main__":
    main()
