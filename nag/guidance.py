"""Every guidance is one formula, a sum of directions away from named negatives f_k:

    d = f(x, t, c) + sum_k w_k(t) (f(x, t, c) - f_k)                      (`guide`)

NAG drops the noise level (f_k = f(x, -, c)), CFG the class, Domain Guidance takes the pre-trained
network. NAG + CFG is the sum of both terms (arXiv 2510.12497, Sec. 4). Classifier-based NAG adds a
gradient to the score instead.

Shapes: x (B, C, H, W), t a number or (B,), labels (B,). The weights of f and all f_k sum to one, so
mixing v, eps, x0 or scores is the same; the sum is taken in float32."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nag.ddpm import Prediction, learns_variance, network_output
from nag.interpolant import convert, from_score
from nag.support.device import autocast, resolve_precision
from nag.support.labels import check_range

Weight = float | Callable[[float], float]


class Network(Protocol):
    """What is guided: net(x, t (B,), y (B,), drop_noise (B,)) -> (B, C, H, W), t = 1 noise.

    `config` says `prediction` ("v", "eps" or "x0"), `path` and `classes`, the index of no class. A
    network that learns its variance takes full=True too (nag.ddpm)."""

    @property
    def config(self) -> Any: ...

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, drop_noise: Tensor, /) -> Tensor: ...


class Branch(NamedTuple):
    """One evaluation of a network: which of its two conditions are dropped."""

    net: Network
    drop_class: bool = False
    drop_noise: bool = False


@dataclass(frozen=True)
class Term:
    """One guidance term: its weight, its negative f_k, and where it acts.

    The negative is the network (or `net`, another one) with its class and/or noise condition
    dropped; with a `gradient` (x, t) -> (B, C, H, W) there is none, and the weighted gradient is
    added to the score. `interval` is the closed range of t in [0, 1] in which it acts; `channels`
    the number of leading channels guided, None for all. Raises ValueError for another interval or a
    weight that is not finite."""

    name: str
    weight: Weight
    drop_class: bool = False
    drop_noise: bool = False
    net: Network | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    gradient: Callable[[Tensor, float | Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not callable(self.weight) and not math.isfinite(float(self.weight)):
            raise ValueError(f"{self.name}: its weight is {self.weight}: give a finite number")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"{self.name}: interval {self.interval} must satisfy 0 <= low <= high <= 1"
            )

    def at(self, t: float) -> float:
        """The weight at t: zero outside the interval."""
        if not self.interval[0] <= t <= self.interval[1]:
            return 0.0
        weight = float(self.weight(t) if callable(self.weight) else self.weight)
        if not math.isfinite(weight):
            raise ValueError(f"{self.name}: its weight at t = {t:g} is {weight}: make it finite")
        return weight

    def negative(self, net: Network) -> Branch:
        """The evaluation that gives f_k when `net` is guided."""
        return Branch(net if self.net is None else self.net, self.drop_class, self.drop_noise)


def noise_awareness(weight: Weight, **where: Any) -> Term:
    """Classifier-free NAG, the paper's method (arXiv 2510.12497, Sec. 4).

        s_w(x|t) = (w + 1) s(x|t) - w s(x) = s(x|t) + w (s(x|t) - s(x))

    s(x) is the same network with its noise condition dropped; w = 0 is no guidance. For NAG + CFG
    see `GuidedField`."""
    return Term("nag", weight, drop_noise=True, **where)


def classifier_noise_awareness(
    weight: Weight,
    log_prob_gradient: Callable[[Tensor, float | Tensor], Tensor],
    interval: tuple[float, float] = (0.0, 0.95),
    **where: Any,
) -> Term:
    """Classifier-based NAG (arXiv 2510.12497, Sec. 4), with log_prob_gradient(x, t) of g_phi(t|x).

        s(x|t) + w grad_x log g_phi(t|x)

    Temporal Alignment Guidance (Park et al., arXiv 2510.11057, a day earlier) adds this gradient to
    the state before each step. The interval ends below 1, since a change of score is an unbounded
    change of v at pure noise."""
    return Term("nag-classifier", weight, gradient=log_prob_gradient, interval=interval, **where)


def classifier_free(scale: float, **where: Any) -> Term:
    """Classifier-free guidance (Ho & Salimans, 2022); scale 1 is no guidance, as in DiT and SiT.

    s(x|t,-) + scale (s(x|t,c) - s(x|t,-)), which is the one formula with w = scale - 1."""
    return Term("cfg", scale - 1, drop_class=True, **where)


def domain(scale: float, pretrained: Network | None, **where: Any) -> Term:
    """Domain Guidance of a fine-tuned network (Zhong et al., 2025; with NAG in arXiv 2510.12497).

        s(x|t,c) + w (s(x|t,c) - s_0(x|t)),   w = scale - 1

    The negative s_0 is the pre-trained network with its class dropped."""
    return Term("dog", scale - 1, drop_class=True, net=pretrained, **where)


def autoguidance(scale: float, weaker: Network, **where: Any) -> Term:
    """Autoguidance (Karras et al., 2024), away from a weaker network under the same conditions.

    s(x|t,c) + (scale - 1) (s(x|t,c) - s_weaker(x|t,c))."""
    return Term("autoguidance", scale - 1, net=weaker, **where)


def guide(f: Tensor, directions: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The one formula, d = f + sum_k w_k g_k, with the directions g_k = f - f_k (B, C, H, W)."""
    d = f
    for w, g in directions:
        d = d + w * g
    return d


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
                f"{term.name}: its weight changes within the batch's times {low:.3g} to "
                f"{high:.3g}, so an image would depend on its batch: use a constant weight over "
                "all of them, or one time for all"
            )


