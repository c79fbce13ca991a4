"""A modular pipeline of diffusers for notebook 18: its denoising loop asks a guider what to do."""

from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import (
    ComponentSpec,
    InputParam,
    OutputParam,
)
from diffusers.utils.torch_utils import randn_tensor

from nag.integrations.guider import NoiseAwarenessGuidance

NO_CLASS = 1000  # DiT's label


class SampleDiT(ModularPipelineBlocks):
    """Noise to images (B, C, H, W) in [-1, 1], as every denoising block of diffusers does it."""

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [
            ComponentSpec("transformer", DiTTransformer2DModel),
            ComponentSpec("scheduler", DDIMScheduler),
            ComponentSpec("guider", NoiseAwarenessGuidance),
        ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("class_labels", required=True),
            InputParam("num_inference_steps", default=20),
            InputParam("generator"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("images")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        block = self.get_block_state(state)
        net, scheduler, guider = components.transformer, components.scheduler, components.guider
        labels = torch.tensor(block.class_labels, device=net.device)
        size, channels = net.config.sample_size, net.config.in_channels
        x = randn_tensor((len(labels), channels, size, size), block.generator, net.device)
        scheduler.set_timesteps(block.num_inference_steps)
        for k, t in enumerate(scheduler.timesteps):
            guider.set_state(step=k, num_inference_steps=block.num_inference_steps, timestep=t)
            x = scheduler.step(self.predict(net, guider, x, t, labels), t, x).prev_sample
        block.images = x
        self.set_block_state(state, block)
        return components, state

    @staticmethod
    def predict(
        net: DiTTransformer2DModel,
        guider: NoiseAwarenessGuidance,
        x: torch.Tensor,
        t: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """The guided prediction: the network is called once for each input of the guider."""
        passes = guider.prepare_inputs(
            {"class_labels": (labels, torch.full_like(labels, NO_CLASS))}
        )
        for one in passes:
            guider.prepare_models(net)
            one.noise_pred = net(x, t.expand(len(x)).to(x.device), one.class_labels).sample
            guider.cleanup_models(net)
        return guider(passes).pred
