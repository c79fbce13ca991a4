"""A folder of images by class, cropped as ADM crops them: for encoding, and for statistics of real
images.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

Crop = Callable[[Image.Image], Image.Image]
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
)  # what Pillow raises for damaged files


def image_folder(root: Path) -> ImageFolder:
    """Images below `root`, one sub-folder per class: classes by name, as torchvision sorts them,
    then files by name.

    ImageNet's train/ with its wnids is such a folder, and gives the usual class numbers. Raises
    FileNotFoundError if there is no such folder or a class has no images."""
    try:
        return ImageFolder(str(root))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"no image folder at {root} ({error}): give a folder with a sub-folder of .jpg, .jpeg "
            "or .png "
            "files for each class, such as ImageNet's train"
        ) from error


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, `size` pixels wide (ADM: Dhariwal and Nichol, 2021; DiT and
    SiT do the same).

    The image is halved with a box filter while its shorter side is at least twice `size`, then
    brought to `size` on its shorter side by bicubic interpolation: without the halving, bicubic
    interpolation of a much larger image is slow."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read(path: Path, crop: Crop | None = None) -> Tensor:
    """An image file, cropped, as (3, H, W) uint8 RGB; raises ValueError naming a file that is
    damaged.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except BROKEN as error:
        raise ValueError(
            f"{path} is no readable image ({error}): replace it and run again; what is finished is "
            "kept"
        ) from error
    return torch.from_numpy(np.array(crop(image) if crop else image)).permute(2, 0, 1).contiguous()


def batches(
    paths: Sequence[Path], crop: Crop | None, batch_size: int, workers: int = 8
) -> Iterator[Tensor]:
    """Image files as batches (B, 3, H, W) uint8 in their order; the next batch is read while one is
    in use.

    Pillow decodes and resizes outside Python's lock, so `workers` threads read. Raises what `read`
    raises, and ValueError if the sizes differ."""

    def stacked(images: list[Future], first: int) -> Tensor:
        read_in = [image.result() for image in images]
        if len({image.shape for image in read_in}) > 1:
            raise ValueError(
                f"the images around {paths[first]} have several sizes: crop them to one, as the "
                "samples are"
            )
        return torch.stack(read_in)

    coming: list = []
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(paths), batch_size):
            ready, coming = (
                coming,
                [pool.submit(read, path, crop) for path in paths[first : first + batch_size]],
            )
            if ready:
                yield stacked(ready, first - batch_size)
        if coming:
            yield stacked(coming, first)
