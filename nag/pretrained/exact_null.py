"""A null branch that is the score of the pooled noise levels, grad log p(x), instead of what
noise-condition dropout learns.

Dropout regresses the network's target without its noise level and so learns its mean over p(t|x).
NAG then takes that for a prediction at the sampler's t (arXiv 2510.12497, Sec. 4). What its formula
asks for is s(x) = grad log p(x), with p(x) = int p(t) p(x|t) dt. Denoising score matching over all
levels learns it:

    s(x) = E[-eps / sigma_t | x],   the minimiser of E |n(x) + eps / sigma_t|^2

Weights that depend on x alone leave the minimiser as it is, so the error is measured in units of
the noise that x seems to have: a level r(x), any function of x such as an estimator's E[t | x], is
held fixed. The branch h(x) is read at that level,

    n(x) = the score that the prediction h(x) is at the level r(x),

and trained by |sigma_r (n(x) + eps / sigma_t)|^2. Where p(t|x) is narrow and r(x) its mean, s(x) is
close to s(x|t = r(x)), so that a branch learned by dropout, read so, is a good start."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nag.ddpm import discretise
from nag.guidance import Term, Weight
from nag.interpolant import add_noise, coefficients, convert
from nag.losses import check_labels
from nag.models import BatchLoss
from nag.support.rng import generator

Level = Callable[[Tensor], Tensor]  # states x (B, C, H, W) to noise levels (B,) in (0, 1)
FLOOR = 0.005  # the least t of the pooled levels: sigma_t divides


def fixed(level: Level) -> Level:
    """The level without a gradient, in full precision."""

    @torch.no_grad()
    def fixed(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return level(x.float())

    return fixed


class ScoreAtOwnLevel(nn.Module):
    """A network whose prediction is a score: that of `net` at the level r = level(x) that a state
    looks to have, whatever t the sampler is at.

    With `drop_noise` it is the branch without noise level, read at r; without, s(x|t = r), which
    needs no null condition. forward(x, t, y, drop_noise) -> (B, C, H, W) looks at x and y alone."""

    def __init__(self, net: Any, level: Level, drop_noise: bool = True):
        super().__init__()
        self.net, self.drop_noise = net, drop_noise
        self.level = torch.compiler.disable(fixed(level))
        made = {"prediction": "score", "learn_sigma": False}
        self.config = net.config.model_copy(update=made)

    def forward(
        self, x: Tensor, t: Tensor | None, y: Tensor, drop_noise: Tensor | None = None
    ) -> Tensor:
        r, c = self.level(x), self.net.config
        drop = torch.full_like(y, self.drop_noise, dtype=torch.bool)
        return convert(self.net(x, r, y, drop).float(), x, r, c.prediction, "score", c.path)


def exact_noise_awareness(
    weight: Weight, pooled: Any, interval: tuple[float, float] = (0.0, 0.95), **where: Any
) -> Term:
    """NAG in the score form, s(x|t) + w (s(x|t) - s(x)), with a network `pooled` that gives s(x),
    such as a `ScoreAtOwnLevel`.

    The interval ends below 1, since a change of score is an unbounded change of v at pure noise."""
    return Term("nag-exact", weight, drop_noise=True, net=pooled, interval=interval, **where)


def _states(
    path: str, x0: Tensor, gen: torch.Generator, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """t (B,), one draw in each of B strata of [floor, 1], noise, and the states made of them."""
    u = (torch.arange(len(x0)) + torch.rand(len(x0), generator=gen)) / len(x0)
    t = floor + (1 - floor) * u
    t = discretise(t) if path == "ddpm" else t
    eps = torch.randn(x0.shape, generator=gen)
    return t, eps, add_noise(x0, eps, t, path)


def pooled_error(branch: Any, level: Level, x: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
    """|sigma_r (n(x) + eps / sigma_t)|^2 (B,), a mean over each image, of states x of noise eps at
    t, r = level(x).
    """
    c = branch.config
    r = level(x)
    drop = torch.ones_like(y, dtype=torch.bool)
    seen = branch(x, r, y, drop).float()
    noise = convert(seen, x, r, c.prediction, "eps", c.path)
    ratio = coefficients(c.path, r, x).sigma / coefficients(c.path, t, x).sigma
    return (noise - ratio * eps).square().flatten(1).mean(1)


def pooled_score_loss(
    images: Tensor, labels: Tensor, level: Level, class_dropout: float = 0.1, floor: float = FLOOR
) -> BatchLoss:
    """The mean of `pooled_error` over images (N, C, H, W), labels (N,) and levels in [floor, 1].

    The branch is a DiT without its noise level; `level` gets no gradient and is on its device. On
    the path "ddpm" t takes that path's 1000 levels. Raises ValueError for a floor outside (0, 1),
    and the loss what `check_labels` raises."""
    if not 0 < floor < 1:
        raise ValueError(f"the least noise level is {floor}: give one above 0 and below 1")

    def loss(branch: nn.Module, index: Tensor, gen: torch.Generator) -> Tensor:
        net: Any = branch
        check_labels(labels[index], net.config, class_dropout)
        device = next(branch.parameters()).device
        x0 = images[index]
        drop = torch.rand(len(index), generator=gen) < class_dropout
        y = torch.where(drop, net.config.classes, labels[index])
        t, eps, x = _states(net.config.path, x0, gen, floor)
        x, t, eps, y = (a.to(device) for a in (x, t, eps, y))
        return pooled_error(net, fixed(level), x, t, eps, y).mean()

    return loss


@torch.inference_mode()
def pooled_errors(
    branch: Any,
    level: Level,
    images: Tensor,
    labels: Tensor,
    seed: int,
    floor: float = FLOOR,
    batch: int = 250,
) -> tuple[Tensor, Tensor]:
    """Times t (N,) and `pooled_error` (N,) on held-out images (N, C, H, W) and labels (N,); equal
    seeds give the same states, so that branches are compared in pairs.
    """
    gen, device = generator(seed), next(branch.parameters()).device
    order = torch.randperm(len(images), generator=gen)
    t, eps, x = _states(branch.config.path, images[order], gen, floor)
    rows = torch.arange(len(images)).split(batch)
    parts = [[a[k].to(device) for a in (x, t, eps, labels[order])] for k in rows]
    return t, torch.cat([pooled_error(branch, level, *part).cpu() for part in parts])
