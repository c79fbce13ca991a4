"""What the studies answer: the questions that the paper leaves open, and the claims that need a study.

Every study's notebook composes its sentences from its own numbers and writes them beside those; here they are only gathered, into
studies/answers.json, so that the main pipeline can read them without depending on hours of study. Its own part is `automatic`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from nag.files import entry, read_json, write_json
from nag.paths import DATA, ROOT

STUDIES = ROOT / "studies" / "results"
ANSWERS = ROOT / "studies" / "answers.json"
OPEN = "not run yet"
RULES = ("mean", "spread", "schedule")  # of nag.autoweight


def collect(folder: Path = STUDIES) -> dict[str, list[dict]]:
    """{id of a question or claim: [{"sentence", "brief", "key", "file", "figure", maybe "verdict"}, ...]} of a folder of results.

    "sentence" is the answer with its numbers and intervals, "brief" what of it a table has room for. Files and figures are
    relative to the repository. Raises KeyError for evidence that is not under its key.
    """
    found: dict[str, list[dict]] = {}
    for path in sorted((folder / "metrics").glob("*.json"), key=lambda path: path.stem):
        content = read_json(path)
        for name, answer in content.get("answers", {}).items():
            entry(content, answer["key"])
            where = {"file": path.relative_to(ROOT).as_posix(),
                     "figure": (folder / answer["figure"]).relative_to(ROOT).as_posix()}
            found.setdefault(name.split(",")[0], []).append(answer | where)
    return found


def write_answers() -> None:
    """Gather the studies' answers into studies/answers.json."""
    write_json(ANSWERS, collect())


def automatic(title: str, found: dict) -> dict[str, str]:
    """Question 10 for the network called `title`, {"sentence", "brief"}, from the contents of its auto-FAMILY.json.

    Of the schedule w is the mean.
    """
    over, near, schedule = found["distance_over"], found["within_5_percent"], found["schedule"]["weights"]
    w = {rule: found["constant"][rule]["w"] for rule in RULES[:2]} | {RULES[2]: sum(schedule) / len(schedule)}

    def named(chosen: Callable[[str], bool]) -> str:
        return ", ".join(rule for rule in RULES if chosen(rule)) or "none"

    def listed(shown: str) -> str:
        finds = {rule: f"w of {w[rule]:.2f}" if w[rule] else "no guidance" for rule in RULES}
        return ", ".join(f"{rule} finds {finds[rule]} ({shown.format(**over[rule]['best of sweep'])})" for rule in RULES)

    start = f"{title}, rules that need the estimator alone (distance over that of the swept w = {found['swept']:g}): "
    told = (f". Surely better than no guidance: {named(lambda rule: over[rule]['none']['high'] < 1)}; surely within 5 % of the "
            f"sweep: {named(lambda rule: near[rule]['surely'])}; surely not: {named(lambda rule: near[rule]['surely not'])}.")
    return {"brief": start + listed("{value:.2f}") + told,
            "sentence": start + listed("{value:.2f} [{low:.2f}, {high:.2f}]") + f", N = {found['n']}{told}"}


def questions(answers: dict[str, list[dict]], own: dict[str, list[dict]] | None = None) -> list[dict]:
    """Rows {id, statement, paper, ours, evidence: {file, key}, verdict, note, brief, figures} of data/questions.json.

    `own` are answers of the main pipeline; they are a part where a study's are not there.
    """
    rows = []
    for question in read_json(DATA / "questions.json"):
        part, studied = (found.get(question["id"], []) for found in (own or {}, answers))
        mine = part + studied
        rows.append({
            "id": question["id"], "statement": question["question"], "paper": "left open", "ours": None,
            "evidence": {name: "; ".join(answer[name] for answer in mine) for name in ("file", "key")},
            "verdict": "answered" if studied else f"in part, its study is {OPEN}" if part else OPEN,
            "note": " ".join(answer["sentence"] for answer in mine),
            "brief": " ".join(answer["brief"] for answer in mine),
            "figures": [answer["figure"] for answer in mine]})
    return rows


def table(rows: list[dict]) -> str:
    """The questions and their answers in brief as Markdown."""
    lines = ["| question | answer | figure |", "|---|---|---|"]
    for row in rows:
        figures = ", ".join(f"[{Path(figure).stem}]({figure})" for figure in row["figures"])
        answer = row["brief"].replace("|", "&#124;")
        answer = answer if row["verdict"] == "answered" else f"{answer} *{row['verdict']}*".strip()
        lines.append(f"| {row['id']}. {row['statement']} | {answer} | {figures or '–'} |")
    return "\n".join(lines)


def stages(folder: Path = STUDIES.parent) -> str:
    """The stages of the studies as Markdown: what they do and how long, their notebook, and the figures that are there."""
    plan, params = (yaml.safe_load((folder / name).read_text(encoding="utf-8")) for name in ("dvc.yaml", "params.yaml"))
    lines = ["| study | notebook | stage | figures |", "|---|---|---|---|"]
    for name, body in plan["stages"].items():
        keys = params
        for part in body.get("foreach", "${}").strip("${}").split("."):
            keys = keys.get(part, {"": None})
        body = body.get("do", body)
        notebook = re.search(r"notebooks/(\w+)\.ipynb", body["cmd"])[1]
        drawn = [path for out in body["outs"] if (path := next(iter(out))).endswith(".png")]
        paths = [re.sub(r"\$\{(key|item)\}", str(key), path) for path in drawn for key in keys]
        found = [f"[{Path(path).stem}]({path})" if (folder.parent / path).is_file() else f"{Path(path).stem} *{OPEN}*"
                 for path in paths]
        lines.append(f"| {body['desc']} | [{notebook}](notebooks/{notebook}.ipynb) | studies/dvc.yaml:{name} | "
                     f"{', '.join(found) or '–'} |")
    return "\n".join(lines)
