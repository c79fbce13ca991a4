"""The parameters of a stage: entries of its pipeline's params.yaml, and values of its command line.

DVC puts no list into a command. So a command names entries, and its stage lists the same ones under
`params`: there DVC tracks them whatever they are, and `dvc exp run -S` changes lists as numbers."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from papermill.iorw import NoDatesSafeLoader

FILE = Path("params.yaml")


class Loader(NoDatesSafeLoader):
    """Papermill's YAML 1.1, to which 1e-3 is a number too, as to DVC's YAML 1.2.

    A key that comes twice is an error, as it is to DVC: the first value would count for nothing."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A mapping as it is written; raises MarkedYAMLError for a key that comes twice."""
        node = super().compose_mapping_node(anchor)
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in scalars if key.value != "<<"]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise yaml.MarkedYAMLError(
                None, None, f"{', '.join(twice)} comes twice", node.start_mark
            )
        return node


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def written(texts: list[str]) -> dict:
    """The parameters in YAML mappings, later ones first; raises ValueError for what is none."""
    found: dict = {}
    for text in texts:
        try:
            given = yaml.load(text, Loader) or {}  # a safe loader
        except yaml.YAMLError as error:
            fault = getattr(error, "problem", None) or ""
            twice = f" ({fault})" if "twice" in fault else ""
            raise ValueError(
                f'the parameters {text!r} are not YAML{twice}: write them as "{{name: value}}"'
            ) from error
        if not isinstance(given, dict):
            raise ValueError(
                f'the parameters {text!r} are not a mapping: write them as "{{name: value}}"'
            )
        found |= given
    return found


def read(file: Path) -> dict:
    """A params.yaml; raises ValueError if it cannot be read, is not YAML or not a mapping."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader)  # a safe loader
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        if "twice" in (fault := getattr(error, "problem", None) or ""):
            raise ValueError(f"{file}: {fault}{line}: leave one of them") from error
        raise ValueError(f"{file} is not YAML{line}: correct it, or restore it with git") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a mapping of parameters: restore it with git")
    return content


def keys(choice: str) -> list[tuple[str, str]]:
    """(name, key) of each entry that a choice names; the name is empty for a whole section.

    SECTION is all its entries, SECTION:NAME,NAME some (:NAME at the top), NAME=KEY one of another
    name. Keys have dots, as DVC writes them."""
    if "=" in choice:
        name, _, key = choice.partition("=")
        return [(name, key)]
    section, some, names = choice.partition(":")
    if not some:
        return [("", section)]
    return [(name, f"{section}.{name}".lstrip(".")) for name in names.split(",")]


def chosen(choices: Sequence[str], file: Path = FILE) -> dict:
    """The parameters that are named by `choices`, see `keys`; reads no file if there are none.

    Raises ValueError for a file or key that is not there, a section that is a single value, and a
    name that comes twice."""
    found: dict = {}
    content = read(file) if choices else {}
    for name, key in (pair for choice in choices for pair in keys(choice)):
        value = content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ValueError(f"{file} has no {key}: correct the name, or add it there")
            value = value[part]
        if not name and not isinstance(value, dict):
            raise ValueError(
                f"{key} of {file} is not a section but {value!r}: name it SECTION:NAME"
            )
        entries = {name: value} if name else value
        if twice := sorted(found.keys() & entries.keys()):
            raise ValueError(f"{', '.join(twice)} comes twice, the second time from {key}")
        found |= entries
    return found


def edited(before: dict, choices: Sequence[str], file: Path = FILE) -> str:
    """A sentence if the chosen parameters are other ones now than `before`; empty if not."""
    try:
        now = chosen(choices, file)
    except ValueError as error:
        return f"The parameters cannot be read any more, so that DVC cannot record them: {error}."
    names = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if not names:
        return ""
    return (
        f"{file} was edited while the stage ran ({', '.join(names)}): the results are of the "
        "values at the start, so they are not recorded. Run `dvc repro` again."
    )
