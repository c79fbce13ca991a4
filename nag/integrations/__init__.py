"""NAG for other people's models: measure them, guide them, train their null condition.

diffusers and k-diffusion are met in this folder only; the rest of `nag` never imports it. Each name
is imported when it is first asked for, so that measuring works where diffusers is not installed."""

# ruff: noqa: F401
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nag.integrations.callables import record_denoiser, record_field
    from nag.integrations.diagnosis import Diagnosis, diagnose
    from nag.integrations.guider import NoiseAwarenessGuidance, load_null, save_null
    from nag.integrations.level_estimator import LevelEstimator, train_estimator
    from nag.integrations.null_training import (
        add_noise_condition_dropout,
        denoising_loss_of,
        train_null_vector,
    )
    from nag.integrations.recorder import Recording, record, record_calls
    from nag.integrations.wrappers import guided, guided_denoiser

PLACES = {
    "callables": ("record_denoiser", "record_field"),
    "diagnosis": ("Diagnosis", "diagnose"),
    "guider": ("NoiseAwarenessGuidance", "load_null", "save_null"),
    "level_estimator": ("LevelEstimator", "train_estimator"),
    "null_training": ("add_noise_condition_dropout", "denoising_loss_of", "train_null_vector"),
    "recorder": ("Recording", "record", "record_calls"),
    "wrappers": ("guided", "guided_denoiser"),
}
MODULES = {name: module for module, names in PLACES.items() for name in names}
__all__ = sorted(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"nag.integrations has no {name!r}: choose one of {__all__}")
    return getattr(import_module(f"nag.integrations.{MODULES[name]}"), name)
