"""Openings of study notebooks: the numbers after "Found:" are those of the committed answers."""

import re

import nbformat
import pytest

from nag.support.files import read_json
from nag.support.paths import ROOT, STUDIES

ANSWERS = {
    "24_shift_sources": ["sources"],
    "25_estimator": ["estimator"],
    "26_grids": ["grids"],
    "28_finetune": ["finetune-sit", "finetune-dit"],
    "30_small_sigma": ["small_sigma"],
    "31_finetune_signal": ["finetune_signal-sit", "finetune_signal-dit"],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_an_opening_says_was_found_is_in_the_answers(name):
    opening = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells[0].source
    found = re.search(r"\*\*Found:\*\*.*?\n\n", opening, re.DOTALL)[0].replace("−", "-")
    numbers = re.findall(r"[-+]?\d+\.\d+%?", found)
    answers = [read_json(STUDIES / "answers" / f"{file}.json") for file in ANSWERS[name]]
    told = " ".join(answer["sentence"] for file in answers for answer in file.values())
    assert numbers and [x for x in numbers if x not in told] == []


@pytest.mark.parametrize("name", ANSWERS)
def test_the_picture_of_an_opening_is_there(name):
    opening = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells[0].source
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", opening)
    assert pictures and all((ROOT / "notebooks" / path).is_file() for path in pictures)
