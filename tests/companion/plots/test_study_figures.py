"""What a study's figure shows is what was measured: places of points, bars, marks and ticks."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from companion.experiments import study
from companion.plots import study_figures as drawing


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def ratio(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def test_bars_reach_from_low_to_high(ax):
    drawing.error_bars(ax, [1, 2], [ratio(0.5, 0.1), ratio(0.8, 0.2)], scale=1000)
    (container,) = ax.containers
    points, _, (bars,) = container
    assert points.get_ydata().tolist() == [500, 800]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert ends == pytest.approx(np.array([[400, 600], [600, 1000]]))


def test_ratios_that_contain_one_are_open(ax):
    drawing.ratio_points(ax, [0, 1], [ratio(0.8, 0.1), ratio(0.95, 0.1)], "#0072b2")
    faces = [to_hex(points.get_markerfacecolor()) for points, *_ in ax.containers]
    assert faces == ["#0072b2", "#ffffff"]


def test_rows_of_ratios_go_down_with_a_line_at_one_and_rings_around_unsettled_ones(ax):
    ratios = {"a": ratio(0.8, 0.1), "b": ratio(1.2, 0.1)}
    drawing.rows_of_ratios(ax, ratios, dict.fromkeys(ratios, "#0072b2"), ["b"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert [1, 1] in [list(line.get_xdata()) for line in ax.lines]
    rings = [line for line in ax.lines if line.get_markersize() == 11]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(1.2, 1)]


def test_ticks_of_a_ratio_are_plain_apart_and_include_one(ax):
    ax.plot([0, 1], [0.6, 3.4])
    drawing.log_axis(ax)
    ax.figure.canvas.draw()
    ticks = [tick.get_text() for tick in ax.get_yticklabels()]
    assert "1" in ticks and all("e" not in tick and "$" not in tick for tick in ticks)
    low, high = np.log(ax.get_ylim())
    places = (np.log([float(tick) for tick in ticks]) - low) / (high - low)
    assert np.diff(places).min() >= 0.1


def test_rows_of_images_are_those_of_the_arms(tmp_path):
    images = {
        name: np.full((10, 1, 28, 28), shade, np.uint8) for name, shade in (("a", 10), ("b", 200))
    }
    file = tmp_path / "images.npz"
    study.save_images(file, {name: {"images": array} for name, array in images.items()})
    fig = drawing.first_images(file, {"b": "with NAG", "a": "no guidance"}, "a title")
    rows = [(ax.get_ylabel(), ax.images[0].get_array()) for ax in fig.axes]
    plt.close(fig)
    assert [name for name, _ in rows] == ["with NAG", "no guidance"]
    assert [int(array.mean()) for _, array in rows] == [200, 10]
    assert rows[0][1].shape == (28, 280)
    with pytest.raises(KeyError):
        drawing.first_images(file, {"c": "another"}, "a title")
