"""The README's five lines work, and its tables name notebooks and stages that exist."""

import re

import pytest
import torch
import yaml

from companion.report.summary import blocks, committed
from nag.support.paths import ROOT

README = (ROOT / "README.md").read_text()


def test_five_lines_of_python():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    lines = [
        line
        for line in code.splitlines()
        if line.strip() and not line.startswith(("import", "from", "#"))
    ]
    assert len(lines) <= 5
    scope = {}
    exec(code, scope)
    images = scope["images"]
    assert images.shape[1:] == (1, 28, 28) and torch.isfinite(images).all() and images.std() > 0.3


def test_files_and_stages_named_exist():
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / name).exists(), f"README links to {name}, which is not there"
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    for stage in re.findall(r"\| `(\w+)(?:@\w+)?` \|", README):
        assert stage in stages, f"README names the stage {stage}, which dvc.yaml has not"


def test_numbers_are_those_of_the_committed_results():
    if committed("summary.json") is None:
        pytest.skip("no results are committed yet")
    missing = [name for name, block in blocks(committed).items() if block not in README]
    assert missing == [], "run `make readme` and commit README.md with the results"
