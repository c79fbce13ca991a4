"""Python that has the libraries imported already: `python -m MODULE` without seconds of imports.

A server imports what every kernel and stage imports (never `nag` or `companion`), then forks a
process for each request. A client stands for that process: it passes on its arguments, folder,
environment and open files, and signals, and ends as the process ends. Killing the client kills it.
"""

import array
import atexit
import json
import os
import select
import signal
import socket
import sys
import threading

LIBRARIES = (
    "torch torch._dynamo torch.distributed.run torchvision torch_fidelity torchdiffeq "
    "diffusers.models.autoencoders.autoencoder_kl scipy.stats scipy.integrate scipy.optimize "
    "pandas pydantic seaborn matplotlib.pyplot matplotlib.backends.backend_agg "
    "ipykernel.kernelapp ipykernel.ipkernel papermill.execute papermill.engines nbclient "
    "dvc.cli dvc.repo"
).split()
WARM = (
    "companion.",
    "nag.",
    "gloo_worker",
    "dvc",
    "ipykernel_launcher",
    "torch.distributed.run",
)
ENOUGH = 1 << 18  # bytes of a request: arguments and environment


def client(path, arguments):
    """Have the server at `path` run `-m MODULE ...`; anything else starts Python as usual."""
    given = arguments[arguments[:1] == ["-u"] :]
    if given[:1] != ["-m"] or not given[1].startswith(WARM):
        os.execv(sys.executable, [sys.executable, *arguments])
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(path)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    request = {"arguments": given[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))]
    server.sendmsg([json.dumps(request).encode()], files)
    code = int(server.recv(8) or b"1")
    if code < 0:
        if -code in (signal.SIGINT, signal.SIGTERM):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def watch(worker, connection):
    """Pass signals on to the worker until it ends, then its exit code to the client; ends it where
    the client or the tests have ended."""
    ended = os.pidfd_open(worker)
    poll = select.poll()
    for file in (ended, connection.fileno(), 0):
        poll.register(file, select.POLLIN)
    while True:
        ready = [file for file, _ in poll.poll()]
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
            connection.send(str(code).encode())
            os._exit(0)
        number = connection.recv(1) if connection.fileno() in ready else b""
        os.killpg(worker, number[0] if number else signal.SIGKILL)
        if not number:
            os.waitpid(worker, 0)
            os._exit(0)


def become(request, files, base):
    """Make this process what the client would be; returns the module to run."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    added = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [request["folder"], *added, *base]
    sys.argv[1:] = request["arguments"][1:]
    module = request["arguments"][0]

    import matplotlib
    import numpy as np
    import torch

    np.random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    if module == "ipykernel_launcher":
        sys.path.insert(0, request["folder"])  # the launcher removes the first entry
        # the launcher sets it, too, but for an import of matplotlib that is still to come
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    if backend := os.environ.get("MPLBACKEND"):
        matplotlib.rcParams["backend"] = backend
    return module


def finish(module):
    """Run a module and exit as Python would, but for tearing down what the libraries loaded."""
    import runpy

    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else end.code is not None
        if code is True:
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(path):
    """Fork a process for each client of the socket `path`, until standard input ends."""
    import gc
    import importlib

    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(path)
    door.listen(64)
    print("ready", flush=True)  # the first clients wait at the door
    base = list(sys.path)
    # read on import: kernels need not look for their parent, and nothing here is worth compiling
    os.environ |= {"JPY_PARENT_PID": "1", "TORCH_COMPILE_DISABLE": "1"}
    for name in LIBRARIES:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a process with threads does not fork"
    assert not {"nag", "companion"} & sys.modules.keys()
    gc.freeze()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(door, select.POLLIN)
    watchers: set[int] = set()
    while 0 not in [file for file, _ in poll.poll()]:
        connection, _ = door.accept()
        watchers -= {pid for pid in watchers if os.waitpid(pid, os.WNOHANG)[0]}
        if watcher := os.fork():
            watchers.add(watcher)
            connection.close()
            continue
        door.close()
        text, extra, *_ = connection.recvmsg(ENOUGH, socket.CMSG_SPACE(12))
        if worker := os.fork():
            os.setpgid(worker, worker)
            for file in array.array("i", extra[0][2]):
                os.close(file)
            watch(worker, connection)
        connection.close()
        os.setpgid(0, 0)
        sys.executable = os.path.join(os.path.dirname(path), "python")
        finish(become(json.loads(text), array.array("i", extra[0][2]), base))
    for pid in watchers:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "serve" else client(sys.argv[1], sys.argv[2:])
