"""Noise Awareness Guidance: measure a diffusion or flow model's noise shift, and correct it.

"Mitigating the Noise Shift for Denoising Generative Models via Noise Awareness Guidance",
arXiv 2510.12497. Where each formula of the paper is:

| formula | here |
|---|---|
| x_t = alpha_t x_0 + sigma_t eps | `add_noise` |
| classifier-free NAG, s_w(x|t) = (w+1) s(x|t) - w s(x) | `noise_awareness` |
| classifier-based NAG, s(x|t) + w grad log g_phi(t|x) | `classifier_noise_awareness` |
| NAG + CFG, s + w_nag (s - s(x|c)) + w_cfg (s - s(x|t)), s = s(x|t,c) | `GuidedField`, two terms |
| noise-condition dropout, training both predictions | `denoising_loss`, `noise_condition_dropout` |
| posterior p(t|x) of a state's noise level; its KDE over images | `posterior`, `posterior_kde` |
| noise shift delta = t' - t | `noise_shift`, `measure_shift` |
| Statement 1, sigma_{t+delta}^2 = sigma_t^2 + sigma_e^2 | `statement_1` |
| Domain Guidance, s(x|t,c) + w (s(x|t,c) - s_0(x|t)) | `domain` |
"""

from nag.auto_weight import weight_schedule
from nag.checkpoint import save
from nag.diagnose import measure_shift, scheduler_shift
from nag.estimator import NoiseEstimator, estimator_loss, posterior, posterior_mean
from nag.guidance import (
    GuidedField,
    Term,
    autoguidance,
    classifier_free,
    classifier_noise_awareness,
    domain,
    noise_awareness,
)
from nag.interpolant import add_noise, convert
from nag.losses import denoising_loss, noise_condition_dropout
from nag.models import DiT, ModelConfig
from nag.pretrained.hub import export_pretrained, load, weights_file
from nag.samplers.multistep import dpmpp_2m, unipc
from nag.samplers.one_step import ddim, euler, euler_maruyama, heun
from nag.samplers.registry import SAMPLERS, last, time_grid
from nag.samplers.time_grids import uniform
from nag.shift import (
    estimated_times,
    forward_states,
    noise_shift,
    posterior_kde,
    statement_1,
)
from nag.support.rng import ImageNoise
from nag.train import TrainConfig, fit

__version__ = "0.1.0"

__all__ = [
    # a network
    "DiT",
    "ModelConfig",
    "load",
    "save",
    "weights_file",
    "export_pretrained",
    # guidance
    "GuidedField",
    "Term",
    "noise_awareness",
    "classifier_noise_awareness",
    "classifier_free",
    "domain",
    "autoguidance",
    "weight_schedule",
    # sampling
    "ImageNoise",
    "SAMPLERS",
    "ddim",
    "dpmpp_2m",
    "euler",
    "euler_maruyama",
    "heun",
    "last",
    "time_grid",
    "unipc",
    "uniform",
    # the noise shift
    "NoiseEstimator",
    "estimated_times",
    "estimator_loss",
    "forward_states",
    "measure_shift",
    "noise_shift",
    "posterior",
    "posterior_kde",
    "posterior_mean",
    "scheduler_shift",
    "statement_1",
    # training
    "TrainConfig",
    "denoising_loss",
    "fit",
    "noise_condition_dropout",
    # the forward process
    "add_noise",
    "convert",
]
