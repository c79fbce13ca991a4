"""Every rival at its neutral setting against the plain sampler, and at a real one against its
formulas written out here.
"""

import pytest
import torch
from torch.testing import assert_close

from companion.experiments.generate import SampleConfig, sample
from nag.estimator import NoiseEstimator
from nag.guidance import GuidedField, classifier_free, noise_awareness
from nag.rivals.methods import METHODS, Parts, describe, plan, steps_for
from nag.rivals.noise_level_correction import STYLES, LevelHead, noise_excess
from nag.rivals.time_shift import MODES
from nag.samplers.one_step import ddim, euler
from nag.samplers.registry import SAMPLERS
from nag.samplers.time_grids import uniform
from nag.support.rng import ImageNoise

pytestmark = pytest.mark.usefixtures("on_cpu")
BATCH, STEPS, W = 3, 5, 0.7
LABELS = torch.arange(BATCH)
WINDOW, CUTOFF, V0 = 0.2, 0.3, 0.4


@pytest.fixture
def parts(tiny):
    net = tiny()
    head = LevelHead(32, hidden=16)
    torch.nn.init.normal_(head.head[-1].weight, std=0.05)
    return Parts(net, {"weak": tiny(width=16)}, tiny(), head.eval().requires_grad_(False), None, V0)


def run(found, sampler=euler, dtype=torch.float32):
    """All states of a plan, (STEPS + 1, B, C, H, W), as `generate.sample` makes them."""
    noise = ImageNoise(range(BATCH))
    field = GuidedField(found.net, LABELS, found.terms)
    solver = found.solver or sampler
    return torch.stack(
        [x for x, _ in solver(field, noise((1, 8, 8)).to(dtype), uniform(STEPS), noise, "linear")]
    )


# ---- neutral settings

NEUTRAL = {
    "nag": [0.0],
    "cfg": [1.0],
    "cfg-interval": [1.5, 0.65, 0.75],
    "autoguidance": ["weak", 1.0],
    "epsilon-scaling": [1.0],
    "self-guidance": [0.0, 0.1],
    "tsg": [1.0, 2.0, 1.0],
    "icg": [1.0],
    "dcw": [0.0],
    "tsr": [1.0, 0.5],
}


@pytest.mark.parametrize("method", NEUTRAL)
@pytest.mark.parametrize("sampler", ["ode", "euler_maruyama"])
@pytest.mark.parametrize("w", [0.0, W])
def test_a_neutral_setting_is_the_plain_sampler_bit_for_bit(parts, method, sampler, w):
    parts, named = (
        parts._replace(sampler=sampler),
        SAMPLERS["euler" if sampler == "ode" else sampler],
    )
    plain = run(plan("none", [], parts, w), named)
    assert torch.equal(run(plan(method, NEUTRAL[method], parts, w), named), plain)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("w", [0.0, W])
