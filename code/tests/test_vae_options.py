"""Objectives, likelihoods and flows of the VAE: identities with the plain ELBO, closed forms."""


import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

import a3_vae_template as vae
import vae_options as options
from a3_vae_template import VAE
from monitors import log_posterior


def pixels(number: int = 6) -> torch.Tensor:
    torch.manual_seed(3)
    return (torch.rand(number, 784) < 0.2).float()


def model(**choices) -> VAE:
    torch.manual_seed(0)
    return VAE(16, 4, **choices).eval()


def stirred(flow_vae: VAE) -> VAE:
    """Give the flows, which start as the identity, random weights."""
    torch.manual_seed(1)
    for flow in (flow_vae.posterior, flow_vae.prior):
        for part in flow.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
    return flow_vae.double()


def losses(objective, one: VAE, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(7)
    return objective(one, x)


@pytest.mark.parametrize("objective", [options.beta_elbo(1.0), options.free_bits(0.0),
                                       options.free_bits_per_dimension(0.0)])
def test_the_neutral_settings_are_the_plain_elbo(objective):
    one, x = model(), pixels()
    plain, same = losses(options.elbo, one, x), losses(objective, one, x)
    assert all(map(torch.equal, plain[1:], same[1:]))
    if objective.__qualname__.startswith("free_bits_per_dimension"):
        assert torch.allclose(plain[0].mean(), same[0].mean(), rtol=1e-6)
    else:
        assert torch.equal(plain[0], same[0])


def test_a_flow_of_no_layers_is_the_plain_vae_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(vae, "FLOW_COUPLINGS", 0)
    plain, flow, x = model(), model(posterior="flow", prior="flow"), pixels()
    flow.load_state_dict(plain.state_dict())
    eps = torch.randn(6, 4)
    assert all(map(torch.equal, plain.terms(x, eps), flow.terms(x, eps)))


@pytest.mark.parametrize("posterior", ["gaussian", "flow"])
def test_the_posterior_of_all_pairs(posterior):
    """Its diagonal is log p(z) + log p(x|z) less the log-weight; the rest is of other images."""
    one, x = stirred(model(posterior=posterior)), pixels().double()
    terms = one.terms(x, torch.randn(6, 4, dtype=torch.float64))
    pairs = log_posterior(one, terms.z[:3], x)
    log_prior = Independent(Normal(torch.zeros(4), torch.ones(4)), 1).log_prob(terms.z)
    of_own = log_prior - terms.reconstruction - terms.log_weight
    assert torch.allclose(pairs.diagonal(), of_own[:3])
    assert torch.allclose(pairs[:, 1], log_posterior(one, terms.z[:3], x[1:2])[:, 0])
    if posterior == "gaussian":
        q = Independent(Normal(*one.encoder(x)), 1)
        assert torch.allclose(pairs, q.log_prob(terms.z[:3, None]))


def test_what_is_trained_is_what_the_docstring_says_and_what_is_reported_is_the_elbo():
    one, x = model(), pixels()
    _, reconstruction, kl = losses(options.elbo, one, x)
    for objective, expected in ((options.beta_elbo(0.3), reconstruction + 0.3 * kl),
                                (options.free_bits(0.1), reconstruction + (kl - 0.1).clamp(0)),
                                (options.free_bits(0.1, 3.0),
                                 reconstruction + 3 * (kl - 0.1).clamp(0)),
                                (options.uae, reconstruction)):
        loss, *terms = losses(objective, one, x)
        assert torch.allclose(loss, expected)
        assert torch.equal(terms[0], reconstruction) and torch.equal(terms[1], kl)
    kls = one.terms(x, torch.zeros(6, 4)).kls.mean(dim=0)
    bound = kls.sort().values[2].item() * 1.01  # between the third and the fourth
    loss, reconstruction, _ = losses(options.free_bits_per_dimension(bound, 3.0), one, x)
    expected = reconstruction.mean() + 3 * (3 * bound + kls.max())
    assert torch.allclose(loss.mean(), expected)


def test_flags_reach_their_objective_and_their_dropout():
    args = vae.parse_args(["--objective", "free_bits", "--free_bits", "0.1", "--beta", "3"])
    one, x = model(), pixels()
    loss, reconstruction, kl = losses(options.objective_of(args, 1), one, x)
    assert torch.allclose(loss, reconstruction + 3 * (kl - 0.1).clamp(0))
    for argv, dropout in (([], 0.2), (["--shift", "1"], 0.0), (["--input_dropout", "0"], 0.0),
                          (["--shift", "1", "--input_dropout", "0.1"], 0.1)):
        assert options.input_dropout(vae.parse_args(argv)) == dropout


def test_dimensions_below_their_free_bits_get_no_gradient_from_the_kl():
    one, x = model(), pixels()

    def gradient(objective) -> torch.Tensor:
        one.zero_grad()
        losses(objective, one, x)[0].mean().backward()
        return one.encoder.head.weight.grad.clone()

    without_kl, plain = gradient(options.uae), gradient(options.elbo)
    assert torch.allclose(gradient(options.free_bits_per_dimension(1e3)), without_kl)
    assert torch.allclose(gradient(options.free_bits(1e3)), without_kl)
    assert torch.allclose(gradient(options.free_bits_per_dimension(0.0)), plain, atol=1e-7)
    assert not torch.allclose(without_kl, plain, atol=1e-4)


def test_iwae_of_one_draw_is_the_elbo_and_more_draws_tighten_it():
    one, x = model().double(), pixels().double()
    eps = torch.randn(1, 6, 4, dtype=torch.float64)
    terms = one.terms(x, eps)
    one_draw = terms.log_weight[0]
    torch.manual_seed(0)
    averages = [options.iwae(k)(one, x.repeat(300, 1))[0].mean().item() for k in (1, 4, 16)]
    assert averages == sorted(averages, reverse=True) and averages[0] > averages[2] + 1e-3
    elbo = options.elbo(one, x.repeat(2000, 1))[0].mean().item()
    assert abs(averages[0] - elbo) < 0.5, (averages[0], elbo)
    # with the exact KL put in the place of its one-draw estimate, they are one and the same
    mean, log_std, _ = one.encoder.posterior(x)
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
            return vae.Terms(-log_p_x, -log_ratio.squeeze(-1), None,
                             log_p_x + log_ratio.squeeze(-1), z)

    torch.manual_seed(0)
    linear, x = Linear(), torch.randn(5, 2, dtype=torch.float64)
    covariance = torch.outer(linear.w, linear.w) + 0.5 * torch.eye(2).double()
    exact = -torch.distributions.MultivariateNormal(torch.zeros(2).double(),
                                                    covariance).log_prob(x)
    bound, *_ = options.iwae(200_000)(linear, x)
    assert torch.allclose(bound, exact, atol=0.01), (bound, exact)


@pytest.mark.parametrize("choices", [{"posterior": "flow"}, {"prior": "flow"},
                                     {"posterior": "flow", "prior": "flow"}])
def test_the_densities_of_flows_are_those_of_their_jacobians(choices):
    one, x = stirred(model(**choices)), pixels(3).double()
    eps = torch.randn(3, 4, dtype=torch.float64)
    mean, log_std, features = one.encoder.posterior(x)
    terms = one.terms(x, eps)
    for i in range(3):
        def code(e, i=i):
            z_0 = mean[i] + log_std[i].exp() * e
            return one.posterior(z_0[None], features[i:i + 1])[0][0]
        jacobian = torch.autograd.functional.jacobian(code, eps[i])
        log_q = Normal(0.0, 1.0).log_prob(eps[i]).sum() - jacobian.slogdet()[1]
        z = code(eps[i])
        of_prior = torch.autograd.functional.jacobian(lambda row: one.prior(row[None])[0][0], z)
        log_p = Normal(0.0, 1.0).log_prob(one.prior(z[None])[0]).sum() + of_prior.slogdet()[1]
        assert abs(terms.log_weight[i] + terms.reconstruction[i] - (log_p - log_q)) < 1e-9
        if "posterior" in choices:
            assert abs(terms.kl[i] - (log_q - log_p)) < 1e-9
        else:
            exact = kl_divergence(Normal(mean[i], log_std[i].exp()), Normal(0.0, 1.0)).sum()
            correction = Normal(0.0, 1.0).log_prob(z).sum() - log_p
            assert abs(terms.kl[i] - (exact + correction)) < 1e-9


def test_a_flow_prior_is_a_density_and_is_sampled_from():
    """Two dimensions: it integrates to 1, and the share of samples in a box is its mass."""
    torch.manual_seed(0)
    one = stirred(VAE(16, 2, prior="flow").eval())
    with torch.no_grad():
        line = torch.linspace(-12, 12, 321, dtype=torch.float64)
        z = torch.cartesian_prod(line, line)
        u, ldj = one.prior(z)
        density = (Normal(0.0, 1.0).log_prob(u).sum(1) + ldj).exp()
        cell = (line[1] - line[0]) ** 2
        assert abs(density.sum() * cell - 1) < 0.01, density.sum() * cell
        box = (z > 0).all(dim=1)
        drawn = one.prior.inverse(torch.randn(20_000, 2, dtype=torch.float64))[0]
    share, mass = (drawn > 0).all(dim=1).double().mean(), density[box].sum() * cell
    assert abs(share - mass) < 0.015, (share, mass)


def test_the_gaussian_likelihood_is_complete():
    x, logits = torch.rand(3, 784).double(), torch.randn(3, 784).double()
    expected = -Normal(torch.sigmoid(logits), 0.5**0.5).log_prob(x).sum(1)
    assert torch.allclose(options.gaussian_nll(logits, x), expected)


def test_samples_of_the_gaussian_have_its_variance():
    samples, means = model(likelihood="gaussian").sample(200, torch.Generator().manual_seed(0))
    assert abs((samples - means).var() - 0.5) < 0.01


def test_codes_come_back_from_the_flows():
    one, x = stirred(model(posterior="flow", prior="flow")), pixels().double()
    with torch.no_grad():
        terms = one.terms(x, torch.zeros(6, 4).double())
        assert torch.allclose(one.decode(one.code(x)), one.decoder(terms.z), atol=1e-9)


@pytest.mark.parametrize(("epoch", "beta"), [(1, 0.0), (3, 1.0), (5, 2.0), (9, 2.0)])
def test_beta_warms_up_in_equal_steps(epoch, beta):
    args = vae.parse_args(["--objective", "beta", "--beta", "2", "--beta_warmup", "4"])
    one, x = model(), pixels()
    _, reconstruction, kl = losses(options.elbo, one, x)
    loss, *_ = losses(options.objective_of(args, epoch), one, x)
    assert torch.allclose(loss, reconstruction + beta * kl)


@pytest.mark.parametrize(("argv", "message"), [
    (["--objective", "free_bits", "--per_dimension", "--posterior", "flow"],
     "'--per_dimension' needs '--posterior gaussian'"),
    (["--beta", "2"], "'--beta' needs '--objective beta or free_bits', not elbo"),
    (["--objective", "uae", "--free_bits", "3"], "'--free_bits' needs '--objective free_bits'"),
    (["--beta", "-1"], "'-1' is not a number of at least 0"),
    (["--prior", "flow", "--zdim", "1"], "a flow needs at least 2 dimensions")])
def test_flags_that_do_not_fit_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        vae.parse_args(argv)
    assert message in capsys.readouterr().err


def test_every_objective_trains_every_parameter():
    for argv in (["--objective", "beta", "--beta", "0.5"], ["--objective", "iwae"],
                 ["--objective", "free_bits", "--free_bits", "1", "--per_dimension"],
                 ["--posterior", "flow", "--prior", "flow"]):
        args = vae.parse_args(argv)
        one = model(posterior=args.posterior, prior=args.prior).train()
        loss, *_ = options.objective_of(args, 1)(one, pixels())
        loss.mean().backward()
        assert torch.isfinite(loss).all()
        assert all(p.grad is not None for p in one.parameters()), argv


def test_moved_images_become_fewer_and_end_before_the_training():
    shares = [options.shift_share(epoch, 40) for epoch in range(1, 41)]
    assert shares[:21] == [1.0] * 21 and abs(shares[28] - 0.5) < 1e-9 and shares[35] > 0
    assert shares[36:] == [0.0] * 4 and shares == sorted(shares, reverse=True)


def test_a_recipe_sets_other_defaults_which_flags_still_change():
    best = vae.parse_args(["--recipe", "best"])
    assert (best.prior, best.shift) == ("flow", 1) and best.zdim > 20
    other = vae.parse_args(["--recipe", "best", "--prior", "gaussian", "--epochs", "3"])
    assert (other.prior, other.epochs, other.zdim) == ("gaussian", 3, best.zdim)
    assert vae.parse_args([]).prior == "gaussian"
