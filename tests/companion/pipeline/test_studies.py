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


def test_what_is_told_is_of_the_committed_numbers():
    """Figures and answers are never older than their numbers; measuring, hours, may wait."""
    which = ("--single-item", "--glob", "studies/dvc.yaml:*-tell*")
    out = dvc(ROOT, "repro", "--dry", "--allow-missing", *which)
    assert "Running stage" not in out, f"run `make tell` and commit what it wrote:\n{out}"


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
def test_a_stage_says_its_minutes_and_depends_on_the_code_that_it_runs(name):
    body = STAGES[name].get("do", STAGES[name])
    stated = re.search(r"\d+ (minutes|seconds)|[Ss]econds", body["desc"])
    assert stated, f"{name} does not say how long"
    notebook = re.search(r"notebooks/(\w+)", body["cmd"])[1]
    part = re.match(r"\$\{(measure|tell)\}", body["cmd"])[1]
    wanted = f"build/fingerprints/{notebook}.{part}.txt"
    assert wanted in body["deps"], f"{name} does not depend on {wanted}"
