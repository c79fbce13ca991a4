"""Where things are: every path is absolute, so notebooks and tests run from any folder."""

import os
from pathlib import Path


def _root() -> Path:
    """The repository: the one that DVC runs in, if it is a clone of this one, else the one that
    this file is in; DVC_ROOT may be of another project, whose stage imports nag or whose shell is
    used.
    """
    given = Path(os.environ.get("DVC_ROOT") or "nowhere")
    is_clone = (given / "nag" / "support" / "paths.py").is_file()
    return given if is_clone else Path(__file__).resolve().parents[2]


ROOT = _root()
DATA = ROOT / "data"
RESULTS = ROOT / "results"
WEIGHTS = RESULTS / "weights"
METRICS = RESULTS / "metrics"
FIGURES = RESULTS / "figures"
STUDIES = ROOT / "studies" / "results"
BUILD = ROOT / "build"
CHECKPOINTS = BUILD / "checkpoints"
