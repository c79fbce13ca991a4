"""From a recording to its noise shift, as an object that draws, tells and keeps itself.

with record(pipe) as recording:
    pipe(...)
diagnosis = diagnose(recording, estimator, held_out_images)"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nag.integrations.level_estimator import LevelEstimator, path_of
from nag.integrations.recorder import Recording, on_path
from nag.shift import Estimator, check_readings, estimated_times, forward_states, noise_shift
from nag.support.files import write_json
from nag.support.uncertainty import show, sign

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH_NUMBERS = 2**25  # of the control's states, made and read at once
CONTROL_SEED = 10**6  # of the noise of forward states; samples begin at seed 0
OWN_SAMPLES = (
    "The control are the model's own samples, noised again. So the shift says whether the states "
    "agree with where they end, not whether they agree with real data: noise that is left in the "
    "samples makes it smaller, and its sign may differ from that with real images (finding F7)."
)


@dataclass(frozen=True)
class Diagnosis:
    """The noise shift of a recording: delta (K + 1,) at `times` (1 is noise), 95 % CI over images.

    `late` and `middle` are its means where noise over signal, sigma / alpha, is at most 0.25 and
    from 2/3 to 9, `growth` is late minus middle, `spread` how much more the level differs from
    image to image late in sampling than in the control."""

    path: str
    times: list[float]
    delta: dict[str, list[float]]  # value, low, high
    late: dict[str, float]
    middle: dict[str, float]
    growth: dict[str, float]
    spread: dict[str, float]
    n: int
    n_control: int
    own_samples: bool = False
    changed_states: int = 0
    coverage_error: float | None = None

    def summary(self) -> str:
        """What was found, in a few plain sentences."""
        said = {
            "above": "late in sampling, states contain more noise than their level says",
            "below": "late in sampling, states contain less noise than their level says",
            "inconclusive": "late in sampling, no noise shift is shown",
        }
        lines = [
            f"Late noise shift (sigma / alpha <= 0.25): {show(self.late, '+.4f')}: "
            f"{said[sign(self.late)]}.",
            f"Middle (sigma / alpha from 2/3 to 9): {show(self.middle, '+.4f')}. Growth towards "
            f"the data: {show(self.growth, '+.4f')}.",
            f"{self.n} sampled and {self.n_control} control images, {len(self.times)} levels of "
            f"the path {self.path!r}, 95 % CI over images.",
        ]
        if self.own_samples:
            lines.append(OWN_SAMPLES)
        if self.changed_states:
            lines.append(
                f"Something changed {self.changed_states} states between two steps, so they are "
                "not the scheduler's alone."
            )
        if self.coverage_error is not None and self.coverage_error > 0.1:
            lines.append(
                f"The estimator's intervals are off by up to {self.coverage_error:.2f} of their "
                "mass: train it longer before trusting small shifts."
            )
        return "\n".join(lines)

    def plot(self) -> "Figure":
        """The curve delta(t) with its interval, noise on the left."""
        from matplotlib import pyplot  # whose import makes notebooks show figures

        figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
        pyplot.close(figure)  # or a notebook would show it a second time
        order = np.argsort(self.times)
        t = np.array(self.times)[order]
        value, low, high = (np.array(self.delta[k])[order] for k in ("value", "low", "high"))
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.fill_between(t, low, high, alpha=0.25, linewidth=0)
        axes.plot(t, value, marker="o", markersize=3)
        axes.set(
            xlim=(1, 0),
            xlabel=f"noise level t of the path {self.path!r} (1 = noise)",
            ylabel="noise shift δ(t)",
            title="Above zero: more noise than the level says",
        )
        return figure

    def to_json(self) -> dict[str, Any]:
        """All of it as plain numbers, lists and strings."""
        return asdict(self)

    def save(self, file: str | Path) -> None:
        """Write `to_json`."""
        write_json(Path(file), self.to_json())

    @classmethod
    def load(cls, file: str | Path) -> "Diagnosis":
        """Read what `save` wrote; raises OSError, or ValueError for another or a damaged file."""
        try:
            return cls(**json.loads(Path(file).read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{file} is truncated or no diagnosis: measure again and save it"
            ) from error


def diagnose(
    recording: Recording,
    estimator: LevelEstimator | Estimator,
    images: Tensor | None = None,
    path: str | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Diagnosis:
    """The noise shift of a recording, given held-out images or latents (M, C, H, W) as the control.

        delta(t) = E[t' | sampled x_t] - E[t' | forward x_t]

    Without images the control is the end states themselves (`OWN_SAMPLES` says what that means).
    `path` is the estimator's own, or needed if it has none. Raises ValueError for images of another
    shape or of bytes, for an unknown path or too few levels; FloatingPointError if a state is not
    finite."""
    path = path or getattr(estimator, "path", None)
    if path is None:
        raise ValueError(
            "the estimator has no path: give path=, that of the states it was trained on"
        )
    states, _ = recording.on(path_of(path))
    times = torch.tensor([on_path(*level, path)[0] for level in recording.levels])
    if not bool(states.isfinite().all()):
        raise FloatingPointError("a recorded state is NaN or infinite: use float32 or more steps")
    batch = max(1, BATCH_NUMBERS // (len(times) * states[0, 0].numel()))
    control = states[:, -1] if images is None else images
    if not control.is_floating_point():
        raise ValueError(
            f"images are {control.dtype}: give floats, scaled as the model was trained"
        )
    if control.shape[1:] != states.shape[2:]:
        raise ValueError(
            f"images of shape {tuple(control.shape[1:])} cannot be the control of states of shape "
            f"{tuple(states.shape[2:])}: for a latent model encode them first"
        )
    if recording.readings:
        ours = torch.cat(recording.readings).numpy()
    else:
        ours = np.concatenate([estimated_times(estimator, part) for part in states.split(batch)])
    forward = np.concatenate(
        [
            estimated_times(
                estimator, forward_states(part.float(), times, path, CONTROL_SEED + k * batch)
            )
            for k, part in enumerate(control.split(batch))
        ]
    )
    check_readings(forward, times.numpy())
    shift = noise_shift(ours, forward, times.numpy(), resamples, seed, path=path)
    return Diagnosis(
        path=path,
        times=times.tolist(),
        delta={k: np.asarray(v).tolist() for k, v in shift["delta"].items()},
        **{
            name: {k: float(v) for k, v in shift[name].items()}
            for name in ("late", "middle", "growth", "spread")
        },
        n=len(ours),
        n_control=len(forward),
        own_samples=images is None,
        changed_states=recording.unlike,
        coverage_error=getattr(estimator, "coverage_error", None),
    )
