"""The objectives of the VAE: identities with the plain ELBO, closed forms, an exact likelihood."""

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from a3 import vae_objectives as objectives
from a3_vae_template import VAE
from made_up import binary, seeded
from vae_variants import Terms, VariantVAE


@pytest.fixture
def x() -> torch.Tensor:
    return binary(6).images.float()


@pytest.fixture
def one() -> VariantVAE:
    torch.manual_seed(0)
    return VariantVAE(16, 4).eval()


@pytest.mark.parametrize("objective", [objectives.beta_elbo(1.0), objectives.free_bits(0.0)])
def test_the_neutral_settings_are_the_plain_elbo(objective, one, x):
    plain, same = seeded(VAE.objective, one, x), seeded(objective, one, x)
    assert all(map(torch.equal, plain, same)), (plain, same)


def test_no_free_bits_in_any_dimension_are_the_plain_elbo_of_the_batch(one, x):
    plain = seeded(VAE.objective, one, x)
    same = seeded(objectives.free_bits_per_dimension(0.0), one, x)
    assert torch.allclose(plain[0].mean(), same[0].mean(), rtol=1e-6), (plain[0], same[0])
    assert all(map(torch.equal, plain[1:], same[1:])), (plain, same)


def test_what_is_trained_is_what_the_docstring_says_and_what_is_reported_is_the_elbo(one, x):
    _, reconstruction, kl = seeded(VAE.objective, one, x)
    for objective, expected in (
            (objectives.beta_elbo(0.3), reconstruction + 0.3 * kl),
            (objectives.free_bits(0.1), reconstruction + (kl - 0.1).clamp(0)),
            (objectives.free_bits(0.1, 3.0), reconstruction + 3 * (kl - 0.1).clamp(0)),
            (objectives.uae, reconstruction)):
        loss, *terms = seeded(objective, one, x)
        assert torch.allclose(loss, expected), (loss, expected)
        assert torch.equal(terms[0], reconstruction) and torch.equal(terms[1], kl)


def test_free_bits_in_every_dimension_bound_the_kl_averaged_over_the_batch(one, x):
    kls = one.terms(x, torch.zeros(6, 4)).kls.mean(dim=0)
    bound = kls.sort().values[2].item() * 1.01  # between the third and the fourth
    objective = objectives.free_bits_per_dimension(bound, 3.0)
    loss, reconstruction, _ = seeded(objective, one, x)
    expected = reconstruction.mean() + 3 * (3 * bound + kls.max())
    assert torch.allclose(loss.mean(), expected), (loss.mean(), expected)


def test_dimensions_below_their_free_bits_get_no_gradient_from_the_kl(one, x):
    def gradient(objective) -> torch.Tensor:
        one.zero_grad()
        seeded(objective, one, x)[0].mean().backward()
        return one.encoder.head.weight.grad.clone()

    without_kl, plain = gradient(objectives.uae), gradient(VAE.objective)
    assert torch.allclose(gradient(objectives.free_bits_per_dimension(1e3)), without_kl)
    assert torch.allclose(gradient(objectives.free_bits(1e3)), without_kl)
    assert torch.allclose(gradient(objectives.free_bits_per_dimension(0.0)), plain, atol=1e-7)
    assert not torch.allclose(without_kl, plain, atol=1e-4)


def test_iwae_of_one_draw_is_the_elbo_and_more_draws_tighten_it(one, x):
    one, x = one.double(), x.double()
    eps = torch.randn(1, 6, 4, dtype=torch.float64)
    terms = one.terms(x, eps)
    one_draw = terms.log_weight[0]
    torch.manual_seed(0)
    averages = [objectives.iwae(k)(one, x.repeat(300, 1))[0].mean().item() for k in (1, 4, 16)]
    assert averages == sorted(averages, reverse=True) and averages[0] > averages[2] + 1e-3
    elbo = VAE.objective(one, x.repeat(2000, 1))[0].mean().item()
    assert abs(averages[0] - elbo) < 0.5, (averages[0], elbo)
    # with the exact KL put in the place of its one-draw estimate, they are one and the same
    mean, log_std = one.encoder.posterior(x)
    q, z = Normal(mean, log_std.exp()), mean + log_std.exp() * eps[0]
    drawn_kl = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    assert torch.allclose(-one_draw, terms.reconstruction[0] + drawn_kl)


def test_iwae_reaches_the_exact_likelihood_of_a_linear_gaussian_model():
    class Linear:
        """X|z ~ N(w z, I / 2), two pixels, z ~ N(0, 1), q = N(0.3 x_1, 0.8^2)."""

        z_dim, w = 1, torch.tensor([0.7, -0.4], dtype=torch.float64)

        def terms(self, x, eps):
            eps, mean = eps.double(), 0.3 * x[:, :1]
            z = mean + 0.8 * eps
            log_p_x = Independent(Normal(z * self.w, 0.5**0.5), 1).log_prob(x)
            log_ratio = Normal(0.0, 1.0).log_prob(z) - Normal(mean, 0.8).log_prob(z)
            return Terms(-log_p_x, -log_ratio.squeeze(-1), None,
                         log_p_x + log_ratio.squeeze(-1), z)

    torch.manual_seed(0)
    linear, x = Linear(), torch.randn(5, 2, dtype=torch.float64)
    covariance = torch.outer(linear.w, linear.w) + 0.5 * torch.eye(2).double()
    exact = -MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(x)
    bound, *_ = objectives.iwae(200_000)(linear, x)
    assert torch.allclose(bound, exact, atol=0.01), (bound, exact)
