"""Outputs behind links: what DVC would refuse at the end of a stage is refused before, and only
that.
"""

import subprocess

import pytest
from clones import ENV, dvc

from companion.pipeline import links
from nag.support.paths import ROOT

PIPELINE = """
stages:
  kept:
    wdir: ..
    foreach: [a, b]
    do:
      wdir: ..
      cmd: mkdir -p im/results/x && echo 1 > im/results/x/${item}
      outs: ["im/results/x/${item}"]
  loose:
    wdir: ..
    cmd: mkdir -p im/data && echo 1 > im/data/y && cat in/z
    deps: [in/z]
    outs: [im/data/y: {cache: false}]
""".replace("  kept:\n    wdir: ..\n", "  kept:\n")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "im").mkdir(parents=True)
    (folder / "in").mkdir()
    (folder / "in" / "z").touch()
    (folder / "im" / "dvc.yaml").write_text(PIPELINE)
    return folder


CASES = {  # link, where it leads to, and the stage that cannot keep its output
    "none": (None, None, None),
    "results": ("im/results", "../big", "kept"),
    "a folder in results": ("im/results/x", "../big", "kept"),
    "links to links": ("im/results", "link", "kept"),
    "the folder of the pipeline": ("im", "../big", "kept"),
    "within the repository": ("im/results", "elsewhere", None),
    "outputs that are not kept": ("im/data", "../big", None),
    "dependencies": ("in", "../big", None),
}


def linked(root, link, target):
    """Puts what is at `link` to where it shall lead, and the link in its place."""
    place = (root / target).resolve() if target != "link" else root.parent / "big"
    place.parent.mkdir(parents=True, exist_ok=True)
    if (root / link).exists():
        (root / link).rename(place)
    else:
        place.mkdir()
        (root / link).parent.mkdir(parents=True, exist_ok=True)
    if target == "link":
        (root.parent / "link").symlink_to(place)
        place = root.parent / "link"
    (root / link).symlink_to(place)


@pytest.mark.parametrize("link, target, stage", CASES.values(), ids=CASES)
def test_what_leads_out_of_the_repository_is_refused(root, monkeypatch, link, target, stage):
    if link:
        linked(root, link, target)
    why = links.refused(root, root / "im/dvc.yaml")
    assert bool(why) == bool(stage) and "\n" not in why
    if stage:
        assert why.startswith(f"{root / link} is a link to {root.parent / 'big'}, outside")
        assert f"mount --bind {root.parent / 'big'} {root / link}" in why
    for name, other in (("kept@a", stage), ("loose", None)):
        monkeypatch.setenv("DVC_STAGE", f"im/dvc.yaml:{name}")
        assert bool(links.refused_now(root)) == bool(other)
    for name in ("", "other"):
        monkeypatch.setenv("DVC_STAGE", name)
        assert links.refused_now(root) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "link, target, stage", [case for case in CASES.values() if case[0] != "im"]
)
def test_dvc_refuses_the_same(root, link, target, stage):
    if link:
        linked(root, link, target)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True, env=ENV)
    dvc(root, "init", "-q")
    for name in ("kept@a", "loose"):
        run = subprocess.run(
            ["dvc", "repro", f"im/dvc.yaml:{name}"],
            cwd=root,
            env=ENV,
            capture_output=True,
            text=True,
        )
        fails = name.startswith(str(stage))
        assert bool(run.returncode) == fails, run.stderr
        assert ("outside of git repository" in run.stderr) == fails


def test_the_pipelines_outputs_are_where_dvc_keeps_them():
    for file in ("dvc.yaml", "studies/dvc.yaml", "imagenet/dvc.yaml", "imagenet/finetune/dvc.yaml"):
        assert links.refused(ROOT, ROOT / file) == ""
        assert all("$" not in str(folder) for _, folder in links._kept(ROOT / file))
