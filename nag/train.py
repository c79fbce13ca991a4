"""One training loop for every network here, and the denoising loss with class and noise-condition
dropout.

Everything random in step k is a function of (seed, k), so a run that is killed and resumed equals
one that was not."""

import contextlib
import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nag.ddpm import discretise, learns_variance, variational_bound
from nag.interpolant import add_noise, convert, velocity_target
from nag.models import BatchLoss, ModelConfig, Source
from nag.support import distributed
from nag.support.device import autocast, best_device, maybe_compile, resolve_precision
from nag.support.files import write_torch
from nag.support.rng import generator


class TrainConfig(BaseModel):
    """Settings of a training run; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images_seen: int = Field(gt=0)
    batch_size: int = Field(128, gt=0)
    lr: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(500, ge=0)
    cooldown: float = Field(
        0.2, ge=0, le=1, description="last fraction of the run in which lr falls linearly to 0"
    )
    weight_decay: float = Field(0.0, ge=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    seed: int = Field(0, ge=0)
    precision: str = "auto"
    compile: bool = True

    @property
    def steps(self) -> int:
        """Optimiser steps, rounded up."""
        return math.ceil(self.images_seen / self.batch_size)

    def key(self, *others: object) -> str:
        """Short hash of these settings and any others that matter, which names the checkpoint file."""
        return hashlib.sha256(repr((self.model_dump_json(), *others)).encode()).hexdigest()[:12]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Trapezoid: linear warm-up, constant, linear cool-down."""
    warm = (step + 1) / max(1, config.warmup_steps)
    cool = (config.steps - step) / max(1, config.cooldown * config.steps)
    return config.lr * min(1.0, warm, cool)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, 1, epoch))


