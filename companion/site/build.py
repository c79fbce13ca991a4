"""The site: gathers pages, notebooks, figures and networks into one folder and runs Sphinx on it.

    python -m companion.site.build build/site/html

Pages keep their places, so most links between them need no change. What a link leads to and is no
page of the site goes there as a plain file. Nothing is loaded from elsewhere, now or by a reader.
"""

import argparse
import json
import lzma
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from nbformat import NotebookNode

import nag
from companion.pipeline.page import FOLDER as PAGES
from companion.pipeline.page import INJECTED, pages_of
from companion.pipeline.page import which as page_kind
from companion.report import links, pages
from nag.data.fashion_mnist import CLASSES
from nag.support.commands import any_terminal
from nag.support.files import read_json
from nag.support.paths import RESULTS, ROOT, WEIGHTS

SITE = ROOT / "site"
HOME = ("README.md", "docs/README.md")  # the site has a home of its own
TEXTS = ("imagenet/README.md", "data/README.md")  # beside docs/
LIVE = ("sit.safetensors", "estimator-linear.safetensors")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
SHOWN_AS_THEY_ARE = (".png", ".svg", ".md", ".json", ".csv", ".npz", ".safetensors")


def documents() -> list[str]:
    """The files of the repository that become pages of the site."""
    docs = [path for path in pages.PAGES if path not in HOME]
    return [
        *docs,
        *TEXTS,
        *(f"{PAGES}/{path.name}" for path in sorted((ROOT / PAGES).glob("*.ipynb"))),
    ]


class Links:
    """Rewrites the links of one page of the repository for its place on the site."""

    def __init__(self, target: Path, known: set[str], repository: str | None):
        self.target, self.known, self.repository = target, known, repository

    def __call__(self, text: str, page: str) -> str:
        """The Markdown text of `page` with links that work on the site; images are copied."""
        return LINK.sub(lambda match: self._link(match, page), text)

    def _link(self, match: re.Match, page: str) -> str:
        image, label, address = match.groups()
        path, _, anchor = address.partition("#")
        if not path or re.match(r"[a-z-]+:", path):
            return match[0]
        file = os.path.relpath(ROOT / page / ".." / path, ROOT)
        if image:
            copy(ROOT / file, self.target / file)
            return match[0]
        if found := self._document(file):
            here = os.path.relpath(found, Path(page).parent)
            return f"[{label}]({here}{'#' + anchor if anchor else ''})"
        if self.repository:
            kind = "tree" if (ROOT / file).is_dir() else "blob"
            return f"[{label}](https://github.com/{self.repository}/{kind}/{links.BRANCH}/{file})"
        if (ROOT / file).is_dir():
            return label
        name = file if file.endswith(SHOWN_AS_THEY_ARE) else f"{file}.txt"
        copy(ROOT / file, self.target / "extra" / "files" / name)
        return f"[{label}](file-of:{os.path.relpath('files/' + name, Path(page).parent)})"

    def _document(self, file: str) -> str | None:
        """The page of the site that stands for a file of the repository, if one does."""
        if file in self.known:
            return file
        if file in HOME:
            return "index.md"
        path = Path(file)
        if path.suffix == ".ipynb" and (found := pages_of(path.stem, ROOT / PAGES)):
            return f"{PAGES}/{found[0]}.ipynb"
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        return f"api/{module}.rst" if path.suffix == ".py" and module in modules() else None


def copy(source: Path, target: Path) -> None:
    """Copy a file, making folders."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@cache
def modules() -> dict[str, str]:
    """The modules of `nag` that have a docstring, with its first sentence."""
    return {
        ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__"): sentence
        for room, found in pages.modules().items()
        if room.split("/")[0] == "nag"
        for file, sentence in found
    }


def section(file: str, heading: str) -> str:
    """A section of a Markdown page, from its heading to the next of its level."""
    text = (ROOT / file).read_text(encoding="utf-8")
    match = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not match:
        raise ValueError(f"{file} has no section {heading!r}: see site/index.md")
    return match[0]


def _title(notebook: dict, page: str) -> str:
    """What a page of a notebook is called in the table of contents."""
    which = page_kind(notebook["notebook"], page)
    return f"{notebook['notebook'][:2]} · {notebook['brief']}" + (f" ({which})" if which else "")


def _of(path: str) -> Iterator[tuple[dict, str]]:
    for notebook in pages.notebooks():
        if notebook["path"] == path:
            for page in pages_of(notebook["notebook"], ROOT / PAGES):
                yield notebook, page


def toctree(path: str, *first: str) -> str:
    """The table of contents of a section: pages, then those of the notebooks of a reader's path."""
    rows = [*first, *(f"{_title(n, page)} <{PAGES}/{page}>" for n, page in _of(path))]
    return "\n".join(["```{toctree}", ":hidden:", "", *rows, "```"])


def listed(path: str) -> str:
    """The notebooks of a reader's path as a list, each with all its pages."""
    rows = []
    for notebook in pages.notebooks():
        found = pages_of(notebook["notebook"], ROOT / PAGES)
        if notebook["path"] != path or not found:
            continue
        name = f"{notebook['notebook'][:2]} · {notebook['subject']}"
        more = [
            f"[{page_kind(notebook['notebook'], page)}]({PAGES}/{page}.ipynb)" for page in found[1:]
        ]
        rows.append(
            f"* [{name}]({PAGES}/{found[0]}.ipynb)" + "".join(f" · {link}" for link in more)
        )
    return "\n".join(rows)


def exported() -> str:
    """The names that `import nag` brings, as links to where they are described."""
    found = [(name, getattr(nag, name).__module__) for name in nag.__all__ if name != "SAMPLERS"]
    return ", ".join(f"{{py:obj}}`{name} <{module}.{name}>`" for name, module in found) + "."


