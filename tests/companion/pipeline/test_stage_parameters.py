"""Parameters of all four pipelines: what a stage names is in its params.yaml, what its notebook
takes, and what DVC tracks; so a change makes the stages stale that use it, and no others."""

import functools
import re
import shlex
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.fs import LocalFileSystem
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_path

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


def test_a_key_that_comes_twice_is_refused(tmp_path):
    """As DVC does; otherwise the first value would silently count for nothing."""
    with pytest.raises(ValueError, match="n comes twice"):
        stage_parameters.written(["{n: 1, n: 2}"])
    (tmp_path / "p.yaml").write_text("a: 1\ntune:\n  n: 1\n  w: 2\n  n: 3\n")
    with pytest.raises(ValueError, match=r"n comes twice \(line 3\): leave one of them"):
        stage_parameters.chosen(["tune"], tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("a: {base: &base {n: 1}}\ntune: {<<: *base, n: 3}\n")
    assert stage_parameters.chosen(["tune"], tmp_path / "p.yaml") == {"n": 3}


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
        "steps": "is not a section but 5",
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
RUNNER = re.compile(r"\$\{(measure|tell|run)\}")  # what the pipelines call it


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
        given = RUNNER.sub("", body["cmd"])
        assert tracked == names_of(re.findall(r"-p (\S+)", given)), f"{file}:{name}"
        if "notebooks/" in given:
            values = set(re.findall(r"\$\{([\w.]+)\}", given))
            assert values <= {"key", "item", "item.family", "item.arm", "item.path"}, (
                f"{file}:{name}"
            )


@pytest.fixture(scope="module")
def resolved():
    """{stage: its arguments} of all stages that run a notebook, as DVC resolves them."""
    with Repo(str(ROOT)) as repo:
        commands = {s.addressing: shlex.split(s.cmd) for s in repo.index.stages if s.cmd}
    runner = ["python", "-m", "companion.pipeline.run"]
    return {name: words[3:] for name, words in commands.items() if words[:3] == runner}


def options(words, flag):
    return [value for name, value in zip(words, words[1:], strict=False) if name == flag]


@pytest.fixture(scope="module")
def passed(resolved):
    """{stage: what it passes of a file of parameters and what by hand}; each file is read once."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_parameters, "read", functools.cache(stage_parameters.read))
        for name, words in resolved.items():
            own = ROOT / (options(words, "--params") or ["params.yaml"])[0]
            given = stage_parameters.written(options(words, "-y"))
            found[name] = stage_parameters.chosen(options(words, "-p"), own), given
    return found


@functools.cache
def notebook_of(path):
    return nbformat.read(ROOT / path, as_version=4)


def test_what_a_stage_passes_is_of_the_form_that_its_notebook_has(resolved, passed):
    for name, words in resolved.items():
        usual = run.defaults(notebook_of(next(word for word in words if word.endswith(".ipynb"))))
        given = passed[name][0] | passed[name][1]
        try:
            run.check_forms(given, usual)
            if {"family", "path"} <= usual.keys() and options(words, "--part") == ["measure"]:
                run.check_family(usual | given)
        except ValueError as error:
            raise AssertionError(name) from error


def test_a_stage_passes_only_what_its_notebook_takes(resolved, passed):
    written = {
        f"{file}:{name}"
        for file in PIPELINES
        for name, body in STAGES[file].items()
        if RUNNER.match(body["cmd"])
    }
    found = {("" if ":" in name else "dvc.yaml:") + name.split("@")[0] for name in resolved}
    assert found == written
    for name, words in resolved.items():
        chosen, written_here = passed[name]
        assert not chosen.keys() & written_here.keys()
        (path,) = [word for word in words if word.startswith("notebooks/")]
        cells = notebook_of(path).cells
        cell = next(c for c in cells if "parameters" in c.metadata.get("tags", []))
        assert {*chosen, *written_here} <= set(run.known_parameters({"cells": cells})), name
        defaults = {}
        exec(cell.source, defaults)
        for key, value in (chosen | written_here).items():
            default = defaults[key]
            if isinstance(default, list | dict):
                assert isinstance(value, type(default)), f"{name}: {key} is {value!r}"
            elif default is not None:
                assert not isinstance(value, list | dict), f"{name}: {key} is {value!r}"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a pipeline and its parameters alone, with a lock of both as they are now."""

    @functools.cache
    def folder(file):
        root = tmp_path_factory.mktemp("recorded")
        (root / ".dvc").mkdir()
        (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
        (root / file).parent.mkdir(exist_ok=True)
        for name in (file, file.replace("dvc.", "params.")):
            shutil.copy(ROOT / name, root / name)
        entries = {}
        with Repo(str(root)) as repo:
            for stage in repo.index.stages:
                deps = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
                params = {dep.def_path: dep.read_params() for dep in deps}
                entries[stage.name] = {"cmd": stage.cmd, "params": params}
        text = yaml.safe_dump({"schema": "2.0", "stages": entries})
        (root / file).with_name("dvc.lock").write_text(text)
        return root

    return folder


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    """DVC reads a file of parameters again for every stage; here once for each content."""

    @functools.cache
    def load(path, content):
        return load_path(path, LocalFileSystem())

    monkeypatch.setattr(
        "dvc.dependency.param.load_path", lambda path, fs: load(path, Path(path).read_bytes())
    )


def stale(folder):
    """The stages of which DVC finds the command or a parameter changed."""
    with Repo(str(folder)) as repo:
        return {
            stage.name
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
        ("dvc.yaml", None, set()),
        ("dvc.yaml", "tune.sit.w_values=[0.5,1.0]", {"tune@sit"}),
        ("dvc.yaml", "auto.weights_tried=[0.0,2.0]", of_both("auto_weight")),
        (
            "dvc.yaml",
            "sample.steps=10",
            SAMPLED | of_both("tune", "noise_shift", "evaluate", "auto_weight"),
        ),
        ("dvc.yaml", "sample.n_images=300", SAMPLED | of_both("noise_shift", "evaluate")),
        ("dvc.yaml", "train.dit.path=linear", {"train@dit", "noise_shift@dit"}),
        ("studies/dvc.yaml", "solvers.plan.dit.ddim=[10]", {"solvers", "solvers-tell"}),
    ],
)
def test_a_changed_parameter_makes_the_stages_stale_that_use_it(
    file, change, expected, recorded, tmp_path
):
    """Changed by the function behind `dvc exp run -S`."""
    shutil.copytree(recorded(file), tmp_path / "changed")
    if change:
        apply_overrides(tmp_path / "changed" / file.replace("dvc.", "params."), [change])
    assert stale(tmp_path / "changed") == expected
