"""Seeds every test, keeps plots off the screen, skips GPU tests without a GPU, runs slow tests only
with --run-slow, and then with kernels and stages kept warm (see warm.py).
"""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import smaller
import torch

matplotlib.use("Agg")


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--cold", action="store_true", help="start every kernel and stage from nothing"
    )


def pytest_configure(config):
    """One warm server for all workers; on Linux only, elsewhere libraries mind a fork."""
    if (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):  # as in a shell's background: tests send it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    slow, worker = config.getoption("--run-slow"), hasattr(config, "workerinput")
    if slow and not worker and not config.getoption("--cold") and sys.platform == "linux":
        stack = contextlib.ExitStack()
        config.add_cleanup(stack.close)
        stack.enter_context(warm_python(stack.enter_context(tempfile.TemporaryDirectory())))


@contextlib.contextmanager
def warm_python(folder):
    """In `folder`, named by WARM_PYTHON: `python` and `dvc` that come from a warm server, and
    Jupyter's kernel python3, found before any other."""
    client = [sys.executable, "-IS", str(Path(__file__).with_name("warm.py")), f"{folder}/socket"]
    for name, more in (("python", []), ("dvc", ["-m", "dvc"])):
        script = Path(folder, name)
        script.write_text(f'#!/bin/sh\nexec {shlex.join([*client, *more])} "$@"\n')
        script.chmod(0o755)
    kernel = Path(folder, "kernels/python3/kernel.json")
    kernel.parent.mkdir(parents=True)
    argv = [*client, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "warm", "language": "python"}))
    server = subprocess.Popen(
        [sys.executable, "-EP", client[2], "serve", client[3]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches those who wait for a process, and they pass it on
    )
    assert server.stdout.readline() == b"ready\n", "the warm server has not started"
    os.environ |= {"WARM_PYTHON": folder, "JUPYTER_PATH": folder}
    yield
    server.stdin.close()
    server.wait()


def pytest_collection_modifyitems(config, items):
    for item in items:
        cell = getattr(item, "cell", None)  # of a notebook
        if cell is not None and "parameters" in cell.metadata.get("tags", []):
            cell.source += smaller.source(item.path.stem)
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: add --run-slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA here"))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same global generators, alone or in the whole suite."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def on_cpu(monkeypatch):
    """Training and sampling run on the CPU even where there is a GPU: only there is bitwise
    equality promised.
    """
    for module in ("nag.train", "companion.experiments.generate"):
        monkeypatch.setattr(f"{module}.best_device", lambda: torch.device("cpu"))


@pytest.fixture
def warm_children(monkeypatch):
    """What a test starts by `sys.executable` is warm, where `warm_python` is there."""
    if folder := os.environ.get("WARM_PYTHON"):
        monkeypatch.setattr(sys, "executable", f"{folder}/python")


@pytest.fixture
def tiny_disk():
    """Within `with tiny_disk():` any file may have 4 kB: writing fails in the writer itself, as on
    a full disk.

    Only there, since the limit holds for pytest's own output too where that goes to a file.
    """
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited():
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    return limited


@pytest.fixture
def tiny():
    """Builds a DiT of width 32 and depth 1; `awake` replaces adaLN-zero's silent start by random
    weights.
    """
    from nag.models import DiT, ModelConfig

    def build(awake=True, **sizes):
        net = DiT(
            ModelConfig(
                **{"input_size": 8, "width": 32, "depth": 1, "heads": 2, "classes": 3} | sizes
            )
        )
        if awake:
            for parameter in net.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.2)
        return net.eval()

    return build
