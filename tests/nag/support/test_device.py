"""Choice of device, precision and compilation, and that it is said truthfully."""

import shutil
import subprocess
import sys

import pytest
import torch

from nag.support import device

CPU = torch.device("cpu")


def test_best_device_is_one_that_works():
    assert torch.ones(2, device=device.best_device()).sum().item() == 2


@pytest.mark.parametrize(
    "cuda, mps, best", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_order_of_preference(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device.best_device().type == best


@pytest.mark.parametrize("fast, chosen", [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_only_where_it_is_native(monkeypatch, fast, chosen):
    monkeypatch.setattr(device, "has_fast_bf16", lambda _: fast)
    assert device.resolve_precision("auto", CPU) == chosen
    assert [device.resolve_precision(p, CPU) for p in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_mps_has_no_bf16_here():
    assert device.resolve_precision("auto", torch.device("mps")) == "fp32"


def test_unknown_precision_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown precision 'fp16'.*auto.*bf16.*fp32"):
        device.resolve_precision("fp16", CPU)


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast_does_what_it_is_told(precision, dtype):
    with device.autocast(CPU, precision):
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == dtype


@pytest.fixture
def forgetful():
    device.can_compile.cache_clear()
    yield
    device.can_compile.cache_clear()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stale CXX", "broken g++", "no g++, though clang++ is there"])
def test_without_a_compiler_that_works_the_module_runs_as_it_is(
    tmp_path, monkeypatch, forgetful, fault
):
    from torch._inductor import config

    compiler = str(tmp_path / "gone" / "g++")
    if fault == "broken g++":  # it says its version and fails with the first file
        compiler = script(tmp_path / "g++", 'test "$1" = --version || exit 1; echo "g++ 12"')
    elif fault != "stale CXX":
        script(tmp_path / "clang++", "exit 1")
        monkeypatch.setenv("PATH", str(tmp_path))
        compiler = "g++"
    module = torch.nn.Linear(2, 2)
    with (
        config.patch({"cpp.cxx": (None, compiler)}),
        pytest.warns(
            UserWarning, match=r"torch\.compile does not work here .*: running with"
        ) as said,
    ):
        assert device.maybe_compile(module, CPU) is module
        assert device.maybe_compile(module, CPU) is module
    assert len(said) == 1 and "\n" not in str(said[0].message)
    assert "not compiled (torch.compile does not work here)" in device.describe(CPU, "fp32", True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_a_compiler_that_works_is_found_once(monkeypatch, forgetful):
    real, tried = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f: tried.append(f) or real(f))
    assert device.can_compile("cpu") and device.can_compile("cpu") and len(tried) == 1
    assert not device.can_compile("mps") and len(tried) == 1


def test_compilation_can_be_declined():
    module = torch.nn.Linear(2, 2)
    assert device.maybe_compile(module, CPU, wanted=False) is module


def test_the_description_names_everything(monkeypatch):
    monkeypatch.setattr(device, "has_fast_bf16", lambda _: False)
    line = device.describe(CPU, "fp32", False)
    assert line == (
        "device cpu, precision fp32 (no native bf16 here), not compiled, "
        f"{torch.get_num_threads()} threads"
    )


@pytest.mark.gpu
def test_a_gpu_is_preferred():
    assert device.best_device().type == "cuda"


FAULTS = """
import resource, torch
from nag.support import device

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        torch.empty(size).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = min(faults(2**24) for _ in range(3))
kept = device.keep_freed_memory()
print(kept, before, min(faults(2**24) for _ in range(8)), faults(2**27))
"""


@pytest.mark.slow
def test_freed_memory_is_kept_and_not_faulted_in_again():
    """Blocks of 64 MiB, 16,384 pages, twice, once the heap has settled; those of 512 MiB go
    back to the system as ever.
    """
    pytest.importorskip("resource")
    run = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    kept, without, within, beyond = run.stdout.split()
    if kept == "False":
        pytest.skip("no glibc here")
    assert int(within) < 1000 < min(int(without), int(beyond))
