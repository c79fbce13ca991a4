"""A notebook opens with a picture, where Git has one, and ends with what it showed, in words that
are made of its numbers."""

import re
from importlib import import_module

import nbformat
import numpy as np
import pytest

from nag.support.files import read_json
from nag.support.paths import ROOT, STUDIES

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CLOSINGS = {  # study's file of numbers: module that tells, and what else it needs
    "sources": ("shift_sources", []),
    "estimator": ("estimators", ["sit"]),
    "grids": ("grids", []),
    "small_sigma": ("small_sigma", []),
    "finetune-sit": ("finetune", []),
    "finetune-dit": ("finetune", []),
    "weight_sweep-sit": ("weight_sweep", []),
    "rivals": ("rivals", []),
    "rivals-sde": ("rivals", []),
    "size": ("size_and_length", []),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_a_picture_and_ends_with_what_it_showed(path):
    cells = nbformat.read(path, as_version=4).cells
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", cells[0].source)
    assert all((path.parent / picture).is_file() for picture in pictures)
    assert pictures or not "20" <= path.stem[:2] <= "31"
    last = [cell for cell in cells if cell.cell_type == "code"][-1]
    assert "tell" in last.metadata.tags and "print(" in last.source


@pytest.mark.parametrize("name", CLOSINGS)
def test_the_last_sentence_has_numbers_and_the_paper(name):
    module, more = CLOSINGS[name]
    told = import_module(f"companion.studies.tell.{module}").in_a_sentence
    sentence = told(read_json(STUDIES / "metrics" / f"{name}.json"), *more)
    assert re.search(r"\d\.\d", sentence) and "paper" in sentence and sentence[-1] == "."


IMAGES = {  # study's file of numbers: module that tells, arms of its file of images, what it needs
    "sources": ("shift_sources", ["sit sde 10", "sit ode 10", "dit sde 20"], []),
    "estimator": ("estimators", ["ode none", "sde nag"], ["sit"]),
    "small_sigma": ("small_sigma", ["sit-logsnr-nag", "sit-logsnr-nag off below 0.25"], []),
    "finetune-sit": ("finetune", ["none", "nag", "cfg", "cfg+nag", "dog", "dog+nag"], []),
    "finetune_signal-sit": (
        "finetune_signal",
        ["before, none", "before, nag", "after, none", "after, nag"],
        [],
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_shown_under_the_finding(name, tmp_path):
    module, arms, more = IMAGES[name]
    tell = import_module(f"companion.studies.tell.{module}")
    numbers = read_json(STUDIES / "metrics" / f"{name}.json")
    np.savez(tmp_path / "images.npz", **{arm: np.zeros((10, 1, 28, 28), "uint8") for arm in arms})
    fig = tell.images(tmp_path / "images.npz", numbers, *more)
    assert fig.texts[0].get_text() == tell.title(numbers, *more)
    assert len(fig.axes) == sum("ode" not in arm or module == "estimators" for arm in arms)
    assert fig.texts[1].get_text() == "A column starts from the same noise."
