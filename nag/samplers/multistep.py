"""Multistep solvers in x_0-prediction and half log-SNR lambda = log(alpha / sigma): one evaluation
a step, order 2 and 3.

Same signature as nag.samplers.one_step. A step from pure noise with alpha = 0 has lambda =
-infinity: it is of first order (DDIM's), and so is the step after it. So is the last step, to sigma
= 0."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nag.interpolant import PURE_NOISE, coefficients, convert, falling, widest
from nag.samplers.one_step import Noise, State, drawn


def _level(t: float, like: Tensor, path: str) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma and lambda at t as numbers without dimensions."""
    c = coefficients(path, t, like.new_zeros((), dtype=widest(like.device)))
    alpha = c.alpha * (c.alpha > PURE_NOISE)
    return alpha, c.sigma, alpha.log() - c.sigma.log()


def dpmpp_2m(
    field: Callable,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    path: str = "linear",
    stochastic: bool = False,
) -> Iterator[State]:
    """DPM-Solver++(2M), the ODE or with `stochastic` the SDE solver, in midpoint form (Lu et al.,
    2022).
    """
    yield x, float(times[0])
    before = None  # x_0-prediction and lambda of the step before
    for t, s in pairwise(falling(times)):
        x0 = convert(field(x, t), x, t, "v", "x0", path)
        _, sigma_t, lambda_t = _level(t, x, path)
        alpha_s, sigma_s, lambda_s = _level(s, x, path)
        h, slope = lambda_s - lambda_t, torch.zeros_like(x0)
        if before is not None and torch.isfinite(before[1]) and torch.isfinite(h):
            slope = 0.5 * (h / (lambda_t - before[1])).to(x.dtype) * (x0 - before[0])
        decay = torch.exp(-2 * h if stochastic else -h)
        keep = sigma_s / sigma_t * (torch.exp(-h) if stochastic else 1)
        x = keep.to(x.dtype) * x + (alpha_s * (1 - decay)).to(x.dtype) * (x0 + slope)
        if stochastic and s > 0:
            x = x + (sigma_s * (1 - decay).sqrt()).to(x.dtype) * drawn(noise, x)
        before = x0, lambda_t
        yield x, s


def _unipc_weights(ratios: Tensor, hh: Tensor, predictor: bool) -> Tensor:
    """Weights of the differences D_i / r_i in UniPC's update with B(h) = exp(-h) - 1, by its order
    conditions.
    """
    order = len(ratios)
    if order == 1 or (predictor and order == 2):
        return torch.full((order - predictor,), 0.5, dtype=hh.dtype, device=hh.device)
    term, factorial, sides = torch.expm1(hh) / hh - 1, 1, []
    for k in range(1, order + 1):
        sides.append(term * factorial / torch.expm1(hh))
        factorial *= k + 1
        term = term / hh - 1 / factorial
    matrix, side = torch.stack([ratios**k for k in range(order)]), torch.stack(sides)
    size = order - predictor
    return torch.linalg.solve(matrix[:size, :size], side[:size])


class _Step(NamedTuple):
    """A step of UniPC from t to s: x_s = first - gain sum_i w_i D_i / r_i, with D_i = x0_i - x0.

    The x0_i are predictions at other times, r_i = (lambda_i - lambda_t) / h where they lie on the
    way from t to s."""

    first: Tensor  # sigma_s / sigma_t x - gain x0, DDIM's step
    gain: Tensor  # alpha_s (exp(-h) - 1); B(h) and phi_1(h) are the same here
    h: Tensor  # lambda_s - lambda_t
    x0: Tensor  # the prediction at t
    ratios: Tensor  # r_i of past times, and 1 for s itself
    differences: list[Tensor]  # D_i / r_i of past times

    def predicted(self) -> Tensor:
        """x_s from past predictions."""
        return self._moved(self.differences, predictor=True) if self.differences else self.first

    def corrected(self, new: Tensor) -> Tensor:
        """x_s when the prediction at s is known too."""
        return self._moved([*self.differences, new - self.x0], predictor=False)

    def _moved(self, differences: list[Tensor], predictor: bool) -> Tensor:
        weights = _unipc_weights(self.ratios, -self.h, predictor).to(self.first.dtype)
        return self.first - self.gain * sum(
            w * d for w, d in zip(weights, differences, strict=True)
        )


def unipc(
    field: Callable,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    path: str = "linear",
    order: int = 3,
) -> Iterator[State]:
    """UniPC with corrector and B(h) = exp(-h) - 1, order 1 to 3 (Zhao et al., 2023).

    The corrector uses the evaluation that the next step needs anyway, so a yielded state is the
    corrected one."""
    memory: deque = deque(maxlen=order)  # (x_0-prediction, lambda) of past times, newest last
    step: _Step | None = None  # the one before, if it can be corrected
    for k, (t, s) in enumerate(pairwise(falling(times))):
        x0 = convert(field(x, t), x, t, "v", "x0", path)
        if step is not None:
            x = step.corrected(x0)
        yield x, t
        _, sigma_t, lambda_t = _level(t, x, path)
        alpha_s, sigma_s, lambda_s = _level(s, x, path)
        memory.append((x0, lambda_t))
        h = lambda_s - lambda_t
        steady = bool(torch.isfinite(h))
        now = min(order, len(memory), len(times) - 1 - k) if steady else 1
        past = list(memory)[-now:-1][::-1]
        ratios = torch.stack([*((then - lambda_t) / h for _, then in past), torch.ones_like(h)])
        differences = [
            (value - x0) / r.to(x.dtype) for (value, _), r in zip(past, ratios[:-1], strict=True)
        ]
        gain = (alpha_s * torch.expm1(-h)).to(x.dtype)
        first = (sigma_s / sigma_t).to(x.dtype) * x - gain * x0
        step = _Step(first, gain, h, x0, ratios, differences)
        x = step.predicted()
        if not steady:
            step = None
        if not torch.isfinite(lambda_t):
            memory.clear()
    yield x, float(times[-1])
