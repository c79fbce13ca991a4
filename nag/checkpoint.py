"""Reading and writing weights: our safetensors, and the SiT, DiT, REPA and diffusers layouts; no
code is ever executed.
"""

import argparse
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import save as serialized
from torch import Tensor, nn

from nag.models import DiT, ModelConfig, sincos_2d
from nag.support.files import atomic
from nag.support.weight_files import (
    existing,
    joined,
    plain_names,
    prefixes,
    read_file,
    sha256,
    state_in,
    weight_files,
)

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
# Where training codes put their arguments, and what SiT and REPA call the class dropout in them.
ARGUMENTS = ("args", "config", "cfg", "hparams", "hyper_parameters")
CLASS_DROPOUT = ("class_dropout_prob", "cfg_prob")
NULL, TABLE = "t_embedder.null", "y_embedder.embedding_table.weight"
ANCHOR, LAST = "x_embedder.proj.weight", "final_layer.linear.weight"
# Defaults of diffusers' DiTTransformer2DModel; the first four make it the official DiT.
DIFFUSERS_DIT = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
}
DIFFUSERS_SIZES = {"sample_size": 32, "num_attention_heads": 16, "norm_eps": 1e-5}


def verify(path: Path, expected: str) -> None:
    """Check the SHA-256 of a file, or of the weights in a folder of diffusers, against its 64
    hexadecimal digits, or the first 8 or more; raises ValueError, FileNotFoundError.
    """
    if not re.fullmatch("[0-9a-fA-F]{8,64}", expected):
        raise ValueError(
            f"{expected!r} is no SHA-256: give its 64 hexadecimal digits, or the first 8 or more"
        )
    found = joined([sha256(file) for file in files_of(path)])
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


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict and metadata of a safetensors file or a PyTorch checkpoint (its "ema" if it has
    one).

    Raises ValueError if it holds no named tensors, and what `read_file` raises.
    """
    content, metadata = read_file(path)
    return state_in(content, path), metadata


M = TypeVar("M", bound=nn.Module)


def load_weights(path: Path, module: M) -> M:
    """Fill a module from a file, every key accounted for, and put it into evaluation mode.

    Raises ValueError listing missing and unknown keys or wrong shapes, and what `read_weights`
    raises."""
    state = plain_names(read_weights(path)[0], next(iter(module.state_dict())))
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
        "of whole numbers": sorted(
            k
            for k in own.keys() & state.keys()
            if own[k].is_floating_point() and not state[k].is_floating_point()
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


class Found(NamedTuple):
    """What a file holds: tensors, our metadata, and the arguments that SiT, DiT and REPA add."""

    name: str
    state: dict[str, Tensor]
    metadata: dict[str, str]
    arguments: dict

    def has(self, start: str) -> bool:
        """Whether the name of a tensor starts so."""
        return any(key.startswith(start) for key in self.state)

    def outputs(self) -> float:
        """Output channels for each input channel; NaN in another layout."""
        if not {ANCHOR, LAST} <= self.state.keys():
            return math.nan
        return self.state[LAST].shape[0] / self.state[ANCHOR][0].numel()

    def has_idle_variance(self) -> bool:
        """Whether the output's channels for a variance are all zero, and the others are not.

        The official SiT makes such channels and drops them, so that they stay as they began."""
        if self.outputs() != 2 or self.state[ANCHOR].ndim != 4 or self.state[LAST].ndim != 2:
            return False
        channels = self.state[ANCHOR].shape[1]
        rows = self.state[LAST].float().unflatten(0, (-1, 2, channels))  # of each pixel of a patch
        return bool(rows[:, 0].any()) and not bool(rows[:, 1].any())

    def classes(self) -> int | None:
        """The number of classes that the arguments say, if the class table can be of it; without
        class dropout it has no row more.
        """
        told, rows = self.arguments.get("num_classes"), len(self.state.get(TABLE, ()))
        if str(told).isdecimal() and rows - int(str(told)) in (0, 1):
            return int(str(told))
        drops = [self.arguments[name] for name in CLASS_DROPOUT if name in self.arguments]
        return rows if drops and drops[0] == 0 else None

    def says(self, model: str) -> bool:
        """Whether the file's name or its argument `model` is one of the published networks'."""
        names = (self.name, str(self.arguments.get("model", "")))
        return any(re.match(f"{model}[-_](S|B|L|XL)[-_/][248]", name, re.I) for name in names)


# What gives a file away, and the kinds that it can be of.
TELLING: list[tuple[str, Callable[[Found], bool], set[str]]] = [
    ("this project's configuration", lambda f: "config" in f.metadata, {"nag"}),
    ("tensors named projectors.*", lambda f: f.has("projectors."), {"repa"}),
    ("tensors named transformer_blocks.*", lambda f: f.has("transformer_blocks."), {"diffusers"}),
    ("a learned variance", lambda f: f.outputs() == 2, {"sit", "dit"}),
    ("a variance that was never trained", Found.has_idle_variance, {"sit"}),
    ("no learned variance", lambda f: f.outputs() == 1, {"repa", "dit"}),
    ("REPA's arguments", lambda f: "proj_coeff" in f.arguments, {"repa"}),
    ("the argument path_type", lambda f: "path_type" in f.arguments, {"sit", "repa"}),
    ("the name of a DiT", lambda f: f.says("DiT"), {"dit"}),
    ("the name of a SiT", lambda f: f.says("SiT"), {"sit", "repa"}),
]


def _refuse_another_kind(path: Path, kind: str, found: Found) -> None:
    """Raise ValueError if something tells that a file is not of this kind, or that its network
    predicts or travels in another way than the kind's published ones."""
    for what, holds, kinds in TELLING:
        if kind not in kinds and holds(found):
            names = " or ".join(repr(other) for other in KINDS if other in kinds)
            raise ValueError(f"{path} has {what}, so it is not of kind {kind!r}: name kind {names}")
    wanted = {"prediction": ("v", "velocity"), "path_type": ("linear",)}
    for name, values in wanted.items():
        value = str(found.arguments.get(name, values[0])).lower()
        if kind in ("sit", "repa") and value not in values:
            raise ValueError(
                f"{path} was trained with {name} {value}, while kind {kind!r} is of {values[0]}: "
                "this network cannot be read"
            )


