"""Many images in shards of consecutive seeds: shared by any number of processes, written as they
come, resumed.

What a shard holds depends on its seeds alone, so that one process and eight make the same images.
Start with `torchrun --nproc-per-node N -m companion.experiments.shards spec.json`, or from a
notebook through nag.support.distributed.launch."""

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from companion.experiments.generate import (
    Arm,
    SampleConfig,
    batches,
    code_version,
    finished,
    forget,
    load_arrays,
    part_file,
    sample,
    save_arrays,
)
from nag import checkpoint
from nag.data.published_files import digest
from nag.data.vae import decoder, fingerprint, load_vae
from nag.pretrained.null_branch import load_null
from nag.support import commands, distributed
from nag.support.device import best_device, resolve_precision
from nag.support.files import atomic
from nag.support.paths import ROOT


@cache
def vae_fingerprint(name: str) -> str:
    """Of the autoencoder `name`, loaded once however often a key is asked for."""
    return fingerprint(load_vae(name))


class ShardConfig(BaseModel):
    """What to sample, with which network, and into which folder; paths count from the repository's
    root.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str
    kind: str = "nag"
    heads: int | None = None
    num_classes: int | None = Field(
        None,
        description="where the class table may have no row for no class",
        exclude_if=lambda value: value is None,
    )
    sha256: str | None = Field(None, description="of the weights, checked if given")
    null: str = Field("", description="file of a separately trained null branch, NAG's negative")
    pretrained: str = Field(
        "", description="file of the network before fine-tuning, Domain Guidance's negative"
    )
    pretrained_kind: str = "nag"
    vae: str = Field(
        "", description="folder or name of the AutoencoderKL that decodes; none for pixels"
    )
    arm: Arm
    config: SampleConfig
    shard_size: int = Field(500, ge=1)
    out: str

    @property
    def parts(self) -> list[SampleConfig]:
        """The settings of every shard: its seeds, and those of the first images that keep their
        states.
        """
        return self.config.parts(self.shard_size)

    def path(self, part: SampleConfig) -> Path:
        """File of one shard."""
        return part_file(ROOT / self.out, part)

    def key(self) -> str:
        """Short hash of all that decides an image, given its seed, code included: a shard of
        another key is made again.
        """
        files = [digest(ROOT / name) for name in (self.weights, self.null, self.pretrained) if name]
        decisive = {"sampler", "grid", "steps", "states_every", "network_batch"}
        rest = self.model_dump_json(
            include=dict.fromkeys(("kind", "heads", "num_classes", "pretrained_kind", "arm"), True)
            | {"config": decisive}
        )
        vae = vae_fingerprint(self.vae) if self.vae else ""
        made = (
            files,
            rest,
            vae,
            resolve_precision(self.config.precision, best_device()),
            code_version(),
        )
        return hashlib.sha256(repr(made).encode()).hexdigest()[:16]


def run(spec: ShardConfig, rank: int = 0, world: int = 1) -> int:
    """Make this process's shards, every `world`-th from `rank` on, that are not there yet; returns
    how many it made.
    """
    key = spec.key()
    missing = [part for part in spec.parts[rank::world] if not finished(spec.path(part), part, key)]
    if not missing:
        return 0
    net = checkpoint.load(
        ROOT / spec.weights, spec.kind, spec.heads, spec.sha256, spec.num_classes
    ).to(best_device())
    terms = spec.arm.terms(
        load_null(ROOT / spec.null, net, digest(ROOT / spec.weights)) if spec.null else None,
        checkpoint.load(ROOT / spec.pretrained, spec.pretrained_kind) if spec.pretrained else None,
    )
    decode = (
        decoder(load_vae(spec.vae), best_device()) if spec.vae else None
    )  # in fp32: 1 % of the time, half a grey level
    for k, part in enumerate(missing, 1):
        arrays = sample(net, terms, part, progress=False, decode=decode, keep=batches(key))
        save_arrays(spec.path(part), arrays | {"key": np.array(key)})
        forget(batches(key), part, alone=world == 1)
        print(
            f"process {rank}: shard {k} of {len(missing)}, seeds {part.seeds[0]} to "
            f"{part.seeds[-1]}, "
            f"{len(part.seeds) / float(arrays['seconds']):.2f} images/s",
            flush=True,
        )
    return len(missing)


def read(spec: ShardConfig) -> Iterator[dict[str, np.ndarray]]:
    """The shards in the order of their seeds; raises FileNotFoundError if some are missing."""
    key = spec.key()
    missing = [
        spec.path(part).name for part in spec.parts if not finished(spec.path(part), part, key)
    ]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(spec.parts)} shards are not in {ROOT / spec.out} (the first: "
            f"{missing[0]}): sample again, finished shards are kept"
        )
    return (load_arrays(spec.path(part)) for part in spec.parts)


def export(path: Path, spec: ShardConfig) -> None:
    """All images as ADM's evaluation wants them: an npz whose `arr_0` is (N, H, W, 3) uint8,
    written shard by shard, atomically.

    Grey images get three equal channels. Raises FileNotFoundError if a shard is missing.
    """
    shards = read(spec)
    with (
        atomic(path) as part,
        zipfile.ZipFile(part, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        for k, shard in enumerate(shards):
            images = shard["images"].transpose(0, 2, 3, 1)
            images = np.ascontiguousarray(
                images.repeat(3, axis=3) if images.shape[3] == 1 else images
            )
            if k == 0:
                header = {
                    "descr": "|u1",
                    "fortran_order": False,
                    "shape": (spec.config.n_images, *images.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(file, header)
            file.write(images.data)


def merge(spec: ShardConfig) -> dict[str, np.ndarray]:
    """The shards as one run in the form of `generate.sample`, with the images of the first ones
    only, which kept their states.

    At least ten images are kept for a look at them.
    """
    keep = max(10, spec.config.trajectories)
    columns: dict[str, list] = {}
    kept, seconds = 0, 0.0
    for shard in read(spec):
        wanted = max(0, keep - kept)
        for name, rows in (("images", wanted), ("states", None), ("seeds", None), ("labels", None)):
            columns.setdefault(name, []).append(shard[name][:rows])
        kept, seconds = kept + len(shard["images"]), seconds + float(shard["seconds"])
    return {name: np.concatenate(parts) for name, parts in columns.items()} | {
        "times": shard["times"],
        "nfe": shard["nfe"],
        "seconds": np.array(seconds),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make this process's shards of the spec named on the command line."""
    spec = commands.settings(
        "companion.experiments.shards", ShardConfig, "Sample this process's shards", arguments
    )
    with commands.one_sentence("companion.experiments.shards"):
        try:
            run(spec, *distributed.start())
        finally:
            distributed.stop()


if __name__ == "__main__":
    main()