def test_a_window_of_no_width_is_ddim(parts, mode, w):
    plain = run(plan("none", [], parts, w), ddim)
    assert_close(
        plain, run(plan("none", [], parts, w), euler), rtol=1e-5, atol=1e-5
    )  # on the straight path they are one
    shifted = run(plan("time-shift", ["data-variance", mode, 0.0, CUTOFF], parts, w))
    if mode == "network":  # x_0 comes by way of eps there: the same up to rounding
        assert_close(shifted, plain, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(shifted, plain)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("w", [0.0, W])
def test_a_head_that_says_nothing_leaves_ddim(parts, style, w):
    untrained = parts._replace(head=LevelHead(32, hidden=16))
    plain = run(plan("none", [], parts, w), ddim)
    for found in (
        plan("level-correction", [style, 1.0], untrained, w),
        plan("level-correction", [style, 0.0], parts, w),
    ):
        assert_close(
            run(found), plain, rtol=1e-5, atol=1e-5
        )  # t is found again from sigma/alpha, by bisection


def test_ddpm_ip_is_plain_sampling_of_its_own_network(parts):
    other = parts._replace(net=parts.perturbed)
    assert torch.equal(
        run(plan("input-perturbation", [], parts, W)), run(plan("none", [], other, W))
    )
    assert not torch.equal(run(plan("input-perturbation", [], parts)), run(plan("none", [], parts)))


# ---- real settings with NAG on top, on the straight path x = (1 - t) x_0 + t eps, v = eps - x_0


def answers(net, x, t, y=LABELS, drop=False):
    times = torch.as_tensor(t, dtype=torch.float32).expand(BATCH)
    with torch.no_grad():
        return net(x.float(), times, y, torch.full((BATCH,), drop))


def guided(net, x, t):
    """NAG's field."""
    return answers(net, x, t) + W * (answers(net, x, t) - answers(net, x, t, drop=True))


def start():
    return ImageNoise(range(BATCH))((1, 8, 8))


def pairs():
    times = uniform(STEPS).tolist()
    return list(zip(times[:-1], times[1:], strict=True))


def wide(t):
    return t.float().view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("method", "setting", "weight", "acts"),
    [
        ("cfg", [1.5], 0.5, lambda t: True),
        ("cfg-interval", [2.0, 0.3, 0.7], 1.0, lambda t: 0.3 <= t <= 0.7),
        ("autoguidance", ["weak", 1.5], 0.5, lambda t: True),
    ],
)
def test_guidance_and_nag_add(parts, method, setting, weight, acts):
    x = start()
    for t, s in pairs():
        if method == "autoguidance":
            negative = answers(parts.weaker["weak"], x, t)
        else:
            negative = answers(parts.net, x, t, torch.full((BATCH,), 3))
        v = guided(parts.net, x, t) + acts(t) * weight * (answers(parts.net, x, t) - negative)
        x = x + (s - t) * v
    assert_close(run(plan(method, setting, parts, W))[-1], x, rtol=1e-4, atol=1e-4)


def test_epsilon_scaling_divides_the_guided_noise(parts):
    x, scale = start(), 1.03
    for t, s in pairs():
        eps = x + (1 - t) * guided(parts.net, x, t)
        x0 = x - t * guided(parts.net, x, t)
        if t < 1:
            eps = eps / scale
            x0 = (x - t * eps) / (1 - t)
        x = (1 - s) * x0 + s * eps
    assert_close(run(plan("epsilon-scaling", [scale], parts, W))[-1], x, rtol=1e-4, atol=1e-4)


