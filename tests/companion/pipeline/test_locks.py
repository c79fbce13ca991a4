"""A lock left by a killed DVC goes away, one of a live process stays."""

import json
import os
import subprocess
import sys

import pytest
import zc.lockfile

from companion.pipeline.locks import clear
from companion.pipeline.root import root
from nag.support.paths import ROOT


@pytest.fixture
def rwlock(tmp_path):
    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    return path


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_nothing_to_do(tmp_path, rwlock):
    assert clear(tmp_path) == ""
    rwlock.write_text(json.dumps({"write": {}, "read": {}}))
    assert clear(tmp_path) == "" and rwlock.exists()


@pytest.mark.parametrize(
    "broken", ["", '{"write": {"a": {"pid": 1', "[]", '{"read": {"a": [{"cmd": "x"}]}}', "\0\0"]
)
def test_a_broken_file_is_removed(tmp_path, rwlock, broken):
    rwlock.write_text(broken)
    assert "half written" in clear(tmp_path)
    assert not rwlock.exists() and clear(tmp_path) == ""


def test_a_broken_file_stays_while_another_dvc_runs_here(tmp_path, rwlock):
    rwlock.write_text("{")
    script = tmp_path / "dvc"
    script.write_text("import time; print('up', flush=True); time.sleep(60)")
    with subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE
    ) as other:
        try:
            other.stdout.readline()
            assert f"process {other.pid} runs DVC here" in clear(tmp_path)
            assert rwlock.read_text() == "{"
        finally:
            other.kill()
    assert "half written" in clear(tmp_path)


def test_only_the_entries_of_dead_processes_go(tmp_path, rwlock):
    mine, dead = {"pid": os.getpid(), "cmd": "dvc repro"}, {"pid": dead_pid(), "cmd": "dvc repro"}
    content = {"write": {"a": mine, "b": dead}, "read": {"c": [mine, dead], "d": [dead]}}
    rwlock.write_text(json.dumps(content))
    assert str(dead["pid"]) in clear(tmp_path)
    assert json.loads(rwlock.read_text()) == {"write": {"a": mine}, "read": {"c": [mine]}}


def test_a_number_that_another_process_has_by_now_is_dead(tmp_path, rwlock):
    rwlock.write_text(json.dumps({"write": {"a": {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    os.utime(rwlock, (1, 1))  # written long before this process started
    assert "dead" in clear(tmp_path)
    assert json.loads(rwlock.read_text())["write"] == {}


def test_nothing_is_touched_while_a_live_dvc_writes(tmp_path, rwlock):
    rwlock.write_text("{")
    guard = zc.lockfile.LockFile(str(rwlock.with_name("rwlock.lock")))
    try:
        assert clear(tmp_path) == "" and rwlock.read_text() == "{"
    finally:
        guard.close()


def test_the_repository_is_not_that_of_another_projects_dvc_root(tmp_path, monkeypatch):
    """Locks were looked for in the other project, and fingerprints were not written at all."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert root() == ROOT
    monkeypatch.chdir(tmp_path)  # as a stage of it
    assert root() == tmp_path
    monkeypatch.delenv("DVC_ROOT")
    assert root() == ROOT
    (tmp_path / "companion" / "pipeline").mkdir(parents=True)  # a clone
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert root() == tmp_path
