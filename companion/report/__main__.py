"""`python -m companion.report VERB`: what the Makefile's verbs and the pipelines call."""

import sys
import traceback
from pathlib import Path

from jinja2 import TemplateError

from companion.report import pages, questions, results


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


def main(arguments: list[str]) -> None:
    """Run one verb; raises SystemExit with one clear message if it fails."""
    if len(arguments) != 1 or arguments[0] not in VERBS:
        listed = [
            f"  {name:8} {(run.__doc__ or '').partition(chr(10))[0]}" for name, run in VERBS.items()
        ]
        raise SystemExit("\n".join(["usage: python -m companion.report VERB", *listed]))
    try:
        VERBS[arguments[0]]()
    except KeyError as error:  # its text is the repr of its message
        raise SystemExit(f"{arguments[0]}: {error.args[0]}{_line(error)}") from error
    except (OSError, ValueError, TemplateError) as error:
        raise SystemExit(f"{arguments[0]}: {error}{_line(error)}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
