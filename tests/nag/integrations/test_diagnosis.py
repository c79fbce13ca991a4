"""A planted shift is found, of size and sign, and what was found can be kept and read again."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from nag.integrations import level_estimator
from nag.integrations.callables import record_denoiser, record_field
from nag.integrations.diagnosis import Diagnosis, diagnose
from nag.integrations.level_estimator import LevelEstimator, path_of, train_estimator
from nag.integrations.recorder import Recording, record
from nag.train import TrainState, fit

GEN = torch.Generator().manual_seed(0)
IMAGES = torch.zeros(60, 1, 16, 16)  # so that a state shows its sigma exactly
TIMES = [1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0]


def sigma_of(x):
    """The estimator of black images on the linear path: the standard deviation is t."""
    return x.flatten(1).std(1)


def planted(extra):
    eps = torch.randn(60, 1, 16, 16, generator=GEN)
    states = torch.stack([(t + extra * (0 < t < 1)) * eps for t in TIMES], dim=1)
    return Recording.of(states, [(1 - t, t) for t in TIMES])


@pytest.mark.parametrize("extra", [0.02, 0.0, -0.02])
def test_a_planted_shift_is_found(extra):
    found = diagnose(planted(extra), sigma_of, IMAGES, "linear")
    assert found.late["value"] == pytest.approx(extra, abs=0.004)
    assert found.late["low"] <= extra <= found.late["high"]
    said = {0.02: "more noise", 0.0: "no noise shift", -0.02: "less noise"}[extra]
    assert said in found.summary()


def test_own_samples_as_control_are_named():
    found = diagnose(planted(0.02), sigma_of, path="linear")
    assert found.own_samples and "own samples" in found.summary()
    assert found.late["value"] == pytest.approx(0.02, abs=0.004)  # these samples hold no noise


def test_it_is_kept_and_drawn(tmp_path):
    found = diagnose(planted(0.02), sigma_of, IMAGES, "linear")
    found.save(tmp_path / "shift.json")
    assert Diagnosis.load(tmp_path / "shift.json") == found
    found.plot().savefig(tmp_path / "shift.png")
    line = found.plot().axes[0].lines[-1]
    assert sorted(line.get_ydata()) == sorted(found.delta["value"])


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="encode them first"):
        diagnose(planted(0), sigma_of, torch.zeros(4, 3, 8, 8), "linear")
    with pytest.raises(ValueError, match="give path="):
        diagnose(planted(0), sigma_of, IMAGES)
    broken = planted(0)
    broken.runs[0][0, 1] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        diagnose(broken, sigma_of, IMAGES, "linear")


def test_the_path_is_that_of_the_scheduler():
    assert path_of(DDIMScheduler()) == "ddpm"
    assert path_of(SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler())) == "linear"
    with pytest.raises(ValueError, match="unknown path"):
        path_of("spiral")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    file = tmp_path_factory.mktemp("estimator") / "own.safetensors"
    gen = torch.Generator().manual_seed(3)
    images = torch.rand(100, 1, 1, 1, generator=gen) * torch.ones(1, 1, 8, 8)
    return train_estimator(images, "linear", file, images_seen=25_600, width=8), file, images


def test_an_estimator_is_trained_calibrated_and_saved_in_one_call(trained):
    estimator, file, images = trained
    for t in (0.1, 0.5, 0.8):
        x = (1 - t) * images + t * torch.randn(images.shape, generator=GEN)
        assert estimator(x).mean().item() == pytest.approx(t, abs=0.05)
    assert estimator.coverage_error < 0.25
    again = LevelEstimator.load(file)
    assert again.path == "linear" and again.calibration == estimator.calibration
    assert torch.equal(again(images), estimator(images))
    assert [p.name for p in file.parent.iterdir()] == ["own.safetensors"]


def test_a_stopped_estimator_goes_on_with_the_same_images_and_path_only(tmp_path, monkeypatch):
    file, images = tmp_path / "own.safetensors", torch.rand(20, 1, 8, 8, generator=GEN)
    steps = []

    def stopped(*args):
        for line in fit(*args, log_every=1, save_steps=1):
            steps.append(line["step"])
            if len(steps) == 2:
                raise KeyboardInterrupt

    def first_step(images, path):
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            train_estimator(images, path, file, images_seen=1280, width=8)
        return steps[0]

    monkeypatch.setattr(level_estimator, "train", stopped)
    assert first_step(images, "linear") == 1
    assert first_step(images + 1, "linear") == 1 and first_step(images, "ddpm") == 1
    monkeypatch.undo()
    goes_on = []
    monkeypatch.setattr(TrainState, "load", lambda self: goes_on.append(self.path))
    train_estimator(images, "linear", file, images_seen=1280, width=8)
    assert len(goes_on) == 1 and [p.name for p in tmp_path.iterdir()] == ["own.safetensors"]


def test_images_of_bytes_are_refused(tmp_path):
    pixels = torch.zeros(20, 1, 16, 16, dtype=torch.uint8)
    for measure in (
        lambda: diagnose(planted(0.1), sigma_of, pixels, "linear"),
        lambda: train_estimator(pixels, file=tmp_path / "a"),
    ):
        with pytest.raises(ValueError, match="images are torch.uint8: give floats"):
            measure()


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 10"):
        train_estimator(torch.zeros(4, 1, 8, 8), file=tmp_path / "a")


def exact(x, sigma):
    """The denoiser of black images: everything is noise."""
    return torch.zeros_like(x)


def test_a_denoiser_is_recorded_at_its_levels():
    sigmas = [9.0, 4.0, 1.5, 0.7, 0.25, 0.1, 0.0]
    found = diagnose(record_denoiser(exact, (1, 16, 16), sigmas, 60), sigma_of, IMAGES, "linear")
    assert found.times == pytest.approx([s / (1 + s) for s in sigmas], abs=1e-5)
    assert abs(found.late["value"]) < 0.004
    with pytest.raises(ValueError, match="must fall"):
        record_denoiser(exact, (1, 4, 4), [0.1, 1.0], 2)


@pytest.mark.parametrize("data_at", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_a_field_is_recorded_in_either_direction_of_time(data_at, prediction):
    def field(x, t):
        level = (t - data_at).abs().view(-1, 1, 1, 1)
        eps = x / level
        v = -eps if data_at else eps  # of black images, in the field's own time
        return {"v": v, "eps": eps, "x0": torch.zeros_like(x)}[prediction]

    times = [abs(t - data_at) for t in (0.95, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0)]
    recording = record_field(
        field, (1, 16, 16), times, 60, prediction=prediction, data_at=data_at, batch=25
    )
    found = diagnose(recording, sigma_of, IMAGES, "linear")
    assert found.times == pytest.approx([0.95, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0], abs=1e-5)
    assert abs(found.late["value"]) < 0.004
    with pytest.raises(ValueError, match="from noise to data"):
        record_field(field, (1, 4, 4), times[::-1], 2, data_at=data_at)


def test_a_scheduler_loop_is_measured_end_to_end():
    """DDIM with exact noise predictions has no shift on its own grid."""
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    with record(scheduler) as recording:
        scheduler.set_timesteps(20)
        eps = torch.randn(60, 1, 16, 16, generator=GEN)
        x = (1 - scheduler.alphas_cumprod[999]).sqrt() * eps
        for t in scheduler.timesteps:
            x = scheduler.step(eps, t, x).prev_sample
    found = diagnose(recording, sigma_of, IMAGES, "linear")
    assert abs(found.late["value"]) < 0.004


def test_states_read_at_once_need_not_be_kept(trained):
    estimator, _, images = trained
    found = []
    for options in ({}, {"estimator": estimator}):
        scheduler = DDIMScheduler(timestep_spacing="trailing")
        with record(scheduler, **options) as recording:
            scheduler.set_timesteps(20)
            x = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
            for t in scheduler.timesteps:
                x = scheduler.step(0.9 * x, t, x).prev_sample
        found.append(diagnose(recording, estimator, images).to_json())
    assert recording.states.shape == (100, 1, 1, 8, 8)
    for name in ("delta", "late", "spread"):
        for key, value in found[0][name].items():
            assert found[1][name][key] == pytest.approx(value, abs=1e-6)
