"""The stand-in of notebooks 10 and 18 is a pipeline of diffusers, and its guider does as said."""

import diffusers
import numpy as np
import pytest
import torch

from companion.experiments import own_model
from companion.experiments.modular_dit import NO_CLASS, SampleDiT
from nag.integrations.guider import NoiseAwarenessGuidance
from nag.integrations.level_estimator import LevelEstimator
from nag.integrations.recorder import Recording, record, record_calls
from nag.integrations.time_hooks import embedding_width
from nag.integrations.wrappers import guided
from nag.interpolant import PATHS
from nag.shift import forward_states


@pytest.fixture(scope="module")
def pipe():
    pipe = own_model.dit_pipeline(0)
    pipe.transformer.eval()
    return pipe


def test_example_images_are_half_size_in_range():
    images, labels = own_model.example_images()
    assert images.shape == (10000, 1, 14, 14) and images.min() == -1 and images.max() <= 1
    assert labels.shape == (10000,) and labels.dtype == torch.int64


def test_the_pipeline_gives_the_last_recorded_state(pipe):
    assert isinstance(pipe, diffusers.DiTPipeline)
    (call,) = own_model.calls(3, 4, output_type="pt")
    with record(pipe) as recording:
        images = pipe(**call).images
    assert recording.states.shape == (3, 5, 1, 14, 14)
    assert torch.equal(images, (recording.states[:, -1] / 2 + 0.5).clamp(0, 1))


def test_seeds_do_not_depend_on_the_batch(pipe):
    apart, together = (
        record_calls(pipe, own_model.calls(4, 2, batch)).states[:, 0] for batch in (2, 4)
    )
    assert torch.equal(apart, together)


def test_guider_and_wrapper_agree_with_and_without_cfg(pipe):
    """Two ways to the same images, which are not those without NAG."""
    net = pipe.transformer
    null = torch.randn(embedding_width(net))
    guider = NoiseAwarenessGuidance(w=0.7, null=null)
    modular = SampleDiT().init_pipeline()
    modular.update_components(transformer=net, scheduler=pipe.scheduler)
    for scale, half in ((1.0, None), (2.0, 0)):
        (call,) = own_model.calls(2, 3, guidance_scale=scale, output_type="pt")
        modular.update_components(guider=guider.new(guidance_scale=scale))
        seeds = [torch.Generator().manual_seed(i) for i in range(2)]
        given = dict(class_labels=call["class_labels"], num_inference_steps=3, generator=seeds)
        found = modular(**given, output="images")
        with guided(net, 0.7, null, conditional_half=half):
            wrapped = pipe(**call).images
        torch.testing.assert_close((found / 2 + 0.5).clamp(0, 1), wrapped, atol=1e-4, rtol=0)
        plain = pipe(**call).images
        assert (plain - wrapped).abs().max() > 1e-3


def test_label_1000_is_no_class(pipe):
    assert pipe.transformer.config.num_embeds_ada_norm == NO_CLASS


def test_late_change_is_that_of_the_levels_that_were_changed():
    """A stand-in estimator reads the level off the states, which are moved by a known amount."""
    times = torch.tensor([1.0, 0.6, 0.2, 0.1, 0.0])
    levels = [(c.alpha, c.sigma) for c in map(PATHS["linear"], times)]
    states = forward_states(torch.randn(20, 1, 4, 4), times, "linear")
    moved = states.clone()
    moved[:, 2:4] += 0.25
    read = LevelEstimator(None, "linear", {})
    read.__class__ = type(
        "Mean", (LevelEstimator,), {"__call__": lambda self, x: x.mean((1, 2, 3))}
    )
    found = own_model.late_change(Recording.of(moved, levels), Recording.of(states, levels), read)
    np.testing.assert_allclose([found[k] for k in ("value", "low", "high")], 0.25, atol=1e-6)
