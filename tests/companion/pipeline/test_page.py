"""Pages of notebooks: what a run leaves for readers is small, the same each time, and follows the
notebook."""

import base64
import hashlib
import io
import json
import re

import nbformat
import numpy as np
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from companion.pipeline import fingerprint, page
from nag.support.paths import ROOT

PAGES = sorted((ROOT / page.FOLDER).glob("*.ipynb"))
TOTAL = 8_000_000  # bytes of all pages


def png(height=40, width=60):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 4)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository with one notebook, a page in it, and the executed notebook of a telling run."""
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    (tmp_path / "pages").mkdir()
    (tmp_path / "notebooks").mkdir()
    cells = [
        new_markdown_cell("# 7 · Title\n\nSee [10](10_other.ipynb) and [docs](../docs/a.md)."),
        new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("import x", metadata={"tags": ["setup"]}),
        new_code_cell("measure()"),
        new_code_cell("draw()", metadata={"tags": ["tell"]}),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = str(number)
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks/07_a.ipynb")
    return tmp_path


def executed(root, seconds="12.3"):
    notebook = nbformat.read(root / "notebooks/07_a.ipynb", 4)
    notebook.metadata["papermill"] = {"duration": seconds}
    del notebook.cells[3]
    injected = new_code_cell("# Parameters\nn = 9", metadata={"tags": [page.INJECTED]})
    notebook.cells.insert(2, injected)
    draw = notebook.cells[-1]
    draw.execution_count = 4
    draw.metadata["execution"] = {"iopub.status.busy": seconds}
    table = '<style>#T_0a1b2_row0 {}</style><table id="T_0a1b2"></table>'
    draw.outputs = [
        new_output("stream", name="stdout", text=f"see {root}/results/a.json\n"),
        new_output("stream", name="stderr", text=f"{seconds} s\n"),
        new_output("display_data", {"image/png": png(), "text/plain": "<Figure>"}),
        new_output("execute_result", {"text/html": table, "text/plain": "x"}, execution_count=4),
        new_output("execute_result", {"text/plain": "<a at 0x7f00>"}, execution_count=4),
    ]
    return notebook


def made(root, **options):
    return page.of_run(
        root / "notebooks/07_a.ipynb", executed(root, **options), "tell", root / "pages"
    )


def test_a_page_has_the_whole_notebook_and_only_what_readers_need(folder):
    found = made(folder)
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code] == [
        "n = 1",
        "# Parameters\nn = 9",
        "import x",
        "measure()",
        "draw()",
    ]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code[:-1])
    assert [list(o.get("data", {"text": 0})) for o in code[-1].outputs] == [
        ["text"],
        ["image/png"],
        ["text/html"],
        ["text/plain"],
    ]
    text = page.text_of(found)
    assert str(folder) not in text and "12.3" not in text and "0x7f00" not in text
    assert "see results/a.json" in text and "T_0a1b2" not in text and 'id=\\"T_0\\"' in text
    assert "../notebooks/07_a.ipynb" in found.cells[1].source and "stand here without" in text
    assert "papermill" not in text and set(found.metadata) == {"kernelspec", "page"}


def test_the_same_run_at_another_time_gives_the_same_bytes(folder):
    assert page.text_of(made(folder)) == page.text_of(made(folder, seconds="99.9"))


def test_images_are_small_opaque_and_of_bounded_width():
    for wide, shown in ((60, 60), (4000, page.WIDEST)):
        with Image.open(io.BytesIO(base64.b64decode(page.small(png(width=wide))))) as image:
            assert image.width == shown and image.mode == "P" and not image.info
            assert len(image.getcolors()) <= page.COLOURS


def test_an_image_of_few_colours_is_not_changed():
    pixels = np.zeros((8, 8, 4), "uint8")
    pixels[..., 3] = 255
    pixels[:4, :, 0] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    with Image.open(
        io.BytesIO(base64.b64decode(page.small(base64.b64encode(file.getvalue()).decode())))
    ) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels[..., :3])


def test_links_lead_to_pages_where_there_are(folder):
    assert (
        "[10](../notebooks/10_other.ipynb) and [docs](../docs/a.md)" in made(folder).cells[0].source
    )
    for name in ("10_other-dit", "10_other-sit"):
        (folder / f"pages/{name}.ipynb").touch()
    assert "[10](10_other-sit.ipynb)" in made(folder).cells[0].source


LOCK = """schema: '2.0'
stages:
  tell:
    outs:
    - path: results/answers/a.json
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 2
    - path: pages/07_a.ipynb
      hash: md5
      md5: {}
      size: {}
