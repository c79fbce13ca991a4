"""The same network under a worse condition as the negative of guidance: another noise level, a
disturbed time embedding, another class. None of it needs a null condition or any training.

Each negative is a network of the guided one's configuration and tensors, for `Term(net=...)`. As in
the methods' own code, its output counts as a prediction at the sampler's t, in the network's own
terms (v, eps or x0). x is (B, C, H, W), t and y are (B,)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nag.ddpm import LEVELS, Prediction
from nag.guidance import GuidedField, Term, Weight
from nag.interpolant import convert
from nag.models import ModelConfig
from nag.pretrained.exact_null import Level, ScoreAtOwnLevel, exact_noise_awareness, fixed
from nag.support.rng import generator


class OtherLevel(nn.Module):
    """A network that is given t + `shift` for the noise level t, kept within the path's levels."""

    shift: Tensor

    def __init__(self, net: Any, shift: float):
        super().__init__()
        self.net, self.config = net, net.config
        self.lowest = 1 / LEVELS if net.config.path == "ddpm" else 0.0
        # a tensor, since torch.compile would compile a number again for each value
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, x: Tensor, t: Tensor, y: Tensor, drop_noise: Tensor, **how: bool) -> Tensor:
        return self.net(x, (t + self.shift).clamp(self.lowest, 1), y, drop_noise, **how)


class SeenLevel(nn.Module):
    """A network that is given the level that a state looks to have, level(x) (B,), for t."""

    def __init__(self, net: Any, level: Level):
        super().__init__()
        self.net, self.config = net, net.config
        self.level = torch.compiler.disable(fixed(level))

    def forward(self, x: Tensor, t: Tensor, y: Tensor, drop_noise: Tensor, **how: bool) -> Tensor:
        return self.net(x, self.level(x), y, drop_noise, **how)


class DisturbedEmbedder(nn.Module):
    """A time embedder whose embedding e (B, D) is disturbed by one fixed draw n ~ N(0, I):

    e + strength t^power std(e) n, with std(e) (B,) over the D numbers of each embedding."""

    noise: Tensor
    power: Tensor

    def __init__(
        self, embedder: nn.Module, config: ModelConfig, strength: float, power: float, seed: int
    ):
        super().__init__()
        self.embedder, self.scale, self.offset = embedder, config.time_scale, config.time_offset
        noise = torch.randn(config.width, generator=generator(seed, 6))
        self.register_buffer("noise", strength * noise)
        self.register_buffer("power", torch.tensor(power))

    def forward(self, native_t: Tensor, drop: Tensor | None) -> Tensor:
        e = self.embedder(native_t, drop)
        t = ((native_t - self.offset) / self.scale).clamp(0, 1)
        size = t**self.power * e.std(1)
        return e + size[:, None] * self.noise


def disturbed_time(net: nn.Module, strength: float, power: float, seed: int = 0) -> nn.Module:
    """The DiT `net` with a `DisturbedEmbedder`; all tensors are shared."""
    twin = copy.copy(net)
    config: Any = net.config
    embedder = DisturbedEmbedder(net.get_submodule("t_embedder"), config, strength, power, seed)
    twin._modules = net._modules | {"t_embedder": embedder}
    return twin


def other_class(y: Tensor, t: Tensor, classes: int) -> Tensor:
    """A class (B,) other than y for each row, drawn by (y, t): each t has another one, and no row
    depends on its batch.
    """
    mixed = ((t.double() * 2**20).round().long() * 31 + y) * 0x9E3779B1 & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 15) * 0x85EBCA6B & 0xFFFFFFFF
    mixed = mixed ^ mixed >> 13
    return (y + 1 + mixed % (classes - 1)) % classes


class OtherClass(nn.Module):
    """A network that is given another class than y (`other_class`); raises ValueError for fewer
    than two classes.
    """

    def __init__(self, net: Any):
        super().__init__()
        if net.config.classes < 2:
            raise ValueError(
                f"a network of {net.config.classes} classes has no other class to give: leave "
                "Independent Condition Guidance out"
            )
        self.net, self.config = net, net.config

    def forward(self, x: Tensor, t: Tensor, y: Tensor, drop_noise: Tensor, **how: bool) -> Tensor:
        return self.net(x, t, other_class(y, t, self.config.classes), drop_noise, **how)


