"""The table architecture x (guided output, hooks gone, compile, save/load): DiT, SD3, Flux, UNet2D.

The guided output is compared with p + w (p - p_null), where p_null comes from the same network with
its time embedders' forward replaced by hand."""

import diffusers
import pytest
import torch
from tiny_models import TINY, build

from nag.integrations.guider import NoiseAwarenessGuidance, load_null
from nag.integrations.time_hooks import embedding_width, time_embedders
from nag.integrations.wrappers import guided

W, SCALE = 0.7, 1.8


def null_of(net):
    return torch.randn(embedding_width(net), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predict(net, inputs):
    return net(**inputs, return_dict=False)[0]


def reference(name, replaced=None):
    """The prediction with each embedder's output e replaced by replaced(e), without our hooks."""
    net, inputs = build(name)
    if replaced is not None:
        for embedder in time_embedders(net):
            own = embedder.forward
            embedder.forward = lambda *a, own=own, **k: replaced(own(*a, **k))
    return predict(net, inputs)


def only(direction, channels):
    return (
        direction
        if channels is None
        else torch.cat([direction[:, :channels], torch.zeros_like(direction[:, channels:])], 1)
    )


def loop(guider, net, inputs, other=None):
    """One step of a modular pipeline's denoiser, as diffusers writes it."""
    key = "class_labels" if "class_labels" in inputs else "encoder_hidden_states"
    data = dict(inputs)
    if other is not None:
        data[key] = (inputs[key], other)
    guider.set_state(step=0, num_inference_steps=4, timestep=torch.tensor(300.0))
    batches = guider.prepare_inputs(data)
    names = []
    for batch in batches:
        guider.prepare_models(net)
        arguments = {k: getattr(batch, k) for k in inputs}
        names.append(batch.__guidance_identifier__)
        batch.noise_pred = predict(net, arguments)
        guider.cleanup_models(net)
    return guider(batches).pred, names


@pytest.mark.parametrize("name", TINY)
def test_guided_output(name):
    net, inputs = build(name)
    vector, channels = null_of(net), TINY[name].channels
    p, q = reference(name), reference(name, lambda e: vector.expand_as(e))
    assert (p - q).abs().max() > 1e-2, "the null vector must matter"
    wanted = p + W * only(p - q, channels)
    guider = NoiseAwarenessGuidance(w=W, null=vector, channels=channels)
    found, names = loop(guider, net, inputs)
    assert names == ["pred_cond", "pred_cond_negative"]
    assert (found - wanted).abs().max() < 1e-6 * max(1, wanted.abs().max())
    with guided(net, W, vector, channels=channels):
        assert (predict(net, inputs) - found).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["DiT", "SD3", "Flux"])
def test_with_classifier_free_guidance_the_passes_are_those_of_skip_layer_guidance(name):
    net, inputs = build(name)
    vector, channels = null_of(net), TINY[name].channels
    key = "class_labels" if name == "DiT" else "encoder_hidden_states"
    other = torch.tensor([7, 7]) if name == "DiT" else torch.randn(2, 3, 12)
    p, q = reference(name), reference(name, lambda e: vector.expand_as(e))
    u = predict(build(name)[0], inputs | {key: other})
    guider = NoiseAwarenessGuidance(W, SCALE, null=vector, channels=channels)
    found, names = loop(guider, net, inputs, other)
    assert names == ["pred_cond", "pred_uncond", "pred_cond_negative"]
    wanted = p + (SCALE - 1) * (p - u) + W * only(p - q, channels)
    assert (found - wanted).abs().max() < 2e-6 * max(1, wanted.abs().max())


@pytest.mark.parametrize("name", TINY)
def test_hooks_leave_no_trace(name):
    net, inputs = build(name)
    before = {n: sorted(vars(m)) for n, m in net.named_modules()}
    plain = predict(net, inputs)
    guider = NoiseAwarenessGuidance(W, null=null_of(net))
    loop(guider, net, inputs)
    assert torch.equal(predict(net, inputs), plain), "between passes a hook changes nothing"
    guider.detach()
    assert torch.equal(predict(net, inputs), plain)
    with guided(net, W, null_of(net)):
        predict(net, inputs)
    assert torch.equal(predict(net, inputs), plain)
    assert {n: sorted(vars(m)) for n, m in net.named_modules()} == before


