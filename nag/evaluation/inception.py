"""Images of an npz or a folder, and the networks by whose features they are compared: Inception,
DINOv2, our classifier.

An extractor is a callable of uint8 images (B, 3, H, W) on the CPU that moves them where it runs. It
returns {"pool": (B, D), "spatial": (B, S), "logits": (B, K)}; one for a second opinion needs "pool"
alone."""

import importlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.transforms.functional import normalize
from tqdm import tqdm

from nag.checkpoint import load_weights, read_weights
from nag.data.fashion_mnist import to_float
from nag.data.published_files import find, record
from nag.evaluation.fashion_classifier import Extractor
from nag.support.device import best_device
from nag.support.paths import WEIGHTS

Extract = Callable[[Tensor], dict[str, Tensor]]
Record = dict[str, str | int]
SPATIAL_CHANNELS = 7
# The code that goes with the weights, at one revision: torch.hub runs what it fetches.
DINOV2 = "facebookresearch/dinov2:7764ea0f912e53c92e82eb78a2a1631e92725fc8"


def _nhwc(activations: Tensor) -> Tensor:
    """The first seven channels of (B, C, H, W), flattened (B, H * W * 7) in TensorFlow's order: the
    channel changes fastest.
    """
    return activations[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def inception(weights: Path | None = None) -> tuple[Extract, Record]:
    """ADM's features (Dhariwal and Nichol, 2021) by torch-fidelity's Inception: pool 2048, spatial
    2023, logits 1008.

    `weights` is torch-fidelity's file, by default found by `published_files.find`. Raises
    FileNotFoundError, ValueError."""
    path = weights or find("inception", download=True)
    # torch-fidelity reads a file as a pickle that may run code, so it gets a copy of the tensors
    buffer = io.BytesIO()
    torch.save(read_weights(path)[0], buffer)
    buffer.seek(0)
    try:
        net = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=buffer,
        )
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path} does not fit torch-fidelity's Inception: fetch it again"
        ) from error
    net = net.to(best_device())
    kept: dict[str, Tensor] = {}
    # ADM takes the tensor mixed_6/conv:0 of the TensorFlow graph. The graph's blocks mixed to
    # mixed_2 are Mixed_5b to 5d, mixed_3 is 6a, mixed_4 to mixed_7 are 6b to 6e, and "conv"
    # directly under a block is its 1x1 branch: the converter of these very weights (torch-fidelity,
    # utils/util_convert_inception_weights.py) maps mixed_6/conv/conv2d_params to
    # Mixed_6d.branch1x1.conv. The tensor is the layer's output: normalised and after its ReLU.
    net.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, args, output: kept.update(spatial=output)
    )

    def extract(images: Tensor) -> dict[str, Tensor]:
        pool, logits = net(images.to(next(net.parameters()).device))
        return {"pool": pool, "spatial": _nhwc(kept.pop("spatial")), "logits": logits}

    return extract, record(path)


def fashion_mnist(weights: Path = WEIGHTS / "extractor.safetensors") -> tuple[Extract, Record]:
    """Our small classifier in Inception's place, for grey images (B, 3, 28, 28): pool 192, spatial
    343, logits 10.

    The extractor raises ValueError for images of another kind.
    """
    net: Any = load_weights(weights, Extractor()).to(best_device())

    def extract(images: Tensor) -> dict[str, Tensor]:
        if images.shape[1:] != (3, 28, 28) or not bool((images == images[:, :1]).all()):
            raise ValueError(
                f"got images {tuple(images.shape)}: fashion-mnist takes (B, 3, 28, 28) with three "
                "equal channels"
            )
        grey = to_float(images[:, :1].to(net.head.weight.device))
        maps = net.body[:5](grey)  # (B, 128, 7, 7), after its ReLU
        pool = net.body[5:](maps)
        logits = pool @ net.head.weight.T  # without the bias, as in ADM
        return {"pool": pool, "spatial": _nhwc(maps), "logits": logits}

    return extract, record(weights)


