"""What notebook 28 measures: three baselines without and with NAG after fine-tuning.

Here is what both sizes share, and the small one, a mini network fine-tuned on three classes of
Fashion-MNIST; the paper's size is in `finetune_paper`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.experiments import spaces, study
from companion.experiments.generate import Arm, SampleConfig
from companion.experiments.spaces import Features
from nag import checkpoint
from nag.data import fashion_mnist
from nag.data.latents import open_latents
from nag.data.published_files import digest
from nag.models import DiT
from nag.pretrained.further_training import FurtherConfig, run, subset
from nag.shift import estimated_times, forward_states, noise_shift
from nag.support import distributed
from nag.support.files import write_json
from nag.support.paths import CHECKPOINTS, DATA, ROOT
from nag.support.uncertainty import over_trainings
from nag.train import TrainConfig

PAIRS = {"none": "nag", "cfg": "cfg+nag", "dog": "dog+nag"}  # without: with NAG
OF_ONE_RUN = 250  # images that a ratio of one fine-tuning run needs


@dataclass(frozen=True)
class Task:
    """What is fine-tuned, on what, how its arms are sampled, and which weights they try."""

    name: str  # of files, such as "finetune-sit"
    source: Path  # weights before fine-tuning
    kind: str  # the layout of that file
    classes: int | None  # of the new class table; None keeps the old one
    training: dict  # settings of TrainConfig
    data: dict  # settings of FurtherConfig that choose images or latents
    class_dropout: float
    noise_dropout: float
    sampler: str = "ode"
    steps: int = 50
    n_images: int = 2000
    w_values: Sequence[float] = ()  # of NAG alone
    cfg_values: Sequence[float] = ()
    dog_values: Sequence[float] = ()
    joint_w_values: Sequence[float] = ()  # of NAG beside CFG or DoG
    joint_shares: Sequence[float] = ()  # of the scale minus one that is best without NAG
    channels: dict = field(default_factory=dict)  # of Arm: how many CFG and DoG guide


def small_task(
    name: str,
    source: Path,
    kind: str,
    keep: Sequence[int],
    pre_classes: Sequence[int],
    images_per_class: int,
    **settings,
) -> Task:
    """A network that has seen the classes `pre_classes` (empty: all ten) of Fashion-MNIST, to be
    fine-tuned on those of `keep`; on test images where the training images cannot be had.

    `settings` are the other ones of `Task`. Raises ValueError if `source` has another number of
    classes."""
    classes = checkpoint.load(source, kind).config.classes
    if len(pre_classes or range(10)) != classes:
        raise ValueError(
            f"{source.name} has {classes} classes: name them in pre_classes, in the order of its "
            "labels"
        )
    split = "train"
    try:
        fashion_mnist.load_fashion_mnist(split)
    except FileNotFoundError as error:
        split = "test"
        print(f"{error}\nFine-tuning on test images: what is called held out is not.")
    data = {"split": split, "keep": list(keep), "images_per_class": images_per_class}
    return Task(name, source, kind, len(keep), data=data, **settings)


class Found(NamedTuple):
    """What both sizes measure of a task."""

    chosen: dict[str, Arm]
    tried: list[dict]
    arms: dict[str, dict]  # intervals, "nfe" and "seconds" of each
    ratios: dict[str, dict]  # with NAG over without, of the three baselines
    protocol: dict
    first: dict[str, study.Row]  # arms that keep their first images


# ---- fine-tuning


def further_config(
    task: Task, seed: int, folder: Path, precision: str, compile: bool, out: str = "", **how
) -> FurtherConfig:
    """The whole network with both dropouts; weights go to folder/`out`, by default a name with all
    settings in it."""
    settings = TrainConfig(**task.training, seed=seed, precision=precision, compile=compile)
    common = task.data | {
        "kind": task.kind,
        "classes": task.classes,
        "class_dropout": task.class_dropout,
        "noise_dropout": task.noise_dropout,
        "null_init": "keep" if task.kind == "nag" else "zero",
    }
    if "keep" in task.data:
        common["subset_seed"] = seed
    made_of = [digest(task.source), sorted(common.items())]
    if "latents" in task.data:
        made_of.append(open_latents(ROOT / task.data["latents"]).digest)
    key = settings.key(*made_of)
    return FurtherConfig(
        weights=str(task.source),
        **common,
        train=settings,
        log_steps=max(1, settings.steps // 20),
        checkpoint=str(CHECKPOINTS / f"{task.name}-{key}.pt"),
        out=str(folder / (out or f"network-{seed}-{key}.safetensors")),
        **how,
    )


def fine_tune(config: FurtherConfig, processes: int = 0) -> Path:
    """Train further, in `processes` of torchrun or in this one, and return the weights' file."""
    if processes:
        spec = Path(config.checkpoint).with_suffix(".spec.json")
        write_json(spec, config.model_dump(mode="json"))
        distributed.launch("nag.pretrained.further_training", spec, processes)
        spec.unlink()
    else:
        run(config)
    torch.compiler.reset()  # what was compiled for training is of no use in sampling
    return Path(config.out)


