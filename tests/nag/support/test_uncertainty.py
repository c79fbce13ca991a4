"""Intervals against closed forms, SciPy and their promise to cover the truth 95 times in 100."""

import math

import numpy as np
import pytest
from scipy import stats

from nag.support import uncertainty as u


def x(value, low, high, **more):
    return {"value": value, "low": low, "high": high, **more}


# intervals from a standard error


def test_around_is_the_normal_or_students_interval():
    assert u.around(1.0, 0.5) == pytest.approx(
        x(1.0, *stats.norm.interval(0.95, 1.0, 0.5)), abs=1e-7
    )
    assert u.around(1.0, 0.5, degrees=2) == pytest.approx(
        x(1.0, 1 - 0.5 * 4.30265, 1 + 0.5 * 4.30265), abs=1e-5
    )  # t of two degrees, from tables
    assert u.around(0.1, 1.0, limits=(0, 1)) == x(0.1, 0, 1)


def test_by_factor_is_symmetric_in_the_logarithm():
    assert u.by_factor(0.8, math.log(1.25)) == pytest.approx(x(0.8, 0.64, 1.0))


def test_wilson_at_the_edges():
    """At p = 0 and n = 10 the limits are 0 and z² / (n + z²)."""
    z2 = stats.norm.ppf(0.975) ** 2
    assert u.wilson(0.0, 10) == pytest.approx(x(0, 0, z2 / (10 + z2)))
    assert u.wilson(1.0, 10) == pytest.approx(x(1, 10 / (10 + z2), 1))


def test_wilson_solves_its_defining_equation():
    """Its ends are the p with |p - k/n| = z sqrt(p (1 - p) / n)."""
    found = u.wilson(0.3, 50)
    for end in (found["low"], found["high"]):
        assert abs(end - 0.3) == pytest.approx(
            stats.norm.ppf(0.975) * math.sqrt(end * (1 - end) / 50)
        )


@pytest.mark.parametrize("n", [3, 10, 49, 250, 2400, 50_000])
def test_a_fraction_lies_within_its_own_interval(n):
    for k in (0, 1, n // 2, n - 1, n):
        found = u.wilson(k / n, n)
        assert 0 <= found["low"] <= k / n <= found["high"] <= 1


# bootstrap


def test_the_bootstrap_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(size=(200, 3))
    draws = u.bootstrap(values, lambda a: a.mean(0), resamples=2000)
    assert draws.shape == (2000, 3)
    np.testing.assert_allclose(draws.std(0), values.std(0) / np.sqrt(200), rtol=0.07)
    np.testing.assert_array_equal(draws, u.bootstrap(values, lambda a: a.mean(0), resamples=2000))


def test_the_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(0).gamma(2, size=400)
    found = u.interval(values.mean(), u.bootstrap(values, np.mean, resamples=4000))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found["low"] == pytest.approx(theirs.low, abs=0.05 * width)
    assert found["high"] == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_bootstrap_covers_as_promised():
    """2000 sets of 60 numbers; 94.3 % since the percentiles know neither n - 1 nor Student's t."""
    values = np.random.default_rng(0).normal(size=(60, 2000))
    found = u.interval(values.mean(0), u.bootstrap(values, lambda a: a.mean(0), resamples=1000))
    covered = np.mean((found["low"] < 0) & (0 < found["high"]))
    assert covered == pytest.approx(0.943, abs=0.015)


def test_rows_are_resampled_whole():
    """The numbers of one image stay together: what they share does not blur their differences."""
    shared = np.random.default_rng(0).normal(size=(40, 1))
    draws = u.bootstrap(np.repeat(shared, 5, axis=1), lambda a: a.mean(0), resamples=20)
    assert np.ptp(draws, axis=1).max() < 1e-12 < np.ptp(draws, axis=0).min()


# delete-d jackknife


def test_the_jackknife_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(size=(250, 2))
    draws = np.stack([values[s].mean(0) for s in u.subsets(250, 4000)])
    np.testing.assert_allclose(
        u.jackknife(draws, 250), values.std(0, ddof=1) / np.sqrt(250), rtol=0.05
    )


def test_subsets_repeat_no_image_and_are_the_same_for_a_seed():
    first, again = (list(u.subsets(11, 3, seed=1)) for _ in range(2))
    assert all(len(s) == len(set(s)) == 8 for s in first)
    np.testing.assert_array_equal(first, again)


def test_bias_of_order_one_over_n_is_corrected():
    """The maximum-likelihood variance is low by a factor 1 - 1/n; over all subsets of m images its
    mean is s² (1 - 1/m), so that the corrected one is the unbiased s² exactly."""
    values = np.random.default_rng(0).normal(size=50)
    draws = np.array([values[s].var() for s in u.subsets(50, 50_000)])
    biased, truth = values.var(), values.var(ddof=1)
    assert truth - biased > 0.01
    assert u.bias_corrected(biased, draws, 50) == pytest.approx(truth, abs=0.002)


def test_few_draws_add_to_the_error_of_the_bias_correction():
    """Corrections of one set by ten draws each scatter by what their error adds to the value's."""
    values = np.random.default_rng(0).normal(size=50)
    found, errors, own = [], [], []
    for seed in range(400):
        draws = np.array([values[s].var() for s in u.subsets(50, 10, seed)])
        found.append(u.bias_corrected(values.var(), draws, 50))
        own.append(u.jackknife(draws, 50) ** 2)
        errors.append(u.corrected_error(u.jackknife(draws, 50), 50, 10) ** 2)
    assert np.mean(errors) - np.mean(own) == pytest.approx(np.var(found), rel=0.15)


# stratified by label


@pytest.mark.parametrize("counts", [(25, 25, 25), (10, 50, 40), (3, 1, 96)])
def test_stratified_subsets_have_the_share_of_every_class(counts):
    labels = np.random.default_rng(0).permutation(np.repeat([4, 7, 9], counts))
    n = sum(counts)
    for s in u.subsets(n, 20, 1, labels):
        assert len(set(s)) == len(s) == int(0.8 * n)
        for label, count in zip((4, 7, 9), counts, strict=True):
            assert abs((labels[s] == label).sum() - 0.8 * count) < 2


def test_stratified_subsets_need_a_label_for_each_image():
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        next(u.subsets(4, 1, 0, [1, 1, 2]))


def test_every_image_is_as_likely_to_be_in_a_stratified_subset():
    labels = np.repeat([0, 1], [7, 33])
    often = sum(np.bincount(s, minlength=40) for s in u.subsets(40, 5000, 0, labels)) / 5000
    assert often == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 5000))


