"""What the command lines share: any terminal can show what they print, and what they are given and
cannot use ends with exit code 2, the usage and one sentence."""

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Settings = TypeVar("Settings", bound=BaseModel)


def any_terminal() -> None:
    """Show characters that the terminal does not have as "?", rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def sentence(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, ValidationError):
        faults = [(".".join(map(str, f["loc"])), f["msg"]) for f in error.errors()]
        return "; ".join(f"{place}: {what}" if place else what for place, what in faults)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return " ".join(str(error).split())


@contextmanager
def refusing(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn what the block raises about its input into the parser's usage, a sentence and code 2."""
    any_terminal()
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        parser.error(sentence(error))


@contextmanager
def one_sentence(module: str) -> Iterator[None]:
    """End `python -m module` with exit code 1 and a sentence if the block raises about its files or
    numbers, rather than with a traceback."""
    try:
        yield
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"python -m {module}: {sentence(error)}")


def _once(pairs: list[tuple[str, object]]) -> dict:
    """A mapping of these pairs; raises ValueError for a name that comes twice."""
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} comes twice: leave one of them")
    return dict(pairs)


def settings(
    module: str, kind: type[Settings], about: str, arguments: Sequence[str] | None = None
) -> Settings:
    """The settings in the JSON file that the command line of `python -m module` names.

    Exits with code 2 if the file is missing or its settings are others."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    fields = ", ".join(kind.model_fields)
    parser.add_argument(
        "spec", type=Path, help=f"JSON file with {kind.__name__}'s fields: {fields}"
    )
    path = parser.parse_args(arguments).spec
    with refusing(parser):
        try:
            content = json.loads(path.read_bytes(), object_pairs_hook=_once)
            return kind.model_validate(content)
        except RecursionError:
            raise ValueError(
                f"{path} is nested too deeply: write {kind.__name__}'s fields"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}: {sentence(error)}") from error
