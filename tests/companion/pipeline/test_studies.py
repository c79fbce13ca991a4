"""studies/dvc.yaml: a stage depends on what decides its numbers, and every stage is described."""

import re

import pytest
import yaml
from clones import dvc

from companion.pipeline import fingerprint
from companion.pipeline.measured import telling
from nag.support.paths import ROOT

STAGES = yaml.safe_load((ROOT / "studies/dvc.yaml").read_text())["stages"]


@pytest.mark.slow
def test_what_is_told_is_of_the_committed_numbers():
    """Figures and answers are never older than their numbers; measuring, hours, may wait."""
    fingerprint.write(ROOT)
    told = telling("studies/dvc.yaml", ROOT)
    assert "studies/dvc.yaml:grids-tell" in told
    out = dvc(ROOT, "repro", "--dry", "--allow-missing", "--single-item", *told)
    assert "Running stage" not in out, f"run `make tell` and commit what it wrote:\n{out}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_says_its_minutes_and_depends_on_the_code_that_it_runs(name):
    body = STAGES[name].get("do", STAGES[name])
    stated = re.search(r"\d+ (minutes|seconds)|[Ss]econds", body["desc"])
    assert stated, f"{name} does not say how long"
    notebook = re.search(r"notebooks/(\w+)", body["cmd"])[1]
    part = re.match(r"\$\{(measure|tell)\}", body["cmd"])[1]
    wanted = f"build/fingerprints/{notebook}.{part}.txt"
    assert wanted in body["deps"], f"{name} does not depend on {wanted}"
