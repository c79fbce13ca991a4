"""What notebook 30 measures: NAG and its classifier-based form as the noise goes to zero."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from companion.experiments import study
from companion.experiments.spaces import Features
from companion.studies.families import Family
from companion.studies.grids import (
    Key,
    Rows,
    enough,
    gaps,
    noise_to_signal,
    root_ratio,
    within_class,
)
from companion.studies.intervals import numbers
from nag import checkpoint
from nag.data import fashion_mnist
from nag.estimator import NoiseEstimator, log_prob_gradient, posterior_mean
from nag.guidance import GuidedField, noise_awareness
from nag.interpolant import PATHS, add_noise, convert, velocity_target
from nag.support.device import best_device
from nag.support.rng import ImageNoise
from nag.support.uncertainty import Interval, bootstrap, interval

POWERS = ("score", "difference", "gradient")  # sizes whose power of sigma is measured
RATIOS = {  # of root mean squares
    "nag_over_v": ("nag", "v"),
    "rounding_over_v": ("rounding", "v"),
    "error_over_target": ("error", "target"),
    "error_without_over_with": ("error_null", "error"),
}


def load_estimator(file: Path) -> nn.Module:
    """The committed estimator of a file, on the best device."""
    return checkpoint.load_weights(file, NoiseEstimator()).to(best_device())


def test_images(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first n test images, their labels, and noise for them."""
    images, labels = fashion_mnist.load_fashion_mnist("test")
    where = best_device()
    x0 = fashion_mnist.to_float(images[:n]).to(where)
    noise = ImageNoise(range(10**6, 10**6 + n), where)(x0.shape[1:])
    return x0, labels[:n].long().to(where), noise


def at_time(
    family: Family,
    estimator: nn.Module,
    data: tuple[Tensor, Tensor, Tensor],
    t: float,
    w: float,
    precision: str,
) -> dict[str, np.ndarray]:
    """Of every image's forward state at t: mean squares per pixel (M,) of the fields below, the
    cosine of NAG's difference and the classifier's gradient, and the estimator's error over t.

    The network is asked with the noise level (v) and without (null). A solver takes v, not the
    score, and can still move the image by (sigma / alpha) w |eps - eps_null| from t on
    (`image_nag`, in grey levels of 255, as if the rest of the way went in one step). `rounding` is
    what the precision of the sampling makes of v in the place of float32."""
    (x0, labels, noise), net, path = data, family.net, family.path
    x, target = add_noise(x0, noise, t, path), velocity_target(x0, noise, t, path)

    def field(*terms, **how) -> Tensor:
        return GuidedField(net, labels, list(terms), **how)(x, t)

    def seen_as(kind: str, v: Tensor) -> Tensor:
        return convert(v, x, t, "v", kind, path)

    v, null = field(), field(noise_awareness(-1.0))  # f - (f - f_null)
    guided = v + w * (v - null)
    rounded = [field(*terms, precision=precision) for terms in ([], [noise_awareness(w)])]
    difference = seen_as("score", v) - seen_as("score", null)
    gradient = log_prob_gradient(estimator, x, t)
    fields = {
        "v": v,
        "target": target,
        "error": v - target,
        "error_null": null - target,
        "nag": guided - v,
        "rounding": rounded[0] - v,
        "score": seen_as("score", v),
        "difference": difference,
        "gradient": gradient,
        "image_nag": 127.5 * (seen_as("x0", guided) - seen_as("x0", v)),
        "image_rounding": 127.5 * (seen_as("x0", rounded[1]) - seen_as("x0", guided)),
    }
    found = {name: value.flatten(1).double().square().mean(1) for name, value in fields.items()}
    found["cosine"] = nn.functional.cosine_similarity(difference.flatten(1), gradient.flatten(1))
    found["estimator_error"] = (posterior_mean(estimator, x).detach() - t).abs() / t
    return {name: value.cpu().numpy() for name, value in found.items()}


def along(
    family: Family,
    estimator: nn.Module,
    data: tuple[Tensor, Tensor, Tensor],
    times: Sequence[float],
    w: float,
    precision: str,
    resamples: int,
    trusted: float,
) -> dict:
    """Everything of `at_time` by time, smallest first, as arrays with intervals over images; powers
    of sigma between neighbouring times; and where the estimator's mean error is below `trusted`."""
    times = sorted(times)
    clock = torch.tensor(times, dtype=torch.float64)
    sigma = PATHS[family.path](clock).sigma.numpy()
    per_time = [at_time(family, estimator, data, t, w, precision) for t in times]
    at = {name: np.stack([found[name] for found in per_time], 1) for name in per_time[0]}

    def measured(values: np.ndarray, statistic: Callable) -> Interval:
        return interval(statistic(values), bootstrap(values, statistic, resamples))

    def mean(a: np.ndarray) -> np.ndarray:
        return a.mean(0)

    def rms(a: np.ndarray) -> np.ndarray:
        return np.sqrt(a.mean(0))

    def quotient(a: np.ndarray) -> np.ndarray:
        return rms(a)[0] / rms(a)[1]

    def power(a: np.ndarray) -> np.ndarray:
        return np.diff(np.log(rms(a))) / np.diff(np.log(sigma))

    averaged = ("cosine", "estimator_error")
    found = {name: measured(a, mean if name in averaged else rms) for name, a in at.items()}
    for name, (top, bottom) in RATIOS.items():
        found[name] = measured(np.stack([at[top], at[bottom]], 1), quotient)
    found |= {f"slope_{name}": measured(at[name], power) for name in POWERS}
    rounded = {
        name: {end: np.asarray(values).round(6).tolist() for end, values in x.items()}
        for name, x in found.items()
    }
    return rounded | {
        "t": times,
        "sigma": sigma.tolist(),
        "ratio": noise_to_signal(clock, family.path).tolist(),
        "n": len(data[0]),
        "w": w,
        "gradient_trusted": (found["estimator_error"]["value"] <= trusted).tolist(),
    }


def largest_nag_over_v(small: Mapping) -> dict:
    """The time at which NAG's part w (v - v_null) is largest relative to v, and how large."""
    k = int(np.argmax(small["nag_over_v"]["value"]))
    return {"t": small["t"][k], **numbers({end: x[k] for end, x in small["nag_over_v"].items()})}


# ---- arms


def over_everywhere(rows: Rows, real: Features, what: str) -> dict[Key, dict]:
    """Fréchet ratio of the arms with `what` in their name over NAG everywhere, by seed."""
    ratios = {}
    for key, row in enough(rows).items():
        if what in key[2]:
            everywhere = rows[*key[:2], "nag"]
            ratios[key] = study.ratio(row, study.first(everywhere, len(row["seeds"])), real)
    return ratios


def moved(rows: Rows, family: Family, grid: str, resamples: int) -> dict[str, Interval]:
    """How far the images of a seed lie from those with NAG everywhere, in units of two images of a
    class: with NAG off below a sigma / alpha, and in float32."""
    everywhere = rows[family.name, grid, "nag"]
    alike, found = within_class(everywhere, family.net.config.classes), {}
    for (name, _, arm), row in rows.items():
        if name == family.name and arm != "nag":
            n = len(row["seeds"])
            label = arm.replace("nag above", "off below").replace("nag, ", "")
            found[label] = root_ratio(gaps(row, everywhere, n), alike[:n], resamples)
    return found
