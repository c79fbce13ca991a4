"""The denoising loss with noise-condition dropout, and what a trained network's errors are under
each condition.
"""

import hashlib

import torch
from torch import Tensor

from nag.ddpm import discretise, learns_variance, variational_bound
from nag.interpolant import add_noise, convert, velocity_target
from nag.models import BatchLoss, DiT, ModelConfig, Source
from nag.support.labels import check_range
from nag.support.rng import generator
from nag.support.weight_files import content


def noise_condition_dropout(count: int, probability: float, gen: torch.Generator) -> Tensor:
    """Which of `count` samples lose their noise condition: (B,) bool (arXiv 2510.12497, Sec. 4).

        net(x_t, t, c) with probability 1 - p,   net(x_t, null, c) with probability p

    The paper takes p = 0.1 and 0.2. One network so learns the noise-conditional and the
    noise-unconditional prediction that classifier-free NAG needs; independent of class dropout."""
    check_probability("noise dropout", probability)
    return torch.rand(count, generator=gen) < probability


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless the value is in [0, 1]: 10, meant as percent, would be always."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} {value} is no probability: give 0 to 1, such as 0.1 for 10 %")


def check_labels(labels: Tensor, config: ModelConfig, class_dropout: float = 0.0) -> None:
    """Raise ValueError if a label is none of a network's classes 0, 1, …, or if classes are to be
    dropped by a network without a row for no class.

    The label `classes` would silently mean no class."""
    check_range(labels, config.classes)
    if class_dropout and not getattr(config, "null_class", True):
        raise ValueError(
            "the network has no row for no class in its table: train with class dropout 0, or "
            "with a new table"
        )


def denoising_loss(
    images: Tensor | Source,
    labels: Tensor,
    class_dropout: float,
    noise_dropout: float,
    input_perturbation: float = 0.0,
) -> BatchLoss:
    """The mean of |net(x_t, t, y) - target|^2 with class and noise-condition dropout.

    images (N, C, H, W) float32, or a source of them, and labels (N,) live on the CPU; probabilities
    in [0, 1]. The target is v, eps or x0. t is uniform; on the path "ddpm" it takes that path's
    1000 levels. A network that learns its variance gets DiT's bound on top, the mean held fixed.
    `rows` of the batch are evaluated; random numbers are drawn for all of it, so that the parts
    make up the whole. With `input_perturbation` gamma > 0 the state alone has the noise eps + gamma
    xi (DDPM-IP, Ning et al., 2023). `fit` keeps `made_of`, the digest of all this, with its state.
    Raises ValueError if it is negative, for no probabilities, if images are not floats or differ
    in number from the labels, and the loss what `check_labels` raises."""
    if input_perturbation < 0:
        raise ValueError(
            f"input_perturbation {input_perturbation} is negative: give 0 for none; the paper has "
            "0.1"
        )

    check_probability("class dropout", class_dropout)
    check_probability("noise dropout", noise_dropout)
    labels = torch.as_tensor(labels)
    if not callable(images):
        images = torch.as_tensor(images)
    if not len(labels):
        raise ValueError("no labels: give each image its own")
    if isinstance(images, Tensor):
        if len(images) != len(labels):
            raise ValueError(
                f"{len(images)} images and {len(labels)} labels: give each image its own"
            )
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: give floats, such as x / 127.5 - 1")
    extremes = torch.stack(labels.aminmax())

    def loss(net: DiT, index: Tensor, gen: torch.Generator, rows: slice = slice(None)) -> Tensor:
        config, device, count = net.config, next(net.parameters()).device, len(index)
        check_labels(extremes, config, class_dropout)
        x0 = images(index, gen, rows) if callable(images) else images[index[rows]]
        shape = (count, *x0.shape[1:])
        t, eps = torch.rand(count, generator=gen), torch.randn(shape, generator=gen)
        drop_class = torch.rand(count, generator=gen) < class_dropout
        y = torch.where(drop_class, config.classes, labels[index])
        drop_noise = noise_condition_dropout(count, noise_dropout, gen)
        noise = eps
        if input_perturbation:
            noise = eps + input_perturbation * torch.randn(shape, generator=gen)
        y, t, eps, noise, drop_noise = (a[rows].to(device) for a in (y, t, eps, noise, drop_noise))
        x0 = x0.to(device)
        t = discretise(t) if config.path == "ddpm" else t
        x_t = add_noise(x0, noise, t, config.path)
        learned = learns_variance(config)
        out = net(x_t, t, y, drop_noise, full=True) if learned else net(x_t, t, y, drop_noise)
        pred, fraction = out.float().tensor_split([x0.shape[1]], dim=1)
        value = (pred - target(config, x0, eps, t)).square().mean()
        if learned:
            x0_hat = convert(pred.detach(), x_t, t, config.prediction, "x0", config.path)
            value = value + variational_bound((fraction + 1) / 2, x0_hat, x0, x_t, t).mean()
        return value

    settings = (class_dropout, noise_dropout, input_perturbation)
    loss.made_of = lambda: data_digest(images, [labels], settings)  # type: ignore[attr-defined]
    return loss


def data_digest(images: Tensor | Source, others: list[Tensor], settings: tuple) -> str:
    """SHA-256 of what a loss is made of; a source of images names its own by a `digest`."""
    tensors = [images, *others] if isinstance(images, Tensor) else others
    named = (content(tensors), getattr(images, "digest", ""), settings)
    return hashlib.sha256(repr(named).encode()).hexdigest()


def target(config: ModelConfig, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a network of this configuration should say of the state made of x0 and eps (B, C, H, W)
    at t (B,).
    """
    return {"v": velocity_target(x0, eps, t, config.path), "eps": eps, "x0": x0}[config.prediction]


CONDITIONS = {  # way of asking: (drop class, drop noise level)
    "class and noise level": (False, False),
    "noise level only": (True, False),
    "class only": (False, True),
    "neither": (True, True),
}


@torch.inference_mode()
def condition_losses(
    net: DiT, images: Tensor, labels: Tensor, seed: int, bins: int = 4, batch: int = 500
) -> dict[str, dict[str, float]]:
    """Squared error on images (N, C, H, W) for each way of dropping conditions, by range of t; same
    noise for all. Raises what `check_labels` raises.
    """
    check_labels(labels, net.config, class_dropout=1.0)
    gen, device = generator(seed), next(net.parameters()).device
    t, eps = torch.rand(len(images), generator=gen), torch.randn(images.shape, generator=gen)
    place, table = (t * bins).long(), {}
    t = discretise(t) if net.config.path == "ddpm" else t
    for name, (drop_class, drop_noise) in CONDITIONS.items():
        y = torch.full_like(labels, net.config.classes) if drop_class else labels
        errors = []
        for i in range(0, len(images), batch):
            x0, e, s, c = (a[i : i + batch].to(device) for a in (images, eps, t, y))
            pred = net(
                add_noise(x0, e, s, net.config.path),
                s,
                c,
                torch.full_like(s, drop_noise, dtype=torch.bool),
            )
            errors.append((pred - target(net.config, x0, e, s)).square().flatten(1).mean(1).cpu())
        error = torch.cat(errors)
        table[name] = {
            f"{k / bins:.2f} to {(k + 1) / bins:.2f}": error[place == k].mean().item()
            for k in range(bins)
        }
    return table
