"""What is missing is told before anything starts, all of it and each in a sentence."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from companion.experiments import preflight
from nag import checkpoint
from nag.data import published_files
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
        "outputs",
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


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository with the pipeline, two classes of images and a network for two."""
    root = tmp_path / "root"
    (root / "imagenet").mkdir(parents=True)
    shutil.copy(ROOT / "imagenet/dvc.yaml", root / "imagenet/dvc.yaml")
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            folder = root / "data/imagenet" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "a.png")
    monkeypatch.setattr(preflight, "ROOT", root)
    monkeypatch.setattr(published_files, "CHECKSUMS", tmp_path / "checksums")
    preflight._found.cache_clear()
    yield root
    preflight._found.cache_clear()


def network(root, tiny, classes):
    path = root / "net.safetensors"
    checkpoint.save(path, tiny(classes=classes))
    return {"weights": str(path), "kind": "nag"}


def test_results_behind_a_link_are_refused_before_anything_runs(place, tmp_path):
    checks = preflight.checks(PARAMS, cpu=True)
    assert checks["outputs"]() == "where DVC keeps them"
    (tmp_path / "big").mkdir()
    (place / "imagenet/data").symlink_to(tmp_path / "big")  # of outputs that DVC does not keep
    assert checks["outputs"]() == "where DVC keeps them"
    (place / "imagenet/results").symlink_to(tmp_path / "big")
    words = r"imagenet/results is a link to .*big, outside .*: remove the link, and clone .* --bind"
    with pytest.raises(OSError, match=words):
        checks["outputs"]()


def test_a_missing_class_folder_is_told_before(place, tiny):
    checks = preflight.checks(PARAMS | {"null": {"sit": network(place, tiny, 2)}}, cpu=True)
    assert checks["data, train"]() == checks["data, val"]() == "2 images of 2 classes"
    assert "M parameters" in checks["network, sit"]()
    shutil.rmtree(place / "data/imagenet/val/n01")
    preflight._found.cache_clear()
    words = r"1 classes, where train has 2, .* \(n01 is in one of them only\): complete the class"
    with pytest.raises(ValueError, match=words):
        checks["data, val"]()
    shutil.rmtree(place / "data/imagenet/train/n01")
    preflight._found.cache_clear()
    with pytest.raises(ValueError, match="is for 2 classes and the data have 1: complete the"):
        checks["network, sit"]()
    shutil.rmtree(place / "data/imagenet/train")
    preflight._found.cache_clear()
    assert "M parameters" in checks["network, sit"]()  # what is missing is told of the data


def test_a_reference_with_nan_is_told_before(place):
    names, pool = ("sigma", "mu_s", "sigma_s", "arr_0"), np.ones(3)
    arrays = {name: np.ones((3, 3)) for name in names} | {"mu": pool, "mu_s": pool}
    evaluate = PARAMS["evaluate"] | {"reference": "reference.npz", "dino": False}
    check = preflight.checks(PARAMS | {"evaluate": evaluate}, cpu=True)["reference"]
    np.savez(place / "reference.npz", **arrays)
    assert check() == "complete"
    np.savez(place / "reference.npz", **arrays | {"mu": np.array([1, np.nan, 1])})
    with pytest.raises(ValueError, match="has mu and sigma with NaN or infinite values"):
        check()


def test_room_is_looked_for_on_the_disk_that_is_written_to(place, tmp_path, monkeypatch):
    asked = []
    usage = type("Usage", (), {"free": 300e9})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: asked.append(path) or usage)
    preflight.checks(PARAMS)["disk"]()
    (place / "imagenet/results").mkdir()
    preflight.checks(PARAMS)["disk"]()
    assert asked == [place / "imagenet", place / "imagenet"]  # data and results on one disk
