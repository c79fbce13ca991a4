"""The plain reference of `make bench` is the same function and the same sampling as ours."""

import pytest
import torch
from torch.testing import assert_close

from companion.experiments import plain_sit
from nag import checkpoint
from nag.guidance import GuidedField, classifier_free
from nag.models import DiT, ModelConfig
from nag.samplers.one_step import euler
from nag.samplers.registry import last
from nag.samplers.time_grids import uniform

SIZES = dict(input_size=8, patch=2, channels=3, width=48, depth=2, heads=3, classes=4)


def filled(**more):
    """A network without a silent layer."""
    net = DiT(ModelConfig(**SIZES, **more)).eval()
    gen = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1, generator=gen)
    return net


@pytest.mark.parametrize(
    "more", [{}, checkpoint.CONVENTIONS["sit"] | {"learn_sigma": True}], ids=["own", "official"]
)
def test_the_output_is_ours(more):
    net = filled(**more)
    x, t, y = torch.randn(5, 3, 8, 8), torch.linspace(0, 1, 5), torch.arange(5)
    found, ours = plain_sit.of(net)(x, t, y), net(x, t, y)
    assert ours.std() > 0.1
    assert_close(found, ours, rtol=1e-5, atol=1e-5)


def test_samples_with_guidance_are_ours():
    net, x, labels = filled(), torch.randn(4, 3, 8, 8), torch.arange(4)
    field = GuidedField(net, labels, [classifier_free(2.5)])
    ours = last(euler(field, x, uniform(3)))
    found = plain_sit.sample(plain_sit.of(net), x, labels, 2.5, 3)
    assert_close(found, ours, rtol=1e-4, atol=1e-5)
    unguided = plain_sit.sample(plain_sit.of(net), x, labels, 1.0, 3)
    assert (found - unguided).abs().max() > 0.01


def test_weights_are_shared_and_steps_lower_the_loss_on_one_batch():
    net, images, labels = filled(), torch.randn(16, 3, 8, 8), torch.arange(16) % 4
    plain = plain_sit.of(net)
    assert plain.get_parameter("blocks.0.mlp.fc1.weight").data_ptr() == (
        net.get_parameter("blocks.0.mlp.fc1.weight").data_ptr()
    )
    assert not plain.pos_embed.requires_grad
    t, eps = torch.full((16,), 0.5), torch.randn_like(images)

    def loss():
        with torch.no_grad():
            out = plain((images + eps) / 2, t, labels)
        return (out - (eps - images)).square().mean().item()

    before, step = loss(), plain_sit.trainer(plain, images, labels)
    for _ in range(20):
        step()
    assert loss() < before
