"""Evidence of a row of the ledger: places {"file", "key"}, the file relative to the repository, the
key a path of names in it.
"""

from collections.abc import Iterable
from pathlib import Path

from nag.support.files import entry, read_json
from nag.support.paths import ROOT

Place = dict[str, str]


def places(files: Iterable[str], *keys: str) -> list[Place]:
    """Every key in every file."""
    return [{"file": file, "key": key} for file in files for key in keys]


def check(evidence: Iterable[Place], root: Path = ROOT) -> None:
    """Raise FileNotFoundError or KeyError, which name it, if a place is not there."""
    for place in evidence:
        entry(read_json(root / place["file"]), place["key"])


def links(evidence: Iterable[Place], depth: int | None = None) -> str:
    """Markdown links to the files, each with its keys (their first `depth` names); "–" without any."""
    keys: dict[str, dict[str, None]] = {}
    for place in evidence:
        keys.setdefault(place["file"], {})["/".join(place["key"].split("/")[:depth])] = None
    return (
        ", ".join(
            f"[{Path(file).stem}]({file}): {', '.join(f'`{key}`' for key in of)}"
            for file, of in keys.items()
        )
        or "–"
    )
