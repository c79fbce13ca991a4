"""The noise level of the state that a diffusers scheduler holds, x = alpha x_0 + sigma eps.

A level is what the scheduler itself assigns to the state; nothing is measured. A reader is asked
after a call of `step`, for the level of the state that went in or of the one that came out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Level(NamedTuple):
    """Strength of the signal and of the noise in a state."""

    alpha: float
    sigma: float


Reader = Callable[[Any, Any, int], Level]  # (scheduler, timestep of the call, 0 given or 1 reached)

# No trajectory of noisy states x = alpha x_0 + sigma eps in the ordinary sense.
DISCRETE = "its states are discrete tokens, which have no Gaussian noise level"
REFUSED = {
    "AmusedScheduler": DISCRETE,
    "BlockRefinementScheduler": DISCRETE,
    "DiscreteDDIMScheduler": DISCRETE,
    "EntropyBoundScheduler": DISCRETE,
    "VQDiffusionScheduler": DISCRETE,
    "HeliosDMDScheduler": "its stages change the resolution, and levels are relative to a stage",
    "KarrasVeScheduler": "diffusers has withdrawn it",
    "RePaintScheduler": "it pastes a noised given image into each state and jumps back in time",
    "RFD4ProteinaScheduler": "its states are masked protein coordinates, not images",
    "ScoreSdeVeScheduler": "it has no `step`: a predictor and a corrector change each state",
}


def _of_sigma(alpha: Callable[[float], float]) -> Reader:
    def read(scheduler: Any, timestep: Any, reached: int) -> Level:
        sigma = float(scheduler.sigmas[scheduler.step_index - 1 + reached])
        return Level(alpha(sigma), sigma)

    return read


_variance_exploding = _of_sigma(lambda sigma: 1.0)
_flow = _of_sigma(lambda sigma: 1.0 - sigma)


def _variance_preserving(scheduler: Any, timestep: Any, reached: int) -> Level:
    if scheduler.config.get("use_flow_sigmas", False):
        return _flow(scheduler, timestep, reached)
    _, ratio = _variance_exploding(scheduler, timestep, reached)
    scale = math.hypot(1.0, ratio)
    return Level(1 / scale, ratio / scale)


def _alpha_bar(value: Any) -> Level:
    return Level(math.sqrt(float(value)), math.sqrt(max(1 - float(value), 0.0)))


def _entry(scheduler: Any, timestep: int) -> Level:
    """The level of a timestep; below the first one that of the data, as the scheduler has it."""
    if timestep >= 0:
        return _alpha_bar(scheduler.alphas_cumprod[timestep])
    return _alpha_bar(getattr(scheduler, "final_alpha_cumprod", 1.0))


def _table(below: Callable[[Any, int], int]) -> Reader:
    def read(scheduler: Any, timestep: Any, reached: int) -> Level:
        step = int(timestep)
        return _entry(scheduler, below(scheduler, step) if reached else step)

    return read


def _stride(scheduler: Any, timestep: int) -> int:
    return timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps


def _after(scheduler: Any, timestep: int, end: int) -> int:
    """The timestep after this one in the scheduler's list, or `end` after the last."""
    later = scheduler.timesteps[scheduler.timesteps < timestep]
    return int(later.max()) if len(later) else end


def _inverse(scheduler: Any, timestep: Any, reached: int) -> Level:
    """DDIM backwards: the timestep is that of the state which comes out."""
    step = int(timestep) if reached else _stride(scheduler, int(timestep))
    return _alpha_bar(
        scheduler.alphas_cumprod[step] if step >= 0 else scheduler.initial_alpha_cumprod
    )


def _wuerstchen(scheduler: Any, timestep: Any, reached: int) -> Level:
    t = torch.as_tensor(timestep).reshape(-1)[:1]
    t = scheduler.previous_timestep(t) if reached else t
    return _alpha_bar(scheduler._alpha_cumprod(t, t.device)) if t > 0 else Level(1.0, 0.0)


def _trigflow(scheduler: Any, timestep: Any, reached: int) -> Level:
    t, scale = scheduler.timesteps[scheduler.step_index - 1 + reached], scheduler.config.sigma_data
    return Level(scale * math.cos(t), scale * math.sin(t))


