"""Atomic writing: the old file survives whatever goes wrong, and the reader is told what to do."""

import errno
import io
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from nag.support.files import (
    HOST,
    atomic,
    check_archive,
    read_json,
    write_csv,
    write_json,
    write_torch,
)


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
        assert (
            not path.exists() and part.parent == path.parent
        )  # same folder, or replacing would not be atomic
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
    with pytest.raises(
        OSError, match=r"could not write .*a\.json: No space left on device\. Free some disk space"
    ):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_writer_that_runs_out_of_space_leaves_the_old_file(tmp_path, tiny_disk):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with (
        pytest.raises(OSError, match=r"could not write .*a\.json.*Free some disk space"),
        tiny_disk(),
    ):
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_other_editors_and_shells_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"a": "größe"}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"a": "größe"}
    (tmp_path / "a.json").write_bytes(b'{"a": "gr\xf6\xdfe"}')  # Latin-1
    with pytest.raises(ValueError, match=r"a.json is truncated or no JSON"):
        read_json(tmp_path / "a.json")


def test_csv_keeps_six_digits_and_no_index(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"name": ["p", "q"], "x": [np.pi, 1e-9 / 3]}))
    assert (tmp_path / "a.csv").read_text() == "name,x\np,3.14159\nq,3.33333e-10\n"


def test_tensors_are_written_as_torch_does_whatever_the_files_name(tmp_path):
    content = {"a": torch.randn(300, 20), "b": torch.arange(5), "c": {"lr": 0.1, "name": "x"}}
    for name in ("a.pt", "another name.pt"):
        write_torch(tmp_path / name, content)
    torch.save(content, buffer := io.BytesIO())
    assert (
        (tmp_path / "a.pt").read_bytes()
        == (tmp_path / "another name.pt").read_bytes()
        == buffer.getvalue()
    )
    back = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (
        torch.equal(back["a"], content["a"])
        and torch.equal(back["b"], content["b"])
        and back["c"] == content["c"]
    )


def test_tensors_are_written_without_the_file_in_memory(tmp_path):
    content = [torch.zeros(10**6) for _ in range(4)]
    tracemalloc.start()
    try:
        write_torch(tmp_path / "a.pt", content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.pt").stat().st_size > 16 * 10**6 and peak < 10**6


@pytest.mark.parametrize("numbers", [100, 100_000], ids=["at closing", "within a tensor"])
def test_tensors_on_a_full_disk_leave_the_old_file(tmp_path, tiny_disk, numbers):
    path = tmp_path / "a.pt"
    write_torch(path, {"old": torch.ones(1)})
    with (
        pytest.raises(
            OSError, match=r"could not write .*a\.pt: File too large\. Free some disk space"
        ),
        tiny_disk(),
    ):
        write_torch(path, {str(k): torch.zeros(numbers) for k in range(10)})
    assert torch.load(path, weights_only=True) == {"old": 1} and os.listdir(tmp_path) == ["a.pt"]


def test_what_torch_cannot_save_is_not_called_a_full_disk(tmp_path):
    path, x = tmp_path / "a.pt", torch.zeros(3)
    write_torch(path, {"old": torch.ones(1)})
    with pytest.raises(RuntimeError, match="view the same data as different types"):
        write_torch(path, {"a": x, "b": x.view(torch.int32)})
    assert torch.load(path, weights_only=True) == {"old": 1} and os.listdir(tmp_path) == ["a.pt"]


def test_what_a_killed_process_left_half_written_goes_at_the_next_writing(tmp_path):
    path = tmp_path / "a[1].json"
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    kept = [f".{os.getppid()}-{HOST}.{path.name}", f".{dead.pid}-elsewhere.{path.name}"]
    kept += [f".{dead.pid}-{HOST}.other.json"]
    for name in (*kept, f".{dead.pid}-{HOST}.{path.name}"):
        (tmp_path / name).write_text("{")
    write_json(path, 1)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, path.name])


def test_an_archive_with_one_other_byte_is_refused_though_torch_would_map_it(tmp_path):
    path, value = tmp_path / "state.pt", torch.full((1000,), 0.7)
    write_torch(path, {"a": value})
    check_archive(path)
    content = bytearray(path.read_bytes())
    content[content.index(value.numpy().tobytes()) + 2001] ^= 1
    path.write_bytes(content)
    assert not torch.load(path, weights_only=True, mmap=True)["a"].equal(value)
    with pytest.raises(ValueError, match="state.pt is damaged: .* has another checksum"):
        check_archive(path)
    path.write_bytes(b"anything else")
    check_archive(path)
