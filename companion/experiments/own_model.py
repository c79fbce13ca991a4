"""The stand-in of notebooks 10 and 18 for a reader's own model: a small DiT as a pipeline."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    ModelMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from nag.data import fashion_mnist
from nag.integrations.level_estimator import LevelEstimator
from nag.integrations.recorder import Recording
from nag.shift import estimated_times, is_late
from nag.support.paths import CHECKPOINTS
from nag.support.uncertainty import Interval, bootstrap, interval
from nag.train import TrainConfig, train


def example_images() -> tuple[Tensor, Tensor]:
    """Fashion-MNIST's test images at half size, (10000, 1, 14, 14) in [-1, 1], and their labels."""
    images, labels = fashion_mnist.load_fashion_mnist("test")
    return torch.nn.functional.avg_pool2d(fashion_mnist.to_float(images), 2), labels


class Pixels(ModelMixin, ConfigMixin):
    """In the place of a VAE, for a model of pixels: it changes nothing."""

    @register_to_config
    def __init__(self, scaling_factor: float = 1.0):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()), requires_grad=False)  # tells diffusers the device

    def decode(self, latents: Tensor) -> DecoderOutput:
        """Latents (B, C, H, W), which are the images."""
        return DecoderOutput(sample=latents * self.one)


def dit_pipeline(seed: int) -> DiTPipeline:
    """diffusers' DiT at tiny size, untrained, in diffusers' own pipeline with DDIM.

    It has DiT's 1000 classes and label 1000 for "no class", because the pipeline asks for it."""
    torch.manual_seed(seed)
    dit = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        sample_size=14,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    pipe = DiTPipeline(dit, Pixels(), DDIMScheduler(timestep_spacing="trailing"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train_on(
    net: nn.Module, loss: Callable, size: int, images_seen: int, seed: int, lr: float = 2e-3
) -> float:
    """Train for seconds on `size` items with a loss of `denoising_loss_of`; the last mean loss."""
    config = TrainConfig(
        images_seen=images_seen,
        batch_size=64,
        lr=lr,
        warmup_steps=20,
        cooldown=0.4,
        ema_decay=0.98,
        seed=seed,
        precision="fp32",
        compile=False,
    )
    torch.manual_seed(seed)  # of label dropout and noise-condition dropout
    state = CHECKPOINTS / f"own-dit-{config.key(sum(p.numel() for p in net.parameters()))}.pt"
    records = train(net, loss, size, config, state)
    state.unlink()
    return records[-1]["loss"]


def calls(n: int, steps: int, batch: int = 50, **settings: object) -> list[dict]:
    """Arguments of DiTPipeline for n images, each from its own seed, with labels in turn."""
    return [
        dict(
            class_labels=[i % 10 for i in range(start, min(start + batch, n))],
            generator=[
                torch.Generator().manual_seed(i) for i in range(start, min(start + batch, n))
            ],
            num_inference_steps=steps,
            guidance_scale=1.0,
            output_type="np",
        )
        | settings
        for start in range(0, n, batch)
    ]


def late_change(guided: Recording, plain: Recording, estimator: LevelEstimator) -> Interval:
    """Late shift of one recording minus that of another from the same seeds, paired by image."""
    late = []
    for recording in (guided, plain):
        states, times = recording.on(estimator.path)
        late.append(
            estimated_times(estimator, states[:, is_late(times.numpy(), estimator.path)]).mean(1)
        )
    change = late[0] - late[1]
    return interval(change.mean(), bootstrap(change, lambda x: x.mean(0), 1000, 0))


def first_images(recording: Recording, n: int = 16) -> np.ndarray:
    """The first n end states (n, 1, H, W) in uint8."""
    return fashion_mnist.to_uint8(recording.states[:n, -1]).numpy()
