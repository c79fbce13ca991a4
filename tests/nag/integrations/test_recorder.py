"""Recording real pipelines: their batches, their packed latents, their runs."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
)

from nag.integrations.recorder import Recording, record, record_calls, unpack


@pytest.fixture(scope="module")
def dit():
    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = DiTPipeline(net, vae, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(labels, **options):
    seeds = [torch.Generator().manual_seed(label) for label in labels]
    return dict(class_labels=labels, num_inference_steps=4, generator=seeds) | options


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_a_guided_batch_is_halved(dit, scale, scheduler):
    dit.scheduler = scheduler()
    calls = [call(labels, guidance_scale=scale) for labels in ([1, 2], [3])]
    recording = record_calls(dit, calls)
    assert recording.states.shape == (3, 5, 4, 4, 4)
    assert [c["class_labels"] for c in recording.conditions] == [[1, 2], [3]]
    start = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(3))
    assert torch.equal(recording.states[2:, 0], start)


def test_equal_seeds_without_guidance_are_kept_when_said(dit):
    dit.scheduler = DDIMScheduler()
    same = call([1, 1], guidance_scale=1.0)
    same["generator"] = [torch.Generator().manual_seed(5) for _ in range(2)]
    recording = record_calls(dit, [same], halve=False)
    assert recording.states.shape[0] == 2


def test_heun_is_recorded_once_a_step():
    scheduler = HeunDiscreteScheduler()
    with record(scheduler) as recording:
        scheduler.set_timesteps(5)
        x = torch.randn(3, 1, 8, 8) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample
    assert recording.states.shape == (3, 6, 1, 8, 8)
    sigmas = [level.sigma for level in recording.levels]
    assert sigmas == sorted(set(sigmas), reverse=True) and sigmas[-1] == 0


def test_packed_latents_are_unpacked_as_flux_packs_them():
    """A token is a 2 x 2 patch, its channels in the order channel, row, column."""
    latents = torch.randn(2, 4, 4, 6)
    tokens = [
        latents[:, :, y : y + 2, x : x + 2].flatten(1)
        for y in range(0, 4, 2)
        for x in range(0, 6, 2)
    ]
    packed = torch.stack(tokens, dim=1)
    assert torch.equal(unpack(packed, 4, 6), latents)
    assert unpack(torch.randn(2, 9, 16)).shape == (2, 4, 6, 6)
    with pytest.raises(ValueError, match="6 packed tokens"):
        unpack(packed)


def test_ddims_grid_that_does_not_land_where_it_says():
    """On 'linspace' DDIM steps by 1000 // steps whatever the grid is: the recorder gives the level
    that the network is told, and the end where the last step lands."""
    scheduler = DDIMScheduler(timestep_spacing="linspace", prediction_type="sample")
    with record(scheduler) as recording:
        scheduler.set_timesteps(4)
        x = torch.randn(1, 1, 8, 8)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    told = [float((1 - scheduler.alphas_cumprod[t]).sqrt()) for t in scheduler.timesteps]
    assert [level.sigma for level in recording.levels] == pytest.approx([*told, 0.0])


def test_a_second_loop_on_the_same_timesteps_is_a_second_run():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    with record(scheduler) as recording:
        for _ in range(2):
            x = torch.randn(2, 1, 4, 4)
            for t in scheduler.timesteps:
                x = scheduler.step(x, t, x).prev_sample
    assert recording.states.shape[:2] == (4, 4)


def test_states_that_something_else_changed_are_counted():
    scheduler = DDIMScheduler()
    with record(scheduler) as recording:
        scheduler.set_timesteps(3)
        x = torch.randn(1, 1, 4, 4)
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x).prev_sample + 1
    assert recording.unlike == 2


def test_states_on_a_path_have_its_scale_and_time():
    levels = [(1.0, 9.0), (1.0, 1.0), (1.0, 0.0)]  # x_0 + sigma eps
    x0, eps = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    states = torch.stack([x0 + s * eps for _, s in levels], dim=1)
    ours, times = Recording.of(states, levels).on("linear")
    assert times.tolist() == pytest.approx([0.9, 0.5, 0.0])
    for k, t in enumerate(times.tolist()):
        assert torch.allclose(ours[:, k], (1 - t) * x0 + t * eps, atol=1e-5)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="nothing was recorded"):
        _ = Recording().states
    with pytest.raises(ValueError, match="3 states and 1 levels"):
        Recording.of(torch.zeros(1, 3, 1, 2, 2), [(1.0, 0.0)])
    other = Recording.of(torch.zeros(1, 1, 1, 2, 2), [(1.0, 0.0)])
    other.runs.append(other.runs[0])
    other.run_levels.append(((1.0, 0.5),))
    with pytest.raises(ValueError, match="different noise levels"):
        _ = other.states


def test_an_error_within_the_block_leaves_no_wrapper():
    scheduler = DDIMScheduler()
    with pytest.raises(RuntimeError), record(scheduler):
        raise RuntimeError
    assert "step" not in vars(scheduler)
