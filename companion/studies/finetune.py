"""What notebook 28 measures: three baselines without and with NAG after fine-tuning.

Here is what both sizes share, and the small one, a mini network fine-tuned on three classes of
Fashion-MNIST; the paper's size is in `finetune_paper`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig
from nag.data import fashion_mnist
from nag.models import DiT
from nag.pretrained.further_training import FurtherConfig, base_sha256, run, subset
from nag.shift import estimated_times, forward_states, noise_shift
from nag.support import distributed
from nag.support.files import write_json
from nag.support.paths import CHECKPOINTS, DATA
from nag.support.uncertainty import over_trainings
from nag.train import TrainConfig

PAIRS = {"none": "nag", "cfg": "cfg+nag", "dog": "dog+nag"}  # without: with NAG
OF_ONE_RUN = 250  # images that a ratio of one fine-tuning run needs


@dataclass(frozen=True)
class Task:
    """What is fine-tuned, on what, and how its arms are sampled."""

    name: str  # of files, such as "finetune-sit"
    source: Path  # weights before fine-tuning
    kind: str  # the layout of that file
    classes: int | None  # of the new class table; None keeps the old one
    training: dict  # settings of TrainConfig
    data: dict  # settings of FurtherConfig that choose images or latents
    sampler: str
    steps: int
    n_images: int
    cfg_values: list[float]
    dog_values: list[float]
    class_dropout: float = 0.1
    noise_dropout: float = 0.1
    channels: dict = field(default_factory=dict)  # of Arm: how many CFG and DoG guide


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
    key = settings.key(base_sha256(task.source), sorted(common.items()))
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


def kept_network(config: FurtherConfig) -> Path:
    """`fine_tune`, unless its file is there: the name has all settings, the CSV is written last."""
    out = Path(config.out)
    return out if out.with_suffix(".csv").is_file() else fine_tune(config)


def training_curve(network: Path) -> pd.DataFrame:
    """Images seen, seconds and loss of the weights in training, as `kept_network` left them."""
    return pd.read_csv(network.with_suffix(".csv"))


# ---- arms of the small size


def held_out(classes: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Test images (N, 1, 28, 28) uint8 of some classes, and their labels in the order of these."""
    images, labels = fashion_mnist.load_fashion_mnist("test")
    places, labels = subset(labels, classes or None)
    return images[places], labels


def arm_of_all(
    kept: Path,
    name: str,
    arm: Arm,
    networks: Mapping[Path, DiT],
    before: tuple[Path, DiT],
    config: SampleConfig,
    estimator: Path | None = None,
    reader: Callable | None = None,
) -> tuple[study.Row, list[study.Row]]:
    """An arm over fine-tuning runs {file: network}, an equal share of the images for each:
    (all together, one by one). `before` is Domain Guidance's negative."""
    share, rows = config.n_images // len(networks), []
    for k, (file, net) in enumerate(networks.items()):
        part = config.model_copy(
            update={
                "first_seed": config.first_seed + k * share,
                "n_images": share,
                "trajectories": config.trajectories // len(networks),
            }
        )
        files = [file, before[0], *([estimator] if reader else [])]
        terms = arm.terms(pretrained=before[1])
        row = study.kept_arm(kept, f"{name}-{k}", net, terms, part, weights=files, reader=reader)
        rows.append(row)
    whole = {
        name: np.concatenate([row[name] for row in rows])
        for name in ("features", "levels", "seeds", "images")
    }
    whole |= {"times": rows[0]["times"], "nfe": rows[0]["nfe"]}
    return whole | {"seconds": sum(float(row["seconds"]) for row in rows)}, rows


def late_shift(row: study.Row, images: Tensor, path: str, reader: Callable) -> dict:
    """Late shift of an arm against forward states of held-out images of its own classes, which are
    spread over them, {"value", "low", "high", "n"}."""
    n = min(len(images), max(200, 2 * len(row["levels"])))
    x0 = fashion_mnist.to_float(images)[torch.linspace(0, len(images) - 1, n).long()]
    control = estimated_times(reader, forward_states(x0, row["times"], path))
    late = noise_shift(row["levels"], control, row["times"])["late"]
    return {end: float(x) for end, x in late.items()} | {"n": len(row["levels"])}


# ---- the choice of weights


