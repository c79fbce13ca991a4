"""Noise-condition dropout in other people's training loops, and a null vector alone."""

import copy
import runpy
import sys

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_models import build

from nag.integrations.guider import load_null
from nag.integrations.null_training import (
    add_noise_condition_dropout,
    denoising_loss_of,
    train_null_vector,
)
from nag.integrations.time_hooks import TimeCondition, null, time_embedders
from nag.support.paths import ROOT
from nag.train import TrainConfig


def run(net, inputs):
    return net(**inputs, return_dict=False)[0]


@pytest.mark.parametrize("name", ["DiT", "SD3", "Flux", "UNet2D"])
def test_rows_lose_their_level_in_training_only(name):
    net, inputs = build(name)
    plain = run(net, inputs)
    condition = add_noise_condition_dropout(net, 0.5)
    assert torch.equal(run(net, inputs), plain), "in evaluation nothing changes"
    embedders = time_embedders(net)
    heard = []
    hooks = [e.register_forward_hook(lambda m, i, o: heard.append(o)) for e in embedders]
    net.train()
    kept = dropped = 0
    for seed in range(8):
        torch.manual_seed(seed)
        heard.clear()
        run(net, inputs)
        is_null = [(h == net.null_noise).all(-1) for h in heard]
        assert all(torch.equal(m, is_null[0]) for m in is_null), "one mask for all embedders"
        dropped += int(is_null[0].sum())
        kept += int((~is_null[0]).sum())
    assert kept > 0 and dropped > 0
    for hook in hooks:
        hook.remove()
    condition.remove()
    net.eval()
    assert torch.equal(run(net, inputs), plain)


def test_the_gradient_of_the_null_vector_is_that_of_the_rows_without_level():
    net, inputs = build("SD3")
    add_noise_condition_dropout(net, 1.0)
    net.train()
    run(net, inputs).square().sum().backward()
    found = net.null_noise.grad.clone()
    other, _ = build("SD3")
    vector = net.null_noise.detach().clone().requires_grad_()
    condition = TimeCondition()
    condition.change(other, null(vector))
    with condition.dropped():
        run(other, inputs).square().sum().backward()
    assert torch.allclose(found, vector.grad, rtol=1e-4)


def steps(net, optimizer, first, last):
    for step in range(first, last):
        gen = torch.Generator().manual_seed(step)
        x, noise = torch.randn(2, 4, 1, 8, 8, generator=gen).unbind(0)
        optimizer.zero_grad()
        (net(x, torch.tensor([5, 300, 600, 900])).sample - noise).square().mean().backward()
        optimizer.step()


def begin():
    net, _ = build("UNet2D")
    add_noise_condition_dropout(net, 0.5)
    return net.train(), torch.optim.AdamW(net.parameters(), lr=1e-3)


def test_a_resumed_script_equals_one_that_was_not_stopped():
    torch.manual_seed(0)
    whole, optimizer = begin()
    torch.manual_seed(1)
    steps(whole, optimizer, 0, 6)

    first, optimizer = begin()
    torch.manual_seed(1)
    steps(first, optimizer, 0, 3)
    kept = copy.deepcopy((first.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    torch.manual_seed(99)
    second, optimizer = begin()
    second.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    torch.set_rng_state(kept[2])
    steps(second, optimizer, 3, 6)
    assert "null_noise" in kept[0]
    for (name, a), (_, b) in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


CONFIG = TrainConfig(
    images_seen=240, batch_size=8, lr=0.02, warmup_steps=1, ema_decay=0.5, compile=False
)


@pytest.mark.parametrize("scheduler", [DDPMScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_null_vector_alone(tmp_path, scheduler):
    net, _ = build("UNet2D")
    before = copy.deepcopy(net.state_dict())
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = denoising_loss_of(scheduler(), images)
    vector = train_null_vector(net, loss, len(images), CONFIG, tmp_path / "part")
    assert all(torch.equal(a, before[k]) for k, a in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters()) and not list(tmp_path.iterdir())

    @torch.no_grad()
    def mean_loss(v):
        condition = TimeCondition()
        condition.change(net, null(v))
        with condition.dropped():
            found = loss(net, torch.arange(32), torch.Generator().manual_seed(5)).item()
        condition.remove()
        return found

    assert mean_loss(vector) < mean_loss(torch.zeros_like(vector))


def test_a_stopped_null_vector_goes_on(tmp_path, monkeypatch):
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    own = denoising_loss_of(DDPMScheduler(), images)
    wanted = train_null_vector(build("UNet2D")[0], own, 32, CONFIG, tmp_path / "whole")
    from nag.integrations import null_training
    from nag.train import train

    def often(*args):
        return train(*args, save_steps=10)

    monkeypatch.setattr(null_training, "train", often)
    calls = []

    def broken(net, index, gen):
        calls.append(1)
        if len(calls) == 25:
            raise RuntimeError("power cut")
        return own(net, index, gen)

    with pytest.raises(RuntimeError, match="power cut"):
        train_null_vector(build("UNet2D")[0], broken, 32, CONFIG, tmp_path / "part")
    assert (tmp_path / "part").exists()
    found = train_null_vector(build("UNet2D")[0], own, 32, CONFIG, tmp_path / "part")
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("other", ["model", "data"])
def test_a_state_of_another_model_or_other_data_is_refused(tmp_path, monkeypatch, other):
    """To go on from it would put the other model's weights into this one."""
    from nag.integrations import null_training
    from nag.train import train

    def stopped(*args):
        train(*args, save_steps=1)
        raise KeyboardInterrupt

    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = denoising_loss_of(DDPMScheduler(), images)
    short = CONFIG.model_copy(update={"images_seen": 16})
    monkeypatch.setattr(null_training, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_null_vector(build("UNet2D")[0], loss, 32, short, tmp_path / "part")
    net, _ = build("UNet2D")
    if other == "model":
        with torch.no_grad():
            next(net.parameters()).add_(0.01)
    else:
        loss = denoising_loss_of(DDPMScheduler(), images - 1)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="of another model, other data or another loss"):
        train_null_vector(net, loss, 32, short, tmp_path / "part")
    assert all(torch.equal(a, before[k]) for k, a in net.state_dict().items())


def test_a_wrong_probability_is_refused():
    with pytest.raises(ValueError, match="must be in"):
        add_noise_condition_dropout(build("UNet2D")[0], 1.5)


@pytest.mark.slow
def test_the_example_trains_and_saves_a_null_vector(tmp_path, monkeypatch):
    script = str(ROOT / "examples" / "train_with_noise_dropout.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path / "out")])
    runpy.run_path(script)
    assert load_null(tmp_path / "out").shape == (128,)
    assert (tmp_path / "out" / "guider_config.json").is_file()
