"""Every sampler of fixed steps by its name, and the grid of times that it takes by default."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from nag.samplers.multistep import dpmpp_2m, unipc
from nag.samplers.one_step import (
    State,
    ddim,
    ddim_step,
    ddpm,
    ddpm_step,
    euler,
    euler_maruyama,
    euler_maruyama_step,
    euler_step,
    heun,
    midpoint,
    stochastic_heun,
)
from nag.samplers.time_grids import grid

# Of fixed steps. dopri5 is left out: its steps depend on all images of a batch, an image's seed no
# longer decides it.
SAMPLERS: dict[str, Callable[..., Iterator[State]]] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "euler_maruyama": euler_maruyama,
    "euler_maruyama_tweedie": partial(euler_maruyama, last_step="tweedie"),
    "stochastic_heun": stochastic_heun,
    "ddpm": ddpm,
    "ddim": ddim,
    "ddim_eta1": partial(ddim, eta=1.0),
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": partial(dpmpp_2m, stochastic=True),
    "unipc": unipc,
}
# The step functions of those with one evaluation a step and no memory.
STEPS: dict[str, Callable[..., Tensor]] = {
    "euler": euler_step,
    "euler_maruyama": euler_maruyama_step,
    "euler_maruyama_tweedie": partial(euler_maruyama_step, last_step="tweedie"),
    "ddpm": ddpm_step,
    "ddim": ddim_step,
    "ddim_eta1": partial(ddim_step, eta=1.0),
}
OWN_GRIDS = {
    "euler_maruyama": "sde",
    "euler_maruyama_tweedie": "sde",
    "stochastic_heun": "sde",
    "ddpm": "respaced",
    "ddim": "respaced",
    "ddim_eta1": "respaced",
}  # of the others: uniform
FAMILY_SAMPLERS = {
    "ode": ("euler", "ddim"),
    "sde": ("euler_maruyama", "ddpm"),
}  # of flows, and of DDPM's path


def resolve(sampler: str, path: str = "linear") -> str:
    """A name in SAMPLERS; "ode" and "sde" stand for the usual samplers of a path. Raises ValueError
    for an unknown name.
    """
    name = FAMILY_SAMPLERS[sampler][path == "ddpm"] if sampler in FAMILY_SAMPLERS else sampler
    if name not in SAMPLERS:
        raise ValueError(
            f"unknown sampler {sampler!r}: choose one of {sorted([*SAMPLERS, *FAMILY_SAMPLERS])}"
        )
    return name


def resolve_grid(sampler: str, path: str = "linear", name: str = "default") -> str:
    """A name in nag.samplers.time_grids; "default" is the sampler's own."""
    return OWN_GRIDS.get(resolve(sampler, path), "uniform") if name == "default" else name


def time_grid(sampler: str, steps: int, path: str = "linear", name: str = "default") -> Tensor:
    """A sampler's times (steps + 1,) on a grid by name; raises ValueError for unknown names."""
    return grid(resolve_grid(sampler, path, name), steps, path)


def last(states: Iterator[State]) -> Tensor:
    """The sample: the last state's x."""
    return deque(states, maxlen=1)[0][0]
