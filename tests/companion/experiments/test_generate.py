"""Sampling an arm: the same images however they are batched, the same noise for every arm, and
faults in words.
"""

import json
import zipfile

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from companion.experiments.generate import (
    Arm,
    SampleConfig,
    batches,
    finished,
    forget,
    labels_of,
    load_arrays,
    protocol,
    sample,
    save_arrays,
)
from nag.data.fashion_mnist import to_uint8
from nag.guidance import GuidedField, classifier_free, noise_awareness
from nag.samplers.registry import SAMPLERS, last, time_grid
from nag.support.paths import BUILD
from nag.support.rng import ImageNoise

pytestmark = pytest.mark.usefixtures("on_cpu")
BOTH = Arm(w_nag=0.5, cfg=1.5)


def config(**changes):
    return SampleConfig(
        **{"steps": 4, "n_images": 12, "trajectories": 5, "precision": "fp32", "compile": False}
        | changes
    )


def draw(net, arm=BOTH, **changes):
    return sample(net, arm.terms(), config(**changes), progress=False)


def gap(a, b):
    return np.abs(a["images"].astype(int) - b["images"].astype(int)).max()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_do_not_depend_on_the_batch(tiny, sampler):
    net = tiny()
    whole, pieces = (draw(net, sampler=sampler, network_batch=size) for size in (600, 7))
    assert gap(whole, pieces) <= 1
    np.testing.assert_allclose(whole["states"], pieces["states"], atol=5e-3, rtol=5e-3)
    for key in ("labels", "seeds", "times", "nfe"):
        np.testing.assert_array_equal(whole[key], pieces[key])


def test_images_do_not_depend_on_how_many_are_drawn(tiny):
    net = tiny()
    few, many = draw(net, n_images=4, first_seed=3), draw(net, n_images=12)
    assert np.abs(few["images"].astype(int) - many["images"][3:7].astype(int)).max() <= 1


def test_sampling_is_the_sampler_on_the_guided_field(tiny):
    net, seeds = tiny(), range(20, 26)
    field = GuidedField(
        net, torch.tensor([s % 3 for s in seeds]), [noise_awareness(0.5), classifier_free(1.5)]
    )
    x = last(SAMPLERS["heun"](field, ImageNoise(seeds)((1, 8, 8)), time_grid("heun", 4)))
    out = draw(net, sampler="heun", n_images=6, first_seed=20)
    np.testing.assert_array_equal(out["images"], to_uint8(x).numpy())
    assert out["nfe"] == field.nfe == 3 * 7


def test_arms_share_their_starting_noise_and_differ_in_the_end(tiny):
    net = tiny()
    arms = [draw(net, arm) for arm in (Arm(), Arm(w_nag=1.0), Arm(cfg=2.0), BOTH)]
    for arm in arms[1:]:
        np.testing.assert_array_equal(arm["states"][:, 0], arms[0]["states"][:, 0])
        assert gap(arm, arms[0]) > 1
    assert [int(arm["nfe"]) for arm in arms] == [4, 8, 8, 12]


def test_shapes_types_and_the_last_state(tiny):
    out = draw(tiny())
    assert out["images"].shape == (12, 1, 8, 8) and out["images"].dtype == np.uint8
    assert out["states"].shape == (5, 5, 1, 8, 8) and out["states"].dtype == np.float16
    np.testing.assert_allclose(out["times"], [1, 0.75, 0.5, 0.25, 0])
    final = to_uint8(torch.from_numpy(out["states"][:, -1]).float()).numpy().astype(int)
    assert np.abs(final - out["images"][:5]).max() <= 1 and 0 < out["images"].mean() < 255
    start = ImageNoise(range(5))((1, 8, 8)).half().numpy()
    np.testing.assert_array_equal(out["states"][:, 0], start)


def test_trajectories_can_be_none_or_all(tiny):
    net = tiny()
    assert draw(net, trajectories=0)["states"].shape == (0, 5, 1, 8, 8)
    assert draw(net, trajectories=400, network_batch=9)["states"].shape == (12, 5, 1, 8, 8)


def test_labels_are_balanced():
    assert labels_of(range(30), 10).bincount().tolist() == [3] * 10
    assert labels_of(range(7, 37), 10).bincount().tolist() == [3] * 10
    assert labels_of([12], 10).tolist() == [2]


def test_terms_that_are_off_cost_nothing():
    assert Arm().terms() == []
    assert [t.name for t in BOTH.terms()] == ["nag", "cfg"] and [
        t.weight for t in BOTH.terms()
    ] == [0.5, 0.5]
    assert Arm(w_nag=1.0, nag_interval=(0.1, 0.4)).terms()[0].interval == (0.1, 0.4)


