"""docs/your_model.md: its lines run as they stand, and its tables name what the tests check."""

import re
from functools import partial

import diffusers
import pytest
import torch
from tiny_models import TINY, build

import nag.integrations
from nag.integrations.levels import READERS, REFUSED
from nag.support.files import read_json
from nag.support.paths import ROOT

PAGE = (ROOT / "docs" / "your_model.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def lines_of_the_readme():
    """Imports and the three groups, each after its comment."""
    (block,) = [code for code in python(README) if "nag.integrations" in code]
    return re.split(r"\n# \w+\n", block)


@pytest.fixture(params=["README.md", "docs/your_model.md"])
def lines(request):
    return lines_of_the_readme() if request.param == "README.md" else python(PAGE)


def test_each_takes_three_lines(lines):
    _, *groups = [[line for line in code.splitlines() if line] for code in lines]
    assert [len(group) for group in groups] == [3, 3, 3]


@pytest.fixture
def scope(tmp_path, monkeypatch, lines):
    """What the page takes as given, at tiny size."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(lines[0], names)
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
        train=lambda model: model.eval(),
        folder=str(tmp_path / "guider"),
    )


def test_the_lines_run(scope, lines, capsys):
    _, measure, train, guide = lines
    exec(measure, scope)
    assert "Late noise shift" in capsys.readouterr().out
    assert scope["recording"].states.shape == (6, 11, 1, 8, 8)
    exec(train, scope)
    exec(guide, scope)
    assert torch.equal(scope["null"], scope["model"].null_noise)
    assert scope["images"].shape == (3, 8, 8, 1)


@pytest.fixture(scope="module")
def tables():
    return read_json(ROOT / "results/integrations.json")


def test_the_tables_are_of_these_versions_and_complete(tables):
    """diffusers is experimental in what is used here: another version is tried again."""
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    for name, tried in tables["versions"].items():
        assert f"{name}=={tried}" in lock, "run `make tables` and commit what it wrote"
    assert list(tables["schedulers"]) == sorted(READERS)
    assert list(tables["architectures"]) == sorted(TINY)
    for table, columns in (("schedulers", 2), ("architectures", 5)):
        for name, row in tables[table].items():
            assert list(row.values()) == columns * ["passed"], f"{name}: run `make tables`"
            assert f"| {name} |" + columns * " yes |" in PAGE


def test_refused_schedulers_are_listed():
    for name, why in REFUSED.items():
        assert f"| {name} | {why} |" in PAGE


def test_names_can_be_imported_from_the_package():
    for name in nag.integrations.__all__:
        assert getattr(nag.integrations, name).__module__.startswith("nag.integrations.")
    with pytest.raises(AttributeError, match="choose one of"):
        nag.integrations.guide  # noqa: B018
