"""Sentences written by hand whose numbers come from the results: data/findings.md and the answers
of data/questions.md.

`{shift-sit sde-none/shift_late +.4f}` is the entry under that key of results/metrics/shift-sit.json
in that format, with its interval if it has one; `{quality-sit nag/fd/value divided by none/fd/value
.2f}` is a ratio of two numbers; a file called `studies:NAME` is studies/results/metrics/NAME.json.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from companion.report.evidence import Place
from nag.support.files import entry, read_json
from nag.support.paths import DATA, STUDIES

FIELD = re.compile(r"\{(\S+) ([^{}]+?)(?: divided by ([^{}]+?))? ([+\d.]*[feg])\}")


def with_interval(x: dict, form: str = ".2f") -> str:
    """A number {"value", "low", "high"} with its interval in brackets."""
    value, low, high = (format(x[end], form) for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def filled(text: str, folder: Path) -> tuple[str, list[Place]]:
    """The text with its numbers put in from a folder of results, and the places that they are from.

    Raises KeyError for a key that a file has not, FileNotFoundError for a missing file, ValueError
    for a field of another form."""
    found: dict[tuple[str, str], None] = {}

    def shown(field: re.Match) -> str:
        file, key, base, form = field.groups()
        stem = file.removeprefix("studies:")
        source, name = (folder, folder.name) if stem == file else (STUDIES, "studies/results")
        content = read_json(source / "metrics" / f"{stem}.json")
        found.update(
            dict.fromkeys((f"{name}/metrics/{stem}.json", part) for part in (key, base) if part)
        )
        value = entry(content, key)
        if base:
            return format(value / entry(content, base), form)
        return with_interval(value, form) if isinstance(value, dict) else format(value, form)

    done = FIELD.sub(shown, text)
    if left := re.search(r"[{}].{0,60}", done):
        raise ValueError(f"{left[0]!r} is no field such as {{file key .2f}}: mend it")
    return done, [{"file": file, "key": key} for file, key in found]


def items(source: Path, form: str) -> Iterator[tuple[str, ...]]:
    """The groups of the regular expression `form` in each item of a Markdown list; raises
    ValueError for an item that differs.
    """
    for bullet in source.read_text(encoding="utf-8").split("\n* ")[1:]:
        text = " ".join(bullet.split())
        if not (found := re.fullmatch(form, text)):
            raise ValueError(f"{source.name}: {text[:60]!r} is not of the form {form}: mend it")
        yield found.groups()


def findings(folder: Path, source: Path = DATA / "findings.md") -> list[dict]:
    """Rows {id, statement, paper, ours, evidence, notebooks, verdict, note}, one for each item of
    `source`.
    """
    rows = []
    for name, notebooks, text in items(source, r"(F\d+) \(([\d, ]+)\) (.*)"):
        statement, evidence = filled(text, folder)
        rows.append(
            {
                "id": name,
                "statement": statement,
                "paper": "not stated",
                "ours": None,
                "evidence": evidence,
                "notebooks": notebooks,
                "verdict": "found here",
                "note": "",
            }
        )
    return rows


def listed(rows: list[dict]) -> str:
    """The findings as a Markdown list, each with its row's name and its notebooks."""
    return "\n".join(
        f"* {row['statement']} ({row['id']}; notebook{'s' * (',' in row['notebooks'])} {row['notebooks']})"
        for row in rows
    )
