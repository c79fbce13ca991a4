"""Where to run, in what precision, and whether to compile: chosen here, and said in one line."""

import ctypes
import platform
import time
import warnings
from functools import cache
from typing import TypeVar, cast

import torch
from torch import nn

PRECISIONS = ("auto", "bf16", "fp32")
MALLOPT = {-3: 2**28, -1: 2**30}  # glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes


def best_device() -> torch.device:
    """CUDA if there, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    keep_freed_memory()
    return torch.device("cpu")


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 256 MiB, at most 1 GiB in all; whether that is possible
    here.

    By default it returns the memory of every activation and then asks for it again, page fault by
    page fault, which takes a good part of a small network's time on a CPU. No number changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    return mallopt is not None and all(mallopt(option, size) for option, size in MALLOPT.items())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is native: recent GPUs, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "bf16" or "fp32": "auto" takes bf16 where it is native. Raises ValueError for an unknown
    name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {PRECISIONS}")
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context for "bf16"; does nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile works here, which is tried once: it needs a C++ compiler that works and
    Python's headers on a CPU, Triton on CUDA. If it fails, one warning says why.
    """
    if device_type not in ("cpu", "cuda"):
        return False
    shift = time.time_ns() % 10**9  # new code each time, or a kept kernel would hide a fault
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + shift)(torch.ones(2, device=device_type))
    except Exception as error:  # whatever the compilers raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        warnings.warn(f"torch.compile does not work here ({reason}): running without", stacklevel=3)
        return False
    return True


M = TypeVar("M", bound=nn.Module)


def maybe_compile(module: M, device: torch.device, wanted: bool = True) -> M:
    """The module compiled with torch.compile if wanted and possible, otherwise itself."""
    return cast(M, torch.compile(module)) if wanted and can_compile(device.type) else module


def describe(device: torch.device, precision: str, compiled: bool) -> str:
    """One line that says what runs where and what was switched off, and why."""
    parts = [f"device {device}", f"precision {precision}"]
    if precision == "fp32" and not has_fast_bf16(device):
        parts[-1] += " (no native bf16 here)"
    if not compiled:
        parts.append("not compiled")
    elif can_compile(device.type):
        parts.append("compiled")
    else:
        parts.append("not compiled (torch.compile does not work here)")
    if device.type == "cpu":
        parts.append(f"{torch.get_num_threads()} threads")
    return ", ".join(parts)
