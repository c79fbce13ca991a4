"""Parameters of all four pipelines: what a stage names is in its params.yaml, what its notebook
takes, and what DVC tracks; so a change makes the stages stale that use it, and no others."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from companion.pipeline import run, stage_parameters
from companion.pipeline.fingerprint import PIPELINES
from nag.support.paths import ROOT


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 1e-3),
        ("1.0e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        ("3", 3),
        ("1_000", 1000),
        ("true", True),
        ("null", None),
        ("e-3", "e-3"),
        ("2026-01-02", "2026-01-02"),
        ("1e-3x", "1e-3x"),
        ("nag", "nag"),
    ],
)
def test_parameters_arrive_with_their_types(text, value, tmp_path):
    found = stage_parameters.written(["{a: 1, b: 2}", f"{{a: {text}}}"])
    assert found == {"a": value, "b": 2} and type(found["a"]) is type(value)
    (tmp_path / "p.yaml").write_text(f"a: [{text}]")
    assert stage_parameters.chosen([":a"], tmp_path / "p.yaml") == {"a": [value]}


@pytest.mark.parametrize("text", ["3", "{a: ", "[a]"])
def test_parameters_that_are_no_mapping(text):
    with pytest.raises(ValueError, match="write them as"):
        stage_parameters.written([text])


def test_entries_are_chosen_by_name(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("tune: {sit: {w: [1, 2], n: 3}, dit: {w: [4]}}\nsteps: 5\nplan: {a: {b: 6}}\n")

    def chosen(*choices):
        return stage_parameters.chosen(choices, file)

    assert chosen("tune.sit", "tune") == {"w": [1, 2], "n": 3, "sit": {"w": [1, 2], "n": 3}} | {
        "dit": {"w": [4]}
    }
    assert chosen("tune.sit:w,n", ":steps,plan") == {"w": [1, 2], "n": 3, "steps": 5} | {
        "plan": {"a": {"b": 6}}
    }
    assert chosen("list=tune.dit.w", "number=steps") == {"list": [4], "number": 5}
    assert stage_parameters.chosen([], tmp_path / "nowhere") == {}
    for choice, says in {
        "tune.six": "has no tune.six",
        "tune.sit:m": "has no tune.sit.m",
        "steps.a": "has no steps.a",
        "steps": "is no section but 5",
    }.items():
        with pytest.raises(ValueError, match=says):
            chosen(choice)
    with pytest.raises(ValueError, match="w comes twice"):
        chosen("tune.sit", "tune.dit")


# ---- the pipelines


def stages():
    """{file: {stage: body}} of the four, as they are written."""
    found = {}
    for name in PIPELINES:
        content = yaml.safe_load((ROOT / name).read_text())["stages"]
        found[name] = {stage: body.get("do", body) for stage, body in content.items()}
    return found


STAGES = stages()


def names_of(choices):
    """The keys, as DVC's `params` lists them."""
    return {key for choice in choices for _, key in stage_parameters.keys(choice)}


@pytest.mark.parametrize("file", PIPELINES)
def test_dvc_tracks_the_entries_that_the_notebook_gets(file):
    own = Path(file).with_name("params.yaml").as_posix()
    for name, body in STAGES[file].items():
        tracked = set()
        for entry in body.get("params", []):
            entry = entry if isinstance(entry, dict) else {"params.yaml": [entry]}
            tracked |= set(entry.get(own, []))
        given = re.sub(r"\$\{measure\}|\$\{tell\}", "", body["cmd"])
        assert tracked == names_of(re.findall(r"-p (\S+)", given)), f"{file}:{name}"
        if "notebooks/" in given:
            values = set(re.findall(r"\$\{([\w.]+)\}", given))
            assert values <= {"key", "item", "item.family", "item.arm"}, f"{file}:{name}"


@pytest.fixture(scope="module")
def resolved():
    """{stage: its arguments} of all stages that run a notebook, as DVC resolves them."""
    with Repo(str(ROOT)) as repo:
        commands = {s.addressing: shlex.split(s.cmd) for s in repo.index.stages if s.cmd}
    runner = ["python", "-m", "companion.pipeline.run"]
    return {name: words[3:] for name, words in commands.items() if words[:3] == runner}


def options(words, flag):
    return [value for name, value in zip(words, words[1:], strict=False) if name == flag]


