"""The claims ledger: verdicts follow from intervals, and what studies found joins them."""

import numpy as np
import pytest

from companion.report import claims, findings, results
from companion.report.evidence import Reader, check
from companion.report.questions import ANSWERS
from companion.report.results import SAMPLERS, STUDY
from nag.support.files import read_json
from nag.support.paths import RESULTS, ROOT

FAMILIES = ("sit", "dit")


def interval(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high}


def answer(verdict, sentence="S."):
    return {
        "verdict": verdict,
        "sentence": sentence,
        "brief": "B.",
        "file": "results/metrics/toy.json",
        "key": "statement_1",
    }


@pytest.mark.parametrize(
    "found, verdict",
    [
        (["reproduced"] * 2, "reproduced"),
        (["contradicted"], "contradicted"),
        (["inconclusive"] * 2, "inconclusive"),
        (["reproduced", "inconclusive"], "partly"),
        (["reproduced", "contradicted"], "partly"),
        ([], "inconclusive"),
    ],
)
def test_verdicts_that_differ_are_partly(found, verdict):
    assert claims.joined(found) == verdict


@pytest.mark.parametrize(
    "own, found, verdict",
    [
        ("reproduced", [], "reproduced"),
        ("reproduced", ["reproduced", "reproduced"], "reproduced"),
        ("reproduced", ["contradicted"], "partly"),
        ("needs GPUs", [], "needs GPUs"),
        ("needs GPUs", ["contradicted"], "contradicted"),
        ("needs GPUs", ["reproduced", "partly"], "partly"),
        ("needs GPUs", ["reproduced"], "partly"),
    ],
)
def test_studies_join_a_claim(own, found, verdict):
    assert claims.with_studies(own, [answer(word) for word in found]) == verdict


def test_a_claim_with_a_missing_half_is_partly_at_best():
    assert claims.with_studies("reproduced", [], complete=False) == "partly"
    assert claims.with_studies("contradicted", [], complete=False) == "contradicted"


@pytest.mark.parametrize(
    "found, verdict",
    [
        (["reproduced"], "reproduced"),
        (["reproduced", "inconclusive"], "partly"),
        (["contradicted"], "contradicted"),
    ],
)
def test_the_papers_scale_decides_a_claim_that_needs_it(found, verdict):
    at_scale = [answer(word) | {"scale": "paper"} for word in found]
    assert claims.with_studies("needs GPUs", [answer("contradicted"), *at_scale]) == verdict
    assert claims.with_studies("contradicted", at_scale[:1]) == claims.joined(
        ["contradicted", found[0]]
    )


@pytest.mark.parametrize(
    "unguided, gain, verdict",
    [
        (2.5, (0.8, 0.95), "reproduced"),
        (1.2, (0.8, 0.95), "inconclusive"),
        (2.5, (0.8, 1.05), "inconclusive"),
        (2.5, (1.01, 1.05), "contradicted"),
    ],
)
def test_near_cfg_says_nothing_where_no_guidance_is_near_it_too(unguided, gain, verdict):
    distance = {"none": unguided, "nag": 0.9, "cfg": 1.0}
    found = interval(0.8, 1.1) | {"gain": interval(*gain), "distance": distance}
    assert claims.JUDGES["C5"](found) == verdict


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.95, 1.05, "reproduced"),
        (1.02, 1.15, "inconclusive"),
        (0.85, 0.95, "inconclusive"),
        (0.7, 0.8, "contradicted"),
    ],
)
def test_statement_1_is_contradicted_only_outside_its_tolerance(low, high, verdict):
    assert claims.JUDGES["C3"](interval(low, high)) == verdict


@pytest.mark.parametrize(
    "unguided, verdict", [((0.01, 0.02), "reproduced"), ((-0.01, 0.02), "inconclusive")]
)
def test_only_a_shift_that_is_there_can_be_reduced(unguided, verdict):
    found = interval(0.5, 0.6) | {"unguided": interval(*unguided)}
    assert claims.JUDGES["C4"](found) == verdict


@pytest.mark.parametrize(
    "ratio, verdict",
    [
        ((1.1, 1.3), "reproduced"),
        ((0.9, 1.1), "inconclusive"),
        ((0.7, 0.9), "contradicted"),
    ],
)
def test_dit_gains_more_if_its_ratio_is_the_smaller(ratio, verdict):
    assert claims.JUDGES["C8"](interval(*ratio)) == verdict


