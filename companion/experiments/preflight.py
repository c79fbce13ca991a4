"""Before GPU days are spent: is all that imagenet/README.md asks for in its place? `python -m
companion.experiments.preflight PARAMS.yaml`.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from pydantic import BaseModel

from nag import checkpoint
from nag.data.image_folder import image_folder
from nag.data.latents import open_latents
from nag.data.published_files import digest
from nag.data.vae import load_vae
from nag.evaluation.inception import dinov2, load_extractor
from nag.support import distributed
from nag.support.commands import refusing, sentence
from nag.support.paths import ROOT

NEED_GB = 250  # of disk, for both networks at 256 pixels
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "arr_0")


def _data(params: dict, split: str) -> str:
    """Latents that are there already, or the images to make them of."""
    latents = ROOT / params["latents_of"][split]
    if (latents / "index.json").is_file():
        found = open_latents(latents)
        return f"{len(found):,} latents of {len(found.classes)} classes"
    folder = image_folder(ROOT / params["images"][split])
    return f"{len(folder.files):,} images of {len(folder.classes)} classes"


def _network(entry: dict) -> str:
    path = ROOT / entry["weights"]
    net = checkpoint.load(path, entry["kind"])
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    return f"{millions:.0f} M parameters, SHA-256 {digest(path)[:16]}…"


def _reference(path: str) -> str:
    digest(ROOT / path)
    with np.load(ROOT / path, allow_pickle=False) as file:
        missing = [name for name in STATISTICS if name not in file.files]
    if missing:
        raise ValueError(
            f"{ROOT / path} has no {', '.join(missing)}: fetch ADM's reference, or make one with "
            "adm.reference_from_images"
        )
    return "complete"


def _device() -> str:
    if not torch.cuda.is_available():
        raise RuntimeError(
            "no CUDA here: at this scale the run would take years; install a driver that fits this "
            "PyTorch "
            f"({torch.__version__}), or set NAG_PROCESSES to run on CPUs all the same"
        )
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"


def _disk() -> str:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEED_GB:
        raise OSError(
            f"{free:.0f} GB free on the disk of {ROOT}, about {NEED_GB} needed: free some, or link "
            "imagenet/data and "
            "imagenet/results elsewhere"
        )
    return f"{free:.0f} GB free"


def checks(params: dict, cpu: bool = False) -> dict[str, Callable[[], str]]:
    """What to look at, by name: each says what it found, or raises with what to do. `cpu` leaves
    out GPU and disk.
    """
    found: dict[str, Callable[[], str]] = {
        f"data, {split}": partial(_data, params, split) for split in params["images"]
    }
    found |= {
        f"network, {family}": partial(_network, entry) for family, entry in params["null"].items()
    }
    evaluate = params["evaluate"]
    found |= {
        "autoencoder": lambda: (
            f"latents of {load_vae(params['vae']).config.latent_channels} channels"
        ),
        "reference": lambda: _reference(evaluate["reference"]),
        "extractor": lambda: load_extractor(evaluate["extractor"]) and evaluate["extractor"],
    }
    if evaluate["dino"]:
        found["DINOv2"] = lambda: dinov2() and "weights and code"
    return found if cpu else found | {"GPUs": _device, "disk": _disk}


def report(params: dict, cpu: bool = False) -> bool:
    """Print a line for every check; whether all went well."""
    good = True
    for name, check in checks(params, cpu).items():
        try:
            print(f"ok       {name}: {check()}", flush=True)
        except Exception as error:  # every fault is told, not the first alone
            good = False
            print(f"MISSING  {name}: {error}", flush=True)
    return good


class Network(BaseModel):
    """A released network, whose null condition is trained."""

    weights: str
    kind: str


class Evaluate(BaseModel):
    """What the samples are compared with, and by which networks."""

    reference: str
    extractor: str
    dino: bool


class Needed(BaseModel):
    """What of a file of parameters is looked at here."""

    images: dict[str, str]
    latents_of: dict[str, str]
    null: dict[str, Network]
    vae: str
    evaluate: Evaluate


def main(arguments: Sequence[str] | None = None) -> None:
    """Look at all that the parameters in a file name; exit code 1 if something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.experiments.preflight", description="Is all in its place?"
    )
    parser.add_argument("params", type=Path, help="imagenet/params.yaml, or one like it")
    path = parser.parse_args(arguments).params
    with refusing(parser):
        try:
            params = yaml.safe_load(path.read_text(encoding="utf-8"))
            Needed.model_validate(params)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path}: {sentence(error)}") from error
        cpu = distributed.local_processes(-1) > 0 and not torch.cuda.is_available()
    if not report(params, cpu):
        sys.exit("Place what is missing (imagenet/README.md), then run again.")


if __name__ == "__main__":
    main()
