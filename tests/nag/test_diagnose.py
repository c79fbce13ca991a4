"""The diagnosis finds no shift in an exact model, the planted one in a wrong model, and every
scheduler's own noise levels.
"""

from functools import partial
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from nag import ddpm, toy
from nag.diagnose import (
    SCHEDULERS,
    measure_shift,
    scheduler_levels,
    scheduler_shift,
    scheduler_states,
)
from nag.estimator import NoiseEstimator, posterior
from nag.interpolant import coefficients
from nag.samplers.one_step import ddim, euler_maruyama, heun
from nag.samplers.time_grids import uniform
from nag.shift import estimated_times, forward_states, noise_shift
from nag.support.rng import ImageNoise, generator

MEAN, STD = 0.3, 0.5  # of Gaussian data
BLACK = torch.zeros(
    150, 1, 12, 12
)  # of these images x_t = sigma_t eps, so the noise level is the root mean square
EDM = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]
VP = [name for name, kind in SCHEDULERS.items() if kind != "flow" and name not in EDM]
ORDINARY = [name for name in VP if name not in ("HeunDiscreteScheduler", "LCMScheduler")]


def rms(x):
    return x.square().mean((1, 2, 3)).sqrt()


def make(name, **settings):
    if SCHEDULERS[name] in ("table", "stride"):
        settings = {"clip_sample": False} | settings
    if name in VP:
        settings = {"timestep_spacing": "trailing"} | settings
    return getattr(diffusers, name)(**settings)


def perfect(scheduler, mean=MEAN, std=STD):
    """What a perfect network says of Gaussian data: eps, or v for flow matching, from the timestep
    that it is told.
    """

    def call(x, timestep):
        if hasattr(scheduler, "alphas_cumprod"):
            alpha_bar = scheduler.alphas_cumprod[int(timestep)]
            alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        else:
            alpha, sigma = 1 - timestep / 1000, timestep / 1000
        pull = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        eps, x0 = sigma * pull, mean + alpha * std**2 * pull
        return eps if hasattr(scheduler, "alphas_cumprod") else eps - x0

    return call


# any field


def test_an_exact_field_has_no_shift_beyond_its_interval():
    data, prior, times = (
        toy.ring(16, spread=0.3, floor=0.15),
        toy.time_prior(nodes=48),
        uniform(40, 0.99, 0.01),
    )
    control = forward_states(toy.sample(data, 200, generator(1)).float().view(200, 1, 1, 16), times)
    found = measure_shift(
        lambda x, t: toy.velocity(data, x.flatten(1), t).view_as(x),
        control,
        times,
        lambda x: toy.posterior_mean(data, x.flatten(1), prior),
        sampler=heun,
        n=150,
    )
    assert (np.abs(found["delta"]["value"]) < 4 * found["draws"].std(0)).all()
    assert (
        found["late"]["low"] < 0 < found["late"]["high"]
        and found["late"]["high"] - found["late"]["low"] < 0.02
    )
    np.testing.assert_array_equal(found["times"], times.numpy())
    assert (found["n"], found["n_control"]) == (150, 200)


@pytest.mark.parametrize("error", [0.05, 0.15])
def test_a_planted_error_is_found_as_the_shift_of_statement_1(error):
    """The velocity of data blurred by N(0, error^2) makes states of variance t^2 + error^2, up to
    that of the start.
    """
    times = uniform(60)
    found = measure_shift(
        lambda x, t: x * t / (t**2 + error**2),
        forward_states(BLACK, times),
        times,
        rms,
        sampler=heun,
    )
    t = times.numpy()
    statement = np.sqrt(t**2 + error**2) - t
    exact = np.sqrt((t**2 + error**2) / (1 + error**2)) - t
    assert (
        np.abs(found["delta"]["value"] - exact) < 0.03 * t + 0.05 * error
    ).all()  # the mean rms has a relative sd of 0.5 %
    late = (t > 0) & (t < 0.21)
    assert found["late"]["value"] == pytest.approx(statement[late].mean(), abs=0.003)
    assert 0 < found["late"]["low"] < exact[late].mean() < found["late"]["high"]


