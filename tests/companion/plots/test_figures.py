"""Figures hold the numbers they were given, look the same everywhere and are the same bytes each
time.
"""

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from companion.plots import figures, style
from companion.plots.style import ARMS

GUIDED = ("none", "nag", "cfg", "cfg+nag")
TIMES = np.linspace(1, 0, 51)
RNG = np.random.default_rng(0)


def arm_lines(ax, arm):
    return [line for line in ax.lines if to_hex(line.get_color()) == ARMS[arm]["color"]]


def curves():
    value = {arm: 0.01 * RNG.standard_normal(51) for arm in GUIDED}
    return {arm: {"value": v, "low": v - 0.002, "high": v + 0.003} for arm, v in value.items()}


def summary():
    return {
        arm: {
            m: {"value": i + j / 10, "low": i + j / 10 - 0.2, "high": i + j / 10 + 0.1, "n": 9}
            for j, m in enumerate(("fd_inf", "kid", "precision", "recall"))
        }
        for i, arm in enumerate(GUIDED)
    }


def table():
    rows = pd.DataFrame(
        [(w, c) for c in (1.0, 2.0) for w in (2.0, 0.0, 1.0)], columns=["w_nag", "cfg"]
    )
    fd = (rows["w_nag"] - 1) ** 2 + rows["cfg"]
    return rows.assign(
        fd=fd + 5,
        fd_inf=fd,
        fd_inf_low=fd - 0.1,
        fd_inf_high=fd + 0.2,
        shift_late=0.01 - 0.006 * rows["w_nag"],
    )


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


def test_arms_differ_without_colour():
    grey = {arm: np.dot(to_rgb(ARMS[arm]["color"]), (0.299, 0.587, 0.114)) for arm in GUIDED}
    assert min(abs(grey[a] - grey[b]) for a, b in combinations(GUIDED, 2)) > 0.1
    for key in ("label", "color", "marker", "linestyle"):
        assert len({ARMS[arm][key] for arm in ARMS}) == len(ARMS)


def test_density_shows_the_means_and_the_nearest_time():
    sampled = {
        arm: TIMES + 0.01 * i * RNG.standard_normal((50 + i, 51))
        for i, arm in enumerate(("nag", "none"), 1)
    }
    control = TIMES + 0.01 * RNG.standard_normal((70, 51))
    fig = figures.posterior_density(sampled, control, TIMES, (0.8, 0.303))
    first, second = fig.axes
    assert first.get_title() == "t = 0.8" and second.get_title() == "t = 0.3"
    k = 35  # t = 0.3
    assert second.lines[0].get_xdata()[0] == pytest.approx(0.3)
    for arm, values in (sampled | {"forward": control}).items():
        curve, mean = arm_lines(second, arm)
        x, y = curve.get_data()
        assert mean.get_xdata()[0] == pytest.approx(values[:, k].mean())
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.01)
        assert np.trapezoid(x * y, x) == pytest.approx(values[:, k].mean(), abs=1e-3)


def test_density_counts_readings_far_from_all_others():
    levels = np.tile(0.3 + 0.01 * RNG.standard_normal((200, 1)), 51)
    levels[:3] = 0.9
    fig = figures.posterior_density({"nag": levels}, levels[3:], TIMES, (0.3,))
    (ax,) = fig.axes
    curve, mean = arm_lines(ax, "nag")
    x, y = curve.get_data()
    assert x.max() < 0.5 and np.trapezoid(y, x) == pytest.approx(197 / 200, abs=0.01)
    assert mean.get_xdata()[0] == pytest.approx(levels[:, 0].mean())
    assert [text.get_text() for text in ax.texts] == ["NAG: 3 beyond"]


def test_density_rejects_bad_input():
    good = TIMES + 0.01 * RNG.standard_normal((5, 51))
    with pytest.raises(ValueError, match="one column per time"):
        figures.posterior_density({"none": good[:, 1:]}, good, TIMES, (0.5,))
    with pytest.raises(ValueError, match="no state near t = 1.5"):
        figures.posterior_density({"none": good}, good, TIMES, (1.5,))
    with pytest.raises(ValueError, match="are alike"):
        figures.posterior_density({"none": np.tile(TIMES, (5, 1))}, good, TIMES, (0.5,))


