"""`python -m companion.report VERB`: what the Makefile's verbs and the pipelines call."""

import argparse
import traceback
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from companion.report import pages, questions, results
from nag.support.commands import any_terminal


def docs() -> None:
    """Gather the studies' answers and write README.md and docs/ from the results."""
    questions.write_answers()
    pages.write()


VERBS = {
    "docs": docs,
    "answers": questions.write_answers,
    "close": results.close,
}


def _line(error: Exception) -> str:
    """The line of the innermost template that was being filled, if one was."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(".j2")
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; raises SystemExit with one clear message if it fails."""
    parser = argparse.ArgumentParser(prog="python -m companion.report")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, run in VERBS.items():
        verbs.add_parser(name, help=(run.__doc__ or "").partition("\n")[0])
    verb = parser.parse_args(arguments).verb
    any_terminal()
    try:
        VERBS[verb]()
    except KeyError as error:  # its text is the repr of its message
        raise SystemExit(f"{verb}: {error.args[0]}{_line(error)}") from error
    except (OSError, ValueError, TemplateError) as error:
        raise SystemExit(f"{verb}: {error}{_line(error)}") from error


if __name__ == "__main__":
    main()
