"""The noise-level estimator g_phi(t | x) as a full posterior over t, which measures the noise
shift (paper, Sec. 3).

Contract: x is a state (B, C, H, W), t = 1 noise and t = 0 data. The posterior is a mixture of
Normals in z = logit(t)."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    MixtureSameFamily,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
)
from torch.nn import functional as F

from nag.interpolant import add_noise
from nag.losses import data_digest
from nag.models import BatchLoss, Source

T_MIN = 1e-3  # training draws t from [T_MIN, 1 - T_MIN]: logit(t) is infinite at both ends
FLOOR = 1e-6  # of the local energy under its logarithm: the square of a negligible noise level
# Of z; at the lower end std(t) is 1e-3 t (1 - t), below any image's information about t.
LOG_STD = (-7.0, 1.0)


def scaled_log(energy: Tensor) -> Tensor:
    """Logarithm of an energy (any shape, >= 0), floored and brought to about [-3, 2]."""
    return ((energy + FLOOR).log() + 4) / 3


class NoiseEstimator(nn.Module):
    """Fully convolutional net from x (B, channels, H, W), H and W >= 4, to mixture parameters (B,
    components, 3).

    The last axis is (logit of the weight, mean, log std) in z = logit(t). The noise level is the
    energy of learned filters where the image is quiet; softmax attention over places learns where.
    Raises ValueError for another shape."""

    def __init__(self, channels: int = 1, width: int = 32, components: int = 3):
        super().__init__()
        self.channels, self.components = channels, components
        self.filters = nn.Conv2d(channels, width, 3, padding=1, padding_mode="reflect")
        self.context = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.SiLU())
        self.choice = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Sequential(
            nn.Linear(5 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 3 * components)
        )
        self.skip = nn.Linear(
            5 * width, 3 * components
        )  # log energy is nearly 2 log t; the head adds the rest

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"the noise estimator was built for {self.channels} channels and got a state of "
                "shape "
                f"{tuple(x.shape)}: pass (B, {self.channels}, H, W) or build it with the right "
                "`channels`"
            )
        # The instrument must be finer than what it measures: bf16 moves a pixel near 1 by up to
        # 0.002, so no autocast.
        with torch.autocast(x.device.type, enabled=False):
            energy = F.avg_pool2d(
                self.filters(x.to(self.skip.weight.dtype)).square(), 2
            )  # (B, width, H/2, W/2)
            level = scaled_log(energy)
            context = self.context(level)  # (B, 2 width, H/2, W/2)
            attention = self.choice(context).flatten(2).softmax(2)  # (B, width, places)
            quiet = scaled_log((attention * energy.flatten(2)).sum(2))
            pooled = [
                quiet,
                (attention * level.flatten(2)).sum(2),
                level.mean((2, 3)),
                context.mean((2, 3)),
            ]
            pooled = torch.cat(pooled, 1)  # (B, 5 width)
            return (self.head(pooled) + self.skip(pooled)).view(-1, self.components, 3)


def mixture(raw: Tensor) -> TransformedDistribution:
    """Distribution over t in (0, 1) from raw parameters (B, K, 3); batch shape (B,)."""
    logits, mean, log_std = (raw if raw.dtype == torch.float64 else raw.float()).unbind(-1)
    parts = Normal(mean, log_std.clamp(*LOG_STD).exp())
    return TransformedDistribution(
        MixtureSameFamily(Categorical(logits=logits), parts), SigmoidTransform()
    )


def posterior(net: Callable[[Tensor], Tensor], x: Tensor) -> TransformedDistribution:
    """g_phi(t | x) for states x (B, C, H, W): log_prob(t), cdf(t) and sample() for t in (0, 1),
    batch shape (B,).
    """
    return mixture(net(x))


def moments(dist: TransformedDistribution, nodes: int = 32) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of t, each (B,), by Gauss-Hermite quadrature of each Normal."""
    mixed = dist.base_dist
    assert isinstance(mixed, MixtureSameFamily)
    parts, weights = mixed.component_distribution, mixed.mixture_distribution.probs  # (B, K)
    assert isinstance(parts, Normal)
    place, mass = (
        torch.as_tensor(a).to(weights) for a in np.polynomial.hermite_e.hermegauss(nodes)
    )
    t = (parts.loc[..., None] + parts.scale[..., None] * place).sigmoid()  # (B, K, nodes)
    mass = weights[..., None] * mass / mass.sum()
    mean = (mass * t).sum((-2, -1))
    return mean, (mass * (t - mean[:, None, None]).square()).sum((-2, -1)).sqrt()


