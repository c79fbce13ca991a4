"""Class labels that a network has."""

import torch
from torch import Tensor


def check_range(labels: Tensor, classes: int) -> None:
    """Raise ValueError unless labels (B,) are whole numbers from 0 to classes - 1.

    A network without classes has the label 0."""
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"labels must be a tensor (B,), such as torch.tensor([3, 5]), not {labels!r}"
        )
    if labels.ndim != 1 or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"labels must be int64 of shape (B,), not {labels.dtype} of {tuple(labels.shape)}"
        )
    highest = max(classes - 1, 0)
    if len(labels) and not 0 <= labels.min() <= labels.max() <= highest:
        raise ValueError(
            f"labels {int(labels.min())} to {int(labels.max())} for a network of {classes} "
            f"classes: they must be 0 to {highest}"
        )
