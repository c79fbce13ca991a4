"""Train, calibrate and keep a noise-level estimator for somebody's images or latents, in one call.

It must know the data that the model was trained on: an estimator of other data reads other levels.
What it gets wrong on forward states is subtracted when a shift is measured, so that it need not be
free of bias, only sharp."""

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nag.checkpoint import load_weights, read_weights, save_weights
from nag.estimator import T_MIN, NoiseEstimator, calibration, estimator_loss, posterior_mean
from nag.interpolant import PATHS, add_noise
from nag.support.device import best_device
from nag.support.rng import generator
from nag.support.weight_files import content
from nag.train import TrainConfig, train

HELD_OUT = 0.2  # of the images, the last ones, for the calibration
FLOW = ("FlowM", "LTXEuler", "Helios", "MiniMax", "Piflow")  # class names of linear paths


def path_of(scheduler_or_path: Any) -> str:
    """The path on which states are read: "linear" for flow matching, "ddpm" for all others.

    States of any scheduler are brought to it by their ratio of noise to signal, so that it only
    decides what is called t."""
    if isinstance(scheduler_or_path, str):
        if scheduler_or_path not in PATHS:
            raise ValueError(f"unknown path {scheduler_or_path!r}: choose one of {sorted(PATHS)}")
        return scheduler_or_path
    scheduler = getattr(scheduler_or_path, "scheduler", scheduler_or_path)
    flow = scheduler.config.get("use_flow_sigmas", False)
    return "linear" if flow or type(scheduler).__name__.startswith(FLOW) else "ddpm"


@dataclass
class LevelEstimator:
    """x (B, C, H, W) to E[t | x] (B,), with the path of its t and how well it is calibrated.

    `calibration` is that of `nag.estimator.calibration` on images it was not trained on, as lists;
    its "coverage" should be its "level", and "bias" small beside "std". `made_of` is the `recipe`
    that it was trained by, "" if that is not known."""

    net: NoiseEstimator
    path: str
    calibration: dict[str, list[float]]
    made_of: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        return posterior_mean(self.net, x.to(next(self.net.parameters()).device))

    @property
    def coverage_error(self) -> float:
        """Largest difference between the nominal and the actual mass of a central interval."""
        level, coverage = self.calibration["level"], self.calibration["coverage"]
        return float(np.abs(np.subtract(level, coverage)).max())

    def save(self, file: str | Path) -> None:
        """Write everything to one safetensors file."""
        size = dict(
            channels=self.net.channels,
            width=self.net.filters.out_channels,
            components=self.net.components,
        )
        kept = {"path": self.path, "calibration": self.calibration, "size": size}
        kept |= {"made_of": self.made_of}
        save_weights(Path(file), self.net, level_estimator=json.dumps(kept))

    @classmethod
    def load(cls, file: str | Path) -> "LevelEstimator":
        """Read a file written by `save`; raises ValueError for another or a damaged one."""
        _, metadata = read_weights(Path(file))
        if "level_estimator" not in metadata:
            raise ValueError(
                f"{file} is not a noise-level estimator: make one with train_estimator"
            )
        try:
            kept = json.loads(metadata["level_estimator"])
            net = NoiseEstimator(**kept["size"])
            path, found = kept["path"], kept["calibration"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is a damaged noise-level estimator: train it again with train_estimator"
            ) from error
        return cls(load_weights(Path(file), net).eval(), path, found, kept.get("made_of", ""))


def _config(images_seen: int, batch_size: int, seed: int) -> TrainConfig:
    return TrainConfig(
        images_seen=images_seen,
        batch_size=batch_size,
        lr=2e-3,
        warmup_steps=min(100, images_seen // batch_size // 10 + 1),
        cooldown=0.5,
        ema_decay=0.99,
        seed=seed,
        precision="fp32",
        compile=False,
    )


def recipe(
    images: Tensor,
    scheduler_or_path: Any = "ddpm",
    *,
    images_seen: int = 400_000,
    width: int = 32,
    batch_size: int = 128,
    seed: int = 0,
) -> str:
    """Short hash of all that decides what `train_estimator` makes of these arguments, the images'
    content included.
    """
    path = path_of(scheduler_or_path)
    return _config(images_seen, batch_size, seed).key(path, width, content([images]))


def train_estimator(
    images: Tensor,
    scheduler_or_path: Any = "ddpm",
    file: str | Path = "noise_level_estimator.safetensors",
    *,
    images_seen: int = 400_000,
    width: int = 32,
    batch_size: int = 128,
    seed: int = 0,
) -> LevelEstimator:
    """Train an estimator on images or latents (N, C, H, W) as the model has them, and save it.

    The path is that of the scheduler, pipeline or name (`path_of`). The last fifth of the images is
    for the calibration. A run that was stopped goes on from FILE.RECIPE.part, so from one of the
    same images and settings only. Raises ValueError for too few images, another shape or
    images of bytes."""
    held_out = int(len(images) * HELD_OUT) if images.ndim == 4 else 0
    if held_out < 2:
        raise ValueError(
            f"images of shape {tuple(images.shape)}: give (N, C, H, W) with N of at least 10"
        )
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: give floats, scaled as the model was trained")
    path, file = path_of(scheduler_or_path), Path(file)
    own, other = images[:-held_out].float(), images[-held_out:].float()
    torch.manual_seed(seed)
    net = NoiseEstimator(images.shape[1], width)
    config = _config(images_seen, batch_size, seed)
    settings = {"images_seen": images_seen, "width": width, "batch_size": batch_size, "seed": seed}
    made_of = recipe(images, path, **settings)
    part = file.with_name(f"{file.name}.{made_of}.part")
    train(net, estimator_loss(own, path), len(own), config, part)
    net = net.to(torch.bfloat16).to(best_device(), torch.float32)  # as the file keeps it
    estimator = LevelEstimator(net.eval(), path, _calibration(net, other, path, seed), made_of)
    estimator.save(file)
    for left in file.parent.glob(f"{glob.escape(file.name)}.*.part"):  # of other images, too
        left.unlink(missing_ok=True)
    return estimator


def _calibration(
    net: NoiseEstimator, images: Tensor, path: str, seed: int, draws: int = 2000
) -> dict[str, list[float]]:
    gen = generator(seed, 7)
    which = torch.randint(len(images), (draws,), generator=gen)
    t = T_MIN + (1 - 2 * T_MIN) * torch.rand(draws, generator=gen)
    states = add_noise(images[which], torch.randn(images[which].shape, generator=gen), t, path)
    found = calibration(net, states, t)
    return {name: values.tolist() for name, values in found.items() if name != "pit"}
