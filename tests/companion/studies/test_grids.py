"""Other time grids: gaps between images, and an answer that says its ratios and what is open."""

import copy
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from companion.studies import grids
from companion.studies.tell import grids as tell
from nag.support.files import read_json
from nag.support.paths import STUDIES


@pytest.fixture
def committed():
    return read_json(STUDIES / "metrics" / "grids.json")


def row(features):
    return {"features": np.array(features, float), "seeds": np.arange(len(features))}


def test_gaps_are_in_units_of_two_images_of_a_class():
    """Two classes on a line: images of a class 2 apart, grids 1 apart in few steps, 0.5 in many."""
    long = row([[0.0], [10.0], [2.0], [12.0]])
    moved = [row(long["features"] + by) for by in (0.5, 1.0, 2.0)]
    rows = {
        ("sit", "uniform", "none, long"): long,
        ("sit", "logsnr", "none, long"): moved[0],
        ("sit", "uniform", "none"): moved[1],
        ("sit", "logsnr", "none"): moved[2],
    }
    family = SimpleNamespace(name="sit", net=SimpleNamespace(config=SimpleNamespace(classes=2)))
    found = grids.apart(rows, family, "uniform", "logsnr", 4, 20)
    assert found["few"]["value"] == pytest.approx(0.5)
    assert found["many"]["value"] == pytest.approx(0.25)
    assert found["many over few"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    far = grids.to_long(rows, family, "uniform", ["uniform", "logsnr"], 4, 20)
    assert far["sit", "logsnr", "none"]["value"] == pytest.approx(1.0)


def test_log_snr_spends_its_steps_at_small_noise_that_dit_never_saw():
    found = grids.spent({"sit": ["uniform", "logsnr"], "dit": ["respaced", "logsnr"]}, 25)
    found = found.set_index(["family", "grid"])
    small = found["σ/α < 0.05"]
    assert small["sit", "logsnr"] > small["sit", "uniform"]
    assert found["not trained on"]["dit", "respaced"] == 0
    assert found["not trained on"]["dit", "logsnr"] > 15
    assert found["not trained on"]["sit", "logsnr"] == 0


def test_answer_has_the_numbers(committed, unknown_intervals):
    answer = tell.answers(committed)["Q8"]
    committed.pop("small_sigma", None)  # arrays of notebook 30 in the first measurement
    assert not unknown_intervals(answer["sentence"], committed)
    assert "nothing here asks for retraining" in answer["brief"]
    assert (
        "worse (SiT-mini 1.16 [1.05, 1.28] on log SNR, 1.13 [1.04, 1.22] on EDM)"
        in (answer["sentence"])
    )
    assert "inconclusive (DiT-mini 0.99 [0.92, 1.06] on log SNR)" in answer["sentence"]
    assert "at an end of its list for SiT-mini log SNR and SiT-mini EDM" in answer["sentence"]
    assert "larger at t = 0.1 (SiT-mini +0.0190" in answer["sentence"]
    table = tell.table(committed)
    assert len(table) == 5 and table.grid[0] == "uniform (usual)"


def test_a_gap_that_may_not_close_is_said_so(committed):
    changed = copy.deepcopy(committed)
    changed["images_apart"]["dit"]["many over few"]["high"] = 0.7
    answer = tell.answers(changed)["Q8"]["brief"]
    assert "for SiT-mini the gap closes" in answer and "for DiT-mini the gap narrows but" in answer
    changed["images_apart"]["dit"]["many over few"]["high"] = 1.1
    assert "for DiT-mini that the gap narrows is not shown" in tell.answers(changed)["Q8"]["brief"]
    assert tell.title(committed).startswith("Two time grids come to the same images")
    assert tell.title(changed).startswith("Two time grids need not")


def test_small_runs_have_less_to_say(committed):
    """One family, no tuning, no ratio in many steps, no stochastic arm."""
    for name in ("to_usual", "to_none", "w_nag", "images_to_long", "shift_at"):
        keep = {key: x for key, x in committed[name].items() if key.startswith("sit")}
        committed[name] = {key: x for key, x in keep.items() if "long" not in key}
    committed["images_apart"].pop("dit")
    committed["sde_change"] = {}
    committed["tuning"] |= {"tried": [], "at_end": []}
    answer = tell.answers(committed)["Q8"]["sentence"]
    assert "(w of the usual grid; twice" in answer and "Noise shift" not in answer
    assert len(tell.figure(committed).axes) == 3
    plt.close("all")


def test_figure_of_everything(committed):
    figure = tell.figure(committed)
    assert len(figure.axes) == 4
    labels = [t.get_text() for t in figure.axes[1].get_yticklabels()]
    assert labels == ["SiT-mini, log SNR", "SiT-mini, EDM", "DiT-mini, log SNR"]
    plt.close(figure)
