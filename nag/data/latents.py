"""Images as an autoencoder's latents: posterior mean and standard deviation in checked shards, read
by memory-mapping.

DiT and SiT encode each image again in each step; here once, for the image and its mirror image, and
the posterior is sampled in training, which gives the same distribution. The moments are kept in
float16: that moves a value by at most 1/2048 of itself, about 2e-4 of the latents' spread and far
below a grey level once decoded, and takes half the disk of float32 (ImageNet with flips: 42 GB at
256 pixels, 168 GB at 512). They are computed in float32 by default, with TF32 convolutions on CUDA
as PyTorch's default has it and the official codes do; bf16 errs by about a hundredth of the spread
(measured on a small random autoencoder). From the command line:
`python -m torch.distributed.run --nproc-per-node 8 -m nag.data.latents spec.json`, or without
torchrun in one process."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from nag.data.fashion_mnist import to_float
from nag.data.image_folder import batches, centre_crop, image_folder, shown
from nag.data.published_files import remembered
from nag.data.vae import decoder, fingerprint, load_vae, posterior
from nag.support.commands import one_sentence, settings
from nag.support.device import best_device, resolve_precision
from nag.support.distributed import barrier, start, stop
from nag.support.files import atomic, read_json, write_json
from nag.support.paths import ROOT
from nag.support.weight_files import sha256

__all__ = [
    "LatentSpec",
    "Latents",
    "decoder",
    "encode",
    "latent_source",
    "load_vae",
    "open_latents",
    "posterior_means",
    "write_index",
]
INDEX = "index.json"
AGAIN = "delete it and run the latents stage again; the other shards are kept"


class LatentSpec(BaseModel):
    """What to encode and where to; relative paths start at the repository. An unknown name is an
    error.

    `vae` is a folder or a hub id. `batch_size` and `workers` (reading threads) change the speed,
    not the latents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: str = Field(min_length=1)
    vae: str = Field(min_length=1)
    out: str = Field(min_length=1)
    size: int = Field(256, gt=0)
    shard_size: int = Field(4096, gt=0)
    batch_size: int = Field(32, gt=0)
    flip: bool = True
    precision: str = "fp32"
    workers: int = Field(8, gt=0)


def _plan(spec: LatentSpec) -> tuple[list[str], list[int], list[tuple[Path, list[Path]]]]:
    """Class names, labels of all images, and each shard with its images."""
    files, labels, classes = image_folder(ROOT / spec.images)
    firsts = range(0, len(files), spec.shard_size)
    shards = [
        (ROOT / spec.out / f"shard-{k:05d}.npy", files[i : i + spec.shard_size])
        for k, i in enumerate(firsts)
    ]
    return classes, labels, shards


def _names(files: Sequence[Path], root: Path) -> list[bytes]:
    return [os.fsencode(file.relative_to(root).as_posix()) for file in files]


def _content(files: Sequence[Path], root: Path) -> str:
    """SHA-256 of image files by name below `root` and by content."""

    def compute() -> str:
        found = hashlib.sha256()
        for name, file in zip(_names(files, root), files, strict=True):
            found.update(name + f"\t{sha256(file)}\n".encode())
        return found.hexdigest()

    return remembered(files, "images", compute)


def _is_done(path: Path, origin: dict) -> bool:
    """Whether the shard is what would be made now: its note says the same origin and its content
    the note's checksum.
    """
    try:
        note = read_json(path.with_suffix(".json"))
        return note | origin == note and note["sha256"] == sha256(path)
    except (FileNotFoundError, ValueError, KeyError):
        return False


