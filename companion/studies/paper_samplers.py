"""What notebook 32 measures: the paper's own samplers in its 250 steps (Euler-Maruyama for SiT,
DDPM for DiT), without guidance, with NAG, with CFG and with both.

Euler-Maruyama's trajectories end in two images each, by Tweedie's formula and by SiT's own last
step, from the same last evaluation: the second leaves noise in images of pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.experiments import readings, study, tuning
from companion.experiments.evaluation import PAIRS
from companion.experiments.generate import Arm, SampleConfig, protocol
from companion.experiments.spaces import Features
from companion.studies.families import Family
from companion.studies.intervals import ENDS
from nag import checkpoint
from nag.data import fashion_mnist
from nag.interpolant import falling, time_of_ratio
from nag.samplers.one_step import Field, Noise, State, euler_maruyama_step
from nag.samplers.registry import resolve
from nag.support.uncertainty import Interval

Rows = dict[str, study.Row]  # by arm, such as "cfg-nag"
RATIOS = (4.0, 1.0, 0.1)  # sigma_t / alpha_t early, midway and late, where levels are kept
LAST_STEPS = ("tweedie", "mean")  # Euler-Maruyama's; the first is the headline
NAMES = {"tweedie": "Tweedie's", "mean": "SiT's, along the drift"}
NUMBERS = ("shift_late", "middle", "growth", "spread_late", "late_ratio")


def euler_maruyama_with_both_ends(
    field: Field, x: Tensor, times: Tensor, noise: Noise, path: str = "linear"
) -> Iterator[State]:
    """Euler-Maruyama whose last state (B, 2 C, H, W) has the images of both LAST_STEPS as channels,
    made of one evaluation."""
    yield x, float(times[0])
    *steps, (t, s) = pairwise(falling(times))
    for now, then in steps:
        x = euler_maruyama_step(field, x, now, then, noise, path)
        yield x, then
    v = field(x, t)
    ends = [
        euler_maruyama_step(lambda *_: v, x, t, s, noise, path, True, last_step=kind)
        for kind in LAST_STEPS
    ]
    yield torch.cat(ends, dim=1), s


@dataclass(frozen=True)
class Sampling:
    """How the arms of a family are sampled, and where they are kept."""

    family: Family
    folder: Path

    @property
    def ends(self) -> tuple[str, ...]:
        """The last steps whose images an arm has."""
        return LAST_STEPS if resolve("sde", self.family.path) == "euler_maruyama" else ("",)

    def arm(self, arm: Arm, config: SampleConfig) -> study.Row:
        """An arm under the paper's sampler, kept with everything that decides it."""
        several = len(self.ends) > 1
        reader = self.family.reader if config.trajectories else None
        return study.kept_arm(
            self.folder,
            f"{self.family.name}-w{arm.w_nag:g}-cfg{arm.cfg:g}",
            self.family.net,
            arm.terms(),
            config,
            weights=self.family.files,
            reader=reader,
            solver=euler_maruyama_with_both_ends if several else None,
            code=[euler_maruyama_with_both_ends] if several else [],
            own=True,
        )


@dataclass(frozen=True)
class Tuning:
    """Arms as `tuning.tune` tries them: on tuning seeds, by the first of the last steps."""

    sampling: Sampling
    config: SampleConfig
    real: Features

    def row(self, arm: Arm) -> dict[str, float]:
        """Bias-corrected distances of an arm, by the first last step in "fd_inf"."""
        row = self.sampling.arm(arm, self.config)
        found: dict[str, float] = {"w_nag": arm.w_nag, "cfg": arm.cfg}
        for k, end in enumerate(self.sampling.ends):
            name = f"fd_inf_{end}" if k else "fd_inf"
            found[name] = study.bias_corrected(study.at_end(row, k), self.real)["value"]
        return found


def sampled(
    sampling: Sampling, chosen: Mapping[str, Arm], config: SampleConfig, pair_images: int
) -> Rows:
    """The four arms on the report's seeds; no guidance and NAG, whose ratio is the headline, with
    `pair_images` if those are more."""
    rows = {}
    for name, arm in chosen.items():
        n = max(config.n_images, pair_images) if name in ("none", "nag") else config.n_images
        rows[name] = sampling.arm(arm, config.model_copy(update={"n_images": n}))
    return rows


