"""DDIM between believed noise levels: the sampler of the rivals that correct the level of a state.

Levels are times t, numbers or (B,) tensors, of states x (B, ...)."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from nag.interpolant import coefficients, convert, falling
from nag.samplers.one_step import Noise, State

Time = float | Tensor


class Step(NamedTuple):
    """One step: x is taken for a state at level `now`, the new state is made for level `then`.

    The network is given the level `now`, or `seen` if that is another one. `scale`, a number or of
    shape (B, 1, ...), multiplies the new state; 1 unless it is to be kept at another level's scale.
    """

    x: Tensor
    now: Time
    then: Time
    seen: Time | None = None
    scale: Tensor | float = 1.0


Adjust = Callable[[Tensor, float, float], Step]


def corrected_ddim(
    field: Callable,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    path: str = "linear",
    *,
    adjust: Adjust,
) -> Iterator[State]:
    """Deterministic DDIM (Song et al., 2021) between the levels that adjust(x, t, s) says.

        x_then = alpha_then x_0-hat + sigma_then eps-hat

    Yields every state with its nominal time. Step(x, t, s) is plain DDIM; the field must take t as
    (B,) if a level is."""
    yield x, float(times[0])
    for t, s in pairwise(falling(times)):
        x, now, then, seen, scale = adjust(x, t, s)
        given = now if seen is None else seen
        v = field(x, given)
        eps = convert(v, x, given, "v", "eps", path)
        if seen is None:  # one level throughout: x_0 from v is finite at pure noise too
            x0 = convert(v, x, now, "v", "x0", path)
        else:
            x0 = convert(eps, x, now, "eps", "x0", path)
        c = coefficients(path, then, x)
        x = scale * (c.alpha * x0 + c.sigma * eps)
        yield x, s
