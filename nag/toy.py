"""The exact toy: a Gaussian mixture whose every diffusion quantity is a closed form, nothing
learned or guessed.

Contract: float64; x is (..., d), t broadcasts against x.shape[:-1]; K components; a prior p(t)
lives on T grid times. All of it follows from p(x|t) = sum_k w_k N(x; alpha_t mu_k, alpha_t^2
Sigma_k + sigma_t^2 I)."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from nag.interpolant import PATHS, PREDICTIONS, add_noise
from nag.support.uncertainty import Interval, interval

CELLS = (
    2**17
)  # numbers in the largest intermediate array: 1 MB, which stays in the processor's cache


class Mixture(NamedTuple):
    """Data distribution and path; Sigma_k = axes_k diag(variances_k) axes_k^T. Build it with
    `mixture`.
    """

    weights: Tensor  # (K,)
    means: Tensor  # (K, d)
    variances: Tensor  # (K, d)
    axes: Tensor  # (K, d, d), one principal axis a column
    path: str


class Prior(NamedTuple):
    """p(t) on a grid: times (T,) in (0, 1) and weights (T,) that sum to one."""

    times: Tensor
    weights: Tensor


def mixture(weights: Tensor, means: Tensor, covariances: Tensor, path: str = "linear") -> Mixture:
    """A mixture from weights (K,), means (K, d) and covariances (K, d, d), or variances (K,) of
    isotropic components.

    Weights are normalised. Raises ValueError for an unknown path, unlike shapes, or a covariance
    that is not positive."""
    weights, means, covariances = (
        torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances)
    )
    if path not in PATHS:
        raise ValueError(f"unknown path {path!r}: choose one of {sorted(PATHS)}")
    if means.ndim != 2 or len(weights) != len(means) or len(covariances) != len(means):
        raise ValueError(
            f"got weights {tuple(weights.shape)}, means {tuple(means.shape)}, covariances "
            f"{tuple(covariances.shape)}: give (K,), (K, d) and (K, d, d) or (K,)"
        )
    if covariances.ndim == 1:
        covariances = covariances[:, None, None] * torch.eye(means.shape[1], dtype=torch.float64)
    variances, axes = torch.linalg.eigh(covariances)
    if not (bool((variances > 0).all()) and bool((weights > 0).all())):
        raise ValueError("weights and the eigenvalues of every covariance must be positive")
    return Mixture(weights / weights.sum(), means, variances, axes, path)


def ring(
    dims: int = 32,
    components: int = 5,
    radius: float = 1.0,
    spread: float = 0.15,
    floor: float = 0.05,
    path: str = "linear",
) -> Mixture:
    """An image-like example: unequal blobs on a circle in the first two of `dims` >= 2 axes, nearly
    flat in the others.

    `spread` and `floor` are the standard deviations in and off that plane. Raises ValueError for
    dims < 2."""
    if dims < 2:
        raise ValueError(f"the ring lies in a plane: give dims >= 2, not {dims}")
    angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
    means = torch.zeros(components, dims, dtype=torch.float64)
    means[:, 0], means[:, 1] = radius * angle.cos(), radius * angle.sin()
    variances = torch.full((dims,), floor**2, dtype=torch.float64)
    variances[:2] = spread**2
    return mixture(
        torch.arange(components) + 1.0, means, variances.diag().expand(components, -1, -1), path
    )


def sample(toy: Mixture, n: int, gen: torch.Generator) -> Tensor:
    """Exact data x_0 (n, d)."""
    k = torch.multinomial(toy.weights, n, replacement=True, generator=gen)
    z = torch.randn(n, toy.means.shape[1], generator=gen, dtype=torch.float64)
    return toy.means[k] + torch.einsum("nde,ne->nd", toy.axes[k], toy.variances[k].sqrt() * z)


def forward(toy: Mixture, n: int, t: Tensor | float, gen: torch.Generator) -> Tensor:
    """Exact forward states x_t (n, d) of fresh data; t is () or (n,) in [0, 1]."""
    x0 = sample(toy, n, gen)
    return add_noise(x0, torch.randn(x0.shape, generator=gen, dtype=torch.float64), t, toy.path)


def _components(
    toy: Mixture, x: Tensor, t: Tensor | float, kind: str | None
) -> tuple[Tensor, Tensor]:
    """log w_k p(x|t,k) (..., K), and each component's own prediction (..., K, d) along its
    principal axes.
    """
    c = PATHS[toy.path](torch.as_tensor(t, dtype=torch.float64))
    alpha, sigma, d_alpha, d_sigma = (a[..., None, None] for a in c)
    m = torch.einsum("kd,kde->ke", toy.means, toy.axes)
    precision = 1 / (alpha**2 * toy.variances + sigma**2)
    residual = torch.einsum("...d,kde->...ke", x.double(), toy.axes) - alpha * m
    pull = residual * precision
    log_joint = toy.weights.log() + 0.5 * (
        (precision / (2 * math.pi)).log().sum(-1) - (residual * pull).sum(-1)
    )
    # eps = sigma pull and x0 = m + alpha variance pull: unlike a conversion from the score, finite
    # at t = 0 and t = 1.
    if kind in (None, "score"):
        return log_joint, -pull
    if kind == "eps":
        return log_joint, sigma * pull
    gain = alpha * toy.variances
    if kind == "x0":
        return log_joint, m + gain * pull
    return log_joint, d_alpha * m + (d_alpha * gain + d_sigma * sigma) * pull


def _check(kind: str) -> None:
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction {kind!r}: choose one of {PREDICTIONS}")


def log_prob(toy: Mixture, x: Tensor, t: Tensor | float) -> Tensor:
    """log p(x|t) (...,) of states x (..., d)."""
    return _components(toy, x, t, None)[0].logsumexp(-1)


def predict(toy: Mixture, x: Tensor, t: Tensor | float, kind: str) -> Tensor:
    """What a perfect network predicts at x (..., d): E[v|x,t], E[eps|x,t], E[x_0|x,t] or the score,
    by name.

    Raises ValueError for an unknown name.
    """
    _check(kind)
    log_joint, own = _components(toy, x, t, kind)
    return torch.einsum("...k,...ke,kde->...d", log_joint.softmax(-1), own, toy.axes)


def score(toy: Mixture, x: Tensor, t: Tensor | float) -> Tensor:
    """grad_x log p(x|t) (..., d)."""
    return predict(toy, x, t, "score")


def velocity(toy: Mixture, x: Tensor, t: Tensor | float) -> Tensor:
    """The probability-flow velocity E[v|x,t] (..., d); `functools.partial(velocity, toy)` is a
    sampler's field.
    """
    return predict(toy, x, t, "v")


def _bell(t: Tensor) -> Tensor:
    return (-0.5 * t.logit() ** 2).exp() / (t * (1 - t))


PRIORS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "logit-normal": _bell,  # logit t ~ N(0, 1) (Esser et al., 2024)
    "log-uniform": torch.reciprocal,  # as many small t in every octave
}


def time_prior(name: str = "uniform", nodes: int = 128, reach: float = 7.0) -> Prior:
    """A named density p(t) on nodes evenly spaced in logit t from -reach to reach, dense at both
    ends of (0, 1).

    Raises ValueError for an unknown name.
    """
    if name not in PRIORS:
        raise ValueError(f"unknown prior {name!r}: choose one of {sorted(PRIORS)}")
    t = torch.linspace(-reach, reach, nodes, dtype=torch.float64).sigmoid()
    mass = PRIORS[name](t) * t * (1 - t)  # dt = t (1 - t) d logit
    return Prior(t, mass / mass.sum())


def _rows(toy: Mixture, x: Tensor, prior: Prior) -> tuple[Tensor, ...]:
    return x.split(max(1, CELLS // (len(prior.times) * toy.means.numel())))


def log_joint(toy: Mixture, x: Tensor, prior: Prior) -> Tensor:
    """log p(t) p(x|t) (B, T) of states x (B, d)."""
    return (
        torch.cat([log_prob(toy, rows[:, None], prior.times) for rows in _rows(toy, x, prior)])
        + prior.weights.log()
    )


def posterior(toy: Mixture, x: Tensor, prior: Prior) -> Tensor:
    """Exact p(t|x) (B, T), rows that sum to one: what the paper's g_phi estimates."""
    return log_joint(toy, x, prior).softmax(-1)


