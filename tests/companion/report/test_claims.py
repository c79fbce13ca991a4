"""Claims and questions: verdicts follow from intervals, what studies found joins them, and every
sentence has its evidence.
"""

import json

import pytest

from companion.report import claims, findings, questions
from companion.report.evidence import check, links, places
from companion.report.summary import named, rivals_table
from nag.models import DiT, ModelConfig
from nag.support.files import read_json, write_json

PLACE = {"file": "results/metrics/a.json", "key": "k"}
ROW = ({"x": 1}, [PLACE], "reproduced", "our note")
GPU = (None, [], "needs GPUs", "why")


def answer(verdict, sentence="S."):
    return {
        "verdict": verdict,
        "sentence": sentence,
        "brief": "B.",
        "file": "studies/results/metrics/b.json",
        "key": "m/n",
        "figure": "f.png",
    }


@pytest.mark.parametrize(
    "low, high, claimed, verdict",
    [
        (0.1, 0.2, 1, "reproduced"),
        (-0.1, 0.2, 1, "not told apart"),
        (-0.2, -0.1, 1, "contradicted"),
        (-0.2, -0.1, -1, "reproduced"),
    ],
)
def test_a_verdict_is_no_stronger_than_its_interval(low, high, claimed, verdict):
    assert claims.judged({"low": low, "high": high}, claimed) == verdict


@pytest.mark.parametrize(
    "found, verdict",
    [
        (["reproduced"] * 2, "reproduced"),
        (["contradicted"], "contradicted"),
        (["not told apart"] * 2, "partly"),
        (["reproduced", "not told apart"], "partly"),
        (["reproduced", "contradicted"], "partly"),
    ],
)
def test_a_claim_that_is_open_or_mixed_is_partly(found, verdict):
    assert claims._worst(found) == verdict


def test_a_claim_with_a_missing_half_is_partly_at_best():
    assert claims._with_studies("C6", ROW, [])[2:] == (
        "partly",
        "our note; the half about domain guidance (DoG) is not measured here",
    )
    assert claims._with_studies("C1", ROW, []) == ROW


@pytest.mark.parametrize(
    "base, found, verdict",
    [
        (ROW, ["reproduced", "reproduced"], "reproduced"),
        (ROW, ["contradicted"], "partly"),
        (GPU, ["contradicted"], "contradicted"),
        (GPU, ["reproduced", "partly"], "partly"),
        (GPU, ["reproduced"], "partly"),
    ],
)
def test_studies_join_a_claim(base, found, verdict):
    _, evidence, joined, note = claims._with_studies("C9", base, [answer(f) for f in found])
    assert joined == verdict and note.startswith("S.")
    assert ("needs GPUs" in note) == (base is GPU)
    assert claims._with_studies("C9", base, [answer(f) for f in found], "brief")[
        -1
    ] == note.replace("S.", "B.")
    assert evidence == base[1] + [{"file": "studies/results/metrics/b.json", "key": "m/n"}] * len(
        found
    )


@pytest.mark.parametrize(
    "found, verdict",
    [
        (["reproduced"], "reproduced"),
        (["reproduced", "not told apart"], "partly"),
        (["contradicted"], "contradicted"),
    ],
)
def test_the_papers_scale_decides_a_claim_that_needs_it(found, verdict):
    small = answer("contradicted", "In small.")
    _, evidence, joined, note = claims._with_studies(
        "C9", GPU, [small] + [answer(f) | {"scale": "paper"} for f in found]
    )
    assert (
        joined == verdict
        and note == "S. " * len(found) + "In small."
        and len(evidence) == 1 + len(found)
    )
    one = answer("reproduced") | {
        "scale": "paper"
    }  # another claim's verdict joins all that is known
    assert claims._with_studies("C6", ROW, [small, one])[2] == "partly"


def test_evidence_is_there_under_its_key_and_linked(tmp_path):
    write_json(tmp_path / "a.json", {"x": {"y": 1}})
    found = places(["a.json"], "x/y", "x")
    check(found, tmp_path)
    assert (
        links(found) == "[a](a.json): `x/y`, `x`"
        and links(found, depth=1) == "[a](a.json): `x`"
        and links([]) == "–"
    )
    with pytest.raises(KeyError, match="z"):
        check(places(["a.json"], "x/z"), tmp_path)
    with pytest.raises(FileNotFoundError, match="b.json"):
        check(places(["b.json"], "x"), tmp_path)