def batch_indices(size: int, config: TrainConfig, step: int) -> Tensor:
    """Indices (B,) of step's batch: epochs of fresh permutations laid end to end."""
    place = torch.arange(step * config.batch_size, (step + 1) * config.batch_size)
    epochs = [int(e) for e in (place // size).unique()]
    return torch.cat(
        [_permutation(size, config.seed, e)[place[place // size == e] % size] for e in epochs]
    )


def denoising_loss(
    images: Tensor | Source,
    labels: Tensor,
    class_dropout: float,
    noise_dropout: float,
    input_perturbation: float = 0.0,
) -> BatchLoss:
    """Squared error of v, eps or x0 with two independent dropouts (paper, Sec. 4: noise-condition
    dropout).

    images (N, C, H, W) float32, or a source of them, and labels (N,) live on the CPU; probabilities
    in [0, 1]. t is uniform; on the path "ddpm" it takes that path's 1000 levels. A network that
    learns its variance gets DiT's bound on top, the mean held fixed. `rows` of the batch are
    evaluated; random numbers are drawn for all of it, so that the parts make up the whole. With
    `input_perturbation` gamma > 0 the state alone has the noise eps + gamma xi (DDPM-IP, Ning et
    al., 2023). Raises ValueError if it is negative."""
    if input_perturbation < 0:
        raise ValueError(
            f"input_perturbation {input_perturbation} is negative: give 0 for none; the paper has 0.1"
        )

    def loss(
        net: nn.Module, index: Tensor, gen: torch.Generator, rows: slice = slice(None)
    ) -> Tensor:
        device = next(net.parameters()).device
        x0 = images(index, gen, rows) if callable(images) else images[index[rows]]
        shape = (len(index), *x0.shape[1:])
        t, eps = torch.rand(len(index), generator=gen), torch.randn(shape, generator=gen)
        y = torch.where(
            torch.rand(len(index), generator=gen) < class_dropout, net.config.classes, labels[index]
        )
        drop_noise = torch.rand(len(index), generator=gen) < noise_dropout
        noise = (
            eps + input_perturbation * torch.randn(shape, generator=gen)
            if input_perturbation
            else eps
        )
        y, t, eps, noise, drop_noise = (a[rows].to(device) for a in (y, t, eps, noise, drop_noise))
        x0 = x0.to(device)
        config = net.config
        t = discretise(t) if config.path == "ddpm" else t
        x_t = add_noise(x0, noise, t, config.path)
        learned = learns_variance(config)
        out = net(x_t, t, y, drop_noise, full=True) if learned else net(x_t, t, y, drop_noise)
        pred, fraction = out.float().tensor_split([x0.shape[1]], dim=1)
        value = (pred - target(config, x0, eps, t)).square().mean()
        if learned:
            x0_hat = convert(pred.detach(), x_t, t, config.prediction, "x0", config.path)
            value = value + variational_bound((fraction + 1) / 2, x0_hat, x0, x_t, t).mean()
        return value

    return loss


def target(config: ModelConfig, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a network of this configuration should say of the state made of x0 and eps (B, C, H, W)
    at t (B,).
    """
    return {"v": velocity_target(x0, eps, t, config.path), "eps": eps, "x0": x0}[config.prediction]


CONDITIONS = {  # way of asking: (drop class, drop noise level)
    "class and noise level": (False, False),
    "noise level only": (True, False),
    "class only": (False, True),
    "neither": (True, True),
}


@torch.inference_mode()
def condition_losses(
    net: nn.Module, images: Tensor, labels: Tensor, seed: int, bins: int = 4, batch: int = 500
) -> dict[str, dict[str, float]]:
    """Squared error on images (N, C, H, W) for each way of dropping conditions, by range of t; same
    noise for all.
    """
    gen, device = generator(seed), next(net.parameters()).device
    t, eps = torch.rand(len(images), generator=gen), torch.randn(images.shape, generator=gen)
    place, table = (t * bins).long(), {}
    t = discretise(t) if net.config.path == "ddpm" else t
    for name, (drop_class, drop_noise) in CONDITIONS.items():
        y = torch.full_like(labels, net.config.classes) if drop_class else labels
        errors = []
        for i in range(0, len(images), batch):
            x0, e, s, c = (a[i : i + batch].to(device) for a in (images, eps, t, y))
            pred = net(
                add_noise(x0, e, s, net.config.path),
                s,
                c,
                torch.full_like(s, drop_noise, dtype=torch.bool),
            )
            errors.append((pred - target(net.config, x0, e, s)).square().flatten(1).mean(1).cpu())
        error = torch.cat(errors)
        table[name] = {
            f"{k / bins:.2f} to {(k + 1) / bins:.2f}": error[place == k].mean().item()
            for k in range(bins)
        }
    return table


def fit(
    module: nn.Module,
    loss: BatchLoss,
    size: int,
    config: TrainConfig,
    checkpoint: Path,
    log_every: int = 50,
    save_seconds: float = 60.0,
    save_steps: int | None = None,
    micro_batch: int | None = None,
) -> Iterator[dict]:
    """Train `module` on `size` items and yield a record every `log_every` steps; afterwards it
    holds the EMA weights.

    Saves to `checkpoint` about every `save_seconds`, or every `save_steps`, and on SIGTERM or
    SIGINT. If it is there, training resumes from it, and its records are yielded again first, so
    that the log is whole. Under torchrun the processes share each batch, and any number of them may
    resume. A batch is evaluated in parts of `micro_batch` rows a process if given; the loss must
    then take `rows`. Raises ValueError for a checkpoint of other settings or a batch that cannot be
    divided, FloatingPointError if the loss is not finite, KeyboardInterrupt after a signal."""
    device = best_device()
    precision = resolve_precision(config.precision, device)
    module.to(device).train()
    rank, world = distributed.place()
    parts = distributed.share_rows(config.batch_size, micro_batch)
    shared = _shared(module, device) if world > 1 else module
    run = maybe_compile(shared, device, config.compile)
    params = [p for p in module.parameters() if p.requires_grad]
    ema = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=config.lr, weight_decay=config.weight_decay)
    step, logged, seconds, records = 0, 0, 0.0, []
    total = torch.zeros((), device=device)  # of the losses since the last record
    if checkpoint.exists():
        state = _read_checkpoint(checkpoint, config)
        try:
            module.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(
                f"{checkpoint} is of another network: delete it, or train under another name"
            ) from error
        optimizer.load_state_dict(state["optimizer"])
        torch._foreach_copy_(ema, [e.to(device) for e in state["ema"]])
        step, seconds, records = state["step"], state["seconds"], state["records"]
        logged = records[-1]["step"] if records else 0
        total += state["total"].to(device)
        del state  # as large as the file
        yield from records

    def save() -> None:
        mean = distributed.mean(total)
        if rank == 0:
            write_torch(
                checkpoint,
                {
                    "model": module.state_dict(),
                    "ema": ema,
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "total": mean,
                    "seconds": seconds + time.monotonic() - start,
                    "records": records,
                    "settings": config.model_dump_json(),
                },
            )
        distributed.barrier()  # torchrun would kill the writer if another left first

    def gradient(index: Tensor) -> Tensor:
        """The batch's mean loss on this process; its gradient, the mean over all of them, is left
        in the parameters.
        """
        value = torch.zeros((), device=device)
        for rows in parts:
            last = rows is parts[-1]
            with contextlib.nullcontext() if last or world == 1 else shared.no_sync():
                with autocast(device, precision):
                    gen = generator(config.seed, 2, step)
                    part = (
                        loss(run, index, gen)
                        if world == len(parts) == 1
                        else loss(run, index, gen, rows) / len(parts)
                    )
                part.backward()
            value += part.detach()
        return value

    start = saved = time.monotonic()
    with _signals() as stop:
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            total += gradient(batch_indices(size, config, step))
            norm = nn.utils.clip_grad_norm_(params, config.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - decay)
            step += 1
            due = step % save_steps == 0 if save_steps else time.monotonic() - saved > save_seconds
            # a signal that comes later than this, e.g. during the yield, waits for the next step
            due, stopping = distributed.any_of([due, bool(stop)])
            if step % log_every == 0 or step == config.steps or due or stopping:
                mean = (distributed.mean(total) / max(1, step - logged)).item()
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"the loss became {mean} between steps {logged} and {step}: lower lr (now {config.lr}) or use "
                        f"precision: fp32; the last good state, if any, is in {checkpoint}"
                    )
            log = step % log_every == 0 or step == config.steps
            if log:
                records.append(
                    {
                        "step": step,
                        "images": step * config.batch_size,
                        "loss": mean,
                        "grad_norm": norm.item(),
                        "lr": learning_rate(config, step - 1),
                        "seconds": seconds + time.monotonic() - start,
                    }
                )
                total.zero_()
                logged = step
            if due or stopping:
                save()
                saved = time.monotonic()
            if log:
                yield records[-1]
            if stopping:
                raise KeyboardInterrupt(
                    f"stopped at step {step} of {config.steps}; run again to resume"
                )
        save()
    torch._foreach_copy_([p.data for p in params], ema)
    module.eval()


def _shared(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The module with its gradients averaged over the processes, and its configuration where losses
    look for it.
    """
    shared = DistributedDataParallel(
        module, device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None
    )
    if hasattr(module, "config"):
        shared.config = module.config
    return shared


def train(
    module: nn.Module, loss: BatchLoss, size: int, config: TrainConfig, checkpoint: Path, **options
) -> list[dict]:
    """Run `fit`, with its further options, to its end with a progress bar and return its records.

    The checkpoint stays, so that nothing is lost before the caller has saved the weights; the
    caller then deletes it."""
    records = []
    with tqdm(
        total=config.steps, unit="step", mininterval=10, disable=distributed.place()[0] > 0
    ) as bar:
        for record in fit(module, loss, size, config, checkpoint, **options):
            records.append(record)
            bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)
            bar.update(record["step"] - bar.n)
    return records


def _read_checkpoint(path: Path, config: TrainConfig) -> dict:
    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=True
        )  # one copy for all processes of a node
        missing = {
            "model",
            "ema",
            "optimizer",
            "step",
            "total",
            "seconds",
            "records",
            "settings",
        } - state.keys()
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): delete it to train from the start"
        ) from error
    if missing:
        raise ValueError(
            f"{path} is no checkpoint of this project (no {sorted(missing)}): delete it to start anew"
        )
    if state["settings"] != config.model_dump_json():
        raise ValueError(
            f"{path} was made with other settings: delete it, or train under another name"
        )
    return state


class _signals:
    """Within the block SIGTERM and SIGINT only raise a flag, so that a step is never cut in half."""

    def __enter__(self) -> list:
        self.flag: list = []
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.old[number] = signal.signal(number, lambda *_: self.flag.append(True))
        return self.flag

    def __exit__(self, *_) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
