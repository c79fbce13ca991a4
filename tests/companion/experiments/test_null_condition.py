"""Notebook 14's plan of trainings, and its paired differences of errors."""

import numpy as np
import pytest
import torch

from companion.experiments import null_condition
from companion.experiments.parameters import settings

PARAMETERS = {
    "family": "sit",
    "weights": "",
    "kind": "nag",
    "heads": None,
    "latents": "",
    "held_out": "",
    "held_out_images": 4,
    "mode": "all",
    "layers": [],
    "null_init": "zero",
    "class_dropout": 0.1,
    "noise_dropout": 0.1,
    "compare": True,
    "images_seen": 64,
    "batch_size": 32,
    "lr": 2e-4,
    "lr_layers": 1e-3,
    "lr_null": 1e-2,
    "warmup_steps": 0,
    "ema_decay": 0.99,
    "seed": 0,
    "processes": 0,
    "save_steps": None,
    "micro_batch": None,
    "precision": "fp32",
    "compile": False,
    "out": "build/by-hand",
}


def plan(**changes):
    return null_condition.arms(settings(null_condition.Settings, PARAMETERS | changes), depth=2)


def test_the_kept_run_is_one_of_those_compared_or_one_more():
    found, kept = plan()
    assert kept == "all, dropout 10%" and len(found) == 7
    assert len(found["null + all adaLN"]["layers"]) == 3
    found, kept = plan(noise_dropout=0.3)
    assert kept == "kept run" and found[kept]["noise_dropout"] == 0.3 and len(found) == 8
    alone = {"mode": "null", "null_init": "mean"}
    assert plan(compare=False, **alone) == ({"kept run": alone}, "kept run")


def test_excess_is_a_paired_difference_by_range_of_t():
    times = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 1.0])
    difference = torch.tensor([1.0, 2.0, 3.0, 3.0, 0.0, 0.0, 1.0, -1.0])
    found = null_condition.excess(5 + difference, torch.full((8,), 5.0), times)
    assert found["all t"]["value"] == pytest.approx(difference.mean().item())
    assert found["0.00 to 0.25"]["value"] == 1.5 and found["0.75 to 1.00"]["value"] == 0
    assert found["0.50 to 0.75"]["high"] == 0
    half = 1.96 * np.std([1, 2], ddof=1) / 2**0.5
    assert found["0.00 to 0.25"]["low"] == pytest.approx(1.5 - half, rel=1e-3)
