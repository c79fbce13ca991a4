"""The networks of the live page as ONNX graphs whose weights are the committed safetensors.

    python -m companion.site.live

writes results/live: sit.onnx with v(x, t, y, drop), estimator.onnx with level(x) = E[t | x], and
noise.bin, the noise of seeds 0 to 9. A graph has no weights in it: each is bf16 data at its place
in the safetensors file, cast to float32 by the graph, so that no weight is in Git twice.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.distributions import Distribution

from nag import checkpoint
from nag.estimator import NoiseEstimator, posterior_mean
from nag.support.files import atomic
from nag.support.paths import RESULTS, WEIGHTS
from nag.support.rng import ImageNoise

FOLDER = RESULTS / "live"
IMAGES = 10


class Level(nn.Module):
    """x (B, 1, 28, 28) to E[t | x] (B,)."""

    def __init__(self, net: NoiseEstimator):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return posterior_mean(self.net, x)


def places(weights: Path) -> dict[str, tuple[int, int, list[int]]]:
    """Offset and length in bytes, and shape, of every bf16 tensor of a safetensors file."""
    with open(weights, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {
        name: (
            8 + size + entry["data_offsets"][0],
            np.diff(entry["data_offsets"]).item(),
            entry["shape"],
        )
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "BF16"
    }


def outside(model: onnx.ModelProto, weights: Path, prefix: str = "") -> onnx.ModelProto:
    """The model with its weights, named `prefix` + their name in the file, taken from that file.

    Raises ValueError if a weight of the graph is not in it."""
    found, casts, graph = places(weights), [], model.graph
    kept = [tensor for tensor in graph.initializer if tensor.name.removeprefix(prefix) not in found]
    if large := [tensor.name for tensor in kept if np.prod(tensor.dims) > 1024]:
        raise ValueError(f"{', '.join(large)} of the graph are not in {weights.name}")
    used = [tensor for tensor in graph.initializer if tensor.name.removeprefix(prefix) in found]
    for tensor in used:
        offset, length, shape = found[tensor.name.removeprefix(prefix)]
        data = TensorProto(name=f"{tensor.name}.bf16", data_type=TensorProto.BFLOAT16, dims=shape)
        data.data_location = TensorProto.EXTERNAL
        for key, value in (("location", weights.name), ("offset", offset), ("length", length)):
            data.external_data.add(key=key, value=str(value))
        kept.append(data)
        casts.append(helper.make_node("Cast", [data.name], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    for node in nodes:  # the exporter notes files of this machine
        del node.metadata_props[:]
        node.ClearField("doc_string")
    del graph.initializer[:], graph.node[:], graph.value_info[:], graph.metadata_props[:]
    del model.metadata_props[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    return model


def graph(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: list[str], output: str
) -> onnx.ModelProto:
    """The ONNX graph of a module for any number of images."""
    rows = torch.export.Dim("rows")
    program = torch.onnx.export(
        module,
        arguments,
        dynamo=True,
        optimize=False,
        input_names=inputs,
        output_names=[output],
        dynamic_shapes=tuple({0: rows} for _ in arguments),
        verbose=False,
    )
    assert program
    return program.model_proto


def graphs() -> dict[str, onnx.ModelProto]:
    """The graphs of SiT-mini and of the estimator, by file name."""
    net, reader = WEIGHTS / "sit.safetensors", WEIGHTS / "estimator-linear.safetensors"
    noise = ImageNoise(range(2))((1, 28, 28))
    arguments = (noise, torch.full((2,), 0.5), torch.arange(2), torch.tensor([True, False]))
    Distribution.set_default_validate_args(False)  # checks of values cannot be exported
    level = Level(checkpoint.load_weights(reader, NoiseEstimator()))
    return {
        "sit.onnx": outside(
            graph(checkpoint.load(net), arguments, ["x", "t", "y", "drop"], "v"), net
        ),
        "estimator.onnx": outside(graph(level.eval(), (noise,), ["x"], "level"), reader, "net."),
    }


def main(folder: Path = FOLDER) -> None:
    """Write the graphs and the noise."""
    for name, model in graphs().items():
        with atomic(folder / name) as part:
            part.write_bytes(model.SerializeToString(deterministic=True))
    with atomic(folder / "noise.bin") as part:
        part.write_bytes(ImageNoise(range(IMAGES))((1, 28, 28)).numpy().tobytes())


if __name__ == "__main__":
    main()
