"""What this project and seven others can do, from data/features.csv; our own entries name their
evidence.

An entry of evidence is a path in this repository, or `path:name` with a function, class or constant
defined in that file."""

import ast
import csv
from pathlib import Path

from nag.support.paths import DATA, ROOT

PROJECTS = ("this project", "SiT", "DiT", "REPA", "EDM2", "EDM-ES", "diffusers", "flow_matching")
OURS = PROJECTS[0]
SIGNS = {"y": "yes", "partial": "partly", "n": "–", "n/a": "n/a"}


def read(path: Path = DATA / "features.csv") -> list[dict]:
    """The rows of the file: number, capability, a key of SIGNS for each of PROJECTS, evidence (a
    list), note.

    Raises FileNotFoundError, or ValueError for a row that lacks a column or holds another value.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no table of features at {path}: it is tracked in Git, restore it with git checkout"
        )
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        wrong = [f"{name} = {row.get(name)!r}" for name in PROJECTS if row.get(name) not in SIGNS]
        if wrong or None in row or row.get("note") is None:
            raise ValueError(
                f"{path}, row {row.get('number')}: "
                f"{', '.join(wrong) or 'columns do not match the header'}; give "
                f"every project one of {list(SIGNS)} and quote texts that hold a comma"
            )
        row["number"], row["evidence"] = int(row["number"]), row["evidence"].split()
    return rows


def _defined(path: Path) -> set[str]:
    """Names that a Python file defines at its top level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def evidence(rows: list[dict] | None = None, root: Path = ROOT) -> list[str]:
    """What is wrong with the evidence of our column, one sentence each; empty if every entry holds.

    A yes or partly needs evidence, a no may have none, every path must exist and every name be
    defined there."""
    faults = []
    for row in read() if rows is None else rows:
        if bool(row["evidence"]) != (row[OURS] in ("y", "partial")):
            count = len(row["evidence"])
            faults.append(f"row {row['number']}: {row[OURS]!r} with {count} entries of evidence")
        for entry in row["evidence"]:
            name, _, symbol = entry.partition(":")
            if not (root / name).exists():
                faults.append(f"row {row['number']}: {name} does not exist")
            elif symbol and symbol not in _defined(root / name):
                faults.append(f"row {row['number']}: {name} does not define {symbol}")
    return faults


def short(entry: str) -> tuple[str, str]:
    """(text, file) of an entry of evidence, for a link."""
    file, _, symbol = entry.partition(":")
    name = Path(file).stem if file.endswith((".py", ".ipynb")) else file
    return (f"{name}.{symbol}" if symbol else name), file
