"""The variants of the VAE: the plain one at the defaults, densities of flows, flags and epochs."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

import a3_vae_template as vae
import vae_variants as variants
from a3 import vae_monitors
from a3 import vae_objectives as objectives
from datasets import RandomShift, Source, mnist
from made_up import SMOKE, binary, seeded
from vae_variants import VariantRun, VariantVAE


@pytest.fixture
def x() -> torch.Tensor:
    return binary(6).images.float()


def model(z_dim: int = 4, **choices) -> VariantVAE:
    torch.manual_seed(0)
    return VariantVAE(16, z_dim, **choices).eval()


def stirred(flow_vae: VariantVAE) -> VariantVAE:
    """Give the flows, which start as the identity, random weights."""
    torch.manual_seed(1)
    for flow in (flow_vae.posterior, flow_vae.prior):
        for part in flow.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
    return flow_vae.double()


# The plain VAE -----------------------------------------------------------------------------------

def test_the_defaults_are_the_plain_vae():
    """The same weights of one seed, the same terms, and after one update the same weights."""
    pairs = [seeded(network, 30, 4) for network in (vae.VAE, VariantVAE)]
    plain, variant = pairs
    assert all(map(torch.equal, plain.state_dict().values(), variant.state_dict().values()))
    assert list(plain.state_dict()) == list(variant.state_dict())
    data, eps = binary(32, batch_size=32), torch.randn(32, 4)
    for mode in (False, True):
        terms = [seeded(one.train(mode).elbo_terms, data.images.float(), eps) for one in pairs]
        assert all(map(torch.equal, *terms)), terms
    losses = [seeded(vae.epoch_iter, one, data, torch.optim.SGD(one.parameters(), lr=1.0))
              for one in pairs]
    assert losses[0] == losses[1], losses
    for (name, one), other in zip(plain.named_parameters(), variant.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() < 1e-6, (name, one.grad, other.grad)
        assert (one - other).abs().max() < 1e-6, (name, one, other)


def test_a_run_of_the_plain_script_can_be_built_and_loaded():
    plain = vae.VAE(20, 3)
    built = variants.build(vars(vae.parse_args(["--hidden_dim", "20", "--zdim", "3"])))
    built.load_state_dict(plain.state_dict())
    assert built.likelihood == "bernoulli" and not built.has_flows


def test_a_flow_of_no_layers_is_the_plain_vae_to_the_last_bit(monkeypatch, x):
    monkeypatch.setattr(variants, "FLOW_COUPLINGS", 0)
    plain, flow = model(), model(posterior="flow", prior="flow")
    flow.load_state_dict(plain.state_dict())
    eps = torch.randn(6, 4)
    assert all(map(torch.equal, plain.terms(x, eps), flow.terms(x, eps)))


# Densities ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("posterior", ["gaussian", "flow"])
def test_the_posterior_of_all_pairs(posterior, x):
    """Its diagonal is log p(z) + log p(x|z) less the log-weight; the rest is of other images."""
    one, x = stirred(model(posterior=posterior)), x.double()
    terms = one.terms(x, torch.randn(6, 4, dtype=torch.float64))
    pairs = one.log_posterior(terms.z[:3], x)
    log_prior = Independent(Normal(torch.zeros(4), torch.ones(4)), 1).log_prob(terms.z)
    of_own = log_prior - terms.reconstruction - terms.log_weight
    assert torch.allclose(pairs.diagonal(), of_own[:3]), (pairs.diagonal(), of_own[:3])
    assert torch.allclose(pairs[:, 1], one.log_posterior(terms.z[:3], x[1:2])[:, 0])
    if posterior == "gaussian":
        q = Independent(Normal(*one.encoder(x)), 1)
        assert torch.allclose(pairs, q.log_prob(terms.z[:3, None]))


@pytest.mark.parametrize("choices", [{"posterior": "flow"}, {"prior": "flow"},
                                     {"posterior": "flow", "prior": "flow"}])
def test_the_densities_of_flows_are_those_of_their_jacobians(choices):
    one, x = stirred(model(**choices)), binary(3).images.double()
    eps = torch.randn(3, 4, dtype=torch.float64)
    mean, log_std, features = one.gaussian(x)
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
            assert abs(terms.kl[i] - (log_q - log_p)) < 1e-9, (terms.kl[i], log_q - log_p)
        else:
            exact = kl_divergence(Normal(mean[i], log_std[i].exp()), Normal(0.0, 1.0)).sum()
            correction = Normal(0.0, 1.0).log_prob(z).sum() - log_p
            assert abs(terms.kl[i] - (exact + correction)) < 1e-9, (terms.kl[i], exact)


def test_a_flow_prior_is_a_density_and_is_sampled_from():
    """Two dimensions: it integrates to 1, and the share of samples in a box is its mass."""
    one = stirred(model(z_dim=2, prior="flow"))
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


def test_codes_come_back_from_the_flows(x):
    one, x = stirred(model(posterior="flow", prior="flow")), x.double()
    with torch.no_grad():
        terms = one.terms(x, torch.zeros(6, 4).double())
        assert torch.allclose(one.decode(one.code(x)), one.decoder(terms.z), atol=1e-9)


def test_the_gaussian_likelihood_is_complete():
    x, logits = torch.rand(3, 784).double(), torch.randn(3, 784).double()
    expected = -Normal(torch.sigmoid(logits), 0.5**0.5).log_prob(x).sum(1)
    nll = variants.gaussian_nll(logits, x)
    assert torch.allclose(nll, expected), (nll, expected)


def test_samples_of_the_gaussian_have_its_variance():
    samples, means = model(likelihood="gaussian").sample(200, torch.Generator().manual_seed(0))
    assert abs((samples - means).var() - 0.5) < 0.01, (samples - means).var()


# Flags -------------------------------------------------------------------------------------------

def dropped_share(one: VariantVAE) -> float:
    """Return the share of pixels that the encoder's first layer does not see in training."""
    layer, seen = next(part for part in one.modules() if isinstance(part, nn.Linear)), []
    with torch.no_grad(), layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        one.train().encoder(torch.ones(200, 784))
    return (seen[0] == 0).double().mean().item()


