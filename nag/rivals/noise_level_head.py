"""The head of noise level correction: by what part the noise of a state exceeds its nominal level,
from a frozen DiT's tokens.

Contract: x is a state (B, C, H, W), t a number or (B,), y (B,) labels of the denoiser; r (B,) is
such that the state's noise has the level sigma_t (1 + r) (Abuduweili et al., TMLR 2025)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nag.ddpm import discretise
from nag.estimator import scaled_log
from nag.interpolant import add_noise
from nag.models import BatchLoss, DiT

ETA = 0.5  # training scales the noise by 1 + eta, eta uniform in [-ETA, ETA]


class LevelHead(nn.Module):
    """r_theta(x, t, y) -> (B,) from the tokens after the first `depth` blocks of a frozen denoiser;
    r = 0 before training.

    The denoiser is no part of its parameters or state_dict, but moves with it to a device. What is
    pooled are the mean and the log energy of learned filters of the tokens; the denoiser's
    embedding of t and y is added to them."""

    def __init__(self, denoiser: DiT, depth: int = 1, hidden: int = 128):
        super().__init__()
        self.frozen = (denoiser.eval(),)  # in a tuple, so that it is no submodule
        self.depth, width = depth, denoiser.config.width
        self.filters = nn.Linear(width, hidden)
        self.head = nn.Sequential(
            nn.Linear(2 * hidden + width, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def _apply(self, fn: Callable, recurse: bool = True) -> "LevelHead":
        self.frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def features(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, D) after the first blocks and the embedding (B, D) of t (B,) and y (B,)."""
        net = self.frozen[0]
        tokens, c = net.embed(x, t, y)
        for block in net.blocks[: self.depth]:
            tokens = block(tokens, c)
        return tokens, c

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        with torch.autocast(
            x.device.type, enabled=False
        ):  # a correction is a few per cent, bf16's rounding 0.4
            tokens, c = self.features(x.float(), t, y)
            filtered = self.filters(tokens)  # (B, N, H)
            pooled = torch.cat(
                [
                    filtered.mean(1),
                    scaled_log(filtered.square().mean(1)),
                    F.layer_norm(c, c.shape[1:]),
                ],
                dim=1,
            )
            return self.head(pooled).squeeze(1)


def level_loss(images: Tensor, labels: Tensor, path: str = "linear") -> BatchLoss:
    """Squared error of 1 + r against the size of the noise, of images (N, C, H, W) and labels (N,)
    (Abuduweili et al., 2025).

    The state is alpha x_0 + sigma (1 + eta) eps, the size ||(1 + eta) eps|| / sqrt(n) for n numbers
    an image. t is uniform; on the path "ddpm" it takes that path's 1000 levels."""

    def loss(head: nn.Module, index: Tensor, gen: torch.Generator) -> Tensor:
        device = next(head.parameters()).device
        x0, y, count = images[index], labels[index], len(index)
        t, eps = torch.rand(count, generator=gen), torch.randn(x0.shape, generator=gen)
        eta = ETA * (2 * torch.rand(count, generator=gen) - 1)
        noise = (1 + eta).view(-1, *[1] * (x0.ndim - 1)) * eps
        t = discretise(t) if path == "ddpm" else t
        x0, y, t, noise = (a.to(device) for a in (x0, y, t, noise))
        size = noise.flatten(1).norm(dim=1) / math.sqrt(x0[0].numel())
        return (1 + head(add_noise(x0, noise, t, path), t, y) - size).square().mean()

    return loss
