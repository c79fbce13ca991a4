"""The NAG weight without a sweep: the w at which sampled states look as noisy as forward states.

The paper leaves w open. Here a small batch is sampled, the estimator g_phi reads the noise level of
its states, and w is where a statistic of the reading equals that of forward states: its mean over
images (the noise shift) or its spread. No image metric is in the loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from nag.guidance import GuidedField, Network, Term, noise_awareness
from nag.interpolant import falling
from nag.samplers.one_step import Noise
from nag.samplers.registry import STEPS, resolve
from nag.shift import is_late

Estimator = Callable[[Tensor], Tensor]  # states (B, C, H, W) to their noise levels (B,)


def excess(
    levels: np.ndarray, control: np.ndarray, times: np.ndarray, path: str = "linear"
) -> dict[str, float]:
    """How sampled levels (M, K) exceed those of forward states (M', K) late in sampling
    (`nag.shift.is_late`): in mean, and in spread over images.
    """
    late = is_late(times, path)
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
    net: Network,
    estimator: Estimator,
    control: np.ndarray,
    times: Tensor,
    labels: Tensor,
    noise: Noise,
    *,
    sampler: str = "ode",
    largest: float = 4.0,
    nodes: int = 9,
    precision: str = "fp32",
) -> tuple[list[float], list[float]]:
    """w(t) that nulls the noise shift step by step: (times (K,), weights (K,)) for `stepwise`.

        mean level of x_0 + w (x_1 - x_0)  =  mean level of forward states at the next time

    x_0 and x_1 are the next states without NAG and with w = 1, from the same noise: a step of a
    one-evaluation sampler is affine in w, so all w are tried at the price of one. The estimator
    reads the state at `nodes` weights in [0, `largest`], and the crossing with `control`
    (M', K + 1), its reading of forward states at `times` (K + 1,), is taken. One pass of a batch,
    3 network evaluations a step and image; the last step, to t = 0, keeps the weight before it.
    noise(shape) draws (B, *shape); labels (B,). Raises ValueError for a sampler that is not of one
    evaluation a step."""
    c = net.config
    name = resolve(sampler, c.path)
    if name not in STEPS:
        raise ValueError(
            f"{name} has a memory or several evaluations a step, which this calibration cannot "
            f"follow: choose one of {list(STEPS)}"
        )
    step = STEPS[name]
    plain = GuidedField(net, labels, [], precision)
    guided = GuidedField(net, labels, [noise_awareness(1.0)], precision)
    x = noise((c.channels, c.input_size, c.input_size))
    tried, chosen = np.linspace(0, largest, nodes), []
    for k, (t, s) in enumerate(pairwise(falling(times))):
        fresh, last = noise(x.shape[1:]), s == times[-1]
        x_0, x_1 = (
            step(field, x, t, s, lambda shape, fresh=fresh: fresh, c.path, last)
            for field in (plain, guided)
        )
        if s > 0:
            means = [float(estimator(x_0 + w * (x_1 - x_0)).mean()) for w in tried]
            excesses = [mean - control[:, k + 1].mean() for mean in means]
            chosen.append(null_weight(tried.tolist(), excesses)[0])
        else:
            chosen.append(chosen[-1])
        x = x_0 + chosen[-1] * (x_1 - x_0)
    return times[:-1].tolist(), chosen
