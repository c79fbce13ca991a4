"""The embedded images are the published ones, and every way of getting a file says why it fails."""

import gzip
import os
import subprocess

import pytest
import torch

from nag.data import fashion_mnist

LABELS = "t10k-labels-idx1-ubyte.gz"  # the smallest file


def test_the_embedded_test_set():
    images, labels = fashion_mnist.load_fashion_mnist("test")
    assert images.shape == (10_000, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and labels.bincount().tolist() == [1000] * 10
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]  # as published
    assert images.float().mean().item() / 255 == pytest.approx(0.2868, abs=5e-4)


def test_uint8_survives_the_way_to_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    x = fashion_mnist.to_float(levels)
    assert x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1)
    assert torch.equal(fashion_mnist.to_uint8(x), levels)


def test_uint8_is_rounded_and_clamped():
    x = torch.tensor([-9.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 9.0])
    assert fashion_mnist.to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255]


def test_an_unknown_split_names_both():
    with pytest.raises(ValueError, match="unknown split 'val': choose 'train' or 'test'"):
        fashion_mnist.load_fashion_mnist("val")


def embedded(_, scratch):
    return fashion_mnist.FOLDER / LABELS


def damaged(kind):
    content = (fashion_mnist.FOLDER / LABELS).read_bytes()
    return {
        "truncated": content[: len(content) // 2],
        "other content": gzip.compress(b"something else"),
        "no gzip": b"<html>404</html>",
    }[kind]


@pytest.mark.parametrize(
    "kind, complaint",
    [
        ("truncated", "is truncated or not a gzip file"),
        ("other content", "is not the published file .MD5 differs."),
        ("no gzip", "is truncated or not a gzip file"),
    ],
)
def test_a_damaged_file_is_named_with_advice(tmp_path, kind, complaint):
    (tmp_path / LABELS).write_bytes(damaged(kind))
    with pytest.raises(OSError, match=f"{LABELS} {complaint}.*: delete it and run again"):
        fashion_mnist.fetch(LABELS, tmp_path)


def test_when_every_source_fails_each_is_listed_with_its_reason(tmp_path, monkeypatch):
    def raises(error):
        def bring(name, scratch):
            raise error

        return bring

    monkeypatch.setattr(
        fashion_mnist,
        "SOURCES",
        {
            "a folder": lambda name, scratch: tmp_path / "nowhere" / name,
            "a mirror": raises(RuntimeError("404 from the mirror")),
            "a package": raises(subprocess.CalledProcessError(100, ["apt-get", "download"])),
            "an archive": raises(StopIteration()),
            "a slow line": raises(subprocess.TimeoutExpired("curl", 300)),
        },
    )
    with pytest.raises(FileNotFoundError) as caught:
        fashion_mnist.fetch(LABELS, tmp_path / "data")
    lines = str(caught.value).splitlines()
    assert f"could not get {LABELS}" in lines[0] and "by hand" in lines[0]
    wanted = [
        "not there",
        "No such file",
        "404 from the mirror",
        "exit status 100",
        "StopIteration",
        "300 seconds",
    ]
    assert len(lines) == 1 + len(wanted) and all(
        w in line for w, line in zip(wanted, lines[1:], strict=True)
    )
    assert not (tmp_path / "data").exists()


def test_a_good_source_is_kept_and_a_damaged_one_passed_over(tmp_path, monkeypatch):
    def half(name, scratch):
        (scratch / name).write_bytes(damaged("truncated"))
        return scratch / name

    monkeypatch.setattr(fashion_mnist, "SOURCES", {"half": half, "whole": embedded})
    folder = tmp_path / "data"
    content = fashion_mnist.fetch(LABELS, folder)
    assert len(content) == 8 + 10_000 and os.listdir(folder) == [LABELS]
    monkeypatch.setattr(fashion_mnist, "SOURCES", {})
    assert fashion_mnist.fetch(LABELS, folder) == content


def test_the_known_sources_fetch_what_they_promise(tmp_path, monkeypatch):
    """Debian's folder and package, played by local files: no network in tests."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN", fashion_mnist.FOLDER)
    assert fashion_mnist.fetch(LABELS, tmp_path) == fashion_mnist.read_verified(
        fashion_mnist.FOLDER / LABELS
    )
    monkeypatch.setattr(fashion_mnist.shutil, "which", lambda name: None)
    with pytest.raises(OSError, match="apt-get is not here"):
        fashion_mnist.SOURCES["apt-get download dataset-fashion-mnist"](LABELS, tmp_path)
