"""The pipeline of the paper's scale, dry: a miniature world in the official formats, two gloo
processes, killed twice.
"""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
import yaml
from clones import ENV, clone, dvc
from mini_world import build, extract
from numpy.testing import assert_allclose

from companion.experiments import shards
from companion.report import questions
from nag.data.image_folder import centre_crop
from nag.evaluation import adm
from nag.pretrained import further_training
from nag.support.files import read_json
from nag.support.paths import DATA, ROOT
from nag.support.uncertainty import verdict

PATIENCE = 900  # seconds for one attempt at the whole
ATTEMPT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT / "tests"),
    "NAG_PROCESSES": "2",
    "NAG_MICRO_BATCH": "2",
}


def test_presets_have_the_published_numbers():
    with open(DATA / "paper_results.csv") as file:
        table = {
            (r["model"], r["guidance"], r["nag"], r["metric"]): float(r["value"])
            for r in csv.DictReader(file)
            if r["table"] == "imagenet_converged"
        }
    for preset in read_json(ROOT / "imagenet/presets.json").values():
        assert (
            preset["chosen"].keys()
            == preset["expected"].keys()
            == {"none", "nag", "cfg", "cfg-nag"}
        )
        for arm, expected in preset["expected"].items():
            for metric, value in expected.items():
                assert (
                    value
                    == table[
                        preset["model"],
                        arm.split("-")[0].replace("nag", "none"),
                        str(int("nag" in arm)),
                        metric,
                    ]
                )


def test_every_stage_says_what_it_does_and_what_it_costs():
    for name, stage in yaml.safe_load((ROOT / "imagenet/dvc.yaml").read_text())["stages"].items():
        body = stage.get("do", stage)
        assert "(" in body["desc"], f"{name} does not say what it costs"
        assert not [d for d in body["deps"] if d.endswith(".ipynb")]


def begin(root, env):
    log = open(root / "repro.log", "ab")
    return subprocess.Popen(
        ["dvc", "repro", "imagenet/dvc.yaml"],
        cwd=root,
        env=env | ATTEMPT,
        stdout=log,
        stderr=log,
        executable=shutil.which("dvc", path=env["PATH"]),
    )


def kill(process, root):
    """SIGKILL to DVC and then to all that it started, which works in the folder `root`: nobody gets
    to save anything. DVC first, or it is cut in writing its lock.
    """
    process.kill()
    process.wait()
    while members := [
        one for one in psutil.process_iter(["cwd"]) if str(one.info["cwd"]).startswith(str(root))
    ]:
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members)


