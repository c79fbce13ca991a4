"""The noise shift of a sampler's states: how much noisier they look than their nominal time says.

    delta(t) = E[t' | sampled x_t] - E[t' | forward x_t],   t' = E_g[t | x_t] of the estimator g_phi

The control, forward states of held-out real images at the same t, takes away the estimator's own
bias, so that delta is zero where there is no shift (arXiv 2510.12497, Sec. 3 and Figs. 1 and 4)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nag.interpolant import (
    PATHS,
    add_noise,
    falling,
    known_path,
    time_of_ratio,
    time_of_sigma,
)
from nag.support.rng import ImageNoise
from nag.support.uncertainty import Interval, bootstrap, interval

Estimator = Callable[[Tensor], Tensor]  # states x (B, C, H, W) to their noise levels t (B,)
# Ranges of noise over signal, sigma_t / alpha_t, so that they mean the same on every path.
LATE = 0.25  # "late" in sampling is all up to this; on the linear path t <= 0.2
MIDDLE = (2 / 3, 9.0)  # on the linear path 0.4 <= t <= 0.9


def statement_1(
    t: np.ndarray | float, sigma_e: np.ndarray | float, path: str = "linear"
) -> np.ndarray:
    """Statement 1: the noise shift delta of a state x_t with an error e ~ N(0, sigma_e^2 I) on top.

        sigma_{t+delta}^2 = sigma_t^2 + sigma_e^2

    To first order delta = (sqrt(sigma_t^2 + sigma_e^2) - sigma_t) / d_sigma_t; on the linear path,
    where sigma_t = t, this is exact: delta = sqrt(t^2 + sigma_e^2) - t. The signal still has the
    strength alpha_t. t in [0, 1] and sigma_e >= 0 broadcast; NaN where the path has no such noise
    (arXiv 2510.12497, Sec. 3)."""
    known_path(path)
    time = torch.as_tensor(t, dtype=torch.float64)
    error = torch.as_tensor(sigma_e, dtype=torch.float64)
    if ((time < 0) | (time > 1)).any() or (error < 0).any():
        raise ValueError("a time is not in [0, 1], or sigma_e is negative: give t = 1 for noise")
    sigma = (PATHS[path](time).sigma ** 2 + error**2).sqrt()
    return (time_of_sigma(sigma, path) - time).numpy()


def forward_states(
    images: Tensor, times: Tensor | np.ndarray, path: str = "linear", first_seed: int = 10**6
) -> Tensor:
    """Control states x_t (M, K, C, H, W) of real images (M, C, H, W) in [-1, 1], one noise draw per
    image for all times; raises ValueError for images that are not floats.
    """
    images = torch.as_tensor(images)
    if images.ndim not in (2, 4):  # (M, D) are vectors, as of the toy
        raise ValueError(f"images have shape {tuple(images.shape)}: give (M, C, H, W)")
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}, so that noise would be rounded off: give floats in [-1, 1]"
        )
    eps = ImageNoise(range(first_seed, first_seed + len(images)))(images.shape[1:])
    return torch.stack([add_noise(images, eps, float(t), path) for t in times], dim=1)


@torch.inference_mode()
def estimated_times(
    estimator: Estimator, states: Tensor | np.ndarray, batch: int = 1000
) -> np.ndarray:
    """Estimated noise levels t (M, K) of states (M, K, C, H, W), such as the posterior means.

    Raises FloatingPointError if a state is not finite."""
    states = torch.as_tensor(states)
    good = torch.isfinite(states).flatten(1).all(1)
    if not good.all():
        raise FloatingPointError(
            f"{int((~good).sum())} of {len(good)} images have states with NaN or infinity: if they "
            "are sampled, use float32, more steps or less guidance; if they are real, remove them"
        )
    flat = states.flatten(0, 1)
    means = torch.cat([estimator(chunk.float()).cpu().double() for chunk in flat.split(batch)])
    return means.view(states.shape[:2]).numpy()


def posterior_kde(levels: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Density over images of the estimated noise levels `levels` (M,) of states of one nominal t.

        p(t') = 1/(M h) sum_m phi((t' - E_g[t | x_m]) / h),   h = std(levels) M^(-1/5)

    with phi the standard normal density and Scott's (1992) bandwidth h. Returns t' (points,), three
    bandwidths wider than the levels but within [0, 1], and p(t') (points,). Raises ValueError if
    all levels are the same or one is not finite (arXiv 2510.12497, Fig. 1)."""
    levels = np.asarray(levels, dtype=float)
    if levels.ndim != 1 or not len(levels) or not np.isfinite(levels).all():
        raise ValueError(
            f"levels of shape {levels.shape}, {np.isnan(levels).sum()} of them NaN: give the "
            "finite levels (M,) of one time, such as a column of estimated_times"
        )
    if np.ptp(levels) == 0:
        raise ValueError("all estimates are alike, so they have no density: choose another t")
    from scipy.stats import gaussian_kde  # here, since it takes a second to import

    kde = gaussian_kde(levels)
    reach = 3 * np.sqrt(kde.covariance.item())
    t = np.linspace(max(levels.min() - reach, 0), min(levels.max() + reach, 1), points)
    return t, kde(t)


