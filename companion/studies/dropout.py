"""Noise-condition dropout at several rates.

The base is the network of the usual rate; its repeats differ from it in their training seed alone.
Ratios are of Fréchet distances, below 1 is better."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig
from companion.experiments.spaces import Features
from nag.data import fashion_mnist
from nag.models import DiT
from nag.pretrained.further_training import held_out_errors
from nag.shift import Estimator
from nag.support.uncertainty import (
    Interval,
    around,
    by_factor,
    mean_ratio,
    over_trainings,
)

PLAIN = str.maketrans({" ": None, ",": "-", "%": None})  # for names of files


# ---- held-out errors


def errors(net: DiT, images: Tensor, labels: Tensor, drop: bool = True) -> Tensor:
    """Squared errors (N,) on uint8 images (N, 1, 28, 28), the noise level dropped or not; the same
    levels and noise for all networks.
    """
    return held_out_errors(net, fashion_mnist.to_float(images), labels, seed=1, drop_noise=drop)[1]


def mean_of(x: Tensor) -> Interval:
    """Mean of (N,) numbers with its 95 % interval."""
    return around(x.mean().item(), x.std().item() / len(x) ** 0.5)


def held_out(found: Mapping[str, Mapping[bool, Tensor]], base: str) -> dict[str, dict]:
    """Mean errors of every network with and without the noise level, and less the base's, in pairs.

    `found` has the errors of each network by whether the level was dropped."""
    names = {False: "with level", True: "without level"}
    return {
        network: {names[drop]: mean_of(e) for drop, e in by_drop.items()}
        | {
            f"{names[drop]}, less base": mean_of(e - found[base][drop])
            for drop, e in by_drop.items()
        }
        for network, by_drop in found.items()
    }


# ---- arms


@dataclass(frozen=True)
class Sampling:
    """How arms are sampled, on the seeds of the report or on those that weights are chosen on, and
    the features `real` of M images that distances are to.

    `budget` is how many weights are tried (`study.tuned`)."""

    report: SampleConfig
    tuning: SampleConfig
    real: Features
    reader: Estimator
    process: str
    folder: Path
    resamples: int = 100
    budget: int | None = None

    def arm(
        self,
        name: str,
        net: DiT,
        w: float,
        weights: Sequence[Path],
        unaware: DiT | None = None,
        tuning: bool = False,
    ) -> study.Row:
        """An arm of weight w; `weights` are the files of the networks, `unaware` is the one without
        noise level if that is another.
        """
        return study.kept_arm(
            self.folder,
            f"{name.translate(PLAIN)}-w{w:g}",
            net,
            Arm(w_nag=w).terms(unaware=unaware),
            self.tuning if tuning else self.report,
            weights=[*weights, study.estimator_file(self.process)],
            reader=None if tuning else self.reader,
        )

    def tuned(
        self,
        name: str,
        net: DiT,
        candidates: Iterable[float],
        weights: Sequence[Path],
        unaware: DiT | None = None,
    ) -> dict:
        """The weight of the smallest bias-corrected distance on the tuning seeds."""
        return study.tuned(
            candidates,
            lambda w: study.bias_corrected(
                self.arm(name, net, w, weights, unaware, tuning=True),
                self.real,
                self.resamples,
            ),
            self.budget,
        )

    def ratio(self, row: study.Row, other: study.Row) -> dict:
        """Paired ratio of the distances of two arms."""
        return study.ratio(row, other, self.real)


# ---- rates of dropout


def with_trainings(ratio: Mapping, spread: float | None, trainings: int) -> dict:
    """A ratio whose interval also has the spread of its logarithm over trainings, if there are
    several.
    """
    if spread is None or trainings == 1:
        return dict(ratio)
    return dict(over_trainings(ratio, spread, trainings))


def spread_of(ratios: Sequence[Mapping]) -> float | None:
    """Standard deviation of the logarithm of ratios, one of each training; None of a single one."""
    logs = [np.log(x["value"]) for x in ratios]
    return float(np.std(logs, ddof=1)) if len(logs) > 1 else None


def gain_from_start(rows: Mapping[str, study.Row], networks: Sequence[str], real: Features) -> dict:
    """NAG's gain of trainings that differ in their seed alone: of "each", the mean "gain", and the
    "spread" of its logarithm (None of a single one); `rows` has "NETWORK none" and "NETWORK NAG".
    """
    each = {n: study.ratio(rows[f"{n} NAG"], rows[f"{n} none"], real) for n in networks}
    return {
        "each": each,
        "gain": mean_ratio([*each.values()]),
        "spread": spread_of([*each.values()]),
        "trainings": len(each),
    }


def compare_rates(
    rows: Mapping[str, study.Row],
    base: str,
    others: Sequence[str],
    repeats: Sequence[str],
    real: Features,
) -> dict:
    """NAG's gain at every rate, and each rate beside the mean of the base and its repeats.

    `rows` has "NETWORK none" and "NETWORK NAG"; `others` are networks of other rates, one training
    each. A rate may gain more only because it spoils the unguided network, so the distance with NAG
    itself is compared, too. The spread is the standard deviation of the log gain over trainings."""

    def over(arm: str, other: str) -> dict:
        return study.ratio(rows[arm], rows[other], real)

    same, k = [base, *repeats], 1 + len(repeats)
    networks = dict.fromkeys([*same, *others])
    gain = {name: over(f"{name} NAG", f"{name} none") for name in networks}
    guided = {name: over(f"{name} NAG", f"{base} NAG") for name in [base, *others]}
    with_nag = [rows[f"{name} NAG"] for name in networks]
    log_distance = dict(zip(networks, study.log_distances(with_nag, real), strict=True))
    corrected = all(x["bias_corrected"] for x in [*gain.values(), *guided.values()])
    if not (corrected and np.isfinite([*log_distance.values()]).all()):
        raw = study.log_distances(with_nag, real, corrected=False)
        log_distance = dict(zip(networks, raw, strict=True))
        gain, guided = (
            {name: study.uncorrected(x) for name, x in of.items()} for of in (gain, guided)
        )
    log_gain = {name: np.log(gain[name]["value"]) for name in networks}

    def beside(name: str, logs: Mapping[str, float], over_base: Mapping) -> dict:
        """exp(log of one network - mean of base and repeats); `over_base` has the error over
        images.
        """
        alike = [logs[other] for other in same]
        moved = float(np.exp(logs[name] - np.mean(alike))) / over_base["value"]
        ratio = {end: over_base[end] * moved for end in ("value", "low", "high")}
        spread = np.std(alike, ddof=1) * (1 + 1 / k) ** 0.5 if k > 1 else None
        return with_trainings(ratio, spread, k)

    def quotient(name: str) -> Interval:
        halves = [np.log(gain[n]["high"] / gain[n]["value"]) for n in (name, base)]
        return by_factor(gain[name]["value"] / gain[base]["value"], float(np.hypot(*halves)))

    return {
        "gain": gain,
        "gain_of_base": mean_ratio([gain[name] for name in same]),
        "none_over_base": {n: over(f"{n} none", f"{base} none") for n in [base, *others]},
        "nag_over_base": guided,
        "spread_between_trainings": spread_of([gain[n] for n in same]),
        "trainings": k,
        "beside_base": {
            name: {
                "gain": beside(name, log_gain, quotient(name)),
                "distance with NAG": beside(name, log_distance, guided[name]),
            }
            for name in others
        },
    }


# ---- table


def records(
    rows: Mapping[str, study.Row],
    weights: Mapping[str, float],
    gains: Mapping[str, Mapping],
    quality: Mapping[str, Mapping],
    shift: Mapping[str, Mapping],
) -> pd.DataFrame:
    """One row for each arm, "NETWORK none" or "NETWORK NAG": weight, quality, late shift, and the
    ratio to its own network without guidance.
    """
    lines = []
    for arm, row in rows.items():
        network, _, kind = arm.rpartition(" ")
        values = {**quality[arm], "shift_late": shift[arm]["late"]}
        if kind == "NAG":
            values["ratio"] = gains[network]
        line = {
            "arm": arm,
            "network": network,
            "w": weights[network] if kind == "NAG" else 0.0,
            "nfe": int(row["nfe"]),
            "n": len(row["seeds"]),
        }
        for what, x in values.items():
            line |= {what: x["value"], f"{what}_low": x["low"], f"{what}_high": x["high"]}
        lines.append(line | {"images_per_s": len(row["seeds"]) / float(row["seconds"])})
    return pd.DataFrame(lines)
