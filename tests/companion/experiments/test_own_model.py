"""Notebook 10's oracle knows the noise, and what it measures is kept as JSON."""

import json

import numpy as np
import torch
from diffusers import DDPMScheduler

from companion.experiments import own_model


def test_the_oracle_names_the_noise_that_was_added():
    x0, eps = torch.randn(3, 1, 14, 14), torch.randn(3, 1, 14, 14)
    x_t = DDPMScheduler().add_noise(x0, eps, torch.tensor([400] * 3))
    torch.testing.assert_close(own_model.oracle(x0)(x_t, 400), eps, atol=1e-4, rtol=1e-4)


def test_runs_are_kept_as_json():
    delta = {"value": np.zeros(2), "low": np.zeros(2), "high": np.ones(2)}
    one = {"value": np.float64(1), "low": 0.5, "high": 2}
    runs = {"DDIM": {"times": np.array([1.0, 0.1]), "delta": delta, "late": one, "growth": one}}
    found = own_model.as_json(runs)
    assert json.loads(json.dumps(found))["DDIM"]["late"] == {"value": 1, "low": 0.5, "high": 2}


def test_example_images_are_half_size_in_range():
    images = own_model.example_images()
    assert images.shape == (10000, 1, 14, 14) and images.min() == -1 and images.max() <= 1
