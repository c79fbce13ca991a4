"""The autoencoder between images and latents, through diffusers: loading, posterior moments and
decoding.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nag.support.device import autocast, best_device, resolve_precision
from nag.support.paths import ROOT
from nag.support.weight_files import weight_files

if TYPE_CHECKING:  # importing diffusers takes seconds
    from diffusers import AutoencoderKL

LAYOUT = (
    "a folder with config.json and diffusion_pytorch_model.safetensors, such as those of "
    "stabilityai/sd-vae-ft-ema"
)


def load_vae(name: str) -> "AutoencoderKL":
    """An AutoencoderKL in float32 from a local folder (.safetensors or .bin, whole or in shards, or
    its only variant), from the `vae` folder of a pipeline, or by its hub id.

    Raises FileNotFoundError naming the files to place if it is nowhere, ValueError if it is
    incomplete or has more than a scaling factor between its latents and a network's."""
    from diffusers import AutoencoderKL

    folder = ROOT / name
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        local = folder.is_dir()
        files, variant = weight_files(folder) if local else ([Path("of.safetensors")], "")
        vae, info = AutoencoderKL.from_pretrained(
            str(folder) if local else name,
            variant=variant or None,
            use_safetensors=files[0].suffix.lower() == ".safetensors",  # else .bin, without code
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        if folder.is_dir():
            raise ValueError(
                f"{folder} holds no autoencoder that can be read ({str(error).splitlines()[0]}): "
                f"place there the files of {LAYOUT}"
            ) from error
        raise FileNotFoundError(
            f"no autoencoder {name!r}: it is no folder and cannot be had from the Hugging Face hub "
            "here; "
            f"place {LAYOUT}, and give its path"
        ) from error
    if info["missing_keys"]:
        raise ValueError(
            f"the autoencoder {name!r} lacks {len(info['missing_keys'])} of its weights "
            f"({min(info['missing_keys'])}, …): place {LAYOUT}"
        )
    if vae.config.get("shift_factor") or vae.config.get("latents_mean"):
        raise ValueError(
            f"the autoencoder {name!r} shifts its latents: choose one with a scaling factor only"
        )
    return vae.float().eval().requires_grad_(False)


@torch.inference_mode()
def posterior(vae: "AutoencoderKL", x: Tensor, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C, h, w) float32, unscaled, of the latents of x (B, 3, H, W)
    in [-1, 1].
    """
    with autocast(x.device, precision):
        latent = vae.encode(x).latent_dist
    return latent.mean.float(), latent.std.float()


def decoder(
    vae: "AutoencoderKL",
    device: torch.device | None = None,
    precision: str = "fp32",
    batch: int = 16,
) -> Callable[[Tensor], Tensor]:
    """The way back: scaled latents z (B, C, h, w) to images (B, 3, H, W) float32 in [-1, 1] on
    `device`, `batch` at a time.
    """
    device = torch.device(device or best_device())
    precision, vae = resolve_precision(precision, device), vae.to(device).eval()

    @torch.inference_mode()
    def decode(z: Tensor) -> Tensor:
        images = []
        for part in z.split(batch):
            with autocast(device, precision):
                x = vae.decode(part.to(device, torch.float32) / vae.config.scaling_factor).sample
            images.append(x.float().clamp(-1, 1))
        return torch.cat(images)

    return decode


def fingerprint(vae: "AutoencoderKL") -> str:
    """SHA-256 of the weights by name and value: the same wherever the folder lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
