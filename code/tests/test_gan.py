"""The GAN's losses, steps and judge: known answers, gradients, who changes whom."""

import copy
import math

import pytest
import torch
from torch import nn

import a3_gan_template as gan
import digit_classifier as judge
import gan_losses
from a3_gan_template import Discriminator, Generator
from datasets import Split
from gan_losses import LOSSES
from gan_saturation import saturation


def digits(number: int, **options) -> Split:
    pixels = torch.randint(0, 256, (number, 784), generator=torch.Generator().manual_seed(0))
    return Split(pixels.to(torch.uint8), None, **options)


def players(lr: float = 0.0) -> dict:
    torch.manual_seed(0)
    parts = {"generator": Generator(8), "discriminator": Discriminator()}
    for key, network in (("optimizer_G", "generator"), ("optimizer_D", "discriminator")):
        parts[key] = torch.optim.SGD(parts[network].parameters(), lr=lr)
    return parts


# Known answers ---------------------------------------------------------------------------------

def test_where_d_is_one_half_v_is_minus_log_4():
    undecided = torch.zeros(5, 1)
    assert math.isclose(gan_losses.discriminator_loss(undecided, undecided), math.log(4),
                        rel_tol=1e-6)
    assert math.isclose(gan_losses.nonsaturating_loss(undecided), math.log(2), rel_tol=1e-6)
    assert math.isclose(gan_losses.minimax_loss(undecided), -math.log(2), rel_tol=1e-6)


def test_the_losses_are_those_of_the_probabilities():
    real_a, fake_a = torch.randn(2, 50, 1, dtype=torch.float64)
    real, fake = real_a.sigmoid(), fake_a.sigmoid()
    v = real.log().mean() + (1 - fake).log().mean()
    assert torch.allclose(gan_losses.discriminator_loss(real_a, fake_a), -v)
    assert torch.allclose(gan_losses.nonsaturating_loss(fake_a), -fake.log().mean())
    assert torch.allclose(gan_losses.minimax_loss(fake_a), (1 - fake).log().mean())


@pytest.mark.parametrize(("loss", "d_value", "g_value"), [
    ("hinge", (0 + 2) / 2 + (0.5 + 2) / 2, -(-0.5 + 1) / 2),
    ("least_squares", (1 + 4) / 4 + (0.25 + 1) / 4, (2.25 + 0) / 4),
    ("wasserstein", 0.25 - 0.5, -0.25)])
def test_the_other_losses_by_hand(loss, d_value, g_value):
    real_a, fake_a = torch.tensor([[2.0], [-1.0]]), torch.tensor([[-0.5], [1.0]])
    d_loss, g_loss = LOSSES[loss]
    assert math.isclose(d_loss(real_a, fake_a), d_value, rel_tol=1e-6)
    assert math.isclose(g_loss(fake_a), g_value, rel_tol=1e-6)


