"""Several processes as one run: joining torchrun's group, agreeing within it, and starting it from
a notebook.

Everything here also works in a single process that nobody launched: then there is one rank, 0, and
nothing to agree on."""

import os
import subprocess
import sys
from collections import deque
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from nag.support.device import best_device
from nag.support.paths import ROOT

PATIENCE = timedelta(
    hours=2
)  # a rank may wait this long for another, e.g. while one writes a checkpoint
TAIL = 60  # lines of a failed run's output that its error repeats


def start() -> tuple[int, int]:
    """Join the group if torchrun started this process, gloo on a CPU and NCCL on GPUs; returns
    (rank, world), else (0, 1).
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    return place()


def local_processes(wanted: int) -> int:
    """How many processes to launch here: `wanted`, or if that is negative $NAG_PROCESSES, else one
    for each GPU (none: 0).

    A pipeline asks with -1, so that its commands do not change with the machine.
    """
    return (
        wanted if wanted >= 0 else int(os.environ.get("NAG_PROCESSES", torch.cuda.device_count()))
    )


def place() -> tuple[int, int]:
    """(rank, world) of this process: (0, 1) if it is alone."""
    return (
        (dist.get_rank(), dist.get_world_size())
        if dist.is_available() and dist.is_initialized()
        else (0, 1)
    )


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until all processes are here."""
    if place()[1] > 1:
        dist.barrier()


def any_of(flags: list[bool]) -> list[bool]:
    """Each flag as true in all processes as soon as it is true in one."""
    if place()[1] == 1:
        return flags
    shared = torch.tensor(flags, dtype=torch.int32, device=best_device())
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return [bool(flag) for flag in shared.tolist()]


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes, the same in all of them."""
    if place()[1] == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / place()[1]


def share_rows(batch_size: int, micro_batch: int | None = None) -> list[slice]:
    """This process's rows of a global batch, in equal parts of at most `micro_batch` rows for
    gradient accumulation.

    Raises ValueError if the batch cannot be divided equally, since the mean of unequal parts is not
    the batch's mean."""
    rank, world = place()
    share, rest = divmod(batch_size, world)
    size = min(micro_batch or share, share)
    if rest or share % size:
        raise ValueError(
            f"a batch of {batch_size} cannot be divided equally among {world} processes in parts "
            f"of {size}: change "
            "batch_size, the number of processes or micro_batch so that each divides the one before"
        )
    return [slice(first, first + size) for first in range(rank * share, (rank + 1) * share, size)]


def launch(module: str, spec: Path, processes: int) -> None:
    """Run `python -m module spec` in as many local processes of torchrun and pass on what they
    print.

    Raises RuntimeError with the end of their output if one fails. On several nodes, start the same
    by hand with torchrun."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        module,
        str(spec),
    ]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    env = {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"} | os.environ
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        tail: deque[str] = deque(maxlen=TAIL)
        try:
            for line in run.stdout or ():
                print(line, end="", flush=True)
                tail.append(line)
        except BaseException:
            run.terminate()  # torchrun ends its workers, which save their state first
            run.wait()
            raise
    if run.returncode:
        raise RuntimeError(
            f"{module} failed in one of {processes} processes (exit code {run.returncode}); what "
            "is finished is "
            f"kept, run again to go on. The end of its output:\n{''.join(tail)}"
        )
