"""The register of methods: NAG, its rivals, what each needs, and its published setting.

A method and one setting of it become a `Plan`: the network, guidance terms and solver to sample
with. A setting is a list of numbers and names, as a parameter file writes it. NAG joins any method
as one more guidance term: what Epsilon Scaling scales, or a correction evaluates at another level,
is then the guided field."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor, nn

from nag.estimator import NoiseEstimator, log_prob_gradient, posterior_mean
from nag.guidance import (
    GuidedField,
    Term,
    autoguidance,
    classifier_free,
    classifier_noise_awareness,
    noise_awareness,
)
from nag.models import DiT
from nag.rivals.corrected_ddim import corrected_ddim
from nag.rivals.epsilon_scaling import epsilon_scaling, score_rescaling
from nag.rivals.noise_level_correction import LevelHead, noise_excess, noise_level_correction
from nag.rivals.time_shift import Level, by_estimate, by_variance, time_shift
from nag.rivals.wavelet_correction import wavelet_corrected
from nag.rivals.worse_conditions import (
    OtherLevel,
    estimated_level,
    independent_condition,
    previous_output,
    self_guidance,
    time_step_guidance,
)
from nag.samplers.one_step import Noise, State
from nag.samplers.registry import SAMPLERS, STEPS, resolve, time_grid

Solver = Callable[..., Iterator[State]]  # of a sampler's signature
Setting = Sequence[float | str]


class Parts(NamedTuple):
    """What the methods are made of; a part that no method of a study needs may be left out.

    `net` is the guided network, `weaker` autoguidance's by name, `perturbed` one trained like `net`
    but with DDPM-IP, `head` that of Noise Level Correction, `data_variance` the mean variance of
    pixels within one image. `sampler` is a name in nag.samplers.one_step with one evaluation a
    step."""

    net: DiT
    weaker: Mapping[str, DiT] = {}
    perturbed: DiT | None = None
    head: LevelHead | None = None
    estimator: NoiseEstimator | None = None
    data_variance: float = 0.0
    sampler: str = "ode"


class Plan(NamedTuple):
    """A method with a setting: what to sample with, and what it has beyond the network.

    `solver` None is the named sampler; `parameters` counts weights beyond the network's own,
    `extra` names the part that had a training of its own."""

    net: DiT
    terms: list[Term]
    solver: Solver | None = None
    parameters: int = 0
    extra: str = ""


# ---- solvers


def through(wrap: Callable[[Any, str], Callable], sampler: str = "ode") -> Solver:
    """A sampler by name whose field is wrap(field, path)."""

    def solver(
        field: Callable,
        x: Tensor,
        times: Tensor,
        noise: Noise | None = None,
        path: str = "linear",
    ) -> Iterator[State]:
        return SAMPLERS[resolve(sampler, path)](wrap(field, path), x, times, noise, path)

    return solver


def epsilon_scaled(scale: float, sampler: str = "ode") -> Solver:
    """A sampler of nag.samplers.one_step whose field's noise prediction is divided by `scale` (Ning
    et al., ICLR 2024).
    """
    return through(lambda field, path: epsilon_scaling(field, scale, path), sampler)


def time_shifted(level: Level, mode: str, window: float, cutoff: float) -> Solver:
    """Deterministic DDIM whose noise level `level` searches in a window around t (Li et al., ICLR
    2024).
    """
    return partial(corrected_ddim, adjust=time_shift(window, cutoff, mode, level))


def level_corrected(
    head: Callable[[Tensor, float, Tensor], Tensor], style: str = "pred", strength: float = 1.0
) -> Solver:
    """Deterministic DDIM between levels corrected by `strength` times head(x, t, labels)
    (Abuduweili et al., TMLR 2025).

    The labels are the field's, a GuidedField; the field is evaluated at each image's own corrected
    level."""

    def solver(
        field: GuidedField,
        x: Tensor,
        times: Tensor,
        noise: Noise | None = None,
        path: str = "linear",
    ) -> Iterator[State]:
        adjust = noise_level_correction(
            lambda x, t: strength * head(x, t, field.labels), style, path
        )
        return corrected_ddim(field, x, times, noise, path, adjust=adjust)

    return solver


# ---- methods


T = TypeVar("T")


def _existing(part: T | None, what: str) -> T:
    if part is None:
        raise ValueError(f"{what} is missing from the parts: give it, or leave this method out")
    return part


def _deterministic(parts: Parts, what: str) -> None:
    name = resolve(parts.sampler, parts.net.config.path)
    if name not in ("euler", "ddim"):
        raise ValueError(
            f"{what} steps as DDIM does, not as {name!r}: choose the sampler 'ode', or leave this "
            "method out"
        )


def size(module: nn.Module) -> int:
    """Number of parameters, a fixed table of positions among them."""
    return sum(p.numel() for p in module.parameters())


def _nag(parts: Parts, w: float) -> Plan:
    return with_nag(Plan(parts.net, []), w)


def _nag_classifier(parts: Parts, w: float) -> Plan:
    net = _existing(parts.estimator, "the estimator of NAG by classifier")

    def gradient(x: Tensor, t: float | Tensor) -> Tensor:
        # A view, since FlopCounterMode does not follow a module whose input is a leaf.
        return log_prob_gradient(lambda x: net(x.view_as(x)), x, t)

    term = classifier_noise_awareness(w, gradient)
    return Plan(parts.net, [term], parameters=size(net), extra="estimator")


def _cfg(parts: Parts, scale: float, low: float = 0.0, high: float = 1.0) -> Plan:
    return Plan(
        parts.net, [classifier_free(scale, interval=(low, high))], parameters=parts.net.config.width
    )


def _autoguidance(parts: Parts, weaker: str, scale: float) -> Plan:
    net = _existing(parts.weaker.get(weaker), f"the weaker network {weaker!r} of autoguidance")
    return Plan(parts.net, [autoguidance(scale, net)], parameters=size(net), extra=weaker)


def _epsilon_scaling(parts: Parts, scale: float) -> Plan:
    return Plan(parts.net, [], epsilon_scaled(scale, parts.sampler))


def _time_shift(parts: Parts, level: str, mode: str, window: float, cutoff: float) -> Plan:
    _deterministic(parts, "Time-Shift")
    path = parts.net.config.path
    if level == "estimator":
        net = _existing(parts.estimator, "the estimator of Time-Shift")
        found = by_estimate(lambda x: posterior_mean(net, x.float()))
        return Plan(
            parts.net, [], time_shifted(found, mode, window, cutoff), size(net), "estimator"
        )
    variances = {"variance": 0.0, "data-variance": parts.data_variance}
    if level not in variances:
        raise ValueError(
            f"unknown level {level!r} of Time-Shift: choose one of {[*variances, 'estimator']}"
        )
    return Plan(
        parts.net, [], time_shifted(by_variance(path, variances[level]), mode, window, cutoff)
    )


def _level_correction(parts: Parts, style: str, strength: float) -> Plan:
    _deterministic(parts, "Noise Level Correction")
    head = _existing(parts.head, "the head of Noise Level Correction")
    solver = level_corrected(partial(noise_excess, head, parts.net), style, strength)
    return Plan(parts.net, [], solver, size(head), "head")


def _self_guidance(parts: Parts, w: float, shift: float) -> Plan:
    return Plan(parts.net, [self_guidance(w, parts.net, shift)])


def _self_guidance_prev(parts: Parts, w: float, below: float) -> Plan:
    def wrap(field: GuidedField, path: str) -> Callable:
        return previous_output(field, w, below)

    return Plan(parts.net, [], through(wrap, parts.sampler))


def _other_level(parts: Parts, shift: float) -> Plan:
    return Plan(cast(DiT, OtherLevel(parts.net, shift)), [])


def _estimated_level(parts: Parts, w: float, read_at: str) -> Plan:
    net = _existing(parts.estimator, "the estimator of NAG at the estimated level")
    term = estimated_level(w, parts.net, partial(posterior_mean, net), read_at)
    return Plan(parts.net, [term], parameters=size(net), extra="estimator")


def _time_step_guidance(parts: Parts, scale: float, strength: float, power: float) -> Plan:
    return Plan(parts.net, [time_step_guidance(scale, parts.net, strength, power)])


def _independent_condition(parts: Parts, scale: float) -> Plan:
    return Plan(parts.net, [independent_condition(scale, parts.net)])


def _wavelet_correction(parts: Parts, strength: float) -> Plan:
    path = parts.net.config.path
    step = STEPS[resolve(parts.sampler, path)]
    return Plan(parts.net, [], partial(wavelet_corrected, step, strength))


def _score_rescaling(parts: Parts, k: float, sigma: float) -> Plan:
    def wrap(field: Callable, path: str) -> Callable:
        return epsilon_scaling(field, score_rescaling(k, sigma, path), path)

    return Plan(parts.net, [], through(wrap, parts.sampler))


def _input_perturbation(parts: Parts) -> Plan:
    return Plan(_existing(parts.perturbed, "the network trained with DDPM-IP"), [])


class Method(NamedTuple):
    """What the tables say of a method, and how it is made: make(parts, *setting) -> Plan.

    `entries` names the entries of a setting, `published` is the setting of the method's own paper
    or code, `needs` what must be trained for it."""

    label: str
    make: Callable[..., Plan]
    entries: tuple[str, ...] = ()
    needs: str = ""
    published: tuple[float | str, ...] = ()


_NULL_CLASS = "null class, by dropout in training"
METHODS = {
    "none": Method("no guidance", lambda parts: Plan(parts.net, [])),
    "nag": Method("NAG", _nag, ("w",), "null noise level, by dropout in training", (1.0,)),
    "nag-classifier": Method(
        "NAG by classifier",
        _nag_classifier,
        ("w",),
        "estimator of the noise level and its gradient",
        (1.0,),
    ),
    "cfg": Method("CFG", _cfg, ("scale",), _NULL_CLASS, (1.5,)),
    "cfg-interval": Method(  # of REPA's published command (Yu et al., 2025)
        "CFG in an interval", _cfg, ("scale", "from t", "to t"), _NULL_CLASS, (1.5, 0.0, 0.7)
    ),
    "autoguidance": Method(
        "autoguidance", _autoguidance, ("weaker", "scale"), "second network", ("weaker", 1.5)
    ),
    "epsilon-scaling": Method("Epsilon Scaling", _epsilon_scaling, ("lambda",), "", (1.005,)),
    "time-shift": Method(  # window and cutoff of the published commands (Li et al., 2024)
        "Time-Shift",
        _time_shift,
        ("by", "mode", "window", "cutoff"),
        "at most a noise-level estimator",
        ("variance", "destination", 0.03, 0.3),
    ),
    "level-correction": Method(
        "Noise Level Correction",
        _level_correction,
        ("style", "strength"),
        "head on the first block",
        ("pred", 1.0),
    ),
    "input-perturbation": Method("DDPM-IP", _input_perturbation, (), "training from the start"),
    "self-guidance": Method("Self-Guidance", _self_guidance, ("w", "shift"), "", (3.0, 0.01)),
    "self-guidance-prev": Method(
        "Self-Guidance by the step before", _self_guidance_prev, ("w", "below t"), "", (3.0, 0.5)
    ),
    "other-level": Method("shifted noise condition", _other_level, ("shift",), "", (-0.03,)),
    "estimated-level": Method(  # this and the next are ours
        "NAG by the estimated level",
        partial(_estimated_level, read_at="t"),
        ("w",),
        "estimator of the noise level",
        (1.0,),
    ),
    "estimated-score": Method(
        "NAG by the score at the estimated level",
        partial(_estimated_level, read_at="own"),
        ("w",),
        "estimator of the noise level",
        (1.0,),
    ),
    "tsg": Method(
        "Time-Step Guidance", _time_step_guidance, ("scale", "s", "power of t"), "", (2.5, 2.0, 1.0)
    ),
    "icg": Method("Independent Condition Guidance", _independent_condition, ("scale",), "", (1.4,)),
    "dcw": Method("wavelet correction (DCW)", _wavelet_correction, ("lambda",), "", (0.005,)),
    "tsr": Method("Temporal Score Rescaling", _score_rescaling, ("k", "sigma"), "", (0.95, 1.0)),
}


def _entries(method: str, setting: Setting) -> tuple[str, ...]:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {list(METHODS)}")
    entries = METHODS[method].entries
    if len(setting) != len(entries):
        raise ValueError(
            f"a setting of {method} has {len(entries)} entries {entries}, not {list(setting)}"
        )
    return entries


def with_nag(plan: Plan, w: float) -> Plan:
    """The same method with NAG's term on top; unchanged for w = 0."""
    if w == 0:
        return plan
    return plan._replace(
        terms=[*plan.terms, noise_awareness(w)], parameters=plan.parameters + plan.net.config.width
    )


