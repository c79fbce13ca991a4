"""Notebook 15's inputs: named files as they are, or stand-ins of real images."""

import numpy as np
import pytest

from companion.experiments import adm_inputs
from nag.data.fashion_mnist import load_fashion_mnist
from nag.evaluation import adm
from nag.support.paths import ROOT


def test_named_samples_are_taken_as_they_are():
    files = adm_inputs.sample_files("sit", ["none", "nag"], "somewhere", "out")
    assert files["nag"] == ROOT / "somewhere/sit-nag.npz" and list(files) == ["none", "nag"]
    found = adm_inputs.inputs(files, "somewhere", "real.npz", "out", 5, extractor="inception")
    assert found.reference == ROOT / "real.npz" and found.settings == {"extractor": "inception"}


def test_without_samples_three_sets_of_real_images_are_made(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(adm, "reference_from_images", lambda *a, **k: made.append((a, k)))
    files = {
        name: tmp_path / file.name
        for name, file in adm_inputs.sample_files("sit", ["none"], "", "out").items()
    }
    adm_inputs.make_stand_ins(files, tmp_path / "reference.npz", 50)
    images, labels = load_fashion_mnist("test")
    first = adm_inputs.first_images(files, 4)
    np.testing.assert_array_equal(first["real"][:, 0], images[:4, 0])
    assert np.abs(first["noisy"].astype(int) - first["real"]).mean() > 5
    few = images[:5000][labels[:5000] < 4][:4]
    np.testing.assert_array_equal(first["four-classes"][:, 2], few[:, 0])
    (arguments, settings) = made[0]
    assert len(arguments[1]) == 5000 and settings == {"count": 50}


def test_arms_of_different_protocols_are_refused(monkeypatch):
    def evaluate(path, reference, **settings):
        protocol = {"k": 3, "n": path, "files": {"reference": "r", "samples": path}}
        return {"fid": {"value": 1.0}, "protocol": protocol}

    monkeypatch.setattr(adm, "evaluate", evaluate)
    monkeypatch.setattr(adm, "report", str)
    with pytest.raises(ValueError, match="another protocol"):
        adm_inputs.evaluate(adm_inputs.Inputs({"a": "x", "b": "y"}, "r", {}), 1, 2)
    found = adm_inputs.evaluate(adm_inputs.Inputs({"a": "x", "b": "x"}, "r", {}), 1, 2)
    assert found["protocol"]["files"] == {"reference": "r", "samples": {"a": "x", "b": "x"}}
    assert found["a"] == {"fid": {"value": 1.0}}
