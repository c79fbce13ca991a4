"""The fine-tuning table from made-up runs with known ratios, and from the laptop's studies."""

import numpy as np
import pytest

from companion.studies.tell import finetune_table as paper
from nag.data import finetuning_sets
from nag.support.files import write_json
from nag.support.paths import STUDIES


def interval(value, share=0.04):
    return {"value": value, "low": value * (1 - share), "high": value * (1 + share)}


def write_runs(folder, names, factor=0.8):
    published = paper.published()
    for name in names:
        arms = {arm: interval(published[name][arm] + 1) for arm in paper.ARMS}
        content = {
            "dataset": name,
            "n": 10_000,
            "solver": "ddpm",
            "steps": 50,
            "arms": {
                arm: {"fd": fd, "w_nag": 1.0, "cfg": 1.0, "dog": 1.0} for arm, fd in arms.items()
            },
            "ratios": {base: interval(factor) for base in paper.PAIRS},
        }
        write_json(folder / f"metrics/finetune-{name}.json", content)


def test_all_seven_sets_decide_claim_c9(tmp_path):
    write_runs(tmp_path, finetuning_sets.names())
    found = paper.load(tmp_path, STUDIES)
    assert found.at_scale and not found.missing and "All seven" in paper.described(found)
    parts = paper.columns(found)
    np.testing.assert_allclose(parts["difference"].to_numpy(float), 1)
    assert parts["paper"]["mean"]["none"] == pytest.approx(paper.published().loc["none"].mean())
    assert paper.counts(found)["all"]["better"] == 21
    assert paper.claim(found)[0] == "reproduced" and paper.answers(found).keys() == {"C9", "C6"}
    rows = paper.rows(found)
    assert len(rows) == 8 * 6 and rows["FID, ours"].notna().all()
    fig = paper.figure(found)
    assert [ax.get_title() for ax in fig.axes] == ["no guidance", "CFG", "DoG"]


@pytest.mark.parametrize(("factor", "word"), [(1.3, "contradicted"), (0.99, "partly")])
def test_the_verdict_is_that_of_whole_intervals(tmp_path, factor, word):
    write_runs(tmp_path, finetuning_sets.names(), factor)
    assert paper.claim(paper.load(tmp_path, STUDIES))[0] == word


def test_a_missing_set_is_left_out_of_both_means(tmp_path):
    there = finetuning_sets.names()[2:]
    write_runs(tmp_path, there)
    found = paper.load(tmp_path, STUDIES)
    published, parts = paper.published(), paper.columns(found)
    assert found.missing == finetuning_sets.names()[:2]
    assert "Both means are over the other 5." in paper.described(found)
    assert parts["paper"]["mean"]["cfg"] == pytest.approx(published.loc["cfg", there].mean())
    assert np.isnan(parts["ours"][found.missing[0]]["none"])
    assert paper.claim(found)[0] is None and paper.answers(found) == {}


def test_a_file_of_another_set_is_refused(tmp_path):
    write_runs(tmp_path, ["cub200"])
    (tmp_path / "metrics/finetune-cub200.json").rename(tmp_path / "metrics/finetune-food101.json")
    with pytest.raises(ValueError, match="food101"):
        paper.load(tmp_path, STUDIES)


def test_the_laptops_studies_are_shown_as_ratios(tmp_path):
    found = paper.load(tmp_path, STUDIES)
    parts = paper.columns(found)
    assert not found.at_scale and list(parts["ours"]) == ["sit", "dit"]
    assert (parts["ours"].loc["none"] == 1).all() and (parts["paper"].loc["none"] == 1).all()
    assert paper.counts(found)["all"]["pairs"] == 6 and paper.answers(found) == {}
