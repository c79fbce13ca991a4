"""Where a monotonous function crosses a value, for whole tensors at once."""

from collections.abc import Callable

import torch
from torch import Tensor


def bisect(
    below: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, halvings: int = 50
) -> tuple[Tensor, Tensor]:
    """The bracket (low, high) of the root after so many halvings of [low, high], any shape.

    `below(x)` says elementwise whether the root lies between x and `high`; `high` may be the
    smaller end. Beyond the ends the bracket shrinks to the nearer one, which stays exact."""
    for _ in range(halvings):
        middle = (low + high) / 2
        is_below = below(middle)
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return low, high
