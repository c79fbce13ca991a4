"""Train the null condition of somebody's model: noise-condition dropout, or a null vector alone.

In a stock training script, one line after the model is made and before its optimiser is:

    add_noise_condition_dropout(model, probability=0.1)

The vector becomes the parameter `null_noise` of the model, so that the script's own optimiser,
checkpoints and EMA take it along, and the masks come from torch's global generator, whose state
training scripts save: a resumed run equals one that was not stopped."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from nag.integrations.time_hooks import (
    EMBEDDERS,
    TimeCondition,
    embedding_width,
    null,
    remove_hook,
    unwrapped,
)
from nag.support.files import read_json, write_json
from nag.support.rng import generator
from nag.support.weight_files import content
from nag.train import TrainConfig, train

PARAMETER = "null_noise"
NAME = "nag_noise_condition_dropout"


class _Draw(ModelHook):
    """Draws at each call of a training model which rows lose their noise level, for all embedders.

    Once a call and on the whole model: diffusers' DiT has an embedder in every block, and asks the
    first one twice."""

    def __init__(self, condition: TimeCondition, probability: float):
        super().__init__()
        self.condition, self.probability = condition, probability

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        drop: bool | Tensor = False
        if module.training:
            x = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
            assert isinstance(x, Tensor), "a denoiser's first argument is its state"
            drop = torch.rand(len(x), device=x.device) < self.probability
        self.condition.set(drop)
        return args, kwargs


class _Dropout(TimeCondition):
    """The hooks of the embedders, and the one that draws."""

    def __init__(self, model: nn.Module, vector: nn.Parameter, probability: float, names: Any):
        super().__init__(NAME)
        self.change(model, null(vector), names)
        self.model = unwrapped(model)
        registry = HookRegistry.check_if_exists_or_initialize(self.model)
        registry.register_hook(_Draw(self, probability), NAME)

    def remove(self) -> None:
        super().remove()
        remove_hook(self.model, NAME)


def add_noise_condition_dropout(
    model: nn.Module,
    probability: float = 0.1,
    *,
    embedders: Sequence[str] = EMBEDDERS,
    seed: int = 0,
) -> TimeCondition:
    """In training, each row loses its noise level with this probability (arXiv 2510.12497, Sec. 4).

        net(x_t, t, c) with probability 1 - p,   net(x_t, null, c) with probability p

    The null vector (D,) starts small and random, or as the model has it, and is learned as
    `model.null_noise`; in evaluation nothing changes. Returns the hooks, whose `remove` takes them
    off and leaves the parameter. Raises ValueError for a probability outside [0, 1] or a model
    without a time embedder."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability} must be in [0, 1]; the paper has 0.1 and 0.2")
    if not hasattr(model, PARAMETER):
        start = torch.randn(
            embedding_width(model, embedders), generator=torch.Generator().manual_seed(seed)
        )
        like = next(model.parameters())
        model.register_parameter(PARAMETER, nn.Parameter(0.02 * start.to(like)))
    return _Dropout(model, getattr(model, PARAMETER), probability, embedders)


def train_null_vector(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    size: int,
    config: TrainConfig,
    checkpoint: str | Path,
    *,
    embedders: Sequence[str] = EMBEDDERS,
) -> Tensor:
    """The null vector (D,) of a frozen model: all rows without the noise level, all else as it is.

    `loss(model, indices (B,), generator)` is the model's own on `size` items (`denoising_loss_of`
    for diffusers' models). A run that was stopped goes on from `checkpoint`, which is removed at
    the end. Cheap, but it may give a part of the gain only (finding F10). Raises ValueError for a
    checkpoint of another model or loss, which a note beside it tells."""
    state = Path(checkpoint)
    note = _claim(state, model, loss, min(size, config.batch_size))
    kept = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    condition = add_noise_condition_dropout(model, 1.0, embedders=embedders, seed=config.seed)
    vector = getattr(model, PARAMETER).requires_grad_(True)
    try:
        train(model, loss, size, config, state)
    finally:
        condition.remove()
        found = vector.detach().cpu().clone()
        delattr(model, PARAMETER)
        for parameter, wanted in kept.items():
            parameter.requires_grad_(wanted)
    for path in (state, note):
        path.unlink(missing_ok=True)
    return found


@torch.no_grad()
def _claim(state: Path, model: nn.Module, loss: Callable, count: int) -> Path:
    """The note beside a training's state that says of what it is: the model's content, and its loss
    on the first `count` items, which tells other data; raises ValueError if it is of another run.

    Restoring a state of another model would put that model's weights into this one."""
    note = state.with_name(state.name + ".json")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of dropout
        value = float(loss(model, torch.arange(count), generator(0, 8)))
    mine = {"model": content(v for _, v in sorted(model.state_dict().items()))}
    mine |= {"loss": repr(value)}  # JSON has no NaN
    if state.exists():
        known = read_json(note) if note.exists() else {}
        same = math.isclose(float(known.get("loss", "nan")), value, rel_tol=1e-3)
        if known.get("model") != mine["model"] or not same:
            raise ValueError(
                f"{state} is of another model, other data or another loss: delete it, or train "
                "under another name"
            )
    else:
        write_json(note, mine)
    return note


def denoising_loss_of(
    scheduler: Any, images: Tensor, conditions: dict[str, Tensor] | None = None
) -> Callable[[nn.Module, Tensor, torch.Generator], Tensor]:
    """The usual loss of a diffusers model under a training scheduler, for `train_null_vector`.

    images or latents are (N, C, H, W); conditions are further arguments of the model by name, each
    with N rows. Flow matching predicts eps - x_0 at a uniform timestep, table schedulers what their
    `prediction_type` says; a predicted variance is not trained."""
    extra, flow = conditions or {}, not hasattr(scheduler, "alphas_cumprod")
    kind = "flow" if flow else scheduler.config.prediction_type
    if kind not in ("flow", "epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction_type {kind!r} is not known here: write the loss yourself")

    def loss(net: nn.Module, index: Tensor, gen: torch.Generator) -> Tensor:
        device = next(net.parameters()).device
        x0 = images[index]
        eps = torch.randn(x0.shape, generator=gen)
        levels = scheduler.config.num_train_timesteps
        if flow:
            u = torch.rand(len(x0), generator=gen)
            s = u.view(-1, *[1] * (x0.ndim - 1))
            t, x_t, target = u * levels, (1 - s) * x0 + s * eps, eps - x0
        else:
            t = torch.randint(levels, (len(x0),), generator=gen)
            x_t = scheduler.add_noise(x0, eps, t)
            if kind == "v_prediction":
                target = scheduler.get_velocity(x0, eps, t)
            else:
                target = eps if kind == "epsilon" else x0
        given = {name: rows[index].to(device) for name, rows in extra.items()}
        out = net(x_t.to(device), timestep=t.to(device), **given, return_dict=False)[0]
        return (out[:, : x0.shape[1]].float() - target.to(device)).square().mean()

    return loss
