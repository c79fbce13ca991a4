"""Other estimators of a state's noise level: another network for the posterior, the paper's own
kind, and two estimates without a network.

An estimator is any callable x (B, C, H, W) -> t (B,), as `shift.estimated_times` takes it:
`partial(posterior_mean, net)` for a network, `partial(wavelet_time, path="linear")` or
`partial(energy_time, second_moment=0.7)` for the analytic ones. Its bias is how far its mean over
forward states of known t is from t."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nag.estimator import T_MIN
from nag.interpolant import PATHS, add_noise, widest
from nag.models import BatchLoss, DiT, FinalLayer
from nag.shift import Estimator, estimated_times, forward_states, is_late
from nag.support.roots import bisect
from nag.support.uncertainty import bootstrap, interval

MEDIAN_OF_NORMAL = 0.6744897501960817  # of |z|, z a standard Normal: its 75 % quantile
HALVINGS = 40
LEVELS = tuple(np.linspace(0, 1, 101).tolist())


class PlainEstimator(nn.Module):
    """Plain strided convolutional network from x (B, channels, H, W), H and W >= 4, to mixture
    parameters (B, components, 3).

    It shares its head with `estimator.NoiseEstimator` and nothing else: no energies, logarithms or
    attention, only convolutions, ReLU and global average pooling (Springenberg et al., 2015). No
    normalisation, which would take away the scale that is sought. Raises ValueError for another
    shape."""

    def __init__(self, channels: int = 1, width: int = 32, components: int = 3):
        super().__init__()
        self.channels, self.components = channels, components
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Linear(2 * width, 4 * width),
            nn.SiLU(),
            nn.Linear(4 * width, 4 * width),
            nn.SiLU(),
            nn.Linear(4 * width, 3 * components),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < 4:
            raise ValueError(
                f"the plain estimator was built for {self.channels} channels, at least 4 x 4, and "
                f"got a state of shape {tuple(x.shape)}: pass (B, {self.channels}, H, W) or build "
                "it with the right `channels`"
            )
        # in full precision, as NoiseEstimator: bf16 is coarser than the shifts to be seen
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(next(self.head.parameters()).dtype)
            pooled = self.features(x).mean((2, 3))  # (B, 2 width)
            return self.head(pooled).view(-1, self.components, 3)


class RegressedLevel(nn.Module):
    """The paper's estimator: a trained network with another last layer, which regresses t.

    forward(x (B, C, H, W)) -> t (B,), the mean over tokens of one number each. The network is a
    copy, without noise level and class; all of it is fine-tuned unless `frozen` (arXiv
    2510.12497)."""

    def __init__(self, net: DiT, frozen: bool = False):
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(not frozen)
        self.net.pos_embed.requires_grad_(False)
        self.net.final_layer = FinalLayer(net.config.width, 1)
        nn.init.constant_(self.net.final_layer.linear.bias, 0.5)  # the mean of t

    def forward(self, x: Tensor) -> Tensor:
        net, count = self.net, len(x)
        # in full precision, as NoiseEstimator: bf16 is coarser than the shifts to be seen
        with torch.autocast(x.device.type, enabled=False):
            unknown = torch.ones(count, dtype=torch.bool, device=x.device)
            no_class = torch.full((count,), net.config.classes, device=x.device)
            tokens, c = net.embed(x.float(), x.new_zeros(count), no_class, unknown)
            for block in net.blocks:
                tokens = block(tokens, c)
            return net.final_layer(tokens, c).mean((1, 2))


def regression_loss(images: Tensor, path: str = "linear") -> BatchLoss:
    """Mean square error of t read from x_t, of images (N, C, H, W); it is least for E[t | x].

    t is uniform in [T_MIN, 1 - T_MIN], one draw in each of B strata, as in `estimator_loss`."""

    def loss(net: nn.Module, index: Tensor, gen: torch.Generator) -> Tensor:
        device, x0 = next(net.parameters()).device, images[index]
        u = (torch.arange(len(index)) + torch.rand(len(index), generator=gen)) / len(index)
        t = T_MIN + (1 - 2 * T_MIN) * u
        eps = torch.randn(x0.shape, generator=gen)
        x0, t, eps = (a.to(device) for a in (x0, t, eps))
        return (net(add_noise(x0, eps, t, path)) - t).square().mean()

    return loss


def solve(
    curve: Callable[[Tensor], Tensor], value: Tensor, low: Tensor | float, high: Tensor | float
) -> Tensor:
    """The t, of value's shape, at which a curve that rises from `low` to `high` has this value.

    `high` may be below `low`, for a curve that falls in t. Beyond the curve's range the answer is
    the nearer end."""
    low, high = (
        torch.as_tensor(end, dtype=value.dtype, device=value.device).expand(value.shape)
        for end in (low, high)
    )
    low, high = bisect(lambda t: curve(t) < value, low, high, HALVINGS)
    return (low + high) / 2


def sigma_time(sigma: Tensor, path: str = "linear") -> Tensor:
    """The t in [0, 1] at which sigma_t = sigma (any shape), float64; beyond the path, its end."""
    return solve(lambda t: PATHS[path](t).sigma, sigma.to(widest(sigma.device)), 0.0, 1.0)


def wavelet_sigma(x: Tensor) -> Tensor:
    """Standard deviation (B,) of the noise in x (B, C, H, W), H and W >= 2 (Donoho and Johnstone,
    1994).

        sigma = median |d| / 0.6745

    d are the diagonal details of the orthonormal Haar transform at the finest scale, where images
    have little and white noise has as much as everywhere. Too high by what the image has there."""
    if x.ndim != 4 or min(x.shape[2:]) < 2:
        raise ValueError(
            f"got a state of shape {tuple(x.shape)}: diagonal details need (B, C, H, W) with H and "
            "W of at least 2"
        )
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2].to(widest(x.device))
    rows = x[..., ::2, :] - x[..., 1::2, :]
    details = (rows[..., ::2] - rows[..., 1::2]) / 2  # (B, C, H/2, W/2)
    return details.abs().flatten(1).quantile(0.5, dim=1) / MEDIAN_OF_NORMAL


def wavelet_time(x: Tensor, path: str = "linear") -> Tensor:
    """Noise level t (B,) of each state x (B, C, H, W) by the noise in its finest details
    (`wavelet_sigma`).
    """
    return sigma_time(wavelet_sigma(x), path)


def calibrated(
    estimator: Estimator, images: Tensor, path: str = "linear", levels: Sequence[float] = LEVELS
) -> Estimator:
    """The estimator without its bias: its mean over forward states of `images` (M, C, H, W) at each
    of the noise `levels` becomes that level.

    The mean is made to rise with t, interpolated linearly, and inverted; an estimate beyond it
    becomes the first or last level."""
    states = forward_states(images, torch.as_tensor(levels), path, 3 * 10**6)
    means = estimated_times(estimator, states).mean(0)
    means = np.maximum.accumulate(means) + 1e-9 * np.arange(len(means))

    def unbiased(x: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(estimator(x).double().cpu().numpy(), means, levels))

    return unbiased


def energy(x: Tensor) -> Tensor:
    """Mean square (B,) of each state x (B, C, H, W), E[x^2] per value."""
    return x.to(widest(x.device)).square().flatten(1).mean(1)


def solve_energy(
    value: Tensor, second_moment: Tensor | float, path: str = "linear", near: Tensor | float = 0.0
) -> Tensor:
    """The t in [0, 1] with alpha_t^2 E[x_0^2] + sigma_t^2 = value; the arguments broadcast.

    NaN where no t has that energy. The energy may first fall and then rise (on the linear path it
    turns at E[x_0^2] / (1 + E[x_0^2]), 0.4 for Fashion-MNIST), so that two t have it: the answer is
    on the side of the turn where `near`, the nominal t, is."""
    value = value.to(widest(value.device))
    value, moment, near = torch.broadcast_tensors(
        value, *(torch.as_tensor(a).to(value) for a in (second_moment, near))
    )

    def curve(t: Tensor) -> Tensor:
        c = PATHS[path](t)
        return c.alpha**2 * moment + c.sigma**2

    def slope(t: Tensor) -> Tensor:
        c = PATHS[path](t)
        return c.alpha * c.d_alpha * moment + c.sigma * c.d_sigma

    turn = solve(slope, torch.zeros_like(value), 0.0, 1.0)
    end = torch.where(near < turn - 1e-6, 0.0, 1.0)
    t = solve(curve, value, turn, end)
    return torch.where((curve(t) - value).abs() < 1e-6, t, torch.nan)


def energy_time(x: Tensor, second_moment: float, path: str = "linear", near: float = 0.0) -> Tensor:
    """Noise level t (B,) of each state x (B, C, H, W) by its energy alone, as if its image had the
    mean square `second_moment`.

    NaN where no t fits (`solve_energy`). Images differ in contrast by far more than late noise
    adds, so use it on sets."""
    return solve_energy(energy(x), second_moment, path, near)


def set_levels(
    energies: Tensor, times: Tensor, path: str = "linear", hold_alpha: bool = True
) -> Tensor:
    """Noise levels (..., K) of sets of trajectories from their mean energies (..., K) at `times`
    (K,), the last of them t = 0.

    E[x_0^2] is the last column, the set's own. With `hold_alpha` the image has the nominal strength
    alpha_t and the rest of the energy is noise, as in Statement 1; without it alpha_t and sigma_t
    both move (`solve_energy`), and where energy falls with t, surplus noise looks like a *lower*
    level. Raises ValueError if the last time is not 0."""
    if times[-1] != 0:
        raise ValueError(
            f"the last time is {float(times[-1]):g}: keep the last state (t = 0), whose energy is "
            "E[x_0^2]"
        )
    own = energies[..., -1:]
    if not hold_alpha:
        return solve_energy(energies, own, path, times)
    surplus = energies - PATHS[path](times).alpha ** 2 * own
    return sigma_time(surplus.clamp_min(0).sqrt(), path)


def energy_shift(
    sampled: np.ndarray,
    control: np.ndarray,
    times: np.ndarray,
    path: str = "linear",
    hold_alpha: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """The noise shift from energies (M, K) of sampled and (M', K) of control states, in the form of
    `shift.noise_shift`.

    {"delta": {value, low, high: (K,)}, "late": {value, low, high}, "draws": (resamples, K)}; equal
    seeds resample alike. Raises ValueError if no time is late (`nag.shift.is_late`)."""
    grid = torch.as_tensor(times, dtype=torch.float64)

    def levels(means: np.ndarray) -> np.ndarray:
        return set_levels(torch.from_numpy(means), grid, path, hold_alpha).numpy()

    late = is_late(times, path)
    if not late.any():
        raise ValueError(f"no time is late on the path {path!r}: use more steps")
    delta = levels(sampled.mean(0)) - levels(control.mean(0))
    draws = levels(bootstrap(sampled, lambda a: a.mean(0), resamples, seed)) - levels(
        bootstrap(control, lambda a: a.mean(0), resamples, seed + 1)
    )
    return {
        "delta": interval(delta, draws),
        "late": interval(delta[late].mean(), draws[:, late].mean(1)),
        "draws": draws,
    }
