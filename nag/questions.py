"""What the studies answer: the questions that the paper leaves open, and the claims that need a study.

Every study's notebook composes its sentences from its own numbers and writes them beside those; here they are only gathered, into
studies/answers.json, so that the main pipeline can read them without depending on hours of study.
"""

from pathlib import Path

from nag.files import read_json, write_json
from nag.paths import DATA, ROOT

STUDIES = ROOT / "studies" / "results"
ANSWERS = ROOT / "studies" / "answers.json"
OPEN = "not run yet"


def collect(folder: Path = STUDIES) -> dict[str, list[dict]]:
    """{id of a question or claim: [{"sentence", "key", "file", "figure", maybe "verdict"}, ...]} from a folder of study results.

    Files and figures are relative to the repository. Raises KeyError for evidence that is not under its key.
    """
    found: dict[str, list[dict]] = {}
    for path in sorted((folder / "metrics").glob("*.json")):
        content = read_json(path)
        for name, answer in content.get("answers", {}).items():
            value = content
            for part in answer["key"].split("/"):
                value = value[part]
            where = {"file": path.relative_to(ROOT).as_posix(),
                     "figure": (folder / answer["figure"]).relative_to(ROOT).as_posix()}
            found.setdefault(name.split(",")[0], []).append(answer | where)
    return found


def write_answers() -> None:
    """Gather the studies' answers into studies/answers.json."""
    write_json(ANSWERS, collect())


def questions(answers: dict[str, list[dict]]) -> list[dict]:
    """Rows {id, statement, paper, ours, evidence: {file, key}, verdict, note, figures}, one for each of data/questions.json."""
    rows = []
    for entry in read_json(DATA / "questions.json"):
        mine = answers.get(entry["id"], [])
        rows.append({
            "id": entry["id"], "statement": entry["question"], "paper": "left open", "ours": None,
            "evidence": {name: "; ".join(answer[name] for answer in mine) for name in ("file", "key")},
            "verdict": "answered" if mine else OPEN, "note": " ".join(answer["sentence"] for answer in mine),
            "figures": [answer["figure"] for answer in mine]})
    return rows


def table(rows: list[dict]) -> str:
    """The questions and their answers as Markdown."""
    lines = ["| question | answer | figure |", "|---|---|---|"]
    for row in rows:
        figures = ", ".join(f"[{Path(figure).stem}]({figure})" for figure in row["figures"])
        answer = row["note"].replace("|", "&#124;") or f"*{OPEN}*"
        lines.append(f"| {row['id']}. {row['statement']} | {answer} | {figures or '–'} |")
    return "\n".join(lines)
