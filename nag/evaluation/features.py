"""Features of images by torch-fidelity, from Inception or from our own small classifier.

Our classifier is registered with torch-fidelity as "fashion-mnist", so that both networks take the
same path."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id_cached

from nag.data.fashion_mnist import to_float
from nag.evaluation.fashion_classifier import FEATURES

FASHION = "fashion-mnist"
INCEPTION = "inception-v3-compat"
LAYERS = {FASHION: str(FEATURES), INCEPTION: "2048"}


class _FashionFeatures(torch_fidelity.FeatureExtractorBase):
    """torch-fidelity's view of an Extractor: uint8 (B, 1 or 3 equal channels, 28, 28) to layers
    "192" and "logits".
    """

    source: tuple[nn.Module, ...] = ()

    def __init__(self, name: str, features_list: list[str], **_):
        super().__init__(name, features_list)
        # torch-fidelity freezes and moves what it gets
        self.net: Any = copy.deepcopy(self.source[0])

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return str(FEATURES), "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else str(FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        grey = images[:, :1]
        known = images.dtype == torch.uint8 and images.shape[1] in (1, 3)
        if not (known and bool((images == grey).all())):
            raise ValueError(
                f"{self.name} got {images.dtype} {tuple(images.shape)}: give uint8 (B, C, 28, 28) "
                "with one channel or three equal ones"
            )
        features = self.net.features(to_float(grey)).float()
        layers = {str(FEATURES): features, "logits": self.net.head(features)}
        return tuple(layers[name] for name in self.features_list)


class _Images(Dataset):
    """Images (N, C, H, W) as torch-fidelity reads them, one by one."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def register_extractor(net: nn.Module) -> None:
    """Make a trained Extractor known to torch-fidelity as "fashion-mnist".

    A later call replaces the network."""
    _FashionFeatures.source = (net,)
    if FASHION not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(FASHION, _FashionFeatures)


def extract_features(
    images: Tensor, extractor: str = FASHION, batch_size: int = 256, weights: Path | None = None
) -> Tensor:
    """Features (N, D) float32 of uint8 images (N, C, H, W); D is 2048 for Inception, 192 for ours.

    `weights` is a file of Inception weights, by default torch-fidelity's own copy. Raises
    ValueError for an unknown or unregistered extractor or images of another kind,
    FileNotFoundError if Inception's weights cannot be had."""
    if extractor not in LAYERS:
        raise ValueError(f"unknown extractor {extractor!r}: choose one of {sorted(LAYERS)}")
    if extractor not in FEATURE_EXTRACTORS_REGISTRY:
        raise ValueError(
            f"{extractor!r} has no network yet: call register_extractor(net) with the trained "
            "classifier"
        )
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"got images {images.dtype} {tuple(images.shape)}: give uint8 (N, C, H, W) with N > 0"
        )
    if extractor == INCEPTION and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    settings = dict(
        cuda=torch.cuda.is_available(), verbose=False, feature_extractor_weights_path=weights
    )
    try:
        network = create_feature_extractor(extractor, [LAYERS[extractor]], **settings)
    except OSError as error:  # URLError is one
        place = weights or Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
        raise FileNotFoundError(
            f"no weights for {extractor} ({error}): put {URL_INCEPTION_V3} at {place}"
        ) from error
    found = extract_featuresdict_from_input_id_cached(
        1,
        network,
        input1=_Images(images.cpu()),
        batch_size=batch_size,
        save_cpu_ram=True,
        cache=False,
        **settings,
    )
    return found[LAYERS[extractor]]
