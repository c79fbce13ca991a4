"""Jinja2 templates whose numbers come from results: an unknown name, file or key is an error.

A template reads numbers with `result(name, key)`, `study(name, key)` or `number(file, key)` and
prints them with `| show(".2f")`, a number with its 95 % confidence interval if it has one; what a
ratio's interval says is `| outcome`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from companion.report.evidence import Reader
from companion.report.results import NAMES
from nag.support import uncertainty

FOLDER = Path(__file__).parent / "templates"


def show(x: Any, form: str = ".2f") -> str:
    """A number, with its interval if it is {"value", "low", "high"}."""
    return uncertainty.show(x, form) if isinstance(x, Mapping) else format(x, form)


def cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return " ".join(text.replace("|", "&#124;").split())


def environment(reader: Reader, folder: Path = FOLDER) -> Environment:
    """Templates of a folder that read their numbers through `reader`."""
    made = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals |= {name: getattr(reader, name) for name in ("has", "number", "result", "study")}
    made.globals["names"] = NAMES
    made.filters |= {"show": show, "cell": cell, "outcome": uncertainty.outcome}
    return made


def items(
    reader: Reader,
    template: str,
    wanted: Callable[[str], bool] = lambda name: True,
    folder: Path = FOLDER,
    **facts: Any,
) -> list[dict]:
    """Rows {id, text, evidence, ...} of a template of `{% call item(id, ...) %}text{% endcall %}`.

    Arguments of `item` by name are kept in its row; `evidence` lists the places of the text's
    numbers. An item that is not wanted has no text, and its numbers are not read."""
    rows = []

    def item(name: str, caller: Callable[[], str], **more: Any) -> str:
        with reader.recording() as evidence:
            text = " ".join(caller().split()) if wanted(name) else ""
        rows.append({"id": name, "text": text, "evidence": evidence, **more})
        return ""

    environment(reader, folder).get_template(f"sentences/{template}").render(item=item, **facts)
    return rows
