"""Damaged or half-written files end in a ValueError of one sentence that names the file."""

import json

import pytest
import torch
from safetensors.torch import save

import nag
from nag.integrations.diagnosis import Diagnosis
from nag.integrations.guider import NULL_FILE, NoiseAwarenessGuidance
from nag.integrations.level_estimator import LevelEstimator, recipe, train_estimator
from nag.models import DiT, ModelConfig

DAMAGE = {"empty": b"", "text": b"hello", "a byte order mark": b"\xff\xfe\xfd", "a list": b"[1]"}
SETTINGS = dict(w="strong", nag_start=None, negative="none", guidance_scale=float("nan"))


def guider(folder):
    NoiseAwarenessGuidance(0.5, null=torch.randn(8)).save_pretrained(folder)
    return lambda: NoiseAwarenessGuidance.from_pretrained(folder)


def exported(folder):
    nag.export_pretrained(folder, DiT(ModelConfig(width=32, depth=1, heads=2, patch=7)))
    return lambda: nag.load(folder)


@pytest.mark.parametrize("damage", ["half", *DAMAGE])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (guider, "guider_config.json"),
        (guider, NULL_FILE),
        (exported, "config.json"),
        (exported, "model.safetensors"),
    ],
)
def test_a_folder_with_a_damaged_file(make, name, damage, tmp_path):
    read = make(tmp_path)
    read()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(DAMAGE.get(damage, whole[: len(whole) // 2]))
    with pytest.raises(ValueError, match=name) as error:
        read()
    assert "\n" not in str(error.value) and "http" not in str(error.value)


def test_a_folder_without_its_files(tmp_path):
    read = guider(tmp_path)
    (tmp_path / NULL_FILE).write_bytes(save({"other": torch.zeros(8)}))
    with pytest.raises(ValueError, match="holds no vector"):
        read()
    (tmp_path / "guider_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no guider_config.json"):
        read()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_guider_whose_settings_were_edited_by_hand(name, tmp_path):
    read = guider(tmp_path)
    file = tmp_path / "guider_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: SETTINGS[name]}))
    with pytest.raises(ValueError, match=name):
        read()


@pytest.mark.parametrize("content", [*DAMAGE.values(), b"{", b'{"path": "ddpm"}'])
def test_a_damaged_diagnosis(content, tmp_path):
    (tmp_path / "shift.json").write_bytes(content)
    with pytest.raises(ValueError, match="shift.json is truncated or no diagnosis"):
        Diagnosis.load(tmp_path / "shift.json")


def test_a_damaged_estimator_and_a_damaged_state_of_its_training(tmp_path):
    file, images = tmp_path / "e.safetensors", torch.rand(20, 1, 8, 8)
    settings = dict(images_seen=256, width=8)
    part = tmp_path / f"e.safetensors.{recipe(images, 'ddpm', **settings)}.part"
    train_estimator(images, "ddpm", file, **settings)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole.replace(b"calibration", b"calibratiom")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="e.safetensors is"):
            LevelEstimator.load(file)
    for content in (b"PK\x03\x04", *DAMAGE.values()):
        part.write_bytes(content)
        with pytest.raises(ValueError, match="delete it to train from the start"):
            train_estimator(images, "ddpm", file, **settings)
