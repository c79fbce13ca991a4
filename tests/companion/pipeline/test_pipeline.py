"""The DVC pipeline: the lock is fresh, and the whole DAG runs at tiny size in its own clone."""

import csv
import json
import re
import shutil

import nbformat
import pytest
import yaml
from clones import clone, dvc

from companion.pipeline import fingerprint
from companion.report.claims import VERDICTS
from companion.report.evidence import check
from nag.data import fashion_mnist
from nag.support.paths import ROOT

SMALL_NETWORK = dict(
    width=32, depth=1, heads=2, images_seen=1280, warmup_steps=2, ema_decay=0.5, compile=False
)


# Code of the clone: intervals of distances come from ten subsets, what real images have from fewer.
FEWER = {
    "nag/support/uncertainty.py": (
        "_ in range(resamples):\n        order",
        "_ in range(10):\n        order",
    ),
    "nag/evaluation/metrics.py": ("KID_SUBSETS = 1000, 50", "KID_SUBSETS = 1000, 3"),
    "companion/experiments/spaces.py": ("EACH = 600", "EACH = 250"),
}

# Columns that docs/reproduce.md leaves out
DEPENDENCIES = "^(build|companion|data|nag|notebooks|pages|results|studies/answers)"


def test_lock_is_fresh():
    """Nothing but the arrays, which are not in Git, would have to be made in a fresh clone."""
    fingerprint.write(ROOT)
    out = dvc(ROOT, "repro", "--dry", "--allow-missing")
    stale = re.findall(r"Running stage '([^']+)'", out)
    assert set(stale) <= {"fingerprints"}, "run `make repro` and commit what it wrote"


