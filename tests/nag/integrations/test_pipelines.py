"""Pipelines of diffusers at tiny size with random weights, end to end: recorded, guided, and both.

Text encoders and autoencoders are left out: prompts are embeddings, and outputs latents."""

from contextlib import contextmanager
from types import SimpleNamespace

import diffusers
import pytest
import torch
from tiny_models import TINY, build

from nag.integrations.diagnosis import diagnose
from nag.integrations.recorder import record_calls
from nag.integrations.time_hooks import embedding_width, time_embedders
from nag.integrations.wrappers import guided

STEPS, N = 10, 2


def autoencoder(channels):
    """Halves once, as the tiny networks are trained on latents of 4 x 4 for images of 8 x 8."""
    torch.manual_seed(0)
    blocks = dict(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
    )
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=channels, **blocks
    ).eval()


def generators():
    return [torch.Generator().manual_seed(k) for k in range(N)]


def dit():
    net, _ = build("DiT", classes=1000)  # the pipeline's null label is 1000
    pipe = diffusers.DiTPipeline(net, autoencoder(4), diffusers.DDIMScheduler())
    return pipe, dict(class_labels=[1, 2], guidance_scale=2.0, output_type="np")


def sd3():
    pytest.importorskip("transformers")
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=build("SD3")[0],
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    prompt = dict(
        prompt_embeds=torch.randn(N, 3, 12),
        pooled_prompt_embeds=torch.randn(N, 8),
        negative_prompt_embeds=torch.randn(N, 3, 12),
        negative_pooled_prompt_embeds=torch.randn(N, 8),
    )
    return pipe, prompt | dict(guidance_scale=2.0, height=8, width=8, output_type="latent")


def flux():
    pytest.importorskip("transformers")
    pipe = diffusers.FluxPipeline(
        transformer=build("Flux")[0],
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(4),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    prompt = dict(prompt_embeds=torch.randn(N, 3, 12), pooled_prompt_embeds=torch.randn(N, 8))
    return pipe, prompt | dict(height=8, width=8, output_type="latent")


def unet():
    pipe = diffusers.DDPMPipeline(build("UNet2D")[0], diffusers.DDPMScheduler())
    return pipe, dict(batch_size=N, output_type="np")


PIPELINES = {"DiT": dit, "SD3": sd3, "Flux": flux, "UNet2D": unet}
CHANNELS = {"DiT": 4, "SD3": 4, "Flux": 4, "UNet2D": 1}
PROMPT_HALF = {"DiT": 0, "SD3": 1}  # of the doubled batch of classifier-free guidance


@contextmanager
def guided_by_hand(network, name, w, vector):
    """p + w (p - p_null) with the forward functions of network and embedders replaced."""
    drop, own, channels = False, network.forward, TINY[name].channels

    def embedding(forward):
        return lambda *a, **k: vector.expand_as(forward(*a, **k)) if drop else forward(*a, **k)

    def forward(*a, **k):
        nonlocal drop
        p = own(*a, **k | {"return_dict": False})[0]
        drop = True
        q = own(*a, **k | {"return_dict": False})[0]
        drop = False
        d = p - q
        if channels:
            d[:, channels:] = 0
        if name in PROMPT_HALF:
            d = torch.cat(2 * [d.chunk(2)[PROMPT_HALF[name]]])
        return (p + w * d,) if k.get("return_dict") is False else SimpleNamespace(sample=p + w * d)

    embedders = time_embedders(network)
    for module in embedders:
        module.forward = embedding(module.forward)
    network.forward = forward
    yield
    for module in [network, *embedders]:
        del module.forward


@pytest.mark.parametrize("name", TINY)
def test_its_pipeline_is_recorded_and_guided(name):
    torch.manual_seed(0)
    pipe, call = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    network = getattr(pipe, "transformer", None) or pipe.unet
    vector = torch.randn(embedding_width(network), generator=torch.Generator().manual_seed(1))
    settings = dict(channels=TINY[name].channels, conditional_half=PROMPT_HALF.get(name))

    def run():
        return record_calls(pipe, [call | dict(num_inference_steps=STEPS, generator=generators())])

    plain, side = run(), 8 if name == "UNet2D" else 4
    assert plain.states.shape == (N, STEPS + 1, CHANNELS[name], side, side)
    sigmas = [level.sigma for level in plain.levels]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] < 1e-2 < 0.9 < sigmas[0]
    assert plain.unlike == 0
    with guided(network, 0.7, vector, **settings):
        on = run()
    with guided_by_hand(network, name, 0.7, vector):
        wanted = run()
    assert torch.allclose(on.states, wanted.states, rtol=1e-4, atol=1e-5)
    assert torch.equal(on.states[:, 0], plain.states[:, 0])
    assert (on.states[:, 1:] - plain.states[:, 1:]).abs().amax((0, 2, 3, 4)).min() > 1e-3
    assert torch.equal(run().states, plain.states), "the hooks are gone"

    def level_of(x):
        return x.flatten(1).std(1).clamp(0.05, 0.95)

    found = diagnose(on, level_of, torch.randn(8, CHANNELS[name], side, side), "linear")
    assert found.n == N and len(found.times) == STEPS + 1
