"""Sampling an arm of an experiment: N images with per-image seeds, some trajectories, and the
protocol that made them.
"""

import ast
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from tqdm import tqdm

from nag.data.fashion_mnist import to_uint8
from nag.guidance import GuidedField, Term, classifier_free, domain, noise_awareness
from nag.interpolant import PATH_OF
from nag.models import DiT
from nag.samplers.registry import SAMPLERS, resolve, resolve_grid, time_grid
from nag.samplers.time_grids import GRIDS
from nag.support.device import best_device, can_compile, maybe_compile, resolve_precision
from nag.support.files import UNREADABLE, atomic
from nag.support.paths import BUILD, ROOT
from nag.support.rng import SEEDS, ImageNoise

Interval = tuple[float, float]


class Arm(BaseModel):
    """Guidance of one arm: w_nag (0 is off), and the scales of CFG and of Domain Guidance (1 is
    off).

    NAG and CFG have an interval of t. `cfg_channels` is how many leading channels CFG and Domain
    Guidance guide; the public DiT and SiT codes guide three of four."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    w_nag: float = 0.0
    cfg: float = Field(1.0, ge=0)
    nag_interval: Interval = (0.0, 1.0)
    cfg_interval: Interval = (0.0, 1.0)
    cfg_channels: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    dog: float = Field(1.0, ge=0, exclude_if=lambda value: value == 1.0)

    def terms(self, unaware: DiT | None = None, pretrained: DiT | None = None) -> list[Term]:
        """The guidance terms, without those that are off.

        NAG's negative is `unaware` if that is another network; Domain Guidance's is `pretrained`,
        and ValueError without it."""
        if self.dog != 1 and pretrained is None:
            raise ValueError(
                f"Domain Guidance of scale {self.dog} needs the pre-trained network: name its file"
            )
        terms = [
            noise_awareness(self.w_nag, interval=self.nag_interval, net=unaware),
            classifier_free(self.cfg, interval=self.cfg_interval, channels=self.cfg_channels),
            domain(self.dog, pretrained, channels=self.cfg_channels),
        ]
        return [term for term in terms if term.weight != 0]


class SampleConfig(BaseModel):
    """How to sample: solver, steps, number of images and their seeds; `trajectories` images keep
    their states.

    Of these every `states_every`-th is kept, and always the first and the last. The samplers "ode"
    and "sde" are the usual ones of the network's path; the grid "default" is the sampler's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampler: str = "ode"
    grid: str = "default"
    steps: int = Field(50, ge=1)
    n_images: int = Field(2000, ge=1)
    first_seed: int = Field(0, ge=0)
    trajectories: int = Field(400, ge=0)
    states_every: int = Field(1, ge=1)
    network_batch: int = Field(
        600, ge=1, description="rows in one network call, all guidance branches together"
    )
    precision: str = "auto"
    compile: bool = True

    @model_validator(mode="after")
    def _known(self) -> "SampleConfig":
        resolve(self.sampler)
        if self.first_seed + self.n_images > SEEDS:
            raise ValueError(f"seeds from {self.first_seed} on pass 2^63 - 1: choose smaller ones")
        if self.grid not in ("default", *GRIDS):
            raise ValueError(f"unknown grid {self.grid!r}: choose one of {sorted(GRIDS)}")
        return self

    @property
    def kept(self) -> list[int]:
        """Places in the grid of times whose states are kept."""
        return sorted({*range(0, self.steps + 1, self.states_every), self.steps})

    @property
    def seeds(self) -> range:
        """Seeds of the images; image i of any arm starts from the same noise."""
        return range(self.first_seed, self.first_seed + self.n_images)

    def parts(self, size: int) -> "list[SampleConfig]":
        """The same images in parts of `size` consecutive seeds; the first ones keep states."""
        counts = [min(size, self.n_images - first) for first in range(0, self.n_images, size)]
        return [
            self.model_copy(
                update={
                    "first_seed": self.first_seed + k * size,
                    "n_images": count,
                    "trajectories": min(max(0, self.trajectories - k * size), count),
                }
            )
            for k, count in enumerate(counts)
        ]


