"""Hooks on a diffusers model's time embedders: what the network hears of the noise level.

A hook on the output of the embedder, because loops build the timestep themselves, and no timestep
means "unknown": the sinusoid turns any number into something plausible. It stays in place with a
flag, so that a compiled model is traced once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

NAME = "nag_time_condition"
# The last part of the embedders' names in diffusers' models; other embedders, of guidance strength
# or image size, have other names and are left alone.
EMBEDDERS = ("timestep_embedder", "time_embedding", "time_embedder", "time_embed")
Change = Callable[[Tensor], Tensor]  # an embedding (B, D) to another


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, if `torch.compile` wraps it."""
    return getattr(model, "_orig_mod", model)


def time_embedders(model: nn.Module, names: Sequence[str] = EMBEDDERS) -> list[nn.Module]:
    """The time embedders of a model: one, or one a block for diffusers' DiT.

    Raises ValueError if no module has one of `names` as the last part of its name."""
    found = [
        module
        for name, module in unwrapped(model).named_modules()
        if name.rpartition(".")[2] in names
    ]
    if not found:
        raise ValueError(
            f"{type(unwrapped(model)).__name__} has no time embedder called one of {list(names)}: "
            "give embedders=, the last part of its name in named_modules()"
        )
    return found


def embedding_width(model: nn.Module, names: Sequence[str] = EMBEDDERS) -> int:
    """D of the time embeddings (B, D): the rows of the embedder's last weight matrix."""
    embedder = time_embedders(model, names)[0]
    return [p for p in embedder.parameters() if p.ndim == 2][-1].shape[0]


class TimeHook(ModelHook):
    """Replaces an embedding where `drop`, () or (B,) bool, is set."""

    def __init__(self, change: Change):
        super().__init__()
        self.change = change
        self.drop = torch.zeros((), dtype=torch.bool)

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        drop = self.drop.to(output.device).reshape(-1, *[1] * (output.ndim - 1))
        return torch.where(drop, self.change(output).to(output.dtype), output)


class ShiftHook(ModelHook):
    """Adds `shift`, in the model's own unit, to the timestep that the whole model gets."""

    def __init__(self, shift: float):
        super().__init__()
        self.shift = shift
        self.drop = torch.zeros((), dtype=torch.bool)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        if "timestep" in kwargs:
            kwargs["timestep"] = self._moved(kwargs["timestep"])
        elif len(args) > 1:
            args = (args[0], self._moved(args[1]), *args[2:])
        else:
            raise ValueError("the model was called without a timestep: pass it by its name")
        return args, kwargs

    def _moved(self, timestep: Any) -> Tensor:
        t = torch.as_tensor(timestep)
        return torch.where(self.drop.to(t.device), t + torch.as_tensor(self.shift).to(t), t)


class TimeCondition:
    """The hooks of one model under one name, switched together."""

    def __init__(self, name: str = NAME):
        self.name = name
        self.modules: list[nn.Module] = []
        self.hooks: list[TimeHook | ShiftHook] = []

    def change(self, model: nn.Module, change: Change, names: Sequence[str] = EMBEDDERS) -> None:
        """Hook the embedders, to put change(e) in the place of their output e (B, D)."""
        for embedder in time_embedders(model, names):
            self._register(embedder, TimeHook(change))

    def shift(self, model: nn.Module, shift: float) -> None:
        """Hook the model, to get timestep + shift."""
        self._register(unwrapped(model), ShiftHook(shift))

    def _register(self, module: nn.Module, hook: TimeHook | ShiftHook) -> None:
        registry = HookRegistry.check_if_exists_or_initialize(module)
        registry.remove_hook(self.name, recurse=False)  # another guider's: the last one counts
        registry.register_hook(hook, self.name)
        self.modules.append(module)
        self.hooks.append(hook)

    def set(self, drop: bool | Tensor) -> None:
        """Switch on or off, for all rows or for each by a mask (B,)."""
        for hook in self.hooks:
            hook.drop = torch.as_tensor(drop)

    @contextmanager
    def dropped(self, drop: bool | Tensor = True) -> Iterator[None]:
        """Switched on within the block."""
        self.set(drop)
        try:
            yield
        finally:
            self.set(False)

    @property
    def in_place(self) -> bool:
        """Whether all hooks are still those of this object."""
        mine = zip(self.modules, self.hooks, strict=True)
        return bool(self.hooks) and all(_hook(m, self.name) is hook for m, hook in mine)

    def remove(self) -> None:
        """Take the hooks away, and what diffusers leaves on the modules if nobody needs it."""
        for module, hook in zip(self.modules, self.hooks, strict=True):
            if _hook(module, self.name) is hook:
                remove_hook(module, self.name)
        self.modules, self.hooks = [], []


def _hook(module: nn.Module, name: str) -> ModelHook | None:
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


def remove_hook(module: nn.Module, name: str) -> None:
    """Take a hook off a module; without others, what diffusers leaves there goes too."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.remove_hook(name, recurse=False)
    if not registry.hooks:
        del module._diffusers_hook
        own = getattr(vars(module).get("forward"), "__func__", None)
        if own is type(module).forward:  # another library's wrapper stays
            del module.forward


def null(vector: Tensor) -> Change:
    """e -> the null vector (D,): "noise level unknown"."""
    return lambda e: vector.to(e).expand_as(e)


class Disturbed:
    """Time-Step Guidance's negative (arXiv 2407.02687): e + amount std(e) n, n one Gaussian draw.

    `amount` is s t^alpha, set at each step; std is over the channels of each row."""

    def __init__(self, seed: int = 0):
        self.amount, self.seed = torch.zeros(()), seed
        self.n: Tensor | None = None  # drawn when the width is known

    def __call__(self, e: Tensor) -> Tensor:
        n = self.draw(e.shape[-1]).to(e)
        return e + self.amount.to(e) * e.std(-1, keepdim=True) * n

    def draw(self, width: int) -> Tensor:
        """The fixed draw n (D,)."""
        if self.n is None or len(self.n) != width:
            self.n = torch.randn(width, generator=torch.Generator().manual_seed(self.seed))
        return self.n
