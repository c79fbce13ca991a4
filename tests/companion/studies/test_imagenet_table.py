"""The paper's main table: the laptop's ratios, and ImageNet's numbers beside the published ones."""

import pytest

from companion.published import fid_ratios
from companion.studies.tell import imagenet_table as paper
from nag.support.files import read_json, write_json
from nag.support.paths import RESULTS, ROOT

PRESETS = ROOT / "imagenet/presets.json"


def test_the_laptops_networks_are_compared_by_ratios():
    found = paper.load(RESULTS, ["sit", "dit"], PRESETS)
    table = paper.table(found)
    assert not found.at_scale and list(table.columns) == [
        "model",
        "arm",
        "FID ratio, paper",
        "ratio, ours",
    ]
    summary = read_json(RESULTS / "summary.json")["sit"]["ode"]
    expected = summary["nag"]["fd_inf"]["value"] / summary["none"]["fd_inf"]["value"]
    assert table["ratio, ours"][1] == expected
    assert paper.answers(found) == {} and paper.metrics(found)["scale"] == "laptop"


def test_imagenets_numbers_stand_beside_the_published_ones(tmp_path):
    for family, preset in read_json(PRESETS).items():
        arms = {
            arm: {
                metric: {"value": value, "low": 0.99 * value, "high": 1.01 * value}
                for metric, value in numbers.items()
            }
            for arm, numbers in preset["expected"].items()
        }
        write_json(tmp_path / f"metrics/adm-{family}.json", arms)
    found = paper.load(tmp_path, ["sit", "dit"], PRESETS)
    table = paper.table(found)
    assert found.at_scale and (table["fid, difference"] == 0).all()
    answers = paper.answers(found)
    assert set(answers) == {"C7, sit", "C6, sit", "C7, dit", "C6, dit"}
    assert {answer["verdict"] for answer in answers.values()} == {"reproduced"}
    published = fid_ratios()["SiT-XL/2"]
    assert paper.published_gains(found)["sit"]["NAG over none"] == pytest.approx(published["nag"])
    assert "(the paper 0.26)" in answers["C7, sit"]["sentence"]
