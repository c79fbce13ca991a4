"""diffusers' DiT gives the same numbers in the official layout, and a folder that is not one is
refused key by key.
"""

import json
import shutil

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from nag import checkpoint
from nag.data import published_files
from nag.data.published_files import digest
from nag.models import DiT, ModelConfig

SIZES = dict(
    num_attention_heads=2,
    attention_head_dim=24,
    in_channels=4,
    out_channels=8,
    num_layers=3,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=5,
)
TOLERANCE = 1e-4  # float32's (i + 1)/1000 * 1000 - 1 is off by up to 6e-5 of a timestep
WEIGHTS = "diffusion_pytorch_model.safetensors"


def build(**changes):
    """A random network whose blocks share their embedders, as all that were converted from the
    official DiT do.
    """
    torch.manual_seed(0)
    net = DiTTransformer2DModel(**SIZES | changes).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for block in net.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    return net


@pytest.fixture(autouse=True)
def checksums(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(published_files, "CHECKSUMS", tmp_path_factory.mktemp("checksums"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    net = build()
    net.save_pretrained(folder)
    return net, folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original[1], tmp_path / "copy")


def rewrite(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


@torch.no_grad()
def relative_error(ours, theirs):
    """Over all levels: t = (i + 1)/1000 is their timestep i; a sixth of the rows have the null
    class.
    """
    level = torch.arange(0, 1000, 37)
    x, y = torch.randn(len(level), 4, 8, 8), torch.arange(len(level)) % 6
    wanted = theirs(x, timestep=level, class_labels=y).sample
    found = ours(x, (level + 1) / 1000, y, full=True)
    return ((found - wanted).norm() / wanted.norm()).item()


def test_outputs_agree_with_diffusers_own(original):
    net, folder = original
    ours = checkpoint.load(folder, "diffusers")
    assert relative_error(ours, net) < TOLERANCE
    assert ours.config == ModelConfig(
        input_size=8,
        patch=2,
        channels=4,
        width=48,
        depth=3,
        heads=2,
        classes=5,
        learn_sigma=True,
        **checkpoint.CONVENTIONS["diffusers"],
    )


def test_with_the_official_frequencies_it_is_another_network(original):
    net, folder = original
    ours = checkpoint.load(folder, "diffusers")
    official = DiT(ours.config.model_copy(update={"freq_shift": 0.0})).eval()
    official.load_state_dict(ours.state_dict())
    assert relative_error(official, net) > 0.01


def test_the_norm_eps_is_read_from_the_config(tmp_path):
    net = build(norm_eps=0.3)
    net.save_pretrained(tmp_path)
    ours = checkpoint.load(tmp_path, "diffusers")
    assert ours.config.norm_eps == 0.3 and relative_error(ours, net) < TOLERANCE


def test_the_folder_of_a_pipeline_will_do(folder, tmp_path, original):
    shutil.copytree(folder, tmp_path / "pipe" / "transformer")
    assert relative_error(checkpoint.load(tmp_path / "pipe", "diffusers"), original[0]) < TOLERANCE


def test_a_saved_position_table_is_used(folder):
    table = torch.randn(1, 16, 48)
    rewrite(folder, lambda state: state.update({"pos_embed.pos_embed": table}))
    assert torch.equal(checkpoint.load(folder, "diffusers").pos_embed, table)


def test_it_comes_back_from_our_own_file(original, tmp_path):
    ours = checkpoint.load(original[1], "diffusers")
    checkpoint.save(tmp_path / "net.safetensors", ours)
    assert checkpoint.load(tmp_path / "net.safetensors").config == ours.config


def test_missing_and_unknown_keys_are_all_listed(folder):
    def spoil(state):
        state["extra"] = state.pop("transformer_blocks.1.attn1.to_k.bias")
        del state["transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"]

    rewrite(folder, spoil)
    listed = (
        r"missing: transformer_blocks\.1\.attn1\.to_k\.bias, "
        r"transformer_blocks\.2\.norm1\.emb\.class_embedder\."
        r"embedding_table\.weight; unknown: extra"
    )
    with pytest.raises(ValueError, match=listed):
        checkpoint.load(folder, "diffusers")


def test_unlike_copies_of_an_embedder_are_refused(folder):
    key = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"
    rewrite(folder, lambda state: state.update({key: state[key] + 1e-3}))
    with pytest.raises(
        ValueError, match=r"embedders differ.*\(transformer_blocks\.2\S+linear_1\.bias\)"
    ):
        checkpoint.load(folder, "diffusers")


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["10GB", "60KB"])
@pytest.mark.parametrize("safe", [True, False])
def test_every_way_that_diffusers_saves(original, tmp_path, variant, shard, safe):
    net = build().to(torch.float16 if variant else torch.float32)
    net.save_pretrained(tmp_path, safe_serialization=safe, variant=variant, max_shard_size=shard)
    files = [path for path in tmp_path.iterdir() if path.suffix != ".json"]
    assert (len(files) > 1) == (shard == "60KB") and not (safe and list(tmp_path.glob("*.bin")))
    found = checkpoint.load(tmp_path, "diffusers").state_dict()
    plain = checkpoint.load(original[1], "diffusers").state_dict()
    for key, value in plain.items():
        rounded = value.half().float() if variant and key != "pos_embed" else value
        assert torch.equal(found[key], rounded), key
    for right in (digest(tmp_path), digest(tmp_path)[:8]):
        checkpoint.load(tmp_path, "diffusers", sha256=right)
    with pytest.raises(ValueError, match="has the SHA-256"):
        checkpoint.load(tmp_path, "diffusers", sha256="0" * 64)
    inside = files[0] if shard == "10GB" else tmp_path / "config.json"
    assert (
        checkpoint.load(inside, "diffusers").config == checkpoint.load(tmp_path, "diffusers").config
    )


def test_a_file_of_diffusers_is_not_in_the_official_layout(folder):
    with pytest.raises(
        ValueError, match=r"tensors named transformer_blocks.*: name kind 'diffusers'"
    ):
        checkpoint.load(folder / WEIGHTS, "dit")
    with pytest.raises(FileNotFoundError, match="is a folder: name the file .* kind 'diffusers'"):
        checkpoint.load(folder, "dit")


def test_another_architecture_a_cut_file_and_a_wrong_folder(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no config.json in .*give the folder of a diffusers DiT"
    ):
        checkpoint.load(tmp_path, "diffusers")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"activation_fn": "geglu"}))
    with pytest.raises(ValueError, match="another architecture than DiT.*'activation_fn': 'geglu'"):
        checkpoint.load(folder, "diffusers")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        checkpoint.load(folder, "diffusers")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ValueError, match="is truncated"):
        checkpoint.load(folder, "diffusers")
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        FileNotFoundError, match="no weights in .*copy: place diffusion_pytorch_model"
    ):
        checkpoint.load(folder, "diffusers")


def test_a_configuration_at_its_defaults_is_written_as_it_always_was():
    """This text names checkpoints and is kept in weight files."""
    assert ModelConfig().model_dump_json() == (
        '{"input_size":28,"patch":4,"channels":1,"width":192,"depth":6,"heads":3,"classes":10,"learn_sigma":false,'
        '"prediction":"v","path":"linear","time_scale":1.0,"time_offset":0.0,"sign":1.0}'
    )
    changed = ModelConfig(freq_shift=1.0, norm_eps=1e-5)
    assert ModelConfig.model_validate_json(changed.model_dump_json()) == changed != ModelConfig()
