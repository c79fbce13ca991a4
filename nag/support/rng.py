"""Randomness by key: draw number i of an image or a training step is the same for any batch,
process or restart.
"""

from collections.abc import Sequence
from operator import index
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

SEEDS = 2**63  # files keep seeds as int64


def whole(seed: SupportsIndex) -> int:
    """The seed as an int; raises ValueError unless it is a whole number from 0 to 2^63 - 1."""
    number = index(seed) if hasattr(seed, "__index__") else -1
    if not 0 <= number < SEEDS:
        raise ValueError(f"a seed must be a whole number from 0 to 2^63 - 1, not {seed!r}")
    return number


def generator(*key: SupportsIndex) -> torch.Generator:
    """A CPU generator seeded by a tuple of seeds (`whole`), e.g. (seed, step)."""
    sequence = np.random.SeedSequence([whole(seed) for seed in key])
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


class ImageNoise:
    """One noise stream per image seed, as in EDM2 (Karras et al., 2024): `noise(shape)` draws (B,
    *shape) float32.

    Image i gets the same numbers whatever the other images of its batch are; draws are made on the
    CPU and moved."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.streams = [generator(seed) for seed in seeds]
        self.device = device

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g) for g in self.streams]).to(self.device)