@pytest.mark.parametrize("kind", ["eps", "x0", "score"])
def test_what_the_field_predicts_does_not_matter(kind):
    data, times = toy.ring(16, path="ddpm"), uniform(14)
    control = forward_states(torch.zeros(20, 1, 4, 4), times, "ddpm")
    settings = dict(path="ddpm", resamples=10)

    def shift(kind):
        return measure_shift(
            lambda x, t: toy.predict(data, x.flatten(1), t, kind).view_as(x),
            control,
            times,
            rms,
            prediction=kind,
            **settings,
        )["delta"]["value"]

    np.testing.assert_allclose(shift(kind), shift("v"), atol=1e-6)


def test_neither_measurement_depends_on_the_batch():
    times, scheduler = uniform(8), make("DDPMScheduler")
    control, images = forward_states(BLACK[:12], times), MEAN + STD * torch.randn(12, 1, 6, 6)
    for measure in (
        partial(
            measure_shift,
            lambda x, t: x / t,
            control,
            times,
            rms,
            sampler=euler_maruyama,
            first_seed=3,
        ),
        partial(scheduler_shift, perfect(scheduler), scheduler, images, rms, 14, first_seed=3),
    ):
        whole, parts = (measure(batch=batch, resamples=10) for batch in (12, 5))
        np.testing.assert_allclose(parts["draws"], whole["draws"], atol=1e-6)
        fewer = measure(n=7, batch=3, resamples=10)
        assert (fewer["n"], fewer["n_control"]) == (7, 12)


