"""Further training of a network that is there already: noise-condition dropout for a released one,
the null alone, fine-tuning.

Alone: `python -m nag.pretrained.further_training spec.json`; in many processes: `python -m
torch.distributed.run … -m nag.pretrained.further_training spec.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from nag import checkpoint
from nag.data import fashion_mnist
from nag.data.latents import latent_source, open_latents
from nag.data.published_files import digest
from nag.ddpm import discretise
from nag.interpolant import add_noise
from nag.losses import check_labels, denoising_loss, target
from nag.models import DiT, ModelConfig, Source
from nag.pretrained.null_branch import add_null, save_null, separate_branch
from nag.support import commands, distributed, paths
from nag.support.device import best_device
from nag.support.files import read_json, write_csv, write_json
from nag.support.rng import generator
from nag.train import TrainConfig, train

# What may change between a run and its resumption; data and weights count by their content.
HOW = {"weights", "latents", "checkpoint", "out", "save_steps", "micro_batch", "log_steps"}


class FurtherConfig(BaseModel):
    """What to train further, on what and how; paths are relative to the repository or absolute.

    Data are a folder of latents, or Fashion-MNIST's `split` where `latents` is empty; of them only
    the classes `keep` (relabelled 0, 1, …), and of each class `images_per_class` chosen by
    `subset_seed`. `heads` and `num_classes` are what `checkpoint.infer_config` cannot know. With
    `classes` a new class table has so many. Mode "all" trains the whole network with both dropouts;
    "null" only the null vector and `layers` in a twin, on samples that all have no noise level:
    `noise_dropout` does not matter there. `null_init` "keep" is the file's own null vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str
    kind: Literal["nag", "sit", "repa", "dit", "diffusers"] = "nag"
    heads: int | None = Field(None, ge=1)
    num_classes: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    latents: str = ""
    data: Literal["fashion-mnist"] = "fashion-mnist"
    split: Literal["train", "test"] = "train"
    keep: tuple[int, ...] | None = Field(None, min_length=1)
    images_per_class: int | None = Field(None, ge=1)
    subset_seed: int = Field(0, ge=0)
    classes: int | None = Field(None, ge=1)
    mode: Literal["all", "null"] = "all"
    layers: tuple[str, ...] = ()
    null_init: Literal["keep", "zero", "mean", "middle"] = "mean"
    class_dropout: float = Field(0.1, ge=0, le=1)
    noise_dropout: float = Field(0.1, ge=0, le=1)
    train: TrainConfig
    checkpoint: str
    out: str
    save_steps: int | None = Field(None, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    log_steps: int = Field(50, ge=1)

    @field_validator("out")
    @classmethod
    def _safetensors(cls, out: str) -> str:
        if not out.endswith(".safetensors"):
            raise ValueError(f"{out} must end in .safetensors")
        return out

    @model_validator(mode="after")
    def _consistent(self) -> "FurtherConfig":
        if self.mode == "all" and self.layers:
            raise ValueError(
                "layers are chosen for mode 'null' only: mode 'all' trains every layer"
            )
        if self.mode == "null" and self.classes:
            raise ValueError("a new class table must be trained: use mode 'all' with classes")
        return self


def subset(
    labels: Tensor,
    keep: Sequence[int] | None = None,
    images_per_class: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Positions (M,) of the kept items in labels (N,), ascending, and their labels (M,), numbered
    in the order of `keep`.

    With `images_per_class` each class gives so many, chosen by (seed, class). Raises ValueError for
    a class named twice, or that has too few items."""
    classes = labels.unique().tolist() if keep is None else list(keep)
    if len(set(classes)) < len(classes):
        raise ValueError(f"keep names a class twice: {classes}")
    parts, numbers = [], []
    for number, label in enumerate(classes):
        places = (labels == label).nonzero().flatten()
        wanted = len(places) if images_per_class is None else images_per_class
        if len(places) < max(1, wanted):
            raise ValueError(
                f"class {label} has {len(places)} images of {max(1, wanted)} wanted: change keep "
                "or "
                "images_per_class"
            )
        if images_per_class is not None:
            places = places[
                torch.randperm(len(places), generator=generator(seed, 4, label))[:wanted]
            ]
        parts.append(places)
        numbers.append(torch.full_like(places, label if keep is None else number))
    positions, order = torch.cat(parts).sort()
    return positions, torch.cat(numbers)[order]


def renew_classes(net: DiT, classes: int, seed: int) -> DiT:
    """The network with a new class table of `classes` + 1 rows, drawn by the seed as DiT draws it;
    the rest is shared.
    """
    with torch.device("meta"):
        fresh = DiT(net.config.model_copy(update={"classes": classes, "null_class": True}))
    table = 0.02 * torch.randn(classes + 1, net.config.width, generator=generator(seed, 3))
    fresh.load_state_dict(net.state_dict() | {checkpoint.TABLE: table}, assign=True)
    return fresh


class Examples(NamedTuple):
    """What is trained on: images or their source, labels (M,), the shape (C, H, W) of one image,
    the number of classes, and the digest of the whole data."""

    images: Tensor | Source
    labels: Tensor
    shape: tuple[int, ...]
    classes: int
    digest: str


def _examples(config: FurtherConfig) -> Examples:
    choice = (config.keep, config.images_per_class, config.subset_seed)
    if not config.latents:
        images, labels = fashion_mnist.load_fashion_mnist(config.split)
        positions, labels = subset(labels, *choice)
        count, shape = len(config.keep or fashion_mnist.CLASSES), tuple(images.shape[1:])
        chosen = fashion_mnist.to_float(images[positions])
        return Examples(chosen, labels, shape, count, f"fashion-mnist {config.split}")
    stored = open_latents(paths.ROOT / config.latents)
    source, count = latent_source(stored), len(config.keep or stored.classes)
    positions, labels = subset(stored.labels, *choice)

    def chosen_source(index: Tensor, gen: torch.Generator, rows: slice) -> Tensor:
        return source(positions[index], gen, rows)

    chosen_source.digest = stored.digest  # type: ignore[attr-defined]
    return Examples(chosen_source, labels, stored.shape, count, stored.digest)


def _check_fit(data: Examples, config: FurtherConfig, network: ModelConfig) -> None:
    """Raise ValueError if images or labels are not what the network is for.

    Labels come from the order of the class folders: with one missing, all later ones would move."""
    shape = (network.channels, network.input_size, network.input_size)
    if data.shape != shape:
        raise ValueError(
            f"images {data.shape} do not fit a network for {shape}: change the data or the network"
        )
    if data.classes != network.classes and config.keep is None:
        raise ValueError(
            f"data of {data.classes} classes do not fit a network of {network.classes} classes, as "
            "labels would move with a class that is missing: complete the class folders, name the "
            "classes to keep, or start a new table with classes"
        )
    check_labels(data.labels, network, config.class_dropout)


def prepare(config: FurtherConfig) -> tuple[DiT, DiT]:
    """The network and what of it is trained, on the best device: itself in mode "all", its twin in
    mode "null".
    """
    net = checkpoint.load(
        paths.ROOT / config.weights, config.kind, config.heads, classes=config.num_classes
    )
    if config.classes:
        net = renew_classes(net, config.classes, config.train.seed)
    net.to(best_device())
    if config.null_init != "keep":
        add_null(net, config.null_init)
    if config.mode == "null":
        return net, separate_branch(net, config.layers)
    net.requires_grad_(True).pos_embed.requires_grad_(False)
    return net, net


def _claim(config: FurtherConfig, state: Path, base: str, data: str) -> None:
    """Note beside the checkpoint what it is of; raises ValueError if one is there already of
    another run.

    What `fit` itself compares, the training settings, does not name the network or the data, which
    count by their content.
    """
    note = state.with_suffix(".json")
    mine = config.model_dump(mode="json", exclude=HOW)
    mine |= {"base_sha256": base, "data_sha256": data}
    if state.exists() and (not note.exists() or read_json(note) != mine):
        raise ValueError(
            f"{state} is of another network, other data or settings: delete it, or train under "
            "another name"
        )
    if not state.exists() and distributed.place()[0] == 0:
        write_json(note, mine)
    distributed.barrier()


def forget(config: FurtherConfig) -> None:
    """Delete the resumable state of a run, once its weights are safe."""
    state = paths.ROOT / config.checkpoint
    for path in (state, state.with_suffix(".json")):
        path.unlink(missing_ok=True)


def run(config: FurtherConfig) -> list[dict]:
    """Train further, or go on where a run was stopped, write `out` and beside it the records as
    CSV, and return the records.

    In mode "all" `out` is a network for `checkpoint.load` (bf16, as everywhere here), in mode
    "null" a file for `null.load_null` (float32). The process of rank 0 writes; the state stays
    until `forget`. Raises ValueError if the data do not fit the network, and what
    `checkpoint.load`, `separate_branch`, `open_latents` and `fit` raise."""
    data = _examples(config)
    net, trained = prepare(config)
    _check_fit(data, config, net.config)
    state, out, base = (
        paths.ROOT / config.checkpoint,
        paths.ROOT / config.out,
        digest(paths.ROOT / config.weights),
    )
    _claim(config, state, base, data.digest)
    dropped = 1.0 if config.mode == "null" else config.noise_dropout
    loss = denoising_loss(data.images, data.labels, config.class_dropout, dropped)
    records = train(
        trained,
        loss,
        len(data.labels),
        config.train,
        state,
        log_every=config.log_steps,
        save_steps=config.save_steps,
        micro_batch=config.micro_batch,
    )
    if distributed.place()[0] == 0:
        about = {"images_seen": str(config.train.images_seen), "seed": str(config.train.seed)}
        if config.mode == "null":
            save_null(out, trained, base, layers=",".join(config.layers), **about)
        else:
            checkpoint.save(
                out, trained, base_sha256=base, noise_dropout=str(config.noise_dropout), **about
            )
        write_csv(out.with_suffix(".csv"), pd.DataFrame(records))
    distributed.barrier()
    return records


@torch.inference_mode()
def held_out_errors(
    net: DiT,
    x0: Tensor,
    labels: Tensor | None,
    seed: int,
    drop_noise: bool = True,
    batch: int = 250,
) -> tuple[Tensor, Tensor]:
    """Times t (N,) and squared errors (N,) of the prediction on images x0 (N, C, H, W), class
    given or, without labels, none, noise level dropped or not.

    Times are stratified and, like the noise, decided by the seed, so that two networks are compared
    in pairs. Raises what `check_labels` raises."""
    if labels is None:
        labels = torch.full((len(x0),), net.config.classes)
        check_labels(torch.zeros_like(labels), net.config, class_dropout=1.0)  # for such a row
    else:
        check_labels(labels, net.config)
    gen, device = generator(seed), next(net.parameters()).device
    t, eps = (
        (torch.randperm(len(x0), generator=gen) + 0.5) / len(x0),
        torch.randn(x0.shape, generator=gen),
    )
    t = discretise(t) if net.config.path == "ddpm" else t
    errors = []
    for rows in torch.arange(len(x0)).split(batch):
        x, e, s, y = (a[rows].to(device) for a in (x0, eps, t, labels))
        pred = net(
            add_noise(x, e, s, net.config.path),
            s,
            y,
            torch.full_like(s, drop_noise, dtype=torch.bool),
        )
        errors.append((pred - target(net.config, x, e, s)).square().flatten(1).mean(1).cpu())
    return t, torch.cat(errors)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the specification in a JSON file, alone or as one of torchrun's processes."""
    config = commands.settings(
        "nag.pretrained.further_training", FurtherConfig, "Train a network further", arguments
    )
    with commands.one_sentence("nag.pretrained.further_training"):
        try:
            distributed.start()
            run(config)
        finally:
            distributed.stop()


if __name__ == "__main__":
    main()
