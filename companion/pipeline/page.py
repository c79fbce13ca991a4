"""A run notebook as a page: the whole notebook with the outputs that a reader needs, kept in Git.

A stage writes pages/NAME.ipynb of what it ran. Measuring a study takes hours, so its page comes
from the stage that tells: cells that draw and word ran on the committed numbers, cells that measure
stand there without outputs, and a line on the page says so. A notebook of seconds is run whole, at
its small defaults. A page has no time, path, address or version in it and images of few colours, so
that the same run gives the same bytes. Text and code follow the notebook without a run, and
each notebook has a line that links to its pages:

    python -m companion.pipeline.page            # after editing a notebook's text
    python -m companion.pipeline.page --check    # say which pages are not as their notebooks are
"""

import argparse
import base64
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from PIL import Image

from companion.pipeline import fingerprint
from nag.support.files import atomic

FOLDER = "pages"
INJECTED = "injected-parameters"  # papermill's tag of the cell with a stage's parameters
WIDEST, COLOURS = 1600, 128  # of an image: pixels, and colours in its palette
POINTER = re.compile(r"\n+\*With figures: .*\*\s*$")  # a notebook's line that links to its pages
WHICH = {
    "sit": "SiT-mini",
    "dit": "DiT-mini",
    "linear": "SiT's path",
    "ddpm": "DiT's path",
    "sde": "stochastic sampler",
}  # the pages of a notebook that has several, by what follows its name
SEEN = ("image/png", "text/html", "text/markdown", "text/plain")  # the first there is, is kept


def small(png: str) -> str:
    """A base64 PNG in a palette of COLOURS, on white, at most WIDEST pixels wide, without
    metadata."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
    if opaque.width > WIDEST:
        height = round(opaque.height * WIDEST / opaque.width)
        opaque = opaque.resize((WIDEST, height), Image.Resampling.LANCZOS)
    few = opaque.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    file = io.BytesIO()
    few.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def plain(text: str) -> str:
    """A text without this machine's paths, addresses of objects and random names of tables."""
    text = text.replace(f"{fingerprint.ROOT}/", "").replace(str(fingerprint.ROOT), ".")
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    for k, name in enumerate(dict.fromkeys(re.findall(r"\bT_[0-9a-f]{5}\b", text))):
        text = text.replace(name, f"T_{k}")
    return text


def outputs_seen(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """What a page keeps of a cell's outputs: printed text, and the best form of each value."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stdout":
            kept.append(nbformat.v4.new_output("stream", name="stdout", text=plain(output.text)))
        elif output.output_type in ("display_data", "execute_result"):
            kind = next((kind for kind in SEEN if kind in output.data), None)
            if kind:
                value = output.data[kind]
                value = small(value) if kind == "image/png" else plain(value)
                kept.append(nbformat.v4.new_output("display_data", {kind: value}))
    return kept


def note(name: str, part: str, measures: bool) -> str:
    """The line that says what of a page was run, and links to its notebook."""
    source = f"*This is [notebooks/{name}.ipynb](../notebooks/{name}.ipynb)"
    if part != "tell":
        return f"{source}, run from top to bottom at its small defaults.*"
    if not measures:
        return f"{source} on the committed results.*"
    return (
        f"{source} with the committed results. Cells that measure ran as a stage of the pipeline "
        "and stand here without output; the parameters in the first cell are small defaults.*"
    )


def pages_of(notebook: str, folder: Path) -> list[str]:
    """The names of a notebook's pages; first the one that is shown first, the SiT's or that of its
    path; empty if there is none."""
    found = [path.stem for path in folder.glob(f"{notebook}*.ipynb")]
    return sorted(found, key=lambda name: (not name.endswith(("-sit", "-linear")), name))


def which(notebook: str, page: str) -> str:
    """Which of a notebook's pages one is, such as its network; "" for the only one."""
    part = page.removeprefix(notebook).strip("-")
    return WHICH.get(part, part)


def linked(text: str, folder: Path) -> str:
    """A notebook's text whose links to other notebooks lead to their pages, where there are."""

    def page(match: re.Match) -> str:
        found = pages_of(match[1], folder)
        return f"]({found[0]}.ipynb)" if found else f"](../notebooks/{match[1]}.ipynb)"

    return re.sub(r"\]\((\d\d_\w+)\.ipynb\)", page, text)


def pointing(file: Path, folder: Path) -> str:
    """The text of a notebook's file, its first cell ending with links to the pages there are."""
    content = json.loads(file.read_text(encoding="utf-8"))
    links = [
        f"[{which(file.stem, page) or 'page'}](../{folder.name}/{page}.ipynb)"
        for page in pages_of(file.stem, folder)
    ]
    text = POINTER.sub("", "".join(content["cells"][0]["source"]))
    text += f"\n\n*With figures: {', '.join(links)}.*" if links else ""
    content["cells"][0]["source"] = text.splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def compose(
    notebook: NotebookNode,
    outputs: dict[int, list[NotebookNode]],
    injected: str,
    about: dict[str, Any],
    folder: Path,
) -> NotebookNode:
    """The page of a notebook: `outputs` by place of the code cell, `injected` the source of the
    cell with the stage's parameters ("" if none), `about` its metadata {notebook, part}."""
    cells, place = [], count()
    measures = any(c.cell_type == "code" and not c.metadata.get("tags") for c in notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.get("tags", [])
            metadata = {"tags": list(tags)} if tags else {}
            shown = outputs.get(next(place), [])
            cells.append(new_code_cell(cell.source, metadata=metadata, outputs=shown))
            if injected and "parameters" in tags:
                cells.append(new_code_cell(injected, metadata={"tags": [INJECTED]}))
        else:
            cells.append(new_markdown_cell(linked(POINTER.sub("", cell.source), folder)))
            if len(cells) == 1:
                cells.append(new_markdown_cell(note(about["notebook"], about["part"], measures)))
    for number, cell in enumerate(cells):
        cell["id"] = str(number)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "page": about})
    made.nbformat_minor = 5
    return made


