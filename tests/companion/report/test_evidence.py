"""Numbers are read by file and key and recorded as evidence; a wrong key is named."""

import pytest

from companion.report.evidence import Reader, by_file, check
from nag.support.files import write_json


@pytest.fixture
def root(tmp_path):
    write_json(tmp_path / "results/metrics/a.json", {"x": {"y": 1}, "n": 2})
    write_json(tmp_path / "studies/results/metrics/b.json", {"z": 3})
    return tmp_path


def test_numbers_are_found_and_recorded_once(root):
    reader = Reader(root=root)
    with reader.recording() as outer:
        with reader.recording() as inner:
            assert reader.result("a", "x/y") == 1 and reader.result("a", "x/y") == 1
        assert reader.study("b", "z") == 3
    assert inner == [{"file": "results/metrics/a.json", "key": "x/y"}]
    assert outer == inner + [{"file": "studies/results/metrics/b.json", "key": "z"}]


@pytest.mark.parametrize("key", ["x/z", "gone", "n/deeper"])
def test_a_wrong_key_is_named_with_its_file(root, key):
    with pytest.raises(KeyError, match=f"a.json has nothing under '{key}'"):
        Reader(root=root).result("a", key)
    with pytest.raises(KeyError, match=key):
        check([{"file": "results/metrics/a.json", "key": key}], root)


def test_a_missing_file_is_named(root):
    with pytest.raises(FileNotFoundError, match="c.json"):
        check([{"file": "c.json", "key": "x"}], root)


def test_a_file_is_read_once_by_any_loader():
    asked = []
    reader = Reader(lambda file: asked.append(file) or {"k": 5})
    assert reader.number("f.json", "k") + reader.number("f.json", "k") == 10
    assert asked == ["f.json"]


def test_places_are_grouped_by_file():
    places = [{"file": "a", "key": "x/y"}, {"file": "a", "key": "x/z"}, {"file": "b", "key": "k"}]
    assert by_file(places) == {"a": ["x/y", "x/z"], "b": ["k"]}
    assert by_file(places, depth=1) == {"a": ["x"], "b": ["k"]}
