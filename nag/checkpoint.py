"""Reading and writing weights: our safetensors, and the SiT, DiT, REPA and diffusers layouts; no
code is ever executed.
"""

import argparse
import hashlib
import json
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from nag.models import DiT, ModelConfig, sincos_2d
from nag.support.files import atomic

# How each public code counts time and what its network predicts, in terms of t = 1 noise.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "sit": dict(prediction="v", path="linear", time_scale=-1.0, time_offset=1.0, sign=-1.0),
    "repa": dict(prediction="v", path="linear", time_scale=1.0, time_offset=0.0, sign=1.0),
    "dit": dict(prediction="eps", path="ddpm", time_scale=1000.0, time_offset=-1.0, sign=1.0),
}
# diffusers' DiT counts as DiT does, but divides its time frequencies by 127, not 128, and has
# another eps in norm3.
CONVENTIONS["diffusers"] = CONVENTIONS["dit"] | dict(freq_shift=1.0, norm_eps=1e-5)
KINDS = ("nag", *CONVENTIONS)
HEADS = {
    1152: 16,
    1024: 16,
    768: 12,
    384: 6,
    192: 3,
}  # of the published XL, L, B, S and of the minis here
NULL = "t_embedder.null"
# Defaults of diffusers' DiTTransformer2DModel; the first four make it the official DiT.
DIFFUSERS_DIT = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
}
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFUSERS_SIZES = {"sample_size": 32, "num_attention_heads": 16, "norm_eps": 1e-5}


def _existing(path: Path) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no weights at {path}: check the path, or make them with `dvc repro`"
        )
    return Path(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str) -> None:
    """Check a file's SHA-256 against its 64 hexadecimal digits, or the first 8 or more; raises
    ValueError, FileNotFoundError.
    """
    if not re.fullmatch("[0-9a-fA-F]{8,64}", expected):
        raise ValueError(
            f"{expected!r} is no SHA-256: give its 64 hexadecimal digits, or the first 8 or more"
        )
    found = sha256(_existing(path))
    if not found.startswith(expected.lower()):
        raise ValueError(
            f"{path} has the SHA-256 {found}, not {expected}: it is damaged or another version, "
            "fetch it again"
        )


def save_weights(path: Path, module: nn.Module, /, **metadata: str) -> None:
    """Write a module's weights as bf16 safetensors with text metadata, atomically; raises OSError
    with advice.
    """
    state = {
        k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in module.state_dict().items()
    }
    with atomic(path) as part:
        part.write_bytes(serialized(state, {"nag": json.dumps(metadata, sort_keys=True)}))


def read_file(path: Path) -> tuple[object, dict[str, str]]:
    """Content of a safetensors file with our metadata, or of a PyTorch file with none; tensors are
    mapped, not read.

    Besides tensors and plain values, argparse.Namespace is let through, which SiT, DiT and REPA
    keep beside their weights. That runs no code: restoring one only fills its `__dict__`, it has no
    method of its own that unpickling would call, and the values in it pass the same unpickler.
    Raises FileNotFoundError, or ValueError if truncated or in need of executing code."""
    path = _existing(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(
                    (file.metadata() or {}).get("nag", "{}")
                )
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), {}
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated or no weights file: fetch or make it again"
        ) from error
    except Exception as error:  # the unpickler's own error for anything else
        raise ValueError(
            f"{path} holds objects other than weights ({type(error).__name__}); it is not loaded, "
            "since that would execute code: save its state_dict alone"
        ) from error


