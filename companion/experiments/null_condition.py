"""A null noise condition for a released network: starts, trainings, errors (notebook 14)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from companion.experiments.images import BY_HAND, held_out
from nag import checkpoint
from nag.data.fashion_mnist import load_fashion_mnist
from nag.data.published_files import digest
from nag.interpolant import add_noise
from nag.models import DiT
from nag.pretrained.further_training import FurtherConfig, held_out_errors, run
from nag.pretrained.null_branch import INITIAL, add_null, load_null
from nag.support import distributed
from nag.support.device import best_device
from nag.support.files import write_json
from nag.support.paths import BUILD, CHECKPOINTS, ROOT
from nag.support.rng import generator
from nag.support.uncertainty import around, sign
from nag.train import TrainConfig

RANGES = [f"{k / 4:.2f} to {(k + 1) / 4:.2f}" for k in range(4)]  # of t


class Settings(BaseModel):
    """The parameters of notebook 14, where they are explained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    weights: str
    kind: str
    heads: int | None
    latents: str
    held_out: str
    held_out_images: int
    mode: str
    layers: tuple[str, ...]
    null_init: str
    class_dropout: float
    noise_dropout: float
    compare: bool
    images_seen: int
    batch_size: int
    lr: float
    lr_layers: float
    lr_null: float
    warmup_steps: int
    ema_decay: float
    seed: int
    processes: int
    save_steps: int | None
    micro_batch: int | None
    precision: str
    compile: bool
    out: str


class Before(NamedTuple):
    """The network before any training, on held-out images; all errors share images, times and
    noise, so that they are compared in pairs."""

    net: DiT
    sha256: str  # of its file
    known: bool  # whether the file has a null vector: loading adds one of zeros where there is none
    x0: Tensor  # (N, C, H, W) held-out images and their labels
    labels: Tensor
    times: Tensor  # (N,) of the errors
    aware: Tensor  # (N,) errors with the noise level
    unaware: dict[str, Tensor]  # by start, "known" being the file's own null vector: without it
    norms: dict[str, float]  # of those null vectors


def before(s: Settings) -> Before:
    """Load the network and measure the error without noise level for every start of the null
    vector; the network keeps its own."""
    source = ROOT / (s.weights or f"results/weights/{s.family}.safetensors")
    net = checkpoint.load(source, s.kind, s.heads).to(best_device())
    known = bool(net.t_embedder.null.any())
    latents = s.held_out if s.latents else ""
    x0, labels = held_out(latents, s.held_out_images, net.config.classes)
    times, aware = held_out_errors(net, x0, labels, s.seed + 1, drop_noise=False)
    own, unaware, norms = net.t_embedder.null.detach().clone(), {}, {}
    for start in [*(["known"] if known else []), *INITIAL]:
        if start != "known":
            add_null(net, start)
        norms[start] = net.t_embedder.null.norm().item()
        unaware[start] = held_out_errors(net, x0, labels, s.seed + 1)[1]
    net.t_embedder.null.data.copy_(own)
    sha256 = digest(source)
    return Before(net, sha256, known, x0, labels, times, aware, unaware, norms)


def excess(errors: Tensor, reference: Tensor, times: Tensor) -> dict[str, Any]:
    """Mean paired difference of errors (N,) over all t and by range of t, with 95 % intervals."""
    difference, place = errors - reference, (times * 4).long().clamp_max(3)
    parts = {"all t": difference} | {r: difference[place == k] for k, r in enumerate(RANGES)}
    return {r: around(d.mean().item(), d.std().item() / len(d) ** 0.5) for r, d in parts.items()}


def arms(s: Settings, depth: int) -> tuple[dict[str, dict], str]:
    """The trainings, and which of them is kept.

    With `compare` also the null vector alone from each start, with the last layer, and with all
    modulation (adaLN) layers; and the whole network with two rates of noise-condition dropout."""
    adaln = ["final_layer.adaLN_modulation"]
    adaln += [f"blocks.{k}.adaLN_modulation" for k in range(depth)]
    alone: dict[str, Any] = {"mode": "null", "null_init": s.null_init}
    compared: dict[str, dict[str, Any]] = {
        f"null from {start}": {"mode": "null", "null_init": start} for start in INITIAL
    }
    compared |= {
        "null + final layer": alone | {"layers": ["final_layer"]},
        "null + all adaLN": alone | {"layers": adaln},
    }
    whole: dict[str, Any] = {"mode": "all", "null_init": s.null_init}
    compared |= {f"all, dropout {p:.0%}": whole | {"noise_dropout": p} for p in (0.1, 0.2)}
    wanted: dict[str, Any] = {"mode": s.mode, "null_init": s.null_init}
    wanted |= {"noise_dropout": s.noise_dropout} if s.mode == "all" else {}
    wanted |= {"layers": list(s.layers)} if s.layers else {}
    found = compared if s.compare else {}
    kept = next((name for name, arm in found.items() if arm == wanted), "kept run")
    return found | {kept: wanted}, kept


def train(s: Settings, start: Before) -> tuple[dict[str, FurtherConfig], str, pd.DataFrame]:
    """Train every arm, in this kernel or by `processes`; their settings, which is kept, and the
    training curves. All see the same images in the same order.

    Without Fashion-MNIST's training images a run by hand trains on the test images, so that its
    held-out errors are optimistic; any other raises FileNotFoundError."""
    found, kept = arms(s, start.net.config.depth)
    processes = distributed.local_processes(s.processes)
    if processes:  # they need the device's memory
        start.net.cpu()
        torch.cuda.empty_cache()
    common = {
        "kind": s.kind,
        "heads": s.heads,
        "latents": s.latents,
        "split": "train" if s.latents else _split(s.out),
        "class_dropout": s.class_dropout,
    }
    specs, curves = {}, []
    for name, arm in found.items():
        specs[name] = spec = _spec(s, start.sha256, common, arm, name == kept)
        if processes:
            file = (
                ROOT
                / s.out
                / "specs"
                / f"null-{s.family}-{_key(s, start.sha256, common, arm)}.json"
            )
            write_json(file, spec.model_dump(mode="json"))
            distributed.launch("nag.pretrained.further_training", file, processes)
        else:
            run(spec)
        curves.append(pd.read_csv(spec.out.removesuffix("safetensors") + "csv").assign(arm=name))
    start.net.to(best_device())
    return specs, kept, pd.concat(curves)[["arm", "step", "images", "loss", "seconds"]]


