"""The study of size and length: trends of exact lines, the yardstick of seeds, and what is said."""

import copy

import numpy as np
import pytest

from companion.plots.style import save
from companion.studies import size_and_length as size
from companion.studies.tell import size_and_length as tell
from nag.support.files import read_json
from nag.support.paths import STUDIES

CHAINS = {
    "size": ["s64", "s128", "s192", "s288"],
    "length": ["s64-15k", "s64-30k", "s64-60k", "s64-120k", "s64", "s64-480k"],
}


@pytest.fixture
def committed():
    return read_json(STUDIES / "metrics/size.json")


def constant(value, resamples=50):
    return np.full(1 + resamples, float(value))


# ---- measuring


def test_the_spread_of_seeds_is_pooled():
    measure = {name: constant(x) for name, x in zip("abcde", (1, 3, 10, 14, 99), strict=True)}
    assert size.seed_spread(measure, [["a", "b"]]) == pytest.approx(np.std([1, 3], ddof=1))
    both = size.seed_spread(measure, [["a", "b"], ["c", "d"]])
    assert both == pytest.approx(((2 + 8) / 2) ** 0.5)


def test_the_trend_of_a_line_is_its_slope():
    amounts = [1000, 2000, 8000]
    measure = {n: constant(5 - 0.5 * np.log2(a)) for n, a in zip("abc", amounts, strict=True)}
    seeds = [["a", "a2"]]
    found = size.trend(
        "abc", amounts, measure | {"a2": measure["a"]}, seeds, np.random.default_rng(0)
    )
    for end in ("value", "low", "high"):
        assert found["per_doubling"][end] == pytest.approx(-0.5)
        assert found["rank"][end] == pytest.approx(-1)
    assert found["seed_sd"] == 0 and found["range"] == pytest.approx(1.5)
    assert (found["first"], found["last"]) == pytest.approx((measure["a"][0], measure["c"][0]))


def test_a_spread_of_seeds_widens_the_interval_and_repeats_narrow_it():
    amounts, seeds = [1000, 2000, 4000], [["a", "a2", "a3"]]
    values = {"a": 1.0, "a2": 1.2, "a3": 0.8, "b": 0.9, "c": 0.8}
    measure = {name: constant(x, 2000) for name, x in values.items()}
    found = size.trend("abc", amounts, measure, seeds, np.random.default_rng(0))
    assert found["per_doubling"]["low"] < -0.1 < 0 < found["per_doubling"]["high"]
    assert found["first"] == pytest.approx(1.0)  # the mean over its seeds


def test_a_shift_counts_by_its_distance_from_zero():
    measure = {n: constant(x) for n, x in zip("abc", (0.2, 0.0, -0.2), strict=True)}
    seeds = [["a", "a2"]]
    measure["a2"] = measure["a"]
    found = size.trend("abc", [1, 2, 4], measure, seeds, np.random.default_rng(0), absolute=True)
    assert found["per_doubling"]["value"] == pytest.approx(0)
    assert found["signed"]["per_doubling"]["value"] == pytest.approx(-0.2)


def test_ratios_are_bias_corrected_all_or_none():
    good = {"value": 0.8, "bias_corrected": True, "raw": {"value": 0.9}}
    assert size.gains({("a", 1.0): good}) == ({("a", 1.0): good}, True)
    plain = {"value": 0.7, "bias_corrected": False, "raw": {"value": 0.7}}
    found, corrected = size.gains({("a", 1.0): good, ("b", 1.0): plain})
    assert not corrected and [x["value"] for x in found.values()] == [0.9, 0.7]


# ---- telling


def test_sentences_have_the_numbers(committed):
    said = tell.answers(committed, CHAINS, "figures/size.png")["Q4"]
    for axis in CHAINS:
        trends = committed["trends"][axis]
        for what in tell.SHIFTS.values():
            ends = trends[what]["signed"]
            assert f"from {ends['first']:+.4f} to {ends['last']:+.4f}" in said["brief"]
        for w in ("1.5", "3"):
            ends = trends[f"log distance ratio of NAG, w={w}"]
            first, last = (np.exp(ends[end]) for end in ("first", "last"))
            assert f"at w = {w} from {first:.2f} to {last:.2f}" in said["sentence"]
    for solver, what in tell.SHIFTS.items():
        assert f"{committed['seed_sd'][what]:.4f} ({solver})" in said["brief"]
    assert "From 0.5 to 9.3 M parameters" in said["brief"]
    assert "From 15,000 to 480,000 training images" in said["brief"]