def test_every_stage_is_described_and_depends_on_no_notebook():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        body = stage.get("do", stage)
        assert body.get("desc"), f"{name} has no desc"
        if name != "fingerprints":
            assert not [d for d in body["deps"] if d.endswith(".ipynb")], (
                f"{name} depends on a notebook"
            )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A clone with small parameters in which the whole pipeline has run from raw images."""
    folder = clone(tmp_path_factory.mktemp("clone") / "nag")
    for name in fashion_mnist.MD5:
        fashion_mnist.fetch(name)
        if not (folder / "data/fashion-mnist" / name).exists():
            shutil.copy(fashion_mnist.FOLDER / name, folder / "data/fashion-mnist" / name)
    for name, (usual, fewer) in FEWER.items():
        code = (folder / name).read_text()
        assert code.count(usual) == 1
        (folder / name).write_text(code.replace(usual, fewer))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["toy"].update(n=32, steps=15)
    for family in params["train"].values():
        family.update(SMALL_NETWORK)
    for part in params["estimator"].values():
        part.update(images_seen=1280, batch_size=64, warmup_steps=2, ema_decay=0.5, n_test=200)
    params["extractor"].update(
        images_seen=2560, batch_size=128, warmup_steps=2, ema_decay=0.5, compared_images=500
    )
    for part in params["tune"].values():
        part.update(
            w_values=[1.0],
            cfg_values=[1.5],
            joint_w_values=[0.5],
            joint_cfg_values=[1.5],
            budget=1,
            n_images=250,
            trajectories=20,
        )
    params["sample"].update(
        n_images=250,
        steps=5,
        trajectories=20,
        reference_images=300,
        compile=False,
        resamples=50,
        sde_images=20,
        sde_steps=10,
    )
    params["overhead"].update(n_images=8, steps=2, rounds=1)
    params["auto"].update(calibration_images=20, weights_tried=[0.0, 2.0], n_images=250)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.lock").unlink()
    dvc(folder, "repro")
    return folder


@pytest.mark.slow
def test_tiny_run_makes_everything(tiny):
    params = yaml.safe_load((tiny / "params.yaml").read_text())
    summary = json.loads((tiny / "results/summary.json").read_text())
    assert set(summary) == set(params["families"])
    for samplers in summary.values():
        arms = samplers["ode"]
        assert set(arms) == {"none", "nag", "cfg", "cfg+nag"}
        for values in arms.values():
            for metric in (
                "fd_inf",
                "fd_inf_second",
                "fd",
                "kid",
                "precision",
                "recall",
                "shift_late",
            ):
                assert values[metric]["low"] <= values[metric]["value"] <= values[metric]["high"]
            assert values["protocol"]["steps"] == 5 and values["fd"]["n"] == 250
        assert [arms[a]["nfe"] for a in ("none", "nag", "cfg", "cfg+nag")] == [5, 10, 10, 15]
    for family in params["families"]:
        auto = json.loads((tiny / f"results/metrics/auto-{family}.json").read_text())
        assert auto["n"] == 250 and len(auto["schedule"]["weights"]) == 5
    assert len(json.loads((tiny / "results/metrics/overhead.json").read_text())["rows"]) >= 8
    claims = json.loads((tiny / "results/claims.json").read_text())
    ids = [c["id"] for c in claims]
    counts = {kind: sum(i.startswith(kind) for i in ids) for kind in "CQF"}
    assert ids == [f"{kind}{k}" for kind in "CQF" for k in range(1, counts[kind] + 1)]
    assert counts["C"] == 9 and counts["Q"] >= 11 and counts["F"]
    assert all(c["verdict"] in VERDICTS for c in claims[:9])
    for claim in claims:
        check(claim["evidence"], tiny)
    drawn = {p.stem for p in (tiny / "results/figures").glob("*.png")}
    for family in params["families"]:
        assert {
            f"{family}_{kind}" for kind in ("posterior", "shift", "samples", "quality", "tuning")
        } <= drawn
    assert all((tiny / "results/figures" / f"{name}.svg").stat().st_size > 1000 for name in drawn)


@pytest.mark.slow
def test_an_experiment_with_another_list(tiny):
    """`dvc exp run -S` runs what depends on the list, to the end, and shows it in one short row."""
    out = dvc(tiny, "exp", "run", "-n", "two-weights", "-S", "auto.weights_tried=[0.0,1.0]")
    assert set(re.findall(r"Running stage '([^']+)'", out)) - {"fingerprints"} == {
        *(f"auto_weight{part}@{family}" for part in ("", "-tell") for family in ("sit", "dit")),
        "claims",
    }
    auto = json.loads((tiny / "results/metrics/auto-sit.json").read_text())
    assert [row["w"] for row in auto["excess"]] == [0.0, 1.0]
    shown = dvc(tiny, "exp", "show", "--only-changed", "--drop", DEPENDENCIES, "--csv")
    header, *rows = csv.reader(shown.splitlines())
    row = dict(zip(header, next(row for row in rows if row[0] == "two-weights"), strict=True))
    assert row["auto.weights_tried"] == "[0.0, 1.0]" and float(row["sit.nag.fd_inf"]) > 0
    assert len([name for name in header if name.startswith(("sit.", "dit."))]) == 12
    page = (ROOT / "docs/reproduce.md").read_text()
    assert f"--drop '{DEPENDENCIES}'" in page


@pytest.mark.slow
def test_parameters_keep_their_types(tiny):
    notebook = nbformat.read(tiny / "results/executed/01_train-sit.ipynb", 4)
    injected = next(
        c.source for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])
    )
    values = {}
    exec(injected, values)
    assert values["compile"] is False and values["images_seen"] == 1280
    assert (
        isinstance(values["lr"], float)
        and isinstance(values["seed"], int)
        and isinstance(values["family"], str)
    )


@pytest.mark.slow
def test_nothing_is_stale_afterwards_nor_after_stepping_through_by_hand(tiny):
    assert "Running stage" not in dvc(tiny, "repro", "--dry")
    path = tiny / "notebooks/09_claims.ipynb"
    notebook = nbformat.read(path, 4)
    for count, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", text="by hand")]
        cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01"}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    nbformat.write(notebook, path)
    out = dvc(tiny, "repro")
    assert "Running stage 'fingerprints'" in out and "Running stage 'claims'" not in out
    assert "results" in dvc(tiny, "metrics", "show")
