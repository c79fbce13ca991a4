"""Reading image folders: ADM's crop step by step, every mode to RGB, a fixed order, and a damaged
file by its name.
"""

import errno
import os
import struct
import warnings
import zlib
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from nag.data.image_folder import batches, centre_crop, image_folder, in_order, list_images, read

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


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8, seed=len(name)).save(root / name)
    return root


def names_of(folder, root):
    return [(path.relative_to(root).as_posix(), label) for path, label in pairs(folder)]


def pairs(folder):
    return list(zip(folder.files, folder.labels, strict=True))


def test_classes_and_files_are_those_of_torchvision(tmp_path):
    """Also nested, with names that sort differently as paths and as text, and behind links."""
    root = tmp_path / "images"
    make(root, "n02/b.JPEG", "n02/a.png", "n01/z.jpg", "n10/sub/c.png", "n10/sub b/c.png")
    make(root, "n10/z.tiff", "n10/sub/deep/a.webp", "n1 0/x.PNG", "größe/ü.bmp", "n02.d/a.ppm")
    make(tmp_path / "elsewhere", "w/1.png", "w/2.png", "file.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere" / "w")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file.png")
    (root / "n01" / "link.png").symlink_to(tmp_path / "link")  # a link to a link
    theirs, ours = torchvision.datasets.ImageFolder(root), image_folder(root)
    assert ours.classes == theirs.classes
    assert [(str(path), label) for path, label in pairs(ours)] == theirs.samples
    assert sorted(ours.files) == sorted(list_images(root)) and len(ours.files) == 13


