"""Randomness by key: draw number i of an image or a training step is the same for any batch,
process or restart.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator(*key: int) -> torch.Generator:
    """A CPU generator seeded by a tuple of non-negative integers, e.g. (seed, step)."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    )


class ImageNoise:
    """One noise stream per image seed, as in EDM2 (Karras et al., 2024): `noise(shape)` draws (B,
    *shape) float32.

    Image i gets the same numbers whatever the other images of its batch are; draws are made on the
    CPU and moved."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.streams = [generator(int(seed)) for seed in seeds]
        self.device = device

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g) for g in self.streams]).to(self.device)