def test_shift_draws_the_arrays_from_noise_to_data():
    data = curves()
    whole, zoom = figures.shift_curves(TIMES, data).axes
    late = TIMES <= 0.2 + 1e-9
    for ax, keep in ((whole, slice(None)), (zoom, late)):
        left, right = ax.get_xlim()
        assert left > right
        for arm in GUIDED:
            low, high, line = arm_lines(ax, arm)
            np.testing.assert_array_equal(line.get_xdata(), TIMES[keep])
            np.testing.assert_array_equal(line.get_ydata(), data[arm]["value"][keep])
            assert line.get_marker() == ARMS[arm]["marker"]
            np.testing.assert_array_equal(low.get_ydata(), data[arm]["low"][keep])
            np.testing.assert_array_equal(high.get_ydata(), data[arm]["high"][keep])
    assert whole.get_xlim()[0] >= 1 and zoom.get_xlim()[0] < 0.25
    with pytest.raises(ValueError, match=r"per time \(50\)"):
        figures.shift_curves(TIMES[1:], data)


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 1, 28, 28), (3, 3, 28, 28)])
def test_grid_keeps_every_pixel(shape):
    images = {arm: RNG.integers(0, 256, shape, dtype=np.uint8) for arm in ("nag", "none")}
    (ax,) = figures.sample_grid(images, ["a", "b", "c"]).axes
    pixels = np.asarray(ax.images[0].get_array())
    assert [text.get_text() for text in ax.get_yticklabels()] == ["no guidance", "NAG"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c"]
    for row, arm in enumerate(("none", "nag")):
        for i, image in enumerate(images[arm]):
            expected = image if image.ndim == 2 else np.moveaxis(image, 0, -1).squeeze()
            np.testing.assert_array_equal(
                pixels[30 * row : 30 * row + 28, 30 * i : 30 * i + 28], expected
            )


def test_grid_names_settings_and_ends_with_real_images():
    images = {arm: RNG.integers(0, 256, (2, 28, 28), dtype=np.uint8) for arm in ("none", "nag")}
    real = RNG.integers(0, 256, (2, 28, 28), dtype=np.uint8)
    (ax,) = figures.sample_grid(images, ["a", "b"], real=real, settings={"nag": "w = 2"}).axes
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["no guidance", "NAG\nw = 2", "real images"]
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array())[60:88, :28], real[0])


def test_grid_rejects_unlike_images():
    images = np.zeros((3, 28, 28), np.uint8)
    for wrong in (images.astype(float), images[:2], images[:, :20]):
        with pytest.raises(ValueError, match="images of 'nag'"):
            figures.sample_grid({"none": images, "nag": wrong}, ["a", "b", "c"])


def test_calibration_shows_counts_and_errors():
    pit, t = RNG.uniform(size=1000), np.linspace(0.05, 0.95, 10)
    cal = {
        "pit": pit,
        "level": t,
        "coverage": t**2,
        "t": t,
        "count": np.full(10, 100),
        "bias": 0.01 * t,
        "bias_se": 0.001 * (1 + t),
        "std": 0.02 * t,
    }
    hist, cover, bias, std = figures.calibration(cal, pit_bins=10).axes
    heights = [bar.get_height() for bar in hist.patches[:10]]
    np.testing.assert_allclose(heights, np.histogram(pit, 10, (0, 1))[0] / 100)
    band = hist.patches[10]
    binomial = np.sqrt(1000 * 0.1 * 0.9)
    assert band.get_height() == pytest.approx(2 * 1.96 * binomial / 100, rel=1e-3)
    np.testing.assert_array_equal(cover.lines[0].get_ydata(), cal["coverage"])
    np.testing.assert_array_equal(std.lines[0].get_ydata(), cal["std"])
    bars = bias.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1].mean() for bar in bars], cal["bias"])
    np.testing.assert_allclose(
        [np.ptp(bar[:, 1]) for bar in bars], 2 * 1.96 * cal["bias_se"], rtol=1e-3
    )
    with pytest.raises(ValueError, match="'coverage'"):
        figures.calibration({key: value for key, value in cal.items() if key != "coverage"})