def check_readings(levels: np.ndarray, times: np.ndarray) -> None:
    """Raise ValueError if an estimator does not count as t does: its mean levels of forward states
    (M, K) at falling times (K,) leave [0, 1], or rise while the noise falls.
    """
    means = levels.mean(0)
    if means.min() < -0.05 or means.max() > 1.05:
        raise ValueError(
            f"the estimator reads levels of {means.min():.3g} to {means.max():.3g}, while t goes "
            "from 0 to 1: bring them to that, such as by (i + 1) / 1000 from DDPM's timesteps i"
        )
    if np.ptp(means) > 0.1 and np.corrcoef(means, times)[0, 1] < -0.5:
        raise ValueError(
            f"the estimator reads {means[0]:.3g} at t = {times[0]:.3g} and {means[-1]:.3g} at t = "
            f"{times[-1]:.3g}, so it counts from noise to data, or the control is of other times: "
            "give 1 minus its level, and the control that nag.forward_states makes at these times"
        )


def check_counts(sampled: int, control: int, resamples: int) -> None:
    """Raise ValueError if there are too few images or resamples for an interval."""
    if min(sampled, control) < 2:
        raise ValueError(
            f"{sampled} sampled and {control} real images: an interval over images needs at least "
            "2 of each"
        )
    if resamples < 2:
        raise ValueError(f"{resamples} resamples: an interval needs 2, and better 1000")


def _between(low: float, high: float, times: np.ndarray, path: str) -> np.ndarray:
    """Which of the times have low <= sigma_t / alpha_t <= high, to 1e-6 of it, and are above 0."""
    c = PATHS[path](torch.as_tensor(np.array(times), dtype=torch.float64))
    lowest, highest = (ratio * c.alpha for ratio in (low * (1 - 1e-6), high * (1 + 1e-6)))
    return (np.asarray(times) > 0) & ((lowest <= c.sigma) & (c.sigma <= highest)).numpy()


def late_time(path: str = "linear") -> float:
    """The t at which sigma_t / alpha_t = LATE, where late sampling begins."""
    return float(time_of_ratio(torch.tensor(LATE, dtype=torch.float64), path))


def is_late(times: np.ndarray, path: str = "linear") -> np.ndarray:
    """Which of the times (K,) are late in sampling, 0 < sigma_t / alpha_t <= LATE."""
    return _between(0.0, LATE, times, path)


def ranges(times: np.ndarray, path: str = "linear") -> tuple[np.ndarray, np.ndarray]:
    """Which of the falling times (K,) are late, and which lie in the middle, where
    2/3 <= sigma_t / alpha_t <= 9.

    Raises ValueError if none do, or if the times do not fall within [0, 1]."""
    falling(times)
    late, middle = is_late(times, path), _between(*MIDDLE, times, path)
    if not (late.any() and middle.any()):
        low, high, most = (float(time_of_ratio(torch.tensor(r), path)) for r in (*MIDDLE, LATE))
        raise ValueError(
            f"no time in (0, {most:.3g}] or in [{low:.3g}, {high:.3g}], late and middle on the "
            f"path {path!r}: use more steps"
        )
    return late, middle


