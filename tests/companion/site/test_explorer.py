"""The explorer's data: the right image at the right place, levels and shifts of the same states."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig, sample
from companion.site import explorer
from nag import checkpoint
from nag.shift import estimated_times
from nag.support.paths import STUDIES, WEIGHTS

ARMS = [Arm(), Arm(w_nag=2.0)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return explorer.shown("sit", "ode", ARMS, steps=6, images=3, control=8, compile=False)


def test_images_and_levels_are_those_of_the_seeds(found):
    net = checkpoint.load(WEIGHTS / "sit.safetensors")
    config = SampleConfig(sampler="ode", steps=6, n_images=3, trajectories=3, compile=False)
    for arm, images, levels in zip(ARMS, found["images"], found["levels"], strict=True):
        run = sample(net, arm.terms(), config, progress=False)
        assert np.array_equal(images, run["images"][:, 0])
        assert np.allclose(levels, estimated_times(study.load_reader("linear"), run["states"]))


def test_shifts_are_of_the_levels(found):
    rows = explorer.in_json(found)
    assert len(rows["times"]) == 6 and rows["solver"] == "euler"
    for row, levels in zip(rows["shifts"], found["levels"], strict=True):
        delta = (levels.mean(0) - found["control"].mean(0))[:6]
        assert np.allclose(row["value"], delta, atol=1e-6)
        assert np.all(np.array(row["low"]) <= np.array(row["high"]))


def test_files_are_read_back_as_the_page_reads_them(found, tmp_path):
    explorer.write(tmp_path, "sit-ode", found)
    with Image.open(io.BytesIO((tmp_path / "sit-ode.webp").read_bytes())) as picture:
        sheet = np.asarray(picture.convert("L"))
    assert sheet.shape == (2 * 28, 3 * 28)
    assert np.array_equal(sheet[28:, 56:], found["images"][1, 2])
    stored = np.frombuffer((tmp_path / "sit-ode.bin").read_bytes(), "<i2").reshape(-1, 6)
    times = found["times"][:6]
    assert len(stored) == 2 * 3 + 8
    assert (
        np.abs(times + stored[3:6] * explorer.UNIT - found["levels"][1][:, :6]).max()
        < explorer.UNIT
    )


def test_places_are_the_study_s():
    for family in ("sit", "dit"):
        rows = explorer.places(family)
        table = pd.read_csv(STUDIES / "tables" / f"weight_sweep-{family}.csv")
        assert {(row["w"], row["cfg"]) for row in rows} >= {(0.0, 1.0), (0.0, 1.5)}
        for row in rows:
            line = table[
                (table.w_nag == row["w"]) & (table.cfg == row["cfg"]) & (table.part != "shift")
            ]
            assert line.fd_inf.iloc[0] == row["fd_inf"] and line.recall.iloc[0] == row["recall"]
        assert json.loads(json.dumps(rows)) == rows


def test_settings_are_in_the_order_that_the_page_counts_them():
    arms = explorer.settings("dit")
    assert len(arms) == 24 and arms[4 * 2 + 3] == Arm(w_nag=explorer.W["dit"][2], cfg=1.5)