@pytest.mark.parametrize("logit", [-20.0, -5.0])
def test_the_minimax_gradient_vanishes_where_d_rejects_and_the_other_does_not(logit):
    a = torch.tensor([[logit]], dtype=torch.float64, requires_grad=True)
    d = torch.sigmoid(a).item()
    (flat,) = torch.autograd.grad(gan_losses.minimax_loss(a), a)
    (steep,) = torch.autograd.grad(gan_losses.nonsaturating_loss(a), a)
    assert math.isclose(flat, -d, rel_tol=1e-9)
    assert math.isclose(steep, d - 1, rel_tol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_finite_at_logits_of_100(loss):
    d_loss, g_loss = LOSSES[loss]
    for a in (torch.full((2, 1), 100.0), torch.full((2, 1), -100.0)):
        assert d_loss(a, a).isfinite() and g_loss(a).isfinite()


def test_the_gradient_penalty_of_a_linear_critic_is_that_of_its_weight():
    critic = nn.Linear(784, 1).double()
    x, fake = torch.randn(2, 5, 784, dtype=torch.float64)
    penalty = gan_losses.gradient_penalty(critic, x, fake)
    norm = critic.weight.detach().norm()
    assert torch.allclose(penalty, (norm - 1) ** 2)
    penalty.backward()
    expected = 2 * (norm - 1) * critic.weight.detach() / norm
    assert torch.allclose(critic.weight.grad, expected)


# Steps -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("loss", LOSSES)
def test_each_network_gets_the_gradient_of_its_own_loss_and_nothing_else(loss):
    """Two updates with learning rate 0: what a step leaves behind must not reach the next."""
    parts, x, z = players(), torch.rand(9, 784) * 2 - 1, torch.randn(9, 8)
    G, D = parts["generator"], parts["discriminator"]  # noqa: N806
    for _ in range(2):
        torch.manual_seed(1)
        gan.update(x, z, D, G, parts["optimizer_G"], parts["optimizer_D"], loss)
    d_loss, g_loss = LOSSES[loss]
    fake = G(z)
    torch.manual_seed(1)
    objective = d_loss(D.logits(x), D.logits(fake.detach()))
    if loss == "wasserstein":
        objective = objective + 10 * gan_losses.gradient_penalty(D.logits, x, fake.detach())
    for own, network in ((objective, D), (g_loss(D.logits(fake)), G)):
        expected = torch.autograd.grad(own, list(network.parameters()), retain_graph=True)
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            assert gradient is not None
            assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_g_moves_by_d_as_it_is_after_its_own_step():
    parts, x, z = players(lr=0.1), torch.rand(9, 784) * 2 - 1, torch.randn(9, 8)
    G, D = copy.deepcopy(parts["generator"]), copy.deepcopy(parts["discriminator"])  # noqa: N806
    gan.update(x, z, parts["discriminator"], parts["generator"], parts["optimizer_G"],
               parts["optimizer_D"], "nonsaturating")
    fake = G(z)
    step_down(D, -(D(x).log().mean() + (1 - D(fake.detach())).log().mean()), 0.1)
    step_down(G, -D(fake).log().mean(), 0.1)
    for ours, theirs in ((parts["generator"], G), (parts["discriminator"], D)):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def step_down(network: nn.Module, loss: torch.Tensor, lr: float) -> None:
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.sub_(lr * gradient)


def test_training_by_the_wrong_objective_would_show():
    """D alone learns to tell; G alone learns to be taken for real."""
    data = digits(64, batch_size=16)
    d_learns, g_learns = players(lr=0.1), players(lr=0.1)
    d_learns["optimizer_G"].param_groups[0]["lr"] = 0.0
    g_learns["optimizer_D"].param_groups[0]["lr"] = 0.0
    for parts, key, up in ((d_learns, "d_accuracy", 1), (g_learns, "d_fake", 1)):
        first = gan.train(data, **parts)[key]
        for _ in range(5):
            last = gan.train(data, **parts)[key]
        assert up * (last - first) > 0.005, (key, first, last)


def test_the_average_follows_the_weights_and_gets_its_own_statistics(tmp_path):
    args = gan.parse_args(["--latent_dim", "8"])
    parts = gan.networks(args, "cpu", 10)
    parts["average"].multi_avg_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    seen = []

    def after_update():
        gan.follow(parts)
        seen.append(parts["generator"].net[0].weight.detach().clone())

    gan.run_epoch((digits(32, batch_size=16), digits(16)), parts, "nonsaturating", True,
                  after_update=after_update)
    average = parts["average"].module
    assert torch.allclose(average.net[0].weight, 0.5 * (seen[0] + seen[1]))
    assert parts["scheduler_G"].last_epoch == 2

    generator = gan.sampler(parts, seed=3)
    z = torch.randn(10_000, 8, generator=gan.random_generator(3, "statistics"))
    before_norm = generator.net[:3](z)  # up to the first batch normalisation
    assert torch.allclose(generator.net[3].running_mean, before_norm.mean(0), atol=1e-4)
    assert generator is average


# Contracts -------------------------------------------------------------------------------------

def test_the_template_interface():
    images = Generator(latent_dim=100)(torch.randn(4, 100))
    assert images.shape == (4, 784) and images.abs().max() <= 1
    probability = Discriminator()(images)
    assert probability.shape == (4, 1)
    assert (probability >= 0).all() and (probability <= 1).all()
    parts = players(lr=1e-3)
    numbers = gan.train(digits(16, batch_size=8), parts["discriminator"], parts["generator"],
                        parts["optimizer_G"], parts["optimizer_D"])
    assert set(numbers) == set(gan.HEALTH) and all(map(math.isfinite, numbers.values()))


def test_every_parameter_gets_a_gradient():
    parts = players(lr=1e-3)
    gan.train(digits(16, batch_size=8), **parts)
    for network in (parts["generator"], parts["discriminator"]):
        for name, parameter in network.named_parameters():
            assert parameter.grad.abs().sum() > 0, name


def test_images_are_moved_in_training_only_each_on_its_own_and_the_gradient_comes_back():
    torch.manual_seed(0)
    shift, x = gan.RandomShift(1), torch.randn(200, 784, requires_grad=True)
    moved = shift.train()(x)
    all_moves = torch.stack([x[:, move] for move in shift.moves])  # (9, 200, 784)
    matches = (all_moves == moved).all(dim=2)
    assert (matches.sum(dim=0) == 1).all() and matches.any(dim=1).all()
    (gradient,) = torch.autograd.grad(moved[:, 14 * 28 + 14].sum(), x)
    assert (gradient.sum(dim=1) == 1).all() and (gradient.argmax(dim=1).unique().numel() == 9)
    assert shift.eval()(x) is x and gan.RandomShift(0).train()(x) is x


def test_an_image_is_the_same_alone_and_in_a_batch():
    G = players()["generator"]  # noqa: N806
    G(torch.randn(50, 8))  # moves the batch statistics
    z = torch.randn(9, 8)
    together = G.decode(z)
    assert torch.allclose(G.decode(z[3:4]), together[3:4], atol=1e-6)
    assert G.training, "and the generator is left in the mode in which it was"


def test_evaluation_does_not_depend_on_the_batch_size():
    parts = players()
    for network in (parts["generator"], parts["discriminator"]):
        for parameter in network.parameters():
            parameter.data.mul_(3)
    one, other = (gan.evaluate(digits(48, batch_size=size), parts["discriminator"],
                               parts["generator"]) for size in (48, 7))
    for key in gan.HEALTH:
        assert abs(one[key] - other[key]) < 1e-5, (key, one[key], other[key])


def test_pixels_are_scaled_to_the_range_of_tanh_and_back():
    x = torch.tensor([0.0, 127.5, 255.0])
    assert gan.scaled(x).tolist() == [-1.0, 0.0, 1.0]
    assert torch.allclose(gan.grey(gan.scaled(x)), x / 255)


def test_d_wins_against_a_generator_that_stands_still_and_only_one_gradient_survives():
    torch.manual_seed(0)
    new = gan.networks(gan.parse_args(["--recipe", "template"]), "cpu", updates=1)
    before = copy.deepcopy(new["generator"].state_dict())
    batches = gan.scaled(torch.randint(0, 256, (60 * 64, 784)).float()).split(64)
    curves = saturation(new["generator"], new["discriminator"], new["optimizer_D"], batches)
    assert len(curves["minimax"]) == 60 and curves["d_fake"][-1] < 0.1 * curves["d_fake"][0]
    assert curves["minimax"][-1] < 0.1 * curves["nonsaturating"][-1]
    assert all(torch.equal(value, new["generator"].state_dict()[key])
               for key, value in before.items() if key.endswith("weight"))


# The judge -------------------------------------------------------------------------------------

def test_a_damaged_classifier_is_refused(tmp_path):
    (tmp_path / "digit-classifier-sample.pt").write_bytes(b"damaged")
    with pytest.raises(judge.RunError, match="delete it"):
        judge.trained_classifier(None, "sample", "cpu", tmp_path)