@pytest.mark.parametrize(("argv", "expected"), [
    ([], 0.2), (["--shift", "1"], 0.0), (["--input_dropout", "0"], 0.0),
    (["--shift", "1", "--input_dropout", "0.1"], 0.1)])
def test_flags_reach_their_dropout(argv, expected):
    dropped = dropped_share(variants.build(vars(variants.parse_args(argv))))
    assert abs(dropped - expected) < 0.01, (dropped, expected)


def test_flags_reach_their_objective(x):
    args = variants.parse_args(["--objective", "free_bits", "--free_bits", "0.1", "--beta", "3"])
    loss, reconstruction, kl = seeded(variants.objective_of(args, 1), model(), x)
    assert torch.allclose(loss, reconstruction + 3 * (kl - 0.1).clamp(0))


@pytest.mark.parametrize(("epoch", "beta"), [(1, 0.0), (3, 1.0), (5, 2.0), (9, 2.0)])
def test_beta_warms_up_in_equal_steps(epoch, beta, x):
    args = variants.parse_args(["--objective", "beta", "--beta", "2", "--beta_warmup", "4"])
    _, reconstruction, kl = seeded(vae.VAE.objective, model(), x)
    loss, *_ = seeded(variants.objective_of(args, epoch), model(), x)
    assert torch.allclose(loss, reconstruction + beta * kl), (loss, reconstruction + beta * kl)


def test_shifted_images_become_fewer_and_end_before_the_training():
    shares = [variants.shift_share(epoch, 40) for epoch in range(1, 41)]
    assert shares[:21] == [1.0] * 21 and abs(shares[28] - 0.5) < 1e-9 and shares[35] > 0
    assert shares[36:] == [0.0] * 4 and shares == sorted(shares, reverse=True)


def test_a_recipe_sets_other_defaults_which_flags_still_change():
    best = variants.parse_args(["--recipe", "best"])
    assert (best.prior, best.shift) == ("flow", 1) and best.zdim > 20
    other = variants.parse_args(["--recipe", "best", "--prior", "gaussian", "--epochs", "3"])
    assert (other.prior, other.epochs, other.zdim) == ("gaussian", 3, best.zdim)
    assert variants.parse_args([]).prior == "gaussian"


@pytest.mark.parametrize(("argv", "message"), [
    (["--objective", "free_bits", "--free_bits", "1", "--per_dimension", "--posterior",
      "flow"],
     "'--per_dimension' needs '--posterior gaussian'"),
    (["--beta", "2"], "'--beta' needs '--objective beta or free_bits', not elbo"),
    (["--objective", "uae", "--free_bits", "3"], "'--free_bits' needs '--objective free_bits'"),
    (["--objective", "beta"], "'--objective beta' needs a '--beta' other than 1"),
    (["--objective", "free_bits"], "'--objective free_bits' needs '--free_bits' above 0"),
    (["--beta", "-1"], "'-1' is not a number from 0 to"),
    (["--prior", "flow", "--zdim", "1"], "a flow needs at least 2 dimensions"),
    (["--likelihood", "gaussian", "--dataset", "bmnist"],
     "'--dataset bmnist' holds binary images; '--likelihood gaussian' needs grey ones")])
