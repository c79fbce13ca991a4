"""Intervals as JSON can write them."""

from collections.abc import Mapping

from nag.support.uncertainty import Interval

ENDS = ("value", "low", "high")


def numbers(found: Mapping) -> Interval:
    """An interval of plain numbers, without what else stands beside it."""
    value, low, high = (float(found[end]) for end in ENDS)
    return {"value": value, "low": low, "high": high}
