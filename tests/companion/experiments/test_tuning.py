"""The choice of the guidance weights: every candidate once, the least bias-corrected distance."""

import numpy as np
import pandas as pd
import pytest

from companion.experiments import tuning
from companion.experiments.generate import Arm, SampleConfig


def test_every_arm_begins_with_its_list_and_both_with_all_pairs():
    found = tuning.candidates([1, 2], [1.5], [0.5, 1], [1.25, 1.5])
    assert found["none"] == [Arm()] and found["cfg"] == [Arm(cfg=1.5)]
    assert found["nag"] == [Arm(w_nag=1), Arm(w_nag=2)]
    pairs = {(0.5, 1.25), (1, 1.25), (0.5, 1.5), (1, 1.5)}
    assert {(a.w_nag, a.cfg) for a in found["cfg-nag"]} == pairs
    for name, arms in found.items():
        assert [tuning.arm_of(name, tuning.strengths(arm)) for arm in arms] == arms


class Bowl:
    """In the place of a sweep: one minimum of the bias-corrected distance, and not of the raw."""

    def row(self, arm):
        nag, cfg = (np.log(x / best) ** 2 if x else 3 for x, best in
                    ((arm.w_nag, 2.5), (round(arm.cfg - 1, 6), 0.06)))  # fmt: skip
        return {"w_nag": arm.w_nag, "cfg": arm.cfg, "fd": -nag - cfg, "fd_inf": nag + cfg}


def test_every_method_has_the_same_budget_and_ends_beside_its_best():
    start = tuning.candidates([0.5, 1.0], [1.25, 1.5], [0.5, 1.0], [1.1, 1.2])
    table = tuning.tune(Bowl(), start, 10)
    counts = table.arm.value_counts()
    assert counts["none"] == 1 and counts.drop("none").between(7, 10).all()
    chosen = tuning.best(table)
    assert list(chosen) == ["none", "nag", "cfg", "cfg-nag"]
    assert chosen["nag"].cfg == 1 and abs(np.log(chosen["nag"].w_nag / 2.5)) < 0.25
    assert chosen["cfg"].w_nag == 0 and abs(np.log((chosen["cfg"].cfg - 1) / 0.06)) < 0.25
    assert tuning.ends(table, chosen) == []
    few = tuning.tune(Bowl(), start, 4)
    assert tuning.ends(few, tuning.best(few)) == ["cfg: cfg", "cfg-nag: w_nag", "cfg-nag: cfg"]
    none = tuning.tune(Bowl(), tuning.candidates([1.0], [], [], []), 1)
    assert list(none.arm) == ["none", "nag"] and tuning.ends(none, tuning.best(none)) == []


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


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_its_table_is_the_same(tmp_path, monkeypatch):
    """Sampling and measuring stand in for themselves; their names are in no sorted order."""
    made = []

    def sample(net, terms, config, keep):
        if len(made) == 2 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KeyboardInterrupt
        made.append(keep)
        return {"images": 0, "labels": 0, "states": 0, "times": 0, "nfe": 2}

    def interval(value):
        return {"value": value, "low": value - 1, "high": value + 1}

    quality = {name: interval(k) for k, name in enumerate(("fd", "kid", "fd_inf", "fd_inf_second"))}
    monkeypatch.setattr(tuning, "sample", sample)
    monkeypatch.setattr(tuning, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(tuning, "estimated_times", lambda *_: None)
    monkeypatch.setattr(tuning, "noise_shift", lambda *_, **__: {"late": interval(0.1)})
    monkeypatch.setattr(tuning, "features_of", lambda _: None)
    monkeypatch.setattr(tuning, "quality", lambda *_, **__: quality)
    arms = tuning.candidates([1, 2], [1.5], [], [])
    config = SampleConfig(steps=5, n_images=1, trajectories=1, compile=False)

    def swept():
        sweep = tuning.Sweep("sit", "linear", config, 10)
        return tuning.tune(sweep, arms, 2), sweep.state

    with pytest.raises(KeyboardInterrupt):
        swept()
    resumed, state = swept()
    assert len(made) == len(set(made)) == len(resumed)
    state.unlink()
    unbroken, _ = swept()
    pd.testing.assert_frame_equal(resumed, unbroken)
    assert list(resumed.columns[:3]) == ["arm", "w_nag", "cfg"] and set(resumed.nfe) == {2}
