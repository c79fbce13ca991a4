"""Fashion-MNIST (Xiao et al., 2017; MIT licence): test images from Git, training images from
wherever they can be had.
"""

import gzip
import hashlib
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nag.support.paths import DATA

FOLDER = DATA / "fashion-mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Of the unpacked content: Debian's package holds the same bytes compressed again, so the archives'
# sums differ.
MD5 = {
    "train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
}


def read_verified(path: Path) -> bytes:
    """Unpacked content of a Fashion-MNIST archive; raises OSError if it is unreadable or its MD5 is
    wrong.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"{path} is truncated or not a gzip file ({error})") from error
    if hashlib.md5(content).hexdigest() != MD5[path.name]:
        raise OSError(f"{path} is not the published file (MD5 differs)")
    return content


def _from_debian(name: str, folder: Path) -> Path:
    return DEBIAN / name


def _from_torchvision(name: str, folder: Path) -> Path:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    download_url(FashionMNIST.mirrors[0] + name, str(folder), name)
    return folder / name


def _from_apt(name: str, folder: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise OSError("apt-get is not here")
    run: dict[str, Any] = dict(cwd=folder, check=True, capture_output=True, timeout=300)
    subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], **run)
    package = next(folder.glob("dataset-fashion-mnist*.deb"))
    subprocess.run(["dpkg-deb", "--extract", package.name, "unpacked"], **run)
    return folder / "unpacked" / DEBIAN.relative_to("/") / name


SOURCES = {
    "Debian's package installed under /usr/share/datasets": _from_debian,
    "torchvision's download": _from_torchvision,
    "apt-get download dataset-fashion-mnist": _from_apt,
}


def fetch(name: str, folder: Path = FOLDER) -> bytes:
    """Unpacked, verified content of a Fashion-MNIST file, brought into `folder` from the first
    source that has it.

    Raises OSError if the file already in `folder` is damaged, FileNotFoundError naming every way
    tried if none works."""
    target = folder / name
    if target.exists():
        try:
            return read_verified(target)
        except OSError as error:
            raise OSError(f"{error}: delete it and run again") from error
    tried = [f"{target}: not there"]
    for source, bring in SOURCES.items():
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found = bring(name, Path(scratch))
                content = read_verified(found)
            except (OSError, RuntimeError, subprocess.SubprocessError, StopIteration) as error:
                tried.append(f"{source}: {str(error) or type(error).__name__}")
                continue
            folder.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            shutil.copyfile(found, part)
            part.replace(target)
            return content
    ways = "\n  ".join(tried)
    raise FileNotFoundError(
        f"could not get {name}; put it there by hand or repair one of these ways:\n  {ways}"
    )


def load_fashion_mnist(split: str, folder: Path = FOLDER) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64 of split "train" (60,000) or "test"
    (10,000).

    Raises ValueError for another split, and what `fetch` raises.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: choose 'train' or 'test'")
    prefix = "train" if split == "train" else "t10k"

    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(fetch(name, folder), np.uint8, offset=offset).copy()

    images = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = read(f"{prefix}-labels-idx1-ubyte.gz", 8)
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0...255 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8, clamped and rounded to the nearest level."""
    return (x * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