@pytest.mark.parametrize("counts", [(50, 50), (20, 80)])
def test_the_stratified_error_is_the_one_within_classes(counts):
    """Var of a mean whose class counts are fixed: sum over classes of (n_c / n)² s_c² / n_c."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], counts)
    values = np.where(labels, 5.0, 0.0) + rng.normal(size=100) * np.where(labels, 1.0, 2.0)
    draws = np.array([values[s].mean() for s in u.subsets(100, 4000, 0, labels)])
    within = [values[labels == c].var(ddof=1) * count / 100**2 for c, count in enumerate(counts)]
    assert u.jackknife(draws, 100) == pytest.approx(math.sqrt(sum(within)), rel=0.05)
    blind = np.array([values[s].mean() for s in u.subsets(100, 400)])
    assert u.jackknife(blind, 100) > 1.3 * u.jackknife(draws, 100)


# ratios


def test_an_independent_ratio_adds_relative_errors_in_squares():
    found = u.independent_ratio(u.by_factor(2.0, 0.1), x(4.0, 4.0, 4.0))
    assert found == pytest.approx(x(0.5, 0.5 * math.exp(-0.1), 0.5 * math.exp(0.1)))
    found = u.independent_ratio(u.by_factor(2.0, 0.3), u.by_factor(4.0, 0.4))
    assert math.log(found["high"] / 0.5) == pytest.approx(0.5)
    found = u.independent_ratio(x(2.0, -1.0, 5.0), x(4.0, 4.0, 4.0))  # its logarithm has no end
    assert math.log(found["high"] / 0.5) == pytest.approx(1.5)


def test_an_independent_ratio_covers_as_promised():
    rng = np.random.default_rng(0)
    a, b = rng.normal(2, 0.1, 2000), rng.normal(4, 0.3, 2000)
    found = [
        u.independent_ratio(u.around(p, 0.1), u.around(q, 0.3)) for p, q in zip(a, b, strict=True)
    ]
    assert np.mean([f["low"] < 0.5 < f["high"] for f in found]) == pytest.approx(0.95, abs=0.015)


def test_an_interval_joins_the_error_over_trainings():
    """Student's t at 97.5 % and two degrees of freedom is 4.30265 (tables)."""
    sure, images_only = x(0.8, 0.8, 0.8, n=9), x(0.8, 0.8 / 1.1, 0.88)
    joined = u.over_trainings(sure, 0.01, 3)
    assert joined["high"] == pytest.approx(0.8 * math.exp(0.0430265))
    assert joined["low"] == pytest.approx(0.8 * math.exp(-0.0430265))
    assert joined["n"] == 9
    assert u.over_trainings(images_only, 0.0, 3) == pytest.approx(images_only)
    both = u.over_trainings(images_only, 0.02, 3)
    assert math.log(both["high"] / 0.8) == pytest.approx(
        math.hypot(math.log(1.1), 4.30265 * 0.02), rel=1e-5
    )


