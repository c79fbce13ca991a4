"""Smaller parameters of notebooks under nbval are parameters that these have."""

import nbformat
import pytest
import smaller

from companion.pipeline import run
from nag.support.paths import ROOT


@pytest.mark.parametrize("name", smaller.SMALLER)
def test_smaller_parameters_are_known_and_of_their_forms(name):
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", 4)
    assert set(smaller.SMALLER[name]) <= set(run.known_parameters(notebook))
    run.check_forms(smaller.SMALLER[name], run.defaults(notebook))
