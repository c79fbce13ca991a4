"""How the site is put together: links, sections, folded notebooks."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from companion.report import pages
from companion.site import build


@pytest.fixture
def rewrite(tmp_path):
    return build.Links(tmp_path, set(build.documents()), None)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("[a](claims.md#c1)", "[a](claims.md#c1)"),
        ("[a](../README.md)", "[a](../index.md)"),
        ("[a](https://arxiv.org/x)", "[a](https://arxiv.org/x)"),
        ("[a](#here)", "[a](#here)"),
        ("[a](../nag/guidance.py)", "[a](../api/nag.guidance.rst)"),
        ("[a](../nag/__init__.py)", "[a](../api/nag.rst)"),
        ("[a](../notebooks/20_weight_sweep.ipynb)", "[a](../pages/20_weight_sweep-sit.ipynb)"),
        ("[a](../tests)", "a"),
        ("[[b] a](../dvc.yaml)", "[[b] a](file-of:../files/dvc.yaml.txt)"),
        ("[a](../results/metrics.json)", "[a](file-of:../files/results/metrics.json)"),
    ],
)
def test_links(rewrite, text, wanted):
    assert rewrite(text, "docs/studies.md") == wanted


def test_what_a_link_leads_to_is_there(rewrite, tmp_path):
    rewrite("[a](../dvc.yaml) ![b](../results/figures/sit_shift.png)", "docs/studies.md")
    assert (tmp_path / "extra/files/dvc.yaml.txt").read_bytes().startswith(b"# The main pipeline")
    assert (tmp_path / "results/figures/sit_shift.png").is_file()


def test_links_to_a_known_repository(tmp_path):
    rewrite = build.Links(tmp_path, set(build.documents()), "me/it")
    assert (
        rewrite("[a](../tests)", "docs/studies.md")
        == "[a](https://github.com/me/it/tree/main/tests)"
    )
    assert rewrite("[a](../dvc.yaml)", "docs/x.md").endswith("/blob/main/dvc.yaml)")


def test_a_section_of_a_page():
    text = build.section("README.md", "Limits")
    assert text.startswith("## Limits\n") and text.count("\n## ") == 0
    with pytest.raises(ValueError, match="no section"):
        build.section("README.md", "Nothing")


def notebook(part):
    shown = [new_output("stream", name="stdout", text="x")]
    cells = [
        new_markdown_cell("# $T$"),
        new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("import x", metadata={"tags": ["setup"]}),
        new_code_cell("measure()"),
        new_code_cell("draw()", metadata={"tags": ["tell"]}, outputs=shown),
        new_code_cell("say()", metadata={"tags": ["tell"]}, outputs=shown),
    ]
    return new_notebook(cells=cells, metadata={"page": {"notebook": "x", "part": part}})


def test_what_was_not_run_and_plumbing_are_folded():
    told = build.folded(notebook("tell")).cells
    assert [cell.source for cell in told[1:]] == [
        "n = 1\n\nimport x\n\nmeasure()\n\ndraw()",
        "say()",
    ]
    assert all(cell.metadata["tags"] == ["hide-input"] and cell.outputs for cell in told[1:])
    ran = build.folded(notebook("all")).cells
    assert [cell.source for cell in ran[1:]] == [
        "n = 1\n\nimport x",
        "measure()",
        "draw()",
        "say()",
    ]
    assert not ran[2].metadata.get("tags")


def test_figures_are_named_by_their_section(tmp_path):
    nbformat.write(notebook("tell"), tmp_path / "a.ipynb")
    build.stage_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", str.upper)
    cells = nbformat.read(tmp_path / "b.ipynb", 4).cells
    assert cells[1].metadata["mystnb"]["image"]["alt"] == "Figure: T"


def test_every_document_and_notebook_is_in_a_section():
    """So that a reader finds it: Sphinx would warn, but late."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in build.SITE.glob("*.md"))
    paths = {row["path"] for row in pages.notebooks()}
    assert all(f'toctree("{path}"' in text for path in paths)
    missing = [
        name for name in build.documents() if name.endswith(".md") and f'"{name[:-3]}"' not in text
    ]
    assert missing == []
