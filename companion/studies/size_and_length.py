"""Noise shift and NAG's gain by size and by length of training, and their trends.

A measure of a network is an array (1 + resamples,): its value, then bootstrap draws of it. The
spread between networks that differ in their training seed alone is what a trend has to beat."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from torch import Tensor

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig
from nag import checkpoint
from nag.losses import condition_losses
from nag.shift import Estimator, is_late
from nag.support.uncertainty import Z95, interval

Measures = Mapping[str, Mapping[str, np.ndarray]]  # by measure, then by network


def facts(file: Path, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Parameters, images seen in training, and the mean held-out loss on images (N, 1, 28, 28) in
    [-1, 1], with the noise level given and without it.
    """
    net = checkpoint.load(file)
    losses = condition_losses(net, images, labels, seed=1)
    given, dropped = (
        float(np.mean(list(losses[way].values())))
        for way in ("class and noise level", "class only")
    )
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "held_out_loss": given,
        "loss_without_level": dropped,
        "images_seen": int(checkpoint.read_weights(file)[1]["images_seen"]),
    }


def arms(
    name: str,
    file: Path,
    plan: Mapping[str, tuple[float, SampleConfig]],
    folder: Path,
    reader: Estimator,
) -> dict[str, study.Row]:
    """The arms of one network, kept in `folder`; `plan` has w and how to sample of each arm."""
    net, weights = checkpoint.load(file), [file, study.estimator_file("linear")]
    return {
        arm: study.kept_arm(
            folder,
            f"{name}-{arm}",
            net,
            Arm(w_nag=w).terms(),
            config,
            weights=weights,
            reader=reader,
        )
        for arm, (w, config) in plan.items()
    }


def gains(ratios: Mapping[tuple[str, float], Mapping]) -> tuple[dict, bool]:
    """NAG's ratios, bias-corrected if all of them can be, and whether they are.

    One rule for all: few images draw a raw ratio towards one, the more the better a network is.
    """
    corrected = all(found["bias_corrected"] for found in ratios.values())
    return {k: x if corrected else study.uncorrected(x) for k, x in ratios.items()}, corrected


def measures(
    networks: Mapping[str, Mapping],
    rows: Mapping[tuple[str, str], study.Row],
    shift: Mapping[tuple[str, str], Mapping],
    quality: Mapping[tuple[str, str], Mapping],
    gain: Mapping[tuple[str, float], Mapping],
    gen: np.random.Generator,
) -> Measures:
    """What may have a trend, of every network: late shifts, logarithms of the distance and of NAG's
    ratios, and the held-out loss.

    Shifts are resampled over images; a logarithm has its normal error; the loss has none."""
    resamples = len(next(iter(shift.values()))["draws"])

    def late(key: tuple[str, str]) -> np.ndarray:
        draws = shift[key]["draws"][:, is_late(rows[key]["times"])].mean(1)
        return np.r_[shift[key]["late"]["value"], draws]

    def log_normal(x: Mapping[str, float]) -> np.ndarray:
        error = np.log(x["high"] / x["value"]) / Z95
        return np.log(x["value"]) + error * np.r_[0, gen.standard_normal(resamples)]

    weights = dict.fromkeys(w for _, w in gain)
    return {
        "late shift, stochastic": {name: late((name, "sde")) for name in networks},
        "late shift, Euler": {name: late((name, "w=0")) for name in networks},
        "log distance": {name: log_normal(quality[name, "w=0"]["fd_inf"]) for name in networks},
        "held-out loss": {
            name: np.full(resamples + 1, x["held_out_loss"]) for name, x in networks.items()
        },
    } | {
        f"log distance ratio of NAG, w={w:g}": {n: log_normal(gain[n, w]) for n in networks}
        for w in weights
    }


def seed_spread(measure: Mapping[str, np.ndarray], seeds: Sequence[Sequence[str]]) -> float:
    """Standard deviation over networks that differ in their training seed alone, pooled over the
    groups of such networks.
    """
    squares = sum(np.var([measure[name][0] for name in alike]) * len(alike) for alike in seeds)
    return float(np.sqrt(squares / freedom(seeds)))


def freedom(seeds: Sequence[Sequence[str]]) -> int:
    """Degrees of freedom of `seed_spread`."""
    return sum(len(alike) - 1 for alike in seeds)


def _slope(x: np.ndarray, y: np.ndarray) -> dict:
    """Slope and Spearman's rank correlation of y (networks, 1 + draws) along x (networks,)."""
    centred, ranks = (rankdata(a, axis=0) - (len(x) + 1) / 2 for a in (y, x))
    rank = ranks @ centred / np.sqrt((ranks @ ranks) * np.square(centred).sum(0).clip(1e-12))
    found: dict[str, np.ndarray] = {"rank": rank, "per_doubling": np.polyfit(x, y, 1)[0]}
    shown: dict[str, Mapping[str, Any]] = {k: interval(a[0], a[1:]) for k, a in found.items()}
    return {k: {end: float(v) for end, v in x.items()} for k, x in shown.items()} | {
        "first": float(y[0, 0]),
        "last": float(y[-1, 0]),
    }