def named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """`content`, if it is a state dict; raises ValueError naming the file it came from if not."""
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise ValueError(
            f"{path} holds no named tensors: save a module's state_dict, or name the right file"
        )
    return content


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict and metadata of a safetensors file or a PyTorch checkpoint (its "ema" if it has
    one).

    Raises ValueError if it holds no named tensors, and what `read_file` raises.
    """
    content, metadata = read_file(path)
    if isinstance(content, dict) and "ema" in content:
        content = content["ema"]
    return named_tensors(content, path), metadata


M = TypeVar("M", bound=nn.Module)


def load_weights(path: Path, module: M) -> M:
    """Fill a module from a file, every key accounted for, and put it into evaluation mode.

    Raises ValueError listing missing and unknown keys or wrong shapes, and what `read_weights`
    raises."""
    state, _ = read_weights(path)
    _check_fit(module, state, path)
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def _check_fit(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unknown": sorted(state.keys() - own.keys()),
        "wrong shape": sorted(
            k for k in own.keys() & state.keys() if own[k].shape != state[k].shape
        ),
    }
    if any(faults.values()):
        text = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in faults.items() if keys)
        raise ValueError(
            f"{path} does not fit {type(module).__name__} ({text}): check the file and its kind"
        )


def _build(config: ModelConfig, state: dict[str, Tensor], path: Path) -> DiT:
    """The network around these tensors: nothing is initialised, and what is float32 already is not
    copied.
    """
    with torch.device("meta"):
        net = DiT(config)
    _check_fit(net, state, path)
    own = {
        key: state[key].detach().to(like.dtype).contiguous()
        for key, like in net.state_dict().items()
    }
    places = Counter(value.data_ptr() for value in own.values())
    for key, value in own.items():
        if (
            places[value.data_ptr()] > 1 or value.data_ptr() % value.element_size()
        ):  # one tensor under two keys, or unaligned
            own[key] = value.clone()
    net.load_state_dict(own, assign=True)
    return net.eval().requires_grad_(False)


def infer_config(state: dict[str, Tensor], kind: str, heads: int | None = None) -> ModelConfig:
    """Every size of a DiT-layout network, read from the shapes of its weights.

    The number of heads leaves no trace in them: published widths have a known one, else pass it (a
    guess is announced). Raises ValueError if a key that the layout needs is missing."""
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        tokens = state["pos_embed"].shape[1]
        out = state["final_layer.linear.weight"].shape[0] // patch**2
        classes = state["y_embedder.embedding_table.weight"].shape[0] - 1
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"these weights are not in the DiT/SiT layout ({error}): check the file and its kind"
        ) from error
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if heads is None:
        heads = HEADS.get(width)
        if heads is None:
            heads = 4 if width < 384 else width // 64
            warnings.warn(
                f"width {width} is no published size: assuming {heads} heads, pass heads= if wrong",
                stacklevel=3,
            )
    return ModelConfig(
        input_size=round(tokens**0.5) * patch,
        patch=patch,
        channels=channels,
        width=width,
        depth=depth,
        heads=heads,
        classes=classes,
        learn_sigma=out == 2 * channels,
        **CONVENTIONS[kind],
    )


def _diffusers_names(depth: int) -> dict[str, list[str]]:
    """Names in the official layout to those in diffusers' whose tensors make them up, one below the
    other.
    """
    modules = {
        "x_embedder.proj": ["pos_embed.proj"],
        "final_layer.adaLN_modulation.1": ["proj_out_1"],
        "final_layer.linear": ["proj_out_2"],
    }
    for layer, number in (("mlp.0", 1), ("mlp.2", 2)):
        modules[f"t_embedder.{layer}"] = [
            f"transformer_blocks.0.norm1.emb.timestep_embedder.linear_{number}"
        ]
    for k in range(depth):
        ours, theirs = f"blocks.{k}", f"transformer_blocks.{k}"
        modules |= {
            f"{ours}.attn.qkv": [f"{theirs}.attn1.to_{part}" for part in "qkv"],
            f"{ours}.attn.proj": [f"{theirs}.attn1.to_out.0"],
            f"{ours}.adaLN_modulation.1": [f"{theirs}.norm1.linear"],
            f"{ours}.mlp.fc1": [f"{theirs}.ff.net.0.proj"],
            f"{ours}.mlp.fc2": [f"{theirs}.ff.net.2"],
        }
    names = {
        f"{key}.{kind}": [f"{old}.{kind}" for old in sources]
        for key, sources in modules.items()
        for kind in ("weight", "bias")
    }
    return names | {
        "y_embedder.embedding_table.weight": [
            "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
        ]
    }


def transformer_folder(path: Path) -> Path:
    """The folder of a saved DiTTransformer2DModel: `path` itself, or that in a pipeline's."""
    inner = Path(path) / "transformer"
    return inner if inner.is_dir() else Path(path)