def kill_when(process, condition, root):
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < limit, (
            root / "repro.log"
        ).read_text()[-4000:]
        time.sleep(0.02)
    kill(process, root)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The whole pipeline after it was killed once in training and once in sampling: (root, what was
    there at the second kill).
    """
    root = clone(tmp_path_factory.mktemp("world") / "nag")
    build(root)
    adm.reference_from_images(
        root / "data/weights/reference.npz",
        root / "data/imagenet/train",
        extractor="mini_world:extract",
        crop=lambda image: centre_crop(image, 64),
    )
    done = subprocess.run(
        [sys.executable, "-m", "companion.experiments.preflight", "imagenet/params.yaml"],
        cwd=root,
        capture_output=True,
        text=True,
        env=ENV | ATTEMPT | {"DVC_ROOT": str(root)},
    )
    assert done.returncode == 0 and done.stdout.count("ok  ") == 8, done.stdout + done.stderr
    states, parts = root / "build/checkpoints", root / "imagenet/results/shards"
    kill_when(begin(root, ENV), lambda: any(states.glob("null-*.pt")), root)
    state = torch.load(next(states.glob("null-*.pt")), weights_only=True)
    assert 0 < state["step"] < 60, "killed too late: training was over"
    kill_when(begin(root, ENV), lambda: any(parts.glob("*/0*.npz")), root)
    written = {path: path.stat().st_mtime_ns for path in parts.glob("*/0*.npz")}
    assert len(written) < 16, "killed too late: the arm was whole"
    process = begin(root, ENV)
    assert process.wait(PATIENCE) == 0, (root / "repro.log").read_text()[-4000:]
    return root, written


@pytest.mark.slow
def test_training_killed_in_two_processes_is_training_unbroken_in_one(
    world, tmp_path, monkeypatch, on_cpu
):
    root, _ = world
    monkeypatch.setattr(further_training, "best_device", lambda: torch.device("cpu"))
    path = next((root / "imagenet/results/specs").glob("null-sit-*.json"))
    spec = json.loads(path.read_text())
    spec |= {
        "latents": str(root / spec["latents"]),
        "checkpoint": str(tmp_path / "state.pt"),
        "out": str(tmp_path / "net.safetensors"),
    }
    records = further_training.run(further_training.FurtherConfig(**spec))
    with open(root / "imagenet/results/curves/null-sit.csv") as file:
        curve = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(curve) > 1
    assert_allclose(curve, [record["loss"] for record in records], rtol=1e-4)


@pytest.mark.slow
def test_samples_of_two_processes_killed_are_those_of_one(world, tmp_path, monkeypatch, on_cpu):
    root, written = world
    monkeypatch.setattr(shards, "best_device", lambda: torch.device("cpu"))
    assert all(path.stat().st_mtime_ns == when for path, when in written.items()), (
        "finished shards were made again"
    )
    for family, arm in (("sit", "cfg-nag"), ("dit", "nag")):
        spec = json.loads((root / f"imagenet/results/specs/sample-{family}-{arm}.json").read_text())
        spec |= {name: str(root / spec[name]) for name in ("weights", "vae")} | {
            "out": str(tmp_path / family)
        }
        one = shards.ShardConfig(**spec)
        shards.run(one)
        two = one.model_copy(update={"out": str(root / f"imagenet/results/shards/{family}-{arm}")})
        pairs = list(zip(one.parts, two.parts, strict=True))
        assert len(pairs) == 16
        for a, b in pairs:
            with np.load(one.path(a)) as a, np.load(two.path(b)) as b:
                assert (a["seeds"] == b["seeds"]).all()
                assert np.abs(a["images"].astype(int) - b["images"]).max() <= 1
                assert_allclose(
                    a["states"].astype(float), b["states"], rtol=1e-3, atol=1e-5
                )  # rounded to float16 each


@pytest.mark.slow
def test_the_table_has_our_column_the_published_one_and_the_difference(world, monkeypatch):
    root, _ = world
    with open(root / "imagenet/results/paper_table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["arm"]) for row in rows] == [
        (model, arm)
        for model in ("SiT-XL/2", "DiT-XL/2")
        for arm in ("none", "nag", "cfg", "cfg+nag")
    ]
    for row in rows:
        assert float(row["fid, ours"]) - float(row["fid, paper"]) == pytest.approx(
            float(row["fid, difference"]), rel=1e-4
        )
    assert rows[7]["fid, paper"] == "2.14" and rows[4]["recall, paper"] == "0.67"
    with (
        np.load(root / "imagenet/results/samples/dit-cfg.npz") as file,
        np.load(root / "data/weights/reference.npz") as real,
    ):
        assert file["arr_0"].shape == (32, 64, 64, 3)
        x = extract(torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2))["pool"].double().numpy()
        ours = float(rows[6]["fid, ours"])
        mean, cov = x.mean(0), np.cov(x, rowvar=False)
        root_of = np.linalg.eigvals(cov @ real["sigma"]).astype(complex)
        expected = (
            ((mean - real["mu"]) ** 2).sum()
            + np.trace(cov + real["sigma"])
            - 2 * np.sqrt(root_of).sum().real
        )
        assert ours == pytest.approx(expected, rel=1e-3)
    monkeypatch.setattr(questions, "ROOT", root)
    answers = questions.collect(root / "imagenet/results")
    assert {claim: [answer["scale"] for answer in found] for claim, found in answers.items()} == {
        "C6": ["paper", "paper"],
        "C7": ["paper", "paper"],
    }
    ratio = read_json(root / "imagenet/results/metrics/paper_table.json")["gain"]["sit"][
        "NAG over none"
    ]
    assert ratio["value"] == pytest.approx(
        float(rows[1]["fid, ours"]) / float(rows[0]["fid, ours"]), rel=1e-3
    )
    assert answers["C7"][0]["verdict"] == verdict(ratio, -1, 1)
    for family in ("sit", "dit"):
        protocol = read_json(root / f"imagenet/results/protocols/{family}-nag.json")
        assert (
            protocol["solver"] == {"sit": "euler_maruyama", "dit": "ddpm"}[family]
            and protocol["n"] == 32
        )
        assert protocol["nfe"] == 32 and len(protocol["weights_sha256"]) == 64
        assert (root / f"imagenet/results/figures/{family}_shift.png").stat().st_size > 5000
        assert (root / f"imagenet/results/figures/{family}_posterior.png").stat().st_size > 5000


@pytest.mark.slow
def test_nothing_runs_twice_and_a_new_weight_runs_one_arm(world):
    root, _ = world
    env = ENV | ATTEMPT
    assert "Running stage" not in dvc(root, "repro", "--dry", "imagenet/dvc.yaml", env=env)
    presets = read_json(root / "imagenet/presets.json")
    presets["sit"]["chosen"]["nag"]["w_nag"] = 2.0
    (root / "imagenet/presets.json").write_text(json.dumps(presets))
    stale = [
        line.split("'")[1]
        for line in dvc(root, "repro", "--dry", "imagenet/dvc.yaml", env=env).splitlines()
        if line.startswith("Running stage")
    ]
    assert [name for name in stale if ":sample" in name] == ["imagenet/dvc.yaml:sample@sit-nag"]
    assert not [
        name for name in stale if "null" in name or "latents" in name or "estimator" in name
    ]
    assert os.path.exists(root / "imagenet/results/weights/sit.safetensors")
