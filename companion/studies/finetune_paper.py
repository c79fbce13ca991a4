"""What notebook 28 measures at the paper's size: DiT-XL/2 on one of seven data sets by DogFit's
recipe (data/transfer.csv), judged by FID against the images that it was fine-tuned on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from companion.experiments import shards
from companion.experiments.generate import SampleConfig
from companion.studies.finetune import PAIRS, Found, Task, choose
from nag.data import finetuning_sets
from nag.data.image_folder import centre_crop
from nag.data.latents import open_latents
from nag.evaluation import adm
from nag.support import distributed
from nag.support.files import write_json
from nag.support.paths import ROOT
from nag.support.uncertainty import independent_ratio


def task(dataset: str, latents: str, changes: Mapping, **settings) -> Task:
    """The recipe for a data set whose latents (notebook 13) are there; `changes` are of the recipe,
    `settings` the other ones of `Task`."""
    recipe, stored = finetuning_sets.recipe(**changes), open_latents(ROOT / latents)
    kept = recipe.class_table == "keep"
    print(f"{len(stored):,} images of {len(stored.classes)} classes; the recipe:\n{recipe}")
    return Task(
        name=f"finetune-{dataset}",
        classes=None if kept else len(stored.classes),
        training=recipe.training(),
        # A table that is kept has rows for more classes: those of the data take the first ones
        data={"latents": latents} | ({"keep": list(range(len(stored.classes)))} if kept else {}),
        class_dropout=recipe.class_dropout,
        noise_dropout=recipe.noise_dropout,
        sampler=recipe.sampler,
        steps=recipe.sampling_steps,
        n_images=recipe.samples,
        cfg_values=[recipe.cfg_scale],
        dog_values=[recipe.dog_scale],
        channels={"cfg_channels": recipe.guided_channels},
        **settings,
    )


def reference(kept: Path, images: str, latents: str, extractor: str, size: int) -> Path:
    """Features of the images that were fine-tuned on, cropped as for their latents."""
    made_of = open_latents(ROOT / latents).digest
    key = hashlib.sha256(repr((made_of, size, extractor)).encode()).hexdigest()[:8]
    file = kept / f"reference-{key}.npz"
    if not file.exists():
        adm.reference_from_images(
            file, ROOT / images, extractor, crop=lambda image: centre_crop(image, size)
        )
    return file


def measure(
    task: Task,
    network: Path,
    config: SampleConfig,
    *,
    vae: str,
    shard_size: int,
    extractor: str,
    images: str,
    latents: str,
    image_size: int,
    kept: Path,
    folder: Path,
    processes: int,
) -> Found:
    """Every arm sampled in shards, by `processes` of torchrun or in this one, its metrics by ADM's
    protocol ("fd" is the FID), and the ratios."""
    chosen, tried = choose(task)
    real = reference(kept, images, latents, extractor, image_size)
    found: dict[str, dict[str, Any]] = {}
    for name, arm in chosen.items():
        stem = f"{task.name}-{name.replace('+', '-')}"
        spec = shards.ShardConfig(
            weights=str(network),
            pretrained=str(task.source) if arm.dog != 1 else "",
            pretrained_kind=task.kind,
            vae=vae,
            arm=arm,
            config=config,
            shard_size=shard_size,
            out=str(folder / "shards" / stem),
        )
        if processes:
            file = folder / "specs" / f"{stem}.json"
            write_json(file, spec.model_dump(mode="json"))
            distributed.launch("companion.experiments.shards", file, processes)
        else:
            shards.run(spec)
        row, samples = shards.merge(spec), folder / "samples" / f"{stem}.npz"
        shards.export(samples, spec)
        metrics = adm.evaluate(
            samples,
            real,
            extractor=extractor,
            expected=config.n_images,
            expected_reference=adm.image_shape(real)[0],
            uint8="round(127.5 x + 127.5), clamped",
        )
        print(f"{name}\n{adm.report(metrics)}\n", flush=True)
        found[name] = {"fd": metrics.pop("fid"), **metrics}
        found[name] |= {"nfe": int(row["nfe"]), "seconds": row["seconds"]}
    protocol = found["none"]["protocol"]
    return Found(chosen, tried, found, ratios(found, config.n_images), protocol, {})


def ratios(quality: Mapping[str, dict], n: int) -> dict[str, dict]:
    """FID with NAG over without; the two arms are taken as independent, so that the intervals are
    too wide rather than too narrow."""
    return {
        base: independent_ratio(quality[with_nag]["fd"], quality[base]["fd"]) | {"n": n, "runs": []}
        for base, with_nag in PAIRS.items()
    }
