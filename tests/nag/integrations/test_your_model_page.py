"""docs/your_model.md: its lines run as they stand, and its tables name what the tests check."""

import re
from functools import partial

import diffusers
import pytest
import torch
from tiny_models import TINY, build

from nag.integrations.levels import READERS, REFUSED
from nag.support.paths import ROOT

PAGE = (ROOT / "docs" / "your_model.md").read_text(encoding="utf-8")
IMPORTS, MEASURE, TRAIN, GUIDE = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def first_cells(heading):
    part = PAGE.split(heading)[1].split("\n## ")[0]
    return re.findall(r"^\| (\w+) \|", part, re.M)


def test_each_takes_three_lines():
    assert [len(code.splitlines()) for code in (MEASURE, TRAIN, GUIDE)] == [3, 3, 3]


@pytest.fixture
def scope(tmp_path, monkeypatch):
    """What the page takes as given, at tiny size."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(IMPORTS, names)
    names["train_estimator"] = partial(names["train_estimator"], images_seen=640, width=8)
    net, _ = build("UNet2D")
    pipe = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    call = dict(batch_size=3, num_inference_steps=10, output_type="np")
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return names | dict(
        pipe=pipe,
        calls=[call, call],
        train_images=images[:20],
        held_out_images=images[20:],
        model=net,
        denoiser=net,
        train=lambda model: model.eval(),
        folder=str(tmp_path / "guider"),
    )


def test_the_lines_run(scope, capsys):
    exec(MEASURE, scope)
    assert "Late noise shift" in capsys.readouterr().out
    assert scope["recording"].states.shape == (6, 11, 1, 8, 8)
    exec(TRAIN, scope)
    exec(GUIDE, scope)
    assert torch.equal(scope["null"], scope["model"].null_noise)
    assert scope["images"].shape == (3, 8, 8, 1)


def test_the_tables_are_those_of_the_tests():
    schedulers = [c for c in first_cells("## Which schedulers can be recorded") if c != "scheduler"]
    assert schedulers == sorted(READERS) + list(REFUSED)
    assert first_cells("## Which architectures were tried") == ["architecture", *TINY]