def noise_shift(
    sampled: np.ndarray,
    control: np.ndarray,
    times: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    *,
    path: str = "linear",
) -> dict:
    """delta(t) and its late mean from estimated times of sampled (M, K) and control (M', K) states
    at `times` (K,) of a path.

    Returns {"delta": {value, low, high: (K,)}, "late", "middle", "growth", "spread": {value, low,
    high}, "draws": (resamples, K)}; 95 % percentile bootstrap over images, both sets resampled.
    `late` and `middle` are the means of delta where noise over signal, sigma_t / alpha_t, is at
    most 0.25 and from 2/3 to 9 (0 < t <= 0.2 and 0.4 <= t <= 0.9 on the linear path); `growth` is
    late minus middle, positive if the shift grows towards the data; `spread` is how much more the
    level differs from image to image late in sampling than in the control (standard deviations).
    Equal seeds resample arms alike. Raises ValueError if no time lies in these ranges, if times do
    not fall, if shapes differ or for fewer than two images or resamples; FloatingPointError for
    NaN.
    """
    sampled, control, times = (np.asarray(values) for values in (sampled, control, times))
    known_path(path)
    if sampled.ndim != 2 or control.ndim != 2:
        raise ValueError(
            f"estimates {sampled.shape} and {control.shape} must be of (images, times), as "
            "estimated_times makes them"
        )
    if sampled.shape[1] != len(times) or control.shape[1] != len(times):
        raise ValueError(
            f"estimates {sampled.shape} and {control.shape} must have one column per time "
            f"({len(times)})"
        )
    late, middle = ranges(times, path)
    check_counts(len(sampled), len(control), resamples)
    if not (np.isfinite(sampled).all() and np.isfinite(control).all()):
        raise FloatingPointError(
            "an estimated time is NaN or infinite though its state is finite: the estimator is not "
            "for these states"
        )

    def moments(levels: np.ndarray) -> np.ndarray:
        return np.stack([levels.mean(0), levels.std(0, ddof=1)])

    def mean_over(which: np.ndarray, moment: int = 0) -> Interval:
        return interval(excess[moment, which].mean(), draws[:, moment, which].mean(1))

    excess = moments(sampled) - moments(control)
    draws = bootstrap(sampled, moments, resamples, seed) - bootstrap(
        control, moments, resamples, seed + 1
    )
    delta, of_delta = excess[0], draws[:, 0]
    growth = interval(
        delta[late].mean() - delta[middle].mean(),
        of_delta[:, late].mean(1) - of_delta[:, middle].mean(1),
    )
    return {
        "delta": interval(delta, of_delta),
        "late": mean_over(late),
        "middle": mean_over(middle),
        "growth": growth,
        "spread": mean_over(late, 1),
        "draws": of_delta,
    }


def read_at(shift: dict, times: np.ndarray, t: float) -> tuple[float, np.ndarray]:
    """delta of `noise_shift` at one t in [min, max] of `times` (K,), linear between its neighbours,
    and its draws (resamples,).

    So that other grids and numbers of steps are read at the same place. Raises ValueError if t lies
    outside."""
    order = np.argsort(times)
    if not times[order[0]] <= t <= times[order[-1]]:
        raise ValueError(
            f"t = {t:g} is not between two states of this grid, {times[order[0]]:g} to "
            f"{times[order[-1]]:g}"
        )
    value, *draws = (
        np.interp(t, times[order], delta[order])
        for delta in (shift["delta"]["value"], *shift["draws"])
    )
    return value, np.array(draws)


def late_ratio(
    shifted: dict, baseline: dict, times: np.ndarray, *, path: str = "linear"
) -> Interval:
    """|late shift| of one arm over that of another, both from `noise_shift` with the same seed:
    {value, low, high}.
    """
    late = is_late(times, path)
    top, bottom = (np.abs(s["draws"][:, late].mean(1)) for s in (shifted, baseline))
    return interval(abs(shifted["late"]["value"]) / abs(baseline["late"]["value"]), top / bottom)


def energy_residual(states: np.ndarray, times: np.ndarray, path: str = "linear") -> np.ndarray:
    """Network-free second opinion (K,): mean energy per pixel of x_t minus alpha_t^2 E[x_0^2] +
    sigma_t^2.

    E[x_0^2] is that of the samples themselves, the last state of (M, K, C, H, W); zero for an exact
    sampler."""
    energy = np.square(states.astype(np.float64)).mean(axis=(0, 2, 3, 4))
    c = PATHS[path](torch.as_tensor(times, dtype=torch.float64))
    return energy - (c.alpha.numpy() ** 2 * energy[-1] + c.sigma.numpy() ** 2)