@pytest.mark.parametrize("name", TINY)
def test_save_and_load(name, tmp_path):
    net, inputs = build(name)
    channels = TINY[name].channels
    guider = NoiseAwarenessGuidance(W, null=null_of(net), channels=channels, nag_stop=0.9)
    found, _ = loop(guider, net, inputs)
    guider.detach()
    net.save_pretrained(tmp_path / "transformer")
    guider.save_pretrained(tmp_path / "guider")
    files = sorted(p.name for p in (tmp_path / "guider").iterdir())
    assert files == ["guider_config.json", "null_noise.safetensors"]
    again = NoiseAwarenessGuidance.from_pretrained(tmp_path / "guider")
    assert again.config.nag_stop == 0.9 and torch.equal(again.null, guider.null)
    loaded = type(net).from_pretrained(tmp_path / "transformer").eval()
    assert torch.equal(loop(again, loaded, inputs)[0], found)
    assert torch.equal(loop(again.new(), net, inputs)[0], found)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_compile_traces_once(name):
    torch._dynamo.reset()
    net, inputs = build(name)
    guider = NoiseAwarenessGuidance(W, null=null_of(net), channels=TINY[name].channels)
    wanted, _ = loop(guider, net, inputs)
    compiled = torch.compile(net, backend="aot_eager")
    graphs = []
    for _ in range(3):
        found, _ = loop(guider, compiled, inputs)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert (found - wanted).abs().max() < 1e-5
    assert graphs[0] == graphs[-1], "a later step must not trace again"


def test_time_step_guidance_needs_no_training():
    """e + s t^alpha std(e) n with one draw n (arXiv 2407.02687)."""
    n = torch.randn(16, generator=torch.Generator().manual_seed(4))
    p = reference("SD3")
    q = reference("SD3", lambda e: e + 2.0 * 0.3**1.0 * e.std(-1, keepdim=True) * n)
    net, inputs = build("SD3")
    guider = NoiseAwarenessGuidance(W, negative="disturbed", seed=4)
    found, _ = loop(guider, net, inputs)
    assert (found - (p + W * (p - q))).abs().max() < 2e-6 * p.abs().max().clamp_min(1)
    guider.detach()
    with guided(net, W, negative="disturbed", seed=4):
        assert (predict(net, inputs) - found).abs().max() < 2e-6


@pytest.mark.parametrize(("name", "shift"), [("DiT", 10.0), ("Flux", 0.01), ("UNet2D", 10.0)])
def test_self_guidance_needs_no_training(name, shift):
    """The same network told a noisier level (arXiv 2412.05827)."""
    net, inputs = build(name)
    p = predict(net, inputs)
    q = predict(net, inputs | {"timestep": inputs["timestep"] + shift})
    found, _ = loop(NoiseAwarenessGuidance(W, negative="shifted", shift=shift), net, inputs)
    assert not torch.equal(p, q)
    assert (found - (p + W * (p - q))).abs().max() < 1e-6 * p.abs().max().clamp_min(1)


def test_it_acts_within_its_steps_only():
    net, inputs = build("SD3")
    guider = NoiseAwarenessGuidance(W, null=null_of(net), nag_start=0.25, nag_stop=0.75)
    passes = []
    for step in range(4):
        guider.set_state(step, 4, torch.tensor(300.0))
        passes.append(guider.num_conditions)
    assert passes == [1, 2, 2, 1]
    guider.disable()
    assert guider.num_conditions == 1


def test_in_a_doubled_batch_the_direction_is_that_of_the_prompt():
    net, inputs = build("SD3")
    vector = null_of(net)
    p, q = reference("SD3"), reference("SD3", lambda e: vector.expand_as(e))
    with guided(net, W, vector, conditional_half=1):
        found = predict(net, inputs)
    assert (found - (p + W * (p - q)[1:])).abs().max() < 1e-6 * p.abs().max().clamp_min(1)