def test_a_mean_ratio_takes_the_wider_of_two_intervals():
    def found(value, half):
        return u.by_factor(value, half) | {"n": 10}

    apart = u.mean_ratio([found(value, 0.001) for value in (0.8, 0.9, 1.0)])
    logs = np.log([0.8, 0.9, 1.0])
    assert apart["value"] == pytest.approx(stats.gmean([0.8, 0.9, 1.0]))
    assert apart["n"] == 30 and "raw" not in apart
    assert math.log(apart["high"] / apart["value"]) == pytest.approx(
        4.30265 * logs.std(ddof=1) / 3**0.5, rel=1e-5
    )
    alike = u.mean_ratio([found(0.9, 0.1)] * 4)
    assert (alike["low"], alike["high"]) == pytest.approx(
        (0.9 / math.exp(0.1), 0.9 * math.exp(0.1))
    )
    own = u.mean_ratio([found(0.9, 0.1)] * 4, independent=True)
    assert (own["low"], own["high"]) == pytest.approx((0.9 / math.exp(0.05), 0.9 * math.exp(0.05)))


def test_a_mean_of_bias_corrected_ratios_is_raw_unless_all_are_corrected():
    def found(value, raw, corrected=True):
        shown = u.by_factor(value if corrected else raw, 0.3)
        shown |= {"n": 10, "bias_corrected": corrected, "raw": u.by_factor(raw, 0.2)}
        return shown | {"second": u.by_factor(value / 2, 0.1)}

    mean = u.mean_ratio([found(0.6, 0.7)])
    assert mean["bias_corrected"] and mean["value"] == pytest.approx(0.6)
    assert mean["high"] == pytest.approx(0.6 * math.exp(0.3))
    assert mean["raw"]["high"] == pytest.approx(0.7 * math.exp(0.2))
    assert mean["second"]["value"] == pytest.approx(0.3)
    mixed = u.mean_ratio([found(0.5, 0.7), found(0.5, 0.7, corrected=False)])
    assert not mixed["bias_corrected"]
    assert mixed["value"] == mixed["raw"]["value"] == pytest.approx(0.7)
    joined = u.over_trainings(mean, 0.02, 3)
    half = math.hypot(0.2, 4.30265 * 0.02)
    assert joined["raw"]["high"] == pytest.approx(0.7 * math.exp(half), rel=1e-5)


# in words


def test_one_printer():
    assert u.show(x(0.754, 0.706, 0.78)) == "0.75 [0.71, 0.78]"
    assert u.show(x(0.00123, -0.001, 0.004), "+.4f") == "+0.0012 [-0.0010, +0.0040]"
    assert u.show(x(7.125, None, None), ".1f") == "7.1"


@pytest.mark.parametrize(
    ("low", "high", "side", "outcome", "less", "more"),
    [
        (0.8, 0.9, "below", "better", "reproduced", "contradicted"),
        (1.1, 1.2, "above", "worse", "contradicted", "reproduced"),
        (0.9, 1.1, "inconclusive", "inconclusive", "inconclusive", "inconclusive"),
        (1.0, 1.2, "inconclusive", "inconclusive", "inconclusive", "inconclusive"),
        (0.8, 1.0, "inconclusive", "inconclusive", "inconclusive", "inconclusive"),
    ],
)
def test_words_follow_the_whole_interval(low, high, side, outcome, less, more):
    found = x((low + high) / 2, low, high)
    assert u.sign(found, 1) == side and u.outcome(found) == outcome
    assert u.verdict(found, -1, 1) == less and u.verdict(found, 1, 1) == more
    moved = x(found["value"] - 1, low - 1, high - 1)
    assert u.sign(moved) == side and u.verdict(moved, 1) == more
