"""The fault campaign: stages killed at random moments, full disks, folders without rights, damaged
files, and two runs at once.

    python tests/campaign.py --rounds 20 --inputs 1200 --seed 0

Stages run at tiny size in a clone, in processes forked from one that has imported everything. After
every fault the stage is run again with no cleaning, and its results have to be those of a run that
nothing disturbed. Writes results/campaign.json, of which docs/campaign.md is made.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

SIGNALS = ("SIGKILL", "SIGTERM")
DISKS = (0, 600, 3000, 20_000)  # bytes that a file may have
NOBODY = 65534
LOCKED = ("lock", "rwlock", "busy")  # words in which DVC says that another one runs
NOT_COMPARED = ("seconds", "images_per_second", "encoded", "kept")
PATIENCE = 600  # seconds


# ---- stages in processes of their own


def started(stage: Callable, prepare: Callable = lambda: None) -> tuple[int, int]:
    """Fork a process that runs the stage; returns its number and a pipe with its error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    sys.stdout = sys.stderr = io.StringIO()
    code = 0
    try:
        prepare()
        stage()
    except BaseException as error:  # the parent judges it
        os.write(writing, f"{type(error).__name__}: {error}".encode()[:4000])
        code = 1
    os._exit(code)


def ended(process: tuple[int, int], patience: float = PATIENCE) -> tuple[int, str]:
    """Wait for the process; returns its status, 0 if all is well, and its error."""
    pid, reading = process
    limit = time.monotonic() + patience
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > limit:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = -1
            break
        time.sleep(0.005)
    with open(reading, "rb") as pipe:
        message = pipe.read().decode(errors="replace")
    return status, message or ("" if status == 0 else f"status {status}")


