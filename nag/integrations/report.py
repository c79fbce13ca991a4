"""`nag diagnose`: a pipeline and a folder of images in, one page with the curve out."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nag.data.image_folder import centre_crop, list_images, read
from nag.integrations.diagnosis import Diagnosis, diagnose
from nag.integrations.level_estimator import LevelEstimator, recipe, train_estimator
from nag.integrations.recorder import record_calls
from nag.support.files import atomic

CONTROL = 0.2  # of the images, the last ones, are held out as the control


def load_pipeline(place: str) -> Any:
    """A pipeline from a folder or the Hub; raises ValueError if there is none."""
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no diffusers pipeline at {place}: give a folder with model_index.json, as "
            "save_pretrained writes it, or a name on the Hub"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser(pipe: Any) -> Any:
    """The network of a pipeline; raises ValueError if it has none by the usual names."""
    for name in ("transformer", "unet"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise ValueError(f"{type(pipe).__name__} has neither a transformer nor a unet to measure")


@torch.no_grad()
def images_of(folder: Path, pipe: Any, batch: int = 16, size: int | None = None) -> Tensor:
    """All images below a folder as the pipeline's network has them: (N, C, H, W) in [-1, 1], or
    latents.

    Centre-cropped to `size` pixels, by default the network's own. Raises ValueError for too few
    images, or an unknown size."""
    files = list_images(folder)
    if len(files) < 20:
        raise ValueError(f"{len(files)} images below {folder}: at least 20 are needed")
    config, vae = denoiser(pipe).config, getattr(pipe, "vae", None)
    scale = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
    own = config.get("sample_size") or getattr(pipe, "default_sample_size", None)
    if size is None:
        if not isinstance(own, int):
            raise ValueError(
                f"{type(pipe).__name__} does not say its image size: give --size in pixels"
            )
        size = own * scale
    parts = []
    for start in range(0, len(files), batch):
        pixels = [
            read(f, lambda image: centre_crop(image, size)) for f in files[start : start + batch]
        ]
        x = torch.stack(pixels).float() / 127.5 - 1
        if vae is None:
            x = x.mean(1, keepdim=True) if config.in_channels == 1 else x
        else:
            x = vae.encode(x.to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
            x = (x - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
        parts.append(x)
    return torch.cat(parts)


def calls_of(
    pipe: Any,
    n: int,
    steps: int,
    batch: int,
    prompts: list[str],
    scale: float | None,
    seed: int,
    size: int | None = None,
) -> Iterator[dict]:
    """The calls that sample n images, each from its own seed: labels in turn, prompts in turn.

    Raises ValueError for a pipeline that needs prompts and gets none."""
    known = inspect.signature(pipe.__call__).parameters
    if "prompt" in known and not prompts:
        raise ValueError(f"{type(pipe).__name__} needs prompts: give --prompts FILE, one a line")
    for start in range(0, n, batch):
        rows = range(start, min(start + batch, n))
        call: dict[str, Any] = {
            "num_inference_steps": steps,
            "generator": [torch.Generator().manual_seed(seed + i) for i in rows],
        }
        if "prompt" in known:
            call |= {"prompt": [prompts[i % len(prompts)] for i in rows], "output_type": "latent"}
        elif "class_labels" in known:
            classes = denoiser(pipe).config.num_embeds_ada_norm
            call |= {"class_labels": [i % classes for i in rows], "output_type": "pt"}
        else:
            call |= {"batch_size": len(rows), "output_type": "np"}
        if size is not None and "height" in known:
            call |= {"height": size, "width": size}
        if scale is not None:
            call["guidance_scale"] = scale
        yield call


def write_report(
    place: str,
    images: Path,
    out: Path,
    *,
    n: int,
    steps: int,
    batch: int,
    images_seen: int,
    prompts: list[str],
    scale: float | None,
    seed: int,
    size: int | None,
) -> Diagnosis:
    """Measure a pipeline and write OUT/report.md, shift.png and shift.json.

    The estimator is kept in OUT and used again by a second run with the same images and
    settings. Raises ValueError in one sentence for what is missing."""
    pipe = load_pipeline(place)
    calls = list(calls_of(pipe, n, steps, batch, prompts, scale, seed, size))
    own = images_of(images, pipe, batch, size)
    held_out = max(2, int(len(own) * CONTROL))
    out.mkdir(parents=True, exist_ok=True)
    file, settings = out / "estimator.safetensors", {"images_seen": images_seen, "seed": seed}
    estimator = LevelEstimator.load(file) if file.is_file() else None
    if estimator is None or estimator.made_of != recipe(own[:-held_out], pipe, **settings):
        estimator = train_estimator(own[:-held_out], pipe, file, **settings)
    found = diagnose(
        record_calls(pipe, calls, estimator=estimator), estimator, own[-held_out:], seed=seed
    )
    found.save(out / "shift.json")
    with atomic(out / "shift.png") as part:
        found.plot().savefig(part, format="png", dpi=150)
    rows = "\n".join(
        f"| {t:.3f} | {d:+.4f} | {low:+.4f} | {high:+.4f} |"
        for t, d, low, high in zip(found.times, *found.delta.values(), strict=True)
    )
    text = f"""# Noise shift of {type(pipe).__name__}

{found.summary()}

![Noise shift over the noise level](shift.png)

{type(pipe.scheduler).__name__}, {steps} steps. The control are forward states of {found.n_control}
held-out images; the estimator was trained on the others. t = 1 is noise.

| t | δ(t) | low | high |
|---|---|---|---|
{rows}
"""
    with atomic(out / "report.md") as part:
        part.write_text(text, encoding="utf-8")
    return found
