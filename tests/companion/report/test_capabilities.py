"""The table of features: our own column has evidence that exists, and the page has the file."""

import re

import pytest

from companion.report.capabilities import OURS, PROJECTS, SIGNS, evidence, read, short
from nag.support.paths import ROOT

HEADER = f"number,capability,{','.join(PROJECTS)},evidence,note\n"
ROWS = read()
PAGE = (ROOT / "docs/capabilities.md").read_text(encoding="utf-8")


def write(tmp_path, *lines):
    path = tmp_path / "features.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


def test_our_evidence_exists():
    assert evidence() == []


def test_every_capability_has_a_known_value_for_all_eight_projects():
    assert len(PROJECTS) == 8 and PROJECTS[0] == OURS
    assert [row["number"] for row in ROWS] == list(range(1, 39))
    assert len({row["capability"] for row in ROWS}) == 38
    assert {row[project] for row in ROWS for project in PROJECTS} <= set(SIGNS)


def test_nobody_else_has_what_the_paper_and_its_rivals_need():
    """Rows 14 to 19; the one exception is EDM-ES, whose subject epsilon scaling is."""
    others = {
        (row["number"], project): row[project]
        for row in ROWS
        if 14 <= row["number"] <= 19
        for project in PROJECTS[1:]
        if row[project] != "n"
    }
    assert others == {(17, "EDM-ES"): "y", (19, "EDM-ES"): "partial"}
    assert all(row[OURS] == "y" for row in ROWS if 14 <= row["number"] <= 19)


def test_a_fact_about_diffusers_names_its_version():
    assert all(
        "0.40" in row["note"] for row in ROWS if re.search(r"diffusers:|diffusers \d", row["note"])
    )
    assert "diffusers at version 0.40" in PAGE


def test_bad_evidence_is_reported(tmp_path):
    (tmp_path / "code.py").write_text(
        "import os\nX = 1\nY: int = 2\nclass C:\n    def inner(self): pass\ndef f(): pass\n"
    )

    def line(number, ours, proof):
        return f"{number},what {number},{ours},{','.join('n' * 7)},{proof},"

    rows = read(
        write(
            tmp_path,
            line(1, "y", "code.py code.py:X code.py:Y code.py:C code.py:f"),
            line(2, "y", "no.py"),
            line(3, "y", "code.py:os code.py:inner"),
            line(4, "partial", ""),
            line(5, "n", "code.py"),
        )
    )
    assert evidence(rows, tmp_path) == [
        "row 2: no.py does not exist",
        "row 3: code.py does not define os",
        "row 3: code.py does not define inner",
        "row 4: 'partial' with 0 entries of evidence",
        "row 5: 'n' with 1 entries of evidence",
    ]


@pytest.mark.parametrize(
    "line", ["1,a,y,n,n,n,n,n,n,maybe,x,", "1,a,y,n,n,n,n,n,n", "1,a,y,n,n,n,n,n,n,n,x,note,more"]
)
def test_a_damaged_row_is_named(tmp_path, line):
    with pytest.raises(ValueError, match="row 1: .*one of .*partial"):
        read(write(tmp_path, line))


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="git checkout"):
        read(tmp_path / "features.csv")


def test_the_page_has_the_file():
    _, _, *body = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert len(body) == len(ROWS)
    for row, line in zip(ROWS, body, strict=True):
        cells = [cell.strip(" *") for cell in line.split("|")[1:-1]]
        assert cells[0] == row["capability"] and cells[1:9] == [
            SIGNS[row[project]] for project in PROJECTS
        ]
        assert (
            len(re.findall(r"\]\(", cells[9])) == len(row["evidence"]) and row["note"] in cells[9]
        )


@pytest.mark.parametrize(
    "entry, shown",
    [
        ("nag/models.py:DiT", ("models.DiT", "nag/models.py")),
        ("notebooks/13_latents.ipynb", ("13_latents", "notebooks/13_latents.ipynb")),
        (".ci/run", (".ci/run", ".ci/run")),
    ],
)
def test_an_entry_of_evidence_is_short_and_leads_to_its_file(entry, shown):
    assert short(entry) == shown