def kept_network(config: FurtherConfig, processes: int = 0) -> Path:
    """`fine_tune`, unless its file is there: the name has all settings, the CSV is written last."""
    out = Path(config.out)
    return out if out.with_suffix(".csv").is_file() else fine_tune(config, processes)


def training_curve(network: Path) -> pd.DataFrame:
    """Images seen, seconds and loss of the weights in training, as `kept_network` left them."""
    return pd.read_csv(network.with_suffix(".csv"))


# ---- arms of the small size


def held_out(classes: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Test images (N, 1, 28, 28) uint8 of some classes, and their labels in the order of these."""
    images, labels = fashion_mnist.load_fashion_mnist("test")
    places, labels = subset(labels, classes or None)
    return images[places], labels


def seen_images(task: Task, seed: int) -> tuple[Tensor, Tensor]:
    """The images (N, 1, 28, 28) uint8 that a run is fine-tuned on, and their labels."""
    images, labels = fashion_mnist.load_fashion_mnist(task.data["split"])
    places, labels = subset(labels, task.data["keep"], task.data["images_per_class"], seed)
    return images[places], labels


@dataclass(frozen=True)
class Small:
    """What the arms of the small size are sampled and read with."""

    kept: Path
    networks: Mapping[Path, DiT]  # of all fine-tuning runs
    before: tuple[Path, DiT]  # Domain Guidance's negative
    estimator: Path
    reader: Callable[[Tensor], Tensor]

    def arm(self, name: str, arm: Arm, config: SampleConfig) -> tuple[study.Row, list[study.Row]]:
        """An arm with an equal share of the images from each run: (all together, one by one)."""
        share, rows = config.n_images // len(self.networks), []
        reader = self.reader if config.trajectories else None
        for k, (file, net) in enumerate(self.networks.items()):
            part = config.model_copy(
                update={
                    "first_seed": config.first_seed + k * share,
                    "n_images": share,
                    "trajectories": config.trajectories // len(self.networks),
                }
            )
            files = [file, self.before[0], *([self.estimator] if reader else [])]
            terms = arm.terms(pretrained=self.before[1])
            rows.append(
                study.kept_arm(
                    self.kept, f"{name}-{k}", net, terms, part, weights=files, reader=reader
                )
            )
        whole = {
            key: np.concatenate([row[key] for row in rows])
            for key in (*study.OF_EACH, "levels", "images")
        }
        whole |= {"times": rows[0]["times"], "nfe": rows[0]["nfe"]}
        return whole | {"seconds": np.sum([row["seconds"] for row in rows])}, rows


def late_shift(row: study.Row, images: Tensor, path: str, reader: Callable) -> dict:
    """Late shift of an arm against forward states of held-out images of its own classes, which are
    spread over them, {"value", "low", "high", "n"}."""
    n = min(len(images), max(200, 2 * len(row["levels"])))
    x0 = fashion_mnist.to_float(images)[torch.linspace(0, len(images) - 1, n).long()]
    control = estimated_times(reader, forward_states(x0, row["times"], path))
    late = noise_shift(row["levels"], control, row["times"], path=path)["late"]
    return {end: float(x) for end, x in late.items()} | {"n": len(row["levels"])}


# ---- the choice of weights


def choose(
    task: Task, measure: Callable[[Arm], float] | None = None
) -> tuple[dict[str, Arm], list[dict]]:
    """The six arms, each at the setting of the smallest `measure`, and all that were tried.

    Beside CFG or Domain Guidance NAG tries its weights at shares of the scale that is best without
    it. Nothing is measured if every list has one value; ValueError if something had to be and
    there is no `measure`."""
    tuned = max(map(len, (task.w_values, task.cfg_values, task.dog_values))) > 1
    tuned |= len(task.joint_w_values) * len(task.joint_shares) > 1
    if tuned and measure is None:
        raise ValueError("at the paper's size nothing is tuned here: give one value of each weight")
    chosen: dict[str, Arm] = {}
    tried = []

    def best(name: str, options: list[Arm]) -> None:
        scores = [measure(arm) for arm in options] if tuned and measure else [0.0]
        chosen[name] = options[int(np.argmin(scores))]
        for arm, score in zip(options, scores, strict=False):
            setting = {"w_nag": arm.w_nag, "cfg": arm.cfg, "dog": arm.dog}
            tried.append({"arm": name} | setting | {"fd_inf": score})

    def joint(scale: str) -> list[Arm]:
        alone = getattr(chosen[scale], scale) - 1
        return [
            Arm(w_nag=w, **{scale: 1 + share * alone}, **task.channels)
            for share in task.joint_shares
            for w in task.joint_w_values
        ]

    best("none", [Arm()])
    best("nag", [Arm(w_nag=w) for w in task.w_values])
    best("cfg", [Arm(cfg=scale, **task.channels) for scale in task.cfg_values])
    best("cfg+nag", joint("cfg"))
    best("dog", [Arm(dog=scale, **task.channels) for scale in task.dog_values])
    best("dog+nag", joint("dog"))
    return chosen, tried if tuned else []


# ---- ratios


def ratio_over_runs(
    with_nag: tuple[study.Row, list[study.Row]],
    without: tuple[study.Row, list[study.Row]],
    real: Features,
) -> dict:
    """Fréchet ratio, paired by seed, whose interval joins two errors: of the images, and of the
    fine-tuning runs by the spread of their own ratios (Student's t).

    Each run has a share of the images, whose scatter is counted once more: rather too wide."""
    found = study.ratio(with_nag[0], without[0], real)
    pairs = list(zip(with_nag[1], without[1], strict=True))
    if len(pairs) < 2 or len(pairs[0][0]["features"]) < OF_ONE_RUN:
        return found | {"runs": []}
    each = [study.ratio(a, b, real) for a, b in pairs]
    if not all(x["bias_corrected"] for x in [found, *each]):
        found, each = study.uncorrected(found), [study.uncorrected(x) for x in each]
    runs = [x["value"] for x in each]
    error = np.std(np.log(runs), ddof=1) / len(runs) ** 0.5
    over_images = {"low": found["low"], "high": found["high"]}
    return over_trainings(found, error, len(runs)) | {"runs": runs, "over_images": over_images}


def mean_ratio(ratios: Mapping[str, dict], arms: Mapping[str, dict]) -> dict:
    """Mean distance of the three baselines with NAG over that without: their ratios weighted by the
    distances without. Their errors are taken to go together: the networks are the same.

    Of bias-corrected distances where all ratios are; "raw" is then that of the others."""

    def mean(metric: str, of: Mapping[str, Mapping]) -> dict:
        distance = {base: arms[base][metric]["value"] for base in PAIRS}
        total = sum(distance.values())
        return {
            end: float(sum(distance[base] / total * of[base][end] for base in PAIRS))
            for end in ("value", "low", "high")
        }

    n = {"n": ratios["none"]["n"]}
    raw = mean("fd", {base: x.get("raw", x) for base, x in ratios.items()})
    if not all(x.get("bias_corrected") for x in ratios.values()):
        return raw | n | {"bias_corrected": False, "raw": raw}
    return mean("fd_inf", ratios) | n | {"bias_corrected": True, "raw": raw}


def paper_ratios(dataset: str = "") -> dict[str, float]:
    """The paper's FIDs with NAG over those without, by baseline and as "mean": of one data set, or
    of the means over all seven."""
    rows = pd.read_csv(DATA / "paper_results.csv").query("table == 'finetuning'")
    rows = rows[rows.dataset == dataset] if dataset else rows
    fid = rows.groupby(["guidance", "nag"]).value.mean()
    ratios = {base: float(fid[base, 1] / fid[base, 0]) for base in PAIRS}
    return ratios | {"mean": float(fid[:, 1].mean() / fid[:, 0].mean())}


# ---- what is written


def measure_small(
    task: Task, small: Small, config: SampleConfig, tuning: SampleConfig, seed: int, path: str
) -> Found:
    """Weights chosen on the seeds of `tuning`, the six arms on those of `config`, and their
    ratios; `seed` is that of the run whose images are the floor."""
    images, _ = held_out(task.data["keep"])
    real = study.reference(images)

    def corrected_distance(arm: Arm) -> float:
        return study.bias_corrected(small.arm("tune", arm, tuning)[0], real)["value"]

    chosen, tried = choose(task, corrected_distance)
    found = {name: small.arm(name, arm, config) for name, arm in chosen.items()}
    whole = {name: row for name, (row, _) in found.items()}
    arms = {
        name: quality
        | {"late_shift": late_shift(whole[name], images, path, small.reader)}
        | {key: whole[name][key] for key in ("nfe", "seconds")}
        for name, quality in study.quality(whole, real).items()
    }
    ratios = {base: ratio_over_runs(found[pair], found[base], real) for base, pair in PAIRS.items()}
    return Found(chosen, tried, arms, ratios, floor(task, seed, real), whole)


def with_settings(arms: Mapping[str, dict], chosen: Mapping[str, Arm]) -> dict[str, dict]:
    """What JSON holds of the arms: their intervals, weights and evaluations."""
    return {
        name: {key: x for key, x in found.items() if isinstance(x, dict) and key != "protocol"}
        | {"w_nag": chosen[name].w_nag, "cfg": chosen[name].cfg, "dog": chosen[name].dog}
        | {"nfe": int(found["nfe"])}
        for name, found in arms.items()
    }


def floor(task: Task, seed: int, real: Features) -> dict:
    """How far the images fine-tuned on are from the held-out ones themselves."""
    images, labels = seen_images(task, seed)[:2]
    found = spaces.quality(spaces.features_of(images), real, labels, resamples=20)
    return {"reference": len(real), "floor": found}


def record(task: Task, found: Found, dataset: str) -> dict:
    """What JSON holds of both sizes; `dataset` is one of the paper's, or empty."""
    published = paper_ratios(dataset)
    means = mean_ratio(found.ratios, found.arms) | {"paper": published["mean"]}
    return {
        "n": task.n_images,
        "dataset": dataset or "fashion-mnist footwear",
        "steps": task.steps,
        "training": task.training,
        "pretrained_sha256": digest(task.source),
        "arms": with_settings(found.arms, found.chosen),
        "ratios": {base: x | {"paper": published[base]} for base, x in found.ratios.items()},
        "mean_ratio": means,
        "tuning": found.tried,
        "protocol": found.protocol,
    }


def table(numbers: Mapping, arms: Mapping[str, dict]) -> pd.DataFrame:
    """One line for each arm: its weights, its quality, and its ratio over the arm without NAG."""
    base_of, lines = {with_nag: base for base, with_nag in PAIRS.items()}, []
    for name, arm in numbers["arms"].items():
        line = {"arm": name} | {key: arm[key] for key in ("w_nag", "cfg", "dog", "nfe")}
        found = {key: x for key, x in arm.items() if key not in line}
        found |= {"ratio": numbers["ratios"][base_of[name]]} if name in base_of else {}
        for metric, x in found.items():
            line |= {metric: x["value"], f"{metric}_low": x["low"], f"{metric}_high": x["high"]}
        speed = numbers["n"] / float(arms[name]["seconds"])
        lines.append(line | {"images_per_second": speed})
    return pd.DataFrame(lines)
