"""Encoding a folder of images and checking the latents, as notebook 13 does."""

import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from nag.data import fashion_mnist
from nag.data.image_folder import centre_crop, image_folder, read
from nag.data.latents import (
    Latents,
    LatentSpec,
    decoder,
    encode,
    latent_source,
    load_vae,
    open_latents,
    posterior_means,
    write_index,
)
from nag.data.vae import posterior
from nag.support.device import best_device, resolve_precision
from nag.support.distributed import launch, local_processes
from nag.support.files import write_json
from nag.support.paths import ROOT
from nag.support.rng import generator

LOOKED_AT = 8  # images that are encoded again and decoded


def example_images(folder: Path, n: int = 48) -> str:
    """Write n Fashion-MNIST images, blown up to odd sizes, in class folders; returns the folder."""
    pixels, labels = fashion_mnist.load_fashion_mnist("test")
    for i in range(n):
        name = fashion_mnist.CLASSES[int(labels[i])].lower().replace(" ", "-")
        path = folder / name / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        wide = (90 + 7 * (i % 9), 75 + 11 * (i % 7))
        image = Image.fromarray(pixels[i, 0].numpy()).convert("RGB")
        image.resize(wide, Image.Resampling.BICUBIC).save(path)
    return str(folder)


def example_vae(folder: Path) -> str:
    """Write a small autoencoder of random weights in diffusers' format; returns the folder."""
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder)
    print("The autoencoder is a random one: its pictures and errors mean nothing.")
    return str(folder)


def encoded(spec: LatentSpec, processes: int, folder: Path) -> tuple[Latents, float | None]:
    """Encode what `spec` asks for, in this kernel or by so many processes; the latents, checked,
    and the images per second of this kernel (None by processes, which print theirs, and if all was
    there)."""
    processes, rate = local_processes(processes), None
    if processes:
        write_json(folder / "latents-spec.json", spec.model_dump())
        launch("nag.data.latents", folder / "latents-spec.json", processes)
    else:
        report = encode(spec)
        write_index(spec)
        rate = report["images_per_second"] if report["encoded"] else None
        print(f"{report['encoded']} images encoded, {report['kept']} were there already")
    return open_latents(ROOT / spec.out, verify=True), rate


def spread(latents: Latents, most: int = 512) -> tuple[float, list[dict]]:
    """Standard deviation of the scaled latents over at most so many images, and by channel their
    mean, std and median posterior std."""
    chosen = np.linspace(0, len(latents) - 1, min(len(latents), most)).astype(int)
    some = torch.from_numpy(chosen)
    std = latents.moments(some)[1]
    x0 = latent_source(latents)(some, generator(0))
    median = latents.scale * std.transpose(0, 1).flatten(1).median(1).values
    columns = {
        "mean of scaled latents": x0.mean((0, 2, 3)),
        "std of scaled latents": x0.std((0, 2, 3)),
        "median posterior std, scaled": median,
    }
    channels = range(latents.shape[0])
    return x0.std().item(), [{name: v[k].item() for name, v in columns.items()} for k in channels]


def first_images(spec: LatentSpec) -> Tensor:
    """The first images of the folder, cropped, in [-1, 1] (8, 3, H, W)."""
    files = image_folder(ROOT / spec.images).files[:LOOKED_AT]
    crop = partial(centre_crop, size=spec.size)
    return fashion_mnist.to_float(torch.stack([read(path, crop) for path in files]))


def storage(spec: LatentSpec, latents: Latents, x: Tensor) -> dict[str, float]:
    """Errors in units of the means' standard deviation: of keeping them in float16 ("rounding"),
    the posterior's own spread ("posterior"), and of mirrored latents against those of the mirror
    image ("mirror")."""
    device = best_device()
    moments = posterior(load_vae(spec.vae).to(device), x.to(device))
    exact, exact_std = (moment.cpu() for moment in moments)
    kept = latents.moments(range(len(x)))[0]

    def root_mean_square(error: Tensor) -> float:
        return (error.square().mean().sqrt() / exact.std()).item()

    found = {"rounding": root_mean_square(kept - exact), "posterior": root_mean_square(exact_std)}
    if spec.flip:
        mirrored = latents.moments(range(len(x)), True)[0]
        found["mirror"] = root_mean_square(mirrored - kept.flip(-1))
    return found


def decoded(spec: LatentSpec, latents: Latents, x: Tensor) -> tuple[dict[str, Tensor], float]:
    """The images, and what is decoded from the posterior's mean and from a sample; PSNR of the
    former in dB."""
    decode = decoder(load_vae(spec.vae).to(best_device()), precision=spec.precision)
    mean, std = latents.moments(range(len(x)))
    sample = latents.scale * (mean + std * torch.randn(mean.shape, generator=generator(1)))
    rows = {
        "image": x,
        "from the mean": decode(posterior_means(latents, range(len(x)))).cpu(),
        "from a sample": decode(sample).cpu(),
    }
    error = (rows["from the mean"] - x).square().flatten(1).mean(1)
    return rows, (10 * torch.log10(4 / error)).mean().item()


def reading(latents: Latents, batch: int = 256, steps: int = 20) -> float:
    """Latents read per second, `batch` at random at a time, with their noise drawn.

    Raises AssertionError if two processes would not draw what one draws."""
    source, begin = latent_source(latents), time.perf_counter()
    for step in range(steps):
        index = torch.randint(len(latents), (batch,), generator=generator(2, step))
        source(index, generator(3, step))
    rate = steps * batch / (time.perf_counter() - begin)
    halves = (slice(0, batch // 2), slice(batch // 2, batch))
    parts = [source(index, generator(4), rows) for rows in halves]
    assert torch.equal(torch.cat(parts), source(index, generator(4))), "processes draw other noise"
    return rate


def check(spec: LatentSpec, latents: Latents, rate: float | None) -> tuple[dict, dict]:
    """All checks as numbers, and pictures {name: uint8 (8, 3, H, W)} of images and
    reconstructions."""
    x = first_images(spec)
    std, channels = spread(latents)
    errors = storage(spec, latents, x)
    rows, psnr = decoded(spec, latents, x)
    exact = resolve_precision(spec.precision, best_device()) == "fp32"
    assert math.isfinite(std) and errors["rounding"] < (1e-3 if exact else 0.1)
    numbers = {
        "images": len(latents),
        "classes": len(latents.classes),
        "shape": list(latents.shape),
        "scale": latents.scale,
        "std": std,
        "channels": channels,
        "psnr": psnr,
        **errors,
        "bytes": sum(shard["bytes"] for shard in latents.index["shards"]),
        "images_per_second": rate,
        "read_per_second": reading(latents),
        "files_sha256": latents.index["files_sha256"],
        "vae_sha256": latents.index["vae_sha256"],
    }
    return numbers, {name: fashion_mnist.to_uint8(row).numpy() for name, row in rows.items()}
