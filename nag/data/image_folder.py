"""Folders of images: one listing for all that read them, one reader, ADM's crop, and classes by
folder.
"""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Crop = Callable[[Image.Image], Image.Image]
ENDINGS = set(".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())
# Beside hidden files, what systems and archives put into folders.
NOT_OURS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
# What Pillow raises for damaged files, and what it runs into with absurd sizes.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    Image.DecompressionBombError,
)
SEVERAL = ("TIFF", "GIF", "WEBP", "PNG")  # formats whose files can hold several pictures
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF


class ImageFolder(NamedTuple):
    """Image files in the order of their labels 0, 1, …, and the names of the classes."""

    files: list[Path]
    labels: list[int]
    classes: list[str]


def shown(path: Path | str) -> str:
    """A path that can be printed, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _entries(folder: str) -> list[os.DirEntry]:
    """What a folder holds, by name, without what is hidden or not the user's."""
    try:
        with os.scandir(folder) as entries:
            ours = [e for e in entries if not e.name.startswith(".") and e.name not in NOT_OURS]
    except OSError as error:
        raise type(error)(
            f"the folder {shown(folder)} cannot be read ({error.strerror}): correct its rights or "
            "remove it"
        ) from error
    return sorted(ours, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry) -> str:
    """ "folder", "file", or "" for pipes and the like; raises FileNotFoundError for a link that
    leads nowhere.
    """
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself
        pass
    if entry.is_symlink():
        raise FileNotFoundError(
            f"{shown(entry.path)} is a link to {shown(os.readlink(entry.path))}, where nothing "
            "is: restore its target or delete the link"
        )
    return ""


def list_images(root: Path) -> list[Path]:
    """Every image file below `root`, by folder and name, links followed: the one listing of all
    that read folders.

    Images are known by their endings, in any case. Hidden names (also macOS's `._x.jpg`) are left
    out, and so are other files, which is announced. Raises FileNotFoundError for no folder or a
    link that leads nowhere, ValueError for a folder that is reached twice (a link to its own
    parent, or one class under two names), OSError for a folder that may not be read."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f"no folder of images at {shown(root)}: check the path")
    found: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    seen: dict[str, str] = {}
    queue = [str(root)]
    while queue:
        folder = queue.pop()
        place = os.path.realpath(folder)
        if place in seen:
            raise ValueError(
                f"{shown(folder)} and {shown(seen[place])} are one folder, so that its images "
                "would be read twice: remove the link"
            )
        seen[place] = folder
        for entry in _entries(folder):
            kind, ending = _kind(entry), os.path.splitext(entry.name)[1].lower()
            if kind == "folder":
                queue.append(entry.path)
            elif kind == "file" and ending in ENDINGS:
                found.append((folder, entry.name))
            else:
                others[(shown(ending) or "no ending") if kind else "no file"] += 1
    if others:
        warnings.warn(
            f"{others.total()} files below {shown(root)} are left out, since their endings are not "
            f"of images ({', '.join(sorted(others))})",
            stacklevel=2,
        )
    return [Path(folder, name) for folder, name in sorted(found)]


def _by_value(name: str) -> list[str | int]:
    """The texts and numbers of a name in turn, which compare as a reader would sort them."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))]


def in_order(names: Sequence[str]) -> list[str]:
    """Class folders in the order of their labels: numbers by value, other names by text as in
    torchvision's ImageFolder; an order that may surprise is announced.
    """
    by_text = sorted(names)
    if not all(re.fullmatch("[0-9]+", name) for name in names):
        for first, second in pairwise(by_text):
            if _by_value(first) > _by_value(second):
                warnings.warn(
                    f"classes are labelled in the order of their names as text, {shown(first)} "
                    f"before {shown(second)}: pad the numbers with zeros for another order",
                    stacklevel=3,
                )
                break
        return by_text
    by_value = sorted(by_text, key=int)
    values = [int(name) for name in by_value]
    if by_value != by_text or values != list(range(len(names))):
        missing = values[-1] - values[0] + 1 - len(set(values))
        warnings.warn(
            f"class folders are numbers and labelled in numeric order: label 0 is {by_value[0]}, "
            f"label {len(names) - 1} is {by_value[-1]}"
            + (f"; {missing} numbers between them are missing" if missing else ""),
            stacklevel=3,
        )
    return by_value


