"""The network of SiT (Ma et al., 2024) and its use in the way of the public code: what `make bench`
compares with.

Eager fp32, attention and MLP of timm, a batch of both branches for CFG, and an EMA updated tensor
by tensor. Times are this project's (t = 1 noise), by the network's own ModelConfig."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Attention, Mlp, PatchEmbed
from torch import Tensor, nn

from nag.checkpoint import NULL
from nag.models import DiT, ModelConfig


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimeEmbedder(nn.Module):
    """Cosines and sines of 128 frequencies, then an MLP: t (B,) -> (B, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        exponents = torch.arange(128, dtype=torch.float32, device=t.device) / 128
        angles = t[:, None] * torch.exp(-math.log(10000) * exponents)
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))


class LabelEmbedder(nn.Module):
    """Class table whose last row means no class: y (B,) -> (B, D)."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class PlainBlock(nn.Module):
    """adaLN-zero block of timm's attention and MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        gelu: Any = partial(nn.GELU, approximate="tanh")
        self.mlp = Mlp(width, 4 * width, act_layer=gelu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        parts = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + parts[2].unsqueeze(1) * self.attn(_modulate(self.norm1(x), parts[0], parts[1]))
        return x + parts[5].unsqueeze(1) * self.mlp(_modulate(self.norm2(x), parts[3], parts[4]))


class PlainFinalLayer(nn.Module):
    """Modulated norm and a linear map to patches."""

    def __init__(self, width: int, values: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


class PlainSiT(nn.Module):
    """The same function as `nag.models.DiT` with every condition: (x (B, C, H, W), t (B,), y (B,))
    to the prediction (B, C, H, W).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.x_embedder = PatchEmbed(c.input_size, c.patch, c.channels, c.width, bias=True)
        self.t_embedder = TimeEmbedder(c.width)
        self.y_embedder = LabelEmbedder(c.classes, c.width)
        tokens = (c.input_size // c.patch) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, c.width), requires_grad=False)
        self.blocks = nn.ModuleList(PlainBlock(c.width, c.heads) for _ in range(c.depth))
        self.out_channels = c.channels * (2 if c.learn_sigma else 1)
        self.final_layer = PlainFinalLayer(c.width, c.patch**2 * self.out_channels)

    def unpatchify(self, x: Tensor) -> Tensor:
        """(B, N, p*p*C) -> (B, C, H, W)."""
        p, side = self.config.patch, int(x.shape[1] ** 0.5)
        x = x.reshape(len(x), side, side, p, p, self.out_channels)
        return torch.einsum("bhwpqc->bchpwq", x).reshape(len(x), -1, side * p, side * p)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed
        t = self.config.time_scale * t + self.config.time_offset
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        out = self.unpatchify(self.final_layer(x, c))
        return self.config.sign * out[:, : self.config.channels]


def of(net: DiT) -> PlainSiT:
    """The plain network that shares the tensors of `net`, in its mode."""
    with torch.device("meta"):
        plain = PlainSiT(net.config)
    state = {key: value for key, value in net.state_dict().items() if key != NULL}
    plain.load_state_dict(state, assign=True)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(net.get_parameter(name).requires_grad)
    return plain.train(net.training)


@torch.no_grad()
def sample(net: PlainSiT, x: Tensor, labels: Tensor, scale: float, steps: int) -> Tensor:
    """Euler's method with CFG from noise x (B, C, H, W) to data, both branches in one batch."""
    x = torch.cat([x, x])
    y = torch.cat([labels, torch.full_like(labels, net.config.classes)])
    for k in range(steps, 0, -1):
        conditional, free = net(x, torch.full((len(x),), k / steps, device=x.device), y).chunk(2)
        v = free + scale * (conditional - free)
        x = x - torch.cat([v, v]) / steps
    return x[: len(labels)]


def trainer(
    net: PlainSiT, images: Tensor, labels: Tensor, class_dropout: float = 0.1
) -> Callable[[], None]:
    """A function that takes one step on this batch: AdamW at a constant rate, and an EMA."""
    params = dict(net.named_parameters())
    ema = {name: p.detach().clone() for name, p in params.items()}
    optimizer = torch.optim.AdamW(
        [p for p in params.values() if p.requires_grad], lr=1e-4, weight_decay=0
    )

    def step() -> None:
        t, eps = torch.rand(len(images), device=images.device), torch.randn_like(images)
        part = t.view(-1, 1, 1, 1)
        dropped = torch.rand(len(labels), device=labels.device) < class_dropout
        y = torch.where(dropped, net.config.classes, labels)
        out = net((1 - part) * images + part * eps, t, y)
        loss = ((out - (eps - images)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, p in params.items():
                ema[name].mul_(0.9999).add_(p.data, alpha=1 - 0.9999)

    return step