def test_epsilon_scaling_takes_the_sampler_it_is_told(parts):
    def reference(field, x, times, noise, path):
        for k, (t, s) in enumerate(pairs()):
            v = field(x, t)
            eps = (x + (1 - t) * v) / (1.03 if k else 1)
            v = eps - (x - t * eps) / (1 - t) if k else v
            drift = v + eps  # v - D score with D = sigma = t
            x = x + (s - t) * drift + ((2 * t * (t - s)) ** 0.5 * noise((1, 8, 8)) if s > 0 else 0)
        yield x, 0.0

    stochastic = parts._replace(sampler="euler_maruyama")
    by_hand = plan("nag", [W], stochastic)._replace(solver=reference)
    assert_close(
        run(plan("epsilon-scaling", [1.03], stochastic, W))[-1],
        run(by_hand)[-1],
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("level", ["variance", "data-variance"])
@pytest.mark.parametrize("mode", MODES)
def test_time_shift_of_the_guided_field(parts, level, mode):
    x, v0 = start(), V0 * (level == "data-variance")
    for t, s in pairs():
        found = torch.full((BATCH,), t, dtype=torch.float64)
        if CUTOFF < t < 1:
            near = t + 1e-3 * torch.arange(-100, 101, dtype=torch.float64)
            expected = (1 - near) ** 2 * v0 + near**2
            found = near[(x.flatten(1).var(1).double()[:, None] - expected).square().argmin(1)]
        now, seen, then = {
            "destination": (t, t, found - t + s),
            "network": (t, found, s),
            "both": (found, found, s),
        }[mode]
        then = torch.as_tensor(then if s > 0 else 0.0, dtype=torch.float64).expand(BATCH)
        now, seen = (torch.as_tensor(a, dtype=torch.float64).expand(BATCH) for a in (now, seen))
        v = guided(parts.net, x, seen)
        eps = x + (1 - wide(seen)) * v
        x0 = (
            x - wide(seen) * v
            if mode != "network" or t == 1
            else (x - wide(now) * eps) / (1 - wide(now))
        )
        x = (1 - wide(then)) * x0 + wide(then) * eps
    shifted = run(plan("time-shift", [level, mode, WINDOW, CUTOFF], parts, W))
    assert_close(shifted[-1], x, rtol=1e-3, atol=1e-3)
    assert (shifted[-1] - run(plan("nag", [W], parts), ddim)[-1]).abs().max() > 0.01


def test_time_shift_by_the_estimator_asks_for_its_posterior_mean(parts, monkeypatch):
    reader, read = torch.nn.Linear(64, 1), []
    monkeypatch.setattr(
        "nag.rivals.methods.posterior_mean",
        lambda net, x: read.append(len(x)) or net(x.flatten(1)).sigmoid()[:, 0],
    )
    x = start()
    for t, s in pairs():
        found = (
            reader(x.flatten(1))
            .sigmoid()[:, 0]
            .detach()
            .clamp(max(t - WINDOW / 2, 1e-3), t + WINDOW / 2)
        )
        to = (found - t + s).clamp_min(0) if 0 < s and CUTOFF < t < 1 else torch.full((BATCH,), s)
        v = guided(parts.net, x, t)
        x = (1 - wide(to)) * (x - t * v) + wide(to) * (x + (1 - t) * v)
    plan_of = plan(
        "time-shift",
        ["estimator", "destination", WINDOW, CUTOFF],
        parts._replace(estimator=reader),
        W,
    )
    assert_close(run(plan_of)[-1], x, rtol=1e-3, atol=1e-3)
    assert read == [BATCH] * 3  # t = 0.8, 0.6, 0.4: neither at pure noise nor below the cutoff
    assert plan_of[3:] == (65 + 32, "estimator")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_level_correction_evaluates_the_guided_field_at_the_corrected_level(parts, style, strength):
    x = start()
    for t, s in pairs():
        if t == 1:
            x = x + (s - t) * guided(parts.net, x, t)
            continue
        excess = 1 + strength * noise_excess(parts.head, parts.net, x, t, LABELS).double()
        rho = t / (1 - t) * excess
        now = rho / (1 + rho)  # t of sigma/alpha = t/(1 - t)
        x = x * (1 - wide(now)) / (1 - t)
        v = guided(parts.net, x, now)
        eps, x0 = x + (1 - wide(now)) * v, x - wide(now) * v
        rho = s / (1 - s) * (excess if style == "pred" else torch.ones_like(excess))
        then = wide(rho / (1 + rho))
        x = (1 - s) / (1 - then) * ((1 - then) * x0 + then * eps)
    corrected = run(plan("level-correction", [style, strength], parts, W))
    assert_close(corrected[-1], x, rtol=1e-3, atol=1e-3)
    assert (corrected[-1] - run(plan("nag", [W], parts), ddim)[-1]).abs().max() > 0.01


# ---- through `sample`, and at equal evaluations


def test_sample_takes_every_plan_with_nag(parts):
    settings = {
        "nag": [W],
        "nag-classifier": [W],
        "cfg": [1.5],
        "cfg-interval": [1.5, 0.3, 0.7],
        "autoguidance": ["weak", 1.5],
        "epsilon-scaling": [1.01],
        "time-shift": ["variance", "destination", WINDOW, CUTOFF],
        "level-correction": ["pred", 1.0],
        "self-guidance": [1.0, 0.05],
        "self-guidance-prev": [0.5, 0.5],
        "other-level": [-0.02],
        "estimated-level": [1.0],
        "estimated-score": [1.0],
        "tsg": [1.5, 1.0, 1.0],
        "icg": [1.4],
        "dcw": [0.01],
        "tsr": [0.95, 1.0],
    }
    parts = parts._replace(estimator=NoiseEstimator().eval().requires_grad_(False))
    for method in METHODS:
        found = plan(method, settings.get(method, []), parts, 0.0 if method == "nag" else W)
        steps = steps_for(12, found.terms)
        config = SampleConfig(
            steps=steps, n_images=4, trajectories=0, compile=False, precision="fp32"
        )
        arguments = {"progress": False, "solver": found.solver}
        whole = sample(found.net, found.terms, config, **arguments)
        assert 11 <= int(whole["nfe"]) <= 12, method
        parted = sample(
            found.net, found.terms, config.model_copy(update={"network_batch": 6}), **arguments
        )
        assert abs(parted["images"].astype(int) - whole["images"]).max() <= 1, (
            method
        )  # no image depends on its batch


def test_equal_evaluations_are_fewer_steps():
    nag, cfg = noise_awareness(1.0), classifier_free(1.5)
    late = classifier_free(
        1.5, interval=(0.0, 0.5)
    )  # of 2 k uniform steps, the last k start at t <= 0.5
    assert [
        steps_for(48, terms) for terms in ([], [nag], [nag, cfg], [late], [noise_awareness(0.0)])
    ] == [48, 24, 16, 32, 48]
    assert steps_for(48, [], "euler_maruyama") == 48
    with pytest.raises(ValueError, match="3 evaluations are too few"):
        steps_for(3, [nag])
    with pytest.raises(ValueError, match="more than one evaluation"):
        steps_for(48, [], "heun")


# ---- what a plan says of itself


def test_extra_parameters_and_parts(parts, tiny):
    count = sum(p.numel() for p in tiny(width=16).parameters())
    assert plan("autoguidance", ["weak", 2.0], parts)[3:] == (count, "weak")
    assert (
        plan("autoguidance", ["weak", 2.0], parts, W).parameters == count + 32
    )  # and the null noise level
    assert plan("cfg", [2.0], parts).parameters == plan("nag", [1.0], parts).parameters == 32
    head = sum(p.numel() for p in parts.head.parameters())
    assert plan("level-correction", ["pred", 1.0], parts)[3:] == (head, "head")
    assert plan("epsilon-scaling", [1.01], parts)[3:] == plan("none", [], parts)[3:] == (0, "")


def test_settings_in_words():
    assert describe("autoguidance", ["n100k", 1.5]) == "weaker n100k, scale 1.5"
    assert describe("cfg-interval", [2, 0.3, 0.7]) == "scale 2, from t 0.3, to t 0.7"
    assert describe("none", []) == "none"


@pytest.mark.parametrize(
    ("method", "setting", "changes", "message"),
    [
        ("magic", [], {}, "unknown method 'magic'"),
        ("cfg", [], {}, "has 1 entries"),
        ("autoguidance", ["other", 2.0], {}, "'other' of autoguidance is missing"),
        ("input-perturbation", [], {"perturbed": None}, "DDPM-IP is missing"),
        (
            "level-correction",
            ["pred", 1.0],
            {"head": None},
            "head of Noise Level Correction is missing",
        ),
        ("time-shift", ["estimator", "both", 0.1, 0.3], {}, "estimator of Time-Shift is missing"),
        ("time-shift", ["energy", "both", 0.1, 0.3], {}, "unknown level 'energy'"),
        (
            "time-shift",
            ["variance", "both", 0.1, 0.3],
            {"sampler": "euler_maruyama"},
            "steps as DDIM does",
        ),
        ("level-correction", ["pred", 1.0], {"sampler": "euler_maruyama"}, "steps as DDIM does"),
        ("epsilon-scaling", [0.0], {}, None),
    ],
)
def test_what_cannot_be_is_refused(parts, method, setting, changes, message):
    with pytest.raises(ValueError, match=message):
        run(plan(method, setting, parts._replace(**changes)))
