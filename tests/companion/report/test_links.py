"""Links that open notebooks elsewhere come from one address, and are absent without it."""

import json
import os
import re
import tomllib

import pytest
import yaml

from companion.report import links, pages
from companion.report.evidence import Reader
from nag.support.paths import ROOT

HOSTS = ("colab.research.google.com", "mybinder.org", "codespaces.new")


def pyproject(folder, urls):
    file = folder / "pyproject.toml"
    file.write_text(f'[project]\nname = "x"\n{urls}')
    return file


@pytest.mark.parametrize("end", ["", "/", ".git"])
def test_the_repository_is_read_from_its_address(tmp_path, end):
    urls = f'[project.urls]\nRepository = "https://github.com/some-one/a.b{end}"\n'
    assert links.repository(pyproject(tmp_path, urls)) == "some-one/a.b"


@pytest.mark.parametrize("urls", ["", '[project.urls]\nPaper = "https://arxiv.org"\n'])
def test_no_address_no_repository(tmp_path, urls):
    assert links.repository(pyproject(tmp_path, urls)) is None


def test_another_address_is_refused_in_one_sentence(tmp_path):
    urls = '[project.urls]\nRepository = "https://example.org/a/b"\n'
    with pytest.raises(ValueError, match="write https://github.com/OWNER/NAME"):
        links.repository(pyproject(tmp_path, urls))


@pytest.fixture(scope="module")
def rendered():
    """The pages, as they are and with an address filled in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "repository", lambda: "some/one")
        filled = pages.render(Reader())
    return {page: (ROOT / page).read_text(encoding="utf-8") for page in filled}, filled


def test_pages_have_the_links_only_if_the_address_is_filled_in(rendered):
    committed, filled = rendered
    if links.repository() is None:
        assert not any(host in text for text in committed.values() for host in HOSTS)
    for host in HOSTS:
        assert re.search(
            rf"\(https://{re.escape(host)}/[^) ]*some/one[^) ]*\)", filled["README.md"]
        )
    assert "git clone --depth 1 https://github.com/some/one" in filled["docs/reproduce.md"]
    assert pages.faults(filled) == []


def test_links_name_notebooks_that_exist(rendered):
    stems = re.findall(r"notebooks(?:/|%2F)(\w+)\.ipynb\)", rendered[1]["README.md"])
    assert stems and all((ROOT / "notebooks" / f"{stem}.ipynb").is_file() for stem in stems)


def test_binder_and_devcontainer_need_nothing_else():
    wanted = yaml.safe_load((ROOT / "binder/environment.yml").read_text())["dependencies"]
    names = {n for entry in wanted for n in (entry["pip"] if isinstance(entry, dict) else [entry])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    known = {re.match(r"[\w.-]+", line)[0].lower() for lines in lists for line in lines}
    assert names - known - {"python=3.11", "pip"} == {"pytorch-cpu"}
    assert os.access(ROOT / "binder/postBuild", os.X_OK)
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make setup"