def infer_config(
    state: dict[str, Tensor], kind: str, heads: int | None = None, classes: int | None = None
) -> ModelConfig:
    """Every size of a DiT-layout network, read from the shapes of its weights.

    Two things leave no trace in them, and a guess is announced. Published widths have a known
    number of `heads`. A table of `classes` rows has no row for "no class" (trained without class
    dropout), one of `classes` + 1 has it as its last; unless given it is taken to be there, as in
    the published 1001 rows. Raises ValueError if a key that the layout needs is missing, or a table
    of other rows."""
    try:
        width, channels, patch, _ = state[ANCHOR].shape
        tokens = state["pos_embed"].shape[1]
        out = state[LAST].shape[0] // patch**2
        rows = state[TABLE].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"these weights are not in the DiT/SiT layout ({error}): check the file and its kind"
        ) from error
    if classes is None:
        classes = rows - 1
        if rows != 1001 and kind != "diffusers":
            warnings.warn(
                f"{rows} rows of classes: assuming {classes} classes and a last row for none, pass "
                f"classes={rows} if it was trained without class dropout",
                stacklevel=3,
            )
    if rows - classes not in (0, 1):
        raise ValueError(
            f"the table of classes has {rows} rows, which is neither {classes} nor {classes + 1}: "
            "check classes"
        )
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if heads is None:
        heads = HEADS.get(width)
        if heads is None:
            heads = 4 if width < 384 else width // 64
            warnings.warn(
                f"width {width} is no published size: assuming {heads} heads, pass heads= if wrong",
                stacklevel=3,
            )
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}: check heads")
    return ModelConfig(
        input_size=round(tokens**0.5) * patch,
        patch=patch,
        channels=channels,
        width=width,
        depth=depth,
        heads=heads,
        classes=classes,
        null_class=rows > classes,
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
    """The folder of a saved DiTTransformer2DModel: `path` itself, that in a pipeline's, or that of
    its weights.
    """
    path = Path(path)
    inner = path / "transformer"
    return inner if inner.is_dir() else path.parent if path.is_file() else path


def files_of(path: Path) -> list[Path]:
    """The files that hold a network's weights: the file itself, or those in a folder of diffusers;
    raises FileNotFoundError.
    """
    path = Path(path)
    return weight_files(transformer_folder(path)).files if path.is_dir() else [existing(path)]


def _read_diffusers(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """State dict in the official layout and settings of a saved DiTTransformer2DModel.

    Every block owns a copy of the embedders; the first block's are kept. Raises ValueError if a
    setting makes it another network than DiT, if the copies differ, or listing missing and unknown
    keys; FileNotFoundError."""
    try:
        settings = (
            DIFFUSERS_DIT | DIFFUSERS_SIZES | json.loads((folder / "config.json").read_bytes())
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
    state: dict[str, Tensor] = {}
    for file in weight_files(folder).files:
        state |= read_weights(file)[0]
    state = plain_names(state, "pos_embed.proj.weight")
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


def load(
    path: Path,
    kind: str = "nag",
    heads: int | None = None,
    sha256: str | None = None,
    classes: int | None = None,
) -> DiT:
    """A network from our own file (kind "nag") or from released weights ("sit", "dit", "repa"), in
    evaluation mode.

    With kind "diffusers" `path` is the folder of a saved DiTTransformer2DModel or of its pipeline.
    Time direction and sign are converted here; a network without a null noise condition gets a zero
    one, which must be trained before NAG means anything. `heads` and `classes` are what
    `infer_config` cannot know. With `sha256` the file, or the weights in a folder, are checked
    first, see `verify`. Float32 weights are the file's own, mapped into memory: training changes
    the network, never the file, which may be replaced meanwhile but not written into. Raises
    ValueError for an unknown kind, a file that is given away as one of another kind, another hash,
    keys or shapes; FileNotFoundError."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {KINDS}")
    path = transformer_folder(path) if kind == "diffusers" else Path(path)
    if sha256 is not None:
        verify(path, sha256)
    if kind == "diffusers":
        state, settings = _read_diffusers(path)
        config = infer_config(state, kind, settings["num_attention_heads"])
        config = config.model_copy(update={"norm_eps": settings["norm_eps"]})
        return _build(config, state | {NULL: torch.zeros(config.width)}, path)
    found = _read(path)
    if kind == "nag" and "config" not in found.metadata:
        other = "a null condition for load_null" if "base_sha256" in found.metadata else "no config"
        raise ValueError(
            f"{path} was not written by this project as a network ({other} in it): name its kind, "
            f"one of {KINDS}"
        )
    if kind == "nag":
        try:
            config = ModelConfig(**json.loads(found.metadata["config"]))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged: its configuration cannot be read. Fetch or make it again"
            ) from error
        return _build(config, found.state, path)
    _refuse_another_kind(path, kind, found)
    # REPA's projectors are heads of its training only
    state = {key: v for key, v in found.state.items() if not key.startswith("projectors.")}
    if ANCHOR not in state and (inside := prefixes(state, ANCHOR)):
        others = sorted(key for key in state if not key.startswith(tuple(inside)))
        raise ValueError(
            f"{path} has networks under {' and '.join(sorted(inside))}"
            + (f" and other tensors such as {others[0]}" if others else "")
            + ": save the state_dict of the one that you mean"
        )
    if missing := sorted({ANCHOR, LAST, TABLE, "pos_embed"} - state.keys()):
        raise ValueError(
            f"{path} is not in the DiT/SiT layout (without {', '.join(missing)}): check the file "
            "and its kind"
        )
    config = infer_config(state, kind, heads, found.classes() if classes is None else classes)
    return _build(config, {NULL: torch.zeros(config.width)} | state, path)


def _read(path: Path) -> Found:
    content, metadata = read_file(path)
    state = plain_names(state_in(content, path), ANCHOR)
    return Found(path.name, state, metadata, _arguments(content))


def _arguments(content: Any) -> dict:
    """What a training code kept of its arguments, under any of their usual names."""
    found: dict = {}
    if isinstance(content, dict):
        for name in reversed(ARGUMENTS):  # the first counts most
            given = content.get(name)
            if isinstance(given, argparse.Namespace):
                given = vars(given)
            if isinstance(given, dict) and not any(isinstance(v, Tensor) for v in given.values()):
                found |= given
    return found


def save(path: Path, net: DiT, /, **metadata: str) -> None:
    """Write a network with its configuration, as `load` reads it."""
    save_weights(path, net, config=net.config.model_dump_json(), **metadata)
