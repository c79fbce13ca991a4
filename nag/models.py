"""One DiT/SiT backbone in the official state-dict layout, plus the null noise condition that NAG
needs.

Times enter in this project's convention (t = 1 noise); `ModelConfig` says how the network itself
counts, so that the released SiT (t = 1 data), DiT (0...999) and REPA weights run unchanged."""

import math
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

# What nag.train.fit takes: (network, indices, generator), and the rows to evaluate if it divides.
BatchLoss = Callable[..., Tensor]
# (indices, generator, rows) -> x0 of those rows, e.g. of latents.
Source = Callable[[Tensor, torch.Generator, slice], Tensor]


class ModelConfig(BaseModel):
    """Sizes of a DiT/SiT network and how it counts time: native t = time_scale * t + time_offset,
    output times sign.

    `null_class` says whether the class table has a row for no class, which CFG needs. `freq_shift`
    shortens the divisor of the time frequencies, `norm_eps` is that of the norm before each MLP:
    diffusers has its own of both. At their defaults these three stay out of the JSON, which names
    checkpoints and is kept in weight files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_size: int = 28
    patch: int = 4
    channels: int = 1
    width: int = 192
    depth: int = 6
    heads: int = 3
    classes: int = 10
    learn_sigma: bool = False
    prediction: str = "v"
    path: str = "linear"
    time_scale: float = 1.0
    time_offset: float = 0.0
    sign: float = 1.0
    freq_shift: float = Field(0.0, exclude_if=lambda value: value == 0.0)
    norm_eps: float = Field(1e-6, exclude_if=lambda value: value == 1e-6)
    null_class: bool = Field(True, exclude_if=lambda value: value)


def sincos_2d(width: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine position table (side*side, width), as in MAE and DiT."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    parts = [
        f(axis.reshape(-1, 1) * omega) for axis in (cols, rows) for f in (torch.sin, torch.cos)
    ]
    return torch.cat(parts, dim=1).float()


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Sinusoids of t followed by an MLP; `null` is the learned vector that stands for "noise level
    unknown".
    """

    def __init__(self, width: int, frequencies: int = 256, freq_shift: float = 0.0):
        super().__init__()
        self.count = frequencies // 2
        self.divisor = self.count - freq_shift
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, t: Tensor, drop: Tensor | None) -> Tensor:
        freqs = torch.exp(
            -math.log(10000)
            / self.divisor
            * torch.arange(self.count, device=t.device, dtype=torch.float32)
        )
        args = t.float()[:, None] * freqs  # (B, F/2)
        emb = self.mlp(torch.cat([args.cos(), args.sin()], dim=-1))  # (B, D)
        return emb if drop is None else torch.where(drop[:, None], self.null.to(emb.dtype), emb)


class LabelEmbedder(nn.Module):
    """Class table with one extra row, index `classes`, for the null class if there is one."""

    def __init__(self, classes: int, width: int, null_class: bool = True):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + null_class, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class Attention(nn.Module):
    """Multi-head self-attention, on a CPU written out: at few tokens its backward beats the fused
    CPU kernel's.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (
            self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        )  # (B, H, N, D/H) each
        if (
            x.is_cuda or n > 256
        ):  # the fused kernel never forms the (N, N) matrix, which would not fit for long sequences
            out = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * (d // self.heads) ** -0.5) @ k.transpose(-2, -1)  # (B, H, N, N)
            out = scores.float().softmax(-1).to(v.dtype) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


def gelu(x: Tensor) -> Tensor:
    """tanh-GELU, x (1 + tanh u) / 2 = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3).

    Compiled for a CPU, tanh would take nearly twice as long as the sigmoid."""
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if x.is_cuda or not compiled:
        return nn.functional.gelu(x, approximate="tanh")
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


class Mlp(nn.Module):
    """Two-layer perceptron with tanh-GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part: x (B, N, D), shift and scale (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def adaln(width: int, chunks: int) -> nn.Sequential:
    """Condition to modulation parameters, initialised at zero so that each block starts as the
    identity.
    """
    layer = nn.Linear(width, chunks * width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.SiLU(), layer)


class Block(nn.Module):
    """DiT block with adaLN-zero conditioning (Peebles & Xie, 2023)."""

    def __init__(self, width: int, heads: int, norm_eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps, elementwise_affine=False)
        self.mlp = Mlp(width, 4 * width)
        self.adaLN_modulation = adaln(width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated layer norm and a linear map to patches."""

    def __init__(self, width: int, patch_values: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, patch_values)
        self.adaLN_modulation = adaln(width, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Diffusion transformer (Peebles & Xie, 2023; SiT, 2024) whose noise condition can be dropped
    per sample.

    forward(x, t, y, drop_noise): x (B, C, H, W), t (B,) in [0, 1] with t = 1 noise, y (B,) integer
    labels with `classes` meaning no class, drop_noise (B,) bool or None; returns the prediction (B,
    C, H, W), without the learned-variance channels unless `full=True`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        c = config
        self.x_embedder = PatchEmbed(c.channels, c.patch, c.width)
        self.t_embedder = TimestepEmbedder(c.width, freq_shift=c.freq_shift)
        self.y_embedder = LabelEmbedder(c.classes, c.width, c.null_class)
        self.pos_embed = nn.Parameter(
            sincos_2d(c.width, c.input_size // c.patch)[None], requires_grad=False
        )
        self.blocks = nn.ModuleList(Block(c.width, c.heads, c.norm_eps) for _ in range(c.depth))
        self.out_channels = c.channels * (2 if c.learn_sigma else 1)
        self.final_layer = FinalLayer(c.width, c.patch**2 * self.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and "adaLN" not in name and "final_layer" not in name:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        proj = self.x_embedder.proj
        nn.init.xavier_uniform_(proj.weight.view(proj.weight.shape[0], -1))
        nn.init.zeros_(self.get_parameter("x_embedder.proj.bias"))
        for name in (
            "y_embedder.embedding_table.weight",
            "t_embedder.mlp.0.weight",
            "t_embedder.mlp.2.weight",
            "t_embedder.null",
        ):
            nn.init.normal_(self.get_parameter(name), std=0.02)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, N, p*p*C) -> (B, C, H, W)."""
        b, p, side = tokens.shape[0], self.config.patch, self.config.input_size // self.config.patch
        x = tokens.view(b, side, side, p, p, self.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, self.out_channels, side * p, side * p)

    def embed(
        self, x: Tensor, t: Tensor, y: Tensor, drop_noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the blocks get: tokens (B, N, D) and conditions (B, D)."""
        native_t = self.config.time_scale * t + self.config.time_offset
        return self.x_embedder(x) + self.pos_embed, self.t_embedder(
            native_t, drop_noise
        ) + self.y_embedder(y)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, drop_noise: Tensor | None = None, full: bool = False
    ) -> Tensor:
        tokens, c = self.embed(x, t, y, drop_noise)
        for block in self.blocks:
            tokens = block(tokens, c)
        out = self.config.sign * self.unpatchify(self.final_layer(tokens, c))
        return out if full else out[:, : self.config.channels]
