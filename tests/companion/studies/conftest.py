"""Intervals in sentences and in numbers, to see that the ones are the others."""

import re

import pytest


def _collect(content, form, found):
    if isinstance(content, dict):
        if {"value", "low", "high"} <= content.keys():
            found.add(tuple(format(content[end], form) for end in ("value", "low", "high")))
        for part in content.values():
            _collect(part, form, found)


@pytest.fixture(scope="session")
def unknown_intervals():
    """The intervals "value [low, high]" of a text that are none of those in nested numbers."""

    def unknown(text, *numbers):
        known = set()
        for form in (".2f", "+.3f", "+.4f"):
            _collect(dict(enumerate(numbers)), form, known)
        shown = re.findall(r"([-+.\d]+) \[([-+.\d]+), ([-+.\d]+)\]", text)
        assert shown, "the text has no interval"
        return set(shown) - known

    return unknown
