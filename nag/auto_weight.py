"""The NAG weight without a sweep: what makes sampled states look as noisy as forward states do, by
g_phi alone.

The paper leaves w open. Here a small batch is sampled, g_phi (`judge`) reads its states, and w is
where a statistic of the reading equals that of forward states: its mean over images (the noise
shift) or its spread. No image metric is in the loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from nag.guidance import GuidedField, Term, noise_awareness
from nag.samplers.registry import SAMPLERS, resolve
from nag.shift import is_late

ONE_STEP = ("euler", "euler_maruyama", "ddpm", "ddim", "ddim_eta1")
Judge = Callable[[Tensor], Tensor]


def excess(levels: np.ndarray, control: np.ndarray, times: np.ndarray) -> dict[str, float]:
    """How sampled levels (M, K) exceed those of forward states (M', K) over 0 < t <= 0.2: in mean,
    and in spread over images.
    """
    late = is_late(times)
    return {
        "mean": float((levels.mean(0) - control.mean(0))[late].mean()),
        "spread": float((levels.std(0, ddof=1) - control.std(0, ddof=1))[late].mean()),
    }


def null_weight(weights: Sequence[float], values: Sequence[float]) -> tuple[float, bool]:
    """The w >= 0 at which an excess, measured at ascending weights from 0 on, crosses zero
    downwards, and whether it does.

    0 if there is no excess to take away; without a crossing, the weight with the smallest excess.
    """
    if values[0] <= 0:
        return 0.0, True
    for (w0, a), (w1, b) in pairwise(zip(weights, values, strict=True)):
        if b <= 0:
            return w0 + (w1 - w0) * a / (a - b), True
    return float(weights[int(np.argmin(np.abs(values)))]), False


def stepwise(times: Sequence[float], weights: Sequence[float]) -> Callable[[float], float]:
    """w(t) for a guidance term: weights (K,) at decreasing times (K,), each holding until the next
    time is reached.
    """
    grid, table = np.asarray(times), np.asarray(weights)
    return lambda t: float(table[np.clip((grid >= t - 1e-9).sum() - 1, 0, len(table) - 1)])


@dataclass(frozen=True)
class ScheduledArm:
    """An arm for `companion.experiments.generate.sample` whose NAG weight follows a schedule:
    weights (K,) at decreasing times (K,).
    """

    times: tuple[float, ...]
    weights: tuple[float, ...]

    def terms(self) -> list[Term]:
        """The one guidance term."""
        return [noise_awareness(stepwise(self.times, self.weights))]


@torch.inference_mode()
def weight_schedule(
    net: Callable,
    judge: Judge,
    control: np.ndarray,
    times: Tensor,
    labels: Tensor,
    noise: Callable,
    *,
    sampler: str = "ode",
    largest: float = 4.0,
    nodes: int = 9,
    precision: str = "fp32",
) -> tuple[list[float], list[float]]:
    """w(t) that nulls the noise shift step by step, in one pass of a batch: (times (K,), weights
    (K,)) for `stepwise`.

    A step of a one-evaluation sampler is affine in w, so all w are tried at the price of one: the
    next state is read by the judge at `nodes` weights in [0, `largest`], and the crossing of the
    mean level with that of forward states, control (M', K + 1) read at `times` (K + 1,), is taken.
    Costs 3 network evaluations a step and image; the last step, to t = 0, keeps the weight before
    it. noise(shape) draws (B, *shape); labels (B,); the judge gets states on their device. Raises
    ValueError for a sampler that is not of one evaluation a step."""
    c = net.config
    name = resolve(sampler, c.path)
    if name not in ONE_STEP:
        raise ValueError(
            f"{name} has a memory or several evaluations a step, which this calibration cannot follow: choose one "
            f"of {ONE_STEP}"
        )
    solver = SAMPLERS[name]
    plain, guided = (
        GuidedField(net, labels, (), precision),
        GuidedField(net, labels, [noise_awareness(1.0)], precision),
    )
    x = noise((c.channels, c.input_size, c.input_size))
    tried, chosen = np.linspace(0, largest, nodes), []
    for k, (t, s) in enumerate(pairwise(times.tolist())):
        fresh = noise(x.shape[1:])
        v, pushed = plain(x, t), guided(x, t)
        base, ahead = (
            _step(solver, x, field, plain.fraction, times[k : k + 3], fresh, c.path)
            for field in (v, pushed)
        )
        if s > 0:
            means = [float(judge(base + w * (ahead - base)).mean()) for w in tried]
            chosen.append(
                null_weight(tried.tolist(), [m - control[:, k + 1].mean() for m in means])[0]
            )
        else:
            chosen.append(chosen[-1])
        x = base + chosen[-1] * (ahead - base)
    return times[:-1].tolist(), chosen


def _step(
    solver: Callable,
    x: Tensor,
    v: Tensor,
    fraction: Tensor | None,
    times: Tensor,
    fresh: Tensor,
    path: str,
) -> Tensor:
    """One step of a solver from x with a velocity that is known, and known noise."""

    def field(x: Tensor, t: float) -> Tensor:
        return v

    field.fraction = fraction
    states = solver(field, x, times, lambda shape: fresh, path)
    next(states)
    return next(states)[0]
