"""Noise Awareness Guidance as a diffusers guider, with or without classifier-free guidance.

    pipe.update_components(guider=NoiseAwarenessGuidance(w=0.5, null=vector))

    d = p + (scale - 1) (p - p_uncond) + w (p - p_neg)

p_neg is the prediction without the noise level (NAG, arXiv 2510.12497, needs a trained null
vector), with its time embedding disturbed (Time-Step Guidance, arXiv 2407.02687) or for a noisier
level (Self-Guidance, arXiv 2412.05827); the last two need no training."""

import json
import math
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg
from torch import Tensor, nn

from nag.guidance import guide
from nag.integrations.time_hooks import (
    EMBEDDERS,
    Disturbed,
    TimeCondition,
    embedding_width,
    null,
    unwrapped,
)
from nag.support.files import atomic
from nag.support.weight_files import read_file

NULL_FILE = "null_noise.safetensors"  # beside guider_config.json
NEGATIVES = ("null", "disturbed", "shifted")


def save_null(folder: str | Path, vector: Tensor) -> None:
    """Write a null vector (D,) as FOLDER/null_noise.safetensors."""
    from safetensors.torch import save

    Path(folder).mkdir(parents=True, exist_ok=True)
    with atomic(Path(folder) / NULL_FILE) as part:
        part.write_bytes(save({"null_noise": vector.detach().cpu().contiguous()}))


def load_null(folder: str | Path) -> Tensor:
    """The null vector (D,) of a folder; raises FileNotFoundError if it has none, ValueError if its
    file is damaged."""
    file = Path(folder) / NULL_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no {NULL_FILE} in {folder}: save the guider with its null vector")
    return _null_in(file)


def _null_in(file: Path) -> Tensor:
    state, _ = read_file(file)
    vector = state.get("null_noise") if isinstance(state, dict) else None
    if vector is None or vector.ndim != 1:
        raise ValueError(f"{file} holds no vector null_noise: save the guider again")
    return vector


def _checked_config(file: Path) -> None:
    """Raise FileNotFoundError or ValueError with advice where diffusers would speak of the Hub."""
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {file.parent}: save the guider there")
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is truncated or no configuration: save the guider again")


