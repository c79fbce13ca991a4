"""Arms are kept under everything that decides them, and sampled alike at once and in shards."""

import numpy as np
import pytest
import torch

from companion.experiments import arms, generate
from companion.experiments.generate import Arm, SampleConfig, load_arrays, save_arrays
from companion.experiments.shards import ShardConfig
from nag import checkpoint
from nag.models import DiT
from nag.support.files import write_json

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    """Where batches are kept."""
    monkeypatch.setattr(generate, "BUILD", tmp_path / "build")
    return tmp_path / "build"


@pytest.fixture
def spec(tmp_path, tiny):
    checkpoint.save(tmp_path / "net.safetensors", tiny())

    def build(out="shards", w_nag=0.5, shard_size=6, **changes):
        settings = {"steps": 3, "n_images": 6, "trajectories": 4, "compile": False}
        return ShardConfig(
            weights=str(tmp_path / "net.safetensors"),
            arm=Arm(w_nag=w_nag),
            config=SampleConfig(**settings | {"precision": "fp32"} | changes),
            shard_size=shard_size,
            out=str(tmp_path / out),
        )

    return build


def test_the_key_has_everything_that_decides_an_arm(spec, tmp_path, tiny):
    key = arms.key_of(spec(), "sit")
    others = [
        {"w_nag": 1.0},
        {"steps": 4},
        {"sampler": "heun"},
        {"grid": "logsnr"},
        {"n_images": 5},
        {"first_seed": 1},
        {"trajectories": 3},
        {"states_every": 2},
        {"precision": "bf16"},
    ]
    assert len({key, *(arms.key_of(spec(**changes), "sit") for changes in others)}) == 10
    same = [{"network_batch": 2}, {"compile": True}, {"trajectories": 4}, {"sampler": "euler"}]
    assert {arms.key_of(spec(**changes), "sit") for changes in same} == {key}
    checkpoint.save(tmp_path / "net.safetensors", tiny())  # other weights under the same name
    assert arms.key_of(spec(), "sit") != key


def test_another_decoder_under_the_same_name_is_another_key(spec, monkeypatch):
    keys = set()
    for content in ("a", "b"):
        monkeypatch.setattr(arms.shards, "vae_fingerprint", lambda name, content=content: content)
        keys.add(arms.key_of(spec().model_copy(update={"vae": "vae"}), "sit"))
    assert len(keys) == 2


def test_what_is_kept_is_used_under_its_own_key_only(tmp_path):
    made, path = [], tmp_path / "arm.npz"

    def get(key):
        def make():
            made.append(key)
            return {"x": np.full(3, len(made))}

        return arms.kept(path, key, make)["x"].tolist()

    assert get("a") == get("a") == [1, 1, 1] and get("b") == get("b") == [2, 2, 2]
    save_arrays(path, {"x": np.zeros(3)})  # as files were before they had a key
    assert get("b") == [3, 3, 3] and made == ["a", "b", "b"]


def test_notebook_7_after_another_sampler_does_not_take_the_first_ones_samples(tmp_path):
    settings = {"steps": 2, "n_images": 2, "trajectories": 0, "compile": False}
    runs = [
        arms.runs_of(tmp_path, "sit", ["none"], SampleConfig(sampler=sampler, **settings))["none"]
        for sampler in ("euler", "heun", "heun")
    ]
    assert runs[0]["nfe"] != runs[1]["nfe"] and "seconds" in runs[1]
    np.testing.assert_array_equal(runs[1]["images"], runs[2]["images"])


def test_shards_are_the_same_images_and_their_file_is_adms(spec, tmp_path):
    whole = arms.sample_arm(spec(), "sit-nag", tmp_path)
    parts = arms.sample_arm(spec(out="parts", shard_size=4), "sit-nag", tmp_path)
    assert np.abs(whole["images"].astype(int) - parts["images"]).max() <= 1
    exported = load_arrays(tmp_path / "samples/sit-nag.npz")["arr_0"]
    np.testing.assert_array_equal(exported[..., 0], parts["images"][:, 0])


