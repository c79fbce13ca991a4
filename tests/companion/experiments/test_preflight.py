"""What is missing is told before anything starts, all of it and each in a sentence."""

import pytest
import torch
import yaml

from companion.experiments import preflight
from nag.support.paths import ROOT

PARAMS = yaml.safe_load((ROOT / "imagenet/params.yaml").read_text())


def test_everything_missing_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "ROOT", tmp_path)
    monkeypatch.setattr(
        preflight,
        "load_vae",
        lambda name: (_ for _ in ()).throw(FileNotFoundError(f"no autoencoder {name}")),
    )
    monkeypatch.setattr(
        preflight,
        "load_extractor",
        lambda name: (_ for _ in ()).throw(FileNotFoundError(f"no {name}")),
    )
    params = PARAMS | {"evaluate": PARAMS["evaluate"] | {"dino": False}}
    assert not preflight.report(params, cpu=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split("  ")[-1].strip() for line in lines] == [
        "data, train",
        "data, val",
        "network, sit",
        "network, dit",
        "autoencoder",
        "reference",
        "extractor",
    ]
    assert all(line.startswith("MISSING") for line in lines)


def test_a_run_without_gpus_is_refused_unless_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA here.*NAG_PROCESSES"):
        preflight.checks(PARAMS)["GPUs"]()
    assert not {"GPUs", "disk"} & preflight.checks(PARAMS, cpu=True).keys()


def test_a_full_disk_is_told_before(monkeypatch):
    monkeypatch.setattr(
        preflight.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3e9})
    )
    with pytest.raises(OSError, match="3 GB free .* about 250 needed"):
        preflight.checks(PARAMS)["disk"]()
