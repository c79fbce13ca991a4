"""The choice of the guidance weights: every candidate once, the least bias-corrected distance."""

import numpy as np
import pandas as pd
import pytest

from companion.experiments import tuning
from companion.experiments.generate import Arm, SampleConfig


def test_candidates_are_none_each_alone_and_all_pairs():
    found = tuning.candidates([1, 2], [1.5], [0.5, 1], [1.25, 1.5])
    assert found[:4] == [Arm(), Arm(w_nag=1), Arm(w_nag=2), Arm(cfg=1.5)]
    assert {(a.w_nag, a.cfg) for a in found[4:]} == {(0.5, 1.25), (1, 1.25), (0.5, 1.5), (1, 1.5)}


def sweep():
    rows = [(0, 1, 3), (1, 1, 2), (2, 1, 1), (3, 1, 2.5), (0, 1.5, 1.4), (0, 2, 1.5), (1, 1.5, 0.9)]
    table = pd.DataFrame(rows, columns=["w_nag", "cfg", "fd_inf"])
    return table.assign(fd=-table.fd_inf)  # the raw distance must not decide


def test_the_least_bias_corrected_distance_of_each_arm_is_chosen():
    assert tuning.best(sweep()) == {
        "none": Arm(),
        "nag": Arm(w_nag=2),
        "cfg": Arm(cfg=1.5),
        "cfg-nag": Arm(w_nag=1, cfg=1.5),
    }


def test_a_choice_at_an_end_of_its_list_is_named():
    table = sweep()
    assert tuning.at_an_end(table, tuning.best(table)) == ["cfg"]
    few = table[table.w_nag < 3]
    assert tuning.at_an_end(few, tuning.best(few)) == ["w_nag", "cfg"]


def test_a_sweep_goes_on_only_where_everything_that_decides_it_is_the_same(monkeypatch, tmp_path):
    for name in ("sit", "dit", "estimator-linear", "estimator-ddpm", "extractor"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    monkeypatch.setattr(tuning, "WEIGHTS", tmp_path)
    config = SampleConfig(steps=5)

    def state(family="sit", path="linear", config=config, images=100):
        return tuning._state(family, path, config, images)

    assert state() == state()
    other = config.model_copy(update={"sampler": "heun"})
    found = [state(), state("dit"), state(path="ddpm"), state(config=other), state(images=200)]
    for name in ("sit", "estimator-linear", "extractor"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"other")
        found.append(state())
    assert len(set(found)) == 8


def test_a_killed_sweep_goes_on_and_its_table_is_the_same(tmp_path, monkeypatch):
    """Sampling and measuring stand in for themselves; their names are in no sorted order."""
    made = []

    def sample(net, terms, config, keep):
        if len(made) == 2 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KeyboardInterrupt
        made.append(keep)
        return {"images": np.zeros((1, 1, 28, 28), np.uint8), "states": 0, "times": 0, "nfe": 2}

    def interval(value):
        return {"value": value, "low": value - 1, "high": value + 1}

    quality = {name: interval(k) for k, name in enumerate(("fd", "kid", "fd_inf"))}
    monkeypatch.setattr(tuning, "sample", sample)
    monkeypatch.setattr(tuning, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(tuning, "estimated_times", lambda *_: None)
    monkeypatch.setattr(tuning, "noise_shift", lambda *_: {"late": interval(0.1)})
    monkeypatch.setattr(tuning.metrics, "with_intervals", lambda *_, **__: quality)
    arms = tuning.candidates([1, 2], [1.5], [], [])
    config = SampleConfig(steps=5, n_images=1, trajectories=1, compile=False)

    def swept():
        return tuning.sweep("sit", "linear", arms, config, 10)

    with pytest.raises(KeyboardInterrupt):
        swept()
    resumed, state = swept()
    assert len(made) == len(set(made)) == 4
    state.unlink()
    unbroken, _ = swept()
    pd.testing.assert_frame_equal(resumed, unbroken)
    assert list(resumed.columns[:2]) == ["w_nag", "cfg"] and resumed.nfe.tolist() == [2] * 4