def trend(
    chain: Sequence[str],
    amounts: Sequence[float],
    measure: Mapping[str, np.ndarray],
    seeds: Sequence[Sequence[str]],
    gen: np.random.Generator,
    absolute: bool = False,
) -> dict:
    """Change of a measure per doubling of `amounts` along a chain of networks, with 95 % intervals.

    {"per_doubling", "rank", "first", "last", "signed", "seed_sd", "range"}; "signed" is the same of
    the measure with its sign if `absolute` values count. The mean over training seeds counts where
    there are several. The interval holds the images of each measurement and the training seed of
    each network, drawn with the spread between seeds, itself drawn, as it is from few of them."""
    group = {alike[0]: alike for alike in seeds}
    alike = [group.get(name, [name]) for name in chain]
    x = np.log2(amounts)
    y = np.stack([np.mean([measure[name] for name in same], axis=0) for same in alike])
    spread, resamples = seed_spread(measure, seeds), y.shape[1] - 1
    scale = spread * np.sqrt(freedom(seeds) / gen.chisquare(freedom(seeds), resamples))
    noise = scale * gen.standard_normal((len(chain), resamples))
    y[:, 1:] += noise / np.sqrt([[len(same)] for same in alike])
    signed = _slope(x, y)
    return (_slope(x, np.abs(y)) if absolute else signed) | {
        "signed": signed,
        "seed_sd": spread,
        "range": float(np.ptp(y[:, 0])),
    }


def trends(
    chains: Mapping[str, Sequence[str]],
    networks: Mapping[str, Mapping],
    found: Measures,
    seeds: Sequence[Sequence[str]],
    gen: np.random.Generator,
) -> dict[str, dict[str, dict]]:
    """The trend of every measure along the chains "size" and "length"; shifts count by their
    distance from zero.
    """
    along = {"size": "parameters", "length": "images_seen"}
    return {
        axis: {
            what: trend(
                chain,
                [networks[name][along[axis]] for name in chain],
                measure,
                seeds,
                gen,
                absolute=what.startswith("late shift"),
            )
            for what, measure in found.items()
        }
        for axis, chain in chains.items()
    }


def described(
    networks: Mapping[str, Mapping],
    shift: Mapping[tuple[str, str], Mapping],
    quality: Mapping[tuple[str, str], Mapping],
    ratios: Mapping[tuple[str, float], Mapping],
    gain: Mapping[tuple[str, float], Mapping],
) -> dict[str, dict]:
    """All numbers of every network, with their intervals, as JSON can hold them."""

    def triple(x: Mapping) -> dict[str, float]:
        return {k: float(x[k]) for k in ("value", "low", "high")}

    arms = [arm for arm in dict.fromkeys(arm for _, arm in shift) if arm != "sde"]
    weights = dict.fromkeys(w for _, w in ratios)
    return {
        name: {
            **about,
            "shift_sde": triple(shift[name, "sde"]["late"]),
            "shift_ode": triple(shift[name, "w=0"]["late"]),
            "shift_nag": {f"w={w:g}": triple(shift[name, f"w={w:g}"]["late"]) for w in weights},
            "fd": {arm: triple(quality[name, arm]["fd"]) for arm in arms},
            "fd_inf": {arm: triple(quality[name, arm]["fd_inf"]) for arm in arms},
            "ratio": {f"w={w:g}": triple(ratios[name, w]) for w in weights},
            "gain": {f"w={w:g}": triple(gain[name, w]) for w in weights},
        }
        for name, about in networks.items()
    }


def records(
    networks: Mapping[str, Mapping],
    plan: Mapping[str, tuple[float, SampleConfig]],
    rows: Mapping[tuple[str, str], study.Row],
    shift: Mapping[tuple[str, str], Mapping],
    quality: Mapping[tuple[str, str], Mapping],
    ratios: Mapping[tuple[str, float], Mapping],
) -> pd.DataFrame:
    """One row for each arm of each network: how it was sampled, shift, quality and ratio."""
    lines = []
    for (name, arm), row in rows.items():
        w, config = plan[arm]
        found = {"late_shift": shift[name, arm]["late"]}
        if arm != "sde":
            found |= {k: quality[name, arm][k] for k in ("fd", "fd_inf", "precision", "recall")}
        if w:
            found |= {"ratio": ratios[name, w], "ratio_raw": ratios[name, w]["raw"]}
        line = {"network": name, **networks[name], "w_nag": w, "solver": config.sampler}
        line |= {"steps": config.steps, "nfe": int(row["nfe"]), "n": len(row["seeds"])}
        line["images_per_second"] = len(row["seeds"]) / float(row["seconds"])
        for what, x in found.items():
            if x:
                line |= {what: x["value"], f"{what}_low": x["low"], f"{what}_high": x["high"]}
        lines.append(line)
    return pd.DataFrame(lines)
