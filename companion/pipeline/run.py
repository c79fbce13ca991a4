"""Runs a notebook, or the part of it that measures or tells, as a stage of the pipeline.

    python -m companion.pipeline.run NOTEBOOK EXECUTED --part tell -p tune.sit -y "{out: results}"

Parameters come from params.yaml (-p) and from the command line (-y), which counts more.
The executed copy is written after every cell, also of a run that fails. With --page a run that
succeeds also writes the notebook for readers (companion.pipeline.page). Exit codes: 1 if a cell
fails or the run is interrupted, 2 if the stage was not started, 138 if the kernel died.
"""

import argparse
import ast
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode, ValidationError
from papermill.engines import papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import (
    prepare_notebook_metadata,
    raise_for_execution_errors,
    remove_error_markers,
)
from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from companion.pipeline import fingerprint, inputs, links, stage_parameters

SOCKET_PATH = (
    100  # bytes that a Unix socket's path may have: 104 on macOS, 108 on Linux, with a few to spare
)
NOT_STARTED, DEAD_KERNEL = 2, 138
DPI = 140  # of the figures in executed copies, sharp on dense screens too


def _parameters(notebook: dict) -> ast.Module:
    """The first cell tagged `parameters`, parsed; raises ValueError if it is not Python."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "parameters" in cell["metadata"].get("tags", []):
            try:
                return ast.parse(cell["source"])
            except SyntaxError as error:
                raise ValueError(
                    f"its cell of parameters is not Python (line {error.lineno}: {error.msg}): "
                    "correct it, or restore the notebook with git"
                ) from error
    return ast.Module(body=[], type_ignores=[])


def known_parameters(notebook: dict) -> list[str]:
    """The names that the first cell tagged `parameters` assigns."""
    return sorted(
        {
            node.id
            for node in ast.walk(_parameters(notebook))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
    )


def defaults(notebook: dict) -> dict[str, object]:
    """The values of the parameters that are plain ones, by name."""
    found: dict[str, object] = {}
    for node in _parameters(notebook).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def _form(value: object) -> str:
    """What a value is, as one says it; numbers and truth values are of one form."""
    if isinstance(value, str):
        return "a text"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "a mapping" if isinstance(value, dict) else "a number, true or false"


def check_forms(values: dict, usual: dict[str, object]) -> None:
    """Raise ValueError if a parameter is of another form than its default: a text would be taken
    for a list of its letters, and "false" for true.
    """
    for name, value in values.items():
        default = usual.get(name)
        if default is not None and (value is None or _form(value) != _form(default)):
            raise ValueError(
                f"{name} is {value!r}, but must be {_form(default)}, such as {default!r}"
            )


@contextmanager
def private_sockets() -> Iterator[Config]:
    """Settings with which the kernel is reached through a private folder, not through TCP ports.

    Where there are no such sockets, or their paths would be too long, the default stays: local TCP.
    """
    for folder in (tempfile.gettempdir(), "/tmp"):
        if (
            os.name == "posix"
            and os.access(folder, os.W_OK)
            and len(os.fsencode(folder)) < SOCKET_PATH - 30
        ):
            with tempfile.TemporaryDirectory(prefix="kernel-", dir=folder) as private:
                yield Config(
                    KernelManager={"transport": "ipc", "connection_file": f"{private}/k.json"}
                )
                return
    yield Config()


def check_inside(out: str) -> None:
    """Raise ValueError if the results, links followed, would be outside of the repository."""
    root = Path(os.path.realpath(fingerprint.ROOT))
    found = Path(os.path.realpath(root / out))
    if found == root:
        raise ValueError(
            f"out is {out!r}, the repository itself, among whose files results would be lost: give "
            "a folder below it, such as build/by-hand"
        )
    if not found.is_relative_to(root):
        raise ValueError(
            f"out leads to {found}, outside of the repository {root}: give a folder below it, such "
            "as build/by-hand, and copy what you need from there"
        )


def check_family(given: dict) -> None:
    """Raise ValueError if a family is to be read as of another forward process than its own."""
    from nag.interpolant import PATH_OF  # here, since it takes seconds and few notebooks need it

    wanted = PATH_OF.get(given["family"], given["path"])
    if given["path"] != wanted:
        raise ValueError(
            f"path is {given['path']!r}, but the family {given['family']!r} is of {wanted!r}: give "
            f"both, such as {{family: {given['family']}, path: {wanted}}}"
        )


def prepared(notebook: Path, executed: Path, part: str, values: dict) -> NotebookNode:
    """The notebook's part with these parameters.

    Raises ValueError for a file that is no notebook, an unknown parameter or one of another form,
    or an `out` outside of the repository."""
    try:
        content = load_notebook_node(str(notebook))
        known, usual = known_parameters(content), defaults(content)
    except (ValueError, ValidationError) as error:
        raise ValueError(
            f"{notebook} cannot be read as a notebook ({error}): restore it with git"
        ) from error
    if unknown := sorted(set(map(str, values)) - set(known)):
        raise ValueError(
            f"{notebook.name} has no parameter {', '.join(unknown)}: "
            f"choose from {', '.join(known) or 'none'}"
        )
    check_forms(values, usual)
    by_hand = not os.environ.get("DVC_STAGE")  # a test holds that the pipelines name both
    if by_hand and "family" in values and "path" in usual:
        check_family(usual | values)
    if "out" in values:
        check_inside(str(values["out"]))
    content.cells = [
        cell
        for cell in content.cells
        if cell.cell_type != "code" or fingerprint.belongs(cell.metadata.get("tags", []), part)
    ]
    if values:
        content = parameterize_notebook(content, values, kernel_name="python3", language="python")
    return remove_error_markers(prepare_notebook_metadata(content, str(notebook), str(executed)))


def execute(content: NotebookNode, executed: Path) -> NotebookNode:
    """Execute a notebook, write the copy and return it; raises PapermillExecutionError or
    DeadKernelError.
    """
    executed.parent.mkdir(parents=True, exist_ok=True)
    with private_sockets() as config:
        content = papermill_engines.execute_notebook_with_engine(
            None,
            content,
            kernel_name="python3",
            output_path=str(executed),
            progress_bar=False,
            log_output=True,
            config=config,
            extra_arguments=[f"--InlineBackend.rc={{'figure.dpi': {DPI}}}"],
        )
    raise_for_execution_errors(content, str(executed))
    write_ipynb(content, str(executed))
    return content


def recorded(notebook: Path, part: str) -> dict[str, str]:
    """The fingerprint files of the parts that are to run, by part; those that there are."""
    parts = ("measure", "tell") if part == "all" else (part,)
    files = {
        name: fingerprint.ROOT / fingerprint.FOLDER / f"{notebook.stem}.{name}.txt"
        for name in parts
    }
    return {
        name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()
    }


def edited(notebook: Path, before: dict[str, str]) -> str:
    """What of the code differs from these fingerprints, in words; empty if nothing does."""
    try:
        names = {
            name
            for part, text in before.items()
            for name in fingerprint.changed(
                text, fingerprint.of_notebook(notebook, part, fingerprint.ROOT)
            )
        }
    except (ValueError, SyntaxError, OSError) as error:
        return f"it cannot be read now: {error}"
    return ", ".join(sorted(names))


def run(
    notebook: Path, executed: Path, part: str, values: dict, for_readers: Path | None = None
) -> int:
    """Run the stage unless its code differs from its fingerprint, and write the page `for_readers`
    if one is named; returns the exit code.
    """
    before = recorded(notebook, part)
    if what := edited(notebook, before):
        print(
            f"The code of {notebook.stem} changed since its fingerprint was taken ({what}): "
            "run `dvc repro` again.",
            file=sys.stderr,
        )
        return NOT_STARTED
    try:
        content = prepared(notebook, executed, part, values)
    except (ValueError, ValidationError) as error:
        print(error, file=sys.stderr)
        return NOT_STARTED
    try:
        content = execute(content, executed)
    except PapermillExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    except DeadKernelError:
        traceback.print_exc()
        return DEAD_KERNEL
    if what := edited(notebook, before):
        print(
            f"The code of {notebook.stem} was edited while it ran ({what}): the results are of the "
            "code at the start, and the next `dvc repro` will run the stage again.",
            file=sys.stderr,
        )
    elif for_readers:
        from companion.pipeline import page  # here, since stages without a page need no more

        made = page.of_run(notebook, content, part, for_readers.parent)
        page.write(for_readers, page.text_of(made))
    return 0


def main(arguments: list[str]) -> int:
    """Run the notebook named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.pipeline.run", description="Run a notebook as a stage"
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("executed", type=Path, help="where the executed copy goes")
    parser.add_argument(
        "--part", choices=fingerprint.PARTS, default="all", help="the cells to run (default: all)"
    )
    parser.add_argument(
        "--params", type=Path, default=stage_parameters.FILE, metavar="FILE", help="(%(default)s)"
    )
    parser.add_argument(
        "-p",
        dest="chosen",
        action="append",
        default=[],
        metavar="KEY",
        help="parameters of FILE: SECTION, SECTION:NAME,NAME or NAME=KEY",
    )
    parser.add_argument(
        "--page", type=Path, help="where the notebook with its outputs for readers goes"
    )
    parser.add_argument(
        "-y",
        dest="parameters",
        action="append",
        default=[],
        metavar="YAML",
        help="parameters, {name: value}",
    )
    given = parser.parse_args(arguments)
    os.environ.setdefault(
        "PYDEVD_DISABLE_FILE_VALIDATION", "1"
    )  # else the debugger warns of Python's frozen modules
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not given.notebook.is_file():
        parser.error(f"there is no notebook {given.notebook}")
    if given.page and given.part == "measure":
        parser.error("a page shows what a notebook tells: give it to --part tell or all")
    if why := links.refused_now(fingerprint.ROOT):
        print(why, file=sys.stderr)
        return NOT_STARTED
    try:
        chosen = stage_parameters.chosen(given.chosen, given.params)
        values = chosen | stage_parameters.written(given.parameters)
    except ValueError as error:
        parser.error(str(error))
    before = inputs.at_start(fingerprint.ROOT)
    try:
        code = run(given.notebook, given.executed, given.part, values, given.page)
    except KeyboardInterrupt:  # the kernel has had its own, and is shut down
        print("Stopped.", file=sys.stderr)
        return 1
    if code == 0:
        why = stage_parameters.edited(chosen, given.chosen, given.params)
        if why := why or inputs.edited(before):
            print(why, file=sys.stderr)
            return 1  # or DVC would record the new values with these results
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
