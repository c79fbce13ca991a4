"""What notebook 34 measures: a null branch that is the score of the pooled noise levels, beside the
one that noise-condition dropout learns; on the exact toy, in directions, and by images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from companion.experiments import exact_toy, study
from companion.experiments.generate import SampleConfig
from companion.experiments.spaces import Features
from companion.pipeline import fingerprint
from companion.studies.families import Family, sampler_of
from companion.studies.intervals import numbers
from nag import checkpoint, toy
from nag.estimator import NoiseEstimator, log_prob_gradient, posterior_mean
from nag.guidance import GuidedField, Term, classifier_noise_awareness, noise_awareness
from nag.interpolant import add_noise, convert
from nag.losses import denoising_loss
from nag.models import DiT
from nag.pretrained.exact_null import (
    Level,
    ScoreAtOwnLevel,
    exact_noise_awareness,
    pooled_errors,
    pooled_score_loss,
)
from nag.pretrained.null_branch import load_null, save_null, separate_branch
from nag.rivals.methods import steps_for
from nag.support.device import best_device
from nag.support.paths import CHECKPOINTS
from nag.support.rng import ImageNoise, generator
from nag.support.uncertainty import Interval, around
from nag.train import TrainConfig, train

KINDS = {  # of NAG's negative
    "dropout": "the network's own null branch",
    "own level": "the same, read at the level that the state looks to have",
    "dropout, longer": "a twin of it, trained further in the same way",
    "exact": "a twin of it, trained to be the score of the pooled levels",
    "classifier": "the gradient of the noise-level estimator",
}
TRAINED = ("dropout, longer", "exact")
INTERVAL = (0.0, 0.95)  # of all kinds: a score says nothing of the image at pure noise
RANGES = ((0.0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1.0))  # of t


# ---- the exact toy


def toy_directions(b: exact_toy.Bench, times: Sequence[float]) -> list[dict]:
    """NAG's direction by every null against the exact grad log p(t|x) of the toy: "cosine" and
    "strength" (length over the exact one's), by network and time.

    "dropout" is the mean of the target over p(t|x), taken for a prediction at t as NAG does; "own
    level" is the same taken for one at E[t|x]. The exact null's direction is the exact one."""
    rows, n, p = [], len(b.forward), exact_toy.prior()
    for t in times:
        x = toy.forward(b.data, n, t, generator(b.seed, 7))
        exact, seen = toy.posterior_gradient(b.data, x, t, p), toy.posterior_mean(b.data, x, p)
        for network in ("eps", "v"):
            mean = toy.average(b.data, x, p, network)
            for null, at in (("dropout", t), ("own level", seen)):
                found = toy.score(b.data, x, t) - convert(mean, x, at, network, "score")
                size = found.norm() / exact.norm()
                cosine = (found * exact).sum() / (found.norm() * exact.norm())
                rows.append(
                    {"t": t, "network": network, "null": null}
                    | {"cosine": cosine.item(), "strength": size.item()}
                )
    return rows


def _score_to_v(score: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return convert(score, x, t, "score", "v")


NULLS: dict[str, Callable] = {  # (data, model, x, t) -> velocity of the null branch
    "dropout": lambda data, m, x, t: toy.average(m, x, exact_toy.prior(), "v"),
    "own level": lambda data, m, x, t: _score_to_v(
        convert(
            toy.average(m, x, exact_toy.prior(), "v"),
            x,
            toy.posterior_mean(data, x, exact_toy.prior()),
            "v",
            "score",
        ),
        x,
        t,
    ),
    "exact, of the model": lambda data, m, x, t: _score_to_v(
        toy.unconditional_score(m, x, exact_toy.prior()), x, t
    ),
    "exact, of the data": lambda data, m, x, t: _score_to_v(
        toy.unconditional_score(data, x, exact_toy.prior()), x, t
    ),
}


def toy_samples(b: exact_toy.Bench, w: float, steps: int) -> dict[str, dict]:
    """Energy distance to exact states and late shift of samples of the blurred network of notebook
    0, without NAG and with every null at weight w.
    """
    labels, found = torch.zeros(len(b.forward), dtype=torch.long), {}
    for null in ("none", *NULLS):
        branch = partial(NULLS["dropout" if null == "none" else null], b.data, b.blurred)
        net = toy.as_network(partial(toy.velocity, b.blurred), branch)
        terms = [] if null == "none" else [noise_awareness(w, interval=(0, 0.9))]
        x, shift = exact_toy.sample(b, GuidedField(net, labels, terms), steps)
        distance = numbers(exact_toy.distance(b, x))
        found[null] = {"distance": distance, "late shift": numbers(shift["late"])}
    return found


def on_toy(images: int, times: Sequence[float], w: float) -> dict:
    """`toy_directions`, and `toy_samples` of so many trajectories in 30 steps at weight w."""
    b = exact_toy.bench(images, 0)
    return {"directions": toy_directions(b, times), "w": w, "samples": toy_samples(b, w, 30)}


# ---- the twins


@dataclass(frozen=True)
class Twins:
    """A network with its estimator, and the null branches that are made of it.

    All twins have the same layers of their own and see the same number of images."""

    family: Family
    estimator: nn.Module
    layers: Sequence[str]
    config: TrainConfig
    folder: Path

    @property
    def level(self) -> Level:
        """The level that a state looks to have."""
        return partial(posterior_mean, self.estimator)

    def file(self, kind: str, images: Tensor, labels: Tensor) -> Path:
        """The file of a trained twin, "dropout, longer" or "exact"; trained if it is not there.

        images (N, 1, 28, 28) in [-1, 1], labels (N,)."""
        net, sources = self.family.net, [checkpoint.sha256(file) for file in self.family.files]
        code = fingerprint.digest(fingerprint.of_objects(Twins.file))
        key = self.config.key(sources, kind, list(self.layers), len(images), code)
        target = self.folder / f"{self.family.name}-{key}.safetensors"
        if not target.is_file():
            loss = (
                pooled_score_loss(images, labels, self.level)
                if kind == "exact"
                else denoising_loss(images, labels, 0.1, 1.0)
            )
            twin, state = separate_branch(net, self.layers), CHECKPOINTS / f"{target.stem}.pt"
            train(twin, loss, len(images), self.config, state)
            save_null(target, twin, sources[0], kind=kind)
            state.unlink(missing_ok=True)
        return target

    def branches(self, files: Mapping[str, Path]) -> dict[str, DiT]:
        """The null branch of every kind that has one; `files` are those of the trained twins."""
        net = self.family.net
        base = checkpoint.sha256(self.family.files[0])
        trained = {
            kind: load_null(file, net, base).requires_grad_(False) for kind, file in files.items()
        }
        return {"dropout": net, "own level": net} | trained

    def term(self, kind: str, w: float, branches: Mapping[str, DiT]) -> Term:
        """NAG's term of weight w with the null of a kind."""
        if kind == "classifier":
            gradient = partial(log_prob_gradient, self.estimator)
            return classifier_noise_awareness(w, gradient, interval=INTERVAL)
        branch = branches[kind]
        if kind in ("own level", "exact"):
            return exact_noise_awareness(w, ScoreAtOwnLevel(branch, self.level), INTERVAL)
        other = None if branch is self.family.net else branch
        return noise_awareness(w, net=other, interval=INTERVAL)


def load_twins(family: Family, layers: Sequence[str], config: TrainConfig, folder: Path) -> Twins:
    """The twins of a family's network, whose second file is its estimator's."""
    estimator = checkpoint.load_weights(family.files[1], NoiseEstimator())
    estimator = estimator.to(best_device()).requires_grad_(False)
    return Twins(family, estimator, layers, config, folder)


def all_layers(net: DiT) -> list[str]:
    """Names of all blocks and of the last layer."""
    return [*(f"blocks.{k}" for k in range(net.config.depth)), "final_layer"]


# ---- on held-out images


def mean_of(x: Tensor) -> Interval:
    """Mean of (N,) numbers with its 95 % interval."""
    return around(x.mean().item(), x.std().item() / len(x) ** 0.5)


def held_out(twins: Twins, branches: Mapping[str, DiT], images: Tensor, labels: Tensor) -> dict:
    """How far every branch, read at its own level, is from the score of the pooled levels: the mean
    `pooled_error` less the own null's, in pairs, over all t and by range.

    The error of a perfect branch is not zero; differences are what counts."""
    found = {
        kind: pooled_errors(branch, twins.level, images, labels, seed=1)
        for kind, branch in branches.items()
        if kind != "dropout"
    }
    t, base = found["own level"]
    parts = {f"{low:g} to {high:g}": (t > low) & (t <= high) for low, high in RANGES}
    return {
        "own level": {"all t": mean_of(base)}
        | {name: mean_of(base[rows]) for name, rows in parts.items()},
    } | {
        f"{kind}, less own level": {"all t": mean_of(e - base)}
        | {name: mean_of((e - base)[rows]) for name, rows in parts.items()}
        for kind, (_, e) in found.items()
        if kind != "own level"
    }


def directions(
    twins: Twins,
    branches: Mapping[str, DiT],
    images: Tensor,
    labels: Tensor,
    times: Sequence[float],
) -> list[dict]:
    """NAG's direction in the score by every null, on forward states of images (N, 1, 28, 28): mean
    cosine with the estimator's grad log g(t|x), and length over its.

    That gradient is another estimate of what the exact null's direction is."""
    net, rows, path = twins.family.net, [], twins.family.path
    noise = ImageNoise(range(10**6, 10**6 + len(images)))(images.shape[1:])
    for t in times:
        x = add_noise(images, noise, t, path)
        gradient = log_prob_gradient(twins.estimator, x, t)
        plain = GuidedField(net, labels).predict(x, t).mean
        for kind in branches:
            field = GuidedField(net, labels, [twins.term(kind, 1.0, branches)])
            change = field.predict(x, t).mean - plain  # f - f_null
            kinds = (net.config.prediction, "score", path)
            g = convert(plain + change, x, t, *kinds) - convert(plain, x, t, *kinds)
            cosine = nn.functional.cosine_similarity(g.flatten(1), gradient.flatten(1))
            size = (g.square().mean() / gradient.square().mean()).sqrt()
            rows.append({"t": t, "null": kind, "cosine": mean_of(cosine), "strength": size.item()})
    return rows


# ---- by images


@dataclass(frozen=True)
class Sampling:
    """How arms are sampled, at an equal number of evaluations per image by sampler ("ode", "sde"),
    and the features that distances are to."""

    report: SampleConfig
    tuning: SampleConfig
    nfe: Mapping[str, int]
    real: Features
    folder: Path

    def arm(
        self,
        twins: Twins,
        name: str,
        terms: Sequence[Term],
        sampler: str,
        weights: Sequence[Path],
        tuning: bool = False,
    ) -> study.Row:
        """An arm; `weights` are files beside the family's own."""
        family, config = twins.family, self.tuning if tuning else self.report
        solver = sampler_of(sampler, family.path)
        steps = steps_for(self.nfe[sampler], terms, solver, family.path)
        return study.kept_arm(
            self.folder,
            f"{family.name}-{sampler}-{name.replace(', ', '-').replace(' ', '-')}",
            family.net,
            terms,
            config.model_copy(update={"sampler": solver, "steps": steps}),
            weights=[*family.files, *weights],
            reader=None if tuning else family.reader,
            code=(Twins.term,),
            kind=name,
        )


def chosen_and_sampled(
    sampling: Sampling,
    twins: Twins,
    branches: Mapping[str, DiT],
    files: Mapping[str, Path],
    kinds: Sequence[str],
    weights: Sequence[float],
    budget: int,
    sampler: str,
) -> tuple[dict[str, dict], dict[str, study.Row]]:
    """The weight of every kind, by the bias-corrected distance on the tuning seeds, and the arms of
    the report: "none" and every kind at its weight. The search of each begins with `weights` and
    tries `budget` of them.
    """
    chosen, rows = {}, {"none": sampling.arm(twins, "none", [], sampler, [])}
    for kind in kinds:
        used = [files[kind]] if kind in files else []

        def arm(w: float, tuning: bool, kind: str = kind, used: list = used) -> study.Row:
            terms = [twins.term(kind, w, branches)]
            return sampling.arm(twins, kind, terms, sampler, used, tuning)

        def distance(w: float, arm: Callable = arm) -> Interval:
            return study.bias_corrected(arm(w, True), sampling.real)

        chosen[kind] = study.tuned(weights, distance, budget)
        rows[kind] = arm(chosen[kind]["w"], False)
    return chosen, rows


def ratios(rows: Mapping[str, study.Row], real: Features) -> dict[str, dict[str, dict]]:
    """Distances over the unguided arm's, and over those with the own null by dropout, paired."""

    def over(base: str) -> dict[str, dict]:
        return {
            kind: study.ratio(row, rows[base], real)
            for kind, row in rows.items()
            if kind not in ("none", base)
        }

    return {"unguided": over("none"), "dropout": over("dropout")}


def measured(
    rows: Mapping[str, Mapping[str, study.Row]], family: Family, real: Features, resamples: int
) -> dict[str, dict]:
    """Ratios, quality and late shift of the arms of every sampler."""
    found: dict[str, dict] = {"ratios": {}, "quality": {}, "shift_late": {}}
    for sampler, of in rows.items():
        shifts = study.shifts(of, family.path, family.reader)
        found["ratios"][sampler] = ratios(of, real)
        found["quality"][sampler] = study.quality(of, real, resamples)
        found["shift_late"][sampler] = {kind: numbers(x["late"]) for kind, x in shifts.items()}
    return found


def pictures(rows: Mapping[str, Mapping[str, study.Row]]) -> dict[str, study.Row]:
    """The arms for `study.save_images`, named "SAMPLER KIND"."""
    return {f"{s} {kind}": row for s, arms in rows.items() for kind, row in arms.items()}