def listed_modules() -> str:
    """The modules of the API reference, a list for each room, and their table of contents."""
    found, rows, room = modules(), [], ""
    for module, sentence in found.items():
        inner = module.split(".")[1] if module.count(".") > 1 else "nag"
        if inner != room:
            rows += ["", f"## {inner}" if inner != "nag" else "## The core", ""]
            room = inner
        rows.append(f"* [{module}](api/{module}.rst): {sentence}")
    return "\n".join(
        [*rows, "", "```{toctree}", ":hidden:", "", *(f"api/{m}" for m in found), "```"]
    )


def stage_api(target: Path) -> None:
    """A page for each module."""
    for module in modules():
        own = "   :no-members:\n" if module == "nag" else ""
        text = f"{module}\n{'=' * len(module)}\n\n.. automodule:: {module}\n{own}"
        place = target / "api" / f"{module}.rst"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


def folded(page: NotebookNode) -> NotebookNode:
    """The page with its plumbing folded: parameters, setup, what was not run here, and what draws.

    Neighbours that show nothing become one cell, so that a reader meets one line."""
    cells: list[NotebookNode] = []
    told = page.metadata["page"]["part"] == "tell"
    for cell in page.cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and (told or tags & {"parameters", "setup", "tell", INJECTED}):
            before = cells[-1] if cells else cell
            if "hide-input" in before.metadata.get("tags", []) and not before.outputs:
                cell.source = f"{before.source.rstrip()}\n\n{cell.source}"
                cells.pop()
            cell.metadata["tags"] = ["hide-input"]
        cells.append(cell)
    page.cells = cells
    return page


def stage_notebook(file: Path, place: Path, links_of: Callable[[str], str]) -> None:
    """A notebook's page with links for the site, folded, and figures with alternative texts."""
    page = folded(nbformat.read(file, 4))
    heading = ""
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = links_of(cell.source)
            found = re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE)
            heading = re.sub(r"[$\\*_`]", "", found[-1]) if found else heading
        else:
            cell.metadata["mystnb"] = {"image": {"alt": f"Figure: {heading}"}}
    place.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(page, place)


def stage_vendor(static: Path) -> None:
    """Other people's scripts, unpacked."""
    for file in (SITE / "vendor").iterdir():
        if file.suffix == ".xz":
            place = static / "vendor" / file.stem
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(lzma.decompress(file.read_bytes()))
        else:
            copy(file, static / "vendor" / file.name)


def stage_live(static: Path) -> int:
    """What the live page and the explorer load; returns how many bytes the live page does."""
    stage_vendor(static)
    for name in LIVE:
        copy(WEIGHTS / name, static / "live" / name)
    for folder in ("live", "explorer"):
        for file in (RESULTS / folder).glob("*"):
            copy(file, static / folder / file.name)
    loaded = [*static.glob("live/*"), *static.glob("vendor/ort*m*")]
    return sum(file.stat().st_size for file in loaded)


def stage_sections(target: Path, rewrite: Links, loaded: int) -> None:
    """The site's own pages, templates in site/ with lists of notebooks and modules."""
    environment = Environment(
        loader=FileSystemLoader(SITE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    calibration = read_json(RESULTS / "curves" / "calibration-linear.json")
    environment.globals |= {
        "bias": json.dumps({"t": calibration["t"], "value": calibration["bias"]}),
        "classes": CLASSES,
        "exported": exported,
        "listed": listed,
        "megabytes": round(loaded / 1e6),
        "modules": listed_modules,
        "section": lambda file, heading: rewrite(section(file, heading), file),
        "toctree": toctree,
    }
    for file in SITE.glob("*.md"):
        text = environment.get_template(file.name).render()
        (target / file.name).write_text(text, encoding="utf-8")
    for file in (RESULTS / "site").glob("*"):
        copy(file, target / "results" / "site" / file.name)


def stage(target: Path) -> None:
    """Gather everything that Sphinx reads in an empty folder."""
    shutil.rmtree(target, ignore_errors=True)
    known = set(documents())
    rewrite = Links(target, known, links.repository())
    (target / "extra").mkdir(parents=True)
    shutil.copytree(SITE / "static", target / "static")
    loaded = stage_live(target / "static")
    for name in known:
        if name.endswith(".ipynb"):
            stage_notebook(ROOT / name, target / name, partial(rewrite, page=name))
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            text = (ROOT / name).read_text(encoding="utf-8")
            (target / name).write_text(rewrite(text, name), encoding="utf-8")
    copy(SITE / "conf.py", target / "conf.py")
    stage_api(target)
    stage_sections(target, rewrite, loaded)


def build(target: Path, work: Path, processes: int = 1) -> int:
    """Stage below `work` and build the HTML into `target`; returns Sphinx's exit code, which is not
    zero after any warning."""
    from sphinx.cmd.build import build_main

    stage(work / "source")
    shutil.rmtree(target, ignore_errors=True)
    flags = ["-b", "html", "-q", "-W", "--keep-going", "-j", str(processes)]
    return build_main([*flags, "-d", str(work / "trees"), str(work / "source"), str(target)])


def main(arguments: list[str]) -> int:
    """Build the site into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m companion.site.build")
    parser.add_argument("target", type=Path, help="folder of the HTML, which is emptied first")
    given = parser.parse_args(arguments)
    any_terminal()
    target = given.target.absolute()
    code = build(target, target.parent / "work")
    if code == 0:
        print(f"The site is in {given.target}; look at it with\n"
              f"  python -m http.server --directory {given.target}")  # fmt: skip
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
