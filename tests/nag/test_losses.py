"""The denoising loss asks what the formulas say, with both dropouts at their rates."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nag.interpolant import add_noise, velocity_target
from nag.losses import condition_losses, denoising_loss, noise_condition_dropout

pytestmark = pytest.mark.usefixtures("on_cpu")


def test_noise_condition_dropout_drops_at_its_rate():
    for p in (0.0, 0.1, 1.0):
        drop = noise_condition_dropout(40_000, p, torch.Generator().manual_seed(0))
        assert drop.dtype == torch.bool and drop.shape == (40_000,)
        assert drop.float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / 40_000) ** 0.5)


class Recorder(nn.Module):
    """A network that keeps what it is asked and answers with `answer(x, t)`."""

    def __init__(self, answer=lambda x, t: torch.zeros_like(x), path="linear"):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.zeros(())), answer
        self.config = SimpleNamespace(classes=10, path=path, prediction="v", learn_sigma=False)

    def forward(self, x, t, y, drop_noise):
        self.x, self.t, self.y, self.drop = x, t, y, drop_noise
        return self.answer(x, t.view(-1, 1, 1, 1)) + self.weight


N = 20_000


def ask(class_dropout, noise_dropout, net=None, images=None):
    net, images = net or Recorder(), torch.zeros(N, 1, 1, 1) if images is None else images
    labels = torch.arange(len(images)) % 10
    value = denoising_loss(images, labels, class_dropout, noise_dropout)(
        net, torch.arange(len(images)), torch.Generator().manual_seed(0)
    )
    return net, labels, value


def test_the_two_dropouts_have_their_rates_and_are_independent():
    net, labels, _ = ask(0.2, 0.1)
    no_class, no_noise = (net.y == 10), net.drop
    assert torch.equal(net.y[~no_class], labels[~no_class])
    for event, p in ((no_class, 0.2), (no_noise, 0.1), (no_class & no_noise, 0.02)):
        assert abs(event.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / N)
    columns = torch.stack(
        [
            no_class.double(),
            no_noise.double(),
            net.t.double(),
            net.x.flatten().double() / net.t.double(),
        ]
    )
    assert (torch.corrcoef(columns) - torch.eye(4)).abs().max() < 4 / math.sqrt(N)


@pytest.mark.parametrize("p, share", [(0.0, 0.0), (1.0, 1.0)])
def test_dropout_can_be_never_or_always(p, share):
    net, _, _ = ask(p, 1 - p)
    assert (net.y == 10).double().mean() == share and net.drop.double().mean() == 1 - share


def test_time_is_uniform_and_states_are_the_forward_process():
    net, _, _ = ask(0.0, 0.0, images=torch.full((N, 1, 1, 1), 3.0))
    t, x = net.t.double(), net.x.flatten().double()
    quantiles = torch.quantile(t, torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    assert_close(
        quantiles, torch.linspace(0.1, 0.9, 9, dtype=torch.float64), rtol=0, atol=2 / math.sqrt(N)
    )
    eps = (x - (1 - t) * 3) / t
    assert abs(eps.mean()) < 4 / math.sqrt(N) and abs(eps.var() - 1) < 4 * math.sqrt(2 / N)


def test_input_perturbation_widens_the_states_noise_and_nothing_else():
    """DDPM-IP: x_t = alpha x_0 + sigma (eps + gamma xi), of variance sigma^2 (1 + gamma^2) for
    black images; target of eps.
    """
    gamma, images, index = 0.5, torch.zeros(N, 1, 1, 1), torch.arange(N)
    plain, perturbed = Recorder(), Recorder()
    for net, strength in ((plain, {}), (perturbed, {"input_perturbation": gamma})):
        value = denoising_loss(images, index % 10, 0.2, 0.1, **strength)(
            net, index, torch.Generator().manual_seed(0)
        )
        assert value.item() == pytest.approx(
            1, abs=4 * math.sqrt(2 / N)
        )  # the target is v = eps, unperturbed
    for name in ("t", "y", "drop"):
        assert torch.equal(getattr(plain, name), getattr(perturbed, name))
    t = plain.t.double()
    eps, noise = (net.x.flatten().double() / t for net in (plain, perturbed))
    assert noise.var().item() == pytest.approx(1 + gamma**2, rel=4 * math.sqrt(2 / N))
    xi = (noise - eps) / gamma
    assert xi.var().item() == pytest.approx(1, rel=4 * math.sqrt(2 / N))
    assert (torch.corrcoef(torch.stack([xi, eps, t])) - torch.eye(3)).abs().max() < 4 / math.sqrt(N)


def test_a_negative_input_perturbation_is_refused():
    with pytest.raises(ValueError, match="input_perturbation -0.1 is negative"):
        denoising_loss(torch.zeros(1, 1, 1, 1), torch.zeros(1), 0.1, 0.1, input_perturbation=-0.1)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_loss_is_zero_for_the_true_velocity_and_its_variance_for_silence(path):
    def truth(x, t):  # the data is the constant 2, so x and t tell eps
        angle = t * math.pi / 2
        if path == "linear":
            return (x - (1 - t) * 2) / t - 2
        return (
            -math.pi / 2 * angle.sin() * 2
            + math.pi / 2 * angle.cos() * (x - angle.cos() * 2) / angle.sin()
        )

    images = torch.full((N, 1, 1, 1), 2.0)
    _, _, exact = ask(0.1, 0.1, Recorder(truth, path), images)
    _, _, silent = ask(0.1, 0.1, Recorder(path=path), images)
    # E v^2: 2^2 + 1 on the straight path; (pi/2)^2 (4 E sin^2 + E cos^2) with both means 1/2 on the
    # cosine path
    energy = 5.0 if path == "linear" else (math.pi / 2) ** 2 * 2.5
    assert exact < 1e-4 and silent.item() == pytest.approx(energy, rel=0.05)


def test_condition_losses_asks_each_way_with_the_same_noise():
    asked = []

    class Net(Recorder):
        def forward(self, x, t, y, drop_noise):
            asked.append((bool((y == 10).all()), bool(drop_noise.all()), bool(drop_noise.any())))
            return (
                torch.zeros_like(x)
                + 2.0 * (y == 10).view(-1, 1, 1, 1)
                + 4.0 * drop_noise.view(-1, 1, 1, 1)
            )

    images = torch.zeros(4000, 1, 2, 2)  # so v = eps, of unit energy and mean 0 at every t
    table = condition_losses(Net(), images, torch.arange(4000) % 10, seed=0, bins=4, batch=1500)
    assert list(table["neither"]) == [
        "0.00 to 0.25",
        "0.25 to 0.50",
        "0.50 to 0.75",
        "0.75 to 1.00",
    ]
    assert asked == [
        (c, n, n)
        for c, n in ((False, False), (True, False), (False, True), (True, True))
        for _ in range(3)
    ]
    for name, offset in {
        "class and noise level": 0,
        "noise level only": 2,
        "class only": 4,
        "neither": 6,
    }.items():
        for value in table[name].values():
            assert value == pytest.approx(1 + offset**2, abs=0.1 + 0.1 * offset)
    # the noise is the same, so (eps - 2)^2 + (eps - 4)^2 - eps^2 - (eps - 6)^2 = -16 holds to
    # rounding
    for k in table["neither"]:
        combination = table["noise level only"][k] + table["class only"][k] - table["neither"][k]
        assert combination - table["class and noise level"][k] == pytest.approx(-16, abs=1e-3)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_the_loss_trains_what_the_network_predicts(prediction):
    """Of the constant data 2, x and t tell the noise: a network that answers in its own terms is
    perfect.
    """
    net = Recorder(
        {"eps": lambda x, t: (x - (1 - t) * 2) / t, "x0": lambda x, t: torch.full_like(x, 2.0)}[
            prediction
        ]
    )
    net.config.prediction = prediction
    _, _, value = ask(0.0, 0.0, net, torch.full((100, 1, 1, 1), 2.0))
    assert value < 1e-6


@pytest.mark.parametrize("labels", [[1, 10], [-1, 0], [255, 3]])
def test_labels_that_are_no_classes_are_refused(labels):
    """1 to 10 for ten classes: 10 would silently mean no class."""
    images, labels = torch.zeros(2, 1, 1, 1), torch.tensor(labels)
    words = f"labels {labels.min()} to {labels.max()} for a network of 10 classes: .* 0 to 9"
    loss = denoising_loss(images, labels, 0.1, 0.1)
    with pytest.raises(ValueError, match=words):  # also where the batch holds none of them
        loss(Recorder(), labels.abs().argmin()[None], torch.Generator())
    with pytest.raises(ValueError, match=words):
        condition_losses(Recorder(), images, labels, 0)


def test_classes_are_not_dropped_without_a_row_for_none(tiny):
    net = tiny(null_class=False)
    images, labels = torch.zeros(2, 1, 8, 8), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="no row for no class .*class dropout 0"):
        denoising_loss(images, labels, 0.1, 0.1)(net, torch.arange(2), torch.Generator())
    assert denoising_loss(images, labels, 0.0, 0.1)(net, torch.arange(2), torch.Generator()) > 0
    with pytest.raises(ValueError, match="no row for no class"):
        condition_losses(net, images, labels, 0)


def test_recorder_and_interpolant_agree():
    """The closed forms above restate the path; this ties them to the package's."""
    x0, eps, t = torch.full((2, 1, 1, 1), 2.0), torch.randn(2, 1, 1, 1), torch.tensor([0.2, 0.9])
    x, s = add_noise(x0, eps, t), t.view(-1, 1, 1, 1)
    assert_close((x - (1 - s) * 2) / s - 2, velocity_target(x0, eps, t), rtol=1e-4, atol=1e-5)