def test_unknown_names_and_impossible_values_are_said():
    with pytest.raises(ValidationError, match="unknown sampler 'dpm': choose one of .*euler.*heun"):
        config(sampler="dpm")
    with pytest.raises(ValidationError, match="w_neg"):
        Arm(w_neg=1.0)
    with pytest.raises(ValidationError, match="n_image"):
        config(n_image=3)
    for name, value in {"steps": 0, "n_images": 0, "first_seed": -1, "network_batch": 0}.items():
        with pytest.raises(ValidationError, match=name):
            config(**{name: value})
    for seed in (2**63, 2**63 - 3, 2**64):
        with pytest.raises(ValidationError, match=r"pass 2\^63 - 1: choose smaller ones"):
            SampleConfig(first_seed=seed, n_images=4)
    assert SampleConfig(first_seed=2**63 - 4, n_images=4).seeds[-1] == 2**63 - 1


def test_an_unknown_precision_is_refused(tiny):
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        draw(tiny(), precision="half")


def test_a_network_that_gives_nan_is_reported_with_advice(tiny):
    net = tiny()
    torch.nn.init.constant_(net.final_layer.linear.bias, float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"NaN or infinity \(seeds 0 to 11\): try precision: fp32"
    ):
        draw(net)


def test_arrays_round_trip(tmp_path, tiny):
    out = draw(tiny())
    save_arrays(tmp_path / "a.npz", out)
    back = load_arrays(tmp_path / "a.npz")
    assert back.keys() == out.keys()
    for key, value in out.items():
        np.testing.assert_array_equal(back[key], value)
        assert back[key].dtype == value.dtype


def test_a_full_disk_is_said_with_advice(tmp_path, tiny_disk):
    with (
        pytest.raises(OSError, match=r"could not write .*a\.npz.*Free some disk space"),
        tiny_disk(),
    ):
        save_arrays(tmp_path / "a.npz", {"x": np.arange(10_000)})
    assert list(tmp_path.iterdir()) == []


def spoiled(tmp_path, kind):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.arange(1000.0)})
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "a flipped bit":
        content[len(content) // 2] ^= 1
    elif kind == "empty":
        content = b""
    elif kind == "web page":
        content = b"<html>404</html>"
    path.write_bytes(content)
    if kind == "objects":
        np.savez(path, x=np.array([{}], dtype=object))
    elif kind == "another archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", "no array")
    elif kind == "one bare array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "web page",
        "objects",
        "another archive",
        "truncated",
        "a flipped bit",
        "one bare array",
    ],
)
def test_arrays_that_cannot_be_read(tmp_path, kind):
    with pytest.raises(
        ValueError, match=r"a\.npz is truncated or no npz file: delete it and run `dvc repro` again"
    ):
        load_arrays(spoiled(tmp_path, kind))


def test_arrays_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no samples at .*a\.npz: run `dvc repro`"):
        load_arrays(tmp_path / "a.npz")


def test_the_protocol_tells_two_experiments_apart():
    records = [
        protocol(arm, settings, sha, "sit")
        for arm, settings, sha in [
            (BOTH, config(), "0"),
            (Arm(), config(), "0"),
            (BOTH, config(steps=5), "0"),
            (BOTH, config(sampler="heun"), "0"),
            (BOTH, config(n_images=11), "0"),
            (BOTH, config(first_seed=1), "0"),
            (BOTH, config(precision="bf16"), "0"),
            (BOTH, config(), "1"),
        ]
    ]
    assert len({json.dumps(r, sort_keys=True) for r in records}) == len(records)
    assert records[0]["seeds"] == [0, 11] and records[0]["guidance"]["w_nag"] == 0.5


def test_domain_guidance_needs_its_network_and_defaults_stay_out_of_protocols(tiny):
    with pytest.raises(
        ValueError, match="Domain Guidance of scale 1.5 needs the pre-trained network"
    ):
        Arm(dog=1.5).terms()
    other = tiny()
    terms = Arm(w_nag=0.5, cfg=1.5, dog=2.0, cfg_channels=3).terms(pretrained=other)
    assert [(term.name, term.weight, term.channels) for term in terms] == [
        ("nag", 0.5, None),
        ("cfg", 0.5, 3),
        ("dog", 1.0, 3),
    ]
    assert terms[2].net is other and terms[2].drop_class and terms[0].net is None
    assert Arm(w_nag=0.5).terms(unaware=other)[0].net is other
    assert set(Arm().model_dump()) == {"w_nag", "cfg", "nag_interval", "cfg_interval"}


