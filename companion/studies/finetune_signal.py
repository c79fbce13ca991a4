"""What notebook 31 measures: NAG's signal and the noise shift before and after fine-tuning."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nag.data import fashion_mnist
from nag.interpolant import add_noise
from nag.models import DiT
from nag.pretrained.further_training import held_out_errors
from nag.support.rng import generator
from nag.support.uncertainty import Z95

TIMES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)


def spread_over(images: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """n images in [-1, 1] and their labels, spread over all of them (which are sorted by file)."""
    places = torch.linspace(0, len(images) - 1, n).long()
    return fashion_mnist.to_float(images[places]), labels[places]


def error(net: DiT, x0: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Mean squared denoising error of images x0, of a class or of none, {"value", "half"}: the same
    times and noise for every network, and half the width of its 95 % interval."""
    errors = held_out_errors(net, x0, labels, 1, drop_noise=False)[1]
    return {"value": errors.mean().item(), "half": Z95 * errors.std().item() / len(x0) ** 0.5}


@torch.inference_mode()
def differences(net: DiT, x0: Tensor, labels: Tensor, before: DiT | None = None) -> dict[str, list]:
    """Norms of the differences that guidance uses over that of the prediction f(x_t, t, c), by t,
    and NAG's cosines with the others; {"t": [...], "NAG": [...], "cos NAG, CFG": [...], ...}.

    NAG drops t, CFG drops c, DoG (if `before` is given) takes the network before fine-tuning
    without a class. NAG's is zero for a network that reads the noise level from the image alone."""
    where = next(net.parameters()).device
    noise, y = torch.randn(x0.shape, generator=generator(3)), labels.to(where)
    no_class = torch.full_like(y, net.config.classes)
    drop = torch.ones(len(x0), dtype=torch.bool, device=where)
    found: dict[str, list] = {"t": list(TIMES)}
    for level in TIMES:
        t = torch.full((len(x0),), level)
        x_t, t = add_noise(x0, noise, t, net.config.path).to(where), t.to(where)
        f = net(x_t, t, y)
        d = {"NAG": f - net(x_t, t, y, drop), "CFG": f - net(x_t, t, no_class)}
        if before is not None:
            d["DoG"] = f - before(x_t, t, torch.full_like(y, before.config.classes))
        for name, v in d.items():
            found.setdefault(name, []).append((v.norm() / f.norm()).item())
        for name in d.keys() - {"NAG"}:
            cosine = cosine_similarity(d["NAG"].flatten(), d[name].flatten(), dim=0).item()
            found.setdefault(f"cos NAG, {name}", []).append(cosine)
    assert all(np.isfinite(values).all() for values in found.values())
    return found