def labels_of(seeds: Sequence[int], classes: int) -> Tensor:
    """Balanced labels: seed modulo the number of classes, (B,) int64; all 0 without classes."""
    return torch.tensor([seed % max(1, classes) for seed in seeds])


def sample(
    net: DiT,
    terms: Sequence[Term],
    config: SampleConfig,
    progress: bool = True,
    decode: Callable[[Tensor], Tensor] | None = None,
    solver: Callable | None = None,
    keep: Path | None = None,
) -> dict[str, np.ndarray]:
    """Sample with guidance terms: images (N, C, H, W) uint8, labels, seeds, times (K,), states (M,
    K, C, H, W), nfe, seconds.

    States are kept in float16, whose rounding (2e-4 of a pixel's range) is far below the least
    noise on the grid. `decode` makes images in [-1, 1] of latents; `solver`, of a sampler's
    signature, takes the place of the named one, whose grid it gets. Where its last state has
    several images as further channels, "images" has them all. In the folder `keep`, which
    `batches` names, every batch is kept as it is made, so that a killed run goes on from there.
    Raises FloatingPointError if a sample is not finite."""
    c, device = net.config, best_device()

    def ready(network: Any) -> Any:
        return maybe_compile(network.to(device), device, config.compile)

    run = ready(net)
    terms = [term if term.net is None else replace(term, net=ready(term.net)) for term in terms]
    solver = solver or SAMPLERS[resolve(config.sampler, c.path)]
    times, kept = time_grid(config.sampler, config.steps, c.path, config.grid), set(config.kept)
    shape = (c.channels, c.input_size, c.input_size)

    def batch(part: SampleConfig) -> dict[str, np.ndarray]:
        start, noise = time.perf_counter(), ImageNoise(part.seeds, device)
        labels = labels_of(part.seeds, c.classes).to(device)
        field = GuidedField(run, labels, terms, config.precision)
        trajectory = []
        for k, (x, _) in enumerate(solver(field, noise(shape), times, noise, c.path)):
            if part.trajectories and k in kept:
                trajectory.append(x[: part.trajectories, : c.channels].half().cpu())
            bar.update(part.n_images if k else 0)
        if not torch.isfinite(x).all():
            raise FloatingPointError(
                f"sampling gave NaN or infinity (seeds {part.seeds[0]} to {part.seeds[-1]}): try "
                "precision: fp32, more steps or smaller guidance weights"
            )
        states = torch.stack(trajectory, dim=1) if trajectory else torch.zeros(0, len(kept), *shape)
        return {
            "images": to_uint8(decode(x) if decode else x).cpu().numpy(),
            "states": states.half().numpy(),
            "seeds": np.array(part.seeds),
            "nfe": np.array(field.nfe),
            "seconds": np.array(time.perf_counter() - start),
        }

    made, size = [], max(1, config.network_batch // (1 + len(terms)))
    with tqdm(
        total=config.n_images * config.steps, unit="image-step", mininterval=5, disable=not progress
    ) as bar:
        for part in config.parts(size):
            made.append(_kept_batch(keep, part, batch) if keep else batch(part))
            bar.update(sum(len(run["seeds"]) for run in made) * config.steps - bar.n)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([arrays[name] for arrays in made])

    return {
        "images": joined("images"),
        "labels": labels_of(config.seeds, c.classes).numpy(),
        "seeds": joined("seeds"),
        "times": times[config.kept].numpy(),
        "nfe": made[-1]["nfe"],
        "states": joined("states"),
        "seconds": np.array(sum(float(arrays["seconds"]) for arrays in made)),
    }


def batches(key: str) -> Path:
    """Where the batches of a run are kept whose samples are decided by what `key` is a hash of."""
    return BUILD / "batches" / key


def part_file(folder: Path, part: SampleConfig) -> Path:
    """The file of a part of a run, named by its first seed."""
    return folder / f"{part.first_seed:08d}.npz"


def finished(path: Path, part: SampleConfig, key: str) -> bool:
    """Whether a part is there, whole, and of these seeds and this key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return (
                str(file["key"]) == key
                and file["seeds"].tolist() == list(part.seeds)
                and len(file["states"]) == part.trajectories
            )
    except UNREADABLE:
        return False


def _kept_batch(keep: Path, part: SampleConfig, make: Callable) -> dict[str, np.ndarray]:
    """The batch in the folder `keep`; made and kept there if it is not there or is damaged."""
    path = part_file(keep, part)
    if finished(path, part, keep.name):
        with contextlib.suppress(ValueError, FileNotFoundError):  # removed by another run just now
            return load_arrays(path)
    arrays = make(part) | {"key": np.array(keep.name)}
    save_arrays(path, arrays)
    return arrays


def forget(keep: Path, config: SampleConfig, alone: bool = True) -> None:
    """Remove the batches of a run from `keep`, once the run itself is saved, and the empty folder
    unless other processes may be about to write there.
    """
    for path in keep.glob("[0-9]*.npz"):
        if int(path.stem) in config.seeds:
            path.unlink(missing_ok=True)
    if alone:
        with contextlib.suppress(OSError):  # another run keeps batches there, or it is not there
            keep.rmdir()


@cache
def code_version() -> str:
    """Short hash of the code that decides a sample, whatever its comments and layout."""
    names = (
        "nag/models",
        "nag/interpolant",
        "nag/ddpm",
        "nag/support/rng",
        "nag/guidance",
        "nag/samplers/time_grids",
        "nag/samplers/multistep",
        "nag/samplers/one_step",
        "nag/samplers/registry",
        "companion/experiments/generate",
    )
    trees = [
        ast.dump(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))) for name in names
    ]
    return hashlib.sha256("".join(trees).encode()).hexdigest()[:16]


GRID_NAMES = {
    "uniform": "uniform in t",
    "sde": "uniform in t, then one step from {last:g} to 0",
    "respaced": "DDPM's levels, evenly respaced",
    "logsnr": "uniform in log SNR",
    "edm": "EDM, rho 7",
    "shifted": "uniform in t, shifted by 3",
}


def _grid_name(config: SampleConfig, path: str) -> str:
    last = float(time_grid(config.sampler, config.steps, path, config.grid)[-2])
    return GRID_NAMES[resolve_grid(config.sampler, path, config.grid)].format(last=last)


def protocol(arm: Arm, config: SampleConfig, weights_sha256: str, family: str) -> dict:
    """Everything that decides the numbers of an arm, for the record."""
    device, path = best_device(), PATH_OF[family]
    return {
        "family": family,
        "guidance": arm.model_dump(mode="json"),
        "solver": resolve(config.sampler, path),
        "steps": config.steps,
        "grid": _grid_name(config, path),
        "n": config.n_images,
        "seeds": [config.seeds[0], config.seeds[-1]],
        "label_mode": "balanced, seed mod classes",
        "precision": resolve_precision(config.precision, device),
        "state": "float32",
        "device": device.type,
        "compiled": config.compile and can_compile(device.type),
        "uint8": "round(127.5 x + 127.5), clamped",
        "weights_sha256": weights_sha256,
        "torch": torch.__version__,
    }


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as an npz file, atomically."""
    with atomic(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an npz file; raises FileNotFoundError or ValueError with advice."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no samples at {path}: run `dvc repro`, or sample them with 05_sample.ipynb"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
            if any(isinstance(array, bytes) for array in arrays.values()):
                raise ValueError("another zip archive")
            return arrays
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is truncated or no npz file: delete it and run `dvc repro` again"
        ) from error