def ratios(rows: Rows, real: Features, k: int = 0) -> dict[str, dict]:
    """The pairs of notebook 7, each on all images that both arms have, at the end number k."""
    found = {}
    for pair, (a, b) in PAIRS.items():
        n = min(len(rows[a]["seeds"]), len(rows[b]["seeds"]))
        one, other = (study.at_end(study.first(rows[arm], n), k) for arm in (a, b))
        found[pair] = study.ratio(one, other, real)
    return found


def shifts(rows: Rows, family: Family, resamples: int) -> dict[str, dict]:
    """The noise shift of every arm against forward states of real images, "shift" and "curves" for
    figures, and against those of its own images, "shift_own" and "curves_own"."""
    by_real = study.shifts(rows, family.path, family.reader, resamples)
    by_own = study.own_shifts(rows, family.path, resamples)
    shift, curves = read(rows, by_real, family.path)
    shift_own, curves_own = read(rows, by_own, family.path)
    return {
        "shift": shift,
        "curves": curves,
        "shift_own": shift_own,
        "curves_own": curves_own,
    }


def read(
    rows: Rows, found: Mapping[str, dict], path: str
) -> tuple[dict[str, dict[str, Interval]], dict]:
    """Numbers by arm and curves of what `nag.shift.noise_shift` found of every arm."""
    times = rows["none"]["times"]
    levels = {arm: row["levels"] for arm, row in rows.items()}
    of = readings.Readings(path, times, np.zeros((0, len(times))), levels, dict(found), {})
    n = len(rows["none"]["levels"])
    seeds = rows["none"]["seeds"][[0, n - 1]].tolist()
    curves = readings.curves(of, n=n)
    return readings.numbers(of, n=n, seeds=seeds), curves


def levels_at(rows: Rows, family: Family) -> dict[str, np.ndarray]:
    """What the paper's Fig. 1 is drawn of: "levels ARM" (M, 3) that the estimator reads at the kept
    "times" (3,) nearest to RATIOS, and "levels forward" of forward states of real images."""
    ratios = torch.tensor(RATIOS, dtype=torch.float64)
    wanted, times = time_of_ratio(ratios, family.path).numpy(), rows["none"]["times"]
    at = np.abs(times[:, None] - wanted).argmin(0)
    control = study.control({"times": times[at]}, family.path, family.reader)
    found = {arm: row["levels"][:, at] for arm, row in rows.items()} | {"forward": control}
    return {"times": times[at]} | {
        f"levels {name}": levels.astype(np.float32) for name, levels in found.items()
    }


def corner_noise(images: np.ndarray, size: int = 3) -> float:
    """Root mean square distance from black, -1, of the corners' size x size pixels of uint8 images
    (N, 1, H, W): Fashion-MNIST's ground is black, so that noise left in an image shows there."""
    x = fashion_mnist.to_float(torch.from_numpy(images)) + 1
    rows = torch.cat([x[..., :size, :], x[..., -size:, :]], dim=-2)
    corners = torch.cat([rows[..., :size], rows[..., -size:]], dim=-1)
    return float(corners.square().mean().sqrt())