def test_a_stage_passes_only_what_its_notebook_takes(resolved):
    written = {f"{file}:{name}" for file in PIPELINES for name in STAGES[file]}
    found = {("" if ":" in name else "dvc.yaml:") + name.split("@")[0] for name in resolved}
    others = {"dvc.yaml:fingerprints", "imagenet/finetune/dvc.yaml:folder"}
    assert found == written - others
    for name, words in resolved.items():
        file = ROOT / (options(words, "--params") or ["params.yaml"])[0]
        passed = stage_parameters.chosen(options(words, "-p"), file)
        assert not passed.keys() & stage_parameters.written(options(words, "-y")).keys()
        passed |= stage_parameters.written(options(words, "-y"))
        (path,) = [word for word in words if word.startswith("notebooks/")]
        cells = nbformat.read(ROOT / path, as_version=4).cells
        cell = next(c for c in cells if "parameters" in c.metadata.get("tags", []))
        assert set(passed) <= set(run.known_parameters({"cells": cells})), name
        taken = {node.targets[0].id: node.value for node in ast.parse(cell.source).body}
        for key, value in passed.items():
            default = ast.literal_eval(taken[key])
            if isinstance(default, list | dict):
                assert isinstance(value, type(default)), f"{name}: {key} is {value!r}"
            elif default is not None:
                assert not isinstance(value, list | dict), f"{name}: {key} is {value!r}"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Pipelines and parameters alone, with locks that record them as they are now."""
    tmp_path = tmp_path_factory.mktemp("recorded")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    for pattern in ("dvc.yaml", "params.yaml", "*/dvc.yaml", "*/*.yaml", "imagenet/*.json"):
        for path in [*ROOT.glob(pattern), *ROOT.glob(f"imagenet/{pattern}")]:
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    locks = {file: {} for file in PIPELINES}
    with Repo(str(tmp_path)) as repo:
        for stage in repo.index.stages:
            params = {
                dep.def_path: dep.read_params()
                for dep in stage.deps
                if isinstance(dep, ParamsDependency)
            }
            locks[file_of(stage, tmp_path)][stage.name] = {"cmd": stage.cmd, "params": params}
    for file, entries in locks.items():
        text = yaml.safe_dump({"schema": "2.0", "stages": entries})
        (tmp_path / file).with_name("dvc.lock").write_text(text)
    return tmp_path


def file_of(stage, folder):
    return Path(stage.path).relative_to(folder).as_posix()


def stale(folder):
    """The stages of which DVC finds the command or a parameter changed."""
    with Repo(str(folder)) as repo:
        return {
            f"{file_of(stage, folder)}:{stage.name}".removeprefix("dvc.yaml:")
            for stage in repo.index.stages
            if stage.changed_stage()
            or any(dep.status() for dep in stage.deps if isinstance(dep, ParamsDependency))
        }


FAMILIES, ARMS = ("sit", "dit"), ("none", "nag", "cfg", "cfg-nag")
SAMPLED = {f"sample@{family}-{arm}" for family in FAMILIES for arm in ARMS}


def of_both(*names):
    return {f"{name}@{family}" for name in names for family in FAMILIES}


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("params.yaml", "tune.sit.w_values=[0.5,1.0]", {"tune@sit"}),
        ("params.yaml", "auto.weights_tried=[0.0,2.0]", of_both("auto_weight")),
        ("params.yaml", "train.dit.lr=1e-4", {"train@dit"}),
        (
            "params.yaml",
            "sample.steps=10",
            SAMPLED | of_both("tune", "noise_shift", "evaluate", "auto_weight"),
        ),
        ("params.yaml", "sample.n_images=300", SAMPLED | of_both("noise_shift", "evaluate")),
        ("params.yaml", "sample.resamples=10", of_both("noise_shift")),
        (
            "studies/params.yaml",
            "when.sit.intervals=[[0.0,0.5]]",
            {"studies/dvc.yaml:when@sit"},
        ),
        (
            "studies/params.yaml",
            "solvers.plan.dit.ddim=[10]",
            {"studies/dvc.yaml:solvers", "studies/dvc.yaml:solvers-tell"},
        ),
        (
            "studies/params.yaml",
            "size.sizes=[s64]",
            {"studies/dvc.yaml:size", "studies/dvc.yaml:size-tell"},
        ),
    ],
)
def test_a_changed_parameter_makes_the_stages_stale_that_use_it(
    file, change, expected, recorded, tmp_path
):
    """Changed by the function behind `dvc exp run -S`."""
    shutil.copytree(recorded, tmp_path / "changed")
    apply_overrides(tmp_path / "changed" / file, [change])
    assert stale(tmp_path / "changed") == expected


def test_nothing_is_stale_without_a_change(recorded):
    assert stale(recorded) == set()
