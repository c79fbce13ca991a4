import json
import math
import tracemalloc
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torchvision.transforms import functional as TF

from nag.data import published_files
from nag.data.fashion_mnist import load_fashion_mnist
from nag.evaluation import adm, inception
from nag.evaluation.adm import (
    evaluate,
    frechet,
    inception_score,
    kernel_distance,
    precision_recall,
    reference_from_images,
    report,
)
from nag.evaluation.inception import image_batches, image_shape, load_extractor

STUB = "test_adm:stub"
POOL, SPATIAL, LOGITS = 6, 5, 7


def stub(images):
    """Inception-shaped: fixed random projections of the pixels."""
    gen = torch.Generator().manual_seed(0)
    x = images.flatten(1).float() / 255
    return {
        name: x @ torch.randn(x.shape[1], size, generator=gen) / 8
        for name, size in (("pool", POOL), ("spatial", SPATIAL), ("logits", LOGITS))
    }


def normal(n, d, seed, scale=1.0, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, scale, (n, d))).float()


def pictures(n, seed=0, side=8, high=256):
    return np.random.default_rng(seed).integers(0, high, (n, side, side, 3), dtype=np.uint8)


def statistics(x):
    return fid_features_to_statistics(x.double())


def fid(a, b):
    return fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID]


@pytest.fixture(autouse=True)
def checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(published_files, "CHECKSUMS", tmp_path / "checksums")


@pytest.fixture
def files(tmp_path):
    """Samples and a reference whose statistics are of more images than it holds."""
    samples, reference = tmp_path / "samples.npz", tmp_path / "reference.npz"
    np.savez(samples, pictures(60, high=200))
    reference_from_images(reference, pictures(90, seed=1), STUB, count=40)
    return samples, reference


# Inception with random weights, in the published file's format


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    class Random(feature_extractor_inceptionv3.FeatureExtractorInceptionV3):
        def load_state_dict(self, state, *_, **__):
            pass

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {}
        )
        net = Random("inception-v3-compat", ["2048", "logits_unbiased"])
    for name, buffer in net.named_buffers():  # so that normalisation is not nearly the identity
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.02)
    net.fc.bias.fill_(5.0)
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    return net, path


@pytest.mark.slow
def test_inception_features_and_the_order_of_the_spatial_ones(random_inception, monkeypatch):
    """Against torch-fidelity's output, and against mixed_6/conv computed step by step and written
    out pixel by pixel.
    """
    net, path = random_inception
    monkeypatch.setattr(inception, "best_device", lambda: torch.device("cpu"))
    extract, weights = inception.inception(path)
    images = torch.from_numpy(pictures(2, side=40)).permute(0, 3, 1, 2)
    out = extract(images)
    pool, logits = net(images)
    assert torch.equal(out["pool"], pool) and torch.equal(out["logits"], logits) and pool.std() > 0
    assert torch.allclose(logits, pool @ net.fc.weight.T, atol=1e-5)  # no bias, which is 5
    assert weights["file"] == "random.pth" and len(weights["sha256"]) == 64

    x = feature_extractor_inceptionv3.interpolate_bilinear_2d_like_tensorflow1x(
        images.float(), size=(299, 299), align_corners=False
    )
    x = (x - 128) / 128
    for name in (
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "MaxPool_1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "MaxPool_2",
        "Mixed_5b",
        "Mixed_5c",
        "Mixed_5d",
        "Mixed_6a",
        "Mixed_6b",
        "Mixed_6c",
    ):  # mixed .. mixed_5 follow the stem
        x = getattr(net, name)(x)
    branch = net.Mixed_6d.branch1x1
    scale = branch.bn.weight / (branch.bn.running_var + 0.001).sqrt()
    shift = branch.bn.bias - branch.bn.running_mean * scale
    maps = (F.conv2d(x, branch.conv.weight) * scale[:, None, None] + shift[:, None, None]).clamp(
        min=0
    )
    expected = [
        [maps[i, c, h, w] for h in range(17) for w in range(17) for c in range(7)] for i in range(2)
    ]
    expected = torch.tensor(expected)
    assert out["spatial"].shape == (2, 17 * 17 * 7) == (2, 2023)
    assert (expected > 0).float().mean() > 0.1 and torch.allclose(
        out["spatial"], expected, rtol=1e-3, atol=1e-5
    )


