"""What a stage computes, as a text that changes with the code it runs and with nothing else.

The text has a line for the notebook's own cells and one for each definition of `nag` or `companion`
that they reach, with a hash of its normalised syntax tree. Comments, docstrings, layout, imports,
annotations of functions, texts of raised errors, and the place of a definition do not count. Where
a dependency is in doubt it counts: what cannot be resolved counts with its whole module.

    python -m companion.pipeline.fingerprint

writes build/fingerprints/NAME.txt for every notebook and module that stages run; with `--why NAME`
it lists the definitions that changed since that was written.
"""

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from companion.pipeline.code import PACKAGES, Text, code_in, digest
from companion.pipeline.normal import WHOLE, Normal
from companion.pipeline.root import root
from companion.pipeline.scopes import bind

__all__ = ["digest", "fingerprints", "of_module", "of_notebook", "of_objects", "write"]

ROOT = root()
FOLDER = Path("build", "fingerprints")
ITSELF = "companion.pipeline.fingerprint"
RUNNERS = (ITSELF, "companion.pipeline.run")
PIPELINES = (
    "dvc.yaml",
    "studies/dvc.yaml",
    "site/dvc.yaml",
    "imagenet/dvc.yaml",
    "imagenet/finetune/dvc.yaml",
)
PARTS = ("measure", "tell", "all")
SHARED = {"parameters", "setup"}  # tags of the cells that belong to every part


def belongs(tags: Iterable[str], part: str) -> bool:
    """Whether a code cell with these tags is in a part: "parameters" and "setup" are in every one,
    "tell" is in that, and all others measure."""
    tags = set(tags)
    return part == "all" or bool(tags & SHARED) or ("tell" in tags) == (part == "tell")


def code_cells(path: Path, part: str = "all") -> list[str]:
    """The sources of the notebook's code cells in a part; raises ValueError for an unknown part."""
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r} of a notebook: choose one of {', '.join(PARTS)}")
    cells = [
        cell
        for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    return [
        "".join(cell["source"]) for cell in cells if belongs(cell["metadata"].get("tags", []), part)
    ]


def parse_cell(source: str, name: str) -> ast.Module:
    """A cell's syntax tree, IPython's own lines as text in it; raises ValueError if it has none."""
    try:
        return ast.parse(source)
    except SyntaxError:
        lines = source.splitlines()
    whole = next((line for line in lines if line.strip()), "").startswith("%%")
    python = [
        re.sub(
            r"^(\s*)([\w, ]+=\s*)?([%!].*|\?+\S+|\S+\?+)$",
            lambda m: f"{m[1]}magic({m[0].strip()!r})",
            line,
        )
        for line in lines
    ]
    try:
        return ast.parse(f"magic({source!r})" if whole else "\n".join(python))
    except SyntaxError as error:
        raise ValueError(
            f"{name} has a cell that is not Python ({error}): correct it first"
        ) from error


def of_notebook(path: Path, part: str = "all", root: Path = ROOT) -> str:
    """The fingerprint of a part of a notebook, "measure", "tell" or "all"; raises ValueError for
    another, or for a cell that is not Python."""
    code, path = code_in(root), Path(path)
    body = [
        node for source in code_cells(path, part) for node in parse_cell(source, path.name).body
    ]
    normal = Normal(code, bind(body, "", "module"))
    text = normal.value(body)
    magics = [
        part.value
        for node in body
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "magic"
        for part in call.args
        if isinstance(part, ast.Constant)
    ]
    named = {
        name
        for magic in magics
        for name in re.findall(r"\w+(?:\.\w+)+", str(magic))
        if code.has(name)
    }
    refs = normal.refs | {(name, WHOLE) for name in named}
    return code.fingerprint(Text(text, frozenset(refs), frozenset(normal.runs)))


def of_module(name: str, root: Path = ROOT) -> str:
    """The fingerprint of a module that `python -m name` runs; raises ValueError if not ours."""
    code = code_in(root)
    name = f"{name}.__main__" if code.has(f"{name}.__main__") else name
    if not code.has(name):
        raise ValueError(f"{name} is not a module of {' or '.join(PACKAGES)}: correct its name")
    return code.fingerprint(Text("", frozenset({(name, WHOLE)})))


def of_objects(*objects: str | Callable, root: Path = ROOT) -> str:
    """The fingerprint of definitions, themselves or as "module:name", to name what a study keeps.

    It is of the code on disk when first asked for, and stays. Raises ValueError for what is not
    defined in our packages.
    """
    names = [
        item if isinstance(item, str) else f"{item.__module__}:{item.__qualname__.split('.')[0]}"
        for item in objects
    ]
    return _of_names(tuple(names), root)


@cache
def _of_names(names: tuple[str, ...], root: Path) -> str:
    code, refs = code_in(root), set()
    for name in names:
        module, definition, rest = code.locate(code.parts(name))
        if not module or (rest and definition == WHOLE):
            raise ValueError(
                f"{name} is not defined in {' or '.join(PACKAGES)}: give a function or class of "
                "theirs, or its name as package.module:name"
            )
        refs.add((module, definition))
    return code.fingerprint(Text("", frozenset(refs)))


def changed(old: str, new: str) -> list[str]:
    """The names of the definitions that differ between fingerprints; (cells): the notebook's."""
    lines = set(old.splitlines()) ^ set(new.splitlines())
    return sorted({line.rpartition("  ")[0] for line in lines})


# ---- files of fingerprints


def modules_run(root: Path = ROOT, pipelines: Iterable[Path] = ()) -> list[str]:
    """Our modules that commands of the pipelines run by -m."""
    listed: list[Path | str] = [*PIPELINES, *pipelines]
    files = {(root / name).resolve() for name in listed}
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(files) if file.is_file())
    text = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    names = re.findall(rf"-m\s+((?:{'|'.join(PACKAGES)})(?:\.\w+)+)", text)
    return sorted(set(names) - set(RUNNERS))