def dinov2(weights: Path | None = None) -> tuple[Extract, Record]:
    """DINOv2 ViT-L/14 for FD-DINOv2 (Stein et al., 2023): pool 1024, images resized to 224x224 by
    PIL's bicubic filter.

    Raises FileNotFoundError saying which weights or which folder of code to place, ValueError for
    weights that do not fit."""
    path = weights or find("dinov2-vit-l-14", download=True)
    os.environ["XFORMERS_DISABLED"] = "1"  # the same attention wherever this runs
    try:
        net = torch.hub.load(
            DINOV2,
            "dinov2_vitl14",
            pretrained=False,
            trust_repo=True,
            skip_validation=True,
            verbose=False,
        )
    except OSError as error:  # URLError is one
        repository, revision = DINOV2.split(":")
        place = Path(torch.hub.get_dir()) / f"{repository.replace('/', '_')}_{revision}"
        raise FileNotFoundError(
            f"no code for DINOv2: unpack revision {revision} of https://github.com/{repository} "
            f"as {place}"
        ) from error
    try:
        net.load_state_dict(read_weights(path)[0])
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit DINOv2's ViT-L/14: fetch it again") from error
    net = net.to(best_device()).eval().requires_grad_(False)

    def extract(images: Tensor) -> dict[str, Tensor]:
        resized = [
            np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
            for image in images.permute(0, 2, 3, 1).contiguous().numpy()
        ]
        x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
        x = x.to(next(net.parameters()).device).float() / 255
        return {"pool": net(normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))}

    return extract, record(path)


EXTRACTORS = {"inception": inception, "fashion-mnist": fashion_mnist, "dinov2-vit-l-14": dinov2}


def load_extractor(name: str) -> tuple[Extract, Record | None]:
    """An extractor and the record of its weights: one of EXTRACTORS, or "package.module:function",
    which is one itself.

    Raises ValueError for a name that is neither, and what the extractor's own loading raises.
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name]()
    try:
        module, function = name.split(":")
        found = getattr(importlib.import_module(module), function)
        if not callable(found):
            raise TypeError(f"it is {type(found).__name__}, not a function")
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise ValueError(
            f"unknown extractor {name!r} ({error}): choose one of {sorted(EXTRACTORS)}, or name a "
            "function as package.module:function"
        ) from error
    return partial(_checked, found, name), None


def _checked(extract: Extract, name: str, images: Tensor) -> dict[str, Tensor]:
    """What somebody's extractor makes of images; raises ValueError unless it is `Extract`'s."""
    try:
        out = extract(images)
    except TypeError as error:
        raise ValueError(
            f"the extractor {name!r} fails on uint8 images {tuple(images.shape)} ({error}): give a "
            "function of such images"
        ) from error
    if not isinstance(out, dict) or not all(
        isinstance(x, Tensor) and len(x) == len(images) for x in out.values()
    ):
        raise ValueError(
            f"the extractor {name!r} returned {type(out).__name__}: it must return a dictionary of "
            'tensors, {"pool": (B, D), "spatial": (B, S), "logits": (B, K)}'
        )
    return out


def _open(archive: zipfile.ZipFile, path: Path) -> tuple[IO[bytes], tuple[int, ...]]:
    """The stream of `arr_0` behind its header, and its shape."""
    if "arr_0.npy" not in archive.namelist():
        raise ValueError(
            f"{path} has no array arr_0: save uint8 images (N, H, W, 3) with np.savez(path, images)"
        )
    file = archive.open("arr_0.npy")
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[-1] != 3 or shape[0] == 0:
        raise ValueError(
            f"{path} holds {dtype} {shape}: give uint8 images (N, H, W, 3) with N > 0, in C order"
        )
    return file, shape


def image_shape(path: Path) -> tuple[int, ...]:
    """(N, H, W, 3) of an npz of images, from its header; raises FileNotFoundError, and ValueError
    for another content.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no images at {path}: export the samples first; imagenet/files.csv says where a "
            "published reference comes from"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _open(archive, path)[1]
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is truncated or not an npz file: make it again") from error


def image_batches(path: Path, batch_size: int = 64) -> Iterator[Tensor]:
    """uint8 (B, 3, H, W) of an npz of images in file order, read as they are asked for; raises as
    `image_shape` does.
    """
    shape = image_shape(path)
    try:
        with zipfile.ZipFile(path) as archive:
            file, _ = _open(archive, path)
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                content = bytearray(file.read(count * math.prod(shape[1:])))
                images = torch.frombuffer(content, dtype=torch.uint8)
                yield images.view(count, *shape[1:]).permute(0, 3, 1, 2)
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is truncated or damaged: make it again") from error


@torch.inference_mode()
def features(
    batches: Iterable[Tensor], total: int, extract: Extract, dino: Extract | None = None
) -> Iterator[dict]:
    """For each batch of uint8 (B, 3, H, W): {"images", "pool", "spatial", "logits"[, "dino"]},
    float32 on the CPU.
    """
    with tqdm(total=total, unit="image", mininterval=5, disable=None) as bar:
        for images in batches:
            with torch.backends.cudnn.flags(
                enabled=True, allow_tf32=False
            ):  # convolutions in full single precision
                out = extract(images) | ({"dino": dino(images)["pool"]} if dino else {})
            bar.update(len(images))
            yield {"images": images} | {name: value.float().cpu() for name, value in out.items()}