def test_a_null_condition_trained_apart_is_used_in_one_piece_too(spec, monkeypatch, tiny):
    seen = []
    other = tiny()
    monkeypatch.setattr(arms, "load_null", lambda *given: seen.append(given[0]) or other)
    plain = spec()
    run = arms.sample_arm(plain.model_copy(update={"null": plain.weights}), "sit-nag", None)
    assert len(seen) == 1 and run["images"].shape == (6, 1, 8, 8)


def test_arms_of_latents_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no samples at"):
        arms.runs_of(tmp_path, "sit", ["none"], SampleConfig(), latents="somewhere")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampler": "heun"}, "solver"),
        ({"steps": 4}, "times"),
        ({"states_every": 2}, "times"),
        ({"first_seed": 1}, "seeds"),
        ({"trajectories": 3}, "trajectories"),
    ],
)
def test_arms_of_latents_of_other_settings_are_refused(spec, tmp_path, changes, named):
    made = spec()
    save_arrays(tmp_path / "arrays" / "sit-none.npz", arms.sample_arm(made, "sit-none", tmp_path))
    write_json(tmp_path / "protocols" / "sit-none.json", {"solver": "euler"})

    def take(config):
        return arms.runs_of(tmp_path, "sit", ["none"], config, latents="somewhere")

    assert take(made.config)["none"]["seeds"].tolist() == list(range(6))
    with pytest.raises(ValueError, match=rf"sit-none\.npz was sampled with other .*{named}"):
        take(made.config.model_copy(update=changes))


def test_guidance_is_notebook_4s_choice_or_a_files(tmp_path):
    assert arms.guidance_of("sit", "none") == Arm()
    assert arms.guidance_of("dit", "nag", "imagenet/presets.json").w_nag == 1.0
    with pytest.raises(ValueError, match="unknown arm 'NAG': choose one of"):
        arms.guidance_of("sit", "NAG")


def test_the_committed_estimator_reads_the_level_of_forward_states():
    from companion.experiments.images import held_out
    from nag.shift import estimated_times, forward_states

    real, _ = held_out("", 20)
    times = torch.tensor([0.1, 0.2])
    with torch.inference_mode():
        levels = estimated_times(arms.reader("linear", None), forward_states(real, times, "linear"))
    np.testing.assert_allclose(levels.mean(0), times, atol=0.01)


def test_first_images_are_a_small_file_with_seven_states(spec, tmp_path):
    run = arms.sample_arm(spec(steps=9), "sit-nag", tmp_path)
    first = arms.first_images(run, n=3)
    assert first["images"].shape == (3, 1, 8, 8) and first["states"].shape == (7, 1, 8, 8)
    assert first["times"][0] == 1 and first["times"][-1] == 0
    assert isinstance(checkpoint.load(spec().weights), DiT)


@pytest.mark.parametrize("shard_size", [6, 4])
def test_a_killed_arm_goes_on_from_its_batches_and_forgets_them(
    spec, tmp_path, build, monkeypatch, shard_size
):
    settings = {"shard_size": shard_size, "network_batch": 4, "sampler": "sde"}
    whole = arms.sample_arm(spec(**settings, out="whole"), "a", tmp_path / "1")
    killed, sound = spec(**settings), generate.save_arrays
    arms.forget(killed)

    def full(path, arrays):
        if path.parent.parent.name == "batches" and path.stem == "00000002":
            raise OSError("killed")
        sound(path, arrays)

    monkeypatch.setattr(generate, "save_arrays", full)
    with pytest.raises(OSError, match="killed"):
        arms.sample_arm(killed, "a", tmp_path / "2")
    assert [path.name for path in build.rglob("*.npz")] == ["00000000.npz"]
    monkeypatch.setattr(generate, "save_arrays", sound)
    again = arms.sample_arm(killed, "a", tmp_path / "2")
    assert all((again[name] == whole[name]).all() for name in whole.keys() - {"seconds"})
    arms.forget(killed)
    assert not list(build.rglob("*.npz"))
