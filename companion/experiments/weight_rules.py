"""Weights of NAG that the noise-level estimator finds alone, and their worth (notebook 12)."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from companion.experiments.arms import reader
from companion.experiments.evaluation import reference_features
from companion.experiments.generate import Arm, SampleConfig, labels_of, sample
from companion.experiments.images import held_out
from companion.experiments.spaces import Features, features_of
from companion.experiments.spaces import ratio as ratio_of
from nag import checkpoint
from nag.auto_weight import ScheduledArm, excess, null_weight, weight_schedule
from nag.interpolant import PATH_OF
from nag.models import DiT
from nag.samplers.registry import time_grid
from nag.shift import estimated_times, forward_states
from nag.support.device import best_device
from nag.support.paths import RESULTS, WEIGHTS
from nag.support.rng import ImageNoise

RULES = ("mean", "spread", "schedule")
CLOSE = 1.05  # of the best swept constant: "as good as the sweep"


class Setting(NamedTuple):
    """What the rules need of a family."""

    config: SampleConfig  # of the small batch
    net: DiT  # the committed network
    read: Callable  # the committed estimator, x -> E[t | x]
    times: Tensor  # (K,) of the sampler
    control: np.ndarray  # (4 N, K) levels read from forward states, four for each image


def prepare(family: str, config: SampleConfig) -> Setting:
    """The committed network and estimator of a family, and the forward states' levels."""
    path = PATH_OF[family]
    net = checkpoint.load(WEIGHTS / f"{family}.safetensors").to(best_device())
    times, read = time_grid(config.sampler, config.steps, path), reader(path, RESULTS)
    real, _ = held_out("", 4 * config.n_images)
    control = estimated_times(read, forward_states(real, times, path))
    return Setting(config, net, read, times, control)


def constant(setting: Setting, weights: Sequence[float]) -> dict:
    """The constant w at which the late shift, or the late spread of the level over images, is that
    of forward states.

    {"excess": a row for each weight tried, "constant": {rule: {"w", "nulled"}}, "cost"}."""
    config, start, rows, evaluations = setting.config, time.perf_counter(), [], 0
    for w in weights:
        run = sample(setting.net, Arm(w_nag=w).terms(), config, progress=False)
        evaluations += config.n_images * int(run["nfe"])
        levels = estimated_times(setting.read, run["states"])
        rows.append(
            {"w": w} | excess(levels, setting.control, run["times"], setting.net.config.path)
        )
    found = {rule: null_weight(weights, [row[rule] for row in rows]) for rule in RULES[:2]}
    return {
        "excess": rows,
        "constant": {rule: {"w": w, "nulled": nulled} for rule, (w, nulled) in found.items()},
        "cost": _cost(evaluations, start),
    }


def schedule(setting: Setting) -> dict:
    """A w(t) that nulls the shift at every step: {"times", "weights", "cost"}."""
    start, seeds, device = time.perf_counter(), setting.config.seeds, best_device()
    at, weights = weight_schedule(
        setting.net,
        setting.read,
        setting.control,
        setting.times,
        labels_of(seeds, setting.net.config.classes).to(device),
        ImageNoise(seeds, device),
        sampler=setting.config.sampler,
    )
    cost = _cost(3 * setting.config.steps * len(seeds), start)
    return {"times": at, "weights": weights, "cost": cost}


def _cost(evaluations: int, start: float) -> dict[str, float]:
    return {"evaluations": evaluations, "seconds": round(time.perf_counter() - start, 1)}


def distances_over(
    net: DiT,
    swept: float,
    constant: Mapping[str, Mapping],
    schedule: Mapping[str, Sequence[float]],
    config: SampleConfig,
    reference_images: int,
) -> dict[str, dict[str, dict]]:
    """Fréchet distance of no guidance, of the swept weight and of each rule's, over that of the
    swept weight and of no guidance, paired by seed: {arm: {other: ratio}}.

    Equal arms are sampled once, and their ratio is one without an interval."""
    arms: dict[str, Arm | ScheduledArm] = {
        "none": Arm(),
        "best of sweep": Arm(w_nag=swept),
        "mean": Arm(w_nag=constant["mean"]["w"]),
        "spread": Arm(w_nag=constant["spread"]["w"]),
        "schedule": ScheduledArm(tuple(schedule["times"]), tuple(schedule["weights"])),
    }
    reference = reference_features(reference_images)
    features: dict[str, Features] = {}
    for name, arm in arms.items():
        same = next((other for other in features if arms[other] == arm), None)
        if same is None:
            run = sample(net, arm.terms(), config, progress=False)
            features[name] = features_of(run["images"])
            labels = run["labels"]
        else:
            features[name] = features[same]
        print(name if same is None else f"{name} is {same}", flush=True)

    def ratio(name: str, other: str) -> dict:
        if features[name] is features[other]:
            return dict.fromkeys(("value", "low", "high"), 1.0)
        return ratio_of(features[name], features[other], reference, labels)

    others = ("best of sweep", "none")
    return {name: {other: ratio(name, other) for other in others} for name in arms}


def as_good(over: Mapping[str, Mapping]) -> dict[str, dict[str, bool]]:
    """Whether each rule's distance is at most 5 % above the best swept weight's: by its value, by
    its whole interval, and whether the whole interval is above."""
    ratios = {rule: over[rule]["best of sweep"] for rule in RULES}
    return {
        rule: {
            "value": r["value"] <= CLOSE,
            "surely": r["high"] <= CLOSE,
            "surely not": r["low"] > CLOSE,
        }
        for rule, r in ratios.items()
    }


def mean_weights(found: Mapping) -> dict[str, float]:
    """The weight of each arm of auto-FAMILY.json; of the schedule its mean over steps."""
    constant = {rule: found["constant"][rule]["w"] for rule in RULES[:2]}
    schedule = float(np.mean(found["schedule"]["weights"]))
    return {"none": 0.0, "best of sweep": found["swept"]} | constant | {"schedule": schedule}
