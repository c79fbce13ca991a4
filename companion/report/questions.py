"""The questions that the paper leaves open, and what the studies answer to them and to the claims.

A study's notebook writes answers/NAME.json from the numbers in metrics/NAME.json. Here the answers
are only gathered, into studies/answers.json, so that the main pipeline can read them without
depending on hours of study or days of ImageNet. The main pipeline's own answers, and the sentences
that sum each question up, are templates."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from companion.report import rendering
from companion.report.evidence import Reader
from nag.support.files import entry, read_json, write_json
from nag.support.paths import ROOT, STUDIES

ANSWERS = ROOT / "studies" / "answers.json"
ANSWERING = (STUDIES, ROOT / "imagenet" / "results", ROOT / "imagenet" / "finetune" / "results")
OPEN = "not run yet"


def collect(*folders: Path) -> dict[str, list[dict]]:
    """{id of a question or claim: [{"sentence", "brief", "key", "file", "figure", "sha256", ...}]}
    of folders of results.

    "sentence" is the answer with its numbers and intervals, "brief" its short form; an answer to a
    claim has a "verdict", and a "scale" if it is the paper's. Files and figures are relative to the
    repository; the hash makes what is gathered change with any number of a study. Raises KeyError
    for evidence that is not under its key, FileNotFoundError for answers without metrics."""
    found: dict[str, list[dict]] = {}
    files = (path for folder in folders for path in (folder / "answers").glob("*.json"))
    for path in sorted(files, key=lambda path: path.stem):
        results = path.parents[1]
        metrics = results / "metrics" / path.name
        numbers = read_json(metrics)
        for name, answer in read_json(path).items():
            try:
                entry(numbers, answer["key"])
            except (KeyError, TypeError):
                raise KeyError(
                    f"{path} names {answer['key']!r} as evidence, which {metrics} does not have"
                ) from None
            where = {
                "file": metrics.relative_to(ROOT).as_posix(),
                "figure": (results / answer["figure"]).relative_to(ROOT).as_posix(),
                "sha256": hashlib.sha256(metrics.read_bytes()).hexdigest(),
            }
            found.setdefault(name.split(",")[0], []).append(answer | where)
    return found


def write_answers() -> None:
    """Gather the answers of the studies, and of the pipelines of imagenet/ if they have run."""
    write_json(ANSWERS, collect(*ANSWERING))


def memories(overhead: dict) -> dict[str, float | None]:
    """Memory of each arm of overhead.json over the unguided one's, None if not measured."""
    base = overhead["rows"][0]["memory"]
    return {
        row["arm"]: None if row["memory"] is None else row["memory"] / base
        for row in overhead["rows"]
    }


def own_answers(reader: Reader, families: Sequence[str]) -> dict[str, list[dict]]:
    """The main pipeline's parts of questions 5 and 10, as `collect` gives those of studies."""
    overhead = reader.content("results/metrics/overhead.json")
    auto = {family: reader.content(f"results/metrics/auto-{family}.json") for family in families}
    found: dict[str, list[dict]] = {}
    for row in rendering.items(
        reader, "own_answers.md.j2", overhead=overhead, memory=memories(overhead), auto=auto
    ):
        found.setdefault(row["id"], []).append(
            {name: row[name] for name in ("file", "key", "figure")}
            | {"sentence": row["text"], "brief": row["text"]}
        )
    return found


def questions(
    reader: Reader,
    answers: dict[str, list[dict]],
    own: dict[str, list[dict]] | None = None,
) -> list[dict]:
    """Rows {id, statement, verdict, answer, note, brief, figures, evidence}, one for each question.

    `own` are answers of the main pipeline, a part where a study has not run. "answer" is the
    summary, "note" has all numbers, "brief" the most important; the evidence is that of all.
    Raises FileNotFoundError or KeyError for a number that the results do not have."""
    rows = []
    for row in rendering.items(reader, "questions.md.j2", wanted=lambda name: name in answers):
        part, studied = (found.get(row["id"], []) for found in (own or {}, answers))
        mine = part + studied
        rows.append(
            {
                "id": row["id"],
                "statement": row["question"],
                "verdict": "answered"
                if studied
                else f"in part, its study is {OPEN}"
                if part
                else OPEN,
                "answer": row["text"],
                "note": " ".join(found["sentence"] for found in mine),
                "brief": " ".join(found["brief"] for found in mine),
                "figures": list(dict.fromkeys(found["figure"] for found in mine)),
                "evidence": [{name: found[name] for name in ("file", "key")} for found in mine]
                + row["evidence"],
            }
        )
    return rows
