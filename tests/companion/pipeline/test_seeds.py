"""Nothing is reported on seeds that something was chosen on."""

import json

import pytest
import yaml

from nag.support.paths import ROOT

PARAMS = {
    name: yaml.safe_load((ROOT / name).read_text())
    for name in ("params.yaml", "studies/params.yaml")
}
FIRST = ("first_seed", "tune_seed", "tuning_seed", "calibration_seed")


def notebook(name):
    """What the parameters cell of a notebook says."""
    (path,) = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (cell,) = (c for c in cells if "parameters" in c["metadata"].get("tags", ()))
    found = {}
    exec("".join(cell["source"]), found)
    return found


def seeds(first, n):
    return range(first, first + n)


def apart(one, other):
    return one[-1] < other[0] or other[-1] < one[0]


def test_the_reports_seeds_are_apart_from_all_choices():
    of = PARAMS["params.yaml"]
    report = seeds(
        of["sample"]["first_seed"], max(of["sample"]["n_images"], of["auto"]["n_images"])
    )
    chosen = {f"tune {f}": seeds(t["first_seed"], t["n_images"]) for f, t in of["tune"].items()}
    calibration = of["auto"]["calibration_seed"], of["auto"]["calibration_images"]
    chosen["auto"] = seeds(*calibration)
    for family, sweep in PARAMS["studies/params.yaml"]["weight_sweep"].items():
        chosen[f"Q1 {family}"] = seeds(sweep["first_seed"], sweep["pair_images"])
    assert [name for name, of in chosen.items() if not apart(report, of)] == []


@pytest.mark.parametrize(
    "name, section",
    [
        ("21", "solvers"),
        ("22", "rivals"),
        ("26", "grids"),
        ("27", "dropout"),
        ("32", "paper_samplers"),
    ],
)
def test_a_study_reports_on_other_seeds_than_it_chooses_on(name, section):
    default = notebook(name)
    found = PARAMS["studies/params.yaml"][section]
    for given in found.values() if name in ("22", "32") else [found]:
        s = default | given
        first = s.get("tune_seed", s.get("tuning_seed"))
        images = s.get("n_tune", s.get("tuning_images", s.get("tune_images")))
        reported = seeds(s["first_seed"], max(s["n_images"], s.get("pair_images", 0)))
        assert apart(reported, seeds(first, images))
