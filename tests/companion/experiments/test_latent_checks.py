"""Notebook 13's checks of latents, on its stand-ins."""

import pytest

from companion.experiments import latent_checks
from nag.data.image_folder import image_folder
from nag.data.latents import LatentSpec


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    spec = LatentSpec(
        images=latent_checks.example_images(folder / "images", 10),
        vae=latent_checks.example_vae(folder / "vae"),
        out=str(folder / "latents"),
        size=32,
        shard_size=4,
    )
    return spec, *latent_checks.encoded(spec, 0, folder)


def test_images_of_odd_sizes_are_encoded_and_checked(encoded):
    spec, latents, rate = encoded
    assert len(image_folder(spec.images).files) == len(latents) == 10 and rate > 0
    numbers, pictures = latent_checks.check(spec, latents, rate)
    assert numbers["images"] == 10 and numbers["shape"] == [4, 4, 4]
    assert 0 < numbers["rounding"] < 1e-3 < numbers["mirror"]
    assert len(numbers["channels"]) == 4 and numbers["read_per_second"] > 0
    assert pictures["image"].shape == pictures["from a sample"].shape == (8, 3, 32, 32)


def test_a_second_run_encodes_nothing(encoded, tmp_path):
    spec, _, _ = encoded
    assert latent_checks.encoded(spec, 0, tmp_path)[1] is None
