"""The data that a stage reads, as they were at its start: DVC looks at them at its end only, and
would record later ones with the results of the first.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from companion.pipeline.fingerprint import FOLDER

SMALL = 2**26  # bytes; of larger files the date counts, not the content

State = dict[Path, str]


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def _state(path: Path) -> str:
    """What a file is like; "" if it is not there."""
    try:
        found = path.stat()
        if found.st_size <= SMALL:
            return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"


def at_start(root: Path) -> State:
    """The files that the stage depends on which DVC is running, named in DVC_STAGE; none outside of
    DVC. Fingerprints are left out, which are of the code, and files of parameters, of which other
    entries may change.
    """
    file, _, name = os.environ.get("DVC_STAGE", "").rpartition(":")
    if not name:
        return {}
    from dvc.dependency import ParamsDependency  # here, since a run by hand does not need it
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            stage = repo.stage.load_one(str(root / (file or "dvc.yaml")), name)
            deps = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
            paths = [Path(dep.fs_path) for dep in deps if dep.protocol == "local"]
    except DvcException:  # such a stage cannot be recorded either
        return {}
    files = (file for path in paths for file in _files(path))
    return {file: _state(file) for file in files if root / FOLDER not in file.parents}


def edited(before: State) -> str:
    """A sentence if one of these files is another one now; empty if not."""
    names = [str(file) for file, state in before.items() if _state(file) != state]
    if not names:
        return ""
    return (
        f"{', '.join(names[:3])}{' and others' if names[3:] else ''} changed while the stage ran: "
        "its results may be of either content, so they are not recorded. Run `dvc repro` again."
    )
