"""studies/dvc.yaml: a stage passes what its notebook takes, depends on what decides its numbers,
and every stage is described.
"""

import ast
import re

import nbformat
import pytest
import yaml
from clones import dvc

from nag.support.paths import ROOT

STAGES = yaml.safe_load((ROOT / "studies/dvc.yaml").read_text())["stages"]
# these draw, read and write, choose a device, or serve the paper's scale only: no number of a study
# depends on them
ASIDE = {
    "adm",
    "canvas",
    "checkpoint",
    "data",
    "device",
    "distributed",
    "files",
    "figures",
    "images",
    "latents",
    "paths",
    "results",
    "shards",
    "transfer",
}


@pytest.fixture(scope="module")
def commands():
    """{stage: the command that DVC would run}, with all parameters put in."""
    lines = dvc(
        ROOT, "repro", "--dry", "--force", "--allow-missing", "studies/dvc.yaml"
    ).splitlines()
    found = {}
    for line, following in zip(lines, lines[1:], strict=False):
        if stage := re.fullmatch(r"Running stage 'studies/dvc\.yaml:(.+)':", line):
            found[stage[1]] = following
    return found


def test_lock_is_fresh():
    out = dvc(ROOT, "repro", "--dry", "--allow-missing", "studies/dvc.yaml")
    assert "Running stage" not in out, (
        f"studies/dvc.lock is stale, run `dvc repro studies/dvc.yaml` and commit it:\n{out}"
    )


def cells(name):
    return nbformat.read(ROOT / f"notebooks/{name}.ipynb", 4).cells


def test_a_stage_passes_only_what_its_notebook_takes(commands):
    assert {stage.split("@")[0] for stage in commands} == set(STAGES)
    for stage, command in commands.items():
        passed = yaml.safe_load(re.search(r'-y "(\{.*\})"', command)[1])
        notebook = cells(re.search(r"notebooks/(\w+)", command)[1])
        defaults = next(
            cell.source for cell in notebook if "parameters" in cell.metadata.get("tags", [])
        )
        taken = {node.targets[0].id: node.value for node in ast.parse(defaults).body}
        assert set(passed) <= set(taken), (
            f"{stage} passes {set(passed) - set(taken)}, which its notebook does not take"
        )
        for name, value in passed.items():
            if isinstance(ast.literal_eval(taken[name]), list | dict):
                assert isinstance(value, list | dict), (
                    f"{stage}: {name} is {value!r}, not a list or mapping"
                )


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_what_decides_its_numbers(name):
    body = STAGES[name].get("do", STAGES[name])
    assert re.search(r"\d+ minutes", body["desc"]), f"{name} does not say its minutes"
    notebook = re.search(r"notebooks/(\w+)", body["cmd"])[1]
    assert f"build/{notebook}.py" in body["deps"]
    code = ast.parse("\n".join(c.source for c in cells(notebook) if c.cell_type == "code"))
    used = set()
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and node.module == "nag":
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("nag."):
            used.add(node.module.removeprefix("nag."))
    missing = {f"nag/{module}.py" for module in used - ASIDE} - set(body["deps"])
    assert not missing, f"{name} has no dependency on {missing}"
