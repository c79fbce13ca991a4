"""Shards of seeds: the same images for any number of processes, resumed where they stopped,
exported for ADM's evaluation.
"""

import numpy as np
import pytest
import torch

from companion.experiments import shards
from companion.experiments.generate import Arm, SampleConfig, sample
from nag import checkpoint
from nag.pretrained.null_branch import save_null, separate_branch
from nag.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture
def spec(tiny, tmp_path, monkeypatch):
    """23 images in shards of 5, three of them with trajectories, from a small network in a file."""
    monkeypatch.setattr(shards, "best_device", lambda: torch.device("cpu"))
    checkpoint.save(tmp_path / "net.safetensors", tiny())

    def build(**changes):
        config = SampleConfig(
            sampler="sde",
            steps=4,
            n_images=23,
            first_seed=100,
            trajectories=7,
            states_every=3,
            network_batch=12,
            precision="fp32",
            compile=False,
        )
        return shards.ShardConfig(
            **{
                "weights": str(tmp_path / "net.safetensors"),
                "arm": Arm(w_nag=1.0, cfg=1.5),
                "config": config,
                "shard_size": 5,
                "out": str(tmp_path / "one"),
            }
            | changes
        )

    return build


def whole(spec):
    return [shard for shard in shards.read(spec)]


def test_paths_count_from_the_root(spec):
    assert spec(out="build/x").path(spec().parts[1]) == ROOT / "build/x/00000105.npz"


def test_one_process_and_three_make_the_same_images(spec, tmp_path):
    one, three = spec(), spec(out=str(tmp_path / "three"))
    assert shards.run(one) == 5
    assert [shards.run(three, rank, 3) for rank in range(3)] == [2, 2, 1]
    for a, b in zip(whole(one), whole(three), strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[k], b[k]) for k in a if k != "seconds")


def test_shards_are_what_one_run_makes_up_to_rounding(spec):
    """Another size of batch may change the last bits, and with them a pixel's rounding."""
    s = spec()
    shards.run(s)
    net = checkpoint.load(s.weights)
    run, merged = sample(net, s.arm.terms(), s.config, progress=False), shards.merge(s)
    images = np.concatenate([shard["images"] for shard in whole(s)])
    assert np.abs(images.astype(int) - run["images"]).max() <= 1
    assert (
        merged["seeds"].tolist() == list(range(100, 123))
        and merged["times"].tolist() == run["times"].tolist()
    )
    assert len(merged["images"]) == 10 and (merged["images"] == images[:10]).all()
    assert merged["states"].shape == run["states"].shape == (7, 3, 1, 8, 8)
    np.testing.assert_allclose(merged["states"], run["states"], atol=2e-3)
    assert merged["nfe"] == run["nfe"] == 12


def test_only_what_is_missing_or_broken_is_made(spec):
    s = spec()
    shards.run(s)
    paths = [s.path(part) for part in s.parts]
    before = [path.stat().st_mtime_ns for path in paths]
    reference = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[2].write_bytes(reference[2][:500])
    with pytest.raises(
        FileNotFoundError, match=r"2 of 5 shards are not in .*the first: 00000100.npz.*sample again"
    ):
        shards.read(s)
    assert shards.run(s) == 2
    after = [path.stat().st_mtime_ns for path in paths]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False, True, True]
    assert len(whole(s)) == 5


def test_more_images_keep_the_shards_and_other_settings_do_not(spec):
    s = spec()
    shards.run(s)
    more = s.model_copy(update={"config": s.config.model_copy(update={"n_images": 30})})
    assert shards.run(more) == 2  # the last one was not full
    assert shards.run(s.model_copy(update={"arm": Arm(w_nag=2.0)})) == 5


def test_other_weights_of_the_same_name_make_other_shards(spec, tiny, tmp_path):
    s = spec()
    shards.run(s)
    torch.manual_seed(5)
    checkpoint.save(tmp_path / "net.safetensors", tiny())
    assert shards.run(s) == 5


def test_a_separate_null_branch_is_the_negative(spec, tiny, tmp_path):
    s = spec()
    net = checkpoint.load(s.weights)
    twin = separate_branch(net, ["final_layer"])
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_null(tmp_path / "null.safetensors", twin, checkpoint.sha256(tmp_path / "net.safetensors"))
    s = spec(null=str(tmp_path / "null.safetensors"), out=str(tmp_path / "null"))
    shards.run(s)
    expected = sample(net, s.arm.terms(twin), s.parts[0], progress=False)
    assert (whole(s)[0]["images"] == expected["images"]).all()
    assert (
        expected["images"] != sample(net, s.arm.terms(), s.parts[0], progress=False)["images"]
    ).any()


def test_export_is_what_adm_reads(spec, tmp_path):
    s = spec()
    shards.run(s)
    shards.export(tmp_path / "samples.npz", s)
    images = np.concatenate([shard["images"] for shard in whole(s)])
    with np.load(tmp_path / "samples.npz") as file:
        assert file.files == ["arr_0"]
        array = file["arr_0"]
    assert array.dtype == np.uint8 and array.shape == (23, 8, 8, 3)
    assert (array == images.transpose(0, 2, 3, 1)).all()


def test_wrong_hash_of_the_weights_is_refused(spec):
    with pytest.raises(ValueError, match="SHA-256"):
        shards.run(spec(sha256="0" * 64))
