"""Record the states of any diffusers pipeline with their true noise levels.

    with record(pipe) as recording:
        pipe(prompt, num_inference_steps=30)

`scheduler.step` is wrapped, so that each state is taken as it goes into a step, together with the
level that the scheduler itself gives it; the end state comes out of the last step. (The callback at
the end of a step comes too late for that: it pairs the next state with this step's level.)"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nag.integrations.levels import Level, opens_a_step, reader
from nag.interpolant import PATHS, time_of_ratio


@dataclass
class Recording:
    """States (N, K + 1, C, H, W) of N images and the K + 1 levels that they share.

    `conditions` has one entry a run, such as its labels or prompts. `unlike` counts the states that
    were changed between two steps, by inpainting for example. With an estimator, `readings` are its
    levels (B, K + 1) of each run's states, and of these only the last is kept. Raises ValueError
    where it is read if nothing was recorded, or if runs have other levels or shapes."""

    runs: list[Tensor] = field(default_factory=list)  # (B, K + 1, C, H, W) each
    run_levels: list[tuple[Level, ...]] = field(default_factory=list)
    conditions: list[Any] = field(default_factory=list)
    unlike: int = 0
    readings: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, states: Tensor, levels: Sequence[tuple[float, float]]) -> "Recording":
        """States (N, K + 1, C, H, W) of a sampler of your own, and (alpha, sigma) of each of them.

        Raises ValueError if there is not one level a state."""
        if states.shape[1] != len(levels):
            raise ValueError(
                f"{states.shape[1]} states and {len(levels)} levels: give one for each"
            )
        return cls([states], [tuple(Level(float(a), float(s)) for a, s in levels)], [None])

    @property
    def levels(self) -> tuple[Level, ...]:
        """(alpha, sigma) of each state."""
        if not self.runs:
            raise ValueError("nothing was recorded: run the pipeline within `with record(...)`")
        if len(set(self.run_levels)) > 1:
            raise ValueError("the runs have different noise levels: record each grid by itself")
        return self.run_levels[0]

    @property
    def states(self) -> Tensor:
        """All states (N, K + 1, C, H, W) as the scheduler scales them."""
        _ = self.levels
        shapes = {run.shape[1:] for run in self.runs}
        if len(shapes) > 1:
            raise ValueError(
                f"the runs have different shapes {sorted(shapes)}: record each by itself"
            )
        return torch.cat(self.runs)

    def on(self, path: str) -> tuple[Tensor, Tensor]:
        """States (N, K + 1, C, H, W) scaled as `path` scales them, and their t (K + 1,), float64.

            sigma_t / alpha_t = sigma / alpha

        Beyond the most noise that the path has, t is 1. Raises ValueError for an unknown path."""
        if path not in PATHS:
            raise ValueError(f"unknown path {path!r}: choose one of {sorted(PATHS)}")
        scaled = [on_path(*level, path) for level in self.levels]
        times = torch.tensor([t for t, _ in scaled], dtype=torch.float64)
        factor = torch.tensor([f for _, f in scaled])
        states = self.states
        if self.readings:
            times, factor = times[-1:], factor[-1:]
        return states * factor.to(states).view(-1, *[1] * (states.ndim - 2)), times


def on_path(alpha: float, sigma: float, path: str) -> tuple[float, float]:
    """t of a level on `path`, and the factor that brings a state of this level to the path's scale.

    sigma_t / alpha_t = sigma / alpha"""
    if sigma <= 0:
        return 0.0, 1 / alpha
    ratio = torch.tensor(sigma / max(alpha, 1e-12), dtype=torch.float64)
    t = time_of_ratio(ratio, path).round(decimals=5)  # the schedulers' tables are float32
    own = PATHS[path](t)
    return float(t), math.hypot(float(own.alpha), float(own.sigma)) / math.hypot(alpha, sigma)


def unpack(latents: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
    """Packed latents (B, tokens, 4 C) of Flux and its kin to (B, C, H, W).

    A token holds 2 x 2 pixels of the latent; height and width are those of the latent, a square by
    default. Raises ValueError if they do not fit the number of tokens."""
    count, tokens, width_4c = latents.shape
    if height is None or width is None:
        height = width = 2 * math.isqrt(tokens)
    if height * width != 4 * tokens or width_4c % 4:
        raise ValueError(
            f"{tokens} packed tokens of {width_4c} channels are not a latent of {height} x "
            f"{width}: give record(..., height=, width=) in latent pixels, or unpack=your function"
        )
    grid = latents.view(count, height // 2, width // 2, width_4c // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(count, width_4c // 4, height, width)


class _Recorder:
    """What stands in for `scheduler.step` while it records."""

    def __init__(
        self,
        scheduler: Any,
        shape: Callable[[Tensor], Tensor],
        halve: bool | None,
        estimator: Callable[[Tensor], Tensor] | None,
    ):
        self.scheduler, self.shape, self.halve = scheduler, shape, halve
        self.estimator = estimator
        self.read = reader(scheduler)
        self.step, self.set_timesteps = scheduler.step, scheduler.set_timesteps
        self.signature = inspect.signature(self.step)
        self.recording = Recording()
        self.begin()

    def begin(self) -> None:
        self.states: list[Tensor] = []
        self.levels: list[Level] = []
        self.last: tuple[Tensor, Level] | None = None
        self.first_timestep: Any = None
        self.doubled: bool | None = self.halve

    def finish(self) -> None:
        """Close the run with the state that its last step gave."""
        if self.last is not None:
            state, level = self.last
            if self.estimator is None:
                self.recording.runs.append(torch.stack([*self.states, state], dim=1))
            else:
                last = self.read_level(state, level)
                self.recording.runs.append(state[:, None])
                self.recording.readings.append(torch.stack([*self.states, last], dim=1))
            self.recording.run_levels.append((*self.levels, level))
            self.recording.conditions.append(None)
        self.begin()

    def called(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs).arguments
        sample, timestep = bound["sample"], bound["timestep"]
        first = float(torch.as_tensor(timestep).reshape(-1)[0])
        opening = opens_a_step(self.scheduler)
        if opening and first == self.first_timestep:
            self.finish()  # a second loop over the same timesteps
        given = self.kept(sample).clone() if opening else None
        out = self.step(*args, **kwargs)
        if given is not None:
            if self.last is not None and not torch.equal(given, self.last[0]):
                self.recording.unlike += 1
            if not self.states:
                self.first_timestep = first
            level = self.read(self.scheduler, timestep, 0)
            self.states.append(given if self.estimator is None else self.read_level(given, level))
            self.levels.append(level)
        reached = out[0] if isinstance(out, tuple) else out.prev_sample
        self.last = self.kept(reached), self.read(self.scheduler, timestep, 1)
        return out

    def read_level(self, state: Tensor, level: Level) -> Tensor:
        """What the estimator reads from a state, (B,), on the CPU."""
        factor = on_path(*level, self.estimator.path)[1]  # type: ignore[union-attr]
        with torch.inference_mode():
            return self.estimator(state * factor).cpu().double()  # type: ignore[misc]

    def kept(self, sample: Tensor) -> Tensor:
        """One copy of each image, on the CPU, in the shape of an image."""
        if self.doubled is None:
            half = len(sample) // 2
            self.doubled = len(sample) % 2 == 0 and torch.equal(sample[:half], sample[half:])
        state = sample[: len(sample) // 2] if self.doubled else sample
        return self.shape(state.detach().float().cpu())


@contextmanager
def record(
    pipe_or_scheduler: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    unpack: Callable[[Tensor], Tensor] | None = None,
    halve: bool | None = None,
    estimator: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Recording]:
    """Record every run of a diffusers pipeline, or of a loop with a scheduler, within the block.

    Packed latents become (B, C, H, W) by `unpack` (default: this module's, for height x width in
    latent pixels). A batch whose halves are alike is that of classifier-free guidance, and one half
    is kept; `halve` says so, or not, where two equal seeds would mislead. With an `estimator` that
    has a `path`, each state is read at once and only the last is kept. Raises ValueError for a
    scheduler whose states have no noise level, and says why."""
    scheduler = getattr(pipe_or_scheduler, "scheduler", pipe_or_scheduler)
    own = unpack or functools.partial(_image_shape, height=height, width=width)
    recorder = _Recorder(scheduler, own, halve, estimator)

    @functools.wraps(recorder.step)
    def step(*args: Any, **kwargs: Any) -> Any:
        return recorder.called(*args, **kwargs)

    @functools.wraps(recorder.set_timesteps)
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        recorder.finish()
        return recorder.set_timesteps(*args, **kwargs)

    scheduler.step, scheduler.set_timesteps = step, set_timesteps
    try:
        yield recorder.recording
    finally:
        del scheduler.step, scheduler.set_timesteps
        recorder.finish()


def _image_shape(state: Tensor, height: int | None, width: int | None) -> Tensor:
    return unpack(state, height, width) if state.ndim == 3 else state


def record_calls(pipe: Any, calls: Iterable[dict], **options: Any) -> Recording:
    """Run a pipeline once for each of `calls`, its arguments, and record all; options as `record`.

    So each batch has its own labels or prompts and generators; `conditions` of the recording are
    the calls, one a run."""
    calls = list(calls)
    with record(pipe, **options) as recording:
        for call in calls:
            pipe(**call)
    recording.conditions = calls
    return recording
