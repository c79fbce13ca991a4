"""The pipeline's figures from the committed results, and from made-up arrays where Git has none."""

import matplotlib as mpl
import numpy as np
import pytest

from companion.plots import notebooks, pipeline_figures, toy_figures
from nag.data.fashion_mnist import load_fashion_mnist
from nag.support.files import read_json
from nag.support.paths import RESULTS


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


def title(fig):
    return fig.texts[0].get_text()


def nothing_is_clipped(fig):
    fig.draw_without_rendering()
    width, height = fig.bbox.size
    parts = [ax.get_tightbbox() for ax in fig.axes]
    parts += [text.get_window_extent() for text in [*fig.texts, *fig.legends]]
    return all(
        b.x0 >= -1 and b.y0 >= -1 and b.x1 <= width + 1 and b.y1 <= height + 1 for b in parts
    )


@pytest.mark.parametrize("family", ["sit", pytest.param("dit", marks=pytest.mark.slow)])
def test_titles_state_the_numbers_of_the_files(family):
    late = read_json(RESULTS / f"metrics/shift-{family}.json")["sde-nag"]["late_ratio"]["value"]
    fig = pipeline_figures.shift(RESULTS, family, True)
    assert f"NAG leaves {late:.2f} [" in title(fig) and nothing_is_clipped(fig)
    ratio = read_json(RESULTS / f"metrics/ratios-{family}.json")["nag over none"]["value"]
    assert f"NAG over unguided: {ratio:.2f} [" in title(pipeline_figures.quality(RESULTS, family))
    w = read_json(RESULTS / f"metrics/tune-{family}.json")["chosen"]["nag"]["w_nag"]
    fig = pipeline_figures.tuning(RESULTS, family)
    assert f"w = {w:g}," in title(fig) and nothing_is_clipped(fig)
    path = {"sit": "linear", "dit": "ddpm"}[family]
    assert nothing_is_clipped(pipeline_figures.calibration(RESULTS, path))


def test_a_figure_without_its_files_is_not_drawn(tmp_path, capsys):
    made = pipeline_figures.draw(
        pipeline_figures.posterior, tmp_path, "sit", name="x", target=tmp_path
    )
    assert made is None and "x: not drawn" in capsys.readouterr().out


def test_the_posterior_is_that_of_the_papers_sampler(tmp_path):
    rng, times = np.random.default_rng(0), np.linspace(1, 0, 26)
    readings = {name: times + rng.normal(0, 0.01, (30, 26)) for name in ("none", "nag", "control")}
    (tmp_path / "arrays").mkdir()
    np.savez(tmp_path / "arrays/shift-sde-sit.npz", times=times, **readings)
    for name in ("curves/shift-sde-sit.json", "metrics/shift-sit.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((RESULTS / name).read_bytes())
    fig = pipeline_figures.posterior(tmp_path, "sit")
    assert "unguided states look noisier than forward states" in title(fig)
    assert len(fig.axes) == 4 and "Euler–Maruyama" in fig.texts[1].get_text()


def test_real_images_are_of_the_same_classes():
    images, labels = load_fashion_mnist("test")
    found = pipeline_figures.real_images(np.array([9, 0, 9]))
    first = images[(labels == 9).nonzero()[0, 0]]
    assert (found[0] == first.numpy()).all() and (found[2] == found[0]).all()


def test_settings_of_arms_are_in_words():
    chosen = {
        "none": {"w_nag": 0.0, "cfg": 1.0},
        "nag": {"w_nag": 3.0, "cfg": 1.0},
        "cfg": {"w_nag": 0.0, "cfg": 1.1},
        "cfg-nag": {"w_nag": 0.5, "cfg": 1.1},
    }
    assert notebooks.arm_settings(chosen) == {
        "nag": "w = 3",
        "cfg": "scale 1.1",
        "cfg+nag": "w = 0.5, scale 1.1",
    }


def test_tables_have_the_numbers_of_the_files():
    table = notebooks.shift_table(read_json(RESULTS / "metrics/shift-sit.json"))
    assert list(table.index)[:2] == ["none", "nag"] and "stochastic, nag" in table.index
    quality = notebooks.quality_table(read_json(RESULTS / "metrics/quality-sit.json"))
    assert quality["distance / unguided"]["none"] == "1.00"
    found = read_json(RESULTS / "metrics/overhead.json")
    costs = notebooks.costs(found["rows"], 96, found["protocol"]["parameters"])
    assert costs["arithmetic"]["arithmetic / unguided"]["NAG"] == pytest.approx(2, abs=0.01)


@pytest.mark.slow
def test_pictures_of_overhead_rules_and_toy_are_whole():
    found = read_json(RESULTS / "metrics/overhead.json")
    fig = notebooks.overhead(found["rows"], "title", "note")
    assert nothing_is_clipped(fig)
    labels = [text.get_text() for text in fig.axes[0].texts]
    assert len(labels) == len(found["rows"]) and labels[1].endswith("NFE 10")
    auto = read_json(RESULTS / "metrics/auto-sit.json")
    weights = dict.fromkeys(("none", "best of sweep", "mean", "spread", "schedule"), 1.0)
    assert nothing_is_clipped(notebooks.weight_rules(auto, weights, "title", "note"))
    toy = read_json(RESULTS / "curves/toy.json")
    figs = [
        toy_figures.forward(toy["clouds"], toy["beliefs"], 0.3),
        toy_figures.added_error(toy["times"], toy["added"], toy["sigma_e"]),
        toy_figures.causes(toy["grid"], toy["causes"]),
        toy_figures.guidance(toy["sweep"]),
        toy_figures.dropout(toy["gap"]),
        toy_figures.two_axes(),
    ]
    assert all(nothing_is_clipped(fig) for fig in figs)
    cloud = figs[0].axes[3]
    assert np.abs(cloud.collections[0].get_offsets()).max() < cloud.get_xlim()[1]
    summary = toy_figures.summary(toy["sweep"])
    assert len(summary) == 7 and list(summary["case"].unique()) == list(toy_figures.CASES)
