"""The repository's place does not follow a DVC_ROOT that is not of this project."""

from pathlib import Path

import pytest

from nag.support import paths

HERE = Path(paths.__file__).resolve().parents[2]


@pytest.fixture
def root_for(monkeypatch):
    """The root that is found with a value of DVC_ROOT; None unsets it."""

    def found(value):
        monkeypatch.delenv("DVC_ROOT", raising=False)
        if value is not None:
            monkeypatch.setenv("DVC_ROOT", str(value))
        return paths._root()

    return found


def test_another_projects_root_is_not_followed(root_for, tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "nag").mkdir()
    for other in (None, "", tmp_path, tmp_path / "gone", HERE.parent):
        assert root_for(other) == HERE


def test_a_clones_root_is_followed(root_for, tmp_path):
    (tmp_path / "nag" / "support").mkdir(parents=True)
    (tmp_path / "nag" / "support" / "paths.py").touch()
    assert root_for(tmp_path) == tmp_path


def test_all_places_are_absolute():
    places = [value for value in vars(paths).values() if isinstance(value, Path)]
    assert len(places) > 5 and all(place.is_absolute() for place in places)


def test_an_installed_package_writes_to_the_current_folder(root_for, tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "nag" / "support" / "paths.py"
    monkeypatch.setattr(paths, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    assert root_for(None) == tmp_path
