"""The table scheduler x (levels right, states paired right), over all schedulers of diffusers.

An oracle stands for the network: it knows the image x_0, so that the states of a scheduler are
alpha x_0 + sigma noise exactly, and both strengths can be read off the states of the loop itself.
They must be what the recorder says of each, and what it kept must be these states. Some schedulers
also draw fresh noise; their sigma is a standard deviation over 128 x 128 pixels."""

import functools
import math

import diffusers
import pytest
import torch

from nag.integrations.levels import READERS, REFUSED
from nag.integrations.recorder import record

SIDE, STEPS = 128, 10
GEN = torch.Generator().manual_seed(0)
X0 = torch.randint(0, 2, (1, 1, SIDE, SIDE), generator=GEN) * 2.0 - 1
EPS = torch.randn(X0.shape, generator=GEN)
NEEDS_TORCHSDE = {"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"}
ALL = {
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith(("Flax", "SchedulerMixin"))
}


def x0(scheduler, x, scaled, t):
    return X0


def constant_noise(scheduler, x, scaled, t):
    return EPS


def noise_of_scaled(scheduler, x, scaled, t):
    """The network's input x / sqrt(sigma^2 + 1) shows sigma."""
    sigma = ((x / scaled).mean() ** 2 - 1).sqrt()
    return (x - X0) / sigma


def velocity(scheduler, x, scaled, t):
    return (x - X0) / (t / 1000)


def velocity_grid(scheduler, x, scaled, t):
    """A policy's velocities at its ten grid points, side by side in the last axis."""
    return velocity(scheduler, x, scaled, t).repeat(1, 1, 1, scheduler.n_grid)


def data_ward_velocity(scheduler, x, scaled, t):
    return (X0 - x) / (1 - t)


def preconditioned(scheduler, x, scaled, t):
    """EDM's network F of x_0 = c_skip x + c_out F, told log(sigma) / 4."""
    sigma, data = math.exp(4 * t), scheduler.config.sigma_data
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.hypot(sigma, data)
    return (X0 - skip * x) / out


def cosine_preconditioned(scheduler, x, scaled, t):
    """Stable Audio's: told atan(sigma) 2 / pi, F a velocity."""
    sigma, data = math.tan(t * math.pi / 2), scheduler.config.sigma_data
    skip, out = data**2 / (sigma**2 + data**2), -sigma * data / math.hypot(sigma, data)
    return (X0 - skip * x) / out


def consistency(scheduler, x, scaled, t):
    sigma = torch.tensor(math.exp(t / 250))
    skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
    return (X0 - skip * x) / out


def wuerstchen(scheduler, x, scaled, t):
    s = 0.008
    cos = [math.cos((u + s) / (1 + s) * math.pi / 2) ** 2 for u in (float(t), 0.0)]
    bar = min(max(cos[0] / cos[1], 1e-4), 0.9999)
    return (x - math.sqrt(bar) * X0) / math.sqrt(1 - bar)


def trigflow(scheduler, x, scaled, t):
    data = scheduler.config.sigma_data
    return (math.cos(t) * x - data * X0) / math.sin(t)


def ipndm(scheduler, x, scaled, t):
    angle = float(t) * math.pi / 2
    return (EPS - math.sin(angle) * x) / math.cos(angle)


SAMPLE = dict(prediction_type="sample")
TRAILING = dict(timestep_spacing="trailing")
CASES = {  # (settings, oracle)
    "CMStochasticIterativeScheduler": ({}, consistency),
    "CogVideoXDDIMScheduler": (SAMPLE | TRAILING, x0),
    "CogVideoXDPMScheduler": (SAMPLE | TRAILING, x0),
    "CosineDPMSolverMultistepScheduler": ({}, cosine_preconditioned),
    "DDIMInverseScheduler": ({}, constant_noise),
    "DDIMParallelScheduler": (SAMPLE | TRAILING, x0),
    "DDIMScheduler": (SAMPLE | TRAILING, x0),
    "DDPMParallelScheduler": (SAMPLE | TRAILING, x0),
    "DDPMScheduler": (SAMPLE | TRAILING, x0),
    "DDPMWuerstchenScheduler": ({}, wuerstchen),
    "DEISMultistepScheduler": (SAMPLE, x0),
    "DPMSolverMultistepInverseScheduler": ({}, constant_noise),
    "DPMSolverMultistepScheduler": (SAMPLE | dict(algorithm_type="sde-dpmsolver++"), x0),
    "DPMSolverSDEScheduler": ({}, noise_of_scaled),
    "DPMSolverSinglestepScheduler": (SAMPLE, x0),
    "EDMDPMSolverMultistepScheduler": ({}, preconditioned),
    "EDMEulerScheduler": ({}, preconditioned),
    "EulerAncestralDiscreteScheduler": (TRAILING, noise_of_scaled),
    "EulerDiscreteScheduler": (SAMPLE | TRAILING, x0),
    "FlowMapEulerDiscreteScheduler": ({}, velocity),
    "FlowMatchEulerDiscreteScheduler": (dict(shift=3.0), velocity),
    "FlowMatchHeunDiscreteScheduler": ({}, velocity),
    "FlowMatchLCMScheduler": ({}, velocity),
    "HeliosScheduler": (dict(stages=1, scheduler_type="euler"), velocity),
    "HeunDiscreteScheduler": (SAMPLE, x0),
    "IPNDMScheduler": (
        dict(trained_betas=[0.999, 0.98, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.0]),
        ipndm,
    ),
    "KDPM2AncestralDiscreteScheduler": ({}, noise_of_scaled),
    "KDPM2DiscreteScheduler": ({}, constant_noise),
    "LCMScheduler": (SAMPLE, x0),
    "LMSDiscreteScheduler": (SAMPLE, x0),
    "LTXEulerAncestralRFScheduler": ({}, velocity),
    "MiniMaxH3Scheduler": ({}, data_ward_velocity),
    "PNDMScheduler": ({}, constant_noise),
    "PiflowScheduler": ({}, velocity_grid),
    "SASolverScheduler": (SAMPLE, x0),
    "SCMScheduler": ({}, trigflow),
    "TCDScheduler": (SAMPLE, x0),
    "UnCLIPScheduler": (SAMPLE, x0),
    "UniPCMultistepScheduler": (SAMPLE, x0),
}


