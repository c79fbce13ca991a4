"""README.md and the pages of docs/: templates filled from results, and their checks."""

import ast
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from companion.pipeline.page import FOLDER, pages_of
from companion.published import fid_ratios
from companion.report import capabilities, claims, findings, links, questions, rendering, which_w
from companion.report.evidence import Reader, by_file
from companion.report.results import (
    ARM_NAMES,
    ARMS,
    NAMES,
    SAMPLERS,
    build_summary,
    over_unguided,
    ratios_to_unguided,
)
from nag.integrations.levels import REFUSED
from nag.rivals.methods import METHODS
from nag.support.files import atomic
from nag.support.paths import DATA, ROOT

FAMILIES = ("sit", "dit")
README = "README.md"
PAGES = {
    README: "The project in five minutes",
    "docs/README.md": "All pages",
    "docs/results.md": "Results in full, with intervals and protocols",
    "docs/claims.md": "The paper's nine claims: full verdicts and their evidence",
    "docs/findings.md": "What we found beyond the claims",
    "docs/questions.md": "The questions that the paper leaves open, and four of ours",
    "docs/corrections.md": "What was corrected: verdicts and numbers before and after an audit",
    "docs/rivals.md": "Rivals: corrections of exposure bias and other guidance, with their costs",
    "docs/overhead.md": "What every arm costs in evaluations, time, memory and training",
    "docs/capabilities.md": "What this project and seven others can do",
    "docs/studies.md": "The studies: stages, notebooks, networks, minutes",
    "docs/your_model.md": "Your own model: measure, guide and train it; which w to use",
    "docs/reproduce.md": "How to reproduce: verbs, pipelines, figures, costs, limits",
    "docs/module_map.md": "Where everything is in the code",
    "docs/benchmarks.md": "Speed of training and sampling",
    "docs/campaign.md": "Kills, full disks and damaged files: what every stage and reader does",
    "docs/glossary.md": "Words and symbols",
}
WHERE = {"C": "docs/claims.md", "Q": "docs/questions.md", "F": "docs/findings.md"}
NAMES_OF_ROWS = re.compile(  # outside of headings, code and links
    r"```.*?```|`[^`\n]*`|^#[^\n]*|!?\[[^\]]*\]\([^)]*\)|(?<!\w)(?P<row>[CQF][1-9]\d?)(?!\w)",
    re.DOTALL | re.MULTILINE,
)
LINES, CELL = 200, 160  # of the README; characters of a table's cell
UNWANTED = re.compile(
    r"\btold\b|\bbias[ -]off\b|\bmend(?:ed|s)?\b|\banew\b|\bholds\s+zero\b"
    r"|is no [a-z]+ (?:of|for|file)"
)


def notebooks(path: Path = DATA / "notebooks.yaml") -> list[dict]:
    """Every notebook with what it is about, its pipeline, stage, minutes, figures and questions."""
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [{"kept": False, "questions": []} | row for row in rows]


def shown(notebook: str) -> str:
    """The file that shows a notebook to a reader: its first page, or itself if it has none."""
    found = pages_of(notebook, ROOT / FOLDER)
    return f"{FOLDER}/{found[0]}.ipynb" if found else f"notebooks/{notebook}.ipynb"


