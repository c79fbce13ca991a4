"""An arm of a study is kept under its key, measured against the right control, and compared on its
own seeds only.
"""

import numpy as np
import pytest
import torch

from companion.experiments import study
from companion.experiments.generate import SampleConfig
from companion.experiments.spaces import Features
from nag.data import fashion_mnist
from nag.guidance import noise_awareness
from nag.interpolant import add_noise
from nag.shift import forward_states
from nag.support.device import best_device, resolve_precision

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture
def counted(monkeypatch):
    """Sampling that is counted, and the mean and spread of an image in place of its features."""
    calls = []
    real = study.sample
    monkeypatch.setattr(study, "sample", lambda *a, **k: calls.append(1) or real(*a, **k))

    def features(images):
        x = torch.from_numpy(images).float().flatten(1)
        return Features(torch.stack([x.mean(1), x.std(1)], 1), x[:, :3])

    monkeypatch.setattr(study.spaces, "features_of", features)
    return calls


def config(**changes):
    return SampleConfig(
        **{
            "sampler": "euler",
            "steps": 3,
            "n_images": 12,
            "trajectories": 5,
            "precision": "fp32",
            "compile": False,
        }
        | changes
    )


def write(path, text):
    path.write_text(text)
    return path


def test_an_arm_is_kept_under_everything_that_decides_it(tiny, tmp_path, counted, capsys):
    net, reader = tiny(), lambda x: x.flatten(1).std(1)
    files = [write(tmp_path / f"{name}.safetensors", name) for name in ("net", "estimator-a")]

    def take(terms=(), reader=reader, **changes):
        settings = {
            "code": changes.pop("code", ()),
            "note": changes.pop("note", ""),
            "weights": files,
            "own": True,
        }
        return study.kept_arm(
            tmp_path / "arms", "a", net, terms, config(**changes), reader=reader, **settings
        )

    first, again = take(), take()
    assert len(counted) == 1 and all(np.array_equal(first[k], again[k]) for k in first)
    assert first["levels"].shape == (5, 4) and first["features"].shape == (12, 2)
    assert first["second"].shape == (12, 3) and len(first["images"]) == 10
    states = study.sample(net, [], config(), progress=False)["states"]
    read = states.astype(np.float32).reshape(5, 4, -1).std(2, ddof=1)
    assert first["levels"] == pytest.approx(read, rel=1e-4)
    assert first["own"].shape == (5, 4)
    assert first["own"][:, -1] == pytest.approx(read[:, -1], rel=1e-4)  # the images themselves
    counted.pop()
    assert capsys.readouterr().out.splitlines()[1] == (
        "a: 3 steps, 3 evaluations per image, 12 images from seed 0, kept"
    )
    take([noise_awareness(1.0)])
    take([noise_awareness(1.0, interval=(0.0, 0.5))])
    take([noise_awareness(lambda t: t)])
    take(first_seed=3)
    take(note="another setting")
    take(code=[study.noise_shift])
    assert take(reader=None)["levels"].shape == (0, 4)
    assert len(counted) == 8 == len(list((tmp_path / "arms").glob("a-????????.npz")))
    write(files[1], "the estimator, trained again")
    take()
    assert len(counted) == 9
    take(precision="auto", first_seed=9)
    take(precision=resolve_precision("auto", best_device()), first_seed=9)
    assert len(counted) == 10  # of "auto" the key has what it means here


def test_an_arm_with_a_reader_names_its_estimator(tiny, tmp_path):
    weights = [write(tmp_path / "net.safetensors", "net")]
    with pytest.raises(ValueError, match="add its file"):
        study.kept_arm(
            tmp_path, "a", tiny(), [], config(), weights=weights, reader=lambda x: x[:, 0, 0, 0]
        )


@pytest.mark.parametrize(
    ("values", "best", "tried"),
    [
        ({1: 3.0, 2: 1.0, 4: 2.0}, 2, {1, 2, 4}),
        ({0.5: 0.6, 1: 0.5, 2: 1.0, 4: 2.0}, 1, {0.5, 1, 2, 4}),
        ({1: 2.0, 2: 1.0, 4: 0.5, 8: 0.4, 16: 0.1}, 16, {1, 2, 4, 8, 16}),
    ],
)
def test_tuning_goes_on_while_the_best_is_at_an_end(values, best, tried):
    """From 1, 2 and 4; two more at most, so that a best at the end of all is named."""
    found = study.tuned([4, 2, 1], lambda w: {"value": values[w], "low": 0.0, "high": 9.0})
    assert (found["w"], found["at_end"]) == (best, best == 16)
    assert {float(w) for w in found["tried"]} == tried


