"""Sentences written by hand whose numbers come from the results: data/findings.md and the answers of data/questions.md.

`{shift-sit sde-none/shift_late +.4f}` is the entry under that key of results/metrics/shift-sit.json in that format, with its
interval if it has one; `{quality-sit nag/fd/value divided by none/fd/value .2f}` is a ratio of two numbers; a file called
`studies:NAME` is studies/results/metrics/NAME.json.
"""

import re
from pathlib import Path

from nag.files import entry, read_json
from nag.paths import DATA, ROOT

STUDIES = ROOT / "studies" / "results"
FIELD = re.compile(r"\{(\S+) ([^{}]+?)(?: divided by ([^{}]+?))? ([+\d.]*[feg])\}")


def filled(text: str, folder: Path) -> tuple[str, dict]:
    """The text with its numbers put in from a folder of results, and where they are from: {"file", "key"}.

    Files are relative to the results folder, those of studies to the repository. Raises KeyError for a key that a file has not,
    FileNotFoundError for a missing file.
    """
    files, keys = [], []

    def shown(field: re.Match) -> str:
        file, key, base, form = field.groups()
        stem = file.removeprefix("studies:")
        of_study = stem != file
        content = read_json((STUDIES if of_study else folder) / "metrics" / f"{stem}.json")
        files.append("studies/results/" * of_study + f"metrics/{stem}.json")
        keys.extend(filter(None, [key, base]))
        value = entry(content, key)
        if base:
            return format(value / entry(content, base), form)
        if not isinstance(value, dict):
            return format(value, form)
        value, low, high = (format(value[end], form) for end in ("value", "low", "high"))
        return f"{value} [{low}, {high}]"

    done = FIELD.sub(shown, text)
    return done, {"file": "; ".join(dict.fromkeys(files)), "key": "; ".join(dict.fromkeys(keys))}


def bullets(source: Path) -> list[str]:
    """The items of a Markdown list, each on one line."""
    return [" ".join(bullet.split()) for bullet in source.read_text(encoding="utf-8").split("\n* ")[1:]]


def findings(folder: Path, source: Path = DATA / "findings.md") -> list[dict]:
    """Rows {id, statement, paper, ours, evidence: {file, key, notebooks}, verdict, note}, one for each bullet of `source`."""
    rows = []
    for bullet in bullets(source):
        name, notebooks, text = re.fullmatch(r"(F\d+) \(([\d, ]+)\) (.*)", bullet).groups()
        statement, evidence = filled(text, folder)
        rows.append({"id": name, "statement": statement, "paper": "not stated", "ours": None,
                     "evidence": evidence | {"notebooks": notebooks}, "verdict": "found here", "note": ""})
    return rows


def listed(rows: list[dict]) -> str:
    """The findings as a Markdown list, each with its row's name and its notebooks."""
    return "\n".join(f"* {row['statement']} ({row['id']}; notebooks {row['evidence']['notebooks']})" for row in rows)
