"""What the studies answer: the questions that the paper leaves open, and the claims that need a
study.

Every study's notebook composes its sentences from its own numbers and writes them beside those;
here they are only gathered, into studies/answers.json, so that the main pipeline can read them
without depending on hours of study or days of ImageNet. Its own parts are `automatic` and `costs`.
The one sentence that answers a question is written by hand in data/questions.md."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import yaml

from companion.report.evidence import links
from companion.report.findings import filled, items
from nag.support.files import entry, read_json, write_json
from nag.support.paths import DATA, RESULTS, ROOT, STUDIES

ANSWERS = ROOT / "studies" / "answers.json"
ANSWERING = (STUDIES, ROOT / "imagenet" / "results", ROOT / "imagenet" / "finetune" / "results")
OPEN = "not run yet"
RULES = ("mean", "spread", "schedule")  # of nag.auto_weight


def collect(*folders: Path) -> dict[str, list[dict]]:
    """{id of a question or claim: [{"sentence", "brief", "key", "file", "figure", "sha256", ...}]}
    of folders of results.

    "sentence" is the answer with its numbers and intervals, "brief" what of it a table has room
    for; that to a claim has a "verdict", and a "scale" if it is the paper's. Files and figures are
    relative to the repository; the hash makes what is gathered change with any number of a study.
    Raises KeyError for evidence that is not under its key."""
    found: dict[str, list[dict]] = {}
    for path in sorted(
        (path for folder in folders for path in (folder / "metrics").glob("*.json")),
        key=lambda path: path.stem,
    ):
        content = read_json(path)
        for name, answer in content.get("answers", {}).items():
            entry(content, answer["key"])
            where = {
                "file": path.relative_to(ROOT).as_posix(),
                "figure": (path.parents[1] / answer["figure"]).relative_to(ROOT).as_posix(),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            found.setdefault(name.split(",")[0], []).append(answer | where)
    return found


def write_answers() -> None:
    """Gather the answers of the studies, and of the pipelines of imagenet/ if they have run, into
    studies/answers.json.
    """
    write_json(ANSWERS, collect(*ANSWERING))


def automatic(title: str, found: dict) -> dict[str, str]:
    """Question 10 for the network called `title`, {"sentence", "brief"}, from the contents of its
    auto-FAMILY.json.

    Of the schedule w is the mean.
    """
    over, near, schedule = (
        found["distance_over"],
        found["within_5_percent"],
        found["schedule"]["weights"],
    )
    w = {rule: found["constant"][rule]["w"] for rule in RULES[:2]} | {
        RULES[2]: sum(schedule) / len(schedule)
    }

    def named(chosen: Callable[[str], bool]) -> str:
        return ", ".join(rule for rule in RULES if chosen(rule)) or "none"

    def listed(shown: str) -> str:
        finds = {rule: f"w of {w[rule]:.2f}" if w[rule] else "no guidance" for rule in RULES}
        return ", ".join(
            f"{rule} finds {finds[rule]} ({shown.format(**over[rule]['best of sweep'])})"
            for rule in RULES
        )

    start = f"{title}, rules that need the estimator alone (distance over that of the tuned w = {found['swept']:g}): "
    told = (
        f". Surely better than no guidance: {named(lambda rule: over[rule]['none']['high'] < 1)}; surely within 5 % of the "
        f"tuned w: {named(lambda rule: near[rule]['surely'])}; surely not: {named(lambda rule: near[rule]['surely not'])}."
    )
    return {
        "brief": start + listed("{value:.2f}") + told,
        "sentence": start
        + listed("{value:.2f} [{low:.2f}, {high:.2f}]")
        + f", N = {found['n']}{told}",
    }


def memories(overhead: dict) -> dict[str, str]:
    """Memory of each arm of overhead.json over the unguided one's, "–" where it was not measured."""
    base = overhead["rows"][0]["memory"]
    return {
        row["arm"]: "–" if row["memory"] is None else f"{row['memory'] / base:.2f}"
        for row in overhead["rows"]
    }