def results(folder: Path) -> dict[str, object]:
    """All that a stage left, by file, without times of day and leftovers."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith(".") or "timings" in name:
            continue
        if path.suffix == ".npz":
            with np.load(path) as file:
                found[name] = {
                    key: (file[key].dtype.str, file[key].shape, file[key].tobytes())
                    for key in file.files
                    if key not in NOT_COMPARED
                }
        elif path.suffix == ".json":
            found[name] = _without_times(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            rows = [line.split(",") for line in path.read_text().splitlines()]
            kept = [k for k, title in enumerate(rows[0]) if title not in NOT_COMPARED]
            found[name] = [[row[k] for k in kept] for row in rows]
        else:
            found[name] = path.read_bytes()
    return found


def _without_times(content: object) -> object:
    if isinstance(content, dict):
        return {k: _without_times(v) for k, v in content.items() if k not in NOT_COMPARED}
    return [_without_times(v) for v in content] if isinstance(content, list) else content


def leftovers(root: Path) -> list[str]:
    """States of training, batches and half-written files that a finished stage should not leave."""
    states = [path for name in ("checkpoints", "batches") for path in (root / name).rglob("*")]
    halves = [path for path in root.rglob(".[0-9]*") if path.is_file()]
    return sorted({path.relative_to(root).as_posix() for path in [*states, *halves]})


def _import_what(run: Callable, note: Path) -> None:
    """Import here what the stage imports as it runs, so that later processes have it at once."""

    def stage() -> None:
        run()
        note.write_text(json.dumps(sorted(sys.modules)))

    status, message = ended(started(stage))
    if status:
        raise RuntimeError(f"a stage does not run undisturbed: {message}")
    for name in sorted(set(json.loads(note.read_text())) - sys.modules.keys()):
        with contextlib.suppress(Exception):  # some are no modules of their own
            importlib.import_module(name)


class Kind:
    """A kind of stage: how it is run, and its results and seconds when nothing disturbs it."""

    def __init__(self, name: str, run: Callable, build: Path, out: Path):
        self.name, self.run, self.build, self.out = name, run, build, out
        _import_what(run, build / "modules.json")
        self.clean()
        begin = time.monotonic()
        status, message = ended(started(run))
        if status:
            raise RuntimeError(f"{name} does not run undisturbed: {message}")
        self.seconds, self.reference = time.monotonic() - begin, results(out)
        if not self.reference:
            raise RuntimeError(f"{name} leaves no results")

    def clean(self) -> None:
        """As before the first run."""
        for folder in (self.out, self.build / "checkpoints", self.build / "batches"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def fault(self) -> str:
        """Run the stage to its end; what is wrong afterwards, "" if nothing is."""
        status, message = ended(started(self.run))
        if status:
            return f"{self.name} cannot be finished: {message}"
        found = results(self.out)
        if unlike := [
            name
            for name in self.reference.keys() | found.keys()
            if self.reference.get(name) != found.get(name)
        ]:
            return f"{self.name} has other results: {', '.join(sorted(unlike))}"
        if left := leftovers(self.build):
            return f"{self.name} leaves {', '.join(left[:3])}"
        return ""


def kills(kind: Kind, name: str, rounds: int, rng: np.random.Generator) -> dict:
    """Kill the stage at random moments, once or twice, and finish it; so many rounds."""
    row = {"stage": kind.name, "fault": name, "rounds": 0, "kills": 0, "faults": []}
    for _ in range(4 * rounds):
        if row["rounds"] == rounds:
            break
        kind.clean()
        landed = 0
        for _ in range(int(rng.integers(1, 3))):
            process = started(kind.run)
            time.sleep(rng.uniform(0, kind.seconds))
            os.kill(process[0], getattr(signal, name))
            landed += ended(process)[0] != 0
        if landed:
            row["rounds"] += 1
            row["kills"] += landed
            if fault := kind.fault():
                row["faults"].append(fault)
    return row


def full_disks(kind: Kind) -> dict:
    """Files may have only so many bytes: the stage says so in a sentence, then goes on."""
    row = {"stage": kind.name, "fault": "full disk", "rounds": 0, "kills": 0, "faults": []}
    for size in DISKS:
        kind.clean()

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        status, message = ended(started(kind.run, limit))
        row["rounds"] += status != 0
        if status and not _is_a_sentence(message):
            row["faults"].append(f"{kind.name}, full disk: {message[:300]}")
        if fault := kind.fault():
            row["faults"].append(fault)
    return row


def without_rights(kind: Kind) -> dict:
    """A user who may not write the results, or the folder of states: a sentence, nothing lost."""
    row = {"stage": kind.name, "fault": "no rights", "rounds": 0, "kills": 0, "faults": []}
    folders = (kind.out, kind.build / "checkpoints", kind.build / "batches")
    for closed in (folders, folders[:1], folders[1:]):
        kind.clean()
        for folder in {*folders} - {*closed}:
            folder.chmod(0o777)
        for folder in closed:
            folder.chmod(0o555)
        status, message = ended(
            started(kind.run, (lambda: os.setuid(NOBODY)) if os.getuid() == 0 else lambda: None)
        )
        for folder in folders:
            folder.chmod(0o755)
        row["rounds"] += status != 0
        if status and not _is_a_sentence(message):
            row["faults"].append(f"{kind.name}, no rights: {message[:300]}")
        if fault := kind.fault():
            row["faults"].append(fault)
    return row


def _is_a_sentence(message: str) -> bool:
    return "could not write" in message and "run again" in message


def pairs(kind: Kind, rounds: int, rng: np.random.Generator) -> dict:
    """Two of the stage at once: both end well, with the results of one alone."""
    row = {"stage": kind.name, "fault": "two at once", "rounds": rounds, "kills": 0, "faults": []}
    for _ in range(rounds):
        kind.clean()
        first = started(kind.run)
        time.sleep(rng.uniform(0, kind.seconds / 2))
        second = started(kind.run)
        for process in (first, second):
            status, message = ended(process)
            if status:
                row["faults"].append(f"{kind.name}, two at once: {message[:300]}")
        found = results(kind.out)
        if found != kind.reference:
            row["faults"].append(f"{kind.name}: two at once have other results")
        if fault := kind.fault():
            row["faults"].append(fault)
    return row


# ---- DVC itself

PIPELINE = """stages:
  one: {cmd: 'sleep 0.1; seq 1 500 > one.txt', outs: [one.txt]}
  two: {cmd: 'sleep 0.1; sort -r one.txt > two.txt', deps: [one.txt], outs: [two.txt]}
  three: {cmd: 'sleep 0.1; cat one.txt two.txt > three.txt', deps: [two.txt], outs: [three.txt]}
