"""What was found beyond the claims: the sentences of data/findings.md with numbers from the results, each a row of the ledger.

`{shift-sit sde-none/shift_late +.4f}` is the entry under that key of results/metrics/shift-sit.json in that format, with its
interval if it has one; `{quality-sit nag/fd/value divided by none/fd/value .2f}` is a ratio of two numbers; a file called
`studies:NAME` is studies/results/metrics/NAME.json.
"""

import re
from pathlib import Path

from nag.files import entry, read_json
from nag.paths import DATA
from nag.questions import STUDIES

FIELD = re.compile(r"\{(\S+) ([^{}]+?)(?: divided by ([^{}]+?))? ([+\d.]*[feg])\}")


def findings(folder: Path, source: Path = DATA / "findings.md") -> list[dict]:
    """Rows {id, statement, paper, ours, evidence: {file, key}, verdict, note}, one for each bullet of `source`.

    Evidence is relative to the results folder, that of studies to the repository, or else a notebook's name. Raises KeyError
    for a key that a file has not, FileNotFoundError for a missing file.
    """
    rows = []
    for bullet in source.read_text(encoding="utf-8").split("\n* ")[1:]:
        name, notebooks, text = re.fullmatch(r"(F\d+) \(([\d, ]+)\) (.*)", " ".join(bullet.split())).groups()
        files, keys = [], []

        def shown(field: re.Match, files: list = files, keys: list = keys) -> str:
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

        statement = FIELD.sub(shown, text)
        evidence = {"file": "; ".join(dict.fromkeys(files)), "key": "; ".join(dict.fromkeys(keys)), "notebooks": notebooks}
        rows.append({"id": name, "statement": statement, "paper": "not stated", "ours": None, "evidence": evidence,
                     "verdict": "found here", "note": ""})
    return rows


def listed(rows: list[dict]) -> str:
    """The findings as a Markdown list, each with its row's name and its notebooks."""
    return "\n".join(f"* {row['statement']} ({row['id']}; notebooks {row['evidence']['notebooks']})" for row in rows)