def plan(method: str, setting: Setting, parts: Parts, w_nag: float = 0.0) -> Plan:
    """What to sample with for a method, one setting of it, and NAG of weight w_nag on top.

    Terms of weight zero are left out.

    Raises ValueError for an unknown method, a setting of another length, a missing part, or a
    sampler that it cannot take."""
    _entries(method, setting)
    found = METHODS[method].make(parts, *setting)
    return with_nag(found._replace(terms=[term for term in found.terms if term.weight != 0]), w_nag)


def describe(method: str, setting: Setting) -> str:
    """A setting in words, such as "weaker n100k, scale 1.5"; "none" for a method that has no
    setting.
    """
    named = zip(_entries(method, setting), setting, strict=True)
    return (
        ", ".join(
            f"{entry} {value if isinstance(value, str) else format(value, 'g')}"
            for entry, value in named
        )
        or "none"
    )


def steps_for(nfe: int, terms: Sequence[Term], sampler: str = "ode", path: str = "linear") -> int:
    """The most steps for which no more than `nfe` network evaluations per image are made with these
    terms.

    Raises ValueError if two steps are too many already, or for a sampler of more than one
    evaluation a step."""
    if resolve(sampler, path) not in STEPS:
        raise ValueError(
            f"{sampler!r} makes more than one evaluation a step or remembers them: choose one of "
            f"{list(STEPS)}"
        )

    def evaluations(steps: int) -> int:
        times = time_grid(sampler, steps, path)[:-1].tolist()
        return sum(1 + sum(term.at(t) != 0 for term in terms if not term.gradient) for t in times)

    fitting = [steps for steps in range(2, nfe + 1) if evaluations(steps) <= nfe]
    if not fitting:
        raise ValueError(
            f"{nfe} evaluations are too few for two steps with {len(terms)} guidance terms: "
            "give more"
        )
    return fitting[-1]
