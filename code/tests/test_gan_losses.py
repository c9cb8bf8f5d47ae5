"""The GAN's objectives: known answers, closed forms, gradients where D rejects."""

import math

import pytest
import torch
from torch import nn

from a3 import gan_losses
from a3.gan_losses import LOSSES


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


@pytest.mark.parametrize("loss", LOSSES)
def test_at_rest_d_does_its_best_against_images_that_are_like_the_real_ones(loss):
    """D then gives both the same score; all scores that are as good are tried."""
    d_loss, g_loss = LOSSES[loss]
    scores = torch.arange(-300, 301, dtype=torch.float64)[:, None] / 100
    values = torch.stack([d_loss(a, a) for a in scores])
    best, value = scores[values < values.min() + 1e-9], values.min().item()
    others = None, None
    if len(best) == 1:
        others = g_loss(best).item(), gan_losses.output(loss, best).item()
    assert gan_losses.AT_REST[loss] == pytest.approx((value, *others), abs=1e-9)


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


def test_the_gradient_penalty_is_taken_between_the_images_each_at_a_point_of_its_own():
    """Of a quadratic critic the gradient is the image: here t e_1, t the share on the way."""
    x, fake = torch.zeros(4000, 784), torch.eye(784)[:1].expand(4000, -1)
    seen = []
    penalty = gan_losses.gradient_penalty(
        lambda y: (seen.append(y.detach()), 0.5 * (y**2).sum(dim=1, keepdim=True))[1], x, fake)
    share = seen[0][:, 0]
    assert torch.equal(seen[0][:, 1:], x[:, 1:]) and share.unique().numel() > 3900
    for moment in (1, 2):  # uniform on [0, 1)
        assert abs((share**moment).mean() - 1 / (moment + 1)) < 0.03
    assert torch.allclose(penalty, ((share - 1) ** 2).mean())


def test_r1_of_a_linear_critic_is_half_its_squared_weight_and_pulls_it_to_zero():
    critic = nn.Linear(784, 1).double()
    penalty = gan_losses.r1_penalty(critic, torch.randn(5, 784, dtype=torch.float64))
    weight = critic.weight.detach()
    assert torch.allclose(penalty, 0.5 * (weight**2).sum())
    penalty.backward()
    assert torch.allclose(critic.weight.grad, weight)


def test_r1_is_taken_at_real_images():
    """Of a quadratic critic the gradient is the image itself."""
    x = torch.randn(6, 784, dtype=torch.float64)
    penalty = gan_losses.r1_penalty(lambda y: 0.5 * (y**2).sum(dim=1, keepdim=True), x)
    assert torch.allclose(penalty, 0.5 * (x**2).sum(dim=1).mean())


@pytest.mark.parametrize(("loss", "r1_weight"), [("hinge", 0.0), ("hinge", 0.3),
                                                 ("wasserstein", 0.0), ("wasserstein", 0.3)])
def test_penalties_are_those_of_the_objective(loss, r1_weight):
    critic = nn.Linear(784, 1).double()
    x, fake = torch.randn(2, 5, 784, dtype=torch.float64)
    norm = critic.weight.detach().norm()
    expected = 10 * (norm - 1) ** 2 * (loss == "wasserstein") + r1_weight * norm**2 / 2
    found = torch.as_tensor(gan_losses.penalties(loss, critic, x, fake, r1_weight)).detach()
    assert math.isclose(float(found), float(expected), rel_tol=1e-9, abs_tol=1e-12)


# Minibatch deviation -----------------------------------------------------------------------------

def test_the_deviation_of_a_known_batch():
    """Two features with deviations 1 and 3 in the first group, 0 and 2 in the second."""
    h = torch.tensor([[1.0, 0.0], [3.0, 6.0], [5.0, 1.0], [5.0, 5.0]])
    seen = gan_losses.MinibatchDeviation(2)(h)
    assert torch.equal(seen[:, :2], h)
    assert torch.allclose(seen[:, 2], torch.tensor([2.0, 2.0, 1.0, 1.0]), atol=1e-4)


def test_copies_have_no_deviation_and_without_a_group_nothing_changes():
    h = torch.randn(1, 7).expand(8, 7)
    assert gan_losses.MinibatchDeviation(4)(h)[:, 7].max() < 2e-4
    assert gan_losses.MinibatchDeviation(0)(h) is h


def test_an_incomplete_batch_is_one_group_and_stacked_batches_stay_apart():
    h = torch.randn(2, 6, 5)
    seen = gan_losses.MinibatchDeviation(4)(h)
    for part, one in zip(seen, h, strict=True):
        expected = one.std(dim=0, correction=0).mean()
        assert torch.allclose(part[:, 5], expected.expand(6), atol=1e-5)
    assert not torch.allclose(seen[0, 0, 5], seen[1, 0, 5])


def test_the_deviation_in_bfloat16_is_computed_in_float32():
    h = 100 + torch.randn(16, 64)
    seen = gan_losses.MinibatchDeviation(16)(h.bfloat16())
    expected = h.bfloat16().float().std(dim=0, correction=0).mean()
    assert seen.dtype == torch.bfloat16 and abs(seen[0, -1] - expected) < 0.01 * expected
