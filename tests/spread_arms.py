"""Made-up arms whose distance from the real images is known to grow with one number."""

import numpy as np
import torch

from companion.experiments.spaces import Features

_FIRST = torch.randn(400, 3, generator=torch.Generator().manual_seed(9))
REAL = Features(_FIRST, _FIRST[:, :2])


def row(scale, seed=0):
    """An arm of 100 images whose features are spread `scale` times as far as the real ones."""
    features = scale * torch.randn(100, 3, generator=torch.Generator().manual_seed(seed))
    seeds = np.arange(100)
    found = {"features": features.numpy(), "second": features[:, :2].numpy()}
    return found | {"seeds": seeds, "labels": seeds % 2}