"""


class Pipeline:
    """A repository of three stages, run as `make repro` does: clear the locks, then `dvc repro`."""

    def __init__(self, root: Path, scratch: Path):
        from clones import ENV

        self.root, self.scratch = root, scratch
        os.environ |= {name: ENV[name] for name in ("DVC_NO_ANALYTICS",)}
        self.scratch.mkdir()
        for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
            subprocess.run(command, cwd=scratch, check=True, env=ENV)
        (scratch / "dvc.yaml").write_text(PIPELINE)
        self.clean()
        begin = time.monotonic()
        status, message = ended(started(self.repro))
        if status:
            raise RuntimeError(f"dvc repro does not run undisturbed: {message}")
        self.seconds, self.reference = time.monotonic() - begin, self.made()

    def repro(self) -> None:
        """What `make repro` does in its first two steps, in this process."""
        from dvc.cli import main

        from companion.pipeline import locks

        os.environ.pop("DVC_ROOT", None)
        os.chdir(self.scratch)
        locks.clear(self.scratch)
        if code := main(["repro"]):
            raise RuntimeError(f"exit code {code}: {sys.stderr.getvalue()[-800:]}")

    def clean(self) -> None:
        for name in ("one.txt", "two.txt", "three.txt", "dvc.lock"):
            (self.scratch / name).unlink(missing_ok=True)
        for name in (".dvc/tmp", ".dvc/cache"):
            shutil.rmtree(self.scratch / name, ignore_errors=True)

    def made(self) -> dict[str, bytes]:
        names = ("one.txt", "two.txt", "three.txt", "dvc.lock")
        return {name: (self.scratch / name).read_bytes() for name in names}

    def fault(self) -> str:
        status, message = ended(started(self.repro))
        if status:
            return f"dvc repro cannot be finished: {message}"
        return "" if self.made() == self.reference else "dvc repro has other results"

    def kills(self, name: str, rounds: int, rng: np.random.Generator) -> dict:
        """Kill DVC alone or with the command it runs, and run it again."""
        row = {"stage": "dvc repro", "fault": name, "rounds": 0, "kills": 0, "faults": []}
        for _ in range(4 * rounds):
            if row["rounds"] == rounds:
                break
            self.clean()
            process = started(self.repro)
            time.sleep(rng.uniform(0, self.seconds))
            kill = os.killpg if rng.integers(2) else os.kill
            kill(process[0], getattr(signal, name))
            if ended(process)[0]:
                row["rounds"], row["kills"] = row["rounds"] + 1, row["kills"] + 1
                time.sleep(0.15)  # a command that outlives its DVC ends by itself
                if fault := self.fault():
                    row["faults"].append(fault)
        return row

    def pairs(self, rounds: int, rng: np.random.Generator) -> dict:
        """Two at once: each ends well or says that another holds the lock; then all is there."""
        row = {"stage": "dvc repro", "fault": "two at once", "rounds": rounds, "kills": 0}
        row["faults"] = []
        for _ in range(rounds):
            self.clean()
            first = started(self.repro)
            time.sleep(rng.uniform(0, self.seconds / 2))
            for process in (first, started(self.repro)):
                status, message = ended(process)
                if status and not any(word in message.lower() for word in LOCKED):
                    row["faults"].append(f"dvc repro, two at once: {message[:300]}")
            if fault := self.fault():
                row["faults"].append(fault)
        return row


# ---- the clone


def build(folder: Path) -> Path:
    """A clone with tiny weights, a few images and an autoencoder."""
    import mini_world
    import torch
    from clones import clone

    from nag import checkpoint
    from nag.models import DiT, ModelConfig

    root = clone(folder / "nag")
    shutil.rmtree(root / ".git")
    torch.manual_seed(0)
    net = DiT(ModelConfig(patch=14, width=32, depth=1, heads=2))
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    checkpoint.save(root / "results/weights/sit.safetensors", net)
    mini_world.images(root / "data/mini", 24, 0)
    mini_world.autoencoder(root / "data/mini-vae")
    for path in (folder, *root.rglob("*")):  # also for a user of no rights
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))
    return root


def notebook(name: str, **values: object) -> Callable:
    """The measuring part of a notebook with these parameters."""
    import nbformat

    from companion.pipeline import fingerprint

    root = fingerprint.ROOT
    cells = []
    for cell in nbformat.read(root / f"notebooks/{name}.ipynb", 4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and fingerprint.belongs(tags, "measure"):
            cells.append(cell.source)
            if "parameters" in tags:
                cells += [f"{key} = {value!r}" for key, value in values.items()]
    code = compile("\n".join(cells), name, "exec")
    return lambda: exec(code, {"__name__": "__main__"})


def kinds(root: Path) -> dict[str, Callable]:
    """Every kind of stage at tiny size."""
    from companion.experiments import study
    from companion.experiments.generate import Arm, SampleConfig
    from nag import checkpoint
    from nag.data.latents import LatentSpec, encode, write_index
    from nag.pretrained import further_training

    out, weights = root / "build/by-hand", root / "results/weights/sit.safetensors"
    few = {"compile": False, "precision": "fp32"}
    training = {"batch_size": 32, "warmup_steps": 2, "ema_decay": 0.5, "compile": False}

    def study_arm() -> None:
        net = checkpoint.load(weights)
        study.reference(study.fashion_mnist.load_fashion_mnist("test")[0][:50])
        study.kept_arm(
            out,
            "arm",
            net,
            Arm(w_nag=1.0, cfg=1.5).terms(),
            SampleConfig(steps=20, n_images=80, trajectories=10, network_batch=30, **few),
            weights=[weights, study.estimator_file("linear")],
            reader=study.load_reader("linear"),
        )

    def latents() -> None:
        spec = LatentSpec(
            images=str(root / "data/mini"),
            vae=str(root / "data/mini-vae"),
            out=str(out / "latents"),
            size=64,
            shard_size=3,
            batch_size=3,
            workers=2,
        )
        encode(spec)
        write_index(spec)

    def further() -> None:
        config = further_training.FurtherConfig(
            weights=str(weights),
            split="test",
            train={"images_seen": 1280} | training,
            checkpoint=str(root / "build/checkpoints/further.pt"),
            out=str(out / "further.safetensors"),
            save_steps=3,
            log_steps=5,
        )
        further_training.run(config)
        further_training.forget(config)

    sampling = {"steps": 10, "n_images": 60, "trajectories": 10, "network_batch": 24}
    return {
        "train": notebook(
            "01_train", patch=14, width=32, depth=1, heads=2, images_seen=2560, **training
        ),
        "estimator": notebook(
            "02_estimator", **training | {"images_seen": 1920, "batch_size": 64}, n_test=100
        ),
        "tune": notebook(
            "04_tune",
            n_images=260,
            steps=5,
            network_batch=130,
            trajectories=20,
            reference_images=300,
        ),
        "sample": notebook("05_sample", arm="cfg-nag", **sampling),
        "noise_shift": notebook(
            "06_noise_shift",
            n_images=20,
            steps=20,
            trajectories=10,
            sde_images=20,
            sde_steps=20,
            resamples=20,
        ),
        "evaluate": notebook(
            "07_evaluate", n_images=260, steps=4, trajectories=0, reference_images=300
        ),
        "study arm": study_arm,
        "latents": latents,
        "shards": notebook("05_sample", arm="nag", shard_size=10, **sampling),
        "further training": further,
    }


# ---- the campaign


def campaign(root: Path, rounds: int, inputs: int, seed: int, only: list[str]) -> dict:
    """All faults, in the clone at `root`."""
    import torch
    from fuzzing import fuzz

    from nag.data import fashion_mnist

    torch.set_num_threads(1)
    fashion_mnist.SOURCES.clear()  # nothing is fetched: stages train on the test images
    rng, rows, out = np.random.default_rng(seed), [], root / "build/by-hand"

    def note(row: dict) -> None:
        rows.append(row)
        print(
            f"{row['stage']:18} {row['fault']:12} {row['rounds']:4} rounds, "
            f"{len(row['faults'])} faults {row['faults'][:2] or ''}",
            flush=True,
        )

    def wanted(name: str) -> bool:
        return not only or name in only

    for name, run in kinds(root).items():
        if not wanted(name):
            continue
        kind = Kind(name, run, root / "build", out)
        print(f"{name}: {kind.seconds:.1f} s, {len(kind.reference)} files", flush=True)
        for number in SIGNALS:
            note(kills(kind, number, rounds, rng))
        note(full_disks(kind))
        note(without_rights(kind))
        note(pairs(kind, max(1, rounds // 4), rng))
        kind.clean()
    if wanted("dvc repro"):
        pipeline = Pipeline(root, root.parent / "pipeline")
        for number in SIGNALS:
            note(pipeline.kills(number, rounds, rng))
        note(pipeline.pairs(max(1, rounds // 4), rng))
    damaged = fuzz(root, inputs, rng, partial(started), ended) if wanted("damaged files") else []
    return {"rounds": rounds, "inputs": inputs, "seed": seed, "stages": rows, "files": damaged}


def main() -> None:
    """Build a clone, run the campaign in a process that takes it for its repository, keep what it
    found; exit code 1 if it found a fault."""
    parser = argparse.ArgumentParser(description="The fault campaign")
    parser.add_argument("--rounds", type=int, default=20, help="kills of a stage by a signal (20)")
    parser.add_argument("--inputs", type=int, default=1200, help="damaged files in all (1200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="kinds of stage (all); the rows of others stay in the file",
    )
    parser.add_argument("--out", type=Path, help="file of the results (results/campaign.json)")
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.world:
        found = campaign(given.world, given.rounds, given.inputs, given.seed, given.only)
        if given.only and given.out.is_file():  # what was not tried now stays
            before = json.loads(given.out.read_text())
            for part in ("stages", "files"):
                if found[part] or part == "stages":
                    new = {row.get("stage") for row in found[part]}
                    kept = [row for row in before[part] if part == "stages"]
                    found[part] = [r for r in kept if r["stage"] not in new] + found[part]
                else:
                    found[part] = before[part]
        given.out.write_text(json.dumps(found, indent=2) + "\n")
        sys.exit(any(row["faults"] for row in found["stages"] + found["files"]))
    from nag.support.paths import RESULTS

    target = (given.out or RESULTS / "campaign.json").absolute()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        root = build(Path(folder))
        env = os.environ | {
            "DVC_ROOT": str(root),
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "agg",
        }
        done = subprocess.run(
            [sys.executable, "-B", root / "tests/campaign.py", "--world", root, "--out", target]
            + ["--rounds", str(given.rounds), "--inputs", str(given.inputs)]
            + ["--seed", str(given.seed), *(["--only", *given.only] if given.only else [])],
            cwd=root,
            env=env,
        )
    sys.exit(done.returncode)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