def first_state(scheduler):
    """The state that a loop begins with, noised by the scheduler's function or by definition."""
    name, t = type(scheduler).__name__, scheduler.timesteps[:1]
    if name == "DDIMInverseScheduler":
        return X0.clone()
    if name == "SCMScheduler":
        return scheduler.config.sigma_data * (math.cos(t) * X0 + math.sin(t) * EPS)
    if name == "IPNDMScheduler":
        angle = float(t) * math.pi / 2
        return math.cos(angle) * X0 + math.sin(angle) * EPS
    if name in (
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "HeliosScheduler",
        "LTXEulerAncestralRFScheduler",
        "PiflowScheduler",
    ):
        return (1 - t / 1000) * X0 + t / 1000 * EPS
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(X0, t, EPS)
    return scheduler.add_noise(X0, EPS, t)


# Calls of `step` between two states of the trajectory; the states between are trials.
TWO_CALLS = {
    "DPMSolverSDEScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
}


def on_trajectory(name, calls):
    """Which calls of `step` are given a state of the trajectory; PNDM's first three steps are of
    Runge-Kutta's kind, four calls each."""
    if name == "PNDMScheduler":
        return [0, 4, 8, *range(12, calls)]
    return list(range(0, calls, 2 if name in TWO_CALLS else 1))


def run(scheduler, oracle, **grid):
    """A recorded loop, as pipelines have it: the recording, and the states of the loop."""
    name, given = type(scheduler).__name__, []
    with record(scheduler) as recording:
        scheduler.set_timesteps(grid.pop("steps", STEPS), **grid)
        x, old, generator = first_state(scheduler), None, torch.Generator().manual_seed(1)
        timesteps = scheduler.timesteps
        if name in ("SCMScheduler", "DDPMWuerstchenScheduler"):
            timesteps = timesteps[:-1]  # the last one is where the last step lands
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        for k, t in enumerate(timesteps):
            given.append(x.clone())
            out = oracle(scheduler, x, scale(x, t), t)
            if name == "CogVideoXDPMScheduler":
                back = timesteps[k - 1] if k else None
                x, old = scheduler.step(out, old, t, back, x, generator=generator)
                continue
            t = t[None] if name == "DDPMWuerstchenScheduler" else t
            options = {}
            if "generator" in scheduler.step.__wrapped__.__code__.co_varnames:
                options["generator"] = generator
            if name == "UnCLIPScheduler":
                options["prev_timestep"] = timesteps[k + 1] if k + 1 < len(timesteps) else None
            x = scheduler.step(out, t, x, **options).prev_sample
    return recording, [given[k] for k in on_trajectory(name, len(given))] + [x]


@functools.cache
def trial(name):
    settings, oracle = CASES[name]
    scheduler = getattr(diffusers, name)(**settings)
    grid = dict(intermediate_timesteps=None, max_timesteps=1.5) if name == "SCMScheduler" else {}
    recording, states = run(scheduler, oracle, **grid)
    assert "step" not in vars(scheduler) and "set_timesteps" not in vars(scheduler)
    return recording, states


@pytest.fixture
def tried(name):
    if name in NEEDS_TORCHSDE:
        pytest.importorskip("torchsde")
    return trial(name)


def test_every_scheduler_is_read_or_refused():
    assert set(READERS) == set(CASES)
    assert not set(READERS) & set(REFUSED)
    assert ALL == set(READERS) | set(REFUSED)


@pytest.mark.parametrize("name", sorted(CASES))
def test_levels_are_right(name, tried):
    """Strength of x_0 and standard deviation of the rest of each state of the loop."""
    recording, states = tried
    assert STEPS - 1 <= len(recording.levels) - 1 <= STEPS + 3
    for state, (alpha, sigma) in zip(states, recording.levels, strict=True):
        found = (state * X0).mean().item()
        assert found == pytest.approx(alpha, rel=1e-3, abs=4 * sigma / SIDE + 1e-4)
        assert (state - found * X0).std().item() == pytest.approx(sigma, rel=0.03, abs=1e-3)


@pytest.mark.parametrize("name", sorted(CASES))
def test_states_are_paired_right(name, tried):
    """What is kept are the loop's own states, each once and in their order, and the end state."""
    recording, states = tried
    assert torch.equal(recording.states[0], torch.cat(states).float())
    assert recording.unlike == 0 and len(recording.levels) == len(states)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_others_are_refused_with_a_reason(name):
    class Stub:
        pass

    Stub.__name__ = name
    with pytest.raises(ValueError, match=REFUSED[name][:20]):
        with record(Stub()):
            pass