def test_training_curves_show_the_log_and_its_mean():
    images = np.arange(1, 201) * 128
    loss = 1 + RNG.standard_normal(200) / 10
    log = pd.DataFrame(
        {"step": images // 128, "images": images, "loss": loss, "lr": 1e-3, "seconds": images / 100}
    )
    positive, negative = figures.training_curves({"a": log, "b": log.assign(loss=loss - 3)}).axes
    assert (positive.get_yscale(), negative.get_yscale()) == ("log", "linear")
    np.testing.assert_array_equal(positive.lines[0].get_xydata(), np.stack([images, loss], 1))
    smooth = positive.lines[1].get_ydata()
    assert (
        smooth[99] == pytest.approx(loss[90:110].mean()) and smooth[0] == loss[0]
    )  # images 91 to 110 batches
    with pytest.raises(ValueError, match="'loss'"):
        figures.training_curves({"a": log.drop(columns="loss")})


def test_quality_shows_values_and_intervals():
    data = summary()
    axes = figures.quality(data).axes
    for ax, metric in zip(axes, ("fd_inf", "kid", "precision", "recall"), strict=True):
        for arm in GUIDED:
            interval, point = arm_lines(ax, arm)
            assert list(interval.get_xdata()) == [
                data[arm][metric]["low"],
                data[arm][metric]["high"],
            ]
            assert list(point.get_xdata()) == [data[arm][metric]["value"]]
        left, right = ax.get_xlim()
        assert left <= -0.1 and right >= 3.4
    assert [text.get_text() for text in axes[0].get_yticklabels()] == [
        ARMS[arm]["label"] for arm in GUIDED
    ]
    floored = figures.quality(data, floor=data["none"]).axes[0]
    assert [0, 0] in [list(line.get_xdata()) for line in floored.lines]
    del data["nag"]["kid"]
    with pytest.raises(ValueError, match="'kid'"):
        figures.quality(data)


def test_tuning_shows_the_sweep_and_the_choice():
    left, right = figures.tuning(table(), {"nag": (2.0, 1.0), "none": (0.0, 1.0)}).axes
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[0, 2], [1, 1], [2, 2]])
    bars = left.collections[1].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[2.9, 3.2], [1.9, 2.2], [2.9, 3.2]])
    (ring,) = arm_lines(left, "nag")
    assert ring.get_xydata().tolist() == [[2, 2]]
    assert arm_lines(right, "nag")[0].get_ydata()[0] == pytest.approx(-0.002)
    with pytest.raises(ValueError, match="not in the table"):
        figures.tuning(table(), {"nag": (0.7, 1.0)})
    plain = figures.tuning(table().drop(columns="fd_inf_low"), {}).axes[0]
    assert not plain.collections, "no intervals were given"


@pytest.mark.parametrize(
    "draw",
    [
        lambda arm: figures.posterior_density(
            {arm: RNG.random((5, 51))}, RNG.random((5, 51)), TIMES, (0.5,)
        ),
        lambda arm: figures.shift_curves(TIMES, {arm: curves()["nag"]}),
        lambda arm: figures.sample_grid({arm: np.zeros((1, 28, 28), np.uint8)}, ["a"]),
        lambda arm: figures.quality({arm: summary()["nag"]}),
        lambda arm: figures.tuning(table(), {arm: (0.0, 1.0)}),
    ],
)
def test_unknown_arm_lists_the_known(draw):
    draw("nag")
    with pytest.raises(
        ValueError,
        match=r"unknown arm 'NAG': choose one of \['none', 'nag', 'cfg', 'cfg\+nag', 'fo",
    ):
        draw("NAG")


@pytest.mark.slow
def test_saved_bytes_repeat_and_the_figure_is_closed(tmp_path):
    data, before = curves(), dict(mpl.rcParams)
    for folder in ("a", "b"):
        figures.save(figures.shift_curves(TIMES, data, note="N = 400"), "shift", tmp_path / folder)
    for name in ("shift.png", "shift.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["shift.png", "shift.svg"]
    assert mpl.image.imread(tmp_path / "a" / "shift.png").shape[1] == 8 * 150
    assert not mpl.pyplot.get_fignums()
    assert dict(mpl.rcParams) == before


@style.style()
def wide_legend():
    fig, ax = mpl.pyplot.subplots(figsize=(style.WIDTH, 3))
    ax.set_xlabel("x")
    handles = [style.line(label=f"what the line number {k} means") for k in range(5)]
    return style.frame(fig, "", "", handles)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.shift_curves(TIMES, curves(), note="N = 400, seeds 0-399"),
        lambda: figures.quality(summary()),
        lambda: figures.tuning(table(), {"cfg": (0, 2)}),
        lambda: wide_legend(),
    ],
)
def test_nothing_is_clipped_and_every_axis_is_named(draw):
    fig = draw()
    fig.draw_without_rendering()
    width, height = fig.bbox.size
    boxes = [ax.get_tightbbox() for ax in fig.axes] + [
        text.get_window_extent() for text in [*fig.texts, *fig.legends]
    ]
    for box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
    assert all(ax.get_xlabel() for ax in fig.axes)


def test_a_colour_has_one_meaning():
    named = {arm["color"] for arm in ARMS.values()} | {style.DOMAIN_GUIDANCE, style.WITH_NAG}
    named |= {look["color"] for look in style.OF_FAMILY.values()} | {style.CLASSIFIER}
    assert len(named) == len(ARMS) + len(style.OF_FAMILY) + 3
    others = {style.OF_SAMPLER["sde"]["color"], *style.SERIES}
    assert len(others) == 1 + len(style.SERIES) and not named & others