def test_errors_say_what_to_do():
    net, inputs = build("SD3")
    with pytest.raises(ValueError, match="needs null="):
        loop(NoiseAwarenessGuidance(W), net, inputs)
    with pytest.raises(ValueError, match="has shape"):
        loop(NoiseAwarenessGuidance(W, null=torch.zeros(3)), net, inputs)
    with pytest.raises(ValueError, match="choose one of"):
        NoiseAwarenessGuidance(negative="none")
    with pytest.raises(ValueError, match="give embedders="):
        loop(NoiseAwarenessGuidance(W, null=torch.zeros(3), embedders=["clock"]), net, inputs)


def test_the_last_guider_counts_and_the_first_one_may_come_back():
    net, inputs = build("SD3")
    first = NoiseAwarenessGuidance(W, null=null_of(net))
    wanted, _ = loop(first, net, inputs)
    second = first.new(w=2 * W)
    other, _ = loop(second, net, inputs)
    assert not torch.equal(other, wanted)
    assert torch.equal(loop(first, net, inputs)[0], wanted)
    second.detach()
    first.detach()
    assert not hasattr(net.time_text_embed.timestep_embedder, "_diffusers_hook")


def test_another_librarys_wrapper_of_forward_survives():
    net, inputs = build("SD3")
    embedder, calls = net.time_text_embed.timestep_embedder, []
    own = embedder.forward
    embedder.forward = lambda *a, **k: calls.append(1) or own(*a, **k)
    guider = NoiseAwarenessGuidance(W, null=null_of(net))
    loop(guider, net, inputs)
    guider.detach()
    calls.clear()
    predict(net, inputs)
    assert calls == [1]


def test_in_diffusers_own_denoising_block():
    """Stable Diffusion 3's modular block (it needs transformers) calls the guider itself."""
    pytest.importorskip("transformers")
    from types import SimpleNamespace

    from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser

    net, inputs = build("SD3")
    vector, t = null_of(net), torch.tensor(300.0)
    state = SimpleNamespace(
        latents=inputs["hidden_states"],
        prompt_embeds=inputs["encoder_hidden_states"],
        negative_prompt_embeds=torch.randn(2, 3, 12),
        pooled_prompt_embeds=inputs["pooled_projections"],
        negative_pooled_prompt_embeds=torch.randn(2, 8),
        num_inference_steps=4,
        joint_attention_kwargs=None,
    )
    none = dict(
        encoder_hidden_states=state.negative_prompt_embeds,
        pooled_projections=state.negative_pooled_prompt_embeds,
    )
    p, q = reference("SD3"), reference("SD3", lambda e: vector.expand_as(e))
    u = predict(net, inputs | none)
    guider = NoiseAwarenessGuidance(W, SCALE, null=vector)
    components = SimpleNamespace(guider=guider, transformer=net)
    StableDiffusion3LoopDenoiser()(components, state, 0, t)
    wanted = p + (SCALE - 1) * (p - u) + W * (p - q)
    assert (state.noise_pred - wanted).abs().max() < 2e-6 * wanted.abs().max().clamp_min(1)


def test_a_saved_and_loaded_pipeline_agrees(tmp_path):
    net, _ = build("DiT")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = diffusers.DiTPipeline(net, vae, diffusers.DDIMScheduler())
    pipe.save_pretrained(tmp_path / "pipe")
    NoiseAwarenessGuidance(W, null=null_of(net), channels=4).save_pretrained(tmp_path / "pipe")

    def images(pipe, **settings):
        pipe.set_progress_bar_config(disable=True)
        call = dict(class_labels=[1, 2], num_inference_steps=3, guidance_scale=1.0)
        with guided(pipe.transformer, W, load_null(tmp_path / "pipe"), channels=4, **settings):
            return pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images

    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path / "pipe")
    first, second = images(pipe), images(loaded)
    assert (first == second).all()
    pipe.set_progress_bar_config(disable=True)
    plain = pipe([1, 2], 1.0, torch.Generator().manual_seed(0), 3, output_type="np").images
    assert not (first == plain).all()