def posterior_mean(toy: Mixture, x: Tensor, prior: Prior) -> Tensor:
    """Exact E[t|x] (B,)."""
    return posterior(toy, x, prior) @ prior.times


def average(toy: Mixture, x: Tensor, prior: Prior, kind: str) -> Tensor:
    """The posterior average E_{t|x}[predict(x, t, kind)] (B, d).

    For "v", "eps" or "x0" this is what a network trained on that target with its noise condition
    dropped converges to, because least squares learns the conditional mean. For "score" it is grad
    log p(x). Raises ValueError as `predict`."""
    _check(kind)
    out = []
    for rows in _rows(toy, x, prior):
        log_part, own = _components(
            toy, rows[:, None], prior.times, kind
        )  # (b, T, K), (b, T, K, d)
        share = (log_part + prior.weights.log()[:, None]).flatten(1).softmax(-1).view_as(log_part)
        out.append(torch.einsum("btk,btke,kde->bd", share, own, toy.axes))
    return torch.cat(out)


def unconditional_score(toy: Mixture, x: Tensor, prior: Prior) -> Tensor:
    """Exact noise-unconditional score grad log sum_t p(t) p(x|t) (B, d) (paper, Sec. 3)."""
    return average(toy, x, prior, "score")


def posterior_gradient(toy: Mixture, x: Tensor, t: Tensor | float, prior: Prior) -> Tensor:
    """grad_x log p(t|x) (B, d) at t, () or (B,): Bayes' rule makes it score(x, t) -
    unconditional_score(x).
    """
    return score(toy, x, t) - unconditional_score(toy, x, prior)


