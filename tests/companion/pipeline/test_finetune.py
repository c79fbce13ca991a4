"""The fine-tuning pipeline at the paper's size: DVC reads it, its names are those of the facts and
the notebooks, and of made-up results its last stage makes the paper's table. Nothing before that
stage is run."""

import re

import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from clones import clone, dvc

from nag.data import finetuning_sets
from nag.support.files import read_json, write_json
from nag.support.paths import DATA, ROOT

FILE = "imagenet/finetune/dvc.yaml"
PAIRS = {"none": "nag", "cfg": "cfg+nag", "dog": "dog+nag"}


@pytest.fixture(scope="module")
def stages():
    return yaml.safe_load((ROOT / FILE).read_text())["stages"]


@pytest.fixture(scope="module")
def params():
    return yaml.safe_load((ROOT / "imagenet/finetune/params.yaml").read_text())


@pytest.mark.slow
def test_dvc_chains_folder_latents_and_fine_tuning_of_every_set():
    text = dvc(ROOT, "dag", "--mermaid", FILE)
    node = {
        number: name.removeprefix(f"{FILE}:")
        for number, name in re.findall(r'(node\d+)\["(.+)"\]', text)
    }
    edges = {(node[a], node[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", text)}
    for name in finetuning_sets.names():
        assert {
            (f"folder@{name}", f"latents@{name}"),
            (f"latents@{name}", f"finetune@{name}"),
            (f"finetune@{name}", "table"),
        } <= edges
    for stage in ("finetune", "finetune-tell"):
        assert len([name for name in node.values() if name.startswith(f"{stage}@")]) == 7


def test_every_stage_says_what_it_costs(stages):
    assert list(stages) == ["folder", "latents", "finetune", "finetune-tell", "table"]
    for name, stage in stages.items():
        body = stage.get("do", stage)
        assert re.search(r"\(.*GPU-hours.*GB.*\)", body["desc"]), (
            f"{name} does not say what it costs"
        )
        assert not [dep for dep in body["deps"] if dep.endswith(".ipynb")]


def test_all_seven_sets_with_the_layout_of_the_facts(params):
    assert list(params["sets"]) == finetuning_sets.names() and len(params["sets"]) == 7
    assert {name: part["layout"] for name, part in params["sets"].items()} == {
        name: finetuning_sets.facts(name)["layout"] for name in finetuning_sets.names()
    }
    assert all(part.keys() == {"folder", "layout"} for part in params["sets"].values())


def test_the_recipe_is_dogfits_but_for_named_changes(params):
    recipe = finetuning_sets.recipe(**params["finetune"]["changes"])
    assert recipe.samples == 10_000 and recipe.steps * recipe.batch_size == 768_000
    assert params["latents"]["size"] == recipe.image_size
    assert params["pretrained"]["weights"].endswith(recipe.pretrained) and params["vae"].endswith(
        recipe.vae
    )


def published():
    """{(data set, arm): the paper's FID}"""
    rows = pd.read_csv(DATA / "paper_results.csv").query("table == 'finetuning'")
    return {
        (r.dataset, PAIRS[r.guidance] if r.nag else r.guidance): r.value for r in rows.itertuples()
    }


def with_interval(value, share=0.04):
    return {"value": value, "low": value * (1 - share), "high": value * (1 + share)}


def write_runs(folder, names):
    """Such files as notebook 28 leaves: FIDs one above the paper's, with NAG 0.8 of that but for
    one open pair and one worse.
    """
    for name in names:
        arms, ratios = {}, {}
        for base, with_nag in PAIRS.items():
            factor = {("cub200", "dog"): 0.99, ("artbench10", "none"): 1.25}.get((name, base), 0.8)
            fid = published()[name, base] + 1
            for arm, value in ((base, fid), (with_nag, fid * factor)):
                arms[arm] = {
                    "fd": with_interval(value),
                    "w_nag": float(arm != base),
                    "cfg": 1.0,
                    "dog": 1.0,
                }
            ratios[base] = with_interval(factor)
        write_json(
            folder / f"metrics/finetune-{name}.json",
            {
                "dataset": name,
                "n": 10_000,
                "solver": "ddpm",
                "steps": 50,
                "arms": arms,
                "ratios": ratios,
            },
        )


@pytest.mark.slow
def test_the_stage_joins_seven_results_to_the_papers_table(tmp_path):
    root = clone(tmp_path / "nag")
    results = root / "imagenet/finetune/results"
    write_runs(results, finetuning_sets.names())
    dvc(root, "repro", "-s", "fingerprints", f"{FILE}:table")
    made = read_json(results / "metrics/finetune_table.json")
    assert (
        made["scale"] == "paper"
        and made["sets"] == finetuning_sets.names()
        and made["missing"] == []
    )
    assert (
        made["verdict"] == "partly"
        and "21 pairs of arms, with NAG: better 19, inconclusive 1, worse 1" in made["sentence"]
    )
    assert (
        made["counts"]["all"]
        | {
            "pairs": 21,
            "better": 19,
            "inconclusive": 1,
            "worse": 1,
            "below one, ours": 20,
            "below one, paper": 21,
        }
        == made["counts"]["all"]
    )
    answers = read_json(results / "answers/finetune_table.json")
    assert {claim: answer["verdict"] for claim, answer in answers.items()} == {
        "C6": "reproduced",
        "C9": "partly",
    }
    assert "of Domain Guidance with NAG over without: 0.8" in answers["C6"]["sentence"]
    assert made["counts"]["dog"]["inconclusive"] == made["counts"]["none"]["worse"] == 1
    assert made["ratios"]["food101"]["cfg"]["paper"] == pytest.approx(5.78 / 10.93)

    table = pd.read_csv(results / "finetune_table.csv").set_index(["dataset", "arm"])
    assert len(table) == 8 * 6 and table["FID, ours"].notna().all()
    assert table["FID, paper"]["Food-101", "DoG+NAG"] == 6.45
    assert table["FID, difference"]["CUB-200-2011", "CFG"] == pytest.approx(1)
    paper = np.mean([published()[name, "none"] for name in finetuning_sets.names()])
    assert table["FID, paper"]["mean", "none"] == pytest.approx(paper, rel=1e-4)
    assert table["FID, ours"]["mean", "none"] == pytest.approx(paper + 1, rel=1e-4)
    ours = {
        base: np.array([published()[name, base] + 1 for name in finetuning_sets.names()])
        for base in PAIRS
    }
    mean = table.loc[("mean", "CFG+NAG")]
    assert mean["ratio, ours"] == pytest.approx(0.8) and mean["outcome"] == "better"
    half = (
        0.04 * 2**0.5 * np.linalg.norm(ours["cfg"]) / ours["cfg"].sum()
    )  # both arms' errors, independent from set to set
    assert np.log(mean["high"] / 0.8) == pytest.approx(half, rel=1e-3)
    factor = np.array([1.25 if name == "artbench10" else 0.8 for name in finetuning_sets.names()])
    assert table["ratio, ours"]["mean", "NAG"] == pytest.approx(
        (ours["none"] * factor).sum() / ours["none"].sum(), rel=1e-4
    )
    assert (results / "figures/finetune_table.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_missing_set_is_named_and_left_out_of_both_means(tmp_path):
    there = [name for name in finetuning_sets.names() if name not in ("sun397", "artbench10")]
    write_runs(tmp_path / "runs", there)
    notebook = papermill.execute_notebook(
        ROOT / "notebooks/17_finetune_table.ipynb",
        None,
        kernel_name="python3",
        progress_bar=False,
        parameters={"source": str(tmp_path / "runs"), "out": str(tmp_path / "out")},
    )
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert (
        "Missing of the seven data sets: SUN397, ArtBench-10. Both means are over the other 5."
        in printed
    )
    made = read_json(tmp_path / "out/metrics/finetune_table.json")
    assert made["missing"] == ["sun397", "artbench10"] and made["verdict"] is None
    assert read_json(tmp_path / "out/answers/finetune_table.json") == {}
    assert made["counts"]["all"]["pairs"] == 15 and made["counts"]["all"]["better"] == 14
    table = pd.read_csv(tmp_path / "out/finetune_table.csv").set_index(["dataset", "arm"])
    assert table["FID, paper"]["SUN397", "CFG"] == 14.13 and np.isnan(
        table["FID, ours"]["SUN397", "CFG"]
    )
    for arm in ("DoG", "CFG"):
        paper = np.mean([published()[name, arm.lower()] for name in there])
        assert table["FID, paper"]["mean of 5", arm] == pytest.approx(paper, rel=1e-4)
        assert table["FID, ours"]["mean of 5", arm] == pytest.approx(paper + 1, rel=1e-4)
