"""Where things are: every path is absolute, so notebooks and tests run from any folder."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("DVC_ROOT") or Path(__file__).resolve().parents[2])
DATA = ROOT / "data"
RESULTS = ROOT / "results"
WEIGHTS = RESULTS / "weights"
METRICS = RESULTS / "metrics"
FIGURES = RESULTS / "figures"
STUDIES = ROOT / "studies" / "results"
BUILD = ROOT / "build"
CHECKPOINTS = BUILD / "checkpoints"
