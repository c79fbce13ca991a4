"""NAG for pipelines without guiders, and for denoisers of (x, sigma) as in k-diffusion.

with guided(pipe.unet, w=0.5, null=vector):
    pipe(prompt)"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from nag.guidance import guide
from nag.integrations.guider import NoiseAwarenessGuidance, leading
from nag.integrations.time_hooks import remove_hook, unwrapped

NAME = "nag_two_passes"


class _TwoPasses(ModelHook):
    """Runs the model twice and mixes, d = p + w (p - p_neg)."""

    def __init__(self, guider: NoiseAwarenessGuidance, conditional_half: int | None):
        super().__init__()
        self.guider, self.conditional_half = guider, conditional_half

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        guider, run = self.guider, self.fn_ref.original_forward
        plain = run(*args, **kwargs)
        if guider.negative == "disturbed":
            told = kwargs["timestep"] if "timestep" in kwargs else args[1]
            guider._timestep = torch.as_tensor(told).reshape(-1)[0]
            amount = guider.disturbance * guider._time() ** guider.power
            guider._disturbed.amount = torch.tensor(amount)
        with guider._condition.dropped():
            other = run(*args, **kwargs)
        p, q = _tensor(plain), _tensor(other)
        direction = leading(p - q, guider.channels)
        if self.conditional_half is not None:
            direction = direction.chunk(2)[self.conditional_half].repeat(2, *[1] * (p.ndim - 1))
        mixed = guide(p, [(guider.w, direction)])
        if isinstance(plain, tuple):
            return (mixed, *plain[1:])
        return type(plain)(sample=mixed)


def _tensor(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out.sample


@contextmanager
def guided(
    model: nn.Module,
    w: float = 0.5,
    null: Tensor | None = None,
    *,
    conditional_half: int | None = None,
    **settings: Any,
) -> Iterator[None]:
    """Within the block the model's predictions are guided, in whatever pipeline calls it.

    `settings` are those of `NoiseAwarenessGuidance`, such as negative="shifted". In a pipeline that
    runs classifier-free guidance as one doubled batch, give the half that has the prompt (0 in
    DiTPipeline, 1 in Stable Diffusion's): NAG's direction is then that of the prompt, as in NAG +
    CFG; without it both halves are guided, and the pipeline mixes them. Raises ValueError as the
    guider does."""
    guider = NoiseAwarenessGuidance(w=w, null=null, **settings)
    module = unwrapped(model)
    guider.attach(module)
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(_TwoPasses(guider, conditional_half), NAME)
    try:
        yield
    finally:
        remove_hook(module, NAME)
        guider.detach()


def guided_denoiser(
    denoiser: Callable[..., Tensor],
    model: nn.Module,
    w: float = 0.5,
    null: Tensor | None = None,
    *,
    sigma_range: tuple[float, float] = (0.0, float("inf")),
    **settings: Any,
) -> Callable[..., Tensor]:
    """A denoiser (x, sigma, **extra) -> E[x_0 | x] guided by NAG, for k-diffusion's samplers.

        D + w (D - D_neg)

    `model` is the network inside, whose time embedders are named by `embedders`; the weights sum to
    one, so that mixing denoised images is the same as mixing noise. NAG acts where all sigma of the
    batch lie in `sigma_range`. The hooks stay on the model: the result's `detach()` takes them off.
    """
    if settings.get("negative") == "disturbed":
        raise ValueError('negative="disturbed" needs timesteps: use "null" or "shifted"')
    guider = NoiseAwarenessGuidance(w=w, null=null, **settings)
    guider.attach(model)
    low, high = sigma_range

    def call(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        plain = denoiser(x, sigma, **extra)
        if not bool(((sigma >= low) & (sigma <= high)).all()):
            return plain
        with guider._condition.dropped():
            other = denoiser(x, sigma, **extra)
        return guide(plain, [(w, leading(plain - other, guider.channels))])

    call.detach = guider.detach  # type: ignore[attr-defined]
    return call
