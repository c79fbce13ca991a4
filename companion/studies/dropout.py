"""Noise-condition dropout: at several rates from the start, and added to a network trained without.

The base is the network of the usual rate; its repeats differ from it in their training seed alone.
Ratios are of Fréchet distances, below 1 is better."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig
from companion.experiments.spaces import Features
from companion.pipeline import fingerprint
from nag import checkpoint
from nag.data import fashion_mnist
from nag.models import DiT
from nag.pretrained.further_training import FurtherConfig, forget, held_out_errors, run
from nag.pretrained.null_branch import INITIAL, add_null, load_null
from nag.shift import Estimator
from nag.support import paths
from nag.support.device import best_device
from nag.support.uncertainty import (
    Interval,
    around,
    by_factor,
    mean_ratio,
    over_trainings,
)
from nag.train import TrainConfig

ROUTES: dict[str, dict[str, Any]] = {  # what of the network is trained further
    "null": {"mode": "null"},
    "null + final layer": {"mode": "null", "layers": ("final_layer",)},
    "all": {"mode": "all", "noise_dropout": 0.1},  # the paper's way
}


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
    the features `real` of M images that distances are to; a fifth of them when tuning.
    """

    report: SampleConfig
    tuning: SampleConfig
    real: Features
    reader: Estimator
    process: str
    folder: Path
    resamples: int = 100

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
                self.real[::5],
                self.resamples,
                allow_rank_deficient=True,
            ),
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
        "spread_between_trainings": float(np.std([log_gain[n] for n in same], ddof=1))
        if k > 1
        else None,
        "trainings": k,
        "beside_base": {
            name: {
                "gain": beside(name, log_gain, quotient(name)),
                "distance with NAG": beside(name, log_distance, guided[name]),
            }
            for name in others
        },
    }


# ---- NAG as an afterthought


@dataclass(frozen=True)
class Afterthought:
    """A network that was trained without noise-condition dropout, and how it is trained further."""

    name: str
    file: Path
    split: str  # of Fashion-MNIST
    batch: int
    precision: str
    folder: Path

    @property
    def images_seen(self) -> int:
        """Images that it was trained on."""
        return int(checkpoint.read_weights(self.file)[1]["images_seen"])

    def further(self, route: str, start: str, share: float, lr: float) -> Path:
        """The file of the network after a share of its training more; trained if it is not there.

        `start` is where the null vector starts, a name in null_branch.INITIAL."""
        count = max(self.batch, round(share * self.images_seen))
        settings = TrainConfig(
            images_seen=count,
            batch_size=self.batch,
            lr=lr,
            warmup_steps=count // self.batch // 6,
            ema_decay=0.99,
            precision=self.precision,
            compile=False,  # too short to be worth compiling
        )
        base, code = checkpoint.sha256(self.file), fingerprint.digest(fingerprint.of_objects(run))
        key = settings.key(base, ROUTES[route], start, self.split, code)
        target = self.folder / f"{self.name}-{key}.safetensors"
        spec = FurtherConfig(
            weights=str(self.file),
            split=self.split,
            null_init=start,
            **ROUTES[route],
            train=settings,
            checkpoint=str(paths.CHECKPOINTS / f"{target.stem}.pt"),
            out=str(target),
        )
        if not target.is_file():
            run(spec)
            forget(spec)
        return target

    def opened(self, route: str, file: Path) -> tuple[DiT, DiT | None]:
        """The network that samples, and the twin that does without noise level (None: itself)."""
        if ROUTES[route]["mode"] == "all":
            return checkpoint.load(file).to(best_device()), None
        net = checkpoint.load(self.file).to(best_device())
        twin = load_null(file, net, checkpoint.sha256(self.file))
        return net, twin.requires_grad_(False)


Held = tuple[Tensor, Tensor]  # uint8 images (N, 1, 28, 28) and labels (N,)


