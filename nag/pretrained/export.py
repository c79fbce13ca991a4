"""Export of a network in the official layout of SiT, DiT and REPA, for the public codes."""

from pathlib import Path

import torch

from nag import checkpoint
from nag.models import DiT, ModelConfig
from nag.support.files import write_torch

KINDS = ("sit", "dit", "repa")
# What no change of weights converts.
FIXED = (
    *("prediction", "path", "time_scale", "time_offset", "freq_shift", "norm_eps"),
    "learn_sigma",
)


def _unlike(config: ModelConfig, kind: str) -> tuple[dict, dict]:
    """What the network has and what `kind` has, where they differ beyond conversion."""
    learns = {"sit": True, "repa": False}.get(kind, config.learn_sigma)  # DiT's may or may not
    target = ModelConfig(**checkpoint.CONVENTIONS[kind], learn_sigma=learns)
    names = [name for name in FIXED if getattr(config, name) != getattr(target, name)]
    if abs(config.sign) != abs(target.sign):
        names.append("sign")
    return {name: getattr(config, name) for name in names}, {
        name: getattr(target, name) for name in names
    }


def export(path: Path, net: DiT, kind: str, null: bool = False) -> None:
    """Write a network as a float32 state dict in the official layout, so that
    `checkpoint.load(path, kind)` is the same function.

    What `load` gave comes back bit for bit, except REPA's projectors and the number of heads, which
    the layout does not keep. An opposite sign of the output is converted by negating the last
    layer, which is exact. Another prediction, path, spacing of time frequencies, norm or count of
    time is refused, and a variance where the public network has none or none where it has one: even
    the mere reversal of time between SiT and REPA, a rotation of the (cos, sin) pairs before the
    time MLP, would hold only up to rounding. Networks trained here count as REPA (path "linear") or
    as DiT do. The null noise condition is left out, since the public codes refuse unknown keys;
    `null=True` keeps it. Atomic and, for equal weights, byte for byte the same. Raises ValueError,
    OSError."""
    if kind not in KINDS:
        raise ValueError(f"unknown official kind {kind!r}: choose one of {KINDS}")
    if Path(path).suffix != ".pt":
        raise ValueError(f"{path} must end in .pt: official weights are PyTorch files")
    own, theirs = _unlike(net.config, kind)
    if own:
        fitting = [repr(other) for other in KINDS if not _unlike(net.config, other)[0]]
        advice = (
            f"write it as {' or '.join(fitting)}" if fitting else "keep it with checkpoint.save"
        )
        raise ValueError(
            f"a network with {own} cannot be written exactly as {kind!r}, which has {theirs}: "
            f"{advice}"
        )
    state = {
        key: value.detach().to("cpu", torch.float32).contiguous()
        for key, value in net.state_dict().items()
        if null or key != checkpoint.NULL
    }
    if net.config.sign != checkpoint.CONVENTIONS[kind]["sign"]:
        state |= {
            key: -state[key] for key in ("final_layer.linear.weight", "final_layer.linear.bias")
        }
    write_torch(path, state)
