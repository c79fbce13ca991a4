"""Four architectures of diffusers at tiny size with random weights, and how each is called."""

from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from torch import nn


@dataclass
class Tiny:
    build: Callable[..., nn.Module]
    inputs: Callable[[], dict]  # keyword arguments of a call, two rows
    channels: int | None = None  # guided, where a variance is predicted too
    state: str = "hidden_states"


def _dit(classes=10):
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=classes,
    )


def _sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    )


def _flux():
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def _unet():
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )


def _rows(t):
    return torch.tensor([t, t])


TINY = {
    "DiT": Tiny(
        _dit,
        lambda: dict(
            hidden_states=torch.randn(2, 4, 4, 4), timestep=_rows(300), class_labels=_rows(3)
        ),
        channels=4,
    ),
    "SD3": Tiny(
        _sd3,
        lambda: dict(
            hidden_states=torch.randn(2, 4, 4, 4),
            timestep=_rows(300.0),
            encoder_hidden_states=torch.randn(2, 3, 12),
            pooled_projections=torch.randn(2, 8),
        ),
    ),
    "Flux": Tiny(
        _flux,
        lambda: dict(
            hidden_states=torch.randn(2, 4, 16),
            timestep=_rows(0.3),
            guidance=_rows(3.5),
            encoder_hidden_states=torch.randn(2, 3, 12),
            pooled_projections=torch.randn(2, 8),
            txt_ids=torch.zeros(3, 3),
            img_ids=torch.tensor([[0, y, x] for y in range(2) for x in range(2)]).float(),
        ),
    ),
    "UNet2D": Tiny(
        _unet, lambda: dict(sample=torch.randn(2, 1, 8, 8), timestep=_rows(300)), state="sample"
    ),
}


def build(name, **sizes):
    """A network whose every parameter matters, zero-initialised gates included."""
    torch.manual_seed(0)
    net = TINY[name].build(**sizes).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net, TINY[name].inputs()