def modules(root: Path = ROOT) -> dict[str, list[tuple[str, str]]]:
    """{room: [(file, first sentence of its docstring)]} of `nag` and `companion`."""
    rooms: dict[str, list[tuple[str, str]]] = {}
    for package in ("nag", "companion"):
        for path in sorted((root / package).rglob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if text:
                file = path.relative_to(root).as_posix()
                first = " ".join(text.split("\n\n")[0].split())
                rooms.setdefault(str(PurePosixPath(file).parent), []).append((file, first))
    return rooms


def remote(root: Path = ROOT) -> dict[str, tuple[int, float]]:
    """{folder: (files, MB)} of what a DVC remote would hold: the outputs that are not in Git."""
    found = {}
    for lock, folder in (
        ("dvc.lock", "results/arrays"),
        ("studies/dvc.lock", "studies/results/weights"),
    ):
        stages = yaml.safe_load((root / lock).read_text(encoding="utf-8"))["stages"].values()
        outs = [out for stage in stages for out in stage.get("outs", [])]
        sizes = [out["size"] for out in outs if out["path"].startswith(folder)]
        found[folder] = len(sizes), sum(sizes) / 1e6
    return found


def _facts(reader: Reader) -> dict:
    """What the templates of pages may use; see companion/report/templates."""
    answers = reader.content("studies/answers.json")
    summary = build_summary(reader, FAMILIES)
    overhead = reader.content("results/metrics/overhead.json")
    own = questions.own_answers(reader, FAMILIES)
    ledger = {
        "claims": claims.ledger(reader, FAMILIES, answers),
        "questions": questions.questions(reader, answers, own),
        "findings": findings.findings(reader),
    }

    def stored(file: str) -> Any:
        """What a run that belongs to no stage left, or None."""
        return reader.content(file) if (reader.root / file).is_file() else None

    return {kind: {row["id"]: row for row in rows} for kind, rows in ledger.items()} | {
        "arm_names": ARM_NAMES,
        "arms": ARMS,
        "audit": reader.content("data/audit.json"),
        "auto": {f: reader.content(f"results/metrics/auto-{f}.json") for f in FAMILIES},
        "bench": stored("results/bench.json"),
        "campaign": stored("results/campaign.json"),
        "bounds": reader.content(f"results/metrics/ratios-{FAMILIES[0]}.json"),
        "capabilities": capabilities,
        "families": FAMILIES,
        "integrations": reader.content("results/integrations.json"),
        "kinds_of_fault": ("SIGKILL", "SIGTERM", "full disk", "no rights", "two at once"),
        "links": links,
        "memory": questions.memories(overhead),
        "methods": {name: method.label for name, method in METHODS.items()},
        "modules": modules(),
        "notebooks": notebooks(),
        "shown": shown,
        "overhead": overhead,
        "pages": PAGES,
        "paper": fid_ratios(),
        "headline": {
            (family, space, sampler): ratios_to_unguided(reader, summary, family, space, sampler)
            for family in FAMILIES
            for space in ("first", "second")
            for sampler in summary[family]
        },
        "ratios_raw": over_unguided(summary, "fd"),
        "rivals": [
            reader.content(f"studies/results/metrics/{name}.json")
            for name in ("rivals", "rivals-sde")
        ],
        "refused_schedulers": REFUSED,
        "remote": remote(reader.root),
        "repository": links.repository(),
        "samplers": SAMPLERS,
        "summary": summary,
        "which_w": which_w,
        "sweeps": {NAMES[f]: which_w.sweep(reader, f) for f in FAMILIES},
    }


def cross_linked(text: str, page: str, rows: Collection[str]) -> str:
    """The text of a page with each claim, question and finding that it names, such as C4, leading
    to its place; `rows` are the names of those that there are."""

    def link(match: re.Match) -> str:
        name = match["row"]
        if name not in rows:
            return match[0]
        file = os.path.relpath(WHERE[name[0]], PurePosixPath(page).parent)
        return f"[{name}]({file}#{name.lower()})"

    return NAMES_OF_ROWS.sub(link, text)


def render(reader: Reader) -> dict[str, str]:
    """{path: text} of all PAGES.

    Raises FileNotFoundError for a missing result, figure or linked file, KeyError for a missing
    number, jinja2.UndefinedError for a name that a template misspells."""
    environment, facts = rendering.environment(reader), _facts(reader)

    def page(path: str) -> str:
        folder = PurePosixPath(path).parent

        def to(target: str) -> str:
            """The relative address of a file of the repository on this page."""
            file = target.partition("#")[0]
            if file not in PAGES and not (reader.root / file).exists():
                raise FileNotFoundError(f"{path} links to {file}, which does not exist")
            return os.path.relpath(target, folder)

        def evidence(places: list, depth: int | None = None) -> str:
            return "; ".join(
                f"[{PurePosixPath(file).stem}]({to(file)}) {', '.join(f'`{key}`' for key in keys)}"
                for file, keys in by_file(places, depth).items()
            )

        template = environment.get_template(f"pages/{path}.j2")
        text = template.render(to=to, evidence=evidence, **facts)
        return text if path == README else cross_linked(text, path, rows)

    rows = {name for kind in ("claims", "questions", "findings") for name in facts[kind]}
    return {path: page(path) for path in PAGES}


def cells(text: str) -> Iterator[str]:
    """The cells of all tables of a Markdown page."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield from (part.strip() for part in line.strip("|").split("|"))


def faults(pages: dict[str, str]) -> list[str]:
    """What is wrong with the pages' form, one sentence each; empty if nothing is."""
    found = []
    for path, text in pages.items():
        words = sorted({match[0] for match in UNWANTED.finditer(text)})
        if words:
            found.append(f"{path} has {words}: reword the template or the answer it is from")
    readme = pages[README]
    if (lines := len(readme.splitlines())) > LINES:
        found.append(f"{README} has {lines} lines, at most {LINES}: move something to docs/")
    found += [
        f"{README} has a cell of {len(text)} characters, at most {CELL}: {text[:60]}..."
        for text in cells(readme)
        if len(text) > CELL
    ]
    return found


def write() -> None:
    """Write all pages; raises ValueError if one has faults, and then writes none."""
    pages = render(Reader())
    if found := faults(pages):
        raise ValueError("\n".join(found))
    for path, text in pages.items():
        with atomic(ROOT / path) as part:
            part.write_text(text, encoding="utf-8")
