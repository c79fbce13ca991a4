"""The null noise condition of a released network: where it starts, and a twin that learns it beside
the frozen network.

A released network was never asked without its noise level. The paper trains all of it further with
noise-condition dropout (Sec. 4; nag.pretrained.further_training does so). The cheap variant here
trains only the null vector, and chosen layers, in a twin that shares every other tensor, so that
the noise-conditional branch stays bit for bit what was released."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import save as serialized
from torch import Tensor, nn

from nag.checkpoint import NULL
from nag.ddpm import LEVELS
from nag.models import DiT
from nag.support.files import atomic
from nag.support.weight_files import named_tensors, read_file


def _embedding(net: DiT, t: Tensor) -> Tensor:
    """Time embeddings (B, D) at t (B,) in this project's direction."""
    return net.t_embedder(net.config.time_scale * t + net.config.time_offset, None)


def _mean(net: DiT) -> Tensor:
    return _embedding(
        net, torch.arange(1, LEVELS + 1, device=net.t_embedder.null.device) / LEVELS
    ).mean(0)


def _middle(net: DiT) -> Tensor:
    return _embedding(net, torch.full((1,), 0.5, device=net.t_embedder.null.device))[0]


INITIAL: dict[str, Callable[[DiT], Tensor]] = {
    "zero": lambda net: torch.zeros_like(net.t_embedder.null),
    "mean": _mean,
    "middle": _middle,
}


@torch.no_grad()
def initial_null(net: DiT, how: str) -> Tensor:
    """A start for the null vector (D,): "zero", the "mean" of the time embedding over all levels,
    or "middle", that of t = 0.5.

    The levels are t = 1/1000, 2/1000, ..., 1, DDPM's own, on every path. Raises ValueError for
    another name."""
    if how not in INITIAL:
        raise ValueError(
            f"unknown start {how!r} of the null condition: choose one of {sorted(INITIAL)}"
        )
    return INITIAL[how](net)


def add_null(net: DiT, how: str) -> None:
    """Set the network's null vector to `initial_null`, in place; raises ValueError for an unknown
    name.
    """
    net.t_embedder.null.data.copy_(initial_null(net, how))


def _sharing(net: DiT, own: Collection[str]) -> DiT:
    """A network of the same tensors, frozen, but for trainable copies of the parameters named in
    `own`.
    """
    with torch.device("meta"):
        twin = DiT(net.config)
    state = {key: value.clone() if key in own else value for key, value in net.state_dict().items()}
    twin.load_state_dict(state, assign=True)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in own)
    return twin.train(net.training)


def separate_branch(net: DiT, layers: Sequence[str] = ()) -> DiT:
    """A twin with its own trainable null vector and layers, which shares all other tensors of
    `net`, frozen.

    `layers` names modules, each with all below it, e.g. "final_layer" or
    "blocks.5.adaLN_modulation". The twin is the negative of guidance, Term(net=twin,
    drop_noise=True); with no layers it is also the same noise-conditional network as `net`. Put
    `net` onto its device first: moving the twin later would end the sharing. Raises ValueError for
    an unknown layer."""
    modules = [name for name, _ in net.named_modules() if name]
    unknown = sorted(set(layers) - set(modules))
    if unknown:
        known = sorted({re.sub(r"^blocks\.\d+", "blocks.K", name) for name in modules})
        raise ValueError(
            f"no layers {', '.join(unknown)} in this network of {net.config.depth} blocks (K from "
            "0): choose from "
            f"{', '.join(known)}"
        )
    return _sharing(
        net,
        {NULL}
        | {
            name
            for name, _ in net.named_parameters()
            if any(name.startswith(f"{layer}.") for layer in layers)
        },
    )


def save_null(path: Path, twin: nn.Module, base_sha256: str, **metadata: str) -> None:
    """Write the trainable tensors of a twin as float32 safetensors, with the SHA-256 of the file
    its network came from.

    Raises ValueError if nothing in it is trainable, OSError with advice.
    """
    state = {
        name: p.detach().to("cpu", torch.float32).contiguous()
        for name, p in twin.named_parameters()
        if p.requires_grad
    }
    if not state:
        raise ValueError(
            "this network has no trainable tensor to save: make it with separate_branch or "
            "load_null"
        )
    about = metadata | {"base_sha256": base_sha256}
    with atomic(path) as part:
        part.write_bytes(serialized(state, {"nag": json.dumps(about, sort_keys=True)}))


def load_null(path: Path, net: DiT, base_sha256: str | None = None) -> DiT:
    """The twin of `net` that `save_null` wrote, in evaluation mode.

    Raises ValueError if it was made for another file than the one of `base_sha256`, or for a
    network of another shape, and what `read_file` raises."""
    content, metadata = read_file(path)
    state = named_tensors(content, path)
    if "base_sha256" not in metadata:
        raise ValueError(
            f"{path} is no null condition written by save_null (it names no base): check the path"
        )
    if base_sha256 not in (None, metadata["base_sha256"]):
        raise ValueError(
            f"{path} belongs to the network of SHA-256 {metadata['base_sha256']}, not to "
            f"{base_sha256}: "
            "train the null condition of this network, or load the other one"
        )
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
    unlike = sorted(name for name, value in state.items() if shapes.get(name) != value.shape)
    if unlike or NULL not in state:
        raise ValueError(
            f"{path} does not fit this network ({', '.join(unlike) or NULL + ' is missing'}): it "
            "was made for "
            "another shape"
        )
    twin = _sharing(net, state.keys())
    for name, parameter in twin.named_parameters():
        if name in state:
            parameter.data.copy_(state[name])
    return twin.eval()