def fingerprints(root: Path = ROOT, pipelines: Iterable[Path] = ()) -> dict[str, str]:
    """All fingerprints by name: NOTEBOOK.measure, NOTEBOOK.tell if it has such cells, MODULE."""
    found = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        found[f"{path.stem}.measure"] = of_notebook(path, "measure", root)
        if code_cells(path, "all") != code_cells(path, "measure"):
            found[f"{path.stem}.tell"] = of_notebook(path, "tell", root)
    return found | {name: of_module(name, root) for name in modules_run(root, pipelines)}


def write(root: Path = ROOT, pipelines: Iterable[Path] = ()) -> list[str]:
    """Write the fingerprints that changed, remove those of what is gone; returns both's names."""
    folder, new = root / FOLDER, fingerprints(root, pipelines)
    folder.mkdir(parents=True, exist_ok=True)
    old = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    for name in old.keys() - new.keys():
        (folder / f"{name}.txt").unlink()
    for name, text in new.items():
        if old.get(name) != text:
            part = folder / f".{os.getpid()}.{name}"  # support.files would import pandas
            part.write_text(text, encoding="utf-8")
            part.replace(folder / f"{name}.txt")
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def why(name: str, folder: Path, new: dict[str, str]) -> str:
    """A sentence on what changed in a fingerprint since it was written to a folder."""
    file = folder / f"{name}.txt"
    if name not in new:
        return (
            f"{name}: there is no such notebook part or module; there are {', '.join(sorted(new))}"
        )
    if not file.is_file():
        return f"{name}: not in {folder}"
    names = changed(file.read_text(encoding="utf-8"), new[name])
    return f"{name}: {', '.join(names) if names else 'nothing'} changed"


def main(arguments: list[str]) -> None:
    """Write all fingerprints, or print what changed since they were written."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {ITSELF}", description="What each stage computes, in build/fingerprints"
    )
    parser.add_argument(
        "pipelines",
        nargs="*",
        type=Path,
        help=f"further files of stages, besides {', '.join(PIPELINES)}",
    )
    parser.add_argument(
        "--why",
        nargs="+",
        metavar="NAME",
        help="print what changed since NAME was written, and write nothing",
    )
    parser.add_argument(
        "--diff",
        type=Path,
        metavar="FOLDER",
        help="print what differs from the fingerprints in FOLDER",
    )
    given = parser.parse_args(arguments)
    pipelines = [path.resolve() for path in given.pipelines]
    for path in [*pipelines, *([given.diff] if given.diff else [])]:
        if not path.exists():
            parser.error(f"there is no {path}")
    try:
        if given.why or given.diff:
            folder, new = given.diff or ROOT / FOLDER, fingerprints(ROOT, pipelines)
            for name in given.why or sorted(new):
                print(why(name.removesuffix(".txt"), folder, new))
        else:
            names = write(ROOT, pipelines)
            print(f"{len(names)} fingerprints changed{': ' if names else ''}{', '.join(names)}")
    except (ValueError, SyntaxError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