"""


def md5_and_size(path):
    return hashlib.md5(path.read_bytes()).hexdigest(), path.stat().st_size


def test_a_page_follows_the_text_of_its_notebook(folder, capsys):
    path = folder / "pages/07_a.ipynb"
    page.write(path, page.text_of(made(folder)))
    assert page.main(["--check"]) == 1  # the notebook does not link to its page yet
    assert page.main([]) == 0 and page.main(["--check"]) == 0
    first = nbformat.read(folder / "notebooks/07_a.ipynb", 4).cells[0].source
    assert first.endswith("\n\n*With figures: [page](../pages/07_a.ipynb).*")
    assert "With figures" not in path.read_text()
    capsys.readouterr()
    notebook = nbformat.read(folder / "notebooks/07_a.ipynb", 4)
    notebook.cells[0].source = "# 7 · Better"
    nbformat.write(notebook, folder / "notebooks/07_a.ipynb")
    before = nbformat.read(path, 4)
    lock = folder / "dvc.lock"
    lock.write_text(LOCK.format(*md5_and_size(path)))
    assert page.main(["--check"]) == 1 and "run `make pages`" in capsys.readouterr().err
    assert page.main([]) == 0 and page.main(["--check"]) == 0
    assert lock.read_text() == LOCK.format(*md5_and_size(path))
    after = nbformat.read(path, 4)
    assert after.cells[0].source == "# 7 · Better" and after.cells[-1] == before.cells[-1]
    del notebook.cells[3]
    nbformat.write(notebook, folder / "notebooks/07_a.ipynb")
    assert page.main(["--check"]) == 1 and "other cells of code" in capsys.readouterr().err
    assert nbformat.read(path, 4) == after


def stages():
    """(notebook, page, dependencies) of the pages that stages of all pipelines say they write."""
    for pipeline in fingerprint.PIPELINES:
        for stage in yaml.safe_load((ROOT / pipeline).read_text())["stages"].values():
            body = stage.get("do", stage)
            if match := re.search(
                r"notebooks/(\S+)\.ipynb.*--page pages/(\S+)\.ipynb", body["cmd"]
            ):
                assert any(f"pages/{match[2]}.ipynb" in out for out in body["outs"]), pipeline
                if match[1] == "${item}":  # a stage for many notebooks
                    yield from ((name, name, body["deps"]) for name in stage["foreach"])
                else:
                    yield match[1], match[2], body["deps"]


def there(dependency):
    """Whether a committed file that a stage names is there, for some value of its variables;
    arrays are not committed.
    """
    made = dependency.startswith(("build/", "results/arrays/"))
    return made or any(ROOT.glob(re.sub(r"\$\{[\w.]+\}", "*", dependency)))


def test_every_notebook_has_a_page_and_every_page_a_stage():
    patterns = [re.sub(r"\\\$\\\{\w+\\\}", r"[\\w-]+", re.escape(name)) for _, name, _ in stages()]
    unwritten = [
        path.stem for path in PAGES if not any(re.fullmatch(p, path.stem) for p in patterns)
    ]
    assert unwritten == []
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {name for name, *_ in stages()} >= notebooks
    shown = {json.loads(path.read_text())["metadata"]["page"]["notebook"] for path in PAGES}
    not_yet = {name for name, _, deps in stages() if not all(map(there, deps))}  # not measured
    assert notebooks - shown == not_yet


def test_notebooks_link_to_their_pages_and_pages_follow(capsys):
    assert page.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_clean_and_as_its_notebook_is(path):
    text = path.read_text(encoding="utf-8")
    assert page.text_of(page.updated(path, ROOT / "notebooks")) == text
    assert not re.search(r"/work/|/home/|/tmp/|0x[0-9a-f]{8}|20\d\d-\d\d-\d\dT", text)
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    told = [cell for cell in code if "tell" in cell.metadata.get("tags", [])]
    assert any(cell.outputs for cell in told)
    assert not any(o.output_type == "error" for cell in code for o in cell.outputs)


def test_all_pages_together_are_small():
    assert sum(path.stat().st_size for path in PAGES) < TOTAL


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_displayed_formula_is_a_paragraph(path):
    """Within a paragraph, Sphinx takes its two dollar signs for inline formulas."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown":
            for paragraph in cell.source.split("\n\n"):
                text = paragraph.strip()
                assert "$$" not in text or (text.startswith("$$") and text.endswith("$$"))
