"""One training loop for every network here: `fit`, and its state, which can be saved and resumed.

Everything random in step k is a function of (seed, k), so a run that is killed and resumed equals
one that was not."""

import contextlib
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nag.models import BatchLoss
from nag.support import distributed
from nag.support.device import autocast, best_device, maybe_compile, resolve_precision
from nag.support.files import check_archive, write_torch
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
        """Short hash of these settings and any others that matter: the name of a checkpoint."""
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


class TrainState:
    """All that a run needs to go on: weights, their EMA, the optimiser, the step, and its records.

    It is kept in the file `path`. `total` is the sum of the losses since the last record. Random
    numbers need no state, since those of a step follow from the seed and the step."""

    def __init__(
        self,
        module: nn.Module,
        config: TrainConfig,
        path: Path,
        device: torch.device,
        size: int,
        made_of: dict[str, str] | None = None,
    ):
        self.size, self.made_of = size, made_of or {}
        self.module, self.config, self.path, self.device = module, config, path, device
        self.params = [p for p in module.parameters() if p.requires_grad]
        self.ema = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.AdamW(
            self.params, lr=config.lr, weight_decay=config.weight_decay
        )
        self.step = 0
        self.records: list[dict] = []
        self.total = torch.zeros((), device=device)
        self.began = time.monotonic()  # moved back by the seconds of a run that is resumed

    @property
    def seconds(self) -> float:
        """Time spent in training, earlier runs included."""
        return time.monotonic() - self.began

    def update(self) -> Tensor:
        """One step of AdamW and of the EMA from the gradient in the parameters; gives its norm.

        The EMA's decay rises to the configured one, so that it forgets the start."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        norm = nn.utils.clip_grad_norm_(self.params, self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], 1 - decay)
        self.step += 1
        return norm

    def mean_loss(self) -> float:
        """Mean loss since the last record; raises FloatingPointError if it is not finite."""
        logged = self.records[-1]["step"] if self.records else 0
        mean = (distributed.mean(self.total) / max(1, self.step - logged)).item()
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss became {mean} between steps {logged} and {self.step}: lower lr (now "
                f"{self.config.lr}) or use precision: fp32; the last good state, if any, is in "
                f"{self.path}"
            )
        return mean

    def record(self, loss: float, norm: Tensor) -> None:
        """Add a line to the log."""
        self.records.append(
            {
                "step": self.step,
                "images": self.step * self.config.batch_size,
                "loss": loss,
                "grad_norm": norm.item(),
                "lr": learning_rate(self.config, self.step - 1),
                "seconds": self.seconds,
            }
        )
        self.total.zero_()

    def save(self) -> None:
        """Write the file, from one process, when all are here."""
        mean = distributed.mean(self.total)
        if distributed.place()[0] == 0:
            write_torch(
                self.path,
                {
                    "model": self.module.state_dict(),
                    "ema": self.ema,
                    "optimizer": self.optimizer.state_dict(),
                    "step": self.step,
                    "total": mean,
                    "seconds": self.seconds,
                    "records": self.records,
                    "settings": self.config.model_dump_json(),
                    "size": self.size,
                    "made_of": self.made_of,
                },
            )
        distributed.barrier()  # torchrun would kill the writer if another left first

    def load(self) -> None:
        """Go on from the file; raises ValueError if it is damaged or of another run."""
        saved = _read_checkpoint(self.path, self.config)
        if saved.get("size", self.size) != self.size:
            raise ValueError(
                f"{self.path} is of a training on {saved['size']} images, not {self.size}: delete "
                "it, or train under another name"
            )
        before = saved.get("made_of", {})
        if any(before[name] != self.made_of[name] for name in before.keys() & self.made_of):
            raise ValueError(
                f"{self.path} is of a training on other images, labels or settings of the loss, or "
                "of a network of another configuration: delete it, or train under another name"
            )
        try:
            self.module.load_state_dict(saved["model"])
        except RuntimeError as error:
            raise ValueError(
                f"{self.path} is of another network: delete it, or train under another name"
            ) from error
        self.optimizer.load_state_dict(saved["optimizer"])
        torch._foreach_copy_(self.ema, [e.to(self.device) for e in saved["ema"]])
        self.step, self.records = saved["step"], saved["records"]
        self.total += saved["total"].to(self.device)
        self.began = time.monotonic() - saved["seconds"]

    def finish(self) -> None:
        """Put the EMA into the module, ready to be evaluated."""
        torch._foreach_copy_([p.data for p in self.params], self.ema)
        self.module.eval()


def _gradient(
    module: nn.Module,
    loss: BatchLoss,
    config: TrainConfig,
    micro_batch: int | None,
    device: torch.device,
) -> Callable[[Tensor, int], Tensor]:
    """A function (indices (B,), step) that leaves the batch's gradient in the parameters.

    It returns the mean loss on this process; the gradient is the mean over all of them. The batch
    is divided among the processes, and there into parts of `micro_batch` rows."""
    world, precision = distributed.place()[1], resolve_precision(config.precision, device)
    parts = distributed.share_rows(config.batch_size, micro_batch)
    shared = _shared(module, device) if world > 1 else None
    run = maybe_compile(module if shared is None else shared, device, config.compile)

    def part_loss(index: Tensor, step: int, rows: slice) -> Tensor:
        gen = generator(config.seed, 2, step)
        if world == len(parts) == 1:
            return loss(run, index, gen)
        return loss(run, index, gen, rows) / len(parts)

    def gradient(index: Tensor, step: int) -> Tensor:
        value = torch.zeros((), device=device)
        for rows in parts:
            sync: contextlib.AbstractContextManager = contextlib.nullcontext()
            if shared is not None and rows is not parts[-1]:
                sync = shared.no_sync()  # the processes average after the last part
            with sync:
                with autocast(device, precision):
                    part = part_loss(index, step, rows)
                part.backward()
            value += part.detach()
        return value

    return gradient


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
    if log_every < 1:
        raise ValueError(f"log_every is {log_every}: give 1 or more steps")
    checkpoint, device = Path(checkpoint), best_device()
    module.to(device).train()
    gradient = _gradient(module, loss, config, micro_batch, device)
    state = TrainState(module, config, checkpoint, device, size, _made_of(module, loss))
    if checkpoint.exists():
        state.load()
        yield from state.records
    saved = time.monotonic()
    with _signals() as stop:
        while state.step < config.steps:
            state.total += gradient(batch_indices(size, config, state.step), state.step)
            norm = state.update()
            log = state.step % log_every == 0 or state.step == config.steps
            if save_steps:
                due = state.step % save_steps == 0
            else:
                due = time.monotonic() - saved > save_seconds
            # A signal that comes later than this, e.g. during the yield, waits for the next step.
            due, stopping = distributed.any_of([due, bool(stop)])
            if log or due or stopping:
                mean = state.mean_loss()  # a state that is saved has a finite loss
            if log:
                state.record(mean, norm)
            if due or stopping:
                state.save()
                saved = time.monotonic()
            if log:
                yield state.records[-1]
            if stopping:
                raise KeyboardInterrupt(
                    f"stopped at step {state.step} of {config.steps}; run again to resume"
                )
        state.save()
    state.finish()


def _made_of(module: nn.Module, loss: BatchLoss) -> dict[str, str]:
    """What a loss says of its data and settings, and a network of its configuration."""
    found = {"loss": loss.made_of()} if hasattr(loss, "made_of") else {}
    if isinstance(config := getattr(module, "config", None), BaseModel):
        found["network"] = config.model_dump_json()
    return found


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


STATE = {"model", "ema", "optimizer", "step", "total", "seconds", "records", "settings"}


def _read_checkpoint(path: Path, config: TrainConfig) -> dict:
    try:  # mapped, so that the processes of a node share one copy
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        missing = STATE - state.keys()
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): delete it to train from the start"
        ) from error
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint of this project (no {sorted(missing)}): delete it to "
            "train from the start"
        )
    if state["settings"] != config.model_dump_json():
        raise ValueError(
            f"{path} was made with other settings: delete it, or train under another name"
        )
    return state


@contextlib.contextmanager
def _signals() -> Iterator[list[bool]]:
    """Within the block SIGTERM and SIGINT only raise a flag: no step is ever cut in half."""
    flag: list[bool] = []
    old = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, lambda *_: flag.append(True))
    try:
        yield flag
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
