"""What the studies answer: the questions that the paper leaves open, and the claims that need a study.

Every study's notebook composes its sentences from its own numbers and writes them beside those; here they are only gathered, into
studies/answers.json, so that the main pipeline can read them without depending on hours of study. Its own parts are `automatic`
and `costs`. The one sentence that answers a question, above those numbers, is written by hand in data/questions.md.
"""

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from nag.files import entry, read_json, write_json
from nag.findings import STUDIES, bullets, filled
from nag.paths import DATA, RESULTS, ROOT

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


def costs(overhead: dict) -> dict[str, str]:
    """Question 5 at equal steps, {"sentence", "brief"}, from the contents of overhead.json."""
    base, *others = overhead["rows"]
    memory = {row["label"]: f"{row['memory'] / base['memory']:.2f}" if row["memory"] else "not measured" for row in others}
    each = ", ".join(f"{row['label']} {row['relative']:.2f} / {memory[row['label']]} / {row['parameters']}" for row in others)
    trained = ", ".join(f"{row['label']} {row['training']:.3g} %" for row in others if row["training"])
    brief = f"At equal steps, time / memory over the unguided ones / parameters beside the network's: {each}."
    return {"brief": brief, "sentence": f"{brief} Further training, in images over those of the network: {trained}."}


def asked(source: Path = DATA / "questions.md") -> dict[str, tuple[str, str]]:
    """{id: (question, answer in one sentence with its numbers left out)} of the list in `source`."""
    found = (re.fullmatch(r"(Q\d+) \*\*(.+?)\*\* (.+)", bullet).groups() for bullet in bullets(source))
    return {name: (question, answer) for name, question, answer in found}


def questions(answers: dict[str, list[dict]], own: dict[str, list[dict]] | None = None, folder: Path = RESULTS) -> list[dict]:
    """Rows {id, statement, paper, ours, evidence, verdict, answer, note, brief, figures} of data/questions.md.

    `own` are answers of the main pipeline, whose results are in `folder`; they are a part where a study's are not there.
    "answer" is the one sentence, its numbers from evidence["answer"]; "note" has all numbers, from evidence["file"] and ["key"].
    """
    rows = []
    for name, (question, sentence) in asked().items():
        part, studied = (found.get(name, []) for found in (own or {}, answers))
        mine = part + studied
        answer, source = filled(sentence, folder) if studied else ("", {"file": "", "key": ""})
        evidence = {kind: "; ".join(found[kind] for found in mine) for kind in ("file", "key")}
        rows.append({
            "id": name, "statement": question, "paper": "left open", "ours": None, "evidence": evidence | {"answer": source},
            "verdict": "answered" if studied else f"in part, its study is {OPEN}" if part else OPEN, "answer": answer,
            "note": " ".join(found["sentence"] for found in mine), "brief": " ".join(found["brief"] for found in mine),
            "figures": [found["figure"] for found in mine]})
    return rows


def table(rows: list[dict]) -> str:
    """The questions and their answers, in one sentence and in brief, with figures and evidence, as Markdown."""
    lines = ["| question | answer | figure | evidence |", "|---|---|---|---|"]
    for row in rows:
        figures = ", ".join(f"[{Path(figure).stem}]({figure})" for figure in dict.fromkeys(row["figures"]))
        answer = f"**{row['answer']}** {row['brief']}" if row["verdict"] == "answered" else f"{row['brief']} *{row['verdict']}*"
        places = dict(zip(*(row["evidence"][kind].split("; ") for kind in ("file", "key")), strict=True))
        evidence = ", ".join(f"[{Path(file).stem}]({file}): `{key}`" for file, key in places.items() if file)
        lines.append(f"| {row['id']}. {row['statement']} | {answer.strip().replace('|', '&#124;')} | {figures or '–'} | "
                     f"{evidence or '–'} |")
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