@dataclass
class GuidedField:
    """A velocity field field(x, t) -> v for samplers: a network, labels (B,) and guidance terms.

    NAG + CFG is [noise_awareness(w_nag), classifier_free(1 + w_cfg)] (arXiv 2510.12497, Sec. 4):

        s(x|t,c) + w_nag (s(x|t,c) - s(x|-,c)) + w_cfg (s(x|t,c) - s(x|t,-))

    Terms whose weight is zero at t are not evaluated; what is left runs as one batch for each
    network. `nfe` counts network evaluations per image so far, `calls` the calls. x may be float64;
    the network sees float32, or bf16 by autocast. Where t is (B,), the weights must be the same for
    all. With `null_class` a label may also be `classes`, which means no class. Raises ValueError
    for other labels, for states that do not fit, for a second network of another path, size or
    fewer classes, and for a term that drops the class of a network without a row for no class."""

    net: Network
    labels: Tensor
    terms: Sequence[Term] = ()
    precision: str = "fp32"
    null_class: bool = False
    nfe: int = field(default=0, init=False)
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.terms, Term):
            self.terms = [self.terms]
        check_range(self.labels, self.net.config.classes + self.null_class)
        if self.null_class and not getattr(self.net.config, "null_class", True):
            raise ValueError(
                "the network has no row for no class in its table (it was trained without class "
                "dropout): leave null_class out"
            )
        own = self.net.config.path
        for term in self.terms:
            negative = term.negative(self.net).net
            config = negative.config
            if config.path != own:
                raise ValueError(
                    f"{term.name}: its network is of the path {config.path!r}, the guided one of "
                    f"{own!r}: both must be of one path"
                )
            if negative is not self.net:
                self._check_negative(term, config)
            drops = term.drop_class and term.weight != 0
            if drops and not getattr(config, "null_class", True):
                raise ValueError(
                    f"{term.name}: its network has no row for no class in its table (it was "
                    "trained without class dropout), so its class cannot be dropped: leave this "
                    "term out"
                )

    def _check_negative(self, term: Term, config: Any) -> None:
        """Raise ValueError if another network lacks one of the labels or is for other states."""
        own = self.net.config
        other_classes = config.classes != own.classes and not term.drop_class
        if other_classes and (self.labels >= config.classes).any():
            raise ValueError(
                f"{term.name}: its network has {config.classes} classes, so that label "
                f"{int(self.labels.max())} would be none of them: give a network of the same "
                "classes"
            )
        if hasattr(own, "input_size") and hasattr(config, "input_size"):
            sizes = [(c.channels, c.input_size) for c in (config, own)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"{term.name}: its network is for (channels, size) {sizes[0]}, the guided one "
                    f"for {sizes[1]}: both must be for the same states"
                )

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.with_variance(x, t).mean

    def with_variance(self, x: Tensor, t: float | Tensor) -> Prediction:
        """The guided velocity of x's dtype, and the learned variance (None if there is none)."""
        config, (mean, fraction) = self.net.config, self.predict(x, t)
        v = convert(mean.to(x.dtype), x, t, config.prediction, "v", config.path)
        return Prediction(v, fraction)

    def predict(self, x: Tensor, t: float | Tensor) -> Prediction:
        """The guided prediction in the network's own terms (v, eps or x0), float32 (B, C, H, W).

        The variance is that of the branch with both conditions, as DiT has it."""
        self._check_states(x)
        if isinstance(t, Tensor) and t.ndim:
            _check_times(t, self.terms)
        place = float(t.mean()) if isinstance(t, Tensor) else t
        active = [(w, term) for term in self.terms if (w := term.at(place)) != 0]
        plain = Branch(self.net)
        negatives = [term.negative(self.net) for _, term in active if not term.gradient]
        found = self._evaluate(x, t, list(dict.fromkeys([plain, *negatives])))
        directions = [(w, self._direction(term, x, t, found)) for w, term in active]
        return Prediction(guide(found[plain].mean, directions), found[plain].fraction)

    def _check_states(self, x: Tensor) -> None:
        """Raise ValueError unless there is a label for each state, of the network's own size."""
        if len(x) != len(self.labels):
            raise ValueError(
                f"{len(x)} states and {len(self.labels)} labels: give each state its label, so as "
                "many labels as seeds"
            )
        c = self.net.config
        if hasattr(c, "input_size") and x.shape[1:] != (c.channels, c.input_size, c.input_size):
            raise ValueError(
                f"states {tuple(x.shape[1:])} do not fit a network for "
                f"{(c.channels, c.input_size, c.input_size)}: make them of its size"
            )

    def _direction(
        self, term: Term, x: Tensor, t: float | Tensor, found: dict[Branch, Prediction]
    ) -> Tensor:
        """g_k: f - f_k, or the change of f that adding the term's gradient to the score makes."""
        if term.gradient:
            config = self.net.config
            g = from_score(term.gradient(x.float(), t), t, config.prediction, config.path)
        else:
            g = found[Branch(self.net)].mean - found[term.negative(self.net)].mean
        if term.channels is not None:
            g[:, term.channels :] = 0
        return g

    def _evaluate(
        self, x: Tensor, t: float | Tensor, branches: list[Branch]
    ) -> dict[Branch, Prediction]:
        """What each branch predicts, in the terms of the guided network; one call per network."""
        self.nfe, self.calls = self.nfe + len(branches), self.calls + 1
        kind, found = self.net.config.prediction, {}
        for net in dict.fromkeys(branch.net for branch in branches):
            mine, c = [branch for branch in branches if branch.net is net], net.config
            for branch, (mean, fraction) in zip(mine, self._run(net, x, t, mine), strict=True):
                mean = convert(mean, x.float(), t, c.prediction, kind, c.path)
                found[branch] = Prediction(mean, fraction)
        return found

    @torch.inference_mode()
    def _run(
        self, net: Network, x: Tensor, t: float | Tensor, branches: list[Branch]
    ) -> list[Prediction]:
        """The branches of one network in one batch of n B rows."""
        n, null = len(branches), torch.full_like(self.labels, net.config.classes)
        labels = torch.cat([null if b.drop_class else self.labels for b in branches])
        drops = torch.tensor([b.drop_noise for b in branches], device=x.device)
        drops = drops.repeat_interleave(len(x))
        times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x)).repeat(n)
        learned = learns_variance(net.config)
        run: Callable[..., Tensor] = net
        if learned:
            run = partial(run, full=True)
        states = x.float().repeat(n, 1, 1, 1)
        with autocast(x.device, resolve_precision(self.precision, x.device)):
            out = network_output(run(states, times, labels, drops), states)
        means, variances = out.float().tensor_split([x.shape[1]], dim=1)  # (n B, C, H, W) each
        fractions = ((variances + 1) / 2).chunk(n) if learned else [None] * n
        return [Prediction(m, f) for m, f in zip(means.chunk(n), fractions, strict=True)]
