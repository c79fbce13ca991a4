"""Latents on disk: diffusers' own moments, the same bytes however the work is cut, killed or
shared, and faults in words.
"""

import json
import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from pydantic import ValidationError

from nag.data import latents as module
from nag.data import published_files
from nag.data.fashion_mnist import to_float
from nag.data.image_folder import centre_crop, read
from nag.data.latents import (
    LatentSpec,
    decoder,
    encode,
    latent_source,
    load_vae,
    main,
    open_latents,
    posterior_means,
    write_index,
)
from nag.support.rng import generator

SIXTEEN = partial(centre_crop, size=16)
COUNTS = {"n01": 9, "n02": 8, "n03": 7}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(published_files, "CHECKSUMS", tmp_path / "checksums")
    monkeypatch.setattr(published_files, "SETTLED", -1)  # tests do not wait for files to settle
    monkeypatch.setattr(module, "best_device", lambda: torch.device("cpu"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 images of odd sizes in 3 folders and a tiny autoencoder, as the spec's fields too."""
    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for name, count in COUNTS.items():
        (root / "images" / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(0, 256, (17 + 2 * k, 41 - 3 * k, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(
                root / "images" / name / f"{name}_{k}.{('png', 'JPEG')[k % 2]}"
            )
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(root / "vae")
    return root


def spec_of(world, out, **changes):
    fields = dict(
        images=str(world / "images"),
        vae=str(world / "vae"),
        out=str(out),
        size=16,
        shard_size=5,
        batch_size=3,
    )
    return LatentSpec(**fields | changes)


def made(world, out, **changes):
    spec = spec_of(world, out, **changes)
    report = encode(spec)
    write_index(spec)
    return report


@pytest.fixture(scope="module")
def whole(world):
    """The folder of one unbroken run in one process; tests do not write there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "best_device", lambda: torch.device("cpu"))
        report = made(world, world / "whole")
    assert report["encoded"] == 24 and report["kept"] == 0
    assert report["images_per_second"] == pytest.approx(24 / report["seconds"])
    return world / "whole"


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def same_files(a, b):
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    assert [p.name for p in a.iterdir() if p.read_bytes() != (b / p.name).read_bytes()] == []


def watch(monkeypatch, stop_at=None):
    """Names of the files read from now on; KeyboardInterrupt in place of shard `stop_at`."""
    seen, original = [], module.batches

    def batches(paths, *arguments):
        seen.append([path.name for path in paths])
        if len(seen) - 1 == stop_at:
            raise KeyboardInterrupt
        return original(paths, *arguments)

    monkeypatch.setattr(module, "batches", batches)
    return seen


def files_of(world):
    return [path for name in COUNTS for path in sorted((world / "images" / name).iterdir())]


@torch.no_grad()
def test_moments_are_the_autoencoders_own_of_image_and_mirror_image(world, whole):
    latents, vae = (
        open_latents(whole, verify=True),
        AutoencoderKL.from_pretrained(world / "vae", low_cpu_mem_usage=False),
    )
    assert len(latents) == 24 and latents.shape == (4, 8, 8) and latents.scale == 0.18215
    assert latents.classes == list(COUNTS) and latents.labels.dtype == torch.int64
    assert latents.labels.tolist() == [0] * 9 + [1] * 8 + [2] * 7
    x = to_float(torch.stack([read(path, SIXTEEN) for path in files_of(world)]))
    for flip, images in ((False, x), (True, x.flip(-1))):
        truth = vae.encode(images).latent_dist
        mean, std = latents.moments(range(24), flip)
        assert mean.dtype == std.dtype == torch.float32
        # float16 keeps 11 bits: half of 2^-10; 2^-25 is half its smallest step, 1e-6 the batches'
        # other rounding
        for kept, exact in ((mean, truth.mean), (std, truth.std)):
            assert ((kept - exact).abs() <= 2**-11 * exact.abs() + 2**-25 + 1e-6).all()
    plain, mirrored = (latents.moments([3], flip)[0] for flip in (False, True))
    assert (plain - mirrored).abs().max() > 0.01


def test_rows_come_in_the_order_asked_for_with_their_own_flips(whole):
    latents = open_latents(whole)
    index, flip = torch.tensor([23, 0, 7, 7, 12]), torch.tensor([True, False, True, False, False])
    mean, std = latents.moments(index, flip)
    for row, (i, f) in enumerate(zip(index.tolist(), flip.tolist(), strict=True)):
        shard = np.load(whole / f"shard-{i // 5:05d}.npy")[i % 5, int(f)]
        np.testing.assert_array_equal(
            torch.stack([mean[row], std[row]]).numpy(), shard.astype(np.float32)
        )
    assert isinstance(latents._shard(0), np.memmap) and latents._shard(0).shape == (
        5,
        2,
        2,
        4,
        8,
        8,
    )
    assert latents._shard(4).shape[0] == 4  # the last shard has the rest


def test_two_processes_write_the_same_bytes_as_one(world, whole, tmp_path):
    spec = spec_of(world, tmp_path / "two")
    reports = [encode(spec, rank, 2) for rank in (1, 0)]
    write_index(spec)
    assert [report["encoded"] for report in reports] == [10, 14]
    same_files(whole, tmp_path / "two")


def test_a_killed_run_goes_on_after_its_last_shard(world, whole, tmp_path, monkeypatch):
    out = tmp_path / "killed"
    watch(monkeypatch, stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        encode(spec_of(world, out))
    assert sorted(path.name for path in out.iterdir()) == ["shard-00000.json", "shard-00000.npy"]
    with pytest.raises(
        FileNotFoundError, match=r"no finished shard .*shard-00001.npy: run the latents stage again"
    ):
        write_index(spec_of(world, out))
    (out / ".77.shard-00001.npy").write_bytes(b"half of one")  # what SIGKILL leaves behind
    seen = watch(monkeypatch)
    report = made(world, out, batch_size=3, workers=2)
    assert report["encoded"] == 19 and report["kept"] == 5
    assert sum(seen, []) == [path.name for path in files_of(world)[5:]]
    same_files(whole, out)


def test_what_is_whole_is_not_made_again_and_what_is_not_is(world, whole, copy, monkeypatch):
    seen = watch(monkeypatch)
    assert made(world, copy)["kept"] == 24 and seen == []
    (copy / "shard-00000.json").unlink()  # killed between the shard and its note
    (copy / "shard-00001.npy").unlink()
    (copy / "shard-00002.json").write_text("{")
    spoiled = bytearray((copy / "shard-00003.npy").read_bytes())
    spoiled[-1] ^= 1
    (copy / "shard-00003.npy").write_bytes(spoiled)
    assert made(world, copy)["encoded"] == 20
    same_files(whole, copy)


@pytest.mark.parametrize("change", ["size", "flip", "shard_size", "precision", "vae", "an image"])
def test_another_setting_image_or_autoencoder_encodes_anew(world, copy, tmp_path, change):
    changes = {
        k: v
        for k, v in dict(size=8, flip=False, shard_size=6, precision="bf16").items()
        if k == change
    }
    if change == "vae":
        vae = load_vae(str(world / "vae"))
        vae.quant_conv.bias.data += 1
        vae.save_pretrained(tmp_path / "vae")
        changes = {"vae": str(tmp_path / "vae")}
    elif change == "an image":
        changes = {"images": str(shutil.copytree(world / "images", tmp_path / "images"))}
        Image.new("RGB", (50, 40)).save(tmp_path / "images" / "n03" / "n03_6.png")
    assert made(world, copy, **changes)["encoded"] == {"an image": 4}.get(change, 24)
    assert len(list(copy.glob("shard-*.npy"))) == {"shard_size": 4}.get(change, 5)
    assert len(open_latents(copy, verify=True)) == 24


def test_another_image_of_the_same_size_and_time_is_seen(world, copy, tmp_path, monkeypatch):
    images = shutil.copytree(world / "images", tmp_path / "images")
    changes = {"images": str(images)}
    assert made(world, copy, **changes)["kept"] == 24  # the same images in another place
    path = images / "n02" / "n02_0.png"
    content, stat = path.read_bytes(), path.stat()
    with Image.open(path) as file:
        Image.fromarray(255 - np.array(file)).save(path)
    new = path.read_bytes()
    size = max(len(content), len(new))  # Pillow ignores what follows the end of a PNG
    path.write_bytes(content.ljust(size, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    made(world, copy, **changes)
    path.write_bytes(new.ljust(size, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    with pytest.raises(ValueError, match=r"shard-00001.npy was made with other settings or images"):
        write_index(spec_of(world, copy, **changes))
    assert made(world, copy, **changes)["encoded"] == 5
    os.utime(path)  # touched only: it is read, not encoded
    hashed, real = [], module.sha256
    monkeypatch.setattr(module, "sha256", lambda path: hashed.append(path.name) or real(path))
    assert made(world, copy, **changes)["kept"] == 24
    assert [name for name in hashed if "shard" not in name] == [
        path.name for path in files_of(world)[5:10]
    ]


def test_names_that_are_not_utf8_are_encoded(world, tmp_path):
    images = shutil.copytree(world / "images", tmp_path / "images")
    os.rename(images / "n02", os.fsencode(images) + b"/n0\xe9")
    os.rename(images / "n01" / "n01_0.png", os.fsencode(images) + b"/n01/\xff.png")
    assert made(world, tmp_path / "out", images=str(images))["encoded"] == 24
    assert open_latents(tmp_path / "out", verify=True).classes == ["n01", "n03", r"n0\xe9"]


def test_an_index_never_describes_other_shards(world, copy, monkeypatch):
    watch(monkeypatch, stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        encode(spec_of(world, copy, size=8))
    with pytest.raises(FileNotFoundError, match="no latents at .*copy"):
        open_latents(copy)
    with pytest.raises(ValueError, match=r"shard-00001.npy was made with other settings or images"):
        write_index(spec_of(world, copy, size=8))


def test_draws_do_not_depend_on_the_rows(whole, monkeypatch):
    latents = open_latents(whole)
    source, index = latent_source(latents), torch.tensor([4, 22, 9, 9, 0, 17, 3, 11])
    x0 = source(index, generator(1))
    assert x0.shape == (8, 4, 8, 8) and x0.dtype == torch.float32
    asked, original = [], latents.moments
    monkeypatch.setattr(
        latents,
        "moments",
        lambda index, flip: asked.append(index.tolist()) or original(index, flip),
    )
    parts = [source(index, generator(1), rows) for rows in (slice(0, 3), slice(3, 4), slice(4, 8))]
    assert torch.equal(torch.cat(parts), x0)
    assert asked == [[4, 22, 9], [9], [0, 17, 3, 11]]
    assert not torch.equal(x0[2], x0[3])  # the same image twice in a batch has its own noise
    first, second = generator(1), generator(1)
    source(index, first), source(index, second, slice(2, 3))
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))


def test_samples_have_the_posteriors_mean_and_variance_over_both_flips(whole):
    latents, n = open_latents(whole), 4000
    x0 = latent_source(latents)(torch.full((n,), 6), generator(2)) / 0.18215
    (m0, s0), (m1, s1) = (tuple(a[0] for a in latents.moments([6], flip)) for flip in (False, True))
    mean, variance = (m0 + m1) / 2, (s0**2 + s1**2) / 2 + ((m0 - m1) / 2) ** 2
    z = (x0.mean(0) - mean) / (variance / n).sqrt()
    assert z.abs().max() < 5 and 0.8 < z.std() < 1.2
    assert (x0.var(0) / variance - 1).abs().max() < 0.15


def test_without_mirror_images_none_are_drawn(world, whole, tmp_path):
    made(world, tmp_path / "plain", flip=False)
    latents = open_latents(tmp_path / "plain")
    assert not latents.flip and latents._shard(0).shape == (5, 1, 2, 4, 8, 8)
    index = torch.arange(24)
    assert torch.equal(latents.moments(index)[0], open_latents(whole).moments(index)[0])
    x0 = latent_source(latents)(torch.full((2000,), 6), generator(0))
    (mean,), (std,) = latents.moments([6])
    assert ((x0.mean(0) / 0.18215 - mean).abs() < 5 * std / 2000**0.5).all()
    with pytest.raises(ValueError, match="has no mirror images: encode with flip: true"):
        latents.moments([0], True)


@torch.no_grad()
def test_there_and_back_is_diffusers_own(world, whole):
    vae = AutoencoderKL.from_pretrained(world / "vae", low_cpu_mem_usage=False)
    x = to_float(torch.stack([read(path, SIXTEEN) for path in files_of(world)[:6]]))
    truth = vae.decode(vae.encode(x).latent_dist.mode()).sample
    back = decoder(load_vae(str(world / "vae")), torch.device("cpu"))(
        posterior_means(open_latents(whole), range(6))
    )
    assert back.shape == (6, 3, 16, 16)
    torch.testing.assert_close(
        back, truth.clamp(-1, 1), atol=5e-3, rtol=0
    )  # float16's rounding through the decoder


def test_faults_on_disk_are_told(copy, tmp_path):
    shard = copy / "shard-00002.npy"
    content = shard.read_bytes()
    with pytest.raises(
        FileNotFoundError, match=r"no latents at .*nowhere \(no index.json\): run the latents stage"
    ):
        open_latents(tmp_path / "nowhere")
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    open_latents(copy)
    with pytest.raises(
        ValueError,
        match=r"shard-00002.npy is not what was written \(its SHA-256 differs\): delete it",
    ):
        open_latents(copy, verify=True)
    shard.write_bytes(content[:-9])
    with pytest.raises(
        ValueError,
        match=rf"shard-00002.npy has {len(content) - 9} of {len(content)} bytes: delete it",
    ):
        open_latents(copy)
    shard.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"shard .*shard-00002.npy is missing: run the latents stage again"
    ):
        open_latents(copy)
    shard.write_bytes(content)
    index = json.loads((copy / "index.json").read_text())
    index["classes"][0][1] += 1
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="does not give each of its 24 images one label"):
        open_latents(copy)


@pytest.mark.parametrize("index", [[0, 24], [-1]])
def test_an_image_that_is_not_there_is_not_another_one(whole, index):
    with pytest.raises(IndexError, match=r"asked for, but .*whole has 0 to 23"):
        open_latents(whole).moments(index)


def test_a_damaged_image_is_named_and_the_shards_before_are_kept(world, tmp_path):
    images = shutil.copytree(world / "images", tmp_path / "images")
    bad = images / "n02" / "n02_0.png"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"n02_0.png is no readable image"):
        encode(spec_of(world, tmp_path / "out", images=str(images)))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == ["shard-00000.npy"]


def test_values_that_float16_cannot_hold_are_refused(world, tmp_path):
    vae = load_vae(str(world / "vae"))
    vae.quant_conv.bias.data[0] = 1e5
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(
        FloatingPointError, match=r"beyond float16 for images between .*n01_0.png and .*n01_4.png"
    ):
        encode(spec_of(world, tmp_path / "out", vae=str(tmp_path / "vae")))
    assert not (tmp_path / "out").exists()


def test_impossible_specs_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match="size 17 is not a multiple of 2"):
        encode(spec_of(world, tmp_path / "out", size=17))
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        encode(spec_of(world, tmp_path / "out", precision="half"))
    for name, value in {
        "images": "",
        "vae": "",
        "size": 0,
        "shard_size": 0,
        "batch_size": 0,
        "sise": 256,
    }.items():
        with pytest.raises(ValidationError, match=name):
            spec_of(world, tmp_path, **{name: value})


def test_by_hand_in_one_process(world, whole, tmp_path, capsys):
    (tmp_path / "spec.json").write_text(spec_of(world, tmp_path / "out").model_dump_json())
    main([str(tmp_path / "spec.json")])
    assert "process 0 of 1: 24 images encoded in" in capsys.readouterr().out
    same_files(whole, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
def test_torchrun_with_two_processes(world, whole, tmp_path):
    from nag.support.distributed import launch

    (tmp_path / "spec.json").write_text(spec_of(world, tmp_path / "out").model_dump_json())
    launch("nag.data.latents", tmp_path / "spec.json", 2)
    one, two = open_latents(whole), open_latents(tmp_path / "out", verify=True)
    assert one.index["files_sha256"] == two.index["files_sha256"] and torch.equal(
        one.labels, two.labels
    )
    torch.testing.assert_close(
        two.moments(range(24), True), one.moments(range(24), True), atol=1e-5, rtol=2**-10
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("scale"),
        lambda index: index["shards"][0].pop("name"),
        lambda index: index.update(images="20"),
        lambda index: index.update(shape=[4, None, 8]),
        lambda index: index.update(classes=[["a"]]),
        lambda index: index["shards"].append(None),
    ],
)
def test_a_damaged_index_is_named(copy, change):
    index = json.loads((copy / "index.json").read_text())
    open_latents(copy)
    change(index)
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json is damaged: delete it and run the latents"):
        open_latents(copy)
