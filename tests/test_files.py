"""Atomic writing: the old file survives whatever goes wrong, and the reader is told what to do."""

import errno
import os

import numpy as np
import pandas as pd
import pytest

from nag.files import atomic, read_json, write_csv, write_json


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="my own"), atomic(path) as part:
        part.write_text("half of the n")
        raise RuntimeError("my own")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_the_new_file_replaces_the_old_one_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic(path) as part:
        part.write_text("one")
        assert not path.exists() and part.parent == path.parent  # same folder, or replacing would not be atomic
    with atomic(path) as part:
        part.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two" and os.listdir(path.parent) == ["a.txt"]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_in_one_sentence_with_advice(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    with pytest.raises(OSError, match=r"could not write .*a\.json: No space left on device\. Free some disk space"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_writer_that_runs_out_of_space_leaves_the_old_file(tmp_path, tiny_disk):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(OSError, match=r"could not write .*a\.json.*Free some disk space"), tiny_disk():
        write_json(path, list(range(10_000)))
    assert read_json(path) == {"old": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_made_is_said_with_advice(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"could not write .*a\.json"):
        write_json(tmp_path / "file" / "a.json", 1)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float64("nan")])
def test_json_refuses_what_is_no_number(tmp_path, number):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1.5})
    with pytest.raises(ValueError):
        write_json(path, {"a": [1.0, number]})
    assert read_json(path) == {"a": 1.5} and os.listdir(tmp_path) == ["a.json"]


def test_json_is_the_same_text_whatever_the_order(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "x"})
    write_json(tmp_path / "b.json", {"a": "x", "b": [1, 2.5]})
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert read_json(tmp_path / "a.json") == {"a": "x", "b": [1, 2.5]}


def test_reading_json_that_is_missing_or_truncated(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results at .*a.json: run `dvc repro`"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match="a.json is truncated or no JSON .*: delete it"):
        read_json(tmp_path / "a.json")


def test_csv_keeps_six_digits_and_no_index(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"name": ["p", "q"], "x": [np.pi, 1e-9 / 3]}))
    assert (tmp_path / "a.csv").read_text() == "name,x\np,3.14159\nq,3.33333e-10\n"
