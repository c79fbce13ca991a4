"""The bench times what it says: the same work in every variant, in turn, and shares of the peak."""

import re
import shutil

import pytest
import torch

from companion.experiments import bench
from nag import checkpoint
from nag.models import ModelConfig
from nag.support.files import read_json

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
    """Both sections at a small size, on the CPU, with bf16 and nothing compiled."""
    for name, value in {"XL": SMALL, "TRAIN_BATCH": 4, "IMAGES": 3, "ROUNDS": 1}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "MATRIX", 64)
    monkeypatch.setattr(bench, "has_fast_bf16", lambda device: True)
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


def test_operations_are_those_of_the_formula():
    """Per token and block 12 D^2 for the weights and 2 N D for attention, twice; thrice with its
    backward, but for the patches, whose input needs no gradient.
    """
    n, d, depth = 16, 192, 2
    patches, last = n * 2**2 * 4 * d, n * d * 2**2 * 8
    tokens = depth * n * (12 * d * d + 2 * n * d) + last
    vectors = 256 * d + d * d + depth * 6 * d * d + 2 * d * d
    assert bench.operations(SMALL, 3) == 3 * 2 * (patches + tokens + vectors)
    ends = 256 * d + patches  # inputs of the first layers need no gradient
    assert bench.operations(SMALL, 3, backward=True) == 3 * 2 * (
        3 * (patches + tokens + vectors) - ends
    )


def test_ratios_and_shares_of_the_peak(monkeypatch):
    """4 GFLOP in 2 s and 1 s where a product of 2 GFLOP takes 0.1 s (fp32) and 0.05 s (bf16)."""
    seconds = {"plain fp32": 2, "bf16": 1, "product fp32": 0.1, "product bf16": 0.05}
    monkeypatch.setattr(bench, "turns", lambda work, rounds, device: {n: seconds[n] for n in work})
    monkeypatch.setattr(bench, "MATRIX", 1000)
    work = {"plain fp32": lambda: None, "bf16": lambda: None}
    found = bench.compare(work, 4e9, 1, torch.device("cpu"))
    assert found["peaks"] == pytest.approx({"fp32": 20, "bf16": 40})
    assert found["rows"] == [
        {"variant": "plain fp32", "ratio": 1, "share": pytest.approx(0.1)},
        {"variant": "bf16", "ratio": 2, "share": pytest.approx(0.1)},
    ]


def test_bf16_is_tried_where_it_is_native_and_compilation_where_it_works(monkeypatch):
    cpu = torch.device("cpu")
    for fast, compiles, names in [
        (False, False, ["fp32"]),
        (True, False, ["fp32", "bf16"]),
        (False, True, ["fp32", "fp32 compiled"]),
        (True, True, list(bench.VARIANTS)),
    ]:
        monkeypatch.setattr(bench, "has_fast_bf16", lambda device, fast=fast: fast)
        monkeypatch.setattr(bench, "can_compile", lambda kind, compiles=compiles: compiles)
        assert bench.variants(cpu) == names


@pytest.mark.slow
def test_all_sections_write_what_they_print(small, tmp_path, capsys):
    bench.main([], tmp_path / "bench.json")
    text, found = capsys.readouterr().out, read_json(tmp_path / "bench.json")
    assert re.search(r"loaded in \d+\.\d s, .* peak memory (\d+\.\d\d|nan) of the file", text)
    tables = [found["mini"]["training"], found["mini"]["sampling"], found["xl"]["sampling"]]
    for table in tables:
        plain, fp32, bf16 = table["rows"]
        assert [row["variant"] for row in table["rows"]] == ["plain fp32", "fp32", "bf16"]
        assert plain["ratio"] == 1 and all(row["share"] > 0 for row in table["rows"])
        assert f"{bf16['variant']:15}{bf16['ratio']:8.2f}" in text
        assert set(table["peaks"]) == {"fp32", "bf16"}
    for table in tables[1:]:
        plain, fp32, bf16 = (row["error"] for row in table["rows"])
        assert plain == 0 and fp32 < 1e-5 < bf16 < 0.05
    assert found["machine"]["torch"] == torch.__version__


def test_one_section_writes_nothing(small, monkeypatch, tmp_path):
    ran = []
    for name in bench.SECTIONS:
        monkeypatch.setitem(bench.SECTIONS, name, lambda _, name=name: ran.append(name))
    bench.main(["mini"], tmp_path / "bench.json")
    assert ran == ["mini"] and not (tmp_path / "bench.json").exists()


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
