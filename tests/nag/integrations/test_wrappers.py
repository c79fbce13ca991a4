"""A k-diffusion denoiser (x, sigma) is guided as the network inside is."""

import pytest
import torch
from tiny_models import build

from nag.integrations.time_hooks import embedding_width
from nag.integrations.wrappers import guided_denoiser


def denoiser_of(net):
    """k-diffusion's: x_0 + sigma eps, scaled for a network that predicts eps at a timestep."""

    def denoiser(x, sigma):
        s = sigma.view(-1, 1, 1, 1)
        eps = net(x / (s**2 + 1).sqrt(), 100 * sigma.log() + 300).sample
        return x - s * eps

    return denoiser


@torch.no_grad()
def test_mixing_denoised_images_is_mixing_noise():
    net, _ = build("UNet2D")
    vector = torch.randn(embedding_width(net))
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([2.0, 2.0])
    denoiser = denoiser_of(net)
    plain = denoiser(x, sigma)
    call = guided_denoiser(denoiser, net, 0.7, vector, sigma_range=(1.0, 10.0))
    found, outside = call(x, sigma), call(x, sigma / 4)
    call.detach()
    assert torch.equal(outside, denoiser(x, sigma / 4))
    own = net.time_embedding.forward
    net.time_embedding.forward = lambda *a: vector.expand_as(own(*a))
    wanted = plain + 0.7 * (plain - denoiser(x, sigma))
    assert (found - wanted).abs().max() < 1e-5


def test_a_negative_that_needs_timesteps_is_refused():
    net, _ = build("UNet2D")
    with pytest.raises(ValueError, match="needs timesteps"):
        guided_denoiser(denoiser_of(net), net, negative="disturbed")