def study(folder, name, content):
    path = folder / "metrics" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def words(folder):
    """A file of questions whose answers are words alone."""
    path = folder / "words.md"
    path.write_text("Words.\n" + "".join(f"\n* Q{k} **Q?** Yes." for k in range(1, 11)))
    return path


def test_answers_are_gathered_with_their_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "ROOT", tmp_path)
    folder = tmp_path / "studies/results"
    for name, value in (("a", 1), ("b", 2)):
        one = {
            "sentence": f"It is {value}.",
            "brief": f"{value}!",
            "key": "part/number",
            "figure": "figures/x.png",
        }
        study(
            folder,
            name,
            {"part": {"number": value}, "answers": {"Q3, other" if name == "b" else "Q3": one}},
        )
    study(folder, "train-net", {"loss": 0.1})
    found = questions.collect(folder)
    assert [entry["file"] for entry in found["Q3"]] == [
        "studies/results/metrics/a.json",
        "studies/results/metrics/b.json",
    ]
    rows = {row["id"]: row for row in questions.questions(found, source=words(tmp_path))}
    assert rows["Q3"]["note"] == "It is 1. It is 2." and rows["Q3"]["verdict"] == "answered"
    assert rows["Q4"]["verdict"] == questions.OPEN and rows["Q4"]["note"] == ""
    assert (
        "** 1! 2! | [x](studies/results/figures/x.png) | [a](studies/results/metrics/a.json): `part`, [b]"
        in questions.table(list(rows.values()))
    )
    study(folder, "c", {"answers": {"Q1": {"sentence": "", "key": "gone", "figure": "f"}}})
    with pytest.raises(KeyError, match="gone"):
        questions.collect(folder)
    study(
        tmp_path / "imagenet",
        "d",
        {"n": 1, "answers": {"C9": {"sentence": "D.", "key": "n", "figure": "figures/d.png"}}},
    )
    at_scale = questions.collect(tmp_path / "gone", tmp_path / "imagenet")["C9"][0]
    assert (
        at_scale["file"] == "imagenet/metrics/d.json"
        and at_scale["figure"] == "imagenet/figures/d.png"
    )


@pytest.mark.parametrize(
    "high, surely, near, helping",
    [
        (0.9, False, "none; surely not: mean, spread, schedule", "spread"),
        (1.1, True, "mean, spread, schedule; surely not: none", "none"),
    ],
)
def test_the_automatic_weights_answer_is_no_stronger_than_its_intervals(
    high, surely, near, helping
):
    one = {"value": 1.0, "low": 1.0, "high": 1.0}
    over = {
        rule: {"best of sweep": {"value": 1.3, "low": 1.1, "high": 1.5}, "none": one}
        for rule in questions.RULES
    }
    over["spread"]["none"] = {"value": 0.85, "low": 0.8, "high": high}
    near_of = {rule: {"surely": surely, "surely not": not surely} for rule in questions.RULES}
    found = questions.automatic(
        "Net",
        {
            "distance_over": over,
            "within_5_percent": near_of,
            "n": 7,
            "swept": 3.0,
            "schedule": {"weights": [0.5, 0.25, 0.0]},
            "constant": {"mean": {"w": 0.0}, "spread": {"w": 0.24}},
        },
    )
    assert (
        "mean finds no guidance (1.30 [1.10, 1.50]), spread finds w of 0.24 (1.30 [1.10, 1.50])"
        in found["sentence"]
    )
    assert "schedule finds w of 0.25 (1.30)." in found["brief"] and "tuned w = 3" in found["brief"]
    for text in found.values():
        assert text.endswith(f"no guidance: {helping}; surely within 5 % of the tuned w: {near}.")


def test_a_question_with_the_main_pipelines_part_only_is_answered_in_part(tmp_path):
    part = {"Q10": [answer("", "Own.")]}
    source = words(tmp_path)
    rows = {
        row["id"]: row for row in questions.questions({"Q3": [answer("")]}, part, source=source)
    }
    assert [rows[name]["verdict"] for name in ("Q3", "Q10", "Q4")] == [
        "answered",
        "in part, its study is not run yet",
        questions.OPEN,
    ]
    both = questions.questions({"Q10": [answer("", "Study.")]}, part, source=source)[-1]
    assert both["verdict"] == "answered" and both["note"] == "Own. Study."
    assert (
        "| B. *in part, its study is not run yet* | [f](f.png) | [b](studies/results/metrics/b.json): `m` |"
        in questions.table(list(rows.values()))
    )