# ---- terms


def self_guidance(weight: Weight, net: Any, shift: float = 0.01, **where: Any) -> Term:
    """Self-Guidance, NAG's nearest cousin (Li et al., arXiv 2412.05827), with a higher noise level.

        f(x, t) + w (f(x, t) - f(x, t + shift))

    The paper has w = 3 and a shift of 10 of 1000 levels. To first order in the shift this is
    f(x, t - w shift): a network that is given a lower level than the state's."""
    return Term("self-guidance", weight, net=OtherLevel(net, shift), **where)


def estimated_level(
    weight: Weight, net: Any, level: Level, read_at: str = "t", **where: Any
) -> Term:
    """NAG without a null condition: away from the network at the level r = level(x) that the state
    looks to have, such as an estimator's E[t | x].

    Where p(t|x) is narrow, a branch without noise level is close to f(x, r). Its output counts as a
    prediction at t, as NAG's null branch does (`read_at` "t"), or at r itself ("own"), which makes
    it the score s(x|r) and is closer to grad log p(x). Raises ValueError for another name."""
    if read_at not in ("t", "own"):
        raise ValueError(f"a prediction is read at 't' or at its 'own' level, not at {read_at!r}")
    if read_at == "own":
        own = ScoreAtOwnLevel(net, level, drop_noise=False)
        return exact_noise_awareness(weight, own, **where)
    return Term("estimated-level", weight, net=SeenLevel(net, level), **where)


def time_step_guidance(
    scale: float, net: Any, strength: float = 2.0, power: float = 1.0, **where: Any
) -> Term:
    """Time-Step Guidance (Sadat et al., arXiv 2407.02687), away from a disturbed time embedding.

    The negative's embedding is e + strength t^power std(e) n (`DisturbedEmbedder`). The defaults
    are the paper's for a class-conditional DiT, at scale 2.5; without classes it has scale 5,
    strength 1, power 0 and the interval (0.2, 0.8)."""
    return Term("tsg", scale - 1, net=disturbed_time(net, strength, power), **where)


def independent_condition(scale: float, net: Any, **where: Any) -> Term:
    """Independent Condition Guidance (Sadat et al., arXiv 2407.02687): classifier-free guidance
    with a random other class for no class; the paper has scale 1.4 for a DiT.
    """
    return Term("icg", scale - 1, net=OtherClass(net), **where)


# ---- the output of the step before


class PreviousOutput:
    """A field guided away from its own output at the step before; see `previous_output`."""

    def __init__(self, field: GuidedField, weight: float, below: float):
        self.field, self.weight, self.below = field, weight, below
        self.before: Tensor | None = None

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self.with_variance(x, t).mean

    def with_variance(self, x: Tensor, t: float) -> Prediction:
        """The velocity, and the field's learned variance as it is."""
        (now, fraction), c = self.field.predict(x, t), self.field.net.config
        mean = now
        if self.before is not None and t < self.below:
            mean = now + self.weight * (now - self.before)
        self.before = now
        v = convert(mean.to(x.dtype), x, t, c.prediction, "v", c.path)
        return Prediction(v, fraction)


def previous_output(field: GuidedField, weight: float, below: float = 0.5) -> PreviousOutput:
    """Self-Guidance without a second evaluation: the step before, which was noisier, gives the
    negative.

        d_k = f(x_k, t_k) + w (f(x_k, t_k) - f(x_{k-1}, t_{k-1})),   t_k < below

    f is the field's prediction in the network's own terms, all guidance of the field included. Take
    a new one for each trajectory, and a sampler of one evaluation a step (Li et al., arXiv
    2412.05827, "SG-prev", w = 3 below 500 of 1000 levels)."""
    return PreviousOutput(field, weight, below)
