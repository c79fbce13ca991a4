"""The bench times what it says: the same step in every variant, in turn, from a file in the
official layout.
"""

import re
import shutil

import pytest
import torch

from companion.experiments import bench
from nag import checkpoint
from nag.models import ModelConfig

SMALL = ModelConfig(
    input_size=8,
    patch=2,
    channels=4,
    width=192,
    depth=2,
    heads=3,
    classes=4,
    learn_sigma=True,
    **checkpoint.CONVENTIONS["sit"],
)


@pytest.fixture
def small(monkeypatch):
    """The XL section at a small size, on the CPU, with nothing compiled."""
    monkeypatch.setattr(bench, "XL", SMALL)
    monkeypatch.setattr(bench, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(bench, "can_compile", lambda device: False)


def test_turns_are_taken_and_the_first_round_is_not_counted(monkeypatch):
    now, calls, lasts = [0.0], [], {"a": iter([100, 1, 5, 2]), "b": iter([200, 30, 10, 20])}
    monkeypatch.setattr("companion.experiments.bench.time.perf_counter", lambda: now[0])

    def run(name):
        calls.append(name)
        now[0] += next(lasts[name])

    found = bench.turns(
        {name: lambda name=name: run(name) for name in "ab"}, 3, torch.device("cpu")
    )
    assert found == {"a": 2, "b": 20} and "".join(calls) == "abababab"


def test_random_weights_are_an_official_file_without_a_silent_layer(tmp_path):
    bench.random_file(tmp_path / "a.pt", SMALL)
    assert checkpoint.load(tmp_path / "a.pt", "sit").config == SMALL
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert checkpoint.NULL not in state and all(value.std() > 0.01 for value in state.values())
    bench.random_file(tmp_path / "b.pt", SMALL)
    assert checkpoint.sha256(tmp_path / "a.pt") == checkpoint.sha256(tmp_path / "b.pt")


def test_the_plain_step_is_the_formula():
    """v = 2 x with the noise level, x without it: x - (2 x + w (2 x - x)) = -2 x at w = 1."""
    x = torch.randn(2, 1, 4, 4)
    assert torch.allclose(
        bench.plain_step(
            lambda x, t, y, drop=None: (2 if drop is None else 1) * x, x, torch.zeros(2)
        ),
        -2 * x,
    )


def test_the_projects_step_is_the_plain_one(tmp_path):
    bench.random_file(tmp_path / "a.pt", SMALL)
    net, x, labels = (
        checkpoint.load(tmp_path / "a.pt", "sit"),
        torch.randn(3, 4, 8, 8),
        torch.tensor([0, 1, 3]),
    )
    plain = bench.plain_step(net, x, labels)
    assert torch.allclose(bench.guided_step(net, x, labels, "fp32"), plain, atol=1e-5)
    assert not torch.allclose(
        x - plain, net(x, torch.ones(3), labels), rtol=1e-3
    )  # guidance does something here


def test_the_table_of_the_large_network(small, capsys):
    bench.main(["xl"])
    text = capsys.readouterr().out
    assert re.search(
        r"loaded in \d+\.\d s, then read in \d+\.\d s, peak memory (\d+\.\d\d|nan) of the file",
        text,
    )
    rows = {
        line[:15].strip(): [float(number) for number in line[15:].split()]
        for line in text.splitlines()
        if re.match(r"(plain )?(fp32|bf16) ", line)
    }
    assert rows["plain fp32"][1] == 1 and rows["plain fp32"][3] == 0 and rows["fp32"][3] < 1e-5
    assert all(row[0] < 1 and row[3] < 0.05 for row in rows.values()) and "SiT-mini" not in text


def test_the_table_of_sit_mini(small, monkeypatch, capsys):
    for name, value in {"TRAIN_BATCH": 4, "IMAGES": 3, "ROUNDS": 1}.items():
        monkeypatch.setattr(bench, name, value)
    bench.main(["mini"])
    rows = [
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if re.match("(fp32|bf16) ", line)
    ]
    assert (
        [row[0] for row in rows] == ["fp32", "bf16"]
        and rows[0][2] == rows[0][4] == "1.00"
        and float(rows[0][5]) == 0
    )
    assert 0 < float(rows[1][5]) < 0.05


def test_a_machine_too_small_leaves_the_large_network_out(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "random_file", lambda *_: pytest.fail("the file was made"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        bench.main(["xl"])
    assert "is left out: it needs 3 GiB free in" in capsys.readouterr().out
    monkeypatch.setattr(bench, "_told", lambda *_: 1.0)
    assert bench.lacking(tmp_path) == "it needs 5 GiB of memory"
    monkeypatch.setattr(bench, "_told", lambda *_: float("nan"))
    assert bench.lacking(tmp_path) == ""


def test_an_unknown_section_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown section xxl: choose from mini, xl"):
        bench.main(["xxl"])
