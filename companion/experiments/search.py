"""Search for the best strengths of a guidance within a budget that is the same for every method.

A point is a tuple of strengths above zero, such as (w,) of NAG, (scale - 1,) of CFG, or both. What
is tried next is a neighbour of the best point so far: a factor away in one strength, first beyond
the ends of what was tried; once all of them are known, the factor shrinks to its root. This is
compass search on a logarithmic scale (Kolda, Lewis and Torczon, 2003, SIAM Review 45)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Point = tuple[float, ...]
V = TypeVar("V")  # what is kept of a point
FACTOR, FINEST = 2.0, 1.15  # of the first neighbours; below this they are no different


def rounded(x: float) -> float:
    """To three digits, so that weights can be written down."""
    return float(f"{x:.3g}")


def _neighbours(point: Point, factor: float) -> list[Point]:
    return [
        (*point[:k], rounded(point[k] * by), *point[k + 1 :])
        for k in range(len(point))
        for by in (factor, 1 / factor)
    ]


def at_an_end(tried: Sequence[Point], best: Point) -> list[bool]:
    """For each strength whether `best` has the least or the largest of all that were tried, so that
    it is a bound rather than an optimum; never of a single point."""
    several = len(set(tried)) > 1
    return [
        several and best[k] in (min(p[k] for p in tried), max(p[k] for p in tried))
        for k in range(len(best))
    ]


def search(
    start: Sequence[Point],
    measure: Callable[[Point], V],
    score: Callable[[V], float],
    budget: int,
    limits: Sequence[tuple[float, float]],
    refine: bool = True,
) -> dict[Point, V]:
    """What `measure` gives of all points tried, in their order: those of `start`, then neighbours
    of the one of the least `score`, at most `budget` points in all.

    `limits` are the least and largest value of each strength. Without `refine` it ends as soon as
    the best point is at no end. Raises ValueError if `start` is empty or exceeds the budget."""
    points = list(dict.fromkeys(start))
    if not 0 < len(points) <= budget:
        raise ValueError(f"{len(points)} points to start from with a budget of {budget}")
    tried = {point: measure(point) for point in points}
    factor = FACTOR
    while len(tried) < budget:
        best = least(tried, score)
        fresh = [
            point
            for point in _neighbours(best, factor)
            if all(low <= x <= high for x, (low, high) in zip(point, limits, strict=True))
            and not any(_alike(point, other) for other in tried)
        ]
        beyond = [point for point in fresh if _beyond(point, best, tried)]
        if beyond or (refine and fresh):
            point = (beyond or fresh)[0]
            tried[point] = measure(point)
        elif refine and math.sqrt(factor) >= FINEST:
            factor = math.sqrt(factor)
        else:
            break
    return tried


def least(tried: Mapping[Point, Any], score: Callable[[Any], float]) -> Point:
    """The point of the least score."""
    return min(tried, key=lambda point: score(tried[point]))


def _alike(one: Point, other: Point) -> bool:
    return all(abs(a / b - 1) < 0.02 for a, b in zip(one, other, strict=True))


def _beyond(point: Point, best: Point, tried: Iterable[Point]) -> bool:
    """Whether a strength leaves the range of all that were tried, where the best is at its end."""
    ranges = [(min(column), max(column)) for column in zip(*tried, strict=True)]
    return any(
        (x > high and mine == high) or (x < low and mine == low)
        for x, mine, (low, high) in zip(point, best, ranges, strict=True)
    )
