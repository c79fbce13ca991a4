"""Noise-condition dropout in a stock diffusers training loop: one added line, one line to save.

python examples/train_with_noise_dropout.py OUT"""

import sys

import torch
from diffusers import DDPMScheduler, UNet2DModel

from nag.integrations.guider import NoiseAwarenessGuidance
from nag.integrations.null_training import add_noise_condition_dropout

out = sys.argv[1] if len(sys.argv) > 1 else "build/unet-with-null"
images = torch.rand(256, 1, 16, 16) * 2 - 1  # your data set
blocks = dict(block_out_channels=(32, 64), norm_num_groups=8, add_attention=False)
kinds = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
unet = UNet2DModel(sample_size=16, in_channels=1, out_channels=1, **blocks, **kinds)
add_noise_condition_dropout(unet, probability=0.1)  # the added line, before the optimiser
optimizer, scheduler = torch.optim.AdamW(unet.parameters(), lr=1e-3), DDPMScheduler()
for batch in images.split(32):
    noise, t = torch.randn_like(batch), torch.randint(1000, (len(batch),))
    predicted = unet(scheduler.add_noise(batch, noise, t), t).sample
    torch.nn.functional.mse_loss(predicted, noise).backward()
    optimizer.step()
    optimizer.zero_grad()
unet.save_pretrained(out)
NoiseAwarenessGuidance(w=0.5, null=unet.null_noise.detach()).save_pretrained(out)
