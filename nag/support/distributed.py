"""Several processes as one run: joining torchrun's group, agreeing within it, and starting it from
a notebook.

Everything here also works in a single process that nobody launched: then there is one rank, 0, and
nothing to agree on."""

import os
import re
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
    """Join the group that started this process, gloo on a CPU and NCCL on GPUs; returns (rank,
    world), (0, 1) if it was started alone.

    A group is torchrun's, or that of any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT. Raises ValueError if several processes were started without these, as each would do
    the work of all."""
    if dist.is_initialized() or not _in_group():
        return place()
    if torch.cuda.is_available():
        local = os.environ.get("LOCAL_RANK") or int(os.environ["RANK"]) % torch.cuda.device_count()
        device = torch.device("cuda", int(local))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    return place()


# How many processes a launcher started: in any of these, the number of a group's members.
SIZES = (
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"),
    *("PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE"),
)
RANKS = ("RANK", "LOCAL_RANK", "PMIX_RANK")  # and which of them this is
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _in_group() -> bool:
    """Whether this process has all that joining a group takes; raises ValueError if it has a part
    of it only.
    """
    if all(os.environ.get(name) for name in NEEDED):
        rank, world = whole_number("RANK", 0), whole_number("WORLD_SIZE", 1)
        if rank >= world:
            raise ValueError(f"RANK is {rank} and WORLD_SIZE {world}: ranks are 0 to {world - 1}")
        return world > 1 or "TORCHELASTIC_RUN_ID" in os.environ
    several = [name for name in SIZES if whole_number(name, 1) > 1]
    several += [name for name in RANKS if whole_number(name, 0) > 0]
    if several:
        missing = ", ".join(name for name in NEEDED if not os.environ.get(name))
        raise ValueError(
            f"{several[0]} says that several processes were started, but "
            f"{missing} is not set, so that each would do the work of all: start them with "
            "torchrun, or unset it to run alone"
        )
    return False


def whole_number(name: str, default: int) -> int:
    """A variable of the environment as a whole number from 0 on, `default` if it is not set or
    empty; raises ValueError for anything else.
    """
    text = os.environ.get(name, "").strip()
    if not re.fullmatch("[0-9]*", text):
        raise ValueError(f"{name} is {text!r} in the environment: set a whole number, or unset it")
    return int(text) if text else default


def local_processes(wanted: int) -> int:
    """How many processes to launch here: `wanted`, or if that is negative $NAG_PROCESSES, else one
    for each GPU (none: 0).

    A pipeline asks with -1, so that its commands do not change with the machine.
    """
    if wanted >= 0:
        return wanted
    return whole_number("NAG_PROCESSES", torch.cuda.device_count())


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
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    env["PYTHONIOENCODING"] = f"{encoding}:replace"  # so that this terminal shows what they print
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding=encoding,
        errors="replace",
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