def chosen_starts(
    of: Afterthought,
    share: float,
    rates: Mapping[str, Sequence[float]],
    report: Held,
    choosing: Held,
) -> dict:
    """The best learning rate of every route and start, and the best start of every route.

    {"lr": {(route, start): rate}, "picked": {route: start}, "starts", "smallest", "others"}. They
    are chosen by the errors on the choosing images, with and without the noise level together.
    "starts" has the error without it on the report's, less the untouched network's with it, before
    training and after; "others" how much larger that of each start is than of the smallest."""

    def score(route: str, file: Path) -> float:
        net, twin = of.opened(route, file)
        found = errors(twin or net, *choosing).mean()
        # A frozen network's error with the noise level is the same for all.
        return float(found if twin else found + errors(net, *choosing, drop=False).mean())

    plain = checkpoint.load(of.file).to(best_device())
    untouched = errors(plain, *report, drop=False)
    stages: dict[str, dict[str, Tensor]] = {"before training": {}}
    lrs, picked = {}, {}
    for start in INITIAL:
        add_null(plain, start)
        stages["before training"][start] = errors(plain, *report)
    for route in ROUTES:
        scores, stages[route] = {}, {}
        for start in INITIAL:
            tried = {lr: of.further(route, start, share, lr) for lr in rates[route]}
            found = {lr: score(route, file) for lr, file in tried.items()}
            lrs[route, start] = lr = min(found, key=found.__getitem__)
            scores[start] = found[lr]
            net, twin = of.opened(route, tried[lr])
            stages[route][start] = errors(twin or net, *report)
        picked[route] = min(scores, key=scores.__getitem__)
    smallest = {stage: min(e, key=lambda s: float(e[s].mean())) for stage, e in stages.items()}
    return {
        "lr": lrs,
        "picked": picked,
        "smallest": smallest,
        "starts": {
            stage: {start: mean_of(x - untouched) for start, x in e.items()}
            for stage, e in stages.items()
        },
        "others": {
            stage: {
                s: mean_of(x - e[smallest[stage]]) for s, x in e.items() if s != smallest[stage]
            }
            for stage, e in stages.items()
        },
    }


def add_afterwards(
    of: Afterthought,
    chosen: Mapping,
    shares: Sequence[float],
    weights: Sequence[float],
    sampling: Sampling,
    rows: Mapping[str, study.Row],
    base: str,
    base_gain: Mapping,
) -> tuple[dict, dict[str, study.Row], dict[str, dict]]:
    """Every route after the first share of the training, the whole network after all of them.

    Returns the numbers of each, its arms, and what was tuned. `rows` has the arms of the base and
    "NAME none" of the untouched network."""
    numbers, made, tuning = {}, {}, {}
    for route in ROUTES:
        for share in shares if route == "all" else shares[:1]:
            start, label = chosen["picked"][route], f"{route}, {share:.1%}"
            file = of.further(route, start, share, chosen["lr"][route, start])
            net, twin = of.opened(route, file)
            files = [file] if twin is None else [of.file, file]
            unguided = untouched = rows[f"{of.name} none"]
            if twin is None:
                unguided = made[f"{label} none"] = sampling.arm(label, net, 0.0, files)
            tuning[label] = sampling.tuned(label, net, weights, files, twin)
            w = tuning[label]["w"]
            guided = made[f"{label} NAG"] = sampling.arm(label, net, w, files, twin)
            gain = sampling.ratio(guided, unguided)
            share_of_gain = np.log(gain["value"]) / np.log(base_gain["value"])
            numbers[label] = {
                "route": route,
                "share": share,
                "start": start,
                "w": w,
                "gain": gain,
                "over untouched": sampling.ratio(guided, untouched),
                "over base's NAG": sampling.ratio(guided, rows[f"{base} NAG"]),
                "share of base's log gain": float(share_of_gain)
                if base_gain["value"] < 1
                else None,
            }
    return numbers, made, tuning


def records(
    rows: Mapping[str, study.Row],
    numbers: Mapping,
    quality: Mapping[str, Mapping],
    shift: Mapping[str, Mapping],
) -> pd.DataFrame:
    """One row for each arm, "NETWORK none" or "NETWORK NAG": weight, quality, late shift, and the
    ratio to its own network without guidance.
    """
    found, added, lines = numbers["dropout"], numbers["afterthought"]["arms"], []
    for arm, row in rows.items():
        network, _, kind = arm.rpartition(" ")
        line = {
            "arm": arm,
            "part": "dropout" if network in found["w"] else "afterthought",
            "network": network,
            "w": 0.0,
            "nfe": int(row["nfe"]),
            "n": len(row["seeds"]),
        }
        values = {**quality[arm], "shift_late": shift[arm]["late"]}
        if kind == "NAG":
            one = added.get(network)
            line["w"] = one["w"] if one else found["w"][network]
            values["ratio"] = one["gain"] if one else found["gain"][network]
        for what, x in values.items():
            line |= {what: x["value"], f"{what}_low": x["low"], f"{what}_high": x["high"]}
        lines.append(line | {"images_per_s": len(row["seeds"]) / float(row["seconds"])})
    return pd.DataFrame(lines)
