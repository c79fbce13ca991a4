"""What notebook 25 measures: how far the reading of one noise-level estimator can be trusted.

Estimators are the committed network, two architectures trained here from several seeds, the
paper's kind (the sampling network with a last layer that regresses t), and two that need no
training: the wavelet estimate (image by image) and the energy of a set of states."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig, sample
from companion.pipeline import fingerprint
from companion.studies.intervals import ENDS, numbers
from nag import checkpoint
from nag.estimator import NoiseEstimator, calibration, estimator_loss, posterior_mean
from nag.evaluation import other_estimators
from nag.interpolant import PATHS, add_noise
from nag.models import DiT
from nag.shift import (
    estimated_times,
    forward_states,
    is_late,
    late_ratio,
    late_time,
    noise_shift,
)
from nag.support.paths import CHECKPOINTS
from nag.support.rng import generator
from nag.support.uncertainty import Interval, around, interval
from nag.train import TrainConfig, train

Reader = Callable[[Tensor], Tensor]
Shifts = dict[str, dict]  # estimator: what `noise_shift` returns
ARCHITECTURES = {"attention": NoiseEstimator, "plain": other_estimators.PlainEstimator}
REGRESSED = "paper"
MOVING = "energy, alpha moves"  # shown and not counted: late in sampling it reads noise as less


# ---- the estimators


def trained(kind: str, images: Tensor, path: str, config: TrainConfig, kept: Path) -> nn.Module:
    """An estimator of an architecture, read from `kept` if it was trained there before, by the
    same code."""
    make = ARCHITECTURES[kind]
    code = fingerprint.digest(fingerprint.of_objects(trained, make))
    file = kept / f"{kind}-{config.seed}-{config.key(path, len(images), code)}.safetensors"
    if not file.is_file():
        torch.manual_seed(config.seed)
        net, state = make(), CHECKPOINTS / f"estimator-{file.stem}.pt"
        train(net, estimator_loss(images, path), len(images), config, state)
        checkpoint.save_weights(file, net.cpu(), path=path, seed=str(config.seed))
        state.unlink(missing_ok=True)
    return checkpoint.load_weights(file, make())


def fine_tuned(
    net: DiT, weights: Path, images: Tensor, config: TrainConfig, kept: Path
) -> other_estimators.RegressedLevel:
    """The paper's estimator made of a network and its file, read from `kept` if it was trained
    there before, by the same code."""
    code = fingerprint.digest(fingerprint.of_objects(fine_tuned))
    key = config.key(checkpoint.sha256(weights), len(images), code)
    file = kept / f"{REGRESSED}-{key}.safetensors"
    torch.manual_seed(config.seed)
    made = other_estimators.RegressedLevel(net)
    if not file.is_file():
        state = CHECKPOINTS / f"estimator-{file.stem}.pt"
        loss = other_estimators.regression_loss(images, net.config.path)
        train(made, loss, len(images), config, state)
        checkpoint.save_weights(file, made.cpu(), path=net.config.path, seed=str(config.seed))
        state.unlink(missing_ok=True)
    return checkpoint.load_weights(file, made.cpu())


def sizes(nets: Mapping[str, nn.Module]) -> dict[str, int]:
    """Parameters of each kind of network."""
    return {name.split()[0]: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}


def readers_of(
    nets: Mapping[str, nn.Module], regressed: nn.Module, images: Tensor, path: str
) -> dict[str, Reader]:
    """x (B, 1, 28, 28) -> t (B,) of every network, of the paper's kind, and of the wavelet
    estimate, whose bias is taken off by forward states of real images."""
    raw = partial(other_estimators.wavelet_time, path=path)
    readers: dict[str, Reader] = {name: partial(posterior_mean, net) for name, net in nets.items()}
    readers[REGRESSED] = regressed
    return readers | {"wavelet": other_estimators.calibrated(raw, images[:500], path)}


def calibration_table(
    nets: Mapping[str, nn.Module],
    readers: Mapping[str, Reader],
    held_out: Tensor,
    images: Tensor,
    path: str,
) -> dict[str, dict]:
    """How honest each estimator is on forward states of held-out images, half of them late.

    "coverage gap": the largest difference between how often central intervals of the posterior
    contain the truth and how often they should; None without a posterior. "late bias": the largest
    mean error of a late bin (of all of them without a posterior). "rms": the error of one
    image there. "answered": the share of states with an answer. The last two rows are the wavelet
    estimate before its bias is taken off, and the energy of single images."""
    n, gen = len(held_out), generator(0, 4)
    t = (torch.arange(n) + 0.5) / n
    t = t[torch.randperm(n, generator=gen)].clamp(2e-3, 1 - 2e-3)
    t = torch.cat([t, late_time(path) * t])
    noise = torch.randn(2 * n, *held_out.shape[1:], generator=gen)
    x_t, late = add_noise(held_out.repeat(2, 1, 1, 1), noise, t, path), is_late(t.numpy(), path)
    moment = float(other_estimators.energy(images[:5000]).mean())
    raw: dict[str, Reader] = {
        "wavelet, raw": partial(other_estimators.wavelet_time, path=path),
        "energy, each image": partial(
            other_estimators.energy_time, second_moment=moment, path=path
        ),
    }
    rows, every = {}, dict(readers) | raw
    for name, reader in every.items():
        error = (estimated_times(reader, x_t[:, None])[:, 0] - t.double().numpy())[late]
        rows[name] = {
            "coverage gap": None,
            "late bias": float(abs(np.nanmean(error))),
            "rms": float(np.sqrt(np.nanmean(error**2))),
            "answered": float(np.isfinite(error).mean()),
        }
        if name in nets:
            found = calibration(nets[name], x_t, t, bins=[0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
            rows[name] |= {
                "coverage gap": float(np.abs(found["coverage"] - found["level"]).max()),
                "late bias": float(np.abs(found["bias"][is_late(found["t"], path)]).max()),
            }
    return rows


# ---- the states that they read


def trajectories(net: DiT, arm: Arm, config: SampleConfig) -> dict:
    """An arm's states where they are looked at: late, one in the middle, and the images, to which
    the energies refer. "times" (K,), "states" (M, K, 1, 28, 28), "images", "nfe", "seconds"."""
    run = sample(net, arm.terms(), config, progress=False)
    times = run["times"]
    middle = np.arange(len(times)) == np.abs(times - 0.5).argmin()
    looked_at = is_late(times, net.config.path) | (times == 0) | middle
    states = torch.from_numpy(run["states"][:, looked_at]).float()
    kept = {name: run[name] for name in ("nfe", "seconds")} | {"images": run["images"][:10]}
    return kept | {"times": times[looked_at], "states": states}


def foreign_images(held_out: Tensor, sampled: Tensor) -> dict[str, Tensor]:
    """Real images, and some unlike those that the estimators know."""
    return {
        "real images": held_out,
        "blurred": gaussian_blur(held_out, [3, 3], [1.0, 1.0]),
        "half the contrast": (held_out - 1) / 2,
        "inverted": -held_out,
        "turned by 90°": held_out.rot90(1, (2, 3)),
        "mixed of two": (held_out + held_out.roll(1, 0)) / 2,
        "the sampler's images": sampled,
    }


def foreign_errors(
    images: Mapping[str, Tensor],
    readers: Mapping[str, Reader],
    levels: Sequence[float],
    known: float,
    path: str,
) -> tuple[dict, dict]:
    """Mean readings of known levels: (bias on real images {estimator: {t: bias}}, {kind of image:
    {estimator: interval}} of the mean late error minus that on real images).

    The last kind is no foreign image but the paper's Statement 1: real images with extra noise at
    the nominal alpha_t, as much as makes a level that is `known` higher."""
    grid, seed = torch.tensor(levels, dtype=torch.float64), 5 * 10**6
    states = {name: forward_states(x0, grid, path, seed) for name, x0 in images.items()}
    real = images["real images"]
    noise = forward_states(torch.zeros_like(real), torch.ones(1), "linear", seed)
    more = PATHS[path](grid + known).sigma - PATHS[path](grid).sigma
    extra = more.float().view(1, -1, 1, 1, 1) * noise
    states["known extra noise"] = states["real images"] + extra
    late, bias = is_late(grid.numpy(), path), {}
    errors: dict[str, dict[str, Interval]] = {}
    for name, reader in readers.items():
        readings = {kind: estimated_times(reader, x) for kind, x in states.items()}
        mean = readings["real images"].mean(0) - grid.numpy()
        bias[name] = {f"{t:g}": float(b) for t, b in zip(levels, mean, strict=True)}
        own = {kind: x[:, late].mean(1) for kind, x in readings.items()}
        base = own.pop("real images")
        for kind, x in own.items():
            error = np.hypot(x.std() / len(x) ** 0.5, base.std() / len(base) ** 0.5)
            errors.setdefault(kind, {})[name] = numbers(around(x.mean() - base.mean(), error))
    return bias, errors


# ---- the sampler's shift by every estimator


def shifts_of(
    run: Mapping, readers: Mapping[str, Reader], real: Tensor, path: str, resamples: int
) -> tuple[Shifts, Shifts]:
    """The shift of an arm against forward states of real images, as the paper measures it, and
    against those of the arm's own images, so that an estimator that misreads the look of sampled
    images errs on both sides alike. The energies use the arm's own final energy in any case."""
    times, states = run["times"], run["states"]
    by_real = forward_states(real, times, path)
    by_own = study.own_states(states, times, path)
    shifts, own = {}, {}
    for name, reader in readers.items():
        levels = estimated_times(reader, states)
        shifts[name], own[name] = (
            noise_shift(levels, estimated_times(reader, control), times, resamples, path=path)
            for control in (by_real, by_own)
        )
    sampled, control = (estimated_times(other_estimators.energy, x) for x in (states, by_real))
    for name, hold_alpha in (("energy", True), (MOVING, False)):
        shifts[name] = other_estimators.energy_shift(
            sampled, control, times, path, hold_alpha, resamples
        )
    return shifts, own


