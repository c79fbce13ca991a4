"""Atomic writing: a killed run or a full disk leaves the old file or none, never half of one."""

import contextlib
import glob
import json
import os
import platform
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame


# What numpy raises for an npz file that is damaged or none
UNREADABLE = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    EOFError,
    OSError,
    MemoryError,
    SyntaxError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
HOST = re.sub(r"\W", "", platform.node())[:32]  # a number of a process means nothing elsewhere


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_alive(pid: str) -> bool:
    """Whether a process of this number may run here; only POSIX can ask without harm."""
    if os.name != "posix" or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` that replaces it when the block ends well.

    What a killed process of this machine left half written of the same file is removed. Raises
    OSError with advice if the file cannot be written."""
    path = Path(path)
    part = path.with_name(f".{os.getpid()}-{HOST}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f".*-{HOST}.{glob.escape(path.name)}"):
            if not _is_alive(other.name[1:].partition("-")[0]):
                other.unlink(missing_ok=True)
        yield part
        part.chmod(0o666 & ~_umask())  # some writers make their files private
        part.replace(path)
    except OSError as error:
        raise OSError(
            f"could not write {path}: {error.strerror or error}. Free some disk space or "
            "correct the rights of its folder, and run again; nothing written before is lost"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys and no NaN, atomically; raises ValueError if a number is not
    finite.
    """
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_csv(path: Path, table: "DataFrame") -> None:
    """Write a table as CSV, six significant digits, without its index, atomically."""
    with atomic(path) as part:
        table.to_csv(part, index=False, float_format="%.6g")


def write_torch(path: Path, content: object) -> None:
    """Write what `torch.load` reads, atomically; equal contents are equal bytes, whatever the
    file's name.

    Tensors go to the disk one by one, so nothing of the file is held in memory. Raises OSError with
    advice."""
    import torch  # here, since it takes seconds and only this function needs it

    # An open file, since to a name torch.save would write that name, too, and hide the reason of a
    # failure.
    with atomic(path) as part, open(part, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(
                error.__context__, OSError
            ):  # it cannot end its archive after a write that failed
                raise error.__context__ from None
            raise


def check_archive(path: Path) -> None:
    """Raise ValueError if a member of the zip archive `path` has another checksum than its entry
    says; any other file passes.

    `torch.load` leaves this out when it maps a file. The file is read once, a megabyte at a time.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        try:
            damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged} in it has another checksum")


def read_json(path: Path) -> Any:
    """Read a JSON file in any encoding of Unicode, with or without a byte order mark; raises
    FileNotFoundError or ValueError with advice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no results at {path}: run `dvc repro`, or the notebook that writes it"
        )
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is truncated or no JSON ({error}): delete it and run `dvc repro` again"
        ) from error


def entry(content: dict, key: str) -> Any:
    """What stands in a results file under a key such as "none/shift_late"; raises KeyError if
    nothing does.
    """
    for part in key.split("/"):
        content = content[part]
    return content