# diffusers' schedulers


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_levels_are_the_timesteps_and_then_the_data(name, spacing):
    scheduler = make(name, beta_start=1e-4, beta_end=0.02, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    times, factor = scheduler_levels(scheduler)
    assert times.shape == factor.shape == (21,) and times.dtype == torch.float64
    np.testing.assert_allclose(times[:-1], (scheduler.timesteps.numpy() + 1) / 1000, atol=1e-5)
    assert times[-1] == 0
    if SCHEDULERS[name] != "ve":
        np.testing.assert_allclose(factor, 1, atol=1e-4)


def test_flow_matching_counts_as_this_project_does():
    scheduler = make("FlowMatchEulerDiscreteScheduler")
    scheduler.set_timesteps(7)
    times, factor = scheduler_levels(scheduler, "linear")
    np.testing.assert_allclose(times, [*np.linspace(1, 0.001, 7), 0], atol=1e-5)
    np.testing.assert_allclose(factor, 1, atol=1e-4)


def test_flow_levels_of_a_shifted_grid_and_of_a_general_solver():
    call = perfect(shifted := make("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True))
    _, times = scheduler_states(call, shifted, torch.randn(2, 1, 4, 4), 5, "linear", mu=1.0)
    t = np.linspace(1, 0.001, 5)
    np.testing.assert_allclose(times, [*(np.e / (np.e + 1 / t - 1)), 0], atol=1e-5)
    solver = make(
        "DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    solver.set_timesteps(8)
    times, factor = scheduler_levels(solver, "linear")
    np.testing.assert_allclose(
        times[:-1], solver.timesteps / 1000, atol=1e-3
    )  # its timesteps are whole numbers
    np.testing.assert_allclose(factor, 1, atol=1e-4)


def test_heun_takes_two_calls_a_step_and_gives_the_state_after_the_second():
    scheduler = make("HeunDiscreteScheduler", beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(10)
    times, factor = scheduler_levels(scheduler)
    np.testing.assert_allclose(times, [*np.arange(1, 0, -0.1), 0], atol=1e-5)
    assert factor.shape == (11,) and len(scheduler.timesteps) == 19
    states, _ = scheduler_states(perfect(scheduler), scheduler, torch.randn(2, 1, 4, 4), 10)
    assert states.shape == (2, 11, 1, 4, 4)


@pytest.mark.parametrize("name", EDM)
def test_a_perfect_edm_network_makes_forward_states(name):
    """EDM's network says F of c_in x, with x_0 = c_skip x + c_out F (Karras et al., 2022)."""
    scheduler = make(name)

    def call(scaled, timestep):
        sigma, s = (4 * timestep).exp(), scheduler.config.sigma_data
        x = scaled * (sigma**2 + s**2).sqrt()
        x0 = MEAN + STD**2 * (x - MEAN) / (STD**2 + sigma**2)
        skip, out = s**2 / (sigma**2 + s**2), sigma * s / (sigma**2 + s**2).sqrt()
        return (x0 - skip * x) / out

    noise = torch.randn(300, 1, 8, 8, generator=generator(1))
    states, times = scheduler_states(call, scheduler, noise, 100, "linear")
    sigma = scheduler.sigmas.double()
    torch.testing.assert_close(times, sigma / (1 + sigma), atol=1e-5, rtol=0)
    c, flat = coefficients("linear", times, times), states.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(flat.mean(1), c.alpha * MEAN, atol=0.04, rtol=0)
    std = (c.alpha**2 * STD**2 + c.sigma**2).sqrt()
    torch.testing.assert_close(flat.std(1), std, atol=0, rtol=0.04)


def test_lcm_noises_its_estimate_again_at_every_level():
    scheduler = make("LCMScheduler", beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(4)
    times, _ = scheduler_levels(scheduler)
    np.testing.assert_allclose(times, [*(scheduler.timesteps + 1) / 1000, 0], atol=1e-5)
    noise = ImageNoise(range(100))
    x = noise((1, 8, 8))
    states, _ = scheduler_states(perfect(scheduler, 0, 0), scheduler, x, 4, generator=noise.streams)
    std = states.transpose(0, 1).flatten(1).std(1).double()
    sigma = coefficients("ddpm", times, times).sigma
    torch.testing.assert_close(std, sigma, rtol=0.03, atol=2e-3)


def test_a_last_step_that_does_not_reach_the_data_is_at_its_own_level():
    kept = make("DDIMScheduler", set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")
    kept.set_timesteps(
        20
    )  # Stable Diffusion's settings: the last timestep is 1, the last step lands at level 0
    assert scheduler_levels(kept)[0][-2:].tolist() == [0.002, 0.001]
    uneven = make("DDIMScheduler")
    uneven.set_timesteps(7)  # timesteps end at 142, and DDIM's stride is 1000 // 7 = 142
    assert scheduler_levels(uneven)[0][-2:].tolist() == [0.143, 0.001]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *((name, "ddpm") for name in [*ORDINARY, "HeunDiscreteScheduler"]),
        ("FlowMatchEulerDiscreteScheduler", "linear"),
        ("FlowMatchEulerDiscreteScheduler", "cosine"),
        ("DDIMScheduler", "linear"),
        ("EulerDiscreteScheduler", "linear"),
    ],
)
def test_a_perfect_network_makes_forward_states_at_those_levels(name, path):
    """Mean and variance of every state are those of the path at its level, whatever the scheduler
    scales states by.
    """
    settings = {} if SCHEDULERS[name] == "flow" else {"beta_start": 1e-4, "beta_end": 0.02}
    scheduler, noise = make(name, **settings), ImageNoise(range(40))
    states, times = scheduler_states(
        perfect(scheduler), scheduler, noise((1, 16, 16)), 500, path, noise.streams
    )
    assert states.shape == (40, 501, 1, 16, 16)
    c = coefficients(path, times, times)
    on = (times > 0.02) & (
        times < 0.98
    )  # the last steps are too coarse for a solver of first order
    flat = states.transpose(0, 1).flatten(1).double()
    assert on.sum() > 250
    torch.testing.assert_close(flat.mean(1)[on], (c.alpha * MEAN)[on], atol=0.04, rtol=0)
    torch.testing.assert_close(
        flat.std(1)[on], (c.alpha**2 * STD**2 + c.sigma**2).sqrt()[on], atol=0, rtol=0.03
    )


def test_the_ddim_loop_is_the_ddim_formula():
    scheduler = make("DDIMScheduler")
    call, x = perfect(scheduler), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    states, times = scheduler_states(call, scheduler, x, 20)
    data = toy.mixture(torch.ones(1), torch.full((1, 16), MEAN), torch.full((1,), STD**2), "ddpm")
    ours = [
        y for y, _ in ddim(lambda y, t: toy.velocity(data, y.flatten(1), t).view_as(y), x, times)
    ]
    torch.testing.assert_close(states, torch.stack(ours, 1), atol=1e-4, rtol=1e-4)
    for k, (t, s) in enumerate(pairwise(times.tolist())):
        now, then = coefficients("ddpm", t, x), coefficients("ddpm", s, x)
        eps = call(states[:, k], round(1000 * t) - 1)
        step = then.alpha * (states[:, k] - now.sigma * eps) / now.alpha + then.sigma * eps
        torch.testing.assert_close(states[:, k + 1], step, atol=1e-4, rtol=1e-4)


def test_the_ddpm_loop_draws_from_the_posterior_with_each_images_own_noise():
    scheduler, noise, again = (
        make("DDPMScheduler"),
        ImageNoise(range(5, 8)),
        ImageNoise(range(5, 8)),
    )
    call, shape = perfect(scheduler), (1, 4, 4)
    states, times = scheduler_states(call, scheduler, noise(shape), 10, generator=noise.streams)
    x = again(shape)
    for k, (t, s) in enumerate(pairwise(times.tolist())):
        torch.testing.assert_close(states[:, k], x, atol=1e-4, rtol=1e-4)
        c = coefficients("ddpm", t, x)
        x0 = (x - c.sigma * call(x, round(1000 * t) - 1)) / c.alpha
        a, b, variance, _ = (v.float() for v in ddpm.posterior(t, s, x))
        x = a * x0 + b * x + variance.sqrt() * again(shape)
    torch.testing.assert_close(states[:, -1], x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_a_grid_that_ddim_does_not_land_on_is_seen_as_a_shift(spacing):
    """DDIM steps by 1000 // steps timesteps even where its grid does not (diffusers issue 12633): a
    shift with no network.
    """
    scheduler = make("DDIMScheduler", timestep_spacing=spacing)
    found = scheduler_shift(perfect(scheduler, 0, 0), scheduler, BLACK, rms, 20)
    sigma = (1 - scheduler.alphas_cumprod.double()).sqrt()
    told, actual = scheduler.timesteps.tolist(), [sigma[scheduler.timesteps[0]].item()]
    for t in told[:-1]:  # eps = x / sigma of the level told, put back at the level where DDIM lands
        actual.append(actual[-1] * (sigma[max(t - 50, 0)] / sigma[t]).item())
    truth = np.array(actual) - sigma[told].numpy()
    np.testing.assert_allclose(
        found["delta"]["value"][:-1], truth, atol=4 * (2 / (2 * 144 * 150)) ** 0.5
    )
    if spacing == "leading":
        assert np.abs(truth).max() < 1e-12 and found["late"]["low"] < 0 < found["late"]["high"]
    else:
        assert found["late"]["low"] > 0.005


def test_an_object_with_a_sample_is_as_good_as_a_tensor():
    scheduler = make("DDIMScheduler")
    call, x = perfect(scheduler), torch.randn(2, 1, 4, 4)
    wrapped = scheduler_states(lambda x, t: Transformer2DModelOutput(call(x, t)), scheduler, x, 5)
    assert torch.equal(wrapped[0], scheduler_states(call, scheduler, x, 5)[0])


# refusals


def test_an_unsupported_scheduler_is_refused_by_name():
    with pytest.raises(
        ValueError,
        match=r"levels of PNDMScheduler are not known here: record .*recorder.record, or use",
    ):
        scheduler_states(lambda x, t: x, diffusers.PNDMScheduler(), torch.zeros(1, 1, 4, 4), 5)


def test_levels_that_rise_or_repeat_and_unknown_paths_are_refused():
    scheduler = make("FlowMatchEulerDiscreteScheduler", invert_sigmas=True)
    scheduler.set_timesteps(5)
    with pytest.raises(
        ValueError, match="noise of this FlowMatchEulerDiscreteScheduler rises from step to step"
    ):
        scheduler_levels(scheduler, "linear")
    with pytest.raises(ValueError, match="unknown path 'edm': choose one of"):
        scheduler_levels(scheduler, "edm")
    for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        many = make(name, num_train_timesteps=10)
        many.set_timesteps(20)
        with pytest.raises(ValueError, match=f"this {name} takes a timestep twice: use fewer"):
            scheduler_levels(many)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_first_timestep_that_comes_twice_is_no_reason_to_begin_at_the_second(name):
    """Karras' levels, rounded to whole timesteps, repeat them."""
    scheduler = make(name, use_karras_sigmas=True, num_train_timesteps=10)
    scheduler.set_timesteps(100)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    states, times = scheduler_states(
        perfect(scheduler, 0, 0), scheduler, torch.randn(2, 1, 4, 4), 100
    )
    assert states.shape[1] == len(times) and torch.isfinite(states).all()


SHIFTS = {
    "field": lambda control, times, **more: measure_shift(
        lambda x, t: x / t, control, times, rms, resamples=10, **more
    ),
    "levels": lambda control, times, **more: noise_shift(
        np.asarray(estimated_times(rms, control)),
        np.asarray(estimated_times(rms, control)),
        np.asarray(times),
        10,
    ),
}


@pytest.mark.parametrize("measure", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize(
    "times",
    [
        torch.linspace(0, 1, 11),
        torch.linspace(999, 0, 11),
        torch.tensor([1, 0.5, 0.5, 0.1, 0]),
        torch.tensor([1, 0.5, torch.nan, 0.1, 0]),
    ],
    ids=["of SiT", "timesteps", "repeated", "NaN"],
)
def test_times_that_do_not_fall_are_refused(measure, times):
    control = forward_states(BLACK[:3], uniform(len(times) - 1))
    with pytest.raises(ValueError, match=r"times must fall from noise.*1 - t of times in SiT's"):
        measure(control, times)


@pytest.mark.parametrize("measure", SHIFTS.values(), ids=SHIFTS)
def test_states_with_nan_and_a_single_image_are_refused(measure):
    times = uniform(10)
    control = forward_states(BLACK[:3], times)
    with pytest.raises(ValueError, match="1 sampled and 1 real images: .* at least 2 of each"):
        measure(control[:1], times)
    for bad in (torch.nan, torch.inf):
        spoiled = control.clone()
        spoiled[2, 4, 0, 0, 0] = bad
        with pytest.raises(FloatingPointError, match="1 of 3 images have states with NaN or inf"):
            measure(spoiled, times)


def test_all_of_that_is_refused_before_anything_is_sampled():
    def never(*_):
        raise AssertionError("sampled")

    scheduler, times = make("DDIMScheduler"), uniform(10)
    control = forward_states(BLACK[:3], times)
    with pytest.raises(ValueError, match="1 sampled and 3 real"):
        measure_shift(never, control, times, rms, n=1)
    with pytest.raises(ValueError, match="0 sampled and 3 real"):
        scheduler_shift(never, scheduler, BLACK[:3], rms, 14, n=0)
    with pytest.raises(ValueError, match="1 resamples"):
        measure_shift(never, control, times, rms, resamples=1)
    with pytest.raises(ValueError, match="a batch of 0 images"):
        scheduler_shift(never, scheduler, BLACK[:3], rms, 14, batch=0)
    with pytest.raises(ValueError, match="no time in"):
        scheduler_shift(never, scheduler, BLACK[:3], rms, 2)
    with pytest.raises(ValueError, match=r"images are torch.uint8 of shape \(3, 1, 12, 12\)"):
        scheduler_shift(never, scheduler, BLACK[:3].byte(), rms, 14)
    spoiled = BLACK[:3].clone()
    spoiled[1, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="1 of 3 images"):
        scheduler_shift(never, scheduler, spoiled, rms, 14)


def test_a_control_of_other_times_and_a_field_that_cannot_begin_at_noise_are_refused():
    control = forward_states(BLACK[:3], uniform(10))
    with pytest.raises(
        ValueError, match=r"shape \(3, 11, 1, 12, 12\): give forward states .*the K = 6 times"
    ):
        measure_shift(lambda x, t: x, control, uniform(5), rms)
    for kind in ("eps", "score"):
        with pytest.raises(ValueError, match=r"nothing of x_0 at t = 1.*begin the grid below 1"):
            measure_shift(lambda x, t: x, control, uniform(10), rms, prediction=kind)


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda x: 1 - rms(x), "counts from noise to data.*give 1 minus its level"),
        (lambda x: 1000 * rms(x), "reads levels of 0 to .*while t goes from 0 to 1"),
        (lambda x: rms(x).mean(), r"the estimator made \(\) of 33 states"),
        (lambda x: torch.stack([rms(x)] * 2, 1), r"the estimator made \(33, 2\) of 33 states"),
        (lambda x: rms(x).numpy(), "the estimator made ndarray of 33 states"),
        (partial(posterior, NoiseEstimator()), "made TransformedDistribution of 33 states"),
    ],
)
def test_an_estimator_that_counts_in_another_way_is_refused(read, says):
    """Otherwise the shift would have the other sign, or a thousand times its size."""
    with pytest.raises(ValueError, match=says):
        measure_shift(lambda x, t: x, forward_states(BLACK[:3], uniform(10)), uniform(10), read)
    with pytest.raises(ValueError, match=says.replace("33", "45")):
        scheduler_shift(lambda x, t: x, make("DDIMScheduler"), BLACK[:3], read, 14)


def test_a_control_of_rising_times_or_of_bytes_is_refused():
    control = forward_states(BLACK[:3], uniform(10))
    with pytest.raises(ValueError, match="or the control is of other times"):
        measure_shift(lambda x, t: x, control.flip(1), uniform(10), rms)
    with pytest.raises(ValueError, match=r"the control is torch.uint8 of shape"):
        measure_shift(lambda x, t: x, control.byte(), uniform(10), rms)
    for path in ("Linear", "vE"):
        with pytest.raises(ValueError, match=f"unknown path '{path}': choose one of"):
            measure_shift(lambda x, t: x, control, uniform(10), rms, path=path)


def test_arrays_and_a_samplers_name_are_as_good():
    control, times = forward_states(BLACK[:8], uniform(10)), uniform(10)
    plain = measure_shift(lambda x, t: x, control, times, rms, sampler=heun)
    same = measure_shift(lambda x, t: x, control.numpy(), times.tolist(), rms, sampler="heun")
    assert plain["late"] == same["late"]
    pixels = scheduler_shift(perfect(s := make("DDIMScheduler")), s, BLACK[:8], rms, 14)
    again = scheduler_shift(perfect(s), s, BLACK[:8].numpy(), rms, 14)
    assert pixels["late"] == again["late"]


# what a model may return

RETURNS = {
    "a tensor": lambda out: out,
    "an object": Transformer2DModelOutput,
    "a tuple": lambda out: (out,),
    "twice the channels": lambda out: torch.cat([out, out + 5], 1),
    "an object of twice the channels": lambda out: Transformer2DModelOutput(
        torch.cat([out, out - 5], 1)
    ),
}


@pytest.mark.parametrize("form", RETURNS.values(), ids=RETURNS)
def test_what_a_model_returns_may_have_any_usual_form(form):
    times, scheduler = uniform(10), make("DDIMScheduler")
    control, call = forward_states(BLACK[:3], times), perfect(scheduler)
    for measure in (
        lambda form: measure_shift(
            lambda x, t: form(x / (t + 0.1)), control, times, rms, resamples=10
        ),
        lambda form: scheduler_shift(
            lambda x, t: form(call(x, t)), scheduler, BLACK[:3], rms, 14, resamples=10
        ),
    ):
        plain = measure(RETURNS["a tensor"])["delta"]["value"]
        np.testing.assert_array_equal(measure(form)["delta"]["value"], plain)


def test_ddpm_gets_a_learned_variance_and_others_do_not():
    learned = make("DDPMScheduler", variance_type="learned_range")
    call, x = perfect(learned), torch.randn(2, 1, 4, 4)

    def both(x, t):
        return torch.cat([call(x, t), torch.ones_like(x)], 1)  # the upper end: beta's variance

    large = make("DDPMScheduler", variance_type="fixed_large")
    ours, theirs = (
        scheduler_states(both, s, x, 10, generator=generator(3))[0] for s in (learned, large)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_scheduler_without_steps_is_refused(name):
    with pytest.raises(ValueError, match=f"this {name} has no steps yet: call its set_timesteps"):
        scheduler_levels(make(name))


def test_a_learned_variance_that_is_not_there_is_named():
    learned = make("DDPMScheduler", variance_type="learned_range")
    with pytest.raises(ValueError, match="DDPMScheduler wants a learned variance"):
        scheduler_states(perfect(learned), learned, torch.randn(2, 1, 4, 4), 10)


@pytest.mark.parametrize("out", [None, "x", torch.zeros(2, 3, 4, 4), torch.zeros(1, 1, 4, 4)])
def test_anything_else_is_refused(out):
    scheduler = make("DDIMScheduler")
    with pytest.raises(ValueError, match="it must return a tensor of that shape, or with twice"):
        scheduler_states(lambda x, t: out, scheduler, torch.zeros(2, 1, 4, 4), 5)