def test_words_of_the_trends_are_those_that_the_study_found(committed):
    """The committed numbers hold the words that were found when they were measured."""
    for axis, found in committed["trends"].items():
        for what, trend in found.items():
            assert tell.TREND[tell.sign(trend["per_doubling"])] == trend["verdict"], (axis, what)


def moved(numbers, what, low, high, **changes):
    """The same numbers with another interval of one trend along the size."""
    numbers = copy.deepcopy(numbers)
    trend = numbers["trends"]["size"][what]
    trend["per_doubling"] |= {"low": low, "high": high}
    trend |= changes
    return numbers


@pytest.mark.parametrize(
    ("low", "high", "signed", "spread", "words"),
    [
        (-1, -0.1, (-1, -0.1), 1, "(nearer to zero)"),
        (0.1, 1, (0.1, 1), 1, "(farther from zero)"),
        (-1, 1, (-1, -0.1), 1, "(falls, no nearer to zero)"),
        (-1, 1, (-1, 1), 1e-6, "(no steady trend, but a range of 0.0153)"),
        (-1, 1, (-1, 1), 1, "(no trend shown)"),
    ],
)
def test_a_shift_is_told_in_words_that_hold_whatever_its_sign(
    committed, low, high, signed, spread, words
):
    what = tell.SHIFTS["Euler"]
    numbers = moved(committed, what, low, high, seed_sd=spread)
    numbers["trends"]["size"][what]["signed"]["per_doubling"] |= {
        "low": signed[0],
        "high": signed[1],
    }
    said = tell.answers(numbers, CHAINS, "x")["Q4"]["brief"]
    assert f"with Euler from +0.0168 to +0.0015 {words}" in said


def test_the_title_follows_the_trends(committed):
    assert tell.title(committed) == (
        "The noise shift shrinks with size and with training; that NAG's gain shrinks is not shown"
    )
    other = moved(committed, tell.SHIFTS["Euler"], -1, 1)
    assert tell.title(other).startswith("The noise shift has no common trend")


@pytest.mark.slow
def test_the_figure_shows_every_network(committed, tmp_path):
    figure = save(tell.figure(committed, CHAINS), "x", tmp_path)
    repeats = [
        line for line in figure.axes[0].lines
        if line.get_markerfacecolor() == "white" and len(line.get_xdata()) == 1
    ]  # fmt: skip
    drawn = sorted(float(line.get_ydata()[0]) for line in repeats)
    networks = committed["networks"]
    assert drawn == sorted(
        networks[name][what]["value"]
        for name in ("s64-s1", "s64-s2", "s128-s1")
        for what in ("shift_sde", "shift_ode")
    )
    places = [line.get_xdata()[0] for line in repeats]
    assert len(set(places)) == len(places)  # none hides another


def test_without_repeats_and_with_a_shift_below_zero_the_figure_is_drawn(committed):
    numbers = copy.deepcopy(committed)
    numbers["training_seeds"] = []
    numbers["networks"]["s64-15k"]["shift_ode"] = {"value": -0.1, "low": -0.2, "high": 0.1}
    figure = tell.figure(numbers, CHAINS)
    assert figure.axes[1].get_yscale() == "linear"


def test_raw_ratios_are_not_called_bias_corrected(committed):
    numbers = committed | {"gain_bias_corrected": False}
    assert "bias-corrected" not in tell.answers(numbers, CHAINS, "x")["Q4"]["sentence"]


def test_the_images_shown_are_of_the_smallest_and_the_largest(committed):
    assert tell.shown(committed, CHAINS) == {
        "s64-w=0": "0.49 M, unguided",
        "s64-w=1.5": "0.49 M, NAG w=1.5",
        "s288-w=0": "9.3 M, unguided",
        "s288-w=1.5": "9.3 M, NAG w=1.5",
    }
