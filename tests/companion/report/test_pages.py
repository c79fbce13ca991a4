"""README.md and docs/ are current and well formed; links lead somewhere, and the code runs."""

import re
from pathlib import PurePosixPath

import pytest
import yaml

from companion.report import __main__ as command
from companion.report import pages, rendering
from companion.report.evidence import Reader
from companion.report.results import committed
from nag.support.paths import ROOT

TEXTS = {path: (ROOT / path).read_text(encoding="utf-8") for path in pages.PAGES}


@pytest.fixture(scope="module")
def made():
    return pages.render(Reader())


def test_pages_are_current(made):
    """With the results as they are or as committed: `make repro` may change last digits."""
    stale = [path for path, text in made.items() if text != TEXTS[path]]
    if stale:
        of_commit = pages.render(Reader(committed))
        stale = [path for path in stale if of_commit[path] != TEXTS[path]]
    assert stale == [], "run `make docs` and commit the pages"


def bench_page(xl):
    """docs/benchmarks.md of made-up numbers."""
    found = {"peaks": {"fp32": 101.2, "bf16": 404.8}, "rows": []}
    for name, ratio in [("plain fp32", 1.0), ("bf16 compiled", 3.5)]:
        row = {"variant": name, "ratio": ratio, "share": 0.42, "first": 7.26, "error": 0.0031}
        found["rows"].append(row)
    rows = [{key: row[key] for key in ("variant", "ratio", "share")} for row in found["rows"]]
    machine = {"cpu": "Some CPU", "features": ["avx2"], "device": "cpu", "threads": 2}
    machine |= {"native_bf16": False, "torch": "2.14.1", "python": "3.12.1"}
    mini = {"training": found | {"rows": rows}, "sampling": found}
    mini |= {"batch": 128, "images": 300, "rounds": 5}
    bench = {"machine": machine, "mini": mini, "xl": xl(found)}
    template = rendering.environment(Reader()).get_template("pages/docs/benchmarks.md.j2")
    return template.render(to=lambda path: path, bench=bench)


def test_the_page_of_a_benchmark_has_its_tables():
    text = bench_page(
        lambda found: {
            "load": {"bytes": 2.7e9, "memory": 1.02},
            "sampling": found,
            "latents": 2,
            "rounds": 3,
        }
    )
    assert text.count("| bf16 compiled | 3.50 | 42% | 7.3 | 3e-03 |\n") == 2
    assert text.count("| bf16 compiled | 3.50 | 42% |\n") == 1
    assert text.count("\n\n| variant | times as fast as plain |") == 3
    assert "Some CPU (avx2), device cpu, 2 threads, no native bf16, torch 2.14.1" in text
    assert "2.70 GB, which take 1.02 of the file's size" in text and "No run is stored" not in text
    assert not re.search(r"\n\n\n|\|\n\n\|", text)


def test_the_page_of_a_benchmark_without_the_large_network():
    text = bench_page(lambda found: {"left_out": "it needs 5 GiB of memory"})
    assert "Left out: it needs 5 GiB of memory." in text and text.count("| variant |") == 2


def test_pages_have_no_faults():
    assert pages.faults(TEXTS) == []


def test_faults_are_found():
    long = "x\n" * (pages.LINES + 1) + f"| {'y' * (pages.CELL + 1)} | z |\n"
    found = pages.faults({"README.md": long, "docs/a.md": "We are told."})
    assert len(found) == 3
    assert "docs/a.md" in found[0] and "'told'" in found[0]
    assert "202 lines" in found[1] and f"{pages.CELL + 1} characters" in found[2]


def test_named_rows_lead_to_their_places():
    text = "# C4 here\n\nC4 (Q1), `C4`, [C4](#c4), F99, F10\n```\nC4\n```"
    made = pages.cross_linked(text, "docs/findings.md", {"C4", "Q1", "F10"})
    wanted = (
        "[C4](claims.md#c4) ([Q1](questions.md#q1)), `C4`, [C4](#c4), F99, [F10](findings.md#f10)"
    )
    assert made == text.replace("C4 (Q1), `C4`, [C4](#c4), F99, F10", wanted)


