"""Answers of studies are gathered with their evidence; questions are answered from them."""

import pytest

from companion.report import questions
from companion.report.evidence import Reader, check
from nag.support.files import read_json, write_json

FAMILIES = ("sit", "dit")


def answer(sentence="S."):
    return {
        "sentence": sentence,
        "brief": "B.",
        "file": "studies/results/metrics/solvers.json",
        "key": "equal_evaluations",
        "figure": "f.png",
    }


def study(folder, name, numbers, answers):
    write_json(folder / "metrics" / f"{name}.json", numbers)
    write_json(folder / "answers" / f"{name}.json", answers)


def test_answers_are_gathered_with_their_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "ROOT", tmp_path)
    folder = tmp_path / "studies/results"
    for name, title in (("a", "Q3"), ("b", "Q3, other")):
        one = {"sentence": name, "brief": name, "key": "part/n", "figure": "figures/x.png"}
        study(folder, name, {"part": {"n": 1}}, {title: one})
    write_json(folder / "metrics/train-net.json", {"loss": 0.1})  # numbers alone answer nothing
    at_scale = {"sentence": "D.", "key": "n", "figure": "figures/d.png", "scale": "paper"}
    study(tmp_path / "imagenet", "d", {"n": 1}, {"C9": at_scale})
    found = questions.collect(folder, tmp_path / "gone", tmp_path / "imagenet")
    assert [row["file"] for row in found["Q3"]] == [
        "studies/results/metrics/a.json",
        "studies/results/metrics/b.json",
    ]
    assert found["Q3"][0]["figure"] == "studies/results/figures/x.png"
    assert found["C9"][0]["file"] == "imagenet/metrics/d.json"
    before = found["Q3"][0]["sha256"]
    write_json(folder / "metrics/a.json", {"part": {"n": 2}})
    assert questions.collect(folder)["Q3"][0]["sha256"] != before


def test_an_answer_without_its_number_is_refused(tmp_path):
    one = {"sentence": "", "key": "gone/n", "figure": "f"}
    study(tmp_path, "c", {"here": 1}, {"Q1": one})
    with pytest.raises(KeyError, match="gone/n.*c.json does not have"):
        questions.collect(tmp_path)
    (tmp_path / "metrics/c.json").unlink()
    with pytest.raises(FileNotFoundError, match="c.json"):
        questions.collect(tmp_path)


def test_the_committed_answers_are_those_of_the_committed_studies():
    assert read_json(questions.ANSWERS) == questions.collect(*questions.ANSWERING), (
        "run `make docs` and commit studies/answers.json"
    )


def test_the_questions_are_answered_in_full_in_part_or_not_yet():
    reader = Reader()
    own = questions.own_answers(reader, FAMILIES)
    assert set(own) == {"Q5", "Q10"} and len(own["Q10"]) == len(FAMILIES)
    rows = {
        row["id"]: row
        for row in questions.questions(reader, {"Q2": [answer()], "Q10": [answer("T.")]}, own)
    }
    assert list(rows) == [f"Q{k}" for k in range(1, 15)]
    assert [rows[name]["verdict"] for name in ("Q2", "Q5", "Q10", "Q4")] == [
        "answered",
        "in part, its study is not run yet",
        "answered",
        questions.OPEN,
    ]
    assert rows["Q4"]["answer"] == rows["Q4"]["note"] == "" and rows["Q4"]["evidence"] == []
    assert rows["Q5"]["answer"] == ""  # the summary needs the study
    assert rows["Q10"]["note"].endswith(" T.") and "0.1" not in rows["Q2"]["brief"]
    for row in rows.values():
        check(row["evidence"])


@pytest.mark.parametrize(
    "high, near, helping",
    [(0.9, "none; clearly not: mean, spread, schedule", "spread"),
     (1.1, "mean, spread, schedule; clearly not: none", "none")],
)  # fmt: skip
def test_the_automatic_weights_answer_is_no_stronger_than_its_intervals(high, near, helping):
    one = {"value": 1.0, "low": 1.0, "high": 1.0}
    rules = ("mean", "spread", "schedule")
    over = {
        rule: {"best of sweep": {"value": 1.3, "low": 1.1, "high": 1.5}, "none": one}
        for rule in rules
    }
    over["spread"]["none"] = {"value": 0.85, "low": 0.8, "high": high}
    found = {
        "distance_over": over,
        "within_5_percent": {rule: {"surely": high > 1, "surely not": high < 1} for rule in rules},
        "n": 7,
        "swept": 3.0,
        "schedule": {"weights": [0.5, 0.25, 0.0]},
        "constant": {"mean": {"w": 0.0}, "spread": {"w": 0.24}},
    }
    row = {"label": "none", "arm": "none", "relative": 1.0, "memory": 2.0, "parameters": 0}
    rows = [
        row | {"training": 0.0},
        row | {"arm": "a", "label": "A", "relative": 1.5, "memory": 3.0, "training": 6.25},
        row | {"arm": "b", "label": "B", "memory": None, "parameters": 7000, "training": None},
    ]
    contents = {"overhead": {"rows": rows}, "auto-sit": found}
    reader = Reader(lambda file: contents[file.rpartition("/")[2].removesuffix(".json")])
    own = questions.own_answers(reader, ["sit"])
    text = own["Q10"][0]["sentence"]
    assert "tuned w = 3" in text and "mean finds no guidance, 1.30 [1.10, 1.50]" in text
    assert "spread finds w = 0.24," in text and "schedule finds a mean w of 0.25," in text
    assert text.endswith(f"than no guidance: {helping}. Clearly within 5 % of the tuned w: {near}.")
    costs = own["Q5"][0]["sentence"]
    assert "A 1.50, 1.50, 0; B 1.00, not measured, 7,000." in costs
    assert costs.endswith("of the network: A 6.25 %, B not known.")