Field = Callable[[Tensor, Tensor], Tensor]  # f(x (n, d), t (n,)) -> (n, d)


class ToyNetwork:
    """Two fields as one network on x (B, 1, 1, d) for `nag.guidance`; see `as_network`."""

    def __init__(self, conditional: Field, dropped: Field, path: str):
        self.conditional, self.dropped = conditional, dropped
        self.config = SimpleNamespace(prediction="v", path=path, classes=0)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, drop_noise: Tensor) -> Tensor:
        flat, t, out = x.double().flatten(1), t.double(), torch.empty_like(x).flatten(1)
        for rows, branch in ((~drop_noise, self.conditional), (drop_noise, self.dropped)):
            if rows.any():
                out[rows] = branch(flat[rows], t[rows]).to(out)
        return out.view_as(x)


def as_network(conditional: Field, dropped: Field, path: str = "linear") -> ToyNetwork:
    """Two velocity fields as one network on x (B, 1, 1, d): with the noise level and without it."""
    return ToyNetwork(conditional, dropped, path)


def energy_distance(x: Tensor, y: Tensor, resamples: int = 200, seed: int = 0) -> Interval:
    """Energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| of x (N, d) to y (M, d), unbiased, zero only for
    equal laws.

    {"value", "low", "high"}: 95 % bootstrap interval over both sets (Szekely and Rizzo, 2013).
    """
    gen = torch.Generator().manual_seed(seed)
    x, y = x.double(), y.double()

    def counts(
        n: int,
    ) -> Tensor:  # how often each row was drawn; the first line is the sample itself
        draws = torch.multinomial(
            torch.ones(n), n * resamples, replacement=True, generator=gen
        ).view(resamples, n)
        drawn = torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(
            1, draws, torch.ones(draws.shape).double()
        )
        return torch.cat([torch.ones(1, n, dtype=torch.float64), drawn])

    def within(
        c: Tensor, a: Tensor
    ) -> Tensor:  # a row paired with its own copy says nothing about E|X-X'|
        pairs = c.sum(1) ** 2 - c.square().sum(1)
        return ((c @ torch.cdist(a, a)) * c).sum(1) / pairs

    cx, cy = counts(len(x)), counts(len(y))
    across = ((cx @ torch.cdist(x, y)) * cy).sum(1) / (len(x) * len(y))
    value = 2 * across - within(cx, x) - within(cy, y)
    return interval(value[0].item(), value[1:].numpy())
