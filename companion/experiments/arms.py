"""The arms of the main pipeline: sampled by notebook 5, read by notebooks 6 and 7.

An arm's file has a key of everything that decides it, so that samples of other settings, weights
or code are never taken for it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from companion.experiments import generate, shards
from companion.experiments.generate import (
    Arm,
    SampleConfig,
    batches,
    code_version,
    load_arrays,
    sample,
    save_arrays,
)
from nag import checkpoint
from nag.data.published_files import digest
from nag.estimator import NoiseEstimator, posterior_mean
from nag.interpolant import PATH_OF
from nag.pretrained.null_branch import load_null
from nag.samplers.registry import resolve, resolve_grid, time_grid
from nag.support import distributed
from nag.support.device import best_device, resolve_precision
from nag.support.files import read_json, write_json
from nag.support.paths import RESULTS, ROOT

Run = dict[str, np.ndarray]  # what `generate.sample` returns


def guidance_of(family: str, arm: str, file: str = "") -> Arm:
    """The guidance of a family's arm: notebook 4's choice, or what another file has under "chosen".

    Raises FileNotFoundError without the file, ValueError for an arm that it does not have."""
    choices = read_json(ROOT / (file or f"results/metrics/tune-{family}.json"))
    chosen = choices.get(family, choices)["chosen"]
    if arm not in chosen:
        raise ValueError(f"unknown arm {arm!r}: choose one of {sorted(chosen)}")
    return Arm(**chosen[arm])


def key_of(spec: shards.ShardConfig, family: str) -> str:
    """Short hash of everything that decides an arm's arrays: guidance, solver, grid, steps, seeds,
    kept states, precision, the contents of all weight files and of the decoder, code, PyTorch."""
    c, path = spec.config, PATH_OF[family]
    made = {
        "arm": spec.arm.model_dump(mode="json"),
        "solver": resolve(c.sampler, path),
        "grid": resolve_grid(c.sampler, path, c.grid),
        "steps": c.steps,
        "seeds": [c.first_seed, c.n_images],
        "states": [min(c.trajectories, c.n_images), c.kept],
        "precision": resolve_precision(c.precision, best_device()),
        "weights": [digest(ROOT / name) for name in (spec.weights, spec.null) if name],
        "kind": spec.kind,
        "vae": shards.vae_fingerprint(spec.vae) if spec.vae else "",
        "code": code_version(),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def kept(path: Path, key: str, make: Callable[[], Run]) -> Run:
    """The arrays at `path` if they were made under this key; otherwise made and saved there."""
    if path.is_file():
        arrays = load_arrays(path)
        if str(arrays.get("key")) == key:
            return arrays
    arrays = make() | {"key": np.array(key)}
    save_arrays(path, arrays)
    return arrays


def sample_arm(spec: shards.ShardConfig, name: str, folder: Path, processes: int = 0) -> Run:
    """Sample an arm, in this kernel and at once, or in shards if `spec.shard_size` is below the
    number of images.

    Shards are made by so many processes (`distributed.local_processes`), and also written as one
    ADM file, folder/samples/NAME.npz. Needs shards if images are decoded. A killed run goes on from
    its last batch: call `forget` once the arm is saved."""
    if spec.shard_size >= spec.config.n_images and not spec.vae:
        net = checkpoint.load(ROOT / spec.weights, spec.kind)
        null = load_null(ROOT / spec.null, net, digest(ROOT / spec.weights)) if spec.null else None
        return sample(net, spec.arm.terms(null), spec.config, keep=batches(spec.key()))
    processes = distributed.local_processes(processes)
    if processes:
        path = folder / "specs" / f"sample-{name}.json"
        write_json(path, spec.model_dump(mode="json"))
        distributed.launch("companion.experiments.shards", path, processes)
    else:
        shards.run(spec)
    shards.export(folder / "samples" / f"{name}.npz", spec)
    return shards.merge(spec)


def forget(spec: shards.ShardConfig) -> None:
    """Remove the batches that `sample_arm` kept, once the arm is saved."""
    generate.forget(batches(spec.key()), spec.config)


def _check_settings(file: Path, run: Run, config: SampleConfig, path: str) -> None:
    """Raise ValueError if the arm in a file is of another solver, other times, seeds or states.

    Which solver it was, the protocol beside it says."""
    protocol = file.parents[1] / "protocols" / f"{file.stem}.json"
    solver = resolve(config.sampler, path)
    made = read_json(protocol)["solver"] if protocol.is_file() else solver
    times = time_grid(config.sampler, config.steps, path, config.grid)[config.kept].numpy()
    same = {
        "solver": made == solver,
        "times": np.array_equal(run["times"], times),
        "seeds": run["seeds"].tolist() == list(config.seeds),
        "trajectories": len(run["states"]) == min(config.trajectories, config.n_images),
    }
    if other := [name for name, holds in same.items() if not holds]:
        raise ValueError(
            f"{file} was sampled with other settings ({', '.join(other)}): sample it again with "
            "05_sample.ipynb, or name the settings that it has"
        )


def runs_of(
    folder: Path, family: str, arms: Sequence[str], config: SampleConfig, latents: str = ""
) -> dict[str, Run]:
    """The arms of a family in folder/arrays, as notebook 5 left them.

    An arm of Fashion-MNIST that is missing, or was made under another key, is sampled now by the
    committed network. Those of latents must be there (FileNotFoundError), of these settings
    (ValueError)."""
    files = {arm: folder / "arrays" / f"{family}-{arm}.npz" for arm in arms}
    if latents:
        found = {arm: load_arrays(file) for arm, file in files.items()}
        for arm, file in files.items():
            _check_settings(file, found[arm], config, PATH_OF[family])
        return found
    specs = {
        arm: shards.ShardConfig(
            weights=f"results/weights/{family}.safetensors",
            arm=guidance_of(family, arm),
            config=config,
            shard_size=config.n_images,
            out=".",
        )
        for arm in arms
    }
    runs = {}
    for arm, spec in specs.items():
        make = partial(sample_arm, spec, arm, folder)
        runs[arm] = kept(files[arm], key_of(spec, family), make)
        forget(spec)
    return runs


def reader(path: str, folder: Path, latents: str = "", channels: int = 1) -> Callable:
    """The noise-level estimator of a forward process as x (B, C, H, W) -> E[t | x] (B,).

    The committed one for Fashion-MNIST, that in `folder` for latents."""
    home = folder if latents else RESULTS
    file = home / "weights" / f"estimator-{path}.safetensors"
    device = best_device()
    net = checkpoint.load_weights(file, NoiseEstimator(channels)).to(device)
    return lambda x: posterior_mean(net, x.to(device))


def first_images(run: Mapping[str, np.ndarray], n: int = 10) -> Run:
    """The first n images of an arm with their labels and seeds, and seven states of the first one:
    a small file from which figures are drawn."""
    picks = [round(k * (len(run["times"]) - 1) / 6) for k in range(7)]
    first = {name: run[name][:n] for name in ("images", "labels", "seeds")}
    if len(run["states"]):
        first |= {"states": run["states"][0, picks], "times": run["times"][picks]}
    return first