def test_nothing_stands_in_docs_that_is_not_made():
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} == {
        path for path in pages.PAGES if path.startswith("docs/")
    }


@pytest.mark.parametrize("path", pages.PAGES)
def test_links_lead_somewhere(path):
    folder = (ROOT / path).parent
    targets = re.findall(r'\]\(((?!http)[^) ]+)[^)]*\)|src="([^"]+)"', TEXTS[path])
    for target in (link or image for link, image in targets):
        file, _, anchor = target.partition("#")
        there = folder / file if file else ROOT / path
        assert there.exists(), f"{path} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", pages.PAGES)
def test_rows_of_a_table_have_equal_numbers_of_cells(path):
    table = []
    for line in [*TEXTS[path].splitlines(), ""]:
        if line.startswith("|"):
            table.append(len(re.findall(r"(?<!\\)\|", line)))
        elif table:
            assert len(set(table)) == 1 and len(table) > 2, f"{path}: {line or 'a table'}"
            table = []


def test_five_lines_of_python():
    code = re.search(r"```python\n(.*?)```", TEXTS["README.md"], re.S).group(1)
    lines = [
        line
        for line in code.splitlines()
        if line.strip() and not line.startswith(("import", "from", "#"))
    ]
    assert len(lines) <= 5  # that they run: tests/test_package.py


def test_every_notebook_is_on_the_map_with_its_stage_and_figures():
    rows = pages.notebooks()
    assert [row["notebook"] for row in rows] == sorted(
        path.stem for path in (ROOT / "notebooks").glob("*.ipynb")
    )
    plans = {
        file: yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"]
        for file in {row["pipeline"] for row in rows} - {None}
    }
    for row in rows:
        assert all((ROOT / figure).is_file() for figure in row["figures"]), row["notebook"]
        if row["pipeline"]:
            stage = plans[row["pipeline"]][row["stage"]]
            assert f"notebooks/{row['notebook']}.ipynb" in stage.get("do", stage)["cmd"]


def test_every_module_with_a_docstring_is_on_the_map(tmp_path):
    (tmp_path / "nag/room").mkdir(parents=True)
    (tmp_path / "nag/room/a.py").write_text('"""What a\nis.\n\nMore."""\n')
    (tmp_path / "nag/room/__init__.py").write_text("")
    assert pages.modules(tmp_path) == {"nag/room": [("nag/room/a.py", "What a is.")]}
    rooms = pages.modules()
    assert "nag/samplers" in rooms and "companion/report" in rooms
    assert all(PurePosixPath(file).parent == PurePosixPath(room)
               for room, found in rooms.items() for file, _ in found)  # fmt: skip


@pytest.mark.parametrize(
    "error, message",
    [
        (FileNotFoundError("no results at x"), "docs: no results at x"),
        (KeyError("a.json has nothing under 'k'"), "docs: a.json has nothing under 'k'"),
        (ValueError("README.md has 300 lines"), "docs: README.md has 300 lines"),
    ],
)
def test_the_command_fails_with_one_clear_sentence(monkeypatch, error, message):
    def fail():
        raise error

    monkeypatch.setitem(command.VERBS, "docs", fail)
    with pytest.raises(SystemExit) as raised:
        command.main(["docs"])
    assert raised.value.code == message


def test_the_command_names_the_line_of_a_template(monkeypatch, tmp_path):
    (tmp_path / "sentences").mkdir()
    (tmp_path / "sentences/t.md.j2").write_text("Fine.\n{{ misspelt }}\n")

    def fill():
        rendering.items(Reader(), "t.md.j2", folder=tmp_path)

    monkeypatch.setitem(command.VERBS, "docs", fill)
    with pytest.raises(SystemExit, match=r"'misspelt' is undefined \(t.md.j2, line 2\)"):
        command.main(["docs"])


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["docs", "more"]])
def test_the_command_says_what_it_can_do(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2 and "usage: python -m companion.report" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n    {verb} " in shown for verb in command.VERBS)
