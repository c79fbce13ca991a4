"""Compass search finds the best of smooth functions, leaves no best at an end, keeps its budget."""

import math

import pytest

from companion.experiments.search import at_an_end, least, search

WIDE = [(0.01, 100.0)]


def bowl(*centre):
    return lambda point: sum(math.log(x / c) ** 2 for x, c in zip(point, centre, strict=True))


def run(measure, start, budget, limits=WIDE, **more):
    return search(start, measure, lambda v: v, budget, limits, **more)


@pytest.mark.parametrize("centre", [0.3, 1.3, 9.0])
def test_a_best_beyond_the_list_is_found(centre):
    start = [(0.5,), (1.0,), (2.0,)]
    tried = run(bowl(centre), start, 8)
    assert 6 <= len(tried) <= 8 and list(tried)[:3] == start
    best = least(tried, lambda v: v)
    assert abs(math.log2(best[0] / centre)) < 0.25
    assert at_an_end([*tried], best) == [False]


def test_without_refining_it_ends_as_soon_as_the_best_is_at_no_end():
    start = [(0.5,), (1.0,), (2.0,)]
    assert list(run(bowl(1.1), start, 8, refine=False)) == start
    assert list(run(bowl(5.0), start, 8, refine=False)) == [*start, (4.0,), (8.0,)]
    close = [(1.0,), (1.5,), (2.0,)]  # twice the best is beyond the list, though it is at no end
    assert list(run(bowl(1.5), close, 8, refine=False)) == close


def test_two_strengths_are_searched_together():
    tried = run(bowl(3.0, 0.1), [(0.5, 0.4), (1.0, 0.4)], 12, WIDE * 2)
    best = least(tried, lambda v: v)
    assert len(tried) == 12
    assert abs(math.log2(best[0] / 3)) < 0.5 and abs(math.log2(best[1] / 0.1)) < 0.5


def test_limits_are_kept_and_named():
    tried = run(bowl(50.0), [(1.0,)], 9, [(0.5, 4.0)], refine=False)
    assert list(tried) == [(1.0,), (2.0,), (4.0,)]
    assert at_an_end([*tried], (4.0,)) == [True] and at_an_end([(4.0,)], (4.0,)) == [False]


def test_nothing_is_measured_twice_and_the_budget_is_a_bound():
    seen = []
    run(lambda p: seen.append(p) or bowl(1.0)(p), [(1.0,), (1.0,), (2.0,)], 6)
    assert len(seen) == len(set(seen)) == 6
    with pytest.raises(ValueError, match="3 points to start from with a budget of 2"):
        run(bowl(1.0), [(1.0,), (2.0,), (3.0,)], 2)
