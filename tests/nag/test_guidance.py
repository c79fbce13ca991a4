"""The one formula against hand computation on a toy network, and what is evaluated: which branches,
how often.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from nag import toy as exact_toy
from nag.guidance import (
    GuidedField,
    Term,
    autoguidance,
    classifier_free,
    classifier_noise_awareness,
    domain,
    noise_awareness,
)
from nag.interpolant import convert
from nag.models import DiT, ModelConfig

B, CLASSES, T = 5, 10, 0.4


class Toy:
    """A velocity that depends on all four arguments, given out as any prediction; remembers its
    calls.
    """

    def __init__(self, prediction="v", path="linear", gain=1.0, classes=CLASSES):
        self.config = SimpleNamespace(prediction=prediction, path=path, classes=classes)
        self.gain, self.calls = gain, []

    def __call__(self, x, t, y, drop_noise):
        self.calls.append((x, t, y, drop_noise))
        level = torch.where(drop_noise, 0.77, t).view(-1, 1, 1, 1)
        v = self.gain * (x * level).sin() + 0.1 * y.view(-1, 1, 1, 1) * level + x.flip(-1)
        return convert(v, x, t, "v", self.config.prediction, self.config.path)


@pytest.fixture
def x():
    return torch.randn(B, 4, 3, 3)


LABELS = torch.tensor([0, 3, 9, 1, 3])


def branch(net, x, drop_class=False, drop_noise=False, t=T):
    """One branch by itself, the reference for the batched evaluation."""
    y = torch.full_like(LABELS, net.config.classes) if drop_class else LABELS
    return net(x, torch.full((B,), t), y, torch.full((B,), drop_noise))


def guided(terms, x, net=None, t=T):
    return GuidedField(net or Toy(), LABELS, terms)(x, t)


def test_without_terms_the_field_is_the_network(x):
    net = Toy()
    assert torch.equal(guided([], x, net), branch(net, x))


def test_zero_weights_are_no_guidance_bit_for_bit(x):
    terms = [
        noise_awareness(0.0),
        classifier_free(1.0),
        domain(1.0, Toy()),
        autoguidance(1.0, Toy()),
        noise_awareness(lambda t: 0.0),
        noise_awareness(2.0, interval=(0.5, 1.0)),
    ]
    field = GuidedField(Toy(), LABELS, terms)
    assert torch.equal(field(x, T), guided([], x)) and (field.nfe, field.calls) == (1, 1)


def test_each_term_is_its_formula(x):
    net, other = Toy(), Toy(gain=0.3, classes=12)
    f = branch(net, x)
    negatives = {
        "nag": (noise_awareness(1.5), branch(net, x, drop_noise=True)),
        "cfg": (classifier_free(2.5), branch(net, x, drop_class=True)),
        "dog": (domain(2.5, other), branch(other, x, drop_class=True)),
        "autoguidance": (autoguidance(2.5, other), branch(other, x)),
    }
    for name, (term, negative) in negatives.items():
        assert term.name == name
        assert_close(guided([term], x, net), 2.5 * f - 1.5 * negative, rtol=1e-4, atol=1e-5)
        assert (f - negative).abs().max() > 0.1


def test_the_terms_add(x):
    net, other = Toy(), Toy(gain=0.3)
    f, terms = branch(net, x), [noise_awareness(0.7), classifier_free(1.4), domain(1.2, other)]
    hand = (
        f
        + 0.7 * (f - branch(net, x, drop_noise=True))
        + 0.4 * (f - branch(net, x, drop_class=True))
        + 0.2 * (f - branch(other, x, drop_class=True))
    )
    assert_close(guided(terms, x, net), hand, rtol=1e-4, atol=1e-5)
    assert_close(guided(terms[::-1], x, net), hand, rtol=1e-4, atol=1e-5)


def test_minus_one_is_the_negative_itself(x):
    assert_close(
        guided([noise_awareness(-1.0)], x), branch(Toy(), x, drop_noise=True), rtol=1e-4, atol=1e-5
    )


def test_interval_is_closed_and_outside_nothing_is_evaluated(x):
    for t, nfe in {0.1: 1, 0.2: 2, 0.3: 2, 0.6: 2, 0.7: 1}.items():
        field = GuidedField(Toy(), LABELS, [noise_awareness(2.0, interval=(0.2, 0.6))])
        same = torch.equal(field(x, t), guided([], x, t=t))
        assert field.nfe == nfe and same == (nfe == 1)


def test_a_weight_may_be_a_function_of_t(x):
    for t in (0.2, 0.8):
        assert torch.equal(
            guided([noise_awareness(lambda u: 3 * u)], x, t=t),
            guided([noise_awareness(3 * t)], x, t=t),
        )


@pytest.mark.parametrize("interval", [(0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_an_impossible_interval_is_refused(interval):
    with pytest.raises(ValueError, match="nag: interval .* must satisfy 0 <= low <= high <= 1"):
        noise_awareness(1.0, interval=interval)


@pytest.mark.parametrize(
    "terms, nfe",
    [
        ([], 1),
        ([noise_awareness(1.0)], 2),
        ([classifier_free(2.0)], 2),
        ([noise_awareness(1.0), classifier_free(2.0)], 3),
        ([noise_awareness(1.0), noise_awareness(0.5)], 2),  # one negative, evaluated once
        ([Term("both", 1.0, drop_class=True, drop_noise=True)], 2),
    ],
)
def test_all_branches_run_in_one_call(x, terms, nfe):
    net = Toy()
    field = GuidedField(net, LABELS, terms)
    for k in (1, 2):
        field(x, T)
        assert (field.nfe, field.calls, len(net.calls)) == (nfe * k, k, k)
    assert len(net.calls[0][0]) == nfe * B


def test_each_network_is_called_once(x):
    net, other = Toy(), Toy(gain=0.5)
    field = GuidedField(
        net,
        LABELS,
        [noise_awareness(1.0), classifier_free(2.0), domain(2.0, other), autoguidance(2.0, other)],
    )
    field(x, T)
    assert field.nfe == 5 and len(net.calls) == len(other.calls) == 1
    assert len(net.calls[0][0]) == 3 * B and len(other.calls[0][0]) == 2 * B


def test_what_is_dropped_reaches_the_network(x):
    net, other = Toy(), Toy(classes=1000)
    GuidedField(net, LABELS, [noise_awareness(1.0), classifier_free(2.0), domain(2.0, other)])(x, T)
    states, t, y, drop = net.calls[0]
    null = torch.full((B,), CLASSES)
    assert torch.equal(states, x.repeat(3, 1, 1, 1)) and torch.equal(t, torch.full((3 * B,), T))
    assert torch.equal(y, torch.cat([LABELS, LABELS, null]))
    assert (
        torch.equal(drop, torch.tensor([False, True, False]).repeat_interleave(B))
        and drop.dtype == torch.bool
    )
    assert (
        torch.equal(other.calls[0][2], torch.full((B,), 1000)) and not other.calls[0][3].any()
    )  # its own null class


def test_only_the_first_channels_are_guided(x):
    some, every, none = (
        guided([classifier_free(3.0, channels=3)], x),
        guided([classifier_free(3.0)], x),
        guided([], x),
    )
    assert torch.equal(some[:, :3], every[:, :3]) and torch.equal(some[:, 3], none[:, 3])
    assert not torch.allclose(every[:, 3], none[:, 3], atol=1e-2)


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "ddpm"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "score"])
def test_mixing_in_any_space_is_the_same(x, path, prediction):
    terms = [noise_awareness(0.7), classifier_free(2.5)]
    v = guided(terms, x, Toy("v", path))
    assert_close(
        guided(terms, x, Toy(prediction, path)), v, rtol=1e-3, atol=1e-4 * v.abs().max().item()
    )


def test_a_negative_that_predicts_something_else_is_converted(x):
    """DoG or autoguidance with a network of eps beside one of v: their outputs may not be
    subtracted as they are.
    """
    same, other = Toy("v", gain=0.3), Toy("eps", gain=0.3)
    assert_close(
        guided([autoguidance(2.0, other)], x),
        guided([autoguidance(2.0, same)], x),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_sees_float32_and_the_field_keeps_the_states_dtype(x, dtype):
    net = Toy()
    assert guided([noise_awareness(1.0)], x.to(dtype), net).dtype == dtype
    assert net.calls[0][0].dtype == net.calls[0][1].dtype == torch.float32


def test_predict_is_in_the_networks_own_terms(x):
    field = GuidedField(Toy("eps", "ddpm"), LABELS, [noise_awareness(1.0)])
    assert_close(field(x, T), convert(field.predict(x, T).mean, x, T, "eps", "v", "ddpm"))


def test_a_real_network_is_guided_alike(tiny, x):
    """The batched branches of the transformer equal its separate evaluations."""
    net, x = tiny(), torch.randn(B, 1, 8, 8)
    y, t, null = LABELS % 3, torch.full((B,), T), torch.full((B,), 3)
    f, no_noise = net(x, t, y), net(x, t, y, torch.ones(B, dtype=torch.bool))
    hand = f + 0.5 * (f - no_noise) + 1.5 * (f - net(x, t, null))
    field = GuidedField(net, y, [noise_awareness(0.5), classifier_free(2.5)])
    assert_close(field(x, T), hand.detach(), rtol=1e-3, atol=1e-4)


def test_an_unknown_precision_is_refused(x):
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        GuidedField(Toy(), LABELS, precision="half")(x, T)


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_classifier_based_nag_adds_its_gradient_to_the_score(x, prediction):
    net = Toy(prediction, "cosine")
    field = GuidedField(net, LABELS, [classifier_noise_awareness(1.5, lambda x, t: (x * t).cos())])
    plain = branch(net, x)
    score = convert(plain, x, T, prediction, "score", "cosine") + 1.5 * (x * T).cos()
    assert_close(field(x, T), convert(score, x, T, "score", "v", "cosine"), rtol=1e-4, atol=1e-4)
    assert (field.nfe, field.calls) == (1, 1)


def test_with_an_exact_mixture_both_forms_of_nag_are_one():
    """Bayes: grad log p(t|x) = s(x|t) - s(x), with the exact noise-unconditional score s(x)."""
    data, prior = exact_toy.ring(8), exact_toy.time_prior("uniform", nodes=64)
    flat = exact_toy.forward(data, B, T, torch.Generator().manual_seed(0))
    dropped = convert(exact_toy.unconditional_score(data, flat, prior), flat, T, "score", "v")
    net = exact_toy.as_network(lambda x, t: exact_toy.velocity(data, x, t), lambda x, t: dropped)
    state, labels = flat.view(B, 1, 1, -1), torch.zeros(B, dtype=torch.long)
    free = GuidedField(net, labels, [noise_awareness(1.5)])(state, T)
    based = GuidedField(
        net,
        labels,
        [
            classifier_noise_awareness(
                1.5,
                lambda x, t: exact_toy.posterior_gradient(
                    data, x.double().flatten(1), t, prior
                ).view_as(x),
            )
        ],
    )(state, T)
    assert_close(free, based, rtol=1e-4, atol=1e-4)
    assert (free - GuidedField(net, labels)(state, T)).abs().max() > 0.1


def test_classifier_based_nag_stops_before_pure_noise(x):
    term = classifier_noise_awareness(1.0, lambda x, t: x)
    assert term.at(1.0) == 0 and term.at(0.9) == 1


def test_each_sample_may_have_its_own_time(x):
    net, times = Toy(), torch.linspace(0.1, 0.9, B)
    together = GuidedField(net, LABELS, [noise_awareness(1.5)])(x, times)
    for k in range(B):
        alone = GuidedField(net, LABELS[k : k + 1], [noise_awareness(1.5)])(
            x[k : k + 1], times[k].item()
        )
        assert_close(together[k : k + 1], alone)


def test_a_learned_variance_comes_from_the_branch_with_all_conditions(tiny):
    net = tiny(learn_sigma=True, prediction="eps", path="ddpm", classes=CLASSES)
    state = torch.randn(B, 1, 8, 8)
    field = GuidedField(net, LABELS, [noise_awareness(2.0), classifier_free(1.5)])
    fraction = field.with_variance(state, T).fraction
    full = net(state, torch.full((B,), T), LABELS, torch.zeros(B, dtype=torch.bool), full=True)
    assert_close(fraction, (full[:, 1:] + 1) / 2)
    assert field.predict(state, T).fraction.equal(fraction)
    assert GuidedField(tiny(classes=CLASSES), LABELS).predict(state, T).fraction is None


def test_untrained_variance_channels_of_a_flow_are_no_variance(tiny):
    """The official SiT layout has them too."""
    field = GuidedField(tiny(learn_sigma=True, classes=CLASSES), LABELS)
    assert field.with_variance(torch.randn(B, 1, 8, 8), T).fraction is None


def test_a_second_network_of_another_path_is_refused():
    with pytest.raises(
        ValueError, match="dog: its network is of the path 'cosine', the guided one of 'linear'"
    ):
        GuidedField(Toy(), LABELS, [domain(1.5, Toy(path="cosine"))])


def test_the_class_of_a_network_without_a_row_for_none_cannot_be_dropped(tiny, x):
    """Its table has `classes` rows, so that the index of no class would be out of it."""
    bare, whole = tiny(channels=4, null_class=False), tiny(channels=4)
    for net, term in ((bare, classifier_free(2.0)), (whole, domain(2.0, bare))):
        with pytest.raises(ValueError, match=f"{term.name}: its network has no row for no class"):
            GuidedField(net, LABELS % 3, [term])
    field = GuidedField(bare, LABELS % 3, [noise_awareness(2.0), classifier_free(1.0)])
    assert field(torch.randn(B, 4, 8, 8), T).isfinite().all()


@pytest.mark.slow
def test_compiled_networks_guide_as_plain_ones(tiny):
    """A compiled module has no truth value of its own, so nothing may ask for it."""
    net, other, x = tiny(classes=CLASSES), tiny(classes=CLASSES), torch.randn(B, 1, 8, 8)
    compiled = [torch.compile(module, backend="eager") for module in (net, other)]
    found, plain = (
        GuidedField(a, LABELS, [domain(1.5, b), autoguidance(1.2, b)])(x, T)
        for a, b in (compiled, (net, other))
    )
    assert_close(found, plain)


@pytest.mark.parametrize("where", [{"interval": (0.3, 1.0)}, {"weight": lambda t: t}])
def test_times_per_sample_must_not_make_images_depend_on_their_batch(x, where):
    term = noise_awareness(where.pop("weight", 1.0), **where)
    with pytest.raises(
        ValueError, match="nag: its weight changes within the batch's times 0.1 to 0.9"
    ):
        GuidedField(Toy(), LABELS, [term])(x, torch.linspace(0.1, 0.9, B))
    GuidedField(Toy(), LABELS, [term])(x, torch.full((B,), 0.5))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.arange(1, 11), "labels 1 to 10 for a network of 10 classes: they must be 0 to 9"),
        (torch.tensor([0, -1]), "labels -1 to 0 for a"),
        (torch.tensor([0.0, 1.0]), r"must be int64 of shape \(B,\), not torch.float32"),
        (torch.zeros(2, 1, dtype=torch.long), r"not torch.int64 of \(2, 1\)"),
    ],
)
def test_labels_that_the_network_does_not_have_are_refused(labels, words):
    with pytest.raises(ValueError, match=words):
        GuidedField(Toy(), labels)


def test_no_class_is_asked_for_by_intent(x):
    net, labels = Toy(), torch.tensor([0, CLASSES, 9, CLASSES, 3])
    field = GuidedField(net, labels, null_class=True)
    assert torch.equal(field(x, T), net(x, torch.full((B,), T), labels, torch.zeros(B).bool()))
    with pytest.raises(ValueError, match="labels 1 to 11 for a network of 11"):
        GuidedField(net, labels + 1, null_class=True)
    without = Toy(classes=0)  # a network without classes has no class alone
    assert GuidedField(without, torch.zeros(B, dtype=torch.long))(x, T).shape == x.shape


@pytest.mark.parametrize("states", [16, 1])
def test_each_state_needs_its_label(states):
    with pytest.raises(ValueError, match=f"{states} states and 5 labels: .* as seeds"):
        GuidedField(Toy(), LABELS)(torch.randn(states, 4, 3, 3), T)


@pytest.mark.parametrize("shape", [(1, 8, 9), (1, 16, 16), (4, 8, 8)])
def test_a_state_of_another_size_is_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"states \(.*\) do not fit a network for \(1, 8, 8\)"):
        GuidedField(tiny(classes=CLASSES), LABELS)(torch.randn(B, *shape), T)


@pytest.mark.parametrize("labels", [[0, 1], 3, None])
def test_labels_that_are_no_tensor_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be a tensor \(B,\), such as torch.tensor"):
        GuidedField(Toy(), labels)


def test_an_eps_network_cannot_begin_at_pure_noise(x):
    words = "nothing of x_0 at t = 1.*begin the grid below 1"
    field = GuidedField(Always("eps"), LABELS, [noise_awareness(1.0)])
    with pytest.raises(ValueError, match=words):
        field(x, 1.0)
    with pytest.raises(ValueError, match=words):
        field(x, torch.linspace(0.5, 1.0, len(x)))
    assert field(x, 0.99).isfinite().all()
    second = GuidedField(Always("v"), LABELS, [autoguidance(1.5, Always("eps"))])
    with pytest.raises(ValueError, match=words):
        second(x, 1.0)
    assert GuidedField(Always("x0"), LABELS)(x, 1.0).isfinite().all()


@pytest.mark.parametrize("form", [lambda out: (out,), lambda out: SimpleNamespace(sample=out)])
def test_what_a_network_returns_may_have_any_usual_form(x, form):
    net, wrapped = Toy(), Toy()
    wrapped.__class__ = type("Wrapped", (Toy,), {"__call__": lambda *a: form(Toy.__call__(*a))})
    terms = [noise_awareness(1.0)]
    assert torch.equal(GuidedField(wrapped, LABELS, terms)(x, T), guided(terms, x, net))


class Always(Toy):
    """It says its state, whatever it predicts."""

    def __call__(self, x, t, y, drop_noise):
        return x


def small(**changes):
    return DiT(ModelConfig(input_size=8, width=32, depth=1, heads=2, classes=4, **changes)).eval()


def test_another_network_of_fewer_classes_or_another_size_is_refused():
    """Its row for no class would silently be taken for a class."""
    guided, few = small(), DiT(small().config.model_copy(update={"classes": 2})).eval()
    with pytest.raises(
        ValueError, match="autoguidance: its network has 2 classes, so that label 2"
    ):
        GuidedField(guided, torch.tensor([0, 2]), [autoguidance(2.0, few)])
    field = GuidedField(guided, torch.tensor([0, 1]), [autoguidance(2.0, few)])
    assert field(torch.randn(2, 1, 8, 8), 0.5).shape == (2, 1, 8, 8)
    assert GuidedField(guided, torch.tensor([3]), [domain(2.0, few)])  # asked without a class
    large = DiT(guided.config.model_copy(update={"input_size": 16}))
    with pytest.raises(
        ValueError, match=r"is for \(channels, size\) \(1, 16\), the guided one for"
    ):
        GuidedField(guided, torch.tensor([0]), [autoguidance(2.0, large)])


def test_no_class_needs_its_row_for_the_label_as_well():
    with pytest.raises(ValueError, match="no row for no class .*leave null_class out"):
        GuidedField(small(null_class=False), torch.tensor([4]), null_class=True)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), lambda t: float("nan")])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(ValueError, match="nag: its weight.* is (nan|inf)"):
        noise_awareness(weight).at(0.5)


def test_a_single_term_needs_no_list():
    field = GuidedField(small(), torch.tensor([1]), noise_awareness(1.0))
    field(torch.randn(1, 1, 8, 8), 0.5)
    assert field.nfe == 2
