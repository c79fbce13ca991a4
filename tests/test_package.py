"""The package as people get it: the wheel, built from the source distribution, runs the README's
lines outside of the clone, with its weights and without what only the repository needs."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from clones import COLD, clone

from nag.support.paths import ROOT

BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('out'))"
NOT_NEEDED = ("companion", "diffusers", "dvc", "huggingface_hub", "matplotlib", "pandas")
TIMED = """
import sys, time, torch
start = time.process_time()
import nag
assert time.process_time() - start < 2, "import nag is slow"
"""
CHECKED = f"""
assert images.shape == (10, 1, 28, 28) and images.isfinite().all() and images.std() > 0.3
assert not set({NOT_NEEDED}) & set(sys.modules), sorted(set({NOT_NEEDED}) & set(sys.modules))
print(nag.__file__)
print(nag.__version__)
"""


def build(folder, hook):
    """What a frontend such as pip has the backend build in a folder."""
    run = subprocess.run(
        [sys.executable, "-c", BUILD, hook], cwd=folder, env=COLD, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return folder / "out" / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content in a folder of its own."""
    tmp = tmp_path_factory.mktemp("package")
    with tarfile.open(build(clone(tmp / "clone"), "build_sdist")) as archive:
        archive.extractall(tmp / "source", filter="data")
    (source,) = (tmp / "source").iterdir()
    with zipfile.ZipFile(build(source, "build_wheel")) as archive:
        archive.extractall(tmp / "installed")
    return tmp / "installed"


@pytest.mark.slow
def test_the_lines_of_the_readme_run_from_the_wheel_alone(installed, tmp_path):
    (code,) = re.findall(r"```python\n(import nag.*?)```", (ROOT / "README.md").read_text(), re.S)
    env = COLD | {"PYTHONPATH": str(installed)}
    run = subprocess.run(
        [sys.executable, "-c", TIMED + code + CHECKED],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    file, version = run.stdout.split()
    assert file.startswith(str(installed))
    assert (installed / f"noise_awareness_guidance-{version}.dist-info").is_dir()
    assert (installed / "nag/py.typed").is_file() and not (installed / "companion").exists()


def test_the_core_needs_few_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 8