def of_run(notebook: Path, executed: NotebookNode, part: str, folder: Path) -> NotebookNode:
    """The page of a notebook of which a part has been executed."""
    source = nbformat.read(notebook, 4)
    ran = {cell["id"]: cell.get("outputs", []) for cell in executed.cells}
    code = [cell for cell in source.cells if cell.cell_type == "code"]
    outputs = {k: outputs_seen(ran[c["id"]]) for k, c in enumerate(code) if c["id"] in ran}
    injected = [c.source for c in executed.cells if INJECTED in c.metadata.get("tags", [])]
    about = {"notebook": notebook.stem, "part": part}
    return compose(source, outputs, injected[0] if injected else "", about, folder)


def updated(page: Path, notebooks: Path) -> NotebookNode:
    """A page with its notebook's present text and code and the page's outputs.

    Raises ValueError if cells of code came or went, so that outputs have no place."""
    old = nbformat.read(page, 4)
    about = dict(old.metadata["page"])
    source = nbformat.read(notebooks / f"{about['notebook']}.ipynb", 4)
    injected = [c.source for c in old.cells if INJECTED in c.metadata.get("tags", [])]
    code = [
        cell
        for cell in old.cells
        if cell.cell_type == "code" and INJECTED not in cell.metadata.get("tags", [])
    ]
    now = [cell for cell in source.cells if cell.cell_type == "code"]
    if [c.metadata.get("tags", []) for c in code] != [c.metadata.get("tags", []) for c in now]:
        raise ValueError(
            f"{page.name}: its notebook has other cells of code now: run the stage that writes it"
        )
    outputs = {k: list(cell.outputs) for k, cell in enumerate(code)}
    return compose(source, outputs, injected[0] if injected else "", about, page.parent)


def text_of(page: NotebookNode) -> str:
    """The bytes of a page's file, as text."""
    return nbformat.writes(page) + "\n"


def write(path: Path, text: str) -> None:
    """Write a page or a notebook atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def record(page: str, old: str, new: str) -> None:
    """Write the hash of a page's new text into the lock that has the old one's, for a stage whose
    output has another hash would run again."""

    def entry(text: str) -> str:
        content = text.encode()
        md5 = hashlib.md5(content).hexdigest()
        return f"- path: {page}\n      hash: md5\n      md5: {md5}\n      size: {len(content)}\n"

    for pipeline in fingerprint.PIPELINES:
        lock = (fingerprint.ROOT / pipeline).with_suffix(".lock")
        if lock.is_file() and entry(old) in (text := lock.read_text(encoding="utf-8")):
            write(lock, text.replace(entry(old), entry(new)))


def main(arguments: list[str]) -> int:
    """Bring the pages' text up to their notebooks, and the notebooks' links to the pages; returns 1
    if --check finds something to do."""
    parser = argparse.ArgumentParser(prog="python -m companion.pipeline.page")
    parser.add_argument("--check", action="store_true", help="write nothing, list what is stale")
    check, stale = parser.parse_args(arguments).check, False
    pages, notebooks = fingerprint.ROOT / FOLDER, fingerprint.ROOT / "notebooks"

    def follow(path: Path, text: str) -> None:
        nonlocal stale
        if text != path.read_text(encoding="utf-8"):
            stale = True
            if check:
                print(
                    f"{path.name} does not follow its notebook or pages: run `make pages`",
                    file=sys.stderr,
                )
            else:
                write(path, text)

    for path in sorted(notebooks.glob("*.ipynb")):
        follow(path, pointing(path, pages))
    for path in sorted(pages.glob("*.ipynb")):
        old = path.read_text(encoding="utf-8")
        try:
            new = text_of(updated(path, notebooks))
        except ValueError as error:
            print(error, file=sys.stderr)
            stale = True
            continue
        follow(path, new)
        if new != old and not check:
            record(f"{FOLDER}/{path.name}", old, new)
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