def _ipndm(scheduler: Any, timestep: Any, reached: int) -> Level:
    k = scheduler.step_index - 1 + reached
    return Level(float(scheduler.alphas[k]), float(scheduler.betas[k]))


def _consistency(scheduler: Any, timestep: Any, reached: int) -> Level:
    """The last call gives a denoised image, though the list of levels ends at the least noise."""
    if reached and scheduler.step_index == len(scheduler.timesteps):
        return Level(1.0, 0.0)
    return _variance_exploding(scheduler, timestep, reached)


def _helios(scheduler: Any, timestep: Any, reached: int) -> Level:
    if scheduler.config.stages != 1:
        raise ValueError(
            f"HeliosScheduler with {scheduler.config.stages} stages changes the resolution between "
            "them: only stages=1 can be recorded"
        )
    return _flow(scheduler, timestep, reached)


READERS: dict[str, Reader] = {
    "CMStochasticIterativeScheduler": _consistency,
    "CogVideoXDDIMScheduler": _table(_stride),
    "CogVideoXDPMScheduler": _table(_stride),
    "CosineDPMSolverMultistepScheduler": _variance_exploding,
    "DDIMInverseScheduler": _inverse,
    "DDIMParallelScheduler": _table(_stride),
    "DDIMScheduler": _table(_stride),
    "DDPMParallelScheduler": _table(lambda s, t: int(s.previous_timestep(t))),
    "DDPMScheduler": _table(lambda s, t: int(s.previous_timestep(t))),
    "DDPMWuerstchenScheduler": _wuerstchen,
    "DEISMultistepScheduler": _variance_preserving,
    "DPMSolverMultistepInverseScheduler": _variance_preserving,
    "DPMSolverMultistepScheduler": _variance_preserving,
    "DPMSolverSDEScheduler": _variance_exploding,
    "DPMSolverSinglestepScheduler": _variance_preserving,
    "EDMDPMSolverMultistepScheduler": _variance_exploding,
    "EDMEulerScheduler": _variance_exploding,
    "EulerAncestralDiscreteScheduler": _variance_exploding,
    "EulerDiscreteScheduler": _variance_exploding,
    "FlowMapEulerDiscreteScheduler": _flow,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "FlowMatchLCMScheduler": _flow,
    "HeliosScheduler": _helios,
    "HeunDiscreteScheduler": _variance_exploding,
    "IPNDMScheduler": _ipndm,
    "KDPM2AncestralDiscreteScheduler": _variance_exploding,
    "KDPM2DiscreteScheduler": _variance_exploding,
    "LCMScheduler": _table(lambda s, t: _after(s, t, -1)),
    "LMSDiscreteScheduler": _variance_exploding,
    "LTXEulerAncestralRFScheduler": _flow,
    "MiniMaxH3Scheduler": _flow,
    "PNDMScheduler": _table(_stride),
    "PiflowScheduler": _flow,
    "SASolverScheduler": _variance_preserving,
    "SCMScheduler": _trigflow,
    "TCDScheduler": _table(lambda s, t: _after(s, t, 0)),
    "UnCLIPScheduler": _table(lambda s, t: _after(s, t, -1)),
    "UniPCMultistepScheduler": _variance_preserving,
}


def reader(scheduler: Any) -> Reader:
    """The reader of a scheduler's levels; raises ValueError if there is none, and says why."""
    names = [cls.__name__ for cls in type(scheduler).__mro__]
    for name in names:
        if name in REFUSED:
            raise ValueError(f"{names[0]} cannot be recorded: {REFUSED[name]}")
        if name in READERS:
            return READERS[name]
    raise ValueError(
        f"the noise levels of {names[0]} are not known here: use one of {sorted(READERS)}, or give "
        "the states and their levels to `Recording` yourself"
    )


def opens_a_step(scheduler: Any) -> bool:
    """Whether the next call of `step` begins a step.

    Heun's, DPM-Solver-2's and PNDM's schedulers are called several times a step; what goes into the
    further calls is a trial state, which is not on the trajectory."""
    if type(scheduler).__name__ == "PNDMScheduler":
        warming = scheduler.counter < len(scheduler.prk_timesteps)
        if warming and not scheduler.config.skip_prk_steps:
            return scheduler.counter % 4 == 0
        return scheduler.counter != 1 or not scheduler.config.skip_prk_steps
    return bool(getattr(scheduler, "state_in_first_order", True))