def measured(
    sampling: Sampling,
    rows: Rows,
    chosen: Mapping[str, Arm],
    config: SampleConfig,
    real: Features,
    resamples: int,
) -> dict:
    """The numbers of the study. "arms" has the first last step's, as results/summary.json takes
    them over; "ends" those of the other one.

    The quality of all arms is that of the same `config.n_images` images; a ratio has all images
    that both of its arms have."""
    family, test = sampling.family, fashion_mnist.load_fashion_mnist("test")[0][:10].numpy()
    shift = shifts(rows, family, resamples)
    alike = {name: study.first(row, config.n_images) for name, row in rows.items()}
    ends: dict[str, dict] = {
        end: {
            "arms": {
                arm.replace("-", "+"): x
                for arm, x in study.quality(
                    {name: study.at_end(row, k) for name, row in alike.items()}, real
                ).items()
            },
            "ratios": ratios(rows, real, k),
            "corner_noise": {
                name.replace("-", "+"): corner_noise(study.at_end(row, k)["images"])
                for name, row in rows.items()
            }
            | {"real images": corner_noise(test)},
        }
        for k, end in enumerate(sampling.ends)
    }
    head, *others = sampling.ends
    sha = checkpoint.sha256(family.files[0])
    arms = {}
    for name, row in rows.items():
        arm = name.replace("-", "+")
        made = protocol(chosen[name], config, sha, family.name) | {"nfe": int(row["nfe"])}
        seeds = {"seeds": made["seeds"]}
        arms[arm] = {metric: x | seeds for metric, x in ends[head]["arms"][arm].items()} | {
            "shift_late": shift["shift"][arm]["shift_late"],
            "nfe": int(row["nfe"]),
            "protocol": made | ({"last_step": NAMES[head]} if head else {}),
        }
    return {
        "family": family.name,
        "sampler": resolve("sde", family.path),
        "steps": config.steps,
        "n": config.n_images,
        "seeds": [
            config.seeds[0],
            config.first_seed + max(len(r["seeds"]) for r in rows.values()) - 1,
        ],
        "trajectories": len(rows["none"]["levels"]),
        "last_step": head,
        "chosen": {name: arm.model_dump(mode="json") for name, arm in chosen.items()},
        "arms": arms,
        "ratios": ends[head]["ratios"],
        "corner_noise": ends[head]["corner_noise"],
        "ends": {end: ends[end] for end in others},
        "evaluations_times_images": sum(int(r["nfe"]) * len(r["seeds"]) for r in rows.values()),
    } | shift


def table(numbers: Mapping) -> pd.DataFrame:
    """A row for every arm and last step: weights, evaluations, quality and shift."""
    lines = []
    by_end = {numbers["last_step"]: numbers["arms"]} | {
        end: found["arms"] for end, found in numbers["ends"].items()
    }
    for end, arms in by_end.items():
        for arm, found in arms.items():
            made = numbers["arms"][arm]
            guidance = made["protocol"]["guidance"]
            line = {"arm": arm, "last_step": end}
            line |= {"w_nag": guidance["w_nag"], "cfg": guidance["cfg"], "nfe": made["nfe"]}
            for metric, x in ({**found, "shift_late": made["shift_late"]}).items():
                if isinstance(x, Mapping) and "low" in x:
                    line |= {f"{metric}_{e}" if e != "value" else metric: x[e] for e in ENDS}
            lines.append(line)
    return pd.DataFrame(lines)


def budget(table: pd.DataFrame, config: SampleConfig, candidates: int) -> dict:
    """What the choice of the weights cost, the same for every method."""
    return {
        "budget": candidates,
        "tried": table.arm.value_counts().to_dict(),
        "n": config.n_images,
        "seeds": [config.seeds[0], config.seeds[-1]],
        "steps": config.steps,
        "at_an_end": tuning.ends(table, tuning.best(table)),
        "rows": table.to_dict("records"),
    }


def tuned(
    measure: tuning.Measure,
    w_values: Sequence[float],
    cfg_values: Sequence[float],
    candidates: int,
) -> pd.DataFrame:
    """A row for every arm tried, as `tuning.tune`: NAG and CFG alone, each with as many candidates,
    then both, which begin with the bests of each (`beside`)."""
    alone = tuning.tune(measure, tuning.candidates(w_values, cfg_values, [], []), candidates)
    best = tuning.best(alone)
    start = beside(best["nag"].w_nag, best["cfg"].cfg)[:candidates]
    both = tuning.tune(measure, {"cfg-nag": start}, candidates)
    return pd.concat([alone, both], ignore_index=True)


def beside(w: float, scale: float) -> list[Arm]:
    """What the search of CFG with NAG begins with: the best of each alone, then one of them half as
    strong."""
    pairs = ((w, scale), (w / 2, scale), (w, 1 + (scale - 1) / 2))
    return [Arm(w_nag=w, cfg=round(scale, 4)) for w, scale in pairs]
