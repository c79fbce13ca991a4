"""Damaged files for every reader: each is refused in a sentence that names it, runs no code, and is
never taken for whole where a checksum says that it is not."""

import json
import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

SECONDS = 30  # that one file may take


class Target(NamedTuple):
    """A file, how it is read, whether a checksum is kept of it, and a text of what is read."""

    name: str
    path: Path
    read: Callable[[], object]
    checked: bool


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def targets(root: Path, folder: Path) -> list[Target]:
    """One file of every kind, made in `folder`."""
    import mini_world

    from companion.experiments.generate import load_arrays
    from nag import checkpoint
    from nag.data import fashion_mnist, image_folder
    from nag.data.latents import LatentSpec, encode, open_latents, write_index
    from nag.estimator import NoiseEstimator
    from nag.evaluation import adm
    from nag.pretrained.null_branch import load_null, save_null, separate_branch
    from nag.support.files import read_json, write_json
    from nag.train import TrainConfig, TrainState

    folder.mkdir(parents=True)
    net_file, weights = folder / "net.safetensors", root / "results/weights"
    net_file.write_bytes((weights / "sit.safetensors").read_bytes())
    sha256, net = checkpoint.sha256(net_file), checkpoint.load(net_file)
    estimator = folder / "estimator.safetensors"
    estimator.write_bytes((weights / "estimator-linear.safetensors").read_bytes())
    for kind in ("sit", "dit"):
        mini_world.released(folder / f"{kind}.pt", kind)
    null = folder / "null.safetensors"
    save_null(null, separate_branch(net), sha256)
    settings = TrainConfig(images_seen=64, batch_size=32, compile=False)
    state_file = folder / "state.pt"
    TrainState(
        checkpoint.load(net_file).requires_grad_(True),
        settings,
        state_file,
        torch.device("cpu"),
        64,
    ).save()
    arrays = folder / "arrays.npz"
    np.savez(arrays, x=np.arange(500.0), seeds=np.arange(9))
    numbers = folder / "numbers.json"
    write_json(numbers, {"a": {"value": 1.5, "low": 1.0}, "b": list(range(40))})
    statistics = folder / "reference.npz"
    np.savez(statistics, mu=np.ones(8), sigma=np.eye(8))
    labels = "t10k-labels-idx1-ubyte.gz"
    (folder / labels).write_bytes((root / "data/fashion-mnist" / labels).read_bytes())
    mini_world.images(folder / "images", 4, 3)
    picture = next((folder / "images").rglob("*.JPEG"))
    png = folder / "image.png"
    image_folder.Image.open(picture).save(png)
    latents = LatentSpec(
        images=str(folder / "images"),
        vae=str(root / "data/mini-vae"),
        out=str(folder / "latents"),
        size=64,
        shard_size=2,
        workers=1,
    )
    encode(latents)
    write_index(latents)
    shard = folder / "latents/shard-00000.npy"

    def whole_net() -> torch.nn.Module:
        return checkpoint.load(weights / "sit.safetensors").requires_grad_(True)

    def state() -> object:
        again = TrainState(whole_net(), settings, state_file, torch.device("cpu"), 64)
        again.load()
        return again.ema, again.step

    def tensors(module: torch.nn.Module) -> object:
        return dict(module.state_dict())

    def given() -> object:
        found = adm.given_statistics(statistics, ["pool"])
        if not found:  # as `adm.evaluate` would, which looks for images next
            raise ValueError(f"{statistics} has no statistics")
        return found

    def opened() -> object:
        stored = open_latents(folder / "latents")
        return stored.index, stored.moments(range(len(stored)))

    return [
        Target(
            "weights, .safetensors", net_file, lambda: tensors(checkpoint.load(net_file)), False
        ),
        Target(
            "weights with a given SHA-256",
            net_file,
            lambda: tensors(checkpoint.load(net_file, sha256=sha256)),
            True,
        ),
        Target(
            "weights, SiT's .pt",
            folder / "sit.pt",
            lambda: tensors(checkpoint.load(folder / "sit.pt", "sit")),
            True,
        ),
        Target(
            "weights, DiT's .pt",
            folder / "dit.pt",
            lambda: tensors(checkpoint.load(folder / "dit.pt", "dit")),
            True,
        ),
        Target(
            "estimator",
            estimator,
            lambda: tensors(checkpoint.load_weights(estimator, NoiseEstimator())),
            False,
        ),
        Target("null condition", null, lambda: tensors(load_null(null, net, sha256)), False),
        Target("state of training", state_file, state, True),
        Target("arrays, .npz", arrays, lambda: load_arrays(arrays), True),
        Target(
            "reference, .npz",
            statistics,
            given,
            True,
        ),
        Target("numbers, .json", numbers, lambda: read_json(numbers), False),
        Target(
            "Fashion-MNIST, .idx.gz",
            folder / labels,
            lambda: torch.from_numpy(
                np.frombuffer(fashion_mnist.fetch(labels, folder), np.uint8).copy()
            ),
            True,
        ),
        Target("image, .JPEG", picture, lambda: image_folder.read(picture), False),
        Target("image, .png", png, lambda: image_folder.read(png), True),
        Target(
            "latents, a shard",
            shard,
            lambda: open_latents(folder / "latents", verify=True).moments([0]),
            True,
        ),
        Target("latents, the index", folder / "latents/index.json", opened, False),
    ]


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """A kind of damage and the content with it; the head of a file is hit as often as the rest."""
    kind = str(
        rng.choice(
            ["cut", "bits", "bytes", "noise", "gap", "empty"], p=[0.2, 0.3, 0.25, 0.1, 0.1, 0.05]
        )
    )
    data, size = bytearray(content), len(content)
    span = min(size, 400) if rng.integers(2) else size
    place = int(rng.integers(span))
    if kind == "cut":
        del data[place:]
    elif kind == "bits":
        for at in rng.integers(span, size=int(rng.integers(1, 9))):
            data[at] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        width = int(rng.integers(1, 64))
        data[place : place + width] = rng.bytes(width)
    elif kind == "gap":
        del data[place : place + int(rng.integers(1, 64))]
    else:
        data = bytearray(rng.bytes(int(rng.integers(1, 3000))) if kind == "noise" else b"")
    return kind, bytes(data)


