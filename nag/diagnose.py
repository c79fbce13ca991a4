"""One-call diagnosis of anyone's model: the noise shift of a field, or of a loop with a diffusers
scheduler.

`estimator` is any x (B, C, H, W) -> (B,) that finds a state's t, trained on the model's own data
and path, such as functools.partial(nag.estimator.posterior_mean, net). Images are seeded one by
one: no result depends on the batch."""

from collections.abc import Callable, Iterable, Iterator
from inspect import signature

import numpy as np
import torch
from torch import Tensor

from nag.ddpm import VarianceField, network_output
from nag.interpolant import PATHS, coefficients, convert, known_path, time_of_ratio
from nag.samplers.one_step import euler
from nag.samplers.registry import SAMPLERS, resolve
from nag.shift import (
    Estimator,
    check_counts,
    check_readings,
    estimated_times,
    forward_states,
    noise_shift,
    ranges,
)
from nag.support.rng import ImageNoise

# How the states of diffusers' schedulers are scaled: "table" and "stride" by alphas_cumprod, where
# the last step ends at the data or one stride below the last timestep, "ve" x_0 + sigma eps, "vp"
# the same over sqrt(1 + sigma^2), "flow" (1 - sigma) x_0 + sigma eps.
SCHEDULERS = {
    "DDPMScheduler": "table",
    "LCMScheduler": "table",
    "DDIMScheduler": "stride",
    "EulerDiscreteScheduler": "ve",
    "EulerAncestralDiscreteScheduler": "ve",
    "HeunDiscreteScheduler": "ve",
    "EDMEulerScheduler": "ve",
    "EDMDPMSolverMultistepScheduler": "ve",
    "DPMSolverMultistepScheduler": "vp",
    "UniPCMultistepScheduler": "vp",
    "FlowMatchEulerDiscreteScheduler": "flow",
}


def _check_sizes(n: int, control: int, resamples: int, batch: int) -> None:
    check_counts(n, control, resamples)
    if batch < 1:
        raise ValueError(f"a batch of {batch} images: give 1 or more")


def _batches(
    first_seed: int, n: int, batch: int, device: torch.device | str
) -> Iterator[ImageNoise]:
    for start in range(first_seed, first_seed + n, batch):
        yield ImageNoise(range(start, min(start + batch, first_seed + n)), device)


def _compare(
    sampled: Iterable[Tensor],
    control: Iterable[Tensor],
    times: Tensor,
    estimator: Estimator,
    device: torch.device | str,
    resamples: int,
    seed: int,
    path: str,
) -> dict:
    """`noise_shift` of batches of states (B, K, C, H, W), read one batch at a time, so that they
    need not fit in memory.
    """

    def levels(x: Tensor) -> Tensor:
        found = estimator(x.to(device))
        if not isinstance(found, Tensor) or found.numel() != len(x) or not found.ndim:
            made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the estimator made {made} of {len(x)} states: it must return a tensor of their "
                "levels t (B,), such as functools.partial(nag.posterior_mean, net)"
            )
        return found

    def read(batches: Iterable[Tensor]) -> np.ndarray:
        return np.concatenate([estimated_times(levels, states) for states in batches])

    forward, at = read(control), times.cpu().numpy()
    check_readings(forward, at)
    ours = read(sampled)
    return noise_shift(ours, forward, at, resamples, seed, path=path) | {
        "times": at,
        "n": len(ours),
        "n_control": len(forward),
    }


