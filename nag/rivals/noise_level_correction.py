"""Noise level correction, a rival of noise guidance: a small head on a frozen denoiser says by what
part the noise of a state exceeds its nominal level (Abuduweili et al., TMLR 2025).

`noise_level_correction` makes the `adjust` of nag.rivals.corrected_ddim. x is a state (B, C, H, W),
t a number or (B,), y (B,) labels of the denoiser; r (B,) is such that the state's noise has the
level sigma_t (1 + r)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nag.ddpm import discretise
from nag.estimator import scaled_log
from nag.interpolant import PURE_NOISE, add_noise, coefficients, time_of_ratio
from nag.models import BatchLoss, DiT
from nag.rivals.corrected_ddim import Adjust, Step
from nag.support.labels import check_range

ETA = 0.5  # training scales the noise by 1 + eta, eta uniform in [-ETA, ETA]
STYLES = ("pred", "pred_partial")


def noise_level_correction(
    head: Callable[[Tensor, float], Tensor], style: str = "pred", path: str = "linear"
) -> Adjust:
    """Noise level correction: head(x, t) -> r (B,) says by what part the noise differs from t's.

    With rho = sigma/alpha, the noise level of x/alpha_t: x is taken for rho' = rho_t (1 + r), at
    time t(rho') and at that time's scale. The step goes to rho_s (1 + r) in the style "pred", to
    rho_s in "pred_partial"; the new state has the nominal scale alpha_s in both, as the head
    expects. No correction at pure noise, where rho is infinite. Raises ValueError for an unknown
    style. Of the official options, the rescaled eps and the clamped prior level are left out
    (Abuduweili et al., TMLR 2025)."""
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: choose one of {STYLES}")

    @torch.no_grad()
    def adjust(x: Tensor, t: float, s: float) -> Step:
        here = coefficients(path, t, x)
        if here.alpha < PURE_NOISE:
            return Step(x, t, s)
        excess = 1 + head(x, t)  # (B,)
        now = time_of_ratio(here.sigma / here.alpha * excess, path)
        x = coefficients(path, now, x).alpha / here.alpha * x
        if style == "pred_partial" or s == 0:
            return Step(x, now, s)
        there = coefficients(path, s, x)
        then = time_of_ratio(there.sigma / there.alpha * excess, path)
        scale = there.alpha / coefficients(path, then, x).alpha
        return Step(x, now, then, scale=scale)

    return adjust


class LevelHead(nn.Module):
    """r (B,) from what a frozen denoiser makes of a state in its first `depth` blocks.

    forward(tokens (B, N, width), condition (B, width)) as `first_tokens` gives them; r = 0 before
    training. What is pooled are the mean and the log energy of learned filters of the tokens; the
    denoiser's embedding of t and y is added to them."""

    def __init__(self, width: int, depth: int = 1, hidden: int = 128):
        super().__init__()
        self.depth = depth
        self.filters = nn.Linear(width, hidden)
        self.head = nn.Sequential(
            nn.Linear(2 * hidden + width, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        # A correction is a few per cent and bf16 rounds to 0.4, so no autocast.
        with torch.autocast(tokens.device.type, enabled=False):
            filtered = self.filters(tokens)  # (B, N, H)
            mean, energy = filtered.mean(1), scaled_log(filtered.square().mean(1))  # (B, H) each
            known = F.layer_norm(condition, condition.shape[1:])
            return self.head(torch.cat([mean, energy, known], dim=1)).squeeze(1)


@torch.no_grad()
def first_tokens(
    denoiser: DiT, depth: int, x: Tensor, t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, D) after the first blocks and the embedding (B, D) of t (B,) and y (B,)."""
    tokens, condition = denoiser.embed(x, t, y)
    for block in denoiser.blocks[:depth]:
        tokens = block(tokens, condition)
    return tokens, condition


def noise_excess(head: LevelHead, denoiser: DiT, x: Tensor, t: Tensor | float, y: Tensor) -> Tensor:
    """r_theta(x, t, y) (B,) of a head on its denoiser, in float32; both on x's device."""
    times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
    with torch.autocast(x.device.type, enabled=False):
        tokens, condition = first_tokens(denoiser, head.depth, x.float(), times, y)
    return head(tokens, condition)


def level_loss(denoiser: DiT, images: Tensor, labels: Tensor, path: str = "linear") -> BatchLoss:
    """Squared error of 1 + r against the size of the noise, of images (N, C, H, W), labels (N,).

        (1 + r_theta(x_t, t, y) - ||(1 + eta) eps|| / sqrt(n))^2

    for states alpha x_0 + sigma (1 + eta) eps of n numbers an image. t is uniform; on the path
    "ddpm" it takes that path's 1000 levels. The denoiser must be on the device of the head, which
    the loss is given (Abuduweili et al., TMLR 2025). Raises ValueError for labels that it does
    not have."""
    check_range(labels, denoiser.config.classes)

    def loss(head: LevelHead, index: Tensor, gen: torch.Generator) -> Tensor:
        device = next(head.parameters()).device
        x0, y, count = images[index], labels[index], len(index)
        t, eps = torch.rand(count, generator=gen), torch.randn(x0.shape, generator=gen)
        eta = ETA * (2 * torch.rand(count, generator=gen) - 1)
        noise = (1 + eta).view(-1, *[1] * (x0.ndim - 1)) * eps
        t = discretise(t) if path == "ddpm" else t
        x0, y, t, noise = (a.to(device) for a in (x0, y, t, noise))
        size = noise.flatten(1).norm(dim=1) / math.sqrt(x0[0].numel())  # (B,)
        excess = noise_excess(head, denoiser, add_noise(x0, noise, t, path), t, y)
        return (1 + excess - size).square().mean()

    return loss