def counted(shifts: Mapping) -> list[str]:
    """The estimators whose readings count."""
    return [name for name in shifts if name != MOVING]


def _difference(shifts: Shifts, late: np.ndarray, one: list[str], other: list[str]) -> Interval:
    """Mean late shift by some estimators minus that by others, paired: all read the same states."""

    def mean(names: list[str]) -> tuple[float, np.ndarray]:
        draws = [shifts[name]["draws"][:, late].mean(1) for name in names]
        return np.mean([shifts[name]["late"]["value"] for name in names]), np.mean(draws, axis=0)

    (a, of_a), (b, of_b) = mean(one), mean(other)
    return numbers(interval(a - b, of_a - of_b))


def spread(shifts: Shifts, times: np.ndarray, seeds: Sequence[int], path: str = "linear") -> dict:
    """How much the late shift of an arm depends on the estimator: range, standard deviation over
    training seeds (of each architecture, joined), and differences between kinds."""
    values = {name: float(shifts[name]["late"]["value"]) for name in counted(shifts)}
    kinds = {kind: [f"{kind} {seed}" for seed in seeds] for kind in ARCHITECTURES}
    networks, late = sum(kinds.values(), []), is_late(times, path)
    by_kind = [[values[name] for name in names] for names in kinds.values()]
    return {
        "mean": float(np.mean(list(values.values()))),
        "lowest": min(values.values()),
        "highest": max(values.values()),
        "seed_sd": float(np.sqrt(np.var(by_kind, axis=1, ddof=1).mean()))
        if len(seeds) > 1
        else None,
        "plain_minus_attention": _difference(shifts, late, kinds["plain"], kinds["attention"]),
        "wavelet_minus_networks": _difference(shifts, late, ["wavelet"], networks),
        "energy_minus_networks": _difference(shifts, late, ["energy"], networks),
        "paper_minus_networks": _difference(shifts, late, [REGRESSED], networks),
    }


