"""Files published by others that are placed by hand: where they are looked for, and whether they
are the published ones.

imagenet/files.csv lists them. A hash or size is in it only if a public source states it; where the
field is empty, the file is taken as it is, and `record` puts what it was into the results."""

import contextlib
import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nag.checkpoint import files_of
from nag.support.files import write_json
from nag.support.paths import BUILD, DATA, ROOT
from nag.support.weight_files import joined, sha256

TABLE = ROOT / "imagenet" / "files.csv"
WEIGHTS = DATA / "weights"
CHECKSUMS = BUILD / "checksums"
SETTLED = 2 * 10**9  # ns; some file systems date by two seconds


def table() -> dict[str, dict[str, str]]:
    """The list of files: {name: {"name", "file", "bytes", "sha256", "source", "purpose",
    "licence"}}, "" where not known.
    """
    with open(TABLE, newline="", encoding="utf-8-sig") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def remembered(files: Sequence[Path], what: str, compute: Callable[[], str]) -> str:
    """The text `compute` gives on the content of files, named `what`, computed again only if one
    has moved or changed.

    A file counts as unchanged while its size and both its times are: the one of writing can be set
    to anything, the one of the last change cannot. Files changed a moment ago are not remembered,
    since another change might get the same time."""
    state, newest = hashlib.sha256(what.encode()), 0
    for file in files:
        stat = file.stat()
        state.update(os.fsencode(file.resolve()))
        state.update(f"\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\0".encode())
        newest = max(newest, stat.st_mtime_ns, stat.st_ctime_ns)
    # Not beside the files: they may lie in a folder that is read-only, or that DVC watches
    name = hashlib.sha256(b"\0".join(os.fsencode(file.resolve()) for file in files)).hexdigest()
    note = CHECKSUMS / f"{what}-{name[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_bytes())
        if known["state"] == state.hexdigest():
            return str(known["found"])
    found = compute()
    if time.time_ns() - newest > SETTLED:
        write_json(note, {"state": state.hexdigest(), "found": found})
    return found


def _digest(path: Path) -> str:
    return remembered([path], "sha256", lambda: sha256(path))


def _verify(path: Path, entry: dict[str, str]) -> None:
    size = path.stat().st_size
    if entry["bytes"] and size != int(entry["bytes"]):
        raise ValueError(
            f"{path} has {size:,} bytes, not the {int(entry['bytes']):,} of the published file: "
            f"fetch it again from {entry['source']}"
        )
    if entry["sha256"]:
        digest = _digest(path)
        if not digest.startswith(entry["sha256"]):
            raise ValueError(
                f"{path} has the SHA-256 {digest}, not the published {entry['sha256']}: "
                f"fetch it again from {entry['source']}"
            )


def find(name: str, folder: Path | str | None = None, download: bool = False) -> Path:
    """Path of the file (or folder) listed as `name`, in `folder`, data/weights/ or torch.hub's
    folder of checkpoints.

    A known size and hash are verified. With `download`, a file that is nowhere is fetched to
    torch.hub's folder, if its source is the file itself and its hash is known. Raises ValueError
    for an unknown name or a file that differs from the published one, FileNotFoundError saying what
    to put where."""
    entries = table()
    if name not in entries:
        raise ValueError(f"unknown file {name!r}: choose one of {sorted(entries)}")
    entry, hub = entries[name], Path(torch.hub.get_dir()) / "checkpoints"
    places = [WEIGHTS, hub] if folder is None else [ROOT / folder, WEIGHTS, hub]
    for place in places:
        path = place / entry["file"]
        if path.is_dir():
            return path
        if path.is_file():
            _verify(path, entry)
            return path
    known = f", SHA-256 {entry['sha256']}" if entry["sha256"] else ""
    missing = FileNotFoundError(
        f"no {entry['file']} ({entry['purpose']}): fetch it from {entry['source']}{known}, "
        f"and put it into {places[0]}"
    )
    if not (download and entry["sha256"] and entry["source"].endswith(entry["file"])):
        raise missing
    try:
        hub.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            entry["source"], str(hub / entry["file"]), entry["sha256"], progress=False
        )
    except (OSError, RuntimeError) as error:  # offline, or another file than the published one
        raise missing from error
    return hub / entry["file"]


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the weights in a folder of diffusers, remembered until a file
    changes; one named as a published file must be that, where its hash is known.

    Raises FileNotFoundError, or ValueError for another file under a published name.
    """
    path = Path(path)
    if path.is_dir():
        return joined([_digest(file) for file in files_of(path)])
    if not path.is_file():
        raise FileNotFoundError(
            f"no file at {path}: check the path; imagenet/README.md says what to place where"
        )
    for entry in table().values():
        if entry["file"] == path.name:
            _verify(path, entry)
    return _digest(path)


def record(path: Path) -> dict[str, str | int]:
    """What a result was computed from: {"file": its name, "bytes", "sha256"}; raises as `digest`
    does.
    """
    return {"sha256": digest(path), "file": Path(path).name, "bytes": Path(path).stat().st_size}
