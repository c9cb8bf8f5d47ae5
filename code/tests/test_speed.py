"""The faster parts of an update have the values, or the distribution, of the plain ones."""

import pytest
import torch
import torch.nn.functional as F

from a3.speed import Dropout, binary_cross_entropy
from made_up import seeded

LOGITS = torch.cat((torch.tensor([0.0, 1e-30, 1e-8, 5.0, 16.0, 17.0, 30.0, 87.0, 88.5, 104.0,
                                  1e4, 1e30]), torch.linspace(0, 20, 2000)))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-7), (torch.float64, 1e-15)])
@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_cross_entropy_and_its_gradient_are_exact_for_any_logit(x, dtype, rounding):
    logits = torch.cat((LOGITS, -LOGITS)).to(dtype).requires_grad_()
    weight = torch.linspace(-1, 2, len(logits), dtype=dtype)
    loss = binary_cross_entropy(logits, torch.full_like(logits, x))
    (weight * loss).sum().backward()
    exact = logits.detach().double()
    zero = torch.zeros_like(exact)
    for ours, expected in (
            (loss, x * torch.logaddexp(zero, -exact) + (1 - x) * torch.logaddexp(zero, exact)),
            (logits.grad, weight * (torch.sigmoid(exact) - x))):
        assert ours.dtype == dtype
        difference = (ours - expected).abs() / expected.abs().clamp(min=1)
        assert difference.max() <= rounding, (exact[difference.argmax()], difference.max())


def test_cross_entropy_takes_several_codes_of_an_image():
    logits, x = seeded(torch.randn, 3, 5, 7), (torch.rand(5, 7) < 0.5).float()
    leaf = logits.clone().requires_grad_()
    loss = binary_cross_entropy(leaf, x)
    loss.sum().backward()
    expected = F.binary_cross_entropy_with_logits(logits, x.expand(3, 5, 7), reduction="none")
    assert torch.allclose(loss, expected, atol=1e-6)
    assert torch.allclose(leaf.grad, logits.sigmoid() - x, atol=1e-7)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share_independently_and_keeps_the_expectation(p):
    """Each count is binomial: within 5 of its standard deviations."""
    n = 1_000_000
    kept = seeded(Dropout(p), torch.ones(n)) > 0
    shares = {"all": kept, "both neighbours": kept[1:] & kept[:-1],
              "both words": kept[4:] & kept[:-4], **{f"place {i}": kept[i::4] for i in range(4)}}
    for name, one in shares.items():
        expected = (1 - p) ** (2 if "both" in name else 1)
        error = (one.double().mean() - expected).abs()
        assert error < 5 * (expected * (1 - expected) * 2 / len(one)) ** 0.5, (name, error)
    values = seeded(Dropout(p), torch.ones(n)).unique()
    assert values[0] == 0 and len(values) == 2
    assert abs(values[1] * round((1 - p) * 2**16) / 2**16 - 1) < 1e-6


def test_dropout_passes_the_gradient_of_what_it_keeps():
    x = seeded(torch.randn, 3, 5, 7).requires_grad_()
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert y.shape == x.shape and torch.allclose(x.grad * x, y)
    assert 0 < (y == 0).sum() < y.numel()


@pytest.mark.parametrize(("p", "mode"), [(0.0, True), (0.4, False)])
def test_dropout_leaves_the_input_alone_where_it_drops_nothing(p, mode):
    x = torch.randn(50)
    assert torch.equal(Dropout(p).train(mode)(x), x)


def test_dropout_of_everything_leaves_nothing():
    assert not Dropout(1.0)(torch.ones(50)).any()
