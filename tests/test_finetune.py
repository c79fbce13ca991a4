"""The fine-tuning pipeline at the paper's size, not run: DVC reads it, and its names are those of the facts and the notebook."""

import ast
import re

import nbformat
import pytest
import yaml
from clones import dvc

from nag import transfer
from nag.paths import ROOT

FILE = "imagenet/finetune/dvc.yaml"


@pytest.fixture(scope="module")
def stages():
    return yaml.safe_load((ROOT / FILE).read_text())["stages"]


@pytest.fixture(scope="module")
def params():
    return yaml.safe_load((ROOT / "imagenet/finetune/params.yaml").read_text())


def test_dvc_chains_folder_latents_and_fine_tuning_of_every_set():
    text = dvc(ROOT, "dag", "--mermaid", FILE)
    node = {number: name.removeprefix(f"{FILE}:") for number, name in re.findall(r'(node\d+)\["(.+)"\]', text)}
    edges = {(node[a], node[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", text)}
    for name in transfer.names():
        assert {(f"folder@{name}", f"latents@{name}"), (f"latents@{name}", f"finetune@{name}")} <= edges
    assert len([name for name in node.values() if name.startswith("finetune@")]) == 7


def test_every_stage_says_what_it_costs(stages):
    assert list(stages) == ["folder", "latents", "finetune"]
    for name, stage in stages.items():
        assert re.search(r"\(.*GPU-hours.*GB.*\)", stage["do"]["desc"]), f"{name} does not say what it costs"
        assert not [dep for dep in stage["do"]["deps"] if dep.endswith(".ipynb")]


def test_all_seven_sets_with_the_layout_of_the_facts(params):
    assert list(params["sets"]) == transfer.names() and len(params["sets"]) == 7
    assert {name: part["layout"] for name, part in params["sets"].items()} == {
        name: transfer.facts(name)["layout"] for name in transfer.names()}
    assert all(part.keys() == {"folder", "layout"} for part in params["sets"].values())


def test_the_recipe_is_dogfits_but_for_named_changes(params):
    recipe = transfer.recipe(**yaml.safe_load(f"{{{params['changes']}}}"))
    assert recipe.samples == 10_000 and recipe.steps * recipe.batch_size == 768_000
    assert params["latents"]["size"] == recipe.image_size
    assert params["pretrained"]["weights"].endswith(recipe.pretrained) and params["vae"].endswith(recipe.vae)


@pytest.mark.parametrize(("stage", "notebook"), [("latents", "13_latents"), ("finetune", "28_finetune")])
def test_only_parameters_that_the_notebook_has_are_passed(stages, stage, notebook):
    given = re.search(r'-y "(.*)"', stages[stage]["do"]["cmd"], re.DOTALL)[1]
    passed = yaml.safe_load(re.sub(r"\$\{.*?\}", "0", given))
    cells = nbformat.read(ROOT / f"notebooks/{notebook}.ipynb", as_version=4).cells
    cell = next(c for c in cells if "parameters" in c.metadata.get("tags", []))
    known = {target.id for node in ast.parse(cell.source).body for target in node.targets}
    assert passed.keys() <= known, f"unknown: {passed.keys() - known}"