@torch.no_grad()
def measure_shift(
    field: Callable[[Tensor, float], Tensor],
    control: Tensor,
    times: Tensor,
    estimator: Estimator,
    *,
    path: str = "linear",
    prediction: str = "v",
    sampler: Callable | str = euler,
    n: int | None = None,
    first_seed: int = 0,
    batch: int = 250,
    device: torch.device | str = "cpu",
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """Noise shift of any field(x, t) that predicts v, eps, x0 or the score, along a sampler's
    states.

    control (M, K, C, H, W) are forward states of held-out images at the falling `times` (K,), as
    `shift.forward_states` makes them; n images (default M) start from sigma_t eps at times[0];
    `sampler` is a function or its name in nag.SAMPLERS.
    Returns what `shift.noise_shift` does, and "times", "n" and "n_control". Field and estimator are
    called on `device`; what the field returns may be any `ddpm.network_output`. Raises ValueError
    for wrong shapes or names, times that do not fall or are too few, fewer than two images or
    resamples, or an estimator that counts otherwise; FloatingPointError if a state is not
    finite."""
    known_path(path)
    times, control = torch.as_tensor(times, dtype=torch.float64), torch.as_tensor(control)
    take = SAMPLERS[resolve(sampler, path)] if isinstance(sampler, str) else sampler
    if control.ndim != 5 or control.shape[1] != len(times) or not control.is_floating_point():
        raise ValueError(
            f"the control is {control.dtype} of shape {tuple(control.shape)}: give forward states "
            "(M, K, C, H, W) of real images at "
            f"the K = {len(times)} times, as nag.shift.forward_states makes them"
        )

    n = len(control) if n is None else n
    ranges(times.numpy(), path)
    _check_sizes(n, len(control), resamples, batch)

    def converted(x: Tensor, t: float) -> Tensor:
        out = network_output(field(x, t), x)[:, : x.shape[1]]
        return convert(out, x, t, prediction, "v", path)

    # Itself where a sampler can find its learned variance.
    velocity = field if prediction == "v" and isinstance(field, VarianceField) else converted

    def states() -> Iterator[Tensor]:
        for noise in _batches(first_seed, n, batch, device):
            eps = noise(control.shape[2:])
            start = coefficients(path, times[0], eps).sigma * eps
            yield torch.stack([x for x, _ in take(velocity, start, times, noise, path)], dim=1)

    return _compare(states(), control.split(batch), times, estimator, device, resamples, seed, path)


def scheduler_levels(scheduler, path: str = "ddpm") -> tuple[Tensor, Tensor]:
    """Times t (K + 1,) of the states of a diffusers scheduler's K steps, and factors (K + 1,) that
    bring them to `path`.

    Call `set_timesteps` first. t is where sigma_t / alpha_t of the path is the state's own ratio of
    noise to signal: the level that the network is told, and for the last state the level at which
    the last step lands. Both float64. Raises ValueError for an unknown path, for a scheduler that
    is not supported, or if a level is above the one before or the same."""
    return _levels(scheduler, path)[1:]


def _levels(scheduler, path: str) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the K + 1 states among all that the calls of `step` give, and `scheduler_levels`.

    Of states of one level the last counts: Heun's step takes two calls, and the first gives a
    trial state."""
    name = type(scheduler).__name__
    kind = next(
        (SCHEDULERS[cls.__name__] for cls in type(scheduler).__mro__ if cls.__name__ in SCHEDULERS),
        None,
    )
    if kind is None:
        raise ValueError(
            f"the noise levels of {name} are not known here: record a run of it with "
            f"nag.integrations.recorder.record, or use one of {sorted(SCHEDULERS)}"
        )
    known_path(path)
    if getattr(scheduler, "num_inference_steps", 0) is None:
        raise ValueError(f"this {name} has no steps yet: call its set_timesteps first")
    if kind in ("table", "stride"):
        table, steps = scheduler.alphas_cumprod.cpu().double(), scheduler.timesteps.cpu()
        end = _landing(scheduler, table, int(steps[-1])) if kind == "stride" else torch.ones(())
        alpha_bar = torch.cat([table[steps], end.view(1)])
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    else:
        sigma = scheduler.sigmas.cpu().double()
        flow = kind == "flow" or scheduler.config.get("use_flow_sigmas", False)
        alpha = 1 - sigma if flow else torch.ones_like(sigma)
        if kind == "vp" and not flow:
            alpha, sigma = (a / (1 + sigma**2).sqrt() for a in (alpha, sigma))
    times = torch.where(sigma == 0, 0, time_of_ratio(sigma / alpha, path)).round(
        decimals=5
    )  # the tables are float32
    if (times.diff() > 0).any():
        raise ValueError(
            f"the noise of this {name} rises from step to step: use its ordinary settings"
        )
    still = (sigma / alpha).diff() == 0
    if still[:-1].any() and not hasattr(scheduler, "state_in_first_order"):
        raise ValueError(f"this {name} takes a timestep twice: use fewer steps")
    kept = torch.cat([times.diff() < 0, torch.tensor([True])]).nonzero().flatten()
    own = PATHS[path](times)
    factor = ((own.alpha**2 + own.sigma**2) / (alpha**2 + sigma**2)).sqrt()
    return kept, times[kept], factor[kept]


def _landing(scheduler, table: Tensor, last: int) -> Tensor:
    """alpha_bar after DDIM's last step, one even stride below the last timestep."""
    below = last - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return table[below] if below >= 0 else scheduler.final_alpha_cumprod.double()


@torch.no_grad()
def scheduler_states(
    model_call: Callable,
    scheduler,
    x: Tensor,
    steps: int,
    path: str = "ddpm",
    generator: torch.Generator | list[torch.Generator] | None = None,
    **grid,
) -> tuple[Tensor, Tensor]:
    """States (B, K + 1, C, H, W) on `path` and their times t (K + 1,) of K steps of a diffusers
    scheduler from unit noise x.

    model_call(x, timestep) returns any `ddpm.network_output`; `grid` is for `set_timesteps`, e.g.
    mu=1.15. States and times include the start. Raises ValueError as `scheduler_levels` does, and
    if the scheduler wants a learned variance that the network does not make."""
    scheduler.set_timesteps(steps, device=x.device, **grid)
    kept, times, factor = _levels(scheduler, path)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else one looks for its first timestep, and may find another
    options = (
        {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
    )
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    channels = x.shape[1] * (1 + learned)  # of those that the scheduler wants
    scale_input = getattr(
        scheduler, "scale_model_input", lambda x, t: x
    )  # flow-matching schedulers have none
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    states = [x]
    for t in scheduler.timesteps:
        out = network_output(model_call(scale_input(x, t), t), x)[:, :channels]
        if out.shape[1] < channels:
            raise ValueError(
                f"this {type(scheduler).__name__} wants a learned variance, and the network made "
                "none: return its output with twice the channels, or set another variance_type"
            )
        x = scheduler.step(out, t, x, **options).prev_sample
        states.append(x)
    on_path = torch.stack([states[k] for k in kept.tolist()], dim=1)
    return on_path * factor.to(x).view(-1, *[1] * (x.ndim - 1)), times


def scheduler_shift(
    model_call: Callable,
    scheduler,
    images: Tensor,
    estimator: Estimator,
    steps: int,
    n: int | None = None,
    first_seed: int = 0,
    path: str = "ddpm",
    *,
    control_seed: int = 10**6,
    batch: int = 250,
    device: torch.device | str = "cpu",
    resamples: int = 1000,
    seed: int = 0,
    **grid,
) -> dict:
    """Noise shift of a model in a diffusers scheduler's loop; images (M, C, H, W) in [-1, 1] are
    held-out real data.

    n images (default M) are sampled in `steps` steps, each from its own seed, and compared with
    forward states of `images` on `path`, whose levels the estimator reads. See `scheduler_states`
    for model_call and grid, `measure_shift` for what is returned and raised."""
    known_path(path)
    images = torch.as_tensor(images)
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: give float (M, C, H, W), "
            "scaled as the model was trained"
        )
    n = len(images) if n is None else n
    _check_sizes(n, len(images), resamples, batch)
    scheduler.set_timesteps(steps, device=device, **grid)
    times, _ = scheduler_levels(scheduler, path)
    ranges(times.numpy(), path)

    def states() -> Iterator[Tensor]:
        for noise in _batches(first_seed, n, batch, device):
            yield scheduler_states(
                model_call, scheduler, noise(images.shape[1:]), steps, path, noise.streams, **grid
            )[0]

    control = (
        forward_states(part, times, path, control_seed + k * batch)
        for k, part in enumerate(images.split(batch))
    )
    return _compare(states(), control, times, estimator, device, resamples, seed, path)
