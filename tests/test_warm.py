"""Warm Python stands for cold Python: exit codes, arguments, streams, signals and dying."""

import os
import signal
import subprocess
import time

import pytest
from clones import ENV
from jupyter_client.manager import start_new_kernel

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path):
    if "WARM_PYTHON" not in os.environ:
        pytest.skip("nothing is kept warm here")
    (tmp_path / "companion").mkdir()
    (tmp_path / "companion/__init__.py").touch()

    def begin(program, *arguments):
        (tmp_path / "companion/program.py").write_text(program)
        return subprocess.Popen(
            [f"{ENV['WARM_PYTHON']}/python", "-m", "companion.program", *arguments],
            cwd=tmp_path,
            env=ENV | {"WORD": "here"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def test_a_program_cannot_tell(start):
    program = (
        "import os, sys, torch\n"
        "print(sys.argv[1:], os.environ['WORD'], os.getcwd() == sys.path[0], input())\n"
        "sys.exit(3)\n"
    )
    process = start(program, "a b", "-c")
    assert process.communicate("typed", timeout=60) == ("['a b', '-c'] here True typed\n", "")
    assert process.returncode == 3


@pytest.mark.usefixtures("start")
def test_a_kernel_imports_from_its_folder(tmp_path):
    (tmp_path / "companion/__init__.py").write_text("place = 'here'")
    manager, client = start_new_kernel(cwd=str(tmp_path), env=ENV)
    try:
        client.execute_interactive("import companion", timeout=60)
        reply = client.execute(user_expressions={"found": "companion.place"}, code="", reply=True)
        assert reply["content"]["user_expressions"]["found"]["data"]["text/plain"] == "'here'"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_an_error_is_shown(start):
    process = start("1 / 0")
    assert "ZeroDivisionError" in process.communicate(timeout=60)[1] and process.returncode == 1


WAIT = """
import os, time
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("saved")
    raise SystemExit(4)
"""


def test_an_interrupt_reaches_it(start):
    process = start(WAIT)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 4


def test_it_is_killed_with_its_client(start):
    process = start(WAIT)
    worker = int(process.stdout.readline())
    process.kill()
    limit = time.monotonic() + 60
    while os.path.exists(f"/proc/{worker}"):
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_the_worker_that_is_killed_ends_its_client_alike(start):
    process = start(WAIT)
    os.kill(int(process.stdout.readline()), signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