def test_what_is_not_an_image_is_left_out_and_said(tmp_path):
    make(tmp_path, "n01/a.png", "n02/b.png", "n02/.c.png", ".ipynb_checkpoints/a.png")
    make(tmp_path, "__MACOSX/n01/a.png", "@eaDir/n01/a.png")
    (tmp_path / "n01" / "._a.png").write_bytes(b"macOS")
    (tmp_path / "n01" / ".DS_Store").write_bytes(b"macOS")
    (tmp_path / ".Trash-1000").symlink_to("nowhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_folder(tmp_path).classes == ["n01", "n02"]
        assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.png"]
    (tmp_path / "n01" / "notes.TXT").touch()
    (tmp_path / "n01" / "c.heic").touch()
    os.mkfifo(tmp_path / "n01" / "pipe.png")  # reading it would wait for ever
    with pytest.warns(UserWarning, match=r"3 files .* left out, .*\.heic, \.txt, no file"):
        assert len(list_images(tmp_path)) == 2


@pytest.mark.parametrize("reads", [list_images, image_folder])
def test_links_that_lead_nowhere_or_back_are_said(tmp_path, reads):
    root = make(tmp_path / "images", "n01/a.png", "n02/b.png")
    for target in ("gone", "link"):  # and a link to itself
        for place in (root / "n01" / "link.png", root / "link", root / "n01" / "link"):
            place.symlink_to(place.name if target == "link" else target)
            with pytest.raises(FileNotFoundError, match=r"link.*is a link to .*, where nothing is"):
                reads(root)
            place.unlink()
    for place, target in {
        "n01/up": "..",
        "n01/self": ".",
        "n03": "n01",
        "n01/n02": "../n02",
    }.items():
        (root / place).symlink_to(target)
        with pytest.raises(ValueError, match="are one folder.*remove the link"):
            reads(root)
        (root / place).unlink()
    assert len(list_images(root)) == 2


def test_a_folder_that_may_not_be_read_is_not_an_empty_class(tmp_path, monkeypatch):
    make(tmp_path, "n01/a.png", "n02/b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("n02"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match=r"n02 cannot be read \(Permission denied\): correct"):
        image_folder(tmp_path)


def test_numbers_are_labelled_by_value_and_an_order_that_may_surprise_is_said(tmp_path):
    def order(*names):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            return in_order(names), [str(w.message) for w in said]

    twelve = [str(k) for k in range(12)]
    assert order(*sorted(twelve)) == (
        twelve,
        ["class folders are numbers and labelled in numeric order: label 0 is 0, label 11 is 11"],
    )
    assert order("1", "0", "2") == (["0", "1", "2"], [])
    assert order("000", "001", "002", "010")[1] == [
        "class folders are numbers and labelled in numeric order: label 0 is 000, label 3 is 010; "
        "7 numbers between them are missing"
    ]
    assert "label 0 is 1," in order("1", "2")[1][0]
    assert order("n02", "n10", "n01") == (["n01", "n02", "n10"], [])
    found, said = order("c2", "c10", "b")
    assert found == ["b", "c10", "c2"] and "c10 before c2: pad" in said[0]
    assert "10_dog before 2_cat: pad" in order("0_bird", "2_cat", "10_dog")[1][0]
    assert order("001.auk", "002.owl", "n02-a", "n10-b")[1] == []
    assert order("0-a", "x", "٣", "²1", "x é") == (["0-a", "x", "x é", "²1", "٣"], [])
    assert order() == ([], [])
    make(tmp_path, *(f"{k}/{k}.png" for k in (0, 2, 10)))
    with pytest.warns(UserWarning, match="label 2 is 10"):
        assert names_of(image_folder(tmp_path), tmp_path) == [
            ("0/0.png", 0),
            ("2/2.png", 1),
            ("10/10.png", 2),
        ]


@pytest.mark.parametrize("kind", ["no folder", "a file", "no classes", "an empty class"])
def test_no_image_folder_is_said(tmp_path, kind):
    root = tmp_path / "images"
    if kind == "a file":
        root.write_text("")
    elif kind != "no folder":
        (root / "empty").mkdir(parents=True) if kind == "an empty class" else root.mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no image folder at .*images.*: give .*sub-folder .* each class"
    ) as error:
        image_folder(root)
    assert "\n" not in str(error.value)


def test_images_outside_of_classes_are_said(tmp_path):
    make(tmp_path, "n01/a.png", "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies outside the class folders"):
        image_folder(tmp_path)
    assert len(list_images(tmp_path)) == 2


def test_names_that_are_not_utf8_are_read_and_can_be_printed(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    noise(8, 8).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", folder + b"/\xff.png")
    found = image_folder(tmp_path)
    assert found.classes == [r"caf\xe9"] and found.labels == [0]
    assert read(found.files[0]).shape == (3, 8, 8)
    found.files[0].write_bytes(b"")
    with pytest.raises(ValueError, match=r"caf\\xe9/\\xff\.png is no readable image") as error:
        read(found.files[0])
    str(error.value).encode()


RAMP = np.arange(64 * 64).reshape(64, 64)  # 12 bits


def test_sixteen_bits_become_eight(tmp_path):
    """A ramp of 16 bits is the ramp of 8 bits, in every format and mode that holds one."""
    sixteen = (RAMP * 16 + RAMP // 256).astype(np.uint16)
    expected = np.repeat((RAMP // 16).astype(np.uint8)[None], 3, 0)
    Image.fromarray(sixteen).save(tmp_path / "a.png")
    Image.fromarray(sixteen).save(tmp_path / "a.tif")
    Image.fromarray(sixteen.astype(">u2")).save(tmp_path / "big.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 65535\n" + sixteen.astype(">u2").tobytes())
    (tmp_path / "12.pgm").write_bytes(b"P5 64 64 4095\n" + RAMP.astype(">u2").tobytes())
    colour = np.repeat(sixteen[..., None], 3, 2)
    (tmp_path / "rgb.ppm").write_bytes(b"P6 64 64 65535\n" + colour.astype(">u2").tobytes())
    png(tmp_path / "rgb.png", 2, colour)
    png(tmp_path / "la.png", 4, np.stack([sixteen, np.full_like(sixteen, 999)], -1))
    png(tmp_path / "rgba.png", 6, np.concatenate([colour, colour[..., :1]], -1))
    white = Image.open(tmp_path / "a.tif").convert("I;16")
    Image.fromarray(65535 - np.asarray(white)).save(tmp_path / "white.tif", tiffinfo={262: 0})
    for path in list_images(tmp_path):
        with Image.open(path) as file:
            assert path.suffix == ".ppm" or file.mode not in ("L", "P")
        found = read(path).numpy()
        assert np.abs(found.astype(int) - expected).max() <= (path.suffix in (".pgm", ".ppm")), path


def png(path, colour, values):
    """A 16-bit PNG of colour type 2 (RGB), 4 (grey and alpha) or 6 (RGBA), which Pillow cannot
    write."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("kind", "words"),
    [(np.float32, "floats"), (np.int32, "integers")],
)
def test_values_of_unknown_range_are_refused(tmp_path, kind, words):
    Image.fromarray(RAMP.astype(kind)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=f"a.tiff is no .*its values are {words} of unknown range"):
        read(tmp_path / "a.tiff")


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1)])
def test_a_strip_too_narrow_for_a_square_is_named(tmp_path, size):
    Image.new("L", size).save(tmp_path / "strip.png")
    with pytest.raises(
        ValueError, match=r"strip\.png is no .*60000.* too narrow a strip for .*256"
    ):
        read(tmp_path / "strip.png", partial(centre_crop, size=256))
    assert read(tmp_path / "strip.png").shape == (3, *size[::-1])


def test_rights_are_named_as_the_cure(tmp_path, monkeypatch):
    make(tmp_path, "a.png")

    def closed(path, *arguments):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", closed)
    with pytest.raises(ValueError, match=r"a\.png is no readable image .*correct its rights"):
        read(tmp_path / "a.png")


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


def test_a_png_whose_checksum_is_wrong_is_refused(tmp_path):
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1  # a level of one pixel: nothing else shows it
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is no readable image"):
        read(path)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_of_several_pictures_in_a_file_the_first_is_read_and_that_is_said(tmp_path, name):
    first, second = (Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 255))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match=f"{name} has 2 pictures, of which the first is read"):
        assert read(tmp_path / name).max() == 0
    first.save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path / name)


def test_a_root_above_the_classes_is_said(tmp_path):
    make(tmp_path, "train/a/0.png", "train/b/0.png", "val/a/0.png")
    with pytest.warns(UserWarning, match="if those are the classes, give .*train instead"):
        assert image_folder(tmp_path).classes == ["train", "val"]
    make(tmp_path, "train/1.png", "val/1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_folder(tmp_path)
