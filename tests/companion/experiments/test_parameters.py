"""A notebook's parameters become settings by their names."""

import pytest
from pydantic import ValidationError

from companion.experiments.generate import SampleConfig
from companion.experiments.parameters import settings


def test_fields_come_from_parameters_then_others_and_defaults_stay():
    given = {"steps": 7, "n_images": 3, "family": "sit", "compile": True}
    found = settings(SampleConfig, given, compile=False, first_seed=5)
    assert found == SampleConfig(steps=7, n_images=3, compile=False, first_seed=5)


def test_a_value_that_a_field_does_not_allow_is_refused():
    with pytest.raises(ValidationError):
        settings(SampleConfig, {"steps": 0})
    with pytest.raises(ValidationError):
        settings(SampleConfig, {}, nothing=1)