def test_flags_that_do_not_fit_are_refused_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        variants.parse_args(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


# Training ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv", [
    ["--objective", "beta", "--beta", "0.5"], ["--objective", "iwae"],
    ["--objective", "free_bits", "--free_bits", "1", "--per_dimension"],
    ["--posterior", "flow", "--prior", "flow"]])
def test_every_objective_trains_every_parameter(argv, x):
    args = variants.parse_args(argv)
    one = model(posterior=args.posterior, prior=args.prior).train()
    loss, *_ = variants.objective_of(args, 1)(one, x)
    loss.mean().backward()
    assert torch.isfinite(loss).all(), loss
    for name, parameter in one.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_what_is_reported_while_another_objective_is_trained_is_the_elbo():
    """In eval mode what is trained does not matter; in training the loss is its own."""
    one, data = model(), binary(16)
    plain = vae.epoch_iter(one, data)
    one.trained = objectives.uae
    assert vae.epoch_iter(one, data) == plain
    loss, reconstruction, _ = one.train().objective(data.images.float())
    assert torch.equal(loss, reconstruction)


def test_an_exploding_gradient_is_shortened_and_a_usual_one_left_alone():
    one = model(prior="flow")
    for size, expected in ((1e6, variants.FLOW_MAX_NORM), (10.0, 10.0)):
        for parameter in one.parameters():
            parameter.grad = torch.randn_like(parameter)
        norm = nn.utils.get_total_norm([p.grad for p in one.parameters()])
        for parameter in one.parameters():
            parameter.grad *= size / norm
        one.clip_gradient()
        left = nn.utils.get_total_norm([p.grad for p in one.parameters()]).item()
        assert math.isclose(left, expected, rel_tol=1e-4), (left, expected)


@pytest.mark.parametrize(("prior", "clipped"), [("flow", 4), ("gaussian", 0)])
def test_every_update_of_a_flow_is_clipped_and_no_other(prior, clipped, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(VariantVAE, "clip_gradient", lambda self: calls.append(1))
    monkeypatch.setattr(vae_monitors, "EXAMINED_CODES", 20)
    variants.main([*SMOKE, "--batch_size", "64", "--epochs", "1", "--out", str(tmp_path),
                   "--hidden_dim", "16", "--nll_samples", "2", "--prior", prior])
    assert len(calls) == clipped, (len(calls), clipped)


def test_draws_that_are_digits_are_clear_and_of_other_images_nothing_is_said(monkeypatch):
    test = mnist(dataset="sample")[2]
    digits, one = test.images / 255, model()
    for means, low, high in ((digits, 0.8, 1), (torch.full_like(digits, 0.5), 0, 0.2)):
        monkeypatch.setattr(VariantVAE, "sample",
                            lambda self, n, noise, means=means: (None, means[:n]))
        judged = variants.judged_samples(one, test)
        assert low <= judged["samples_clear_share"] <= high, judged
        assert judged["classifier"].startswith("binary-")
    test.source = Source("fashion", "", "")
    assert variants.judged_samples(one, test) == {}


def begun(one: VariantVAE, out: Path, *argv: str) -> VariantRun:
    """Return a run of eight epochs that looks at made-up images."""
    args = variants.parse_args(["--epochs", "8", "--device", "cpu", "--out", str(out), *argv])
    run, images = VariantRun("test", args, Source("", "", "")), binary(64)
    run.watch(one, images, images, RandomShift(args.shift) if args.shift else None)
    run.keep(model=one)
    return run


def test_every_epoch_has_its_objective_and_its_share_of_shifts(tmp_path, x):
    one, betas, shares = model(), [], []
    run = begun(one, tmp_path, "--objective", "beta", "--beta_warmup", "4", "--shift", "1")
    for _ in run.epochs():
        loss, reconstruction, kl = seeded(one.trained, one, x)
        betas.append(((loss - reconstruction).sum() / kl.sum()).item())
        shares.append(run.shift.share)
        run.record("a line", val_kl_nats=5.0)
    assert betas[1:] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1], abs=1e-3), betas
    assert shares[1:] == [variants.shift_share(epoch, 8) for epoch in range(1, 9)], shares


def test_a_collapse_is_recorded_in_every_epoch_and_told_at_the_moments(tmp_path, capsys):
    one = model()
    nn.init.zeros_(one.encoder.head.weight)
    nn.init.zeros_(one.encoder.head.bias)  # q(z|x) is the prior for every x
    run = begun(one, tmp_path)
    for _ in run.epochs():
        run.record("a line", val_kl_nats=0.0)
    lines = capsys.readouterr().out.splitlines()
    told = [lines[i - 1].split("]")[0] for i, line in enumerate(lines)
            if vae_monitors.COLLAPSE in line]
    assert told == ["[  2/8", "[  4/8", "[  6/8", "[  8/8"], lines
    assert all(row["val_active_units"] == 0 for row in run.history), run.history
