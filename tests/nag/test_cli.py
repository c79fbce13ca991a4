"""`nag diagnose` writes its page for a pipeline in a folder, and says in one line what is wrong."""

import json
import tomllib

import diffusers
import pytest
import torch
from PIL import Image

from nag import cli
from nag.integrations.level_estimator import LevelEstimator
from nag.support.paths import ROOT

PICTURE = str(ROOT / "results" / "figures" / "sit_samples.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A random UNet in pixels, and 30 grey images of another size."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "pipe")
    (folder / "images" / "deeper").mkdir(parents=True)
    for k in range(30):
        sub = "deeper" if k % 2 else "."
        Image.new("RGB", (20, 16), (8 * k,) * 3).save(folder / "images" / sub / f"{k}.png")
    return folder


def arguments(place, **changes):
    settings = {"images": place / "images", "out": place / "out", "n": 6, "steps": 20}
    settings |= {"batch": 4, "images-seen": 640} | changes
    return [str(place / "pipe"), *(str(a) for k, v in settings.items() for a in (f"--{k}", v))]


def test_the_page_has_the_curve(place, capsys):
    assert cli.main(["diagnose", *arguments(place)]) == 0
    assert "Late noise shift" in capsys.readouterr().out
    names = {p.name for p in (place / "out").iterdir()}
    assert names == {"report.md", "shift.png", "shift.json", "estimator.safetensors"}
    found = json.loads((place / "out" / "shift.json").read_text())
    page = (place / "out" / "report.md").read_text()
    assert found["n"] == 6 and found["n_control"] == 6 and len(found["times"]) == 21
    assert f"{found['delta']['value'][0]:+.4f}" in page and "](shift.png)" in page
    with Image.open(place / "out" / "shift.png") as image:
        assert image.width > 400


@pytest.mark.slow
def test_the_estimator_of_other_images_is_not_used_again(place):
    folder = place / "replaced"
    (folder / "images").mkdir(parents=True)

    def made_of(grey):
        for k in range(20):
            Image.new("L", (8, 8), grey + k).save(folder / "images" / f"{k}.png")
        changes = {"images": folder / "images", "out": folder / "out", "images-seen": 128}
        assert cli.main(["diagnose", *arguments(place, n=2, **changes)]) == 0
        file = folder / "out" / "estimator.safetensors"
        return LevelEstimator.load(file).made_of, file.stat().st_mtime_ns

    first = made_of(0)
    assert made_of(0) == first, "the same images: kept"
    assert made_of(200)[0] != first[0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "VERB"),
        (["diagnose"], "--images"),
        (["diagnose", "x", "--images", "nowhere"], "no folder at nowhere"),
        (["diagnose", "x", "--images", ".", "--steps", "0"], "at least 1"),
        (["diagnose", "x", "--images", ".", "--prompts", "nowhere"], "cannot read nowhere"),
        (["diagnose", "x", "--images", ".", "--n", "many"], "many must be a whole number"),
        (["diagnose", "x", "--images", ".", "--seed", "-1"], "from 0 to 2^62"),
        (["diagnose", "x", "--images", ".", "--seed", str(2**64)], "from 0 to 2^62"),
        (["diagnose", "x", "--images", ".", "--prompts", PICTURE], "is not UTF-8"),
        (["measure"], "invalid choice"),
    ],
)
def test_wrong_arguments_end_with_usage_and_2(given, says, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(given)
    shown = capsys.readouterr().err
    assert end.value.code == 2 and shown.startswith("usage: nag") and says in shown


def test_other_errors_are_one_line(place, tmp_path, capsys):
    assert cli.main(["diagnose", str(tmp_path), "--images", str(place / "images")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("nag: no diffusers pipeline at") and shown.count("\n") == 1
    assert cli.main(["diagnose", *arguments(place, images=tmp_path)]) == 1
    assert "at least 20" in capsys.readouterr().err


def test_the_command_is_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["nag"] == "nag.cli:main"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 1}, "argument --n: 1 must be a whole number of at least 2"),
        ({"guidance-scale": "nan"}, "argument --guidance-scale: nan must be a finite number"),
        ({"guidance-scale": "high"}, "argument --guidance-scale: high must be a finite number"),
        ({"out": PICTURE}, "is a file: name a folder for the report"),
    ],
)
def test_what_could_only_fail_after_the_work_is_refused_before(place, capsys, changes, says):
    with pytest.raises(SystemExit) as end:
        cli.main(["diagnose", *arguments(place, **changes)])
    assert end.value.code == 2 and says in capsys.readouterr().err