def test_only_some_states_are_kept_and_latents_are_decoded(tiny, on_cpu):
    net, seen = tiny(), []

    def decode(z):
        seen.append(z.clone())
        return -z

    def run(**changes):
        c = SampleConfig(
            sampler="euler",
            steps=7,
            n_images=5,
            trajectories=3,
            network_batch=4,
            precision="fp32",
            compile=False,
            **changes,
        )
        return sample(net, [], c, progress=False, decode=decode if changes else None)

    whole, some = run(), run(states_every=3)
    assert some["times"].tolist() == whole["times"][[0, 3, 6, 7]].tolist()
    assert (some["states"] == whole["states"][:, [0, 3, 6, 7]]).all()
    assert (
        torch.cat(seen).shape == (5, 1, 8, 8)
        and (some["images"] == to_uint8(-torch.cat(seen)).numpy()).all()
    )


def killed_after(count):
    """Euler's sampler that is interrupted in its batch number `count`, and the batches it began."""
    begun = []

    def solver(field, x, times, noise, path):
        begun.append(len(x))
        for k, state in enumerate(SAMPLERS["euler_maruyama"](field, x, times, noise, path)):
            if len(begun) > count and k == 2:
                raise KeyboardInterrupt
            yield state

    return solver, begun


@pytest.mark.parametrize("trajectories", [0, 5, 30])
def test_a_killed_run_goes_on_from_its_last_batch_with_the_same_images(
    tiny, tmp_path, trajectories
):
    net, keep = tiny(), tmp_path / "a key"
    c = config(sampler="sde", network_batch=9, trajectories=trajectories)  # 3 images a batch

    def run(solver, keep=keep):
        return sample(net, BOTH.terms(), c, progress=False, solver=solver, keep=keep)

    unbroken = run(killed_after(9)[0], keep=None)
    with pytest.raises(KeyboardInterrupt):
        run(killed_after(2)[0])
    assert sorted(path.name for path in keep.iterdir()) == ["00000000.npz", "00000003.npz"]
    solver, begun = killed_after(9)
    resumed = run(solver)
    assert begun == [3, 3] and resumed.keys() == unbroken.keys()
    for name in resumed.keys() - {"seconds"}:
        assert resumed[name].dtype == unbroken[name].dtype
        np.testing.assert_array_equal(resumed[name], unbroken[name])
    forget(keep, c)
    assert not keep.exists()


def test_a_batch_of_other_seeds_or_key_or_damaged_is_made_again(tiny, tmp_path):
    net, keep, c = tiny(), tmp_path / "key", config(network_batch=12)

    def run(c=c, keep=keep):
        solver, begun = killed_after(99)
        return sample(net, [], c, progress=False, solver=solver, keep=keep), len(begun)

    whole, made = run(config(network_batch=5))
    assert made == 3 and run(config(network_batch=5))[1] == 0
    assert run()[1] == 1 and run()[1] == 0  # the first batch had other seeds
    path = keep / "00000000.npz"
    content = path.read_bytes()
    for damaged in (b"", content[:-9], content[:3000] + b"wrong" + content[3005:]):
        path.write_bytes(damaged)
        again, made = run()
        assert made == 1 and (again["images"] == run()[0]["images"]).all()
    keep.rename(tmp_path / "other")
    assert run(keep=tmp_path / "other")[1] == 1


def test_batches_of_other_seeds_are_not_forgotten(tiny, tmp_path):
    net, keep = tiny(), tmp_path / "key"
    first, second = config(n_images=4), config(n_images=4, first_seed=4)
    for c in (first, second):
        sample(net, [], c, progress=False, keep=keep)
    forget(keep, first)
    assert [path.name for path in keep.iterdir()] == ["00000004.npz"]
    forget(keep, second, alone=False)  # another process may be about to write there
    assert keep.is_dir() and not list(keep.iterdir())
    forget(keep, second)
    forget(keep, second)
    assert not keep.exists()


def test_batches_are_kept_in_build_under_their_key():
    assert batches("abc") == BUILD / "batches" / "abc"
    assert not finished(batches("abc") / "00000000.npz", config(), "abc")


@pytest.mark.parametrize("size", [5, 12, 50])
def test_parts_have_every_seed_once_and_states_of_the_first_images(size):
    c = config(first_seed=7, trajectories=30)
    parts = c.parts(size)
    assert [seed for part in parts for seed in part.seeds] == list(c.seeds)
    assert [part.trajectories for part in parts] == [part.n_images for part in parts]
    assert sum(part.trajectories for part in config(trajectories=7).parts(size)) == 7