def test_inception_weights_that_do_not_fit(tmp_path, monkeypatch):
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth does not fit torch-fidelity's Inception"):
        inception.inception(tmp_path / "other.pth")
    torch.save(np.random.default_rng(0), tmp_path / "code.pth")
    with pytest.raises(ValueError, match="code.pth holds objects other than weights"):
        inception.inception(tmp_path / "code.pth")

    def offline(*_, **__):
        raise URLError("offline")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(published_files, "WEIGHTS", tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match="no weights-inception-2015-12-05-6726825d.pth.*SHA-256 6726825d.*put it into",
    ):
        load_extractor("inception")


# The other extractors


def test_our_classifier_in_inceptions_place():
    extract, weights = load_extractor("fashion-mnist")
    images = load_fashion_mnist("test")[0][:3].expand(-1, 3, -1, -1)
    with torch.no_grad():
        out = extract(images)
    from nag.checkpoint import load_weights
    from nag.data.fashion_mnist import to_float
    from nag.evaluation.fashion_classifier import Extractor

    net = load_weights(inception.WEIGHTS / "extractor.safetensors", Extractor())
    maps = net.body[:5](to_float(images[:, :1]))
    assert torch.allclose(out["pool"].cpu(), net.features(to_float(images[:, :1])), atol=1e-4)
    assert torch.allclose(
        out["logits"].cpu(), net(to_float(images[:, :1])) - net.head.bias, atol=1e-4
    )
    assert torch.allclose(out["spatial"].cpu()[1, 7:14], maps[1, :7, 0, 1], atol=1e-4) and out[
        "spatial"
    ].shape == (3, 343)
    assert weights["file"] == "extractor.safetensors"
    with pytest.raises(ValueError, match="three equal channels"):
        extract(torch.from_numpy(pictures(2, side=28)).permute(0, 3, 1, 2))


