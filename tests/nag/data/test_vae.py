"""The autoencoder: the same numbers as diffusers gives, the released files' old names, and a
sentence for what is missing.
"""

import json
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from nag.data.vae import decoder, fingerprint, load_vae, posterior

CPU, FILE = torch.device("cpu"), "diffusion_pytorch_model.safetensors"


def tiny_vae(**changes):
    blocks = dict(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
    )
    return AutoencoderKL(
        **{"block_out_channels": (8, 8), "norm_num_groups": 4, **blocks, **changes}
    ).eval()


@pytest.fixture
def saved(tmp_path):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae")
    return vae, tmp_path / "vae"


@torch.no_grad()
def test_posterior_and_decoder_are_diffusers_own(saved):
    vae, folder = saved
    x = torch.rand(5, 3, 16, 16) * 2 - 1
    truth = vae.encode(x).latent_dist
    mean, std = posterior(load_vae(str(folder)), x)
    assert mean.shape == (5, 4, 8, 8)
    torch.testing.assert_close((mean, std), (truth.mean, truth.std), atol=1e-6, rtol=1e-6)
    z = 0.18215 * mean
    torch.testing.assert_close(
        decoder(vae, CPU, batch=2)(z), vae.decode(mean).sample.clamp(-1, 1), atol=1e-5, rtol=1e-5
    )
    low = decoder(vae, CPU, "bf16")(z)
    assert low.dtype == torch.float32 and (low - decoder(vae, CPU)(z)).abs().max() < 0.05


@torch.no_grad()
def test_decoded_images_stay_in_range(saved):
    vae, _ = saved
    vae.decoder.conv_out.weight *= 30
    x = decoder(vae, CPU)(torch.randn(2, 4, 8, 8))
    assert x.min() == -1 and x.max() == 1


def test_a_pipelines_folder_and_the_attention_names_of_the_released_files(saved):
    vae, folder = saved
    state, old = (
        load_file(folder / FILE),
        {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
    )
    for name in list(state):
        for new, before in old.items():
            if f".attentions.0.{new}." in name:
                state[name.replace(new, before)] = state.pop(name)
    assert sum("query" in name for name in state) == 4
    save_file(state, folder / FILE)
    assert fingerprint(load_vae(str(folder.parent))) == fingerprint(vae)
    other = tiny_vae()
    assert fingerprint(other) != fingerprint(vae)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["10GB", "15KB"])
@pytest.mark.parametrize("safe", [True, False])
def test_every_way_that_diffusers_saves(saved, tmp_path, variant, shard, safe):
    vae, folder = saved
    other = tmp_path / "other"
    dtype = torch.float16 if variant else torch.float32
    vae.to(dtype).save_pretrained(
        other, safe_serialization=safe, variant=variant, max_shard_size=shard
    )
    assert (len(list(other.glob("*-of-*"))) > 1) == (shard == "15KB")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = load_vae(str(other))
    assert any("variant fp16 only" in str(w.message) for w in said) == (variant == "fp16")
    assert fingerprint(found) == fingerprint(vae.float())


def test_a_bin_file_with_code_is_refused_and_not_run(saved, tmp_path):
    vae, folder = saved
    (folder / FILE).unlink()

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(vae.state_dict() | {"x": Bomb()}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no autoencoder"):
        load_vae(str(folder))
    assert not (tmp_path / "ran").exists()


def test_an_autoencoder_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "nowhere"), "stabilityai/no-such-vae-here"):
        with pytest.raises(
            FileNotFoundError, match=r"no autoencoder '.*place a folder with config.json and diff"
        ) as error:
            load_vae(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind", ["no config", "no weights", "cut weights", "weights of another shape"]
)
def test_a_folder_that_holds_no_whole_autoencoder(saved, kind):
    _, folder = saved
    if kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "no weights":
        (folder / FILE).unlink()
    elif kind == "cut weights":
        (folder / FILE).write_bytes((folder / FILE).read_bytes()[:1000])
    else:
        (folder / "config.json").write_text(json.dumps(tiny_vae(latent_channels=3).config))
    with pytest.raises(
        ValueError, match=r"vae holds no autoencoder that can be read .*: place there"
    ):
        load_vae(str(folder))


def test_lacking_weights_are_not_made_up(saved):
    _, folder = saved
    state = load_file(folder / FILE)
    state.pop("quant_conv.bias")
    save_file(state, folder / FILE)
    with pytest.raises(ValueError, match=r"lacks 1 of its weights \(quant_conv.bias, …\)"):
        load_vae(str(folder))


def test_shifted_latents_are_refused(tmp_path):
    tiny_vae(shift_factor=0.1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="shifts its latents"):
        load_vae(str(tmp_path))
