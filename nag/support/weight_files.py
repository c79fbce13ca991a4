"""Files of weights as state dicts, whoever wrote them and however they are wrapped; no code in them
is ever executed.
"""

import argparse
import hashlib
import json
import re
import tarfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nag.support.files import check_archive

# Where training codes put a state dict; the averaged one comes first.
WRAPPERS = (
    *("ema", "ema_model", "model_ema", "ema_state_dict", "ema_model_state_dict", "params_ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
)
# What torch.compile, activation checkpointing and FSDP put into names.
INSERTED = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # in the head of files of torch.save before 1.6
DIFFUSERS = "diffusion_pytorch_model"


def existing(path: Path) -> Path:
    """The path of a file; raises FileNotFoundError, also for a folder."""
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(
            f"{path} is a folder: name the file of weights in it, or kind 'diffusers' if diffusers "
            "saved it"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: check the path, or make them with `dvc repro`"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of tensors in their order, by type, shape and value, as hexadecimal text."""
    found = hashlib.sha256()
    for tensor in tensors:
        x = tensor.detach().cpu().contiguous()
        found.update(f"{x.dtype} {tuple(x.shape)}\n".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def joined(digests: list[str]) -> str:
    """The SHA-256 of a network in several files, in their order; that of its file if it is one."""
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def read_file(path: Path) -> tuple[object, dict[str, str]]:
    """Content of a safetensors file with our metadata, or of a PyTorch file with none; which of
    them it is, its first bytes say, not its name.

    Tensors are mapped, not read, except from files older than PyTorch 1.6. Besides tensors and
    plain values, argparse.Namespace is let through, which SiT, DiT and REPA keep beside their
    weights. That runs no code: restoring one only fills its `__dict__`, it has no method of its own
    that unpickling would call, and the values in it pass the same unpickler. Raises
    FileNotFoundError, or ValueError if truncated or in need of executing code."""
    path = existing(path)
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        if head[8:9] == b"{":  # after the length of its header
            return _read_safetensors(path)
        if head.startswith(b"PK") or TORCH_MAGIC in head:
            return _read_torch(path, head.startswith(b"PK")), {}
        fault = _other_file(path, head)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        fault, cause = "is truncated or no weights file: fetch or make it again", error
        if "TorchScript" in str(error):
            fault = "is a TorchScript archive, which holds code: save its state_dict alone"
    except Exception as error:  # the unpickler's own error for anything else
        named, cause = re.search(r"GLOBAL ([\w.]+)", str(error)), error
        what = named[1] if named else type(error).__name__
        fault = (
            f"holds objects other than weights ({what}); it is not loaded, since that would "
            "execute code: save its state_dict alone"
        )
    else:
        cause = None
    raise ValueError(f"{path} {fault}") from cause


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}
        return state, json.loads((file.metadata() or {}).get("nag", "{}"))


def _read_torch(path: Path, zipped: bool) -> object:
    check_archive(path)
    mapped = zipped and not path.name.endswith(".safetensors")  # torch.load would believe the name
    with open(path, "rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        source = path if mapped else file
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)


def _other_file(path: Path, head: bytes) -> str:
    """What a file is that neither safetensors nor torch.save since 0.2 wrote, and what to do."""
    if head.startswith(b"version https://git-lfs"):
        return "only points to a file kept by Git LFS: run `git lfs pull` where it comes from"
    if tarfile.is_tarfile(path):
        return (
            "is a tar archive, as PyTorch 0.1 wrote them, which cannot be read without executing "
            "code: save it again with an old PyTorch"
        )
    if head.startswith(b"\x80"):
        return (
            "is a pickle that torch.save did not write, which cannot be read without executing "
            "code: save its tensors with torch.save"
        )
    return "is truncated or no weights file: fetch or make it again"


def named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """`content`, if it is a state dict; raises ValueError naming the file it came from if not."""
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        names = ", ".join(map(str, content))[:200] if isinstance(content, dict) else ""
        raise ValueError(
            f"{path} holds no named tensors{names and f' but {names}'}: save a module's "
            "state_dict, or name the right file"
        )
    return content


def state_in(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what `read_file` gave, however it is wrapped: its "ema" if it has one, else
    its "state_dict", "model" and the like.

    Raises ValueError if there is none, or if it is the state of an unfinished training here."""
    if isinstance(content, dict) and {"ema", "optimizer", "settings"} <= content.keys():
        raise ValueError(
            f"{path} is the state of a training: run the training to its end, which writes weights"
        )
    for _ in range(4):  # no file wraps its weights more often
        if not isinstance(content, dict) or all(isinstance(v, Tensor) for v in content.values()):
            break
        inner = [content[key] for key in WRAPPERS if key in content]
        inner = [value for value in inner if not isinstance(value, Tensor) and value]
        content = inner[0] if inner else content
    return named_tensors(content, path)


def prefixes(state: Iterable[str], anchor: str) -> set[str]:
    """What stands before the name `anchor` where a name ends in it, "" where it is the name."""
    return {key.removesuffix(anchor) for key in state if f".{key}".endswith(f".{anchor}")}


def plain_names(state: dict[str, Tensor], anchor: str) -> dict[str, Tensor]:
    """A state dict without what wrappers put into its names, such as "module." before all of them
    or "_orig_mod." anywhere; `anchor` is the name of one of the module's own tensors.
    """
    for part in INSERTED:
        state = {key.replace(part, ""): value for key, value in state.items()}
    found = prefixes(state, anchor)
    prefix = min(found, default="")
    if len(found) != 1 or not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


class WeightFiles(NamedTuple):
    """The files of a network that diffusers saved, and its variant: "fp16", say, or "" for none."""

    files: list[Path]
    variant: str


def weight_files(folder: Path) -> WeightFiles:
    """The files of the weights in a folder of diffusers: .safetensors or .bin, one or the shards of
    an index, of the variant without a name or the only one.

    Raises FileNotFoundError if there are none or a shard is missing, ValueError for a damaged index
    or a choice of variants."""
    found = {}  # by variant, whether it is .bin and whether it is an index
    for path in sorted(Path(folder).glob(f"{DIFFUSERS}.*")):
        name, *parts = path.name.split(".")
        known = [part.lower() for part in parts]
        rest = [p for p in parts if p.lower() not in ("safetensors", "bin", "index", "json")]
        if "-of-" in path.name or not {"safetensors", "bin"} & set(known):
            continue
        found[".".join(rest), "bin" in known, "index" in known] = path
    variants = sorted({variant for variant, _, _ in found})
    if not found:
        raise FileNotFoundError(
            f"no weights in {folder}: place {DIFFUSERS}.safetensors or .bin, or its shards and "
            "their index"
        )
    if variants[0] and len(variants) > 1:
        raise ValueError(
            f"{folder} has the variants {', '.join(variants)} and none without a name: leave one"
        )
    if variants[0]:
        warnings.warn(f"{folder} has weights of the variant {variants[0]} only", stacklevel=3)
    (variant, _, is_index), path = min(found.items())
    return WeightFiles(_shards(path) if is_index else [path], variant)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: fetch or make it again") from error
    files = [index.parent / Path(name).name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{index} lists {len(missing)} files that are not there, such as {missing[0]}: fetch "
            "them from where the others come from"
        )
    return files
