"""A small Fashion-MNIST classifier whose last hidden layer gives the features for the distances in
`metrics`.

Group normalisation, not batch normalisation: `train.fit` averages parameters but no running
statistics, and the features of an image must not depend on its batch. Random draws come from the
generator given, so no dropout layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nag.data.fashion_mnist import to_float
from nag.train import BatchLoss

FEATURES = 192
SHIFT = 2


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()
    )


class Extractor(nn.Module):
    """Convolutional classifier of (B, 1, 28, 28) floats in [-1, 1]: `features` (B, 192), `forward`
    logits (B, 10).
    """

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            _conv(1, 32),
            nn.MaxPool2d(2),
            _conv(32, 64),
            nn.MaxPool2d(2),
            _conv(64, 128),
            _conv(128, 128),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128 * 3 * 3, FEATURES),
            nn.SiLU(),
        )  # ReLU would leave a quarter of the features dead
        self.head = nn.Linear(FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """Activations (B, 192) of the last hidden layer for floats (B, 1, 28, 28) in [-1, 1]."""
        return self.body(x.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def random_shift(images: Tensor, pixels: int, gen: torch.Generator) -> Tensor:
    """Each image of (B, C, H, W) floats in [-1, 1] moved by up to `pixels` each way, the gap filled
    with black (-1).
    """
    height, width = images.shape[-2:]
    windows = F.pad(images, [pixels] * 4, value=-1.0).unfold(2, height, 1).unfold(3, width, 1)
    row, col = torch.randint(2 * pixels + 1, (2, len(images)), generator=gen).to(images.device)
    return windows[torch.arange(len(images), device=images.device), :, row, col]


def classifier_loss(images: Tensor, labels: Tensor, smoothing: float = 0.1) -> BatchLoss:
    """Cross-entropy on shifted images with label smoothing in [0, 1) (Szegedy et al., 2016), for
    `train.fit`.

    images (N, 1, 28, 28), uint8 or floats in [-1, 1], and labels (N,) int64 live on the CPU.
    """

    def loss(net: nn.Module, index: Tensor, gen: torch.Generator) -> Tensor:
        device = next(net.parameters()).device
        x = images[index]
        x = random_shift(to_float(x) if x.dtype == torch.uint8 else x, SHIFT, gen)
        return F.cross_entropy(
            net(x.to(device)).float(), labels[index].to(device), label_smoothing=smoothing
        )

    return loss


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Fraction in [0, 1] of images (N, 1, 28, 28), uint8 or floats in [-1, 1], whose largest logit
    is their label (N,).

    Raises ValueError if there are no images or not one label for each.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels: give some images, and a label for each"
        )
    device = next(net.parameters()).device
    right = 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        x = to_float(x) if x.dtype == torch.uint8 else x
        right += int((net(x.to(device)).argmax(1).cpu() == y).sum())
    return right / len(images)
