"""Every guidance is one formula: d = f(x,t,c) + sum_k w_k(t) (f(x,t,c) - f_k), with a named
negative f_k.

Classifier-based NAG alone adds a gradient to the score instead. Shapes: x (B, C, H, W), t a number
or (B,), labels (B,). A network is any callable net(x, t, y, drop_noise) with `config`. Weights on
differences sum to one, so mixing v, eps, x0 or scores is the same; the sum is taken in float32."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nag.ddpm import learns_variance
from nag.interpolant import convert, from_score
from nag.support.device import autocast, resolve_precision

Weight = float | Callable[[float], float]


@dataclass(frozen=True)
class Term:
    """One guidance term: its weight, its negative f_k, and where it acts.

    The negative is the network (or `net`, another one) with its class and/or noise condition
    dropped; with a `gradient` (x, t) -> (B, C, H, W) there is none, and the weighted gradient is
    added to the score. `interval` is the closed range of t in [0, 1] in which it acts; `channels`
    the number of leading channels guided, None for all."""

    name: str
    weight: Weight
    drop_class: bool = False
    drop_noise: bool = False
    net: Callable | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    gradient: Callable | None = None

    def __post_init__(self):
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"{self.name}: interval {self.interval} must satisfy 0 <= low <= high <= 1"
            )

    def at(self, t: float) -> float:
        """The weight at t: zero outside the interval."""
        if not self.interval[0] <= t <= self.interval[1]:
            return 0.0
        return float(self.weight(t) if callable(self.weight) else self.weight)


def noise_awareness(weight: Weight, **where) -> Term:
    """Classifier-free NAG (the paper's method): the negative is the same network with its noise
    condition dropped.
    """
    return Term("nag", weight, drop_noise=True, **where)


def classifier_noise_awareness(
    weight: Weight,
    log_prob_gradient: Callable,
    interval: tuple[float, float] = (0.0, 0.95),
    **where,
) -> Term:
    """Classifier-based NAG (the paper, Sec. 4): adds w grad_x log g_phi(t | x), given as
    log_prob_gradient(x, t).

    The interval ends below 1, since a change of score is an unbounded change of v at pure noise.
    """
    return Term("nag-classifier", weight, gradient=log_prob_gradient, interval=interval, **where)


def classifier_free(scale: float, **where) -> Term:
    """Classifier-free guidance (Ho & Salimans, 2022); `scale` as in DiT and SiT, 1 is no guidance."""
    return Term("cfg", scale - 1, drop_class=True, **where)


def domain(scale: float, pretrained: Callable, **where) -> Term:
    """Domain Guidance (Zhong et al., 2025): the negative is the pre-trained network with its class
    dropped.
    """
    return Term("dog", scale - 1, drop_class=True, net=pretrained, **where)


def autoguidance(scale: float, weaker: Callable, **where) -> Term:
    """Autoguidance (Karras et al., 2024): the negative is a weaker network under the same
    conditions.
    """
    return Term("autoguidance", scale - 1, net=weaker, **where)


def _check_times(t: Tensor, terms: Sequence[Term]) -> None:
    """With a time for each sample, no term may depend on which others are in the batch; raises
    ValueError.
    """
    low, high = float(t.min()), float(t.max())
    for term in terms:
        if low < high and (
            callable(term.weight) or any(low < edge < high for edge in term.interval)
        ):
            raise ValueError(
                f"{term.name}: its weight changes within the batch's times {low:.3g} to {high:.3g}, so an image "
                "would depend on its batch: use a constant weight over all of them, or one time for all"
            )


@dataclass
class GuidedField:
    """A velocity field field(x, t) -> v for samplers, made of a network, labels and guidance terms.

    Terms whose weight is zero at t are not evaluated; what is left runs as one batch for each
    network. `nfe` counts network evaluations per image so far, `calls` the calls. x may be float64;
    the network sees float32, or bf16 by autocast. For a network that learns its variance,
    `fraction` (B, C, H, W) in about [0, 1] is that of the last call, noise level and class given
    (DiT's range, see nag.ddpm). Where t is (B,), the weights must be the same for all. Raises
    ValueError for a second network of another path."""

    net: Callable
    labels: Tensor
    terms: Sequence[Term] = ()
    precision: str = "fp32"
    nfe: int = field(default=0, init=False)
    calls: int = field(default=0, init=False)
    fraction: Tensor | None = field(default=None, init=False)

    def __post_init__(self):
        for term in self.terms:
            if self._negative(term).config.path != self.net.config.path:
                raise ValueError(
                    f"{term.name}: its network is of the path {term.net.config.path!r}, the guided one of "
                    f"{self.net.config.path!r}: both must be of one path"
                )

    def _negative(self, term: Term) -> Callable:
        return self.net if term.net is None else term.net

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The guided prediction in the network's own terms (v, eps or x0), float32 (B, C, H, W)."""
        kind, path = self.net.config.prediction, self.net.config.path
        place = float(t.mean()) if isinstance(t, Tensor) else t
        active = [(term, w) for term in self.terms if (w := term.at(place)) != 0]
        if isinstance(t, Tensor) and t.ndim:
            _check_times(t, self.terms)
        branches = [(self.net, False, False)] + [
            (self._negative(term), term.drop_class, term.drop_noise)
            for term, _ in active
            if not term.gradient
        ]
        unique = list(dict.fromkeys(branches))
        outputs = {}
        for net in dict.fromkeys(branch[0] for branch in unique):
            mine = [branch for branch in unique if branch[0] is net]
            found = self._evaluate(net, x, t, mine)
            if net.config.prediction != kind:
                found = [
                    convert(f, x.float(), t, net.config.prediction, kind, net.config.path)
                    for f in found
                ]
            outputs.update(zip(mine, found, strict=True))
        self.nfe, self.calls = self.nfe + len(unique), self.calls + 1
        plain = guided = outputs[branches[0]]
        for term, weight in active:
            if term.gradient:
                difference = weight * from_score(term.gradient(x.float(), t), t, kind, path)
            else:
                difference = weight * (
                    plain - outputs[self._negative(term), term.drop_class, term.drop_noise]
                )
            if term.channels is not None:
                difference[:, term.channels :] = 0
            guided = guided + difference
        return guided

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        config = self.net.config
        return convert(self.predict(x, t).to(x.dtype), x, t, config.prediction, "v", config.path)

    @torch.inference_mode()
    def _evaluate(
        self, net: Callable, x: Tensor, t: float | Tensor, branches: list
    ) -> list[Tensor]:
        n, size = len(branches), len(x)
        labels = [
            torch.full_like(self.labels, net.config.classes) if drop else self.labels
            for _, drop, _ in branches
        ]
        drops = torch.tensor([drop for *_, drop in branches], device=x.device).repeat_interleave(
            size
        )
        times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(size).repeat(n)
        options = {"full": True} if learns_variance(net.config) else {}
        with autocast(x.device, resolve_precision(self.precision, x.device)):
            out = net(
                x.float().repeat(n, 1, 1, 1), times, torch.cat(labels), drops, **options
            )  # (n B, C or 2 C, H, W)
        pred, variance = out.float().tensor_split([x.shape[1]], dim=1)
        if options and branches[0] == (self.net, False, False):
            self.fraction = (variance[:size] + 1) / 2
        return list(pred.chunk(n))