def test_every_claim_has_its_numbers_words_and_evidence():
    rows = claims.ledger(Reader(), FAMILIES, {"C7": [answer("reproduced", "In small.")]})
    assert [row["id"] for row in rows] == [f"C{k}" for k in range(1, 10)]
    by_name = {row["id"]: row for row in rows}
    for row in rows:
        check(row["evidence"])
        assert row["verdict"] in claims.VERDICTS and row["note"]
        assert bool(row["evidence"]) == (row["verdict"] != "needs GPUs")
    assert by_name["C7"]["verdict"] == "partly" and by_name["C9"]["verdict"] == "needs GPUs"
    assert by_name["C7"]["note"].startswith("In small. The claim is about released")
    assert by_name["C7"]["brief"] == by_name["C7"]["note"].replace("In small.", "B.")
    assert "need GPUs" in by_name["C7"]["note"]
    assert "Domain Guidance is not measured here" in by_name["C6"]["note"]
    of = [x["sampler"] for x in by_name["C1"]["ours"]]
    assert of[::2] == ["Euler", "DDIM"]
    for family, sampler in zip(FAMILIES, of[1::2], strict=True):
        steps = 250 if Reader().has(STUDY.format(family=family)) else 50
        assert sampler == f"{SAMPLERS[family][1]}, {steps} steps"


def test_without_a_dit_the_comparison_is_inconclusive():
    row = claims.ledger(Reader(), ["sit"])[7]
    assert row["verdict"] == "inconclusive" and row["note"] == "No DiT was trained in this run."


def test_findings_have_a_title_notebooks_and_evidence():
    rows = findings.findings(Reader())
    assert [row["id"] for row in rows] == [f"F{k}" for k in range(1, len(rows) + 1)]
    for row in rows:
        check(row["evidence"])
        assert row["title"] and row["notebooks"] and row["evidence"]


def test_the_committed_ledger_is_made_from_the_committed_results():
    committed = {row["id"]: row for row in read_json(RESULTS / "claims.json")}
    made = claims.ledger(Reader(), FAMILIES, read_json(ANSWERS)) + findings.findings(Reader())
    assert [row["id"] for row in made if row != committed[row["id"]]] == [], (
        "run `dvc repro claims` and commit results/claims.json"
    )


def papers_study(family, gain):
    """Numbers of notebook 32 in the form that claims and summary read, made up."""
    arms = ("none", "nag", "cfg", "cfg+nag")
    metrics = ("fd", "fd_inf", "fd_inf_second", "kid", "precision", "recall")
    pairs = ("nag over none", "nag over cfg", "cfg+nag over cfg", "cfg over none")
    shift = ("shift_late", "middle", "growth", "late_ratio")
    protocol = {"steps": 250, "guidance": {"w_nag": 0.5, "cfg": 1.1}}
    ratio = interval(gain - 0.05, gain + 0.05) | {"bias_corrected": True}
    return {
        "family": family,
        "steps": 250,
        "arms": {
            arm: {metric: interval(4 - k, 5 - k) | {"n": 9} for metric in (*metrics, "shift_late")}
            | {"nfe": 250, "protocol": protocol}
            for k, arm in enumerate(arms)
        },
        "ratios": {pair: ratio | {"second": ratio} for pair in pairs},
        "shift": {arm: {name: interval(0.01, 0.02) for name in shift} for arm in arms},
    }


def test_claims_and_summary_take_over_the_papers_samplers_once_they_are_measured():
    made = {
        results.STUDY.format(family="sit"): papers_study("sit", 0.9),
        results.STUDY.format(family="dit"): papers_study("dit", 0.5),
    }
    reader = Reader(lambda file: made[file] if file in made else read_json(ROOT / file))
    rows = {row["id"]: row for row in claims.ledger(reader, FAMILIES)}
    for name in ("C1", "C2", "C4"):
        samplers = [x["sampler"] for x in rows[name]["ours"]]
        assert samplers == ["Euler", "Euler–Maruyama, 250 steps", "DDIM", "DDPM, 250 steps"]
    late = rows["C1"]["ours"][1]
    assert late["value"] == pytest.approx(0.015) and late["verdict"] == "reproduced"
    assert rows["C4"]["ours"][1]["value"] == pytest.approx(0.015)
    for name, key in (("C5", "nag over cfg"), ("C6", "cfg+nag over cfg")):
        assert [x["value"] for x in rows[name]["ours"][2:]] == pytest.approx([0.9, 0.5])
        assert {"file": results.STUDY.format(family="dit"), "key": f"ratios/{key}"} in rows[name][
            "evidence"
        ]
    fast, papers = rows["C8"]["ours"]
    assert papers["value"] == pytest.approx(0.9 / 0.5) and papers["verdict"] == "reproduced"
    assert papers["low"] == pytest.approx(1.8 * np.exp(-np.hypot(0.0556, 0.1003)), rel=1e-3)
    assert fast != papers and "Euler–Maruyama, 250 steps" in rows["C8"]["note"]
    summary = results.build_summary(reader, FAMILIES)
    assert summary["sit"]["sde"] == made[results.STUDY.format(family="sit")]["arms"]
    found = results.ratios_to_unguided(reader, summary, "dit", "second", "sde")
    assert found["nag"]["value"] == pytest.approx(0.5) and "none" not in found
    assert found["cfg"]["value"] == pytest.approx(0.5) and found["cfg+nag"]["low"] is None
    found = results.ratios_to_unguided(reader, summary, "sit", "second")
    assert found["nag"] == reader.result("ratios-sit", "nag over none/second")
