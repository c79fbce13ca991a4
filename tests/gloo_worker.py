"""What the tests start under torchrun: `python -m torch.distributed.run ... -m gloo_worker
spec.json`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from nag import train
from nag.losses import denoising_loss
from nag.models import DiT, ModelConfig
from nag.support import distributed


def parts():
    """Toy data, a small network and settings, the same in every process."""
    gen = torch.Generator().manual_seed(1)
    images, labels = torch.randn(50, 1, 8, 8, generator=gen), torch.randint(3, (50,), generator=gen)
    torch.manual_seed(0)
    net = DiT(ModelConfig(input_size=8, width=32, depth=1, heads=2, classes=3))
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    config = train.TrainConfig(
        images_seen=12 * 16, batch_size=16, warmup_steps=3, precision="fp32", compile=False
    )
    return net, denoising_loss(images, labels, 0.2, 0.2), config


def main():
    spec = json.loads(Path(sys.argv[1]).read_text())
    rank, _ = distributed.start()
    train.best_device = distributed.best_device = lambda: torch.device("cpu")
    net, loss, config = parts()
    records = []
    for record in train.fit(
        net, loss, 50, config, Path(spec["state"]), log_every=1, micro_batch=spec["micro_batch"]
    ):
        records.append(record)
        if record["step"] == spec["stop_at"] and rank == 1:  # one process alone gets the signal
            os.kill(os.getpid(), signal.SIGTERM)
    if rank == 0:
        torch.save({"records": records, "weights": net.state_dict()}, spec["out"])
    distributed.barrier()
    distributed.stop()


if __name__ == "__main__":
    main()