@pytest.mark.parametrize("best", [1.0, 1.3, 5.0])
def test_with_a_budget_every_tuning_tries_as_many(best):
    """Beyond an end while the best is there, then between."""
    found = study.tuned([0.5, 1, 2], lambda w: {"value": abs(np.log(w / best))}, 5)
    assert len(found["tried"]) == 5 and not found["at_end"]
    assert abs(np.log(found["w"] / best)) < 0.35
    assert study.tuned([1], lambda w: {"value": w}, 3)["w"] == 0.5


def test_a_single_candidate_is_not_measured():
    assert study.tuned([3.0], lambda w: 1 / 0) == {"w": 3.0, "at_end": False, "tried": {}}


def test_ratios_need_the_same_seeds():
    rng = np.random.default_rng(0)
    labels = {"labels": np.arange(40) % 4}
    rows = [
        {name: rng.normal(k, 2, (40, 3)).astype(np.float32) for name in ("features", "second")}
        | {"seeds": np.arange(40) + k}
        | labels
        for k in (0, 0, 5)
    ]
    both = torch.from_numpy(rng.normal(size=(60, 3)).astype(np.float32))
    real = Features(both, both)
    same = study.ratio(rows[0], rows[0], real)
    assert same["value"] == same["raw"]["value"] == same["second"]["value"] == pytest.approx(1)
    found = study.ratio(rows[0], rows[1], real)
    assert found["n"] == 40 and found["bias_corrected"]
    first, second = (study.bias_corrected(row, real)["value"] for row in rows[:2])
    assert found["value"] == pytest.approx(first / second)
    assert study.uncorrected(found)["value"] == found["raw"]["value"]
    logs = study.log_distances(rows, real)
    assert logs[:2] == pytest.approx(np.log([first, second]))
    with pytest.raises(ValueError, match="the same ones"):
        study.ratio(rows[0], rows[2], real)


def test_the_control_is_at_each_arms_own_times():
    """Arms that are forward states themselves have no shift; states with more noise have one above
    zero. The level is read from the columns at the sides, which are black in nearly all images.
    """

    def reader(x):
        sides = torch.cat([x[..., :2], x[..., -2:]], -1).flatten(1)
        return (sides - sides.median(1, keepdim=True).values).abs().median(1).values / 0.6745

    real = fashion_mnist.to_float(fashion_mnist.load_fashion_mnist("test")[0][1000:1200])
    rows = {}
    for name, grid, extra in (
        ("few", [1.0, 0.5, 0.1, 0.0], 0.0),
        ("many", [1.0, 0.6, 0.45, 0.15, 0.05, 0.0], 0.0),
        ("noisy", [1.0, 0.5, 0.1, 0.0], 0.02),
    ):
        times = torch.tensor(grid)
        true = [min(1.0, t + extra * (0 < t < 1)) for t in grid]
        states = torch.stack(
            [add_noise(real, torch.randn(real.shape), t, "linear") for t in true], 1
        )
        rows[name] = {"levels": study.estimated_times(reader, states), "times": times.numpy()}
    found = study.shifts(rows, "linear", reader, resamples=200)
    for name in ("few", "many"):
        assert abs(found[name]["late"]["value"]) < 0.002
    assert found["noisy"]["late"]["low"] > 0.01
    assert study.control(rows["few"], "linear", reader, 50).shape == (50, 4)
    assert forward_states(real[:2], torch.tensor([0.5])).shape == (2, 1, 1, 28, 28)


@pytest.mark.slow
def test_exact_forward_states_of_an_arms_own_images_have_no_shift_against_these():
    """However unlike real images they are: here they are paler, which the estimator misreads."""
    real = fashion_mnist.to_float(fashion_mnist.load_fashion_mnist("test")[0][1000:1200])
    reader, times = study.load_reader("linear"), torch.tensor([1.0, 0.6, 0.3, 0.1, 0.05, 0.0])
    states = forward_states(0.5 * real - 0.5, times, "linear", first_seed=5).numpy()
    row = {
        "times": times.numpy(),
        "levels": study.estimated_times(reader, states),
        "own": study.estimated_times(reader, study.own_states(states, times.numpy(), "linear")),
    }
    own = study.own_shifts({"pale": row}, "linear", 200)["pale"]["late"]
    assert own["low"] < 0 < own["high"] and abs(own["value"]) < 0.001
    real_ones = study.shifts({"pale": row}, "linear", reader, 200)["pale"]["late"]
    assert not real_ones["low"] < 0 < real_ones["high"]