@pytest.mark.parametrize(
    "unguided, gain, verdict",
    [
        (2.5, (0.8, 0.95), "reproduced"),
        (1.2, (0.8, 0.95), "partly"),
        (2.5, (0.8, 1.05), "partly"),
        (2.5, (1.01, 1.05), "contradicted"),
    ],
)
def test_near_cfg_says_nothing_where_no_guidance_is_near_it_too(tmp_path, unguided, gain, verdict):
    ratio = {"value": 0.9, "low": 0.8, "high": 0.95}
    of_none = {"value": 0.9, "low": gain[0], "high": gain[1]}
    write_json(
        tmp_path / "metrics/ratios-sit.json",
        {"nag over cfg": ratio | {"high": 1.1}, "nag over none": of_none},
    )
    summary = {
        "sit": {
            arm: {"fd": {"value": value}}
            for arm, value in {"none": unguided, "nag": 0.9, "cfg": 1.0}.items()
        }
    }
    assert claims._near_cfg(tmp_path, summary)[2] == verdict


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.95, 1.05, "reproduced"),
        (1.02, 1.15, "partly"),
        (0.85, 0.95, "partly"),
        (0.7, 0.8, "contradicted"),
    ],
)
def test_statement_1_is_contradicted_only_outside_its_tolerance(tmp_path, low, high, verdict):
    write_json(
        tmp_path / "metrics/toy.json",
        {"statement_1": {"value": (low + high) / 2, "low": low, "high": high}},
    )
    assert claims._statement_1(tmp_path, {})[2] == verdict


def test_the_ten_questions_are_there():
    assert list(questions.asked()) == [f"Q{k}" for k in range(1, 11)]


def test_an_answers_numbers_are_put_in_and_say_where_they_are_from(tmp_path):
    source = tmp_path / "questions.md"
    source.write_text("Words.\n\n* Q1 **Why\n  so?** Because of {a x/y .1f}.\n", encoding="utf-8")
    assert questions.asked(source) == {"Q1": ("Why so?", "Because of {a x/y .1f}.")}
    folder = tmp_path / "results"
    write_json(folder / "metrics/a.json", {"x": {"y": 0.26}})
    row = questions.questions({"Q1": [answer("")]}, folder=folder, source=source)[0]
    assert row["answer"] == "Because of 0.3."
    assert row["evidence"] == [
        {"file": "studies/results/metrics/b.json", "key": "m/n"},
        {"file": "results/metrics/a.json", "key": "x/y"},
    ]
    assert (
        "[b](studies/results/metrics/b.json): `m`, [a](results/metrics/a.json): `x` |"
        in questions.table([row])
    )
    assert (
        questions.questions({}, folder=folder, source=source)[0]["answer"] == ""
    )  # a hand-written answer needs its study


@pytest.mark.parametrize(
    "text, told",
    [("* Q1 Why? No stars.", "not of the form"), ("* Q1 **Why?** {a x .2%}.", "no field")],
)
def test_a_sentence_that_cannot_be_filled_is_refused(tmp_path, text, told):
    source = tmp_path / "questions.md"
    source.write_text(f"Words.\n\n{text}\n")
    with pytest.raises(ValueError, match=told):
        questions.questions({"Q1": [answer("")]}, folder=tmp_path, source=source)


def test_costs_are_relative_to_no_guidance():
    row = {"arm": "none", "relative": 1.0, "memory": 2.0, "parameters": 0, "training": 0.0}
    found = questions.costs(
        "Net",
        {
            "rows": [
                row | {"label": "none"},
                row | {"arm": "a", "label": "A", "relative": 1.5, "memory": 3.0, "training": 6.25},
                row
                | {"arm": "b", "label": "B", "memory": None, "parameters": 7000, "training": None},
            ]
        },
    )
    assert found["brief"].endswith(": A: 1.50, 1.50, 0; B: 1.00, –, 7,000.")
    assert found["sentence"].endswith("of the network: A: 6.25 %; B: not known.")


def test_a_rival_stands_at_its_best_setting_with_its_costs():
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    chosen = {
        "setting": "scale 2",
        "of": 4,
        "setting at an end": True,
        "w_nag beside": 1.0,
        "w at an end": False,
    }
    found = {
        "sampler": "euler_maruyama",
        "chosen": {"cfg": chosen},
        "unguided": {"cfg": one, "cfg+nag": one},
        "nag_adds": {"cfg": one},
        "costs": {"cfg": {"time": 1.0, "parameters": 1234, "training": None}},
    }
    overhead = {"rows": [{"arm": "none", "memory": 2.0}, {"arm": "cfg", "memory": 3.0}]}
    line = rivals_table([found], overhead).splitlines()[-1]
    assert line.startswith(
        "| Euler–Maruyama | CFG | scale 2 † | 0.50 [0.40, 0.60] | 0.50 [0.40, 0.60] (w 1) |"
    )
    assert line.endswith("| 1.00 | 1.50 | 1,234 | its own, from the start |")


