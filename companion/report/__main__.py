"""`python -m companion.report VERB`: what the Makefile's verbs and the pipelines call."""

import sys

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


def main(arguments: list[str]) -> None:
    """Run one verb; raises SystemExit with one clear message if it fails."""
    if len(arguments) != 1 or arguments[0] not in VERBS:
        listed = "\n".join(
            f"  {name:8} {run.__doc__.splitlines()[0]}" for name, run in VERBS.items()
        )
        raise SystemExit(f"usage: python -m companion.report VERB\n{listed}")
    try:
        VERBS[arguments[0]]()
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"{arguments[0]}: {error}") from error
    except KeyError as error:  # its text is the repr of its message
        raise SystemExit(f"{arguments[0]}: {error.args[0]}") from error
    except TemplateError as error:
        place = getattr(error, "lineno", None)
        raise SystemExit(f"{arguments[0]}: a template is wrong: {error} {place or ''}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
