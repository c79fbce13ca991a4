"""The ComfyUI node against a stand-in for the few calls that it makes."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from nag.support.paths import ROOT


@pytest.fixture
def node():
    spec = importlib.util.spec_from_file_location("node", ROOT / "examples" / "comfyui_nag.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS["NoiseAwarenessGuidance"]()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.time_embed = nn.Linear(1, 6)

    def forward(self, x, t):
        return x * self.time_embed(t[:, None]).sum(-1, keepdim=True)


class Model:
    """ComfyUI's patcher, as far as the node knows it."""

    def __init__(self, network):
        self.model = SimpleNamespace(diffusion_model=network)

    def clone(self):
        return Model(self.model.diffusion_model)

    def set_model_sampler_post_cfg_function(self, function):
        self.after_cfg = function


def test_the_node_adds_its_direction_to_the_samplers_result(node, monkeypatch, tmp_path):
    from safetensors.torch import save_file

    network = Network()
    comfy, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    samplers.calc_cond_batch = lambda model, conds, x, sigma, options: [network(x, sigma)]
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    x, sigma, vector = torch.randn(2, 5), torch.tensor([1.0, 2.0]), torch.randn(6)
    save_file({"null_noise": vector}, tmp_path / "null.safetensors")
    cond = network(x, sigma)
    args = dict(
        model=None, cond=None, input=x, sigma=sigma, model_options={}, denoised=cond + 1,
        cond_denoised=cond,
    )  # fmt: skip
    (patched,) = node.patch(Model(network), 0.5, 2.0, str(tmp_path / "null.safetensors"))
    wanted = cond + 1 + 0.5 * (cond - x * vector.sum())
    assert torch.allclose(patched.after_cfg(args), wanted)
    (disturbed,) = node.patch(Model(network), 0.5, 2.0, "")
    first, again = disturbed.after_cfg(args), disturbed.after_cfg(args)
    assert torch.equal(first, again) and not torch.allclose(first, cond + 1)
    assert torch.equal(network(x, sigma), cond), "no hook is left"