def _read_diffusers(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """State dict in the official layout and settings of a saved DiTTransformer2DModel.

    Every block owns a copy of the embedders; the first block's are kept. Raises ValueError if a
    setting makes it another network than DiT, if the copies differ, or listing missing and unknown
    keys; FileNotFoundError."""
    try:
        settings = (
            DIFFUSERS_DIT | DIFFUSERS_SIZES | json.loads((folder / "config.json").read_text())
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no config.json in {folder}: give the folder of a diffusers DiT or of its pipeline"
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: fetch or make it again") from error
    other = {
        name: settings[name] for name, wanted in DIFFUSERS_DIT.items() if settings[name] != wanted
    }
    if other:
        raise ValueError(
            f"{folder} has another architecture than DiT, which this project cannot run: {other}"
        )
    state, _ = read_weights(folder / DIFFUSERS_WEIGHTS)
    positions = state.pop("pos_embed.pos_embed", None)  # a fixed table, saved by some versions
    depth = len({key.split(".")[1] for key in state if key.startswith("transformer_blocks.")})
    names, first = _diffusers_names(depth), "transformer_blocks.0.norm1.emb."
    sources = {key for parts in names.values() for key in parts}
    copies = {
        key.replace(".0.", f".{k}.", 1): key
        for key in sources
        if key.startswith(first)
        for k in range(1, depth)
    }
    missing, unknown = (
        (sources | copies.keys()) - state.keys(),
        state.keys() - sources - copies.keys(),
    )
    if missing or unknown:
        raise ValueError(
            f"{folder} is no complete DiT of diffusers (missing: "
            f"{', '.join(sorted(missing)) or 'nothing'}; "
            f"unknown: {', '.join(sorted(unknown)) or 'nothing'}): check the folder"
        )
    unlike = sorted(
        copy for copy, key in copies.items() if not torch.equal(state[copy], state[key])
    )
    if unlike:
        raise ValueError(
            f"{folder}: the blocks' embedders differ, while DiT has one for all "
            f"({', '.join(unlike)})"
        )
    official = {
        key: torch.cat([state[part] for part in parts]) if parts[1:] else state[parts[0]]
        for key, parts in names.items()
    }
    width, _, patch, _ = official["x_embedder.proj.weight"].shape
    official["pos_embed"] = (
        sincos_2d(width, settings["sample_size"] // patch)[None] if positions is None else positions
    )
    return official, settings


def load(path: Path, kind: str = "nag", heads: int | None = None, sha256: str | None = None) -> DiT:
    """A network from our own file (kind "nag") or from released weights ("sit", "dit", "repa"), in
    evaluation mode.

    With kind "diffusers" `path` is the folder of a saved DiTTransformer2DModel or of its pipeline.
    Time direction and sign are converted here; a network without a null noise condition gets a zero
    one, which must be trained before NAG means anything. With `sha256` the file, or the weights in
    a folder, are checked first, see `verify`. Float32 weights are the file's own, mapped into
    memory: training changes the network, never the file, which may be replaced meanwhile but not
    written into. Raises ValueError for an unknown kind, another hash, keys or shapes;
    FileNotFoundError."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {KINDS}")
    path = transformer_folder(path) if kind == "diffusers" else Path(path)
    if sha256 is not None:
        verify(path / DIFFUSERS_WEIGHTS if kind == "diffusers" else path, sha256)
    if kind == "diffusers":
        state, settings = _read_diffusers(path)
        config = infer_config(state, kind, settings["num_attention_heads"])
        config = config.model_copy(update={"norm_eps": settings["norm_eps"]})
        return _build(config, state | {NULL: torch.zeros(config.width)}, path)
    state, metadata = read_weights(path)
    if kind == "nag":
        if "config" not in metadata:
            raise ValueError(
                f"{path} was not written by this project (no config in it): name its kind, one of "
                f"{KINDS}"
            )
        config = ModelConfig(**json.loads(metadata["config"]))
    else:
        state = {
            k: v for k, v in state.items() if not k.startswith("projectors.")
        }  # REPA's training-only heads
        config = infer_config(state, kind, heads)
        state.setdefault(NULL, torch.zeros(config.width))
    return _build(config, state, path)


def save(path: Path, net: DiT, /, **metadata: str) -> None:
    """Write a network with its configuration, as `load` reads it."""
    save_weights(path, net, config=net.config.model_dump_json(), **metadata)