def _split(out: str) -> str:
    """Which images of Fashion-MNIST are trained on."""
    try:
        load_fashion_mnist("train")
    except FileNotFoundError as error:
        if out != BY_HAND:
            raise
        print(f"{error}\nTraining on the test images: the held-out errors are optimistic.")
        return "test"
    return "train"


def _training(s: Settings, arm: Mapping) -> TrainConfig:
    whole = arm["mode"] == "all"
    return TrainConfig(
        images_seen=s.images_seen,
        batch_size=s.batch_size,
        lr=s.lr if whole else s.lr_layers if arm.get("layers") else s.lr_null,
        warmup_steps=s.warmup_steps,
        ema_decay=s.ema_decay,
        seed=s.seed,
        precision=s.precision,
        compile=s.compile,
    )


def _key(s: Settings, sha256: str, common: Mapping, arm: Mapping) -> str:
    return _training(s, arm).key(sha256, common, arm)


def _spec(s: Settings, sha256: str, common: dict, arm: dict, kept: bool) -> FurtherConfig:
    training, key = _training(s, arm), _key(s, sha256, common, arm)
    out = BUILD / "null-condition" / f"{s.family}-{key}.safetensors"
    if kept:
        name = f"{s.family}{'-null' if s.mode == 'null' else ''}.safetensors"
        out = ROOT / s.out / "weights" / name
    return FurtherConfig(
        **common,
        **arm,
        weights=str(ROOT / (s.weights or f"results/weights/{s.family}.safetensors")),
        save_steps=s.save_steps,
        micro_batch=s.micro_batch or distributed.whole_number("NAG_MICRO_BATCH", 0) or None,
        train=training,
        log_steps=max(1, min(100, training.steps // 10)),
        checkpoint=str(CHECKPOINTS / f"null-{s.family}-{key}.pt"),
        out=str(out),
    )


def after(s: Settings, start: Before, specs: Mapping[str, FurtherConfig], kept: str) -> dict:
    """What null-FAMILY.json keeps: errors without noise level before and after each training, in
    excess of the error with it; what happened to the branch with it; and the comparison with the
    file's own null vector, or with each training's start if it has none.

    Raises AssertionError if a branch that was to stay frozen has changed, or the network's file."""
    unaware = dict(start.unaware)
    conditional = {}
    for name, spec in specs.items():
        unaware[name], conditional[name] = _branches(s, start, spec)
    source = ROOT / (s.weights or f"results/weights/{s.family}.safetensors")
    assert digest(source) == start.sha256, "the network's own file has changed"
    errors = {name: excess(e, start.aware, start.times) for name, e in unaware.items()}
    own = "known" if start.known else "zero"  # of a run that keeps the file's null vector
    compared = {}
    for name, spec in specs.items():
        first = own if spec.null_init == "keep" else spec.null_init
        reference = unaware["known" if start.known else first]
        found = excess(unaware[name], reference, start.times)["all t"]
        words = {"above": "worse", "below": "better"}
        compared[name] = found | {"outcome": words.get(sign(found), "inconclusive")}
    fields = {"mode", "layers", "null_init", "noise_dropout", "train"}
    return {
        "n": len(start.x0),
        "seed": s.seed,
        "weights_sha256": start.sha256,
        "images_seen": s.images_seen,
        "kept": kept,
        "settings": {
            name: spec.model_dump(mode="json", include=fields) for name, spec in specs.items()
        },
        "error_with_noise_level": start.aware.mean().item(),
        "excess_before": {name: errors[name] for name in start.unaware},
        "excess_after": {name: errors[name] for name in specs},
        "norms": start.norms,
        "conditional": conditional,
        "compared_with": "known null vector" if start.known else "start",
        "compared": compared,
    }


def _branches(s: Settings, start: Before, spec: FurtherConfig) -> tuple[Tensor, dict]:
    """Of one training, the errors (N,) without noise level, and what happened to the branch with
    it."""
    if spec.mode == "null":
        dropped = load_null(Path(spec.out), start.net, start.sha256)
        aware = start.net if spec.layers else dropped  # with layers, the twin is a negative only
    else:
        dropped = aware = checkpoint.load(Path(spec.out)).to(best_device())
    n = min(64, len(start.x0))
    eps = torch.randn(start.x0[:n].shape, generator=generator(s.seed + 2))
    x_t = add_noise(start.x0[:n], eps, start.times[:n], start.net.config.path)
    ask = [a.to(best_device()) for a in (x_t, start.times[:n], start.labels[:n])]
    with torch.inference_mode():
        change = (aware(*ask) - start.net(*ask)).abs().max().item()
    assert change == 0 or spec.mode == "all", "a frozen branch has changed"
    errors = start.aware
    if change or spec.mode == "all":
        errors = held_out_errors(aware, start.x0, start.labels, s.seed + 1, drop_noise=False)[1]
    found = excess(errors, start.aware, start.times)["all t"]
    return (
        held_out_errors(dropped, start.x0, start.labels, s.seed + 1)[1],
        {"largest change of a prediction": change} | found,
    )
