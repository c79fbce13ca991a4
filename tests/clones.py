"""A clone of the working tree for tests that run whole pipelines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from nag.support.paths import ROOT

# What DVC, pytest and conftest.py set for this process is not the clone's.
COLD = {
    k: v
    for k, v in os.environ.items()
    if k not in ("DVC_ROOT", "DVC_STAGE", "MPLBACKEND", "GIT_DIR", "JUPYTER_PATH", "WARM_PYTHON")
}
COLD |= {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
}
# The same with a warm `python`, `dvc` and kernel, where conftest.py has started them.
ENV = COLD
if warm := os.environ.get("WARM_PYTHON"):
    path = f"{warm}{os.pathsep}{COLD['PATH']}"
    ENV = COLD | {"PATH": path, "JUPYTER_PATH": warm, "WARM_PYTHON": warm}


def clone(folder):
    """The working tree as git would take it, so that uncommitted work is tested too, as a
    repository of its own.
    """
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "tiny"]):
        subprocess.run(["git", *command], cwd=folder, check=True, env=ENV)
    return folder


def dvc(folder, *arguments, env=ENV):
    command = [shutil.which("dvc", path=env["PATH"]), *arguments]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout
