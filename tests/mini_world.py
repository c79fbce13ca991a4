"""A miniature of ImageNet's pipeline in the official formats: images, autoencoder, released
weights, and an extractor's stub.
"""

import argparse

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image

from nag import checkpoint
from nag.models import DiT, ModelConfig
from nag.pretrained import export

CLASSES = ("n01440764", "n02084071", "n02958343", "n04254680")  # as ImageNet's folders are named


def extract(images):
    """Stands in for Inception, registered by its import path only: fixed random features of uint8
    (B, 3, H, W).
    """
    x = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1).double()
    gen = torch.Generator().manual_seed(0)
    pool, spatial, logits = (
        torch.tanh(x @ torch.randn(x.shape[1], k, generator=gen).double() / 4) for k in (12, 14, 8)
    )
    return {"pool": pool.float(), "spatial": spatial.float(), "logits": logits.float()}


def images(folder, count, seed):
    """`count` images of odd sizes, blurred noise of a colour that tells the class, in the folders
    of four classes.
    """
    rng = np.random.default_rng(seed)
    for k in range(count):
        name = CLASSES[k % len(CLASSES)]
        path = folder / name / f"{name}_{k:04d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 128, (6, 6, 3)) + np.array([40, 80, 120]) * (k % 4) / 4
        size = (70 + 9 * (k % 5), 66 + 13 * (k % 7))
        Image.fromarray(small.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).save(
            path, quality=95
        )


def autoencoder(folder):
    """A random AutoencoderKL that halves three times, as the real one does, of tiny width."""
    torch.manual_seed(1)
    blocks = dict(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4
    )
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, **blocks
    ).save_pretrained(folder)


def released(path, kind):
    """Random weights in the layout of the XL networks (patch 2, four channels, learned variance),
    of tiny width and for the miniature's classes.

    SiT's as the bare state dict that is released, DiT's as a training file with arguments.
    """
    torch.manual_seed(2)
    conventions = checkpoint.CONVENTIONS[kind]
    net = DiT(
        ModelConfig(
            input_size=8,
            patch=2,
            channels=4,
            width=192,
            depth=1,
            heads=3,
            classes=len(CLASSES),
            learn_sigma=True,
            **conventions,
        )
    )
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    path.parent.mkdir(parents=True, exist_ok=True)
    export.export(path, net, kind)
    if kind == "dit":
        state = torch.load(path, weights_only=True)
        torch.save(
            {
                "model": state,
                "ema": state,
                "opt": {"state": {}},
                "args": argparse.Namespace(model="DiT-XL/2"),
            },
            path,
        )


def build(root):
    """Everything that imagenet/README.md asks a user to place, and parameters for a run of minutes
    on a CPU.
    """
    images(root / "data/imagenet/train", 64, 0)
    images(root / "data/imagenet/val", 32, 1)
    autoencoder(root / "data/weights/vae")
    params = yaml.safe_load((root / "imagenet/params.yaml").read_text())
    for part in params["null"].values():
        released(root / part["weights"], part["kind"])
    params["latents"].update(size=64, shard_size=16, batch_size=8)
    params["further"].update(
        images_seen=480, batch_size=8, ema_decay=0.5, save_steps=2, held_out_images=16
    )
    params["estimator"].update(images_seen=5120, warmup_steps=2, ema_decay=0.5, n_test=32)
    params["sample"].update(
        n_images=32,
        steps=16,
        trajectories=12,
        states_every=1,  # so that one state is late, at sigma / alpha <= 0.25, on either path
        network_batch=12,
        shard_size=2,
        resamples=20,
    )
    params["evaluate"].update(
        reference="data/weights/reference.npz",
        extractor="mini_world:extract",
        allow_fewer=True,
        dino=False,
    )
    params.update(vae="data/weights/vae", precision="fp32", compile=False)
    (root / "imagenet/params.yaml").write_text(yaml.safe_dump(params))
