"""A notebook's parameters as settings."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel

Settings = TypeVar("Settings", bound=BaseModel)


def settings(kind: type[Settings], parameters: Mapping, **others: object) -> Settings:
    """Settings of this kind, each field from the parameter of its name or from `others`.

    Fields named by neither keep their defaults, and other parameters are passed over. In a notebook
    `parameters` is `globals()`. Raises ValidationError for a value that a field does not allow.
    """
    named = {name: parameters[name] for name in kind.model_fields if name in parameters}
    return kind(**named | others)