def evil(mark: Path) -> list[bytes]:
    """Files that run a command in a reader that unpickles them."""
    import io

    def written(save: Callable) -> bytes:
        file = io.BytesIO()
        save(file)
        return file.getvalue()

    bad = Evil(mark)
    return [
        pickle.dumps(bad),
        written(lambda file: torch.save({"model": bad, "ema": bad, "step": bad}, file)),
        written(lambda file: torch.save(bad, file, _use_new_zipfile_serialization=False)),
        written(
            lambda file: np.savez(file, x=np.array([bad], object), seeds=np.array([bad], object))
        ),
        written(lambda file: np.save(file, np.array([bad], object), allow_pickle=True)),
    ]


def same(a: object, b: object) -> bool:
    """Whether two contents are equal, bit for bit."""
    if isinstance(a, torch.Tensor | np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def outcome(target: Target, content: bytes, whole: object) -> tuple[str, str]:
    """ "refused", "equal" or "accepted", which is right; otherwise a fault and its message."""

    def too_long(*_: object) -> None:
        raise RuntimeError("took too long")

    target.path.write_bytes(content)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        found = target.read()
    except (ValueError, OSError) as error:
        names = target.path.name in str(error) or str(target.path.parent) in str(error)
        plain = type(error) in (ValueError, OSError, FileNotFoundError)
        return ("refused", "") if names and plain else ("raw", repr(error)[:300])
    except BaseException as error:
        return "raw", repr(error)[:300]
    finally:
        signal.alarm(0)
    if same(found, whole):
        return "equal", ""
    return (
        ("missed", "the checksum is wrong, the file is taken")
        if target.checked
        else (
            "accepted",
            "",
        )
    )


def fuzz(
    root: Path, inputs: int, rng: np.random.Generator, started: Callable, ended: Callable
) -> list[dict]:
    """So many damaged files in all, in a process for each kind; a row of counts for each."""
    folder, rows = root.parent / "fuzz", []
    made = targets(root, folder)
    each = -(-inputs // len(made))
    for target in made:
        log, mark = folder / "log.txt", folder / "executed"
        log.write_text("")
        seed = int(rng.integers(2**31))

        def run(
            target: Target = target, seed: int = seed, log: Path = log, mark: Path = mark
        ) -> None:
            draws, content = np.random.default_rng(seed), target.path.read_bytes()
            whole = target.read()
            if not same(whole, target.read()):
                raise RuntimeError(f"{target.name} is read differently each time")
            cases = [("code", text) for text in evil(mark)]
            cases += [damaged(content, draws) for _ in range(each)]
            with open(log, "a") as file:
                for kind, text in cases:
                    file.write(json.dumps([kind, "died", ""]) + "\n")
                    file.flush()
                    found = [kind, *outcome(target, text, whole)]
                    file.write(json.dumps(found) + "\n")
                    file.flush()

        content = target.path.read_bytes()
        status, message = ended(started(run))
        target.path.write_bytes(content)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found = lines[1::2] + (lines[-1:] if len(lines) % 2 else [])
        counts = Counter(what for _, what, _ in found)
        faults = [
            f"{target.name}, {kind}: {what}: {text}"
            for kind, what, text in found
            if what not in ("refused", "equal", "accepted")
        ]
        faults += [f"{target.name}: {message}"] if status else []
        faults += [f"{target.name}: ran code"] if mark.exists() else []
        mark.unlink(missing_ok=True)
        rows.append(
            {"file": target.name, "checked": target.checked, "inputs": len(found)}
            | {what: counts[what] for what in ("refused", "equal", "accepted")}
            | {"faults": faults}
        )
        print(f"{target.name}: {dict(counts)} {faults[:3] or ''}", flush=True)
    return rows