def costs(title: str, overhead: dict) -> dict[str, str]:
    """Question 5 at equal steps for the network called `title`, {"sentence", "brief"}, from the
    contents of overhead.json.
    """
    others, memory = overhead["rows"][1:], memories(overhead)
    each = "; ".join(
        f"{row['label']}: {row['relative']:.2f}, {memory[row['arm']]}, {row['parameters']:,}"
        for row in others
    )
    trained = "; ".join(
        f"{row['label']}: "
        + ("not known" if row["training"] is None else f"{row['training']:.3g} %")
        for row in others
        if row["training"] != 0
    )
    brief = f"{title} at equal steps (time and memory over the unguided ones, parameters beside the network's): {each}."
    return {
        "brief": brief,
        "sentence": brief
        + f" Further training, in images over those of the network: {trained or 'none'}.",
    }


def asked(source: Path = DATA / "questions.md") -> dict[str, tuple[str, str]]:
    """{id: (question, answer in one sentence with its numbers left out)} of the list in `source`."""
    return {
        name: (question, answer)
        for name, question, answer in items(source, r"(Q\d+) \*\*(.+?)\*\* (.+)")
    }


def questions(
    answers: dict[str, list[dict]],
    own: dict[str, list[dict]] | None = None,
    folder: Path = RESULTS,
    source: Path = DATA / "questions.md",
) -> list[dict]:
    """Rows {id, statement, paper, ours, evidence, verdict, answer, note, brief, figures} of the
    questions in `source`.

    `own` are answers of the main pipeline, whose results are in `folder`; they are a part where a
    study's are not there. "answer" is the one sentence, "note" has all numbers; the evidence is
    that of both. Raises what `findings.filled` raises."""
    rows = []
    for name, (question, sentence) in asked(source).items():
        part, studied = (found.get(name, []) for found in (own or {}, answers))
        mine = part + studied
        answer, evidence = filled(sentence, folder) if studied else ("", [])
        evidence = [{name: found[name] for name in ("file", "key")} for found in mine] + evidence
        rows.append(
            {
                "id": name,
                "statement": question,
                "paper": "left open",
                "ours": None,
                "evidence": evidence,
                "verdict": "answered"
                if studied
                else f"in part, its study is {OPEN}"
                if part
                else OPEN,
                "answer": answer,
                "note": " ".join(found["sentence"] for found in mine),
                "brief": " ".join(found["brief"] for found in mine),
                "figures": [found["figure"] for found in mine],
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """The questions and their answers, in one sentence and in brief, with figures and evidence, as
    Markdown.
    """
    lines = ["| question | answer | figure | evidence |", "|---|---|---|---|"]
    for row in rows:
        figures = ", ".join(
            f"[{Path(figure).stem}]({figure})" for figure in dict.fromkeys(row["figures"])
        )
        answer = (
            f"**{row['answer']}** {row['brief']}"
            if row["verdict"] == "answered"
            else f"{row['brief']} *{row['verdict']}*"
        )
        lines.append(
            f"| {row['id']}. {row['statement']} | {answer.strip().replace('|', '&#124;')} | {figures or '–'} | "
            f"{links(row['evidence'], depth=1)} |"
        )  # the branch is enough to find it
    return "\n".join(lines)


def stages(folder: Path = STUDIES.parent) -> str:
    """The stages of the studies as Markdown: what they do and how long, their notebook, and the
    figures that are there.
    """
    plan, params = (
        yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        for name in ("dvc.yaml", "params.yaml")
    )
    lines = ["| study | notebook | stage | figures |", "|---|---|---|---|"]
    for name, body in plan["stages"].items():
        keys = params
        for part in body.get("foreach", "${}").strip("${}").split("."):
            keys = keys.get(part, {"": None})
        body = body.get("do", body)
        notebook = re.search(r"notebooks/(\w+)\.ipynb", body["cmd"])[1]
        drawn = [path for out in body["outs"] if (path := next(iter(out))).endswith(".png")]
        paths = [re.sub(r"\$\{(key|item)\}", str(key), path) for path in drawn for key in keys]
        found = [
            f"[{Path(path).stem}]({path})"
            if (folder.parent / path).is_file()
            else f"{Path(path).stem} *{OPEN}*"
            for path in paths
        ]
        lines.append(
            f"| {body['desc']} | [{notebook}](notebooks/{notebook}.ipynb) | studies/dvc.yaml:{name} | "
            f"{', '.join(found) or '–'} |"
        )
    return "\n".join(lines)
