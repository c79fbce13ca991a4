"""Names, folders and the Hub lead to the same network as its file; an exported folder comes back
bit for bit and its card is what the Hub reads."""

import json
import sys
import types

import pytest
import torch
import yaml

import nag
from nag import checkpoint
from nag.models import DiT, ModelConfig
from nag.pretrained import hub
from nag.support.paths import ROOT, WEIGHTS

SMALL = ModelConfig(width=32, depth=1, heads=2, patch=7)


def same(a, b):
    return a.config == b.config and all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.fixture
def net():
    net, random = DiT(SMALL), torch.Generator().manual_seed(0)
    for value in net.parameters():
        value.data.normal_(generator=random)
    return net


def test_a_name_is_the_file_of_that_name():
    assert nag.weights_file("sit-mini") == WEIGHTS / "sit.safetensors"
    assert same(nag.load("sit-mini"), checkpoint.load(WEIGHTS / "sit.safetensors"))
    assert same(nag.load("sit-mini"), nag.load(WEIGHTS / "sit.safetensors"))


def test_packaged_weights_come_first(tmp_path, monkeypatch, net):
    (tmp_path / "weights").mkdir()
    checkpoint.save(tmp_path / "weights" / "sit.safetensors", net)
    monkeypatch.setattr(hub.resources, "files", lambda package: tmp_path)
    assert nag.load("sit-mini").config == SMALL


def test_weights_that_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="clone the repository"):
        nag.load("dit-mini")
    with pytest.raises(KeyError, match="sit-mini, dit-mini"):
        nag.weights_file("sit-maxi")
    with pytest.raises(FileNotFoundError):
        nag.load("sit-maxi")


def test_options_of_a_folder_count(tmp_path, net):
    folder = nag.export_pretrained(tmp_path / "mine", net)
    digest = checkpoint.sha256(folder / "model.safetensors")
    assert same(nag.load(folder, sha256=digest), nag.load(folder))
    with pytest.raises(ValueError, match="has the SHA-256"):
        nag.load(folder, sha256="0" * 64)
    for source in (folder, folder / "model.safetensors", "sit-mini"):
        with pytest.raises(ValueError, match="heads and classes of a network of kind 'nag' are in"):
            nag.load(source, heads=3, classes=10)


def test_what_is_no_network_is_named():
    with pytest.raises(ValueError, match="is a noise-level estimator, not a network: nag.checkp"):
        nag.load("estimator-linear")
    with pytest.raises(ValueError, match="is an address: download the file"):
        nag.load("https://example.org/a/sit.pt", "sit")
    with pytest.raises(FileNotFoundError, match="'SiT-mini': give a path, or one of sit-mini, dit"):
        nag.load("SiT-mini")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_folder_comes_back_bit_for_bit(tmp_path, net, dtype):
    net = net.to(dtype).float()
    folder = nag.export_pretrained(tmp_path / "mini", net)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert same(nag.load(folder), net) and same(nag.load(folder / "model.safetensors"), net)
    half = sum(p.numel() for p in net.state_dict().values()) * 2
    large = (folder / "model.safetensors").stat().st_size > 1.8 * half
    assert large == (dtype == torch.float32)


def test_a_folder_whose_parts_differ_is_refused(tmp_path, net):
    folder = nag.export_pretrained(tmp_path, net)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"heads": 4}))
    with pytest.raises(ValueError, match="not the configuration"):
        nag.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        nag.load(folder)


def test_the_card_holds_the_numbers_of_the_summary(tmp_path, net):
    arms = json.loads((ROOT / "results/summary.json").read_bytes())["sit"]["ode"]
    nag.export_pretrained(tmp_path, net, name="SiT-mini", arms=arms)
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    (model,) = head["model-index"]
    metrics = {m["name"]: m["value"] for m in model["results"][0]["metrics"]}
    assert model["name"] == "SiT-mini" and len(metrics) == 4 * len(hub.METRICS)
    assert metrics["Fréchet distance, cfg+nag"] == arms["cfg+nag"]["fd"]["value"]
    corrected = "bias-corrected Fréchet distance, nag"
    assert metrics[corrected] == arms["nag"]["fd_inf"]["value"]


def test_the_hubs_own_reader_takes_the_card(tmp_path, net):
    cards = pytest.importorskip("huggingface_hub")
    arms = {"none": {"fd": {"value": 2.0}}, "nag": {"fd": {"value": 1.0}}}
    nag.export_pretrained(tmp_path, net, name="mini", arms=arms)
    found = cards.ModelCard.load(tmp_path / "README.md").data
    assert found.model_name == "mini" and found.license == "mit"
    assert [result.metric_value for result in found.eval_results] == [2.0, 1.0]


def test_a_repository_of_the_hub_is_its_folder(tmp_path, net, monkeypatch):
    nag.export_pretrained(tmp_path, net)
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    library = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    assert same(nag.load("someone/mini"), net)
    assert asked == [("someone/mini", ["config.json", "model.safetensors"])]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"noise-awareness-guidance\[hub\]"):
        nag.load("someone/mini")