def posterior_mean(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """E[t | x] (B,), the paper's point estimate of a state's noise level."""
    return moments(posterior(net, x))[0]


def log_prob_gradient(net: Callable[[Tensor], Tensor], x: Tensor, t: Tensor | float) -> Tensor:
    """Gradient in x of log g_phi(t | x), of x's shape; t is () or (B,) in (0, 1) (for
    classifier-based NAG).
    """
    with torch.inference_mode(False), torch.enable_grad():  # callers may be in inference mode
        x, t = x.detach().clone().requires_grad_(), torch.as_tensor(t).to(x).clone()
        log_prob = posterior(net, x).log_prob(t)
        return torch.autograd.grad(log_prob.sum(), x)[0]


def estimator_loss(images: Tensor | Source, path: str = "linear") -> BatchLoss:
    """Mean negative log likelihood of t given x_t, of images (N, C, H, W) in [-1, 1] or a source of
    latents.

    t is uniform in [T_MIN, 1 - T_MIN], one draw in each of B strata: less gradient noise (Kingma et
    al., VDM, 2021)."""

    def loss(net: nn.Module, index: Tensor, gen: torch.Generator) -> Tensor:
        device = next(net.parameters()).device
        x0 = images(index, gen, slice(None)) if callable(images) else images[index]
        u = (torch.arange(len(index)) + torch.rand(len(index), generator=gen)) / len(index)
        t = T_MIN + (1 - 2 * T_MIN) * u
        eps = torch.randn(x0.shape, generator=gen)
        x0, t, eps = (a.to(device) for a in (x0, t, eps))
        return -posterior(net, add_noise(x0, eps, t, path)).log_prob(t).mean()

    loss.made_of = lambda: data_digest(images, [], (path,))  # type: ignore[attr-defined]
    return loss


@torch.no_grad()
def calibration(
    net: nn.Module, x_t: Tensor, t: Tensor, bins: Sequence[float] | int = 20, batch: int = 500
) -> dict[str, np.ndarray]:
    """How honest the posterior is on states x_t (N, C, H, W) of known noise levels t (N,) in (0,
    1).

    Arrays `pit` (N,), the cdf at the true t, uniform if calibrated; `level` and `coverage`, nominal
    and actual mass of central intervals; and per bin of t (edges or their number over [0, 1]; empty
    ones left out) `t`, `count`, `bias` (posterior mean - t), `bias_se` and `std`, the mean
    posterior std. Raises ValueError if lengths differ."""
    if len(x_t) != len(t):
        raise ValueError(f"got {len(x_t)} states and {len(t)} noise levels: pass one t per state")
    device = next(net.parameters()).device
    columns = []
    for x, true in zip(x_t.split(batch), t.split(batch), strict=True):
        dist, true = posterior(net, x.to(device)), true.to(device, torch.float32)
        columns.append(torch.stack([dist.cdf(true), *moments(dist)]).cpu().double())
    pit, mean, std = torch.cat(columns, 1).numpy()
    truth = t.cpu().double().numpy()
    edges = np.linspace(0, 1, bins + 1) if isinstance(bins, int) else np.asarray(bins)
    place = np.digitize(truth, edges[1:-1])
    groups = [np.flatnonzero(place == k) for k in range(len(edges) - 1)]
    groups = [g for g in groups if len(g) > 1]
    error, level = mean - truth, np.linspace(0.05, 0.95, 19)
    per_bin = {
        "t": [truth[g].mean() for g in groups],
        "count": [len(g) for g in groups],
        "bias": [error[g].mean() for g in groups],
        "bias_se": [error[g].std(ddof=1) / math.sqrt(len(g)) for g in groups],
        "std": [std[g].mean() for g in groups],
    }
    coverage = (np.abs(2 * pit - 1)[:, None] <= level).mean(0)
    return {"pit": pit, "level": level, "coverage": coverage} | {
        k: np.array(v) for k, v in per_bin.items()
    }
