"""Importance sampling against a model whose likelihood is known."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from a3.importance import Estimate, importance_sampled_nll

W = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]], dtype=torch.float64)  # x = W z + noise
STD = 0.6
EXACT = MultivariateNormal(torch.zeros(3).double(), W @ W.T + STD**2 * torch.eye(3).double())
X = EXACT.sample((64,))


def log_weights(x: torch.Tensor, n: int) -> torch.Tensor:
    """Of the linear-Gaussian model, with a q that is not the posterior."""
    posterior_mean = x @ W @ torch.linalg.inv(W.T @ W + STD**2 * torch.eye(2).double())
    q = Normal(0.8 * posterior_mean, 0.7)
    z = q.sample((n,))
    log_joint = (Normal(z @ W.T, STD).log_prob(x).sum(-1)
                 + Normal(torch.zeros(2).double(), 1.0).log_prob(z).sum(-1))
    return log_joint - q.log_prob(z).sum(-1)


@pytest.mark.parametrize(("draws", "chunk"), [(3000, 3000), (3001, 1000), (3000, 7)])
def test_many_draws_give_the_exact_likelihood_within_the_stated_error(draws, chunk):
    torch.manual_seed(0)
    estimate = importance_sampled_nll(log_weights, X.split(10), draws, chunk)
    error, exact = estimate.draw_error(), -EXACT.log_prob(X).mean().item()
    assert 0 < error < 0.01
    assert abs(estimate.mean() - exact) < 4 * error, (estimate.mean(), exact, error)


def test_the_draws_are_as_many_as_asked_for():
    for draws, chunk in ((10, 3), (10, 10), (10, 100)):
        drawn = []
        importance_sampled_nll(
            lambda x, n, drawn=drawn: (drawn.append(n), torch.zeros(n, len(x)))[1],
            [X[:5]], draws, chunk)
        assert sum(drawn) == draws and max(drawn) <= chunk


def test_the_stated_error_is_the_deviation_of_repeated_estimates():
    torch.manual_seed(0)
    estimates = [importance_sampled_nll(log_weights, [X], 400, 400) for _ in range(60)]
    deviation = torch.tensor([one.mean() for one in estimates]).std().item()
    stated = sum(one.draw_error() for one in estimates) / 60
    assert 0.7 < stated / deviation < 1.4, (stated, deviation)


def test_more_draws_never_loosen_the_bound_and_equal_weights_leave_no_error():
    torch.manual_seed(0)
    bounds = [importance_sampled_nll(log_weights, [X.repeat(200, 1)], k, k).mean()
              for k in (1, 4, 16, 64)]
    assert bounds == sorted(bounds, reverse=True), bounds
    constant = importance_sampled_nll(lambda x, n: torch.full((n, len(x)), -3.0), [X], 5, 2)
    assert math.isclose(constant.mean(), 3) and constant.draw_error() < 1e-9


def test_the_stated_error_holds_where_one_weight_carries_the_sum():
    """Log weights of deviation 10: the delta method would state far too little."""
    torch.manual_seed(0)
    x = torch.zeros(2000, 1)
    estimates = [importance_sampled_nll(lambda x, n: 10 * torch.randn(n, len(x)), [x], 16, 5)
                 for _ in range(40)]
    deviation = torch.tensor([one.mean() for one in estimates]).std().item()
    stated = sum(one.draw_error() for one in estimates) / 40
    assert 0.6 < stated / deviation < 1.3, (stated, deviation)
    assert deviation > 3 * math.sqrt((1 - 1 / 16) / 2000)  # the most that the delta method gives


def test_the_fall_by_the_last_doubling_is_that_from_half_the_draws():
    """Weights 1 and 3, and again: half of the draws are all 1 or all 3."""
    weights = torch.tensor([1.0, 3.0, 1.0, 3.0]).log()[:, None]
    estimate = importance_sampled_nll(lambda x, n: weights, [torch.zeros(1, 2)], 4, 4)
    assert math.isclose(estimate.doubling(), math.log(2) - math.log(3) / 2, rel_tol=1e-6)
    alone = importance_sampled_nll(lambda x, n: weights[:1], [torch.zeros(1, 2)], 1, 4)
    assert alone.doubling() is None


def test_one_draw_has_no_stated_error():
    estimate = importance_sampled_nll(log_weights, [X], 1, 10)
    assert math.isfinite(estimate.mean()) and estimate.draw_error() is None
    assert importance_sampled_nll(log_weights, [X], 2, 1).draw_error() > 0


def test_the_errors_of_an_average_are_those_of_its_parts():
    estimate = Estimate(torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 4.0, 2.0, 2.0]),
                        torch.tensor([2.0, 2.0, 4.0, 6.0]))
    assert estimate.mean() == 3.0
    assert estimate.doubling() == 0.5
    assert estimate.draw_error() == 3 / 4  # the root of the sum of the variances, over N
    assert math.isclose(estimate.image_error(), (14 / 3 / 4) ** 0.5, rel_tol=1e-6)


def test_weights_of_any_size_are_finite():
    for shift in (-1e5, 1e5):
        estimate = importance_sampled_nll(
            lambda x, n, shift=shift: log_weights(x, n) + shift, [X], 10, 5)
        assert math.isfinite(estimate.mean()) and math.isfinite(estimate.draw_error())


def test_estimates_are_given_in_both_units():
    unit = 784 * math.log(2)
    nll = torch.full((4,), 3 * unit, dtype=torch.float64)
    row = Estimate(nll, torch.ones(4).double(), nll + 0.25).numbers("test_nll", 5, unit)
    assert math.isclose(row["test_nll_nats"], 3 * unit)
    assert math.isclose(row["test_nll_bits_per_dim"], 3)
    assert math.isclose(row["test_nll_draw_error_nats"], 0.5)
    assert math.isclose(row["test_nll_doubling_nats"], 0.25)
    assert row["test_nll_image_error_nats"] < 1e-9 and row["test_nll_draws"] == 5


def test_the_weights_are_computed_in_bfloat16_where_that_is_asked_for():
    layer, x = torch.nn.Linear(64, 1), torch.randn(50, 64)
    seen = []

    def weights(x: torch.Tensor, n: int) -> torch.Tensor:
        product = layer(x)
        seen.append(product.dtype)
        return product.float().T.expand(n, -1)

    exact, rounded = (importance_sampled_nll(weights, [x], 2, 2, bfloat16).nll
                      for bfloat16 in (False, True))
    assert seen == [torch.float32, torch.bfloat16]
    assert exact.dtype == rounded.dtype == torch.float64
    assert 0 < (exact - rounded).abs().max() < 0.05
