"""Remove what a killed DVC leaves in its lock file; nothing that a live process holds is touched.

DVC notes who reads and writes which output in .dvc/tmp/rwlock. Killed while it writes the file, it
leaves half a JSON text there, and every later `dvc repro` stops at it. Killed elsewhere, it leaves
entries with its process number, which another process may have by now.

    python -m companion.pipeline.locks
"""

import json
import os
from pathlib import Path

import psutil
import zc.lockfile

from companion.pipeline.root import root

ROOT = root()


def _started_before(pid: int, moment: float) -> bool:
    """Whether a process of this number is alive that was there at `moment`, in seconds of Unix."""
    try:
        return psutil.Process(pid).create_time() <= moment + 1
    except psutil.Error:
        return False


def _running(root: Path) -> list[int]:
    """Numbers of the other live processes that run DVC in this repository."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words, cwd = process.info["cmdline"] or [], process.info["cwd"]
        is_dvc = any(Path(word).name == "dvc" for word in words[:2]) or words[1:3] == ["-m", "dvc"]
        if is_dvc and cwd and Path(cwd).resolve().is_relative_to(root.resolve()):
            found.append(process.info["pid"])
    return sorted(set(found) - {os.getpid()})


def _read(path: Path) -> dict | None:
    """The lock file's content, None if it is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for info in _infos(content):
            int(info["pid"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return content


def _infos(content: dict) -> list[dict]:
    readers = [info for infos in content.get("read", {}).values() for info in infos]
    return [*readers, *content.get("write", {}).values()]


def clear(root: Path = ROOT) -> str:
    """Remove a broken lock file, or the entries of dead processes in it; says what was done.

    The answer is "" if there was nothing to do. A broken file is left alone while another DVC runs
    in the repository, since its entries were in it.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.is_file():
        return ""
    try:
        guard = zc.lockfile.LockFile(str(path.with_name("rwlock.lock")))
    except zc.lockfile.LockError:
        return ""  # a live DVC is writing the file at this moment
    try:
        content = _read(path)
        if content is None:
            if running := _running(root):
                return (
                    f"{path} is broken, but process {running[0]} runs DVC here: wait for it to end "
                    "(or stop it), then run this again."
                )
            path.unlink()
            return f"Removed {path}, which a killed DVC had left half written."
        moment = path.stat().st_mtime
        dead = {i["pid"] for i in _infos(content) if not _started_before(int(i["pid"]), moment)}
        if not dead:
            return ""
        kept = {
            "write": {k: i for k, i in content.get("write", {}).items() if i["pid"] not in dead},
            "read": {
                k: infos
                for k, all_infos in content.get("read", {}).items()
                if (infos := [i for i in all_infos if i["pid"] not in dead])
            },
        }
        part = path.with_suffix(".part")
        part.write_text(json.dumps(kept), encoding="utf-8")
        part.replace(path)
        return f"Removed the locks of dead processes ({', '.join(map(str, sorted(dead)))})."
    finally:
        guard.close()


if __name__ == "__main__":
    if done := clear():
        print(done)