def test_dinov2_sees_images_as_pil_resizes_them(tmp_path, monkeypatch):
    """Through torch.hub with a small network in the folder of the code: a linear map of the mean
    colour and one pixel.
    """
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    code = tmp_path / ("facebookresearch_dinov2_" + inception.DINOV2.split(":")[1])
    code.mkdir()
    (code / "hubconf.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(torch.cat([x.mean((2, 3)), x[:, :, 100, 50]], 1))\n\n\n"
        "def dinov2_vitl14(pretrained=True):\n    assert not pretrained\n    return Net(6, 4)\n"
    )
    torch.save({"weight": torch.randn(4, 6), "bias": torch.randn(4)}, tmp_path / "w.pth")
    extract, weights = inception.dinov2(tmp_path / "w.pth")
    images = pictures(3, side=32)
    found = extract(torch.from_numpy(images).permute(0, 3, 1, 2))["pool"].cpu()
    state = torch.load(tmp_path / "w.pth")
    for image, row in zip(images, found, strict=True):
        resized = TF.resize(Image.fromarray(image), [224, 224], TF.InterpolationMode.BICUBIC)
        x = TF.normalize(TF.to_tensor(resized), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        expected = state["weight"] @ torch.cat([x.mean((1, 2)), x[:, 100, 50]]) + state["bias"]
        assert torch.allclose(row, expected, atol=1e-5)
    torch.save({"weight": torch.randn(4, 6)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth does not fit DINOv2"):
        inception.dinov2(tmp_path / "w.pth")

    def offline(*_, **__):
        raise URLError("offline")

    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(
        FileNotFoundError, match="no code for DINOv2: unpack revision 7764ea0.* as .*dinov2_7764ea0"
    ):
        inception.dinov2(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "name", ["other", "no_such_module:f", "test_adm:no_such_function", "a:b:c"]
)
def test_unknown_extractor(name):
    with pytest.raises(
        ValueError, match="unknown extractor.*fashion-mnist.*package.module:function"
    ):
        load_extractor(name)


@pytest.mark.parametrize("name", ["math:pi", "..:x", "json:loads", "os:getcwd", "builtins:len"])
def test_what_is_no_extractor_is_said_on_the_command_line(name, files, capsys):
    with pytest.raises(SystemExit) as end:
        adm.main([*map(str, files), "--allow-fewer", "--extractor", name])
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "extractor" in said and name in said


def test_a_matrix_with_a_negative_variance_in_some_direction_is_no_covariance(tmp_path):
    """Its diagonal is good, and the distance to it would be negative."""
    mu, sigma = np.zeros(3), np.full((3, 3), -0.9) + 1.9 * np.eye(3)
    np.savez(tmp_path / "r.npz", mu=mu, sigma=sigma)
    with pytest.raises(ValueError, match="a negative variance in some direction"):
        adm.given_statistics(tmp_path / "r.npz", ["pool"])
    np.savez(tmp_path / "r.npz", mu=mu, sigma=np.ones((3, 3)))  # singular, but one
    assert adm.given_statistics(tmp_path / "r.npz", ["pool"])


def test_no_images_and_splits_of_none():
    for logits, split in ((torch.randn(10, 5), 0), (torch.randn(0, 5), 5000)):
        with pytest.raises(ValueError, match="give 1 or more of both"):
            adm.inception_score(logits, split)
    for count in (0, -5):
        with pytest.raises(ValueError, match=f"a reference of {count} images: give 1 or more"):
            adm.reference_from_images("r.npz", pictures(10), "fashion-mnist", count)


# Fréchet distance


def test_frechet_distance_of_gaussians_in_closed_form():
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2; the reference is given by its moments
    alone.
    """
    x = normal(200, 3, 0).double().numpy()
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), (x - x.mean(0)).T).T
    s1, s2, m1, m2 = (
        np.array([1.0, 2.0, 0.5]),
        np.array([0.3, 2.5, 1.5]),
        np.array([0.0, 1, 2]),
        np.array([1.0, 1, -1]),
    )
    found = frechet(torch.from_numpy(x * s1 + m1), {"mu": m2, "sigma": np.diag(s2**2)})
    expected = np.square(m1 - m2).sum() + np.square(s1 - s2).sum()
    assert (
        found["value"] == pytest.approx(expected, rel=1e-9)
        and found["low"] < expected < found["high"]
    )


def test_jackknife_against_leaving_each_block_out():
    x, y = normal(103, 4, 0, scale=1.3), statistics(normal(80, 4, 1))
    found = frechet(x, y, blocks=5, seed=3)
    order = np.random.default_rng(3).permutation(103)
    values = [
        fid(statistics(x[np.setdiff1d(order, block)]), y) for block in np.array_split(order, 5)
    ]
    error = math.sqrt(4 / 5 * sum((v - np.mean(values)) ** 2 for v in values))
    assert found["value"] == pytest.approx(fid(statistics(x), y), rel=1e-9)
    assert found["high"] - found["value"] == pytest.approx(
        2.7764451 * error, rel=1e-6
    )  # Student's t, 4 degrees of freedom
    assert found == frechet(x, y, blocks=5, seed=3) != frechet(x, y, blocks=5, seed=4)


def test_frechet_interval_has_the_width_of_the_spread():
    y = statistics(normal(500, 4, 999))
    found = [frechet(normal(300, 4, seed, scale=1.2, shift=0.3), y) for seed in range(60)]
    width = np.mean([f["high"] - f["low"] for f in found]) / (2 * 2.093)  # t, 19 degrees of freedom
    assert 0.75 < width / np.std([f["value"] for f in found], ddof=1) < 1.35


# Inception score


def test_inception_score_in_closed_form_and_in_the_order_of_the_file():
    """Sure answers over K classes score K in a split that holds all of them equally, 1 in a split
    of one class.
    """
    logits = 60 * torch.eye(4).repeat(30, 1)  # 0 1 2 3 0 1 2 3 ..., 120 rows
    mixed = inception_score(logits, split=40)
    assert (
        mixed["value"] == pytest.approx(4)
        and mixed["splits"] == 3
        and mixed["std"] == pytest.approx(0, abs=1e-9)
    )
    by_class = inception_score(logits[logits.argmax(1).argsort()], split=30)
    assert by_class["value"] == pytest.approx(1) and by_class["splits"] == 4
    whole = inception_score(logits, split=5000)
    assert whole["value"] == pytest.approx(4) and whole["low"] is whole["high"] is None


def score(logits):
    """exp of the mean KL divergence of p(y|x) from its mean, written out."""
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    rows = [sum(a * math.log(a / b) for a, b in zip(row, p.mean(0), strict=True)) for row in p]
    return math.exp(np.mean(rows))


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (30, [10, 10, 10]),
        (31, [11, 10, 10]),
        (29, [10, 10, 9]),
        (36, [9, 9, 9, 9]),
        (14, [14]),
        (4, [4]),
    ],
)
def test_inception_score_by_hand_in_splits_that_are_equal_to_one_image(n, sizes):
    logits = normal(n, 3, 0, scale=2)
    scores = [score(part) for part in logits.split(sizes)]
    found = inception_score(logits, split=10)
    assert found["value"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert found["splits"] == len(sizes)
    if len(sizes) == 3:
        assert found["high"] - found["value"] == pytest.approx(
            4.3026527 * np.std(scores, ddof=1) / math.sqrt(3), rel=1e-5
        )


def test_one_image_more_hardly_changes_the_inception_score():
    logits = normal(5001, 10, 0, scale=2)
    whole, more = inception_score(logits[:5000]), inception_score(logits)
    assert more["splits"] == 1 and more["value"] == pytest.approx(whole["value"], rel=1e-3)


# Precision, recall, KID


def test_precision_and_recall_by_brute_force_and_in_pieces(monkeypatch):
    x, y = normal(60, 2, 0, shift=1.0), normal(40, 2, 1)
    a, b = x.double().numpy(), y.double().numpy()

    def radii(points):
        return [
            sorted(np.linalg.norm(points - p, axis=1))[3] for p in points
        ]  # 0 is the point itself

    rx, ry = radii(a), radii(b)
    precision = np.mean(
        [any(np.linalg.norm(p - q) <= r for q, r in zip(b, ry, strict=True)) for p in a]
    )
    recall = np.mean(
        [any(np.linalg.norm(p - q) <= r for q, r in zip(a, rx, strict=True)) for p in b]
    )
    found = precision_recall(x, y)
    assert found["precision"]["value"] == pytest.approx(precision) and found["recall"][
        "value"
    ] == pytest.approx(recall)
    assert 0 < recall < 1 and 0 < precision < 1 and precision != recall
    monkeypatch.setattr(adm, "PRC_BATCH", 7)
    assert precision_recall(x, y) == found
    for name, n in (("precision", 60), ("recall", 40)):
        p, z = found[name]["value"], 1.959964
        edge = found[name]["low"]  # Wilson's limits solve (p - edge)^2 = z^2 edge (1 - edge) / n
        assert edge < p and (p - edge) ** 2 == pytest.approx(z * z * edge * (1 - edge) / n)
    with pytest.raises(ValueError, match="k = 3 needs 5 of each"):
        precision_recall(x, y[:4])


def test_a_point_on_the_edge_of_a_ball_is_inside():
    """k = 1, whole numbers: real 0 and 2 reach 2 each; the sample at 4 is on an edge, so is the
    real 2 of a sample's ball.
    """
    found = precision_recall(
        torch.tensor([[4.0, 0], [6, 0], [50, 0]]), torch.tensor([[0.0, 0], [2, 0], [-9, 0]]), k=1
    )
    assert found["precision"]["value"] == pytest.approx(1 / 3) and found["recall"][
        "value"
    ] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_kid_is_near_the_unbiased_mmd_and_its_interval_wide_enough():
    y = normal(400, 3, 999)
    found = [kernel_distance(normal(300, 3, seed, shift=0.3), y, seed) for seed in range(12)]
    assert found[0]["subset"] == 150
    x, z = normal(300, 3, 0, shift=0.3).double(), y.double()
    xx, zz, xz = ((a @ b.T / 3 + 1) ** 3 for a, b in ((x, x), (z, z), (x, z)))
    mmd = (
        (xx.sum() - xx.trace()) / (300 * 299)
        + (zz.sum() - zz.trace()) / (400 * 399)
        - 2 * xz.mean()
    )
    assert found[0]["low"] < mmd < found[0]["high"]
    width = np.mean([f["high"] - f["low"] for f in found]) / (2 * 1.96)
    assert (
        0.7 < width / np.std([f["value"] for f in found], ddof=1) < 2.5
    )  # it counts some of the reference's own spread


# Files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_in_slices(tmp_path, save):
    images = pictures(23)
    save(tmp_path / "a.npz", images, labels=np.arange(23))
    assert image_shape(tmp_path / "a.npz") == (23, 8, 8, 3)
    batches = list(image_batches(tmp_path / "a.npz", 10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert torch.equal(torch.cat(batches), torch.from_numpy(images).permute(0, 3, 1, 2))


def test_npz_is_never_whole_in_memory(tmp_path):
    np.savez(tmp_path / "a.npz", pictures(400, side=100))  # 12 MB
    tracemalloc.start()
    assert sum(len(batch) for batch in image_batches(tmp_path / "a.npz", 10)) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6


def test_what_is_no_npz_of_images(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match="no images at .*a.npz"):
        image_shape(path)
    for array in (
        pictures(2)[..., :1],
        pictures(2).astype(np.float32),
        pictures(2)[0],
        pictures(0),
        np.asfortranarray(pictures(2)),
        np.array([{}, None]),
    ):
        np.savez(path, array)
        with pytest.raises(ValueError, match=r"give uint8 images \(N, H, W, 3\)"):
            image_shape(path)
    np.savez(path, images=pictures(2))
    with pytest.raises(ValueError, match="has no array arr_0"):
        image_shape(path)
    np.savez(path, pictures(50))
    content = path.read_bytes()
    path.write_bytes(content[:-200])
    with pytest.raises(ValueError, match="truncated"):
        image_shape(path)
    path.write_bytes(content[:3000] + b"????" + content[3004:])
    with pytest.raises(ValueError, match="damaged: make it again"):
        list(image_batches(path))


# Reference


def test_reference_from_an_array_and_from_a_folder_agree(tmp_path):
    images = pictures(37)
    reference_from_images(tmp_path / "a.npz", images, STUB, count=10, seed=4, batch_size=8)
    for i, image in enumerate(images):
        folder = tmp_path / "images" / f"class{i // 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    reference_from_images(
        tmp_path / "b.npz", tmp_path / "images", STUB, count=10, seed=4, batch_size=5, dino=STUB
    )
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert set(a.files) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s", "extractor"}
    assert set(b.files) - set(a.files) == {"mu_dino", "sigma_dino"}
    out = stub(torch.from_numpy(images).permute(0, 3, 1, 2))
    for name, keys in {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}.items():
        x = out[name].double().numpy()
        for key, expected in zip(keys, (x.mean(0), np.cov(x, rowvar=False)), strict=True):
            assert np.allclose(a[key], expected, atol=1e-6) and np.allclose(
                b[key], a[key], atol=1e-6
            )
    assert np.array_equal(a["arr_0"], b["arr_0"]) and len(a["arr_0"]) == 10
    assert (
        len(
            {tuple(image.ravel()) for image in a["arr_0"]}
            & {tuple(image.ravel()) for image in images}
        )
        == 10
    )


def test_a_crop_makes_one_size_of_many(tmp_path):
    for i in range(3):
        Image.fromarray(pictures(1, seed=i, side=8 + i)[0]).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="several sizes: crop them"):
        reference_from_images(tmp_path / "r.npz", tmp_path, STUB)
    assert not list(tmp_path.glob("*.npz"))
    reference_from_images(
        tmp_path / "r.npz", tmp_path, STUB, crop=lambda image: image.crop((0, 0, 6, 6))
    )
    assert image_shape(tmp_path / "r.npz") == (3, 6, 6, 3)
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="0.png is no readable image"):
        reference_from_images(
            tmp_path / "r.npz", tmp_path, STUB, crop=lambda image: image.crop((0, 0, 6, 6))
        )
    with pytest.raises(FileNotFoundError, match="no folder of images at"):
        reference_from_images(tmp_path / "r.npz", tmp_path / "empty", STUB)
    with pytest.raises(ValueError, match="give uint8"):
        reference_from_images(tmp_path / "r.npz", pictures(3)[..., 0], STUB)


# All together


def test_evaluate_is_the_sum_of_its_parts(files):
    samples, reference = files
    found = evaluate(
        samples,
        reference,
        extractor=STUB,
        allow_fewer=True,
        dino=STUB,
        uint8="floor(127.5 x + 128)",
        batch_size=16,
    )
    x = stub(torch.from_numpy(pictures(60, high=200)).permute(0, 3, 1, 2))
    everything = stub(torch.from_numpy(pictures(90, seed=1)).permute(0, 3, 1, 2))
    held = stub(torch.from_numpy(np.load(reference)["arr_0"]).permute(0, 3, 1, 2))
    for name, kind in (("fid", "pool"), ("sfid", "spatial")):
        assert found[name]["value"] == pytest.approx(
            fid(statistics(x[kind]), statistics(everything[kind])), rel=1e-4
        )
    assert found["fd_dinov2"]["value"] == pytest.approx(
        fid(statistics(x["pool"]), statistics(held["pool"])), rel=1e-4
    )
    assert found["is"]["value"] == pytest.approx(inception_score(x["logits"])["value"], rel=1e-5)
    expected = precision_recall(x["pool"], held["pool"])
    assert {name: found[name] for name in expected} == expected
    assert found["kid"]["value"] == pytest.approx(
        kernel_distance(x["pool"], held["pool"])["value"], rel=1e-3
    )
    protocol = found["protocol"]
    assert (protocol["samples"], protocol["reference"], protocol["k"], protocol["splits"]) == (
        60,
        40,
        3,
        1,
    )
    assert protocol["statistics"] == {
        "pool": "of the file",
        "spatial": "of the file",
        "dino": "of its 40 images",
    }
    assert (
        protocol["files"]["samples"] == published_files.record(samples)
        and protocol["extractor"] == STUB
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    again = evaluate(samples, reference, extractor=STUB, allow_fewer=True, batch_size=60, kid=False)
    assert again.keys() == found.keys() - {"kid", "fd_dinov2"} and again["fid"][
        "value"
    ] == pytest.approx(found["fid"]["value"])

    text = report(found)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "FID",
        "sFID",
        "IS",
        "precision",
        "recall",
        "KID",
        "FD-DINOv2",
    ]
    assert all(
        "60 samples" in line and f"{found[name]['value']:.4f}" in line
        for line, name in zip(lines, adm.LABELS, strict=False)
    )
    assert (
        "floor(127.5 x + 128)" in lines[-1]
        and "other numbers of images" in lines[-1]
        and STUB in lines[-1]
    )


@pytest.mark.parametrize("name", ["mu", "sigma", "mu_s", "sigma_s"])
@pytest.mark.parametrize("fault", [np.nan, np.inf, None])
def test_a_reference_with_damaged_statistics_is_refused(files, name, fault):
    samples, reference = files
    arrays = dict(np.load(reference))
    if fault is None:
        arrays[name], told = arrays[name][:-1], "with shapes"
    else:
        arrays[name].flat[3], told = fault, "with NaN or infinite values"
    np.savez(reference, **arrays)
    with pytest.raises(
        ValueError, match=rf"reference\.npz has mu.* {told}.*: fetch or make it again"
    ):
        evaluate(samples, reference, extractor=STUB, allow_fewer=True)


def test_a_reference_of_linked_class_folders_is_of_all_images(tmp_path):
    everything = pictures(12, seed=3)
    for k, image in enumerate(everything):
        folder = tmp_path / ("images" if k % 4 == 0 else "elsewhere") / f"n{k % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{k:02d}.PNG")
    for k in (1, 2, 3):
        (tmp_path / "images" / f"n{k}").symlink_to(tmp_path / "elsewhere" / f"n{k}")
    reference_from_images(tmp_path / "folder.npz", tmp_path / "images", STUB)
    reference_from_images(tmp_path / "array.npz", everything, STUB)
    ours, whole = np.load(tmp_path / "folder.npz"), np.load(tmp_path / "array.npz")
    for name in ("mu", "sigma", "mu_s", "sigma_s"):
        np.testing.assert_allclose(ours[name], whole[name], rtol=1e-6, atol=1e-9)
    assert sorted(ours["arr_0"].reshape(12, -1).tolist()) == sorted(
        everything.reshape(12, -1).tolist()
    )


def test_a_reference_without_statistics_is_measured(tmp_path, files):
    np.savez(tmp_path / "plain.npz", pictures(40, seed=1))
    found = evaluate(files[0], tmp_path / "plain.npz", extractor=STUB, allow_fewer=True, kid=False)
    x, y = (
        stub(torch.from_numpy(a).permute(0, 3, 1, 2))["pool"]
        for a in (pictures(60, high=200), pictures(40, seed=1))
    )
    assert found["fid"]["value"] == pytest.approx(fid(statistics(x), statistics(y)), rel=1e-4)
    assert found["protocol"]["statistics"]["pool"] == "of its 40 images"


def test_refusals(tmp_path, files):
    samples, reference = files
    with pytest.raises(
        ValueError,
        match="60 samples and 40 reference images, where the protocol has 50,000 and 10,000",
    ):
        evaluate(samples, reference, extractor=STUB)
    with pytest.raises(ValueError, match="60 and 10,000"):
        evaluate(samples, reference, extractor=STUB, expected=60)
    assert evaluate(samples, reference, extractor=STUB, expected=60, expected_reference=40)
    with pytest.raises(ValueError, match="'test_adm:stub', not 'fashion-mnist'"):
        np.savez(tmp_path / "grey.npz", np.zeros((60, 28, 28, 3), np.uint8))
        content = dict(np.load(reference)) | {"arr_0": np.zeros((40, 28, 28, 3), np.uint8)}
        np.savez(tmp_path / "other.npz", **content)
        evaluate(
            tmp_path / "grey.npz",
            tmp_path / "other.npz",
            extractor="fashion-mnist",
            allow_fewer=True,
        )
    del content["extractor"]
    np.savez(tmp_path / "other.npz", **content)
    with pytest.raises(ValueError, match="6 pool features where 'fashion-mnist' has 192"):
        evaluate(
            tmp_path / "grey.npz",
            tmp_path / "other.npz",
            extractor="fashion-mnist",
            allow_fewer=True,
        )
    with pytest.raises(
        ValueError, match=r"samples of \[8, 8\] pixels and a reference of \[28, 28\]"
    ):
        evaluate(samples, tmp_path / "grey.npz", extractor=STUB, allow_fewer=True)
    assert (
        evaluate(samples, reference, extractor=STUB, allow_fewer=True, kid=False, blocks=40)[
            "protocol"
        ]["blocks"]
        == 30
    )
    with pytest.raises(ValueError, match="60 samples in 1 blocks"):
        evaluate(samples, reference, extractor=STUB, allow_fewer=True, blocks=1)


def test_command_line(files, capsys):
    arguments = [*map(str, files), "--extractor", STUB]
    adm.main([*arguments, "--allow-fewer"])
    assert capsys.readouterr().out.startswith("FID ")
    with pytest.raises(SystemExit) as end:
        adm.main(arguments)
    shown = capsys.readouterr().err
    assert end.value.code == 2 and "nag.evaluation.adm: error: 60 samples" in shown


@pytest.mark.parametrize("fault", ["a negative variance", "unequal halves"])
def test_a_covariance_that_is_none_is_refused(tmp_path, fault):
    path, sigma = tmp_path / "reference.npz", np.eye(4)
    sigma[2, 2 if fault == "a negative variance" else 3] = -1
    np.savez(path, mu=np.zeros(4), sigma=sigma)
    with pytest.raises(ValueError, match="mu and sigma with negative variances or unequal halves"):
        adm.given_statistics(path, ["pool"])


def test_features_that_are_not_finite_are_refused(files, monkeypatch):
    samples, reference = files

    def spoiled(images):
        found = stub(images)
        found["logits"][0, 0] = torch.nan
        return found

    monkeypatch.setattr(adm, "load_extractor", lambda name: (spoiled, None))
    with pytest.raises(ValueError, match="the extractor's logits features of 1 images are NaN"):
        evaluate(samples, reference, extractor=STUB, allow_fewer=True)


def test_damaged_statistics_are_refused_by_the_name_of_their_file(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.ones(8), sigma=np.eye(8))
    content = path.read_bytes()
    assert adm.given_statistics(path, ["pool"])["pool"]["mu"].shape == (8,)
    for damaged in (b"", b"<html>", content[:-30], content[:150] + b"?" + content[151:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"reference\.npz is truncated or no npz file"):
            adm.given_statistics(path, ["pool"])
    np.savez(path, mu=np.array([{}], object), sigma=np.eye(1))
    with pytest.raises(ValueError, match=r"reference\.npz is truncated or no npz file"):
        adm.given_statistics(path, ["pool"])
