"""Templates: numbers with their intervals, evidence by item, and errors instead of gaps."""

import jinja2
import pytest

from companion.report import rendering
from companion.report.evidence import Reader

NUMBERS = {"x": {"value": 2.0, "low": 1.5, "high": 2.5}, "w": 0.25}


def items(tmp_path, text, **more):
    (tmp_path / "sentences").mkdir()
    (tmp_path / "sentences/t.md.j2").write_text(text, encoding="utf-8")
    return rendering.items(Reader(lambda file: NUMBERS), "t.md.j2", folder=tmp_path, **more)


def test_an_item_has_its_text_and_the_places_of_its_numbers(tmp_path):
    first, second = items(
        tmp_path,
        '{% call item("A", title="T") %}\nIt is {{ result("a", "x") | show("+.1f") }},\n half '
        '{{ (result("a", "x/value") / 2) | show(".0f") }}.\n{% endcall %}\n'
        '{% call item("B") %}{{ word }} {{ study("b", "w") | show("g") }}{% endcall %}',
        word="at",
    )
    assert first["text"] == "It is +2.0 [+1.5, +2.5], half 1." and first["title"] == "T"
    assert first["evidence"] == [
        {"file": "results/metrics/a.json", "key": "x"},
        {"file": "results/metrics/a.json", "key": "x/value"},
    ]
    assert second["text"] == "at 0.25"
    assert second["evidence"] == [{"file": "studies/results/metrics/b.json", "key": "w"}]


def test_an_unwanted_item_reads_nothing(tmp_path):
    text = '{% call item("A") %}{{ result("a", "gone") }}{% endcall %}'
    (row,) = items(tmp_path, text, wanted=lambda name: name != "A")
    assert row == {"id": "A", "text": "", "evidence": []}


@pytest.mark.parametrize(
    "expression, error",
    [
        ("misspelt", jinja2.UndefinedError),
        ('result("a", "x").middle', jinja2.UndefinedError),
        ('result("a", "gone")', KeyError),
    ],
)
def test_a_sentence_that_cannot_be_filled_is_refused(tmp_path, expression, error):
    with pytest.raises(error):
        items(tmp_path, '{% call item("A") %}{{ ' + expression + " }}{% endcall %}")


def test_a_cell_holds_no_bar_or_line_break():
    assert rendering.cell("p(t|x)\n is") == "p(t&#124;x) is"
