"""The repository that stages run in: DVC's own word for it, unless that is of another project."""

import os
from pathlib import Path


def root() -> Path:
    """DVC_ROOT if it is a clone of this repository or the current folder is in it, else the
    repository that this file is in.

    DVC sets DVC_ROOT for its stages; a shell or an editor may have it from another project."""
    here = Path(__file__).resolve().parents[2]
    given = Path(os.environ.get("DVC_ROOT") or here)
    is_clone = (given / "companion" / "pipeline").is_dir()
    is_around = Path.cwd().resolve().is_relative_to(given.resolve())
    return given if is_clone or is_around else here