def test_the_committed_answers_are_those_of_the_committed_studies():
    found = questions.collect(*questions.ANSWERING)
    assert read_json(questions.ANSWERS) == found, (
        "run `python -m companion.report.summary answers` and commit the file"
    )


def test_a_findings_numbers_are_put_in_from_the_results(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    write_json(
        folder / "metrics/a.json",
        {
            "x": {"y": {"value": 2.0, "low": 1.5, "high": 2.5}},
            "two words": {"value": 4.0},
            "w": 0.25,
        },
    )
    source = tmp_path / "findings.md"
    source.write_text(
        "Not a finding.\n\n* F1 (06, 00) **Two:** {a x/y\n  +.1f}, {a two words/value divided by x/y/value .2f} "
        "at {a w g}.\n* F2 (00) Words alone.\n"
    )
    first, second = findings.findings(folder, source)
    assert first["statement"] == "**Two:** +2.0 [+1.5, +2.5], 2.00 at 0.25." and first["id"] == "F1"
    assert first["evidence"] == places(
        ["results/metrics/a.json"], "x/y", "two words/value", "x/y/value", "w"
    )
    assert second["evidence"] == [] and first["notebooks"] == "06, 00"
    assert findings.listed([second]) == "* Words alone. (F2; notebook 00)"
    write_json(tmp_path / "studies/metrics/b.json", {"n": 0.5})
    monkeypatch.setattr(findings, "STUDIES", tmp_path / "studies")
    source.write_text("\n* F1 (22) {studies:b n .1f} and {a w g}")
    row = findings.findings(folder, source)[0]
    assert row["statement"] == "0.5 and 0.25"
    assert [place["file"] for place in row["evidence"]] == [
        "studies/results/metrics/b.json",
        "results/metrics/a.json",
    ]
    source.write_text("\n* F1 (06) {a x/z .2f}")
    with pytest.raises(KeyError, match="z"):
        findings.findings(folder, source)


@pytest.mark.parametrize(
    "path, name", [("linear", "SiT of 0.5 M parameters"), ("ddpm", "DiT of 0.5 M parameters")]
)
def test_a_network_is_named_by_kind_and_size(path, name):
    assert named(DiT(ModelConfig(width=64, heads=1, path=path))) == name


def test_the_table_of_studies_links_the_figures_that_are_there(tmp_path):
    (tmp_path / "studies").mkdir()
    stage = {
        "desc": "What.",
        "cmd": "x notebooks/20_a.ipynb y",
        "outs": [
            {"studies/results/figures/a-${key}.png": {"cache": False}},
            {"studies/results/figures/a-${key}.svg": {"cache": False}},
        ],
    }
    plain = stage | {
        "cmd": "notebooks/21_b.ipynb",
        "outs": [{"studies/results/figures/b.png": {"cache": False}}],
    }
    listed = {
        "foreach": "${c.kinds}",
        "do": json.loads(json.dumps(stage).replace("${key}", "${item}")),
    }
    write_json(
        tmp_path / "studies/dvc.yaml",
        {"stages": {"a": {"foreach": "${deep.kinds}", "do": stage}, "b": plain, "c": listed}},
    )
    write_json(
        tmp_path / "studies/params.yaml",
        {"deep": {"kinds": {"x": {}, "y": {}}}, "c": {"kinds": ["y", "z"]}},
    )
    figure = tmp_path / "studies/results/figures/a-y.png"
    figure.parent.mkdir(parents=True)
    figure.touch()
    assert questions.stages(tmp_path / "studies").splitlines()[2:] == [
        "| What. | [20_a](notebooks/20_a.ipynb) | studies/dvc.yaml:a | a-x *not run yet*, "
        "[a-y](studies/results/figures/a-y.png) |",
        "| What. | [21_b](notebooks/21_b.ipynb) | studies/dvc.yaml:b | b *not run yet* |",
        "| What. | [20_a](notebooks/20_a.ipynb) | studies/dvc.yaml:c | [a-y](studies/results/figures/a-y.png), "
        "a-z *not run yet* |",
    ]
