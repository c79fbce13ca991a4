"""Reading image folders: ADM's crop step by step, every mode to RGB, a fixed order, and a damaged
file by its name.
"""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from nag.data.image_folder import batches, centre_crop, image_folder, read

FOUR, EIGHT = partial(centre_crop, size=4), partial(centre_crop, size=8)
BOX, BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC


def noise(width, height, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize(
    ("size", "halved", "resized", "box"),
    [
        (
            (67, 45),
            [(33, 22), (16, 11)],
            (15, 10),
            (2, 0, 12, 10),
        ),  # twice by the box filter, then wider than high
        ((20, 41), [(10, 20)], (10, 20), (0, 5, 10, 15)),  # exactly twice the size is halved, too
        ((19, 23), [], (10, 12), (0, 1, 10, 11)),
        ((7, 9), [], (10, 13), (0, 1, 10, 11)),  # a small image grows
    ],
)
def test_the_crop_is_adms_done_by_hand(size, halved, resized, box):
    image = expected = noise(*size)
    for step in halved:
        expected = expected.resize(step, BOX)
    expected = expected.resize(resized, BICUBIC).crop(box)
    assert np.array_equal(np.array(centre_crop(image, 10)), np.array(expected))


def test_an_image_of_the_right_size_is_left_alone_and_one_of_twice_the_size_is_averaged():
    image = noise(8, 8)
    assert np.array_equal(np.array(centre_crop(image, 8)), np.array(image))
    large = np.array(noise(16, 16, seed=1))
    blocks = large.reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert (
        np.abs(np.array(centre_crop(Image.fromarray(large), 8)) - blocks).max() <= 1
    )  # Pillow rounds twice, per axis


def test_a_tensor_has_channels_first(tmp_path):
    image = noise(8, 8)
    image.save(tmp_path / "a.png")
    x = read(tmp_path / "a.png", EIGHT)
    assert x.dtype == torch.uint8 and x.shape == (3, 8, 8)
    assert x[2, 5, 1] == np.array(image)[5, 1, 2]


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("CMYK", "a.jpg"), ("P", "a.png"), ("RGBA", "a.png"), ("1", "a.png")],
)
def test_every_mode_becomes_rgb(tmp_path, mode, name):
    image = noise(8, 8).convert(mode)
    image.save(tmp_path / name, quality=95) if name.endswith("jpg") else image.save(tmp_path / name)
    with Image.open(tmp_path / name) as file:
        expected = np.array(file.convert("RGB"))
    assert np.array_equal(read(tmp_path / name, EIGHT).permute(1, 2, 0).numpy(), expected)


def test_batches_keep_the_order_for_any_size_and_number_of_threads(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(11)]
    for k, path in enumerate(paths):
        Image.new("RGB", (9 + k, 12), (k, 2 * k, 0)).save(path)
    whole = torch.cat(list(batches(paths, FOUR, 11, workers=1)))
    assert whole[:, 0, 0, 0].tolist() == list(range(11)) and whole[:, 1, 2, 2].tolist() == list(
        range(0, 22, 2)
    )
    parts = list(batches(paths, FOUR, 4, workers=5))
    assert [len(part) for part in parts] == [4, 4, 3] and torch.equal(torch.cat(parts), whole)
    assert list(batches([], FOUR, 4)) == []


def test_classes_and_files_are_sorted_by_name(tmp_path):
    for name in ("n02/b.JPEG", "n02/a.png", "n01/z.jpg", "n10/sub/c.png", "n02/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = image_folder(tmp_path)
    assert folder.classes == ["n01", "n02", "n10"]
    assert [(path[len(str(tmp_path)) + 1 :], label) for path, label in folder.samples] == [
        ("n01/z.jpg", 0),
        ("n02/a.png", 1),
        ("n02/b.JPEG", 1),
        ("n10/sub/c.png", 2),
    ]


@pytest.mark.parametrize("kind", ["no folder", "a file", "no classes", "an empty class"])
def test_no_image_folder_is_said(tmp_path, kind):
    root = tmp_path / "images"
    if kind == "a file":
        root.write_text("")
    elif kind != "no folder":
        (root / "empty").mkdir(parents=True) if kind == "an empty class" else root.mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no image folder at .*images .*sub-folder .* for each class"
    ) as error:
        image_folder(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "page.jpg", "empty.png", "bits.png"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    noise(64, 64).save(path)
    content = bytearray(path.read_bytes())
    kinds = {
        "cut": content[: len(content) // 2],
        "page": b"<html>404</html>",
        "empty": b"",
        "bits": content[:40] + bytes(len(content) - 40),
    }
    path.write_bytes(kinds[path.stem])
    with pytest.raises(ValueError, match=rf"{name} is no readable image .*replace it"):
        list(batches([path], None, 4))
