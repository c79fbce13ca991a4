"""Where a notebook can be opened in a browser; known as soon as the repository's address is.

The address is `Repository` under `[project.urls]` in pyproject.toml, and nowhere else."""

import re
import tomllib
from pathlib import Path

from nag.support.paths import ROOT

BRANCH = "main"
ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def repository(pyproject: Path = ROOT / "pyproject.toml") -> str | None:
    """owner/name of the repository on GitHub, or None if it is not filled in.

    Raises ValueError for an address that is not GitHub's."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository")
    if address is None:
        return None
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(
            f"pyproject.toml has Repository = {address!r}: write https://github.com/OWNER/NAME"
        )
    return match[1]


def colab(repository: str, notebook: str) -> str:
    """The address that opens a notebook (its stem) in Google Colab."""
    place = f"{repository}/blob/{BRANCH}/notebooks/{notebook}.ipynb"
    return f"https://colab.research.google.com/github/{place}"


def binder(repository: str, notebook: str) -> str:
    """The address that opens a notebook (its stem) on Binder."""
    place = f"labpath=notebooks%2F{notebook}.ipynb"
    return f"https://mybinder.org/v2/gh/{repository}/{BRANCH}?{place}"


def codespaces(repository: str) -> str:
    """The address that opens the repository in GitHub Codespaces, by .devcontainer."""
    return f"https://codespaces.new/{repository}"
