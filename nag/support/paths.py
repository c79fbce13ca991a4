"""Where things are: every path is absolute, so notebooks and tests run from any folder.

In a clone they are in it. An installed package has no folder of its own to write to: there it is
the current one."""

import os
from pathlib import Path


def _root() -> Path:
    """The repository: the one that DVC runs in, if it is a clone of this one, else the one that
    this file is in, else the current folder; DVC_ROOT may be of another project, whose stage
    imports nag or whose shell is used.
    """
    given = Path(os.environ.get("DVC_ROOT") or "nowhere")
    is_clone = (given / "nag" / "support" / "paths.py").is_file()
    if is_clone:
        return given
    here = Path(__file__).resolve().parents[2]
    return here if (here / "dvc.yaml").is_file() else Path.cwd()


ROOT = _root()
DATA = ROOT / "data"
RESULTS = ROOT / "results"
WEIGHTS = RESULTS / "weights"
METRICS = RESULTS / "metrics"
FIGURES = RESULTS / "figures"
STUDIES = ROOT / "studies" / "results"
BUILD = ROOT / "build"
CHECKPOINTS = BUILD / "checkpoints"