def encode(spec: LatentSpec, rank: int = 0, world: int = 1) -> dict[str, float]:
    """Encode the shards rank, rank + world, … of an image folder; returns images encoded and kept,
    seconds, images_per_second.

    Shards (n, 1 or 2 flips, 2 moments, C, h, w) and their notes are written as they are done. One
    whose note and checksum show that the same autoencoder, settings and image content made it is
    kept, so a killed run loses a shard per process at most. Raises ValueError for a damaged image
    or a size the autoencoder cannot halve, FloatingPointError for NaN or overflow."""
    device = best_device()
    precision = resolve_precision(spec.precision, device)
    _, _, shards = _plan(spec)
    vae = load_vae(spec.vae).to(device)
    step = 2 ** (len(vae.config.block_out_channels) - 1)
    if spec.size % step:
        raise ValueError(
            f"size {spec.size} is not a multiple of {step}, by which this autoencoder divides: "
            "choose one that is"
        )
    settings = {
        "vae_sha256": fingerprint(vae),
        "scale": vae.config.scaling_factor,
        "size": spec.size,
        "flip": spec.flip,
        "precision": precision,
        "dtype": "float16",
    }
    root, mine, encoded, kept, seconds = ROOT / spec.images, shards[rank::world], 0, 0, 0.0
    with tqdm(
        total=sum(len(files) for _, files in mine), unit="image", mininterval=5, disable=rank > 0
    ) as bar:
        for path, files in mine:
            origin = {"settings": settings, "files": _content(files, root)}
            if _is_done(path, origin):
                kept += len(files)
                bar.update(len(files))
                continue
            begin = time.perf_counter()
            (path.parent / INDEX).unlink(missing_ok=True)  # it no longer tells what is here
            parts = []
            for images in batches(
                files, partial(centre_crop, size=spec.size), spec.batch_size, spec.workers
            ):
                x = to_float(images.to(device))
                views = [
                    posterior(vae, view, precision)
                    for view in ([x, x.flip(-1)] if spec.flip else [x])
                ]
                parts.append(
                    torch.stack([torch.stack(moments, 1) for moments in views], 1).half().cpu()
                )
                bar.update(len(images))
            values = torch.cat(parts)
            if not torch.isfinite(values).all():
                raise FloatingPointError(
                    "the autoencoder gives NaN or values beyond float16 for images between "
                    f"{shown(files[0])} and {shown(files[-1])}: use precision: fp32, or check its "
                    "weights"
                )
            with atomic(path) as part:
                np.save(part, values.numpy())
            note = {
                "rows": len(files),
                "shape": list(values.shape[3:]),
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            write_json(path.with_suffix(".json"), origin | note)
            encoded, seconds = encoded + len(files), seconds + time.perf_counter() - begin
    return {
        "encoded": encoded,
        "kept": kept,
        "seconds": seconds,
        "images_per_second": encoded / seconds if encoded else 0.0,
    }


def write_index(spec: LatentSpec) -> Path:
    """Write index.json once all shards are there, and remove shards of former settings; returns its
    path.

    Raises FileNotFoundError if a shard is missing, ValueError if one is of other settings or files.
    """
    classes, labels, shards = _plan(spec)
    root, out, notes = ROOT / spec.images, ROOT / spec.out, []
    for path, files in shards:
        if not path.is_file() or not path.with_suffix(".json").is_file():
            raise FileNotFoundError(
                f"no finished shard {path}: run the latents stage again; what is finished is kept"
            )
        notes.append(read_json(path.with_suffix(".json")))
        made_of = (notes[-1]["settings"], notes[-1].get("files"))
        if made_of != (notes[0]["settings"], _content(files, root)):
            raise ValueError(
                f"{path} was made with other settings or images: run the latents stage again with "
                "one spec for all"
            )
    names = b"".join(name + b"\n" for _, files in shards for name in _names(files, root))
    wanted = {path.with_suffix(end).name for path, _ in shards for end in (".npy", ".json")}
    for path in [*out.glob("shard-*"), *out.glob(".*.shard-*")]:
        if path.name not in wanted:
            path.unlink()
    write_json(
        out / INDEX,
        notes[0]["settings"]
        | {
            "vae": spec.vae,
            "crop": "ADM",
            "images": len(labels),
            "shape": notes[0]["shape"],
            "shard_size": spec.shard_size,
            "classes": list(
                zip(classes, np.bincount(labels).tolist(), strict=True)
            ),  # sorted by class, so these are the labels
            "files_sha256": hashlib.sha256(names).hexdigest(),
            "shards": [
                {"name": path.name} | {k: note[k] for k in ("rows", "bytes", "sha256")}
                for (path, _), note in zip(shards, notes, strict=True)
            ],
        },
    )
    return out / INDEX


class Latents:
    """Encoded images: `labels` (N,) int64, `classes` (names), `shape` (C, h, w), `scale`, and
    whether they have a `flip`.
    """

    def __init__(self, folder: Path, index: dict):
        self.folder, self.index = folder, index
        self._open: dict = {}
        self.shape, self.scale, self.flip = tuple(index["shape"]), index["scale"], index["flip"]
        self.classes = [name for name, _ in index["classes"]]
        self.labels = torch.repeat_interleave(
            torch.tensor([count for _, count in index["classes"]])
        )

    def __len__(self) -> int:
        return self.index["images"]

    @property
    def digest(self) -> str:
        """SHA-256 of what is trained on: the shards' contents, the counts of the classes and the
        scale, wherever the folder lies.
        """
        parts = [shard["sha256"] for shard in self.index["shards"]]
        counts = [count for _, count in self.index["classes"]]
        return hashlib.sha256(repr((parts, counts, self.scale)).encode()).hexdigest()

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._open:
            self._open[number] = np.load(
                self.folder / self.index["shards"][number]["name"], mmap_mode="r"
            )
        return self._open[number]

    def moments(
        self, index: Tensor | np.ndarray | Sequence[int], flip: Tensor | bool = False
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and std (B, C, h, w) float32, unscaled, of images index (B,), mirrored
        where flip (B,) is true.

        Only these rows are read. Raises IndexError for an image that is not there, ValueError for a
        flip that was not encoded."""
        index, flip = np.asarray(index, dtype=np.int64), np.asarray(flip, dtype=np.int64)
        if ((index < 0) | (index >= len(self))).any():
            raise IndexError(
                f"images {index.min()} to {index.max()} are asked for, but {self.folder} has 0 to "
                f"{len(self) - 1}"
            )
        if flip.any() and not self.flip:
            raise ValueError(f"{self.folder} has no mirror images: encode with flip: true")
        flip, shard = np.broadcast_to(flip, index.shape), index // self.index["shard_size"]
        out = np.empty((len(index), 2, *self.shape), np.float16)
        for number in np.unique(shard):
            here = shard == number
            out[here] = self._shard(number)[index[here] % self.index["shard_size"], flip[here]]
        mean, std = torch.from_numpy(out).float().unbind(1)
        return mean, std


def _is_index(index: Any) -> bool:
    """Whether a JSON content has all that `write_index` writes and `Latents` reads."""
    try:
        Latents(Path(), index)
        numbers = [index["images"], index["shard_size"], *index["shape"]]
        for shard in index["shards"]:
            numbers += [shard["rows"], shard["bytes"]]
            if not isinstance(shard["name"], str) or not isinstance(shard["sha256"], str):
                return False
        return (
            all(isinstance(number, int) and number > 0 for number in numbers)
            and isinstance(index["scale"], float | int)
            and isinstance(index["flip"], bool)
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        return False


def open_latents(folder: Path, verify: bool = False) -> Latents:
    """The latents in a folder, memory-mapped; `verify` reads every shard once and compares its
    SHA-256.

    Raises FileNotFoundError without an index or a shard, ValueError for a shard that is truncated
    or changed, or an index whose labels do not belong to its images."""
    folder = ROOT / folder
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"no latents at {folder} (no {INDEX}): run the latents stage, to its end"
        )
    index = read_json(folder / INDEX)
    if not _is_index(index):
        raise ValueError(f"{folder / INDEX} is damaged: {AGAIN}")
    if {
        sum(count for _, count in index["classes"]),
        sum(shard["rows"] for shard in index["shards"]),
    } != {index["images"]}:
        raise ValueError(
            f"{folder / INDEX} does not give each of its {index['images']} images one label: "
            f"{AGAIN}"
        )
    for shard in index["shards"]:
        path = folder / shard["name"]
        if not path.is_file():
            raise FileNotFoundError(
                f"shard {path} is missing: run the latents stage again; the other shards are kept"
            )
        if path.stat().st_size != shard["bytes"]:
            raise ValueError(f"{path} has {path.stat().st_size} of {shard['bytes']} bytes: {AGAIN}")
        if verify and sha256(path) != shard["sha256"]:
            raise ValueError(f"{path} is not what was written (its SHA-256 differs): {AGAIN}")
    return Latents(folder, index)


def latent_source(latents: Latents) -> Callable[..., Tensor]:
    """The training data as a callable (index (B,), gen, rows) -> x_0 = scale (mean + std eps),
    float32, for those rows of B.

    A fair coin mirrors each image if mirror images were encoded. All B flips and eps are drawn,
    whatever the rows, so the processes that share a batch agree with a single one; only the rows'
    latents are read."""

    def source(index: Tensor, gen: torch.Generator, rows: slice = slice(None)) -> Tensor:
        flip = torch.rand(len(index), generator=gen) < (0.5 if latents.flip else 0.0)
        eps = torch.randn(len(index), *latents.shape, generator=gen)
        mean, std = latents.moments(index[rows], flip[rows])
        return latents.scale * (mean + std * eps[rows])

    source.digest = latents.digest  # type: ignore[attr-defined]
    return source


def posterior_means(latents: Latents, index: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    """x_0 = scale · mean (B, C, h, w) of images index (B,), without mirroring or noise: for
    held-out controls.
    """
    return latents.scale * latents.moments(index)[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode what a LatentSpec in a JSON file asks for, this process's shards of it; the first
    process writes the index.
    """
    about = "Encode this process's share of an image folder as latents"
    spec = settings("nag.data.latents", LatentSpec, about, arguments)
    with one_sentence("nag.data.latents"):
        try:
            rank, world = start()
            report = encode(spec, rank, world)
            print(
                f"process {rank} of {world}: {report['encoded']} images encoded in "
                f"{report['seconds']:.1f} s, "
                f"{report['images_per_second']:.1f} images per second; {report['kept']} were there "
                "already",
                flush=True,
            )
            barrier()
            if rank == 0:
                write_index(spec)
            barrier()
        finally:
            stop()


if __name__ == "__main__":
    main()
