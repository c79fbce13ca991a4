"""The live page's graphs: no weight is in them, and each is at its place in the committed files."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from companion.site import live
from nag import ImageNoise, checkpoint
from nag.support.paths import ROOT, WEIGHTS

FILES = {"sit.onnx": "sit.safetensors", "estimator.onnx": "estimator-linear.safetensors"}


@pytest.mark.parametrize("name", FILES)
def test_weights_are_those_of_the_committed_file(name):
    path = live.FOLDER / name
    model = onnx.load(path, load_external_data=False)
    weights = checkpoint.read_weights(WEIGHTS / FILES[name])[0]
    data, found = (WEIGHTS / FILES[name]).read_bytes(), set()
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        about = {entry.key: entry.value for entry in tensor.external_data}
        assert about["location"] == FILES[name]
        key = tensor.name.removeprefix("net.").removesuffix(".bf16")
        start = int(about["offset"])
        bits = np.frombuffer(data[start : start + int(about["length"])], "<i2")
        there = torch.from_numpy(bits.copy()).view(torch.bfloat16).view(*tensor.dims)
        assert torch.equal(there, weights[key].to(torch.bfloat16)), key
        found.add(key)
    assert found == weights.keys()
    assert path.stat().st_size < 100_000
    assert [output.name for output in model.graph.output] == [{"sit.onnx": "v"}.get(name, "level")]


def test_nothing_of_the_machine_is_in_the_graphs():
    for name in FILES:
        content = (live.FOLDER / name).read_bytes()
        assert b".py" not in content and str(ROOT).encode() not in content


def test_the_noise_is_that_of_the_first_seeds():
    noise = np.frombuffer((live.FOLDER / "noise.bin").read_bytes(), "<f4").reshape(10, 1, 28, 28)
    assert np.array_equal(noise, ImageNoise(range(10))((1, 28, 28)).numpy())


def test_a_weight_that_the_file_lacks_is_refused():
    big = helper.make_tensor("other", TensorProto.FLOAT, [2000], np.zeros(2000))
    model = helper.make_model(helper.make_graph([], "g", [], [], [big]))
    with pytest.raises(ValueError, match="other of the graph are not in sit.safetensors"):
        live.outside(model, WEIGHTS / "sit.safetensors")
