"""Uncertainty of measured numbers: every interval, its one printer, and the words for what it says.

An interval is {"value", "low", "high"}, always at 95 %. Three ways lead to one: the bootstrap over
images, the delete-d jackknife (for statistics that break when images repeat, such as the Fréchet
distance), and a standard error over independent trainings."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import scipy  # scipy.stats, which takes a second to import, is imported at its first use
from torch import randint

from nag.support.rng import generator

Z95 = 1.959964  # 97.5 % quantile of the standard Normal
KEEP = 0.8  # share of the images in each subset of the jackknife


class Interval(TypedDict):
    """A number, or an array of them, with its 95 % interval; other keys may be added."""

    value: Any
    low: Any
    high: Any


# ---- intervals from a standard error


def around(
    value: float,
    error: float,
    limits: tuple[float, float] = (-math.inf, math.inf),
    degrees: float | None = None,
) -> Interval:
    """value ± z error, cut to `limits`; `error` is one standard error.

    z is 1.96, or Student's t at 97.5 % if the error was estimated with few `degrees` of freedom.
    """
    half = (Z95 if degrees is None else scipy.stats.t.ppf(0.975, degrees)) * error
    low, high = (min(max(float(end), limits[0]), limits[1]) for end in (value - half, value + half))
    return {"value": value, "low": low, "high": high}


def by_factor(value: float, half: float | np.ndarray) -> Interval:
    """value · exp(±half), for a positive number whose logarithm has the half-width `half`."""
    return {
        "value": value,
        "low": float(value * math.exp(-half)),
        "high": float(value * math.exp(half)),
    }


def wilson(p: float, n: int) -> Interval:
    """95 % interval of a fraction p in [0, 1] of n independent trials (Wilson, 1927).

    It keeps a width at p = 0 and p = 1, and never leaves [0, 1]."""
    found = scipy.stats.binomtest(round(p * n), n).proportion_ci(0.95, method="wilson")
    return {"value": p, "low": float(found.low), "high": float(found.high)}


# ---- bootstrap


def bootstrap(
    values: np.ndarray, statistic: Callable, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Statistic (resamples, ...) of rows of `values` (M, ...) drawn with replacement (Efron, 1979).

    Equal M and seed draw the same rows, so that two statistics are paired."""
    picks = randint(len(values), (resamples, len(values)), generator=generator(seed)).numpy()
    return np.stack([statistic(values[pick]) for pick in picks])


def interval(value: Any, draws: np.ndarray) -> Interval:
    """The central 95 % of bootstrap draws (resamples, ...) around `value` (...)."""
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return {"value": value, "low": low, "high": high}


# ---- delete-d jackknife