def test_labels_that_the_network_or_the_images_do_not_have_are_refused():
    images, gen = torch.zeros(20, 1, 1, 1), torch.Generator().manual_seed(0)
    labels = torch.arange(20) % 10
    late = labels.clone()
    late[19] = 10  # of an image that this batch does not have
    for bad in (labels + 1, labels - 1, late):
        with pytest.raises(ValueError, match="for a network of 10 classes"):
            denoising_loss(images, bad, 0.1, 0.1)(Recorder(), torch.arange(4), gen)
        with pytest.raises(ValueError, match="for a network of 10 classes"):
            condition_losses(Recorder(), images, bad, 0)
    with pytest.raises(ValueError, match="20 images and 19 labels"):
        denoising_loss(images, labels[:19], 0.1, 0.1)


def test_probabilities_bytes_and_lists():
    images, labels = torch.randn(4, 1, 8, 8), [0, 1, 2, 3]
    for dropouts in ((10, 0.1), (0.1, 10), (-0.1, 0.1), (0.1, float("nan"))):
        with pytest.raises(
            ValueError, match="is no probability: give 0 to 1, such as 0.1 for 10 %"
        ):
            denoising_loss(images, labels, *dropouts)
    with pytest.raises(ValueError, match="is no probability"):
        noise_condition_dropout(4, 10, torch.Generator())
    with pytest.raises(ValueError, match="images are torch.uint8: give floats"):
        denoising_loss(images.byte(), labels, 0.1, 0.1)
    with pytest.raises(ValueError, match="no labels"):
        denoising_loss(images[:0], [], 0.1, 0.1)
    same = [denoising_loss(x, y, 0.1, 0.1).made_of() for x, y in ((images, labels),) * 2]
    other = denoising_loss(images, labels[::-1], 0.1, 0.1).made_of()
    assert same[0] == same[1] != other
