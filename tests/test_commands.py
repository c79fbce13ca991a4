"""Command lines: what they cannot use ends with exit code 2, the usage and one sentence, and any
terminal shows what they print."""

import importlib
import io
import json
import re
import sys

import pytest
import torch

from companion.experiments import preflight
from nag.support import commands
from nag.support.paths import ROOT

# Each command, and arguments that it cannot use with what it says of them; files are made below.
WRONG = {
    "companion.experiments.shards": {
        "": "arguments are required: spec",
        "nowhere.json": "nowhere.json: No such file",
        "half.json": "half.json: Expecting value",
        "list.json": "list.json: Input should be a valid dictionary",
        "twice.json": "twice.json: out comes twice: leave one of them",
        "deep.json": "deep.json is nested too deeply",
        "empty.json": "empty.json: weights: Field required; arm: Field required; config",
        "empty.json more": "unrecognized arguments: more",
    },
    "nag.data.latents": {
        "": "arguments are required: spec",
        "nowhere.json": "nowhere.json: No such file",
        "half.json": "half.json: Expecting value",
        "marked.json": "marked.json: images: Field required; vae: Field required; out: Field",
    },
    "nag.pretrained.further_training": {
        "": "arguments are required: spec",
        "nowhere.json": "nowhere.json: No such file",
        "half.json": "half.json: Expecting value",
        "empty.json": "empty.json: weights: Field required; train: Field required; checkpoint",
        ".": "Is a directory",
    },
    "companion.experiments.preflight": {
        "": "arguments are required: params",
        "nowhere.yaml": "nowhere.yaml: No such file",
        "half.yaml": "half.yaml: while parsing a flow",
        "empty.json": "images: Field required; latents_of: Field required; null: Field required",
        "no-evaluate.yaml": "no-evaluate.yaml: evaluate: Field required",
    },
    "companion.experiments.bench": {
        "xxl": "unknown section xxl: choose from mini, xl",
    },
    "companion.report": {
        "": "arguments are required: VERB",
        "nothing": "invalid choice: 'nothing'",
    },
    "nag.evaluation.adm": {
        "": "arguments are required: samples, reference",
        "nowhere.npz also.npz": "nowhere.npz",
        "half.json half.json": "half.json",
    },
    "nag.data.finetuning_sets": {
        "": "arguments are required: NAME, folder, out",
        "nothing . out": "invalid choice: 'nothing'",
        "cub200 nowhere out": "nowhere",
    },
    "companion.pipeline.measured": {
        "": "arguments are required: file",
        "nowhere.yaml": "there is no nowhere.yaml: name a dvc.yaml",
    },
    "companion.pipeline.page": {"what": "unrecognized arguments: what"},
    "companion.site.build": {"": "arguments are required: target"},
    "companion.pipeline.fingerprint": {
        "nowhere.yaml": "there is no",
        "--diff nowhere": "there is no nowhere",
    },
    "companion.pipeline.run": {
        "": "arguments are required: notebook, executed",
        "nowhere.ipynb out.ipynb": "there is no notebook nowhere.ipynb",
        "book.ipynb out.ipynb -y [": "are not YAML",
        "book.ipynb out.ipynb -y [1]": "are not a mapping",
        "book.ipynb out.ipynb -p tune": "cannot read params.yaml",
        "book.ipynb out.ipynb --params half.yaml -p tune": "half.yaml is not YAML",
        "book.ipynb out.ipynb --params list.json -p tune": "is not a mapping of parameters",
        "book.ipynb out.ipynb --params empty.json -p tune:w": "has no tune.w",
    },
}


PIXELS = (torch.zeros(10, 1, 28, 28, dtype=torch.uint8), torch.arange(10))


@pytest.fixture
def files(tmp_path, monkeypatch):
    whole = {"images": {"train": "x"}, "latents_of": {"train": "x"}, "null": {}, "vae": "x"}
    texts = {
        "half.json": '{"weights": ',
        "half.yaml": "{a: ",
        "list.json": "[1]",
        "twice.json": '{"out": "a", "out": "b"}',
        "deep.json": "[" * 100_000,
        "empty.json": "{}",
        "no-evaluate.yaml": json.dumps(whole),
        "book.ipynb": "{}",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "marked.json").write_text("{}", encoding="utf-8-sig")  # a byte order mark
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("module", "given", "says"),
    [(module, given, says) for module, cases in WRONG.items() for given, says in cases.items()],
)
def test_what_a_command_cannot_use_ends_with_its_usage_and_2(module, given, says, files, capsys):
    name = f"{module}.__main__" if module == "companion.report" else module
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(given.split())
    shown = capsys.readouterr()
    *usage, last = shown.err.splitlines()
    assert end.value.code == 2 and shown.out == ""
    assert usage[0].startswith(f"usage: python -m {module}")
    assert last.startswith(f"python -m {module}: error: ") and says in last


MISSING = {
    "companion.experiments.shards": {"weights": "nowhere", "arm": {}, "config": {}, "out": "x"},
    "nag.data.latents": {"images": "nowhere", "vae": "nowhere", "out": "x"},
    "nag.pretrained.further_training": {
        "weights": "nowhere",
        "train": {"images_seen": 1},
        "checkpoint": "x",
        "out": "x.safetensors",
    },
}


@pytest.mark.parametrize("module", MISSING)
def test_a_file_that_a_specification_names_in_vain_ends_with_a_sentence_and_1(
    module, tmp_path, monkeypatch
):
    names = {k: str(tmp_path / v) for k, v in MISSING[module].items() if isinstance(v, str)}
    (tmp_path / "spec.json").write_text(json.dumps(MISSING[module] | names), encoding="utf-8")
    monkeypatch.setattr("nag.data.fashion_mnist.load_fashion_mnist", lambda split: PIXELS)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main([str(tmp_path / "spec.json")])
    said = str(end.value.code)  # printed, and the exit code is 1
    assert said.startswith(f"python -m {module}: no ") and "nowhere" in said and "\n" not in said


def test_every_documented_command_is_here():
    """Of those that take arguments."""
    files = [ROOT / "Makefile", *ROOT.rglob("*.md"), *ROOT.rglob("dvc.yaml")]
    files += [path for room in ("nag", "companion") for path in (ROOT / room).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"-m\s+((?:nag|companion)(?:\.\w+)+)", text))
    alone = {
        "companion.pipeline.locks",
    }
    alone |= {f"companion.site.{stage}" for stage in ("explorer", "live", "teaser")}
    assert named - WRONG.keys() == alone


def test_errors_are_said_in_one_line():
    assert commands.sentence(KeyError("no such name")) == "no such name"
    assert commands.sentence(ValueError("two\n  lines")) == "two lines"
    assert commands.sentence(OSError("what it says")) == "what it says"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_a_character_shows_a_question_mark(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    commands.any_terminal()
    print("\u2265 5 \u00d7", flush=True)
    assert raw.getvalue().decode(encoding) == ("? 5 ?\n" if encoding == "ascii" else "? 5 \u00d7\n")


def test_a_command_in_an_ascii_terminal(monkeypatch):
    """What preflight tells of what is missing may have characters that it does not have."""

    def missing():
        raise FileNotFoundError("no \u2265 2 \u00d7 256 images")

    shown = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, raw in shown.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(preflight, "checks", lambda *_: {"data": missing})
    with pytest.raises(SystemExit, match="Place what is missing"):
        preflight.main([str(ROOT / "imagenet/params.yaml")])
    sys.stdout.flush()
    assert shown["stdout"].getvalue() == b"MISSING  data: no ? 2 ? 256 images\n"
