"""Networks by name, from a folder in the `save_pretrained` layout, or from the Hub; and their
export to such a folder with a model card.

The layout is `config.json`, `model.safetensors` and `README.md`. No code is ever executed."""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialized

from nag import checkpoint
from nag.models import DiT
from nag.support.files import atomic, write_json
from nag.support.paths import WEIGHTS

# The first and the third come with the installed package, all of them with a clone.
NAMES = {
    "sit-mini": "sit.safetensors",
    "dit-mini": "dit.safetensors",
    "estimator-linear": "estimator-linear.safetensors",
    "estimator-ddpm": "estimator-ddpm.safetensors",
}
NETWORKS = [name for name in NAMES if not name.startswith("estimator-")]
CONFIG, MODEL, CARD = "config.json", "model.safetensors", "README.md"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
METRICS = {
    "fd_inf": "bias-corrected Fréchet distance",
    "fd": "Fréchet distance",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}


def weights_file(name: str) -> Path:
    """The file of the weights called `name`, one of NAMES: packaged, or in results/weights of a
    clone.

    Raises KeyError for another name, FileNotFoundError if they came with neither."""
    if name not in NAMES:
        raise KeyError(f"no weights are called {name!r}: choose one of {', '.join(NAMES)}")
    packaged = Path(str(resources.files("nag"))) / "weights" / NAMES[name]
    for file in (packaged, WEIGHTS / NAMES[name]):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"the weights {name!r} are not in this installation: clone the repository, which has them "
        f"in results/weights/{NAMES[name]}, and load that file"
    )


def _from_hub(name: str) -> Path:
    """The folder of a model of the Hub, downloaded unless it is in the cache already."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no file or folder here, and reading it from the Hub needs "
            "huggingface_hub: install noise-awareness-guidance[hub]"
        ) from error
    return Path(snapshot_download(name, allow_patterns=[CONFIG, MODEL]))


def _from_folder(folder: Path, **options: Any) -> DiT:
    file = folder / MODEL
    if not file.is_file():
        raise FileNotFoundError(
            f"no {MODEL} in {folder}: give a folder written by export_pretrained, or name the kind"
        )
    net, written = checkpoint.load(file, **options), folder / CONFIG
    try:
        config = json.loads(written.read_bytes()) if written.is_file() else _config(net)
    except ValueError as error:
        raise ValueError(f"{written} is truncated or no JSON: export or fetch it again") from error
    if config != _config(net):
        raise ValueError(f"{written} is not the configuration that {file} was written with")
    return net


def _check_source(source: str, kind: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for what is no network here, or for options that a file of ours decides."""
    if "://" in source:
        raise ValueError(
            f"{source} is an address: download the file and give its path, or name a model of the "
            'Hub as "user/repo"'
        )
    if source in NAMES and source not in NETWORKS and not Path(source).exists():
        raise ValueError(
            f"{source!r} is a noise-level estimator, not a network: "
            f"nag.checkpoint.load_weights(nag.weights_file({source!r}), nag.NoiseEstimator()) "
            "reads it"
        )
    given = [name for name in ("heads", "classes") if options.get(name) is not None]
    if kind == "nag" and given:
        raise ValueError(
            f"{' and '.join(given)} of a network of kind 'nag' are in its file: leave "
            f"{'it' if len(given) == 1 else 'them'} out, or name the kind of the file"
        )


def load(source: str | Path, kind: str = "nag", **options: Any) -> DiT:
    """A network in evaluation mode, from a name, a file, a folder or the Hub.

    `source` is one of "sit-mini" and "dit-mini", which `weights_file` finds; a file or folder as
    `checkpoint.load` reads it, with its `kind` and options; a folder that `export_pretrained`
    wrote; or "user/repo", such a folder on the Hub, which needs huggingface_hub. Raises
    FileNotFoundError, ImportError, and ValueError as `checkpoint.load` does."""
    _check_source(str(source), kind, options)
    if str(source) in NAMES and not Path(source).exists():
        return checkpoint.load(weights_file(str(source)), kind, **options)
    path = Path(source)
    if kind == "nag" and path.is_dir():
        return _from_folder(path, **options)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and path.suffix.lower() not in SUFFIXES
    if kind == "nag" and isinstance(source, str) and on_hub and not path.exists():
        return _from_folder(_from_hub(source), **options)
    if not (path.exists() or path.suffix or path.name != str(source)):
        raise FileNotFoundError(
            f"no file and no weights are called {str(source)!r}: give a path, or one of "
            f"{', '.join(NETWORKS)}"
        )
    return checkpoint.load(path, kind, **options)


def _config(net: DiT) -> dict:
    return {"architecture": "nag.DiT", **json.loads(net.config.model_dump_json())}


def model_index(name: str, dataset: str, arms: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    """The `model-index` of a model card: one entry for each arm and metric of `arms`, {arm:
    {metric: {"value", …}}}, as one family and sampler of results/summary.json
    has them."""
    found = [
        {"type": metric, "name": f"{title}, {arm}", "value": values[metric]["value"]}
        for arm, values in arms.items()
        for metric, title in METRICS.items()
        if metric in values
    ]
    task = {"type": "unconditional-image-generation", "name": "Image generation"}
    result = {"task": task, "dataset": {"type": dataset, "name": dataset}, "metrics": found}
    return [{"name": name, "results": [result]}]


def _card(name: str, dataset: str, license: str, arms: Mapping[str, Mapping[str, Any]]) -> str:
    head: dict[str, Any] = {
        "license": license,
        "library_name": "noise-awareness-guidance",
        "tags": ["diffusion", "noise-awareness-guidance"],
        "datasets": [dataset],
    }
    if arms:
        head["model-index"] = model_index(name, dataset, arms)
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(
        [
            "---",
            *lines,
            "---",
            f"# {name}",
            "",
            "A network with a null noise condition, which Noise Awareness Guidance needs",
            "(arXiv 2510.12497). Read it with",
            "",
            "```python",
            "import nag",
            "",
            'net = nag.load("user/repo")  # or this folder',
            "```",
            "",
        ]
    )


def export_pretrained(
    folder: str | Path,
    net: DiT,
    name: str = "",
    dataset: str = "fashion_mnist",
    license: str = "mit",
    arms: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a network as `config.json`, `model.safetensors` and a model card; returns the folder.

    `load(folder)` gives the same weights bit for bit: they are kept in bf16 where that is exact,
    as for all weights that this project saved, and in float32 otherwise. `arms` are measured
    numbers for the card, see `model_index`. Upload the folder with `hf upload`. Raises OSError."""
    folder = Path(folder)
    state = {}
    for key, value in net.state_dict().items():
        value = value.detach().to("cpu", torch.float32).contiguous()
        half = value.bfloat16()
        state[key] = half if torch.equal(half.float(), value) else value
    metadata = {"config": net.config.model_dump_json()}
    with atomic(folder / MODEL) as part:
        content = serialized(state, {"format": "pt", "nag": json.dumps(metadata)})
        part.write_bytes(content)
    write_json(folder / CONFIG, _config(net))
    with atomic(folder / CARD) as part:
        part.write_text(_card(name or folder.name, dataset, license, arms or {}), "utf-8")
    return folder