class NoiseAwarenessGuidance(BaseGuidance):
    """The guider; see the module for its formula.

    w: weight of NAG, 0 for none. guidance_scale: that of classifier-free guidance, 1 for none.
    negative: "null", "disturbed" or "shifted". null: the vector (D,) of "null", no part of the JSON
    configuration but kept beside it. nag_start, nag_stop: fractions of the steps in which NAG acts;
    start and stop those of classifier-free guidance. channels: leading channels guided, for models
    that also predict a variance. disturbance s and power alpha, seed: Time-Step Guidance's. shift:
    Self-Guidance's, in the unit of the model's timestep (10 of 1000). embedders: last parts of the
    names of the model's time embedders. Raises ValueError for another negative, fractions outside
    [0, 1], or what is not a number."""

    ignore_for_config = ["null"]
    _input_predictions = ["pred_cond", "pred_uncond", "pred_cond_negative"]

    @register_to_config
    def __init__(
        self,
        w: float = 0.5,
        guidance_scale: float = 1.0,
        negative: str = "null",
        nag_start: float = 0.0,
        nag_stop: float = 1.0,
        channels: int | None = None,
        guidance_rescale: float = 0.0,
        disturbance: float = 2.0,
        power: float = 1.0,
        seed: int = 0,
        shift: float = 10.0,
        embedders: Sequence[str] = EMBEDDERS,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        null: Tensor | None = None,
    ):
        super().__init__(start, stop, enabled)
        numbers = dict(w=w, guidance_scale=guidance_scale, nag_start=nag_start, nag_stop=nag_stop)
        numbers |= dict(disturbance=disturbance, power=power, shift=shift)
        for name, value in numbers.items():
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}, which is not a finite number: correct it")
        if negative not in NEGATIVES:
            raise ValueError(f"unknown negative {negative!r}: choose one of {NEGATIVES}")
        if not 0 <= nag_start < nag_stop <= 1:
            raise ValueError(
                f"nag_start {nag_start} and nag_stop {nag_stop} must satisfy 0 <= start < stop <= 1"
            )
        self.w, self.guidance_scale, self.negative = w, guidance_scale, negative
        self.nag_start, self.nag_stop, self.channels = nag_start, nag_stop, channels
        self.guidance_rescale, self.power = guidance_rescale, power
        self.disturbance, self.shift, self.embedders = disturbance, shift, tuple(embedders)
        self.null = null
        self._disturbed = Disturbed(seed)
        self._condition = TimeCondition()
        self._hooked: nn.Module | None = None

    def prepare_models(self, denoiser: nn.Module) -> None:
        self._count_prepared += 1
        if not self._nag_enabled():
            return
        self.attach(denoiser)
        if self._count_prepared == self.num_conditions:  # the negative is the last pass
            if self.negative == "disturbed":
                self._disturbed.amount = torch.tensor(self.disturbance * self._time() ** self.power)
            self._condition.set(True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._condition.set(False)

    def attach(self, denoiser: nn.Module) -> None:
        """Hook a model, once; until the flag is set its output is unchanged, bit for bit.

        Raises ValueError for a null vector that is missing or of another width."""
        if self._hooked is unwrapped(denoiser) and self._condition.in_place:
            return
        self.detach()
        if self.negative == "shifted":
            self._condition.shift(denoiser, self.shift)
        elif self.negative == "disturbed":
            self._disturbed.draw(embedding_width(denoiser, self.embedders))
            self._condition.change(denoiser, self._disturbed, self.embedders)
        else:
            self._condition.change(denoiser, null(self._checked_null(denoiser)), self.embedders)
        self._hooked = unwrapped(denoiser)

    def detach(self) -> None:
        """Take the hooks off the model."""
        self._condition.remove()
        self._hooked = None

    def _checked_null(self, denoiser: nn.Module) -> Tensor:
        if self.null is None:
            raise ValueError(
                'negative="null" needs null=, a trained vector (nag.integrations.null_training): '
                'without one try negative="shifted" or "disturbed"'
            )
        width = embedding_width(denoiser, self.embedders)
        if self.null.shape != (width,):
            raise ValueError(
                f"the null vector has shape {tuple(self.null.shape)} and the model's time "
                f"embedding ({width},): use the vector trained with this model"
            )
        return self.null.to(next(denoiser.parameters()).device)

    def _time(self) -> float:
        return float(self._timestep) / 1000 if self._timestep is not None else 1.0

    def _batches(self) -> list[tuple[int, str]]:
        """Which prompt each pass has (0 given, 1 none), and what its prediction is called."""
        passes = [(0, "pred_cond")]
        if self._cfg_enabled():
            passes.append((1, "pred_uncond"))
        if self._nag_enabled():
            passes.append((0, "pred_cond_negative"))
        return passes

    def prepare_inputs(self, data: dict) -> list:
        return [self._prepare_batch(data, index, name) for index, name in self._batches()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict) -> list:
        return [
            self._prepare_batch_from_block_state(input_fields, data, index, name)
            for index, name in self._batches()
        ]

    def forward(
        self,
        pred_cond: Tensor,
        pred_uncond: Tensor | None = None,
        pred_cond_negative: Tensor | None = None,
    ) -> GuiderOutput:
        directions = []
        if pred_uncond is not None:
            directions.append((self.guidance_scale - 1, pred_cond - pred_uncond))
        if pred_cond_negative is not None:
            directions.append((self.w, leading(pred_cond - pred_cond_negative, self.channels)))
        pred = guide(pred_cond, directions)
        if self.guidance_rescale > 0:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared != 2 or not self._cfg_enabled()

    @property
    def num_conditions(self) -> int:
        return len(self._batches())

    def _within(self, start: float, stop: float) -> bool:
        if self._num_inference_steps is None:
            return True
        first, end = (int(x * self._num_inference_steps) for x in (start, stop))
        return first <= self._step < end

    def _cfg_enabled(self) -> bool:
        wanted = self._enabled and not math.isclose(self.guidance_scale, 1.0)
        return wanted and self._within(self._start, self._stop)

    def _nag_enabled(self) -> bool:
        return self._enabled and self.w != 0 and self._within(self.nag_start, self.nag_stop)

    def new(self, **changes: Any) -> "NoiseAwarenessGuidance":
        """A copy with other settings and the same null vector."""
        vector = changes.pop("null", self.null)
        guider = type(self).from_config(self.config, **changes)
        guider.null = vector
        return guider

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write guider_config.json and, beside it, the null vector if there is one."""
        if self.null is not None:
            save_null(Path(save_directory), self.null)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> "NoiseAwarenessGuidance":
        """Read a folder, or a Hub repository, that `save_pretrained` wrote.

        Raises FileNotFoundError or ValueError for a folder without it or with damaged files."""
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        if folder.is_dir():
            _checked_config(folder / cls.config_name)
        guider = super().from_pretrained(
            pretrained_model_name_or_path, subfolder=subfolder, **kwargs
        )
        if folder.is_dir():
            guider.null = load_null(folder) if (folder / NULL_FILE).is_file() else None
        elif guider.negative == "null":
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(
                str(pretrained_model_name_or_path), NULL_FILE, subfolder=subfolder
            )
            guider.null = _null_in(Path(file))
        return guider


def leading(direction: Tensor, channels: int | None) -> Tensor:
    """A direction (B, C, ...) with all but its leading channels set to zero; None keeps all."""
    if channels is None:
        return direction
    kept = torch.zeros_like(direction)
    kept[:, :channels] = direction[:, :channels]
    return kept