def subsets(
    n: int, resamples: int, seed: int = 0, labels: Sequence[int] | np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Places (int(0.8 n),) of random 80 % of n images, `resamples` times.

    With `labels` (n,) every subset has 80 % of each class, rounded. Equal n, seed and labels give
    the same places, so that two sets of images are paired. Raises ValueError for other numbers of
    labels."""
    if labels is not None and len(labels) != n:
        raise ValueError(f"{len(labels)} labels for {n} images: give one label for each")
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        order = rng.permutation(n) if labels is None else _evenly(np.asarray(labels), rng)
        yield order[: int(KEEP * n)]


def _evenly(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of images (n,), any first part of which has the same share of every class."""
    place = np.empty(len(labels))  # from 0 to 1, over which each class is spread evenly
    for label in np.unique(labels):
        own = labels == label
        size = own.sum()
        place[own] = (rng.permutation(size) + rng.random(size)) / size
    return place.argsort()


def stretch(n: int) -> float:
    """sqrt(m / (n - m)), m = int(0.8 n): how many times wider all n images scatter than subsets of
    m do about their own mean."""
    size = int(KEEP * n)
    return math.sqrt(size / (n - size))


def jackknife(draws: np.ndarray, n: int) -> np.ndarray:
    """Standard error (...) for all n images, from the statistic (resamples, ...) of `subsets`.

    Subsets of m of n images vary about their mean by (1 - m/n) s² / m; times m / (n - m) that is
    s² / n (delete-d jackknife; Shao and Wu, 1989). Stratified subsets give s² within classes."""
    return draws.std(axis=0, ddof=1) * stretch(n)


def bias_corrected(value: float, draws: np.ndarray, n: int) -> float:
    """The limit of a statistic that is limit + c / n on n images.

        limit = value - m / (n - m) (mean(draws) - value)

    from its `value` on n images and its draws (resamples,) on `subsets` of m."""
    size = int(KEEP * n)
    return float(value - size / (n - size) * (draws.mean() - value))


def corrected_error(error: float, n: int, resamples: int) -> float:
    """Standard error of `bias_corrected`: the `error` of the value, joined with that of the mean of
    only so many draws."""
    size = int(KEEP * n)
    return error * math.sqrt(1 + size / (n - size) / resamples)


# ---- ratios


def independent_ratio(a: Mapping[str, float], b: Mapping[str, float]) -> Interval:
    """a / b of two positive numbers with independent errors: the half-widths of their logarithms
    add in squares.

    Of an interval that does not stay above zero the relative half-width is taken instead."""

    def half(x: Mapping[str, float]) -> float:
        if x["low"] > 0:
            return math.log(x["high"] / x["low"]) / 2
        return (x["high"] - x["low"]) / 2 / x["value"]

    return by_factor(a["value"] / b["value"], math.hypot(half(a), half(b)))


def over_trainings(ratio: Mapping[str, Any], spread: float, trainings: int) -> dict:
    """A ratio whose interval over images is joined with the error of its logarithm over trainings.

    `spread` is that error, one standard deviation, estimated from so many trainings (Student's t);
    both half-widths add in squares, in the ratios under "raw" and "second" too. Other keys of
    `ratio` are kept."""
    images = np.log(ratio["high"] / ratio["value"])
    half = np.hypot(images, scipy.stats.t.ppf(0.975, trainings - 1) * spread)
    inner = {
        k: over_trainings(ratio[k], spread, trainings) for k in ("raw", "second") if k in ratio
    }
    return {
        **ratio,
        **inner,
        "low": float(ratio["value"] * np.exp(-half)),
        "high": float(ratio["value"] * np.exp(half)),
    }


def mean_ratio(ratios: Sequence[Mapping], independent: bool = False) -> dict:
    """Geometric mean of ratios, one of each training, with its 95 % interval over trainings and
    images.

    {"value", "low", "high", "n"}, n the sum of theirs. The interval is the wider of two, both of
    the logarithm: Student's t over the trainings, and that of the mean over images. The same noise
    gives similar images in all trainings, so more of them do not make the latter narrower, unless
    each has noise of its own (`independent`), when half-widths add in squares. Of
    Fréchet ratios (`nag.evaluation.metrics.distance_ratio`) the mean has "raw", "bias_corrected"
    and "second" as they have; it is raw unless all of them are bias-corrected."""
    found: dict = {"n": sum(x["n"] for x in ratios)} if all("n" in x for x in ratios) else {}
    if all("raw" in x for x in ratios):
        found["raw"] = mean_ratio([x["raw"] for x in ratios], independent)
        found["bias_corrected"] = all(x["bias_corrected"] for x in ratios)
        if not found["bias_corrected"]:
            ratios = [{**x, **x["raw"]} for x in ratios]
    if all("second" in x for x in ratios):
        found["second"] = mean_ratio([x["second"] for x in ratios], independent)
    logs, k = np.log([x["value"] for x in ratios]), len(ratios)
    halves = np.array([np.log(x["high"] / x["value"]) for x in ratios])
    half = np.sqrt((halves**2).sum()) / k if independent else halves.mean()
    if k > 1:
        half = max(half, scipy.stats.t.ppf(0.975, k - 1) * logs.std(ddof=1) / k**0.5)
    low, value, high = (float(np.exp(logs.mean() + end * half)) for end in (-1, 0, 1))
    return {"value": value, "low": low, "high": high} | found


# ---- in words


def show(x: Mapping[str, Any], form: str = ".2f") -> str:
    """A number with its interval, such as "0.75 [0.71, 0.78]"; alone if its interval is unknown
    (None)."""
    value = format(x["value"], form)
    if x["low"] is None:
        return value
    return f"{value} [{x['low']:{form}}, {x['high']:{form}}]"


def sign(x: Mapping[str, Any], bound: float = 0.0) -> Literal["above", "below", "inconclusive"]:
    """On which side of the bound the whole interval lies; inconclusive if it contains the bound."""
    return "above" if x["low"] > bound else "below" if x["high"] < bound else "inconclusive"


def outcome(ratio: Mapping[str, Any]) -> Literal["better", "worse", "inconclusive"]:
    """What a ratio says of which below 1 is better, as of Fréchet distances; inconclusive if its
    interval contains 1."""
    side = sign(ratio, 1)
    return "better" if side == "below" else "worse" if side == "above" else "inconclusive"


def verdict(
    x: Mapping[str, Any], claimed: Literal[1, -1], bound: float = 0.0
) -> Literal["reproduced", "contradicted", "inconclusive"]:
    """The verdict on the claim that x is above (claimed = 1) or below (-1) the bound."""
    side = sign(x, bound)
    if side == "inconclusive":
        return side
    return "reproduced" if side == ("above" if claimed > 0 else "below") else "contradicted"