def choose(
    task: Task,
    w_values: Sequence[float],
    joint_w_values: Sequence[float],
    joint_shares: Sequence[float],
    measure: Callable[[Arm], float],
) -> tuple[dict[str, Arm], list[dict]]:
    """The six arms, each at the setting of the smallest `measure`, and all that were tried.

    Beside CFG or Domain Guidance NAG tries its weights at shares of the scale that is best without
    it. Nothing is measured if every list has one value."""
    tuned = max(map(len, (w_values, task.cfg_values, task.dog_values))) > 1
    tuned |= len(joint_w_values) * len(joint_shares) > 1
    chosen, tried = {}, []

    def best(name: str, options: list[Arm]) -> None:
        scores = [measure(arm) for arm in options] if tuned else [0.0]
        chosen[name] = options[int(np.argmin(scores))]
        for arm, score in zip(options, scores, strict=False):
            setting = {"w_nag": arm.w_nag, "cfg": arm.cfg, "dog": arm.dog}
            tried.append({"arm": name} | setting | {"fd_inf": score})

    def joint(scale: str) -> list[Arm]:
        alone = getattr(chosen[scale], scale) - 1
        return [
            Arm(w_nag=w, **{scale: 1 + share * alone}, **task.channels)
            for share in joint_shares
            for w in joint_w_values
        ]

    best("none", [Arm()])
    best("nag", [Arm(w_nag=w) for w in w_values])
    best("cfg", [Arm(cfg=scale, **task.channels) for scale in task.cfg_values])
    best("cfg+nag", joint("cfg"))
    best("dog", [Arm(dog=scale, **task.channels) for scale in task.dog_values])
    best("dog+nag", joint("dog"))
    return chosen, tried if tuned else []


# ---- ratios


def ratio_over_runs(
    with_nag: tuple[study.Row, list[study.Row]],
    without: tuple[study.Row, list[study.Row]],
    real: Tensor,
) -> dict:
    """Fréchet ratio, paired by seed, whose interval joins two errors: of the images, and of the
    fine-tuning runs by the spread of their own ratios (Student's t).

    Each run has a share of the images, whose scatter is counted once more: rather too wide."""
    found = study.ratio(with_nag[0], without[0], real)
    pairs = list(zip(with_nag[1], without[1], strict=True))
    if len(pairs) < 2 or len(pairs[0][0]["features"]) < OF_ONE_RUN:
        return found | {"runs": []}
    runs = [study.ratio(a, b, real)["value"] for a, b in pairs]
    error = np.std(np.log(runs), ddof=1) / len(runs) ** 0.5
    over_images = {"low": found["low"], "high": found["high"]}
    return over_trainings(found, error, len(runs)) | {"runs": runs, "over_images": over_images}


def mean_ratio(ratios: Mapping[str, dict], distances: Mapping[str, float]) -> dict:
    """Mean distance of the three baselines with NAG over that without: their ratios weighted by the
    distances without. Their errors are taken to go together: the networks are the same."""
    total = sum(distances[base] for base in PAIRS)
    return {
        end: float(sum(distances[base] / total * ratios[base][end] for base in PAIRS))
        for end in ("value", "low", "high")
    }


def paper_ratios(dataset: str = "") -> dict[str, float]:
    """The paper's FIDs with NAG over those without, by baseline and as "mean": of one data set, or
    of the means over all seven."""
    rows = pd.read_csv(DATA / "paper_results.csv").query("table == 'finetuning'")
    rows = rows[rows.dataset == dataset] if dataset else rows
    fid = rows.groupby(["guidance", "nag"]).value.mean()
    ratios = {base: float(fid[base, 1] / fid[base, 0]) for base in PAIRS}
    return ratios | {"mean": float(fid[:, 1].mean() / fid[:, 0].mean())}


def table(arms: Mapping[str, dict], ratios: Mapping[str, dict], speed: Mapping) -> pd.DataFrame:
    """One line for each arm: its weights, its quality, and its ratio over the arm without NAG."""
    base_of = {with_nag: base for base, with_nag in PAIRS.items()}
    lines = []
    for name, arm in arms.items():
        line = {"arm": name} | {k: arm[k] for k in ("w_nag", "cfg", "dog", "nfe")}
        found = {k: v for k, v in arm.items() if k not in line}
        found |= {"ratio": ratios[base_of[name]]} if name in base_of else {}
        for metric, x in found.items():
            line |= {metric: x["value"], f"{metric}_low": x["low"], f"{metric}_high": x["high"]}
        lines.append(line | {"images_per_second": speed[name]})
    return pd.DataFrame(lines)