def image_folder(root: Path, leave_out: Sequence[str] = ()) -> ImageFolder:
    """Images below `root`, one sub-folder per class: classes by `in_order`, files by folder and
    name; `leave_out` names folders that are no class.

    ImageNet's train/ with its wnids is such a folder, and gives the usual class numbers. Raises
    FileNotFoundError if there is no such folder or a class has no images, ValueError if images lie
    outside the class folders, and what `list_images` raises."""
    advice = (
        "give a folder with a sub-folder of .jpg, .png or other images for each class, such as "
        "ImageNet's train"
    )
    if not os.path.isdir(root):
        raise FileNotFoundError(f"no image folder at {shown(root)}: {advice}")
    names = [e.name for e in _entries(str(root)) if _kind(e) == "folder"]
    classes = in_order([name for name in names if name not in leave_out])
    if not classes:
        raise FileNotFoundError(f"no image folder at {shown(root)} (no classes in it): {advice}")
    files: dict[str, list[Path]] = {name: [] for name in names}
    for file in list_images(root):
        top, *rest = file.relative_to(root).parts
        if not rest:
            raise ValueError(
                f"{shown(file)} lies outside the class folders of {shown(root)}: move it into one"
            )
        files[top].append(file)
    if found := [file for name in classes for file in files[name]]:
        if all(len(file.relative_to(root).parts) > 2 for file in found):
            warnings.warn(
                f"all images below {shown(root)} lie in folders of its {len(classes)} class "
                f"folders, such as {shown(found[0].relative_to(root).parent)}: if those are the "
                f"classes, give {shown(Path(root) / classes[0])} instead",
                stacklevel=2,
            )
    if empty := [name for name in classes if not files[name]]:
        raise FileNotFoundError(
            f"no image folder at {shown(root)} (no images in {len(empty)} of its classes, such as "
            f"{shown(empty[0])}): {advice}"
        )
    return ImageFolder(
        [file for name in classes for file in files[name]],
        [label for label, name in enumerate(classes) for _ in files[name]],
        [shown(name) for name in classes],
    )


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, `size` pixels wide (ADM: Dhariwal and Nichol, 2021; DiT and
    SiT do the same).

    The image is halved with a box filter while its shorter side is at least twice `size`, then
    brought to `size` on its shorter side by bicubic interpolation: without the halving, bicubic
    interpolation of a much larger image is slow. Raises ValueError for a strip so narrow that this
    makes more pixels of it than Pillow takes for an attack."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(
            f"{image.width} × {image.height} pixels are too narrow a strip for a square of {size}"
        )
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode, as ADM's convert("RGB"); of 16 bits the upper 8, as Pillow
    itself does for colour.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(
            f"its values are {'floats' if image.mode == 'F' else 'integers'} of unknown range, "
            "while 8 or 16 bits are read"
        )
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    tags = getattr(image, "tag_v2", {})  # of TIFF images
    levels = np.asarray(image) >> (tags.get(BITS_PER_SAMPLE, (16,))[0] - 8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def read(path: Path, crop: Crop | None = None) -> Tensor:
    """An image file, cropped, as (3, H, W) uint8 RGB: transparency is dropped, 16 bits become 8.

    Raises ValueError naming a file that is damaged, of floats, or too narrow to crop."""
    try:
        with Image.open(path) as file:
            if file.format == "PNG":  # its checksums are not compared where it is decoded
                with Image.open(path) as again:
                    again.verify()
            if file.format in SEVERAL and (pictures := getattr(file, "n_frames", 1)) > 1:
                warnings.warn(
                    f"{shown(path)} has {pictures} pictures, of which the first is read: "
                    "write each to a file of its own",
                    stacklevel=2,
                )
            image = _rgb(file)
        pixels = np.array(crop(image) if crop else image)
    except BROKEN as error:
        forbidden = isinstance(error, PermissionError)
        cure = "correct its rights" if forbidden else "replace it or delete it"
        why = str(error) or type(error).__name__
        raise ValueError(
            f"{shown(path)} is no readable image ({why}): {cure} and run again; what is finished "
            "is kept"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


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
                f"the images around {shown(paths[first])} have several sizes: crop them to one, as "
                "the samples are"
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
