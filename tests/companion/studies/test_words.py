"""Phrases of answers read well for one, two and many items."""

import json

import pytest

from companion.studies.tell import words
from nag.samplers.registry import SAMPLERS


def test_lists():
    assert words.listed([1]) == "1"
    assert words.listed(["a", "b"]) == "a and b"
    assert words.listed("abc") == "a, b and c"


def test_counts_are_in_order_of_goodness():
    found = words.counts(["worse", "better", "inconclusive", "better"])
    assert found == "better in 2, inconclusive in 1, worse in 1 of 4"
    with pytest.raises(ValueError):
        words.counts(["helps"])


def test_a_ratio_is_shown_in_both_spaces_where_there_are_two():
    ratio = {"value": 0.75, "low": 0.71, "high": 0.79}
    assert words.in_both(ratio) == "0.75 [0.71, 0.79] better"
    both = ratio | {"second": {"value": 0.8, "low": 0.7, "high": 0.9}}
    assert words.in_both(both) == "0.75 [0.71, 0.79] better; pixels 0.80 [0.70, 0.90]"


def test_every_sampler_has_a_name():
    assert set(words.SAMPLERS) == set(SAMPLERS)
    assert words.sampler_name("dpmpp_2m@logsnr") == "DPM-Solver++ 2M"
    assert words.sampler_name("euler-maruyama") == "Euler–Maruyama"


def test_networks_are_named_by_kind_and_size(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/train-d10.json").write_text(json.dumps({"parameters": 483_088}))
    file = tmp_path / "weights/d10.safetensors"
    assert words.network_name("sit", file) == "SiT of 0.5 M parameters"
    assert words.network_name("dit", tmp_path / "weights/dit.safetensors") == "DiT-mini"