def ratios(
    guided: Shifts, unguided: Shifts, times: np.ndarray, path: str = "linear"
) -> dict[str, Interval]:
    """|late shift| of an arm over that of another by every estimator."""
    return {
        name: numbers(late_ratio(guided[name], unguided[name], times, path=path)) for name in guided
    }


def smaller(over_unguided: Mapping[str, Interval]) -> int:
    """How many of the counted estimators see |shift| become smaller."""
    return sum(over_unguided[name]["high"] < 1 for name in counted(over_unguided))


def late(shifts: Mapping[str, Shifts]) -> dict[str, dict[str, Interval]]:
    """The late shift of every arm by every estimator."""
    return {
        arm: {name: numbers(shift["late"]) for name, shift in row.items()}
        for arm, row in shifts.items()
    }


def table(
    runs: Mapping[str, dict],
    shifts: Mapping[str, Shifts],
    own: Mapping[str, Shifts],
    over_unguided: Mapping[str, Mapping[str, Interval]],
) -> pd.DataFrame:
    """One line for each arm and estimator: late shift, that against the arm's own images (None for
    the energies), and |shift| over that of the unguided arm."""
    lines = []
    for arm, run in runs.items():
        images = len(run["states"])
        for name, shift in shifts[arm].items():
            found = {"late": shift["late"], "ratio": over_unguided[arm][name]}
            found |= {"own": own[arm][name]["late"]} if name in own[arm] else {}
            lines.append(
                {"arm": arm, "estimator": name, "nfe": int(run["nfe"]), "n": images}
                | {f"{key}_{end}": float(x[end]) for key, x in found.items() for end in ENDS}
                | {"images_per_second": images / float(run["seconds"])}
            )
    return pd.DataFrame(lines).round(6)


def foreign_table(errors: Mapping[str, Mapping[str, Interval]]) -> pd.DataFrame:
    """Errors on foreign images without their intervals: a row for each kind."""
    values = {kind: {name: x["value"] for name, x in row.items()} for kind, row in errors.items()}
    return pd.DataFrame(values).T.rename_axis("images").reset_index().round(6)
