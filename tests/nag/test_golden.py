"""Our loader, time direction and samplers against what the public SiT and REPA code returned on
tiny networks.
"""

from functools import partial

import numpy as np
import pytest
import torch

from nag import checkpoint
from nag.ddpm import log_variance, posterior
from nag.guidance import GuidedField, classifier_free
from nag.interpolant import convert
from nag.samplers.one_step import ddim, dopri5, euler, heun, midpoint
from nag.samplers.registry import last
from nag.samplers.time_grids import respaced, uniform
from nag.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden"


def golden(kind):
    arrays = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{kind}_tiny.npz").items()}
    return checkpoint.load(GOLDEN / f"{kind}_tiny.pt", kind, heads=4), arrays


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture(scope="module")
def sit():
    return golden("sit")


@pytest.fixture(scope="module")
def repa():
    return golden("repa")


def test_sit_velocity_and_score(sit):
    net, a = sit
    t = 1 - a["t"]  # theirs: t = 1 is data
    v = net(a["x"], t, a["y"])
    assert relative(-v, a["velocity"]) < 1e-5
    assert relative(convert(v, a["x"], t, "v", "score"), a["score"]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sit_euler(sit, dtype):
    net, a = sit
    x = last(euler(GuidedField(net, a["y"]), a["x"].to(dtype), uniform(10)))
    assert relative(x, a["ode_euler_10"]) < 1e-4


def test_sit_three_channel_cfg(sit):
    net, a = sit
    field = GuidedField(net, a["y_cfg"], [classifier_free(4.0, channels=3)])
    assert relative(-field(a["x_cfg"], 1 - a["t_cfg"].item()), a["velocity_cfg_3ch_scale4"]) < 1e-4
    assert field.nfe == 2


def test_dit_output_and_variance_channels():
    net, a = golden("dit")
    out = net(a["x"], (a["t"] + 1) / 1000, a["y"], full=True)
    assert relative(out, a["output"]) < 1e-4
    field = GuidedField(net, a["y_cfg"], [classifier_free(4.0, channels=3)])
    ours = field.predict(a["x_cfg"], (a["t_cfg"].item() + 1) / 1000).mean
    assert relative(ours, a["output_cfg_3ch_scale4"][:, :4]) < 1e-4


def test_dit_mean_and_learned_variance_of_a_step():
    net, a = golden("dit")
    t = (a["t"].double() + 1) / 1000
    s = torch.where(t > 0.0015, t - 1 / 1000, torch.zeros_like(t))
    x = a["x"].double()
    field = GuidedField(net, a["y"])
    v, fraction = field.with_variance(x, t)
    x0 = convert(v, x, t, "v", "x0", "ddpm")
    assert relative(x0, a["pred_xstart"]) < 1e-4
    first, second, *_ = posterior(t, s, x)
    assert relative(first * x0 + second * x, a["mean"]) < 1e-4
    ours = log_variance(fraction, t, s)
    assert relative(ours, a["log_variance"]) < 1e-4 and relative(ours.exp(), a["variance"]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dit_ddim(dtype):
    net, a = golden("dit")
    levels = torch.from_numpy(a["timestep_map_10"].numpy().copy()).double().flip(0)
    times = torch.cat([(levels + 1) / 1000, torch.zeros(1).double()])
    assert torch.equal(times, respaced(10))
    x = last(ddim(GuidedField(net, a["y"]), a["x"].to(dtype), times))
    assert relative(x, a["ddim_10"]) < 1e-4


@pytest.mark.parametrize(
    "sampler, times, name",
    [
        (midpoint, uniform(10), "ode_midpoint_10"),
        (partial(dopri5, rtol=1e-8, atol=1e-8), uniform(1), "ode_dopri5"),
    ],
)
def test_sit_midpoint_and_dopri5(sit, sampler, times, name):
    net, a = sit
    x = last(sampler(GuidedField(net, a["y"]), a["x"].double(), times))
    assert relative(x, a[name]) < 1e-4


def test_ddpm_path_is_the_official_beta_table():
    from nag.interpolant import ddpm

    a = np.load(GOLDEN / "dit_tiny.npz")
    c = ddpm(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    np.testing.assert_allclose(c.alpha.square().numpy(), a["alphas_cumprod"], rtol=1e-9)


def test_repa_velocity(repa):
    net, a = repa
    assert relative(net(a["x"], a["t"], a["y"]), a["velocity"]) < 1e-5


@pytest.mark.parametrize("sampler, name", [(euler, "euler_10"), (heun, "heun_10")])
def test_repa_samplers(repa, sampler, name):
    net, a = repa
    x = last(sampler(GuidedField(net, a["y"]), a["x"].double(), uniform(10)))
    assert relative(x, a[name]) < 1e-4


def test_repa_guidance_interval(repa):
    net, a = repa
    field = GuidedField(net, a["y"], [classifier_free(1.8, interval=(0.0, 0.7))])
    x = last(euler(field, a["x"].double(), uniform(10)))
    assert relative(x, a["euler_10_cfg1p8_interval_0_0p7"]) < 1e-4
    assert (
        field.nfe in (16, 17) and field.calls == 10
    )  # t = 0.7 itself falls on either side of rounding
    assert relative(x, a["euler_10"]) > 1e-3


def test_heads_are_known_or_announced():
    with pytest.warns(UserWarning, match="4 heads"):
        net = checkpoint.load(GOLDEN / "sit_tiny.pt", "sit")
    assert (
        net.config.heads == 4
        and net.config.depth == 2
        and net.config.classes == 10
        and net.config.learn_sigma
    )
