"""Numbers and where they are from: every number of a sentence is read here, by file and key."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nag.support.files import entry, read_json
from nag.support.paths import ROOT

Place = dict[str, str]  # {"file": relative to the repository, "key": a path of names in it}


class Reader:
    """Reads numbers from the repository's results and remembers which ones it was asked for.

    `load` gives the content of a JSON file by its path relative to the repository."""

    def __init__(self, load: Callable[[str], Any] | None = None, root: Path = ROOT):
        self.root = root
        self._load = load or (lambda file: read_json(root / file))
        self._contents: dict[str, Any] = {}
        self._asked: dict[tuple[str, str], None] = {}

    def has(self, file: str) -> bool:
        """Whether a JSON file is there."""
        try:
            self.content(file)
        except FileNotFoundError:
            return False
        return True

    def content(self, file: str) -> Any:
        """All of a JSON file; raises FileNotFoundError or ValueError with advice."""
        if file not in self._contents:
            self._contents[file] = self._load(file)
        return self._contents[file]

    def number(self, file: str, key: str) -> Any:
        """What a results file has under a key such as "none/shift_late"; raises KeyError."""
        try:
            found = entry(self.content(file), key)
        except (KeyError, TypeError):
            raise KeyError(f"{file} has nothing under {key!r}: correct the key") from None
        self._asked[file, key] = None
        return found

    def result(self, name: str, key: str) -> Any:
        """A number of results/metrics/NAME.json."""
        return self.number(f"results/metrics/{name}.json", key)

    def study(self, name: str, key: str) -> Any:
        """A number of studies/results/metrics/NAME.json."""
        return self.number(f"studies/results/metrics/{name}.json", key)

    @contextmanager
    def recording(self) -> Iterator[list[Place]]:
        """A list that holds, after the block, the places that were read in it, each once."""
        outer, self._asked = self._asked, {}
        places: list[Place] = []
        try:
            yield places
        finally:
            places += [{"file": file, "key": key} for file, key in self._asked]
            self._asked = outer | self._asked


def check(evidence: Iterable[Place], root: Path = ROOT) -> None:
    """Raise FileNotFoundError or KeyError if a place does not exist."""
    reader = Reader(root=root)
    for place in evidence:
        reader.number(place["file"], place["key"])


def by_file(evidence: Iterable[Place], depth: int | None = None) -> dict[str, list[str]]:
    """{file: keys}, each key cut to its first `depth` names and given once."""
    keys: dict[str, dict[str, None]] = {}
    for place in evidence:
        keys.setdefault(place["file"], {})["/".join(place["key"].split("/")[:depth])] = None
    return {file: list(of) for file, of in keys.items()}
