"""Before GPU days are spent: is all that imagenet/README.md asks for in its place? `python -m
companion.experiments.preflight PARAMS.yaml`.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from pydantic import BaseModel

from companion.pipeline import links
from nag import checkpoint
from nag.data.image_folder import image_folder
from nag.data.latents import open_latents
from nag.data.published_files import digest
from nag.data.vae import load_vae
from nag.evaluation.adm import given_statistics
from nag.evaluation.inception import dinov2, load_extractor
from nag.support import distributed
from nag.support.commands import refusing, sentence
from nag.support.paths import ROOT

PIPELINE = "imagenet/dvc.yaml"
NEED_GB = {"imagenet/results": 205, "imagenet/data": 45}  # for both networks at 256 pixels
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "arr_0")


class Data(NamedTuple):
    """What there is of a split: its number of images, as latents or not, and its classes."""

    size: int
    form: str
    classes: list[str]


@cache  # an image folder takes a while
def _found(latents: Path, images: Path) -> Data:
    """Latents that are there already, or the images to make them of."""
    if (latents / "index.json").is_file():
        stored = open_latents(latents)
        return Data(len(stored), "latents", stored.classes)
    folder = image_folder(images)
    return Data(len(folder.files), "images", folder.classes)


def _split(params: dict, split: str) -> Data:
    return _found(ROOT / params["latents_of"][split], ROOT / params["images"][split])


def _data(params: dict, split: str) -> str:
    """How much there is, and that its classes are those of the first split: with one missing, all
    later labels would move."""
    found, first = _split(params, split), next(iter(params["images"]))
    wanted = _split(params, first).classes if split != first else found.classes
    if odd := sorted(set(found.classes) ^ set(wanted)):
        raise ValueError(
            f"{len(found.classes)} classes, where {first} has {len(wanted)}, so that labels would "
            f"differ ({odd[0]} is in one of them only): complete the class folders"
        )
    return f"{found.size:,} {found.form} of {len(found.classes)} classes"


def _network(params: dict, entry: dict) -> str:
    path = ROOT / entry["weights"]
    net = checkpoint.load(path, entry["kind"])
    try:
        classes = len(_split(params, next(iter(params["images"]))).classes)
    except (OSError, ValueError):  # said where the data are looked at
        classes = net.config.classes
    if classes != net.config.classes:
        raise ValueError(
            f"{path} is for {net.config.classes} classes and the data have {classes}: complete "
            "the class folders, or name the weights that fit"
        )
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    return f"{millions:.0f} M parameters, SHA-256 {digest(path)[:16]}…"


def _reference(path: str) -> str:
    digest(ROOT / path)
    given_statistics(ROOT / path, ("pool", "spatial"))
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
    """Room for what the pipeline writes, on one disk or on two."""
    needed: dict[int, tuple[int, Path]] = {}
    for name, size in NEED_GB.items():
        place = next(folder for folder in (ROOT / name, *(ROOT / name).parents) if folder.exists())
        disk = place.stat().st_dev
        needed[disk] = (needed.get(disk, (0, place))[0] + size, place)
    said = []
    for size, place in needed.values():
        free = shutil.disk_usage(place).free / 1e9
        if free < size:
            raise OSError(
                f"{free:.0f} GB free on the disk of {place}, about {size} needed: free some, clone "
                "the repository onto a larger disk, or mount one at imagenet/results (a link will "
                "not do) and link or mount imagenet/data elsewhere"
            )
        said.append(f"{free:.0f} GB free")
    return ", ".join(said)


def _outputs() -> str:
    """That no output is behind a link where DVC would not keep it."""
    if why := links.refused(ROOT, ROOT / PIPELINE):
        raise OSError(why)
    return "where DVC keeps them"


def checks(params: dict, cpu: bool = False) -> dict[str, Callable[[], str]]:
    """What to look at, by name: each says what it found, or raises with what to do. `cpu` leaves
    out GPU and disk.
    """
    found: dict[str, Callable[[], str]] = {"outputs": _outputs}
    found |= {f"data, {split}": partial(_data, params, split) for split in params["images"]}
    found |= {
        f"network, {family}": partial(_network, params, entry)
        for family, entry in params["null"].items()
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
            params = yaml.safe_load(path.read_bytes())
            Needed.model_validate(params)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path}: {sentence(error)}") from error
        cpu = distributed.local_processes(-1) > 0 and not torch.cuda.is_available()
    if not report(params, cpu):
        sys.exit("Place what is missing (imagenet/README.md), then run again.")


if __name__ == "__main__":
    main()
