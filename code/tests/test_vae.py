"""The VAE's mathematics against oracles, closed forms and its own contracts."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

import a3_vae_template as vae
from a3 import checkpoints
from a3.vae_figures import Elbo
from a3_vae_template import VAE, Decoder, Encoder, bernoulli_nll, gaussian_kls
from datasets import bmnist
from made_up import binary, seeded


def zeroed(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


# Known answers ---------------------------------------------------------------------------------

def test_zero_weights_give_exactly_784_ln_2():
    """All Bernoulli means are 1/2 and q(z|x) is the prior."""
    model, data = zeroed(VAE()).double().eval(), binary(30, batch_size=7)
    reconstruction, kl = model.elbo_terms(data.images.double())
    assert torch.allclose(reconstruction, torch.tensor(784 * math.log(2), dtype=torch.float64),
                          rtol=1e-12)
    assert torch.equal(kl, torch.zeros_like(kl))
    elbo = vae.epoch_iter(zeroed(VAE()).eval(), data)
    assert abs(elbo - 784 * math.log(2)) < 1e-3, (elbo, 784 * math.log(2))


def test_kl_is_that_of_torch_distributions():
    mean, log_std = torch.randn(2, 50, 20, dtype=torch.float64)
    q = Independent(Normal(mean, log_std.exp()), 1)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    assert torch.allclose(gaussian_kls(mean, log_std).sum(1), kl_divergence(q, p), rtol=1e-12)


@pytest.mark.parametrize(("mean", "variance", "nats"),
                         [(0, 1, 0), (10, 0.01, 51.8076), (10, 100, 97.1974), (0, 2, 0.1534)])
def test_kl_of_known_gaussians(mean, variance, nats):
    kl = gaussian_kls(torch.tensor([[float(mean)]]), torch.tensor([[math.log(variance) / 2]]))
    assert abs(float(kl) - nats) < 1e-3, (float(kl), nats)


def test_reconstruction_is_the_bernoulli_log_likelihood():
    logits = 5 * torch.randn(50, 784, dtype=torch.float64)
    x = (torch.rand(50, 784) < 0.5).double()
    expected = -Bernoulli(logits=logits).log_prob(x).sum(1)
    assert torch.allclose(bernoulli_nll(logits, x), expected, rtol=1e-12)


def test_reconstruction_is_finite_where_the_mean_rounds_to_0_or_1():
    logits = torch.full((2, 784), 100.0) * torch.tensor([[1.0], [-1.0]])
    nll = bernoulli_nll(logits, torch.ones(2, 784))
    assert torch.allclose(nll, torch.tensor([0.0, 78400.0])), nll


# A linear-Gaussian VAE, whose log p(x) is known --------------------------------------------------

def linear_gaussian_elbo(x, mean, log_std, weight, eps):
    """-ELBO terms of p(x|z) = N(W z, I), p(z) = N(0, I), with the script's own KL."""
    z = mean + log_std.exp() * eps
    nll = 0.5 * ((x - z @ weight.T) ** 2 + math.log(2 * math.pi)).sum(1)
    return nll + gaussian_kls(mean, log_std).sum(1)


def test_elbo_is_a_lower_bound_and_tight_at_the_exact_posterior():
    """W has orthogonal columns, so the exact posterior is a diagonal Gaussian."""
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0] * torch.tensor([2.0, 0.5])
    covariance = weight @ weight.T + torch.eye(6, dtype=torch.float64)
    x = MultivariateNormal(torch.zeros(6).double(), covariance).sample((3,))
    log_px = MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(x)

    precision = 1 + (weight**2).sum(0)
    mean, log_std = x @ weight / precision, -0.5 * precision.log().expand(3, 2)
    noise = torch.randn(2000, 3, 2, dtype=torch.float64)

    def estimate(mean, log_std):
        terms = torch.stack([linear_gaussian_elbo(x, mean, log_std, weight, eps)
                             for eps in noise])
        return terms.mean(0), terms.std(0) / len(terms) ** 0.5

    elbo, error = estimate(mean, log_std)
    assert ((elbo + log_px).abs() < 4 * error).all(), (elbo, -log_px, error)
    for other in ((mean + 0.5, log_std), (mean, log_std + 0.5)):
        loose, error = estimate(*other)
        gap = kl_divergence(Independent(Normal(other[0], other[1].exp()), 1),
                            Independent(Normal(mean, log_std.exp()), 1))
        assert (loose > -log_px).all(), (loose, -log_px)
        assert ((loose + log_px - gap).abs() < 4 * error).all(), (loose + log_px, gap)


# The model itself ------------------------------------------------------------------------------

def codes_of(model: VAE) -> list:
    """Collect every z that the decoder is given."""
    codes = []
    logits = model.decoder.logits
    model.decoder.logits = lambda z: (codes.append(z.detach()), logits(z))[1]
    return codes


def test_z_is_mean_plus_std_times_eps():
    model = zeroed(VAE(z_dim=2))
    with torch.no_grad():
        model.encoder.head.bias.copy_(torch.tensor([3.0, -1.0, math.log(0.5), math.log(2.0)]))
    codes, eps, x = codes_of(model), torch.randn(9, 2), binary(9).images.float()
    reconstruction, kl = model.elbo_terms(x, eps)
    expected = torch.tensor([3.0, -1.0]) + torch.tensor([0.5, 2.0]) * eps
    assert torch.allclose(codes[0], expected)
    mean, std = model.encoder(x)
    assert torch.allclose(std, torch.tensor([0.5, 2.0]).expand(9, 2))
    assert torch.allclose(mean, torch.tensor([3.0, -1.0]).expand(9, 2))
    oracle = kl_divergence(Normal(mean, std), Normal(torch.zeros(2), torch.ones(2))).sum(1)
    assert torch.allclose(kl, oracle, rtol=1e-5)
    assert torch.allclose(reconstruction, torch.tensor(784 * math.log(2)).expand(9), rtol=1e-5)


def test_codes_are_drawn_anew_from_a_standard_normal():
    model = zeroed(VAE(z_dim=2))
    codes = codes_of(model)
    model.elbo_terms(torch.zeros(5000, 784))
    model.sample(5000)
    for z in codes:  # q is the prior at zero weights
        assert z.mean().abs() < 0.05 and abs(z.std() - 1) < 0.05, (z.mean(), z.std())
        assert (z < 0).any()


def test_log_weights_are_the_joint_over_the_posterior():
    model, x = VAE(16, 3).double().eval(), binary(5).images.double()
    n = 4
    with torch.no_grad():
        weights = model.log_weights(x, n, torch.Generator().manual_seed(1))
        mean, std = model.encoder(x)
        eps = torch.randn(n, 5, 3, generator=torch.Generator().manual_seed(1)).double()
        z = mean + std * eps
        expected = (Independent(Bernoulli(logits=model.decoder.logits(z)), 1).log_prob(x)
                    + Normal(0.0, 1.0).log_prob(z).sum(-1)
                    - Normal(mean, std).log_prob(z).sum(-1))
    assert torch.allclose(weights, expected, atol=1e-5), (weights, expected)


def test_the_mean_log_weight_is_the_elbo_and_more_draws_tighten_it():
    torch.manual_seed(0)
    model, x = VAE(16, 3).eval(), binary(5).images.float()
    with torch.no_grad():
        log_w = model.log_weights(x, 4000).double()
        elbo = -sum(model.elbo_terms(x.repeat(4000, 1))).double().reshape(4000, 5).mean(dim=0)
    assert torch.allclose(log_w.mean(dim=0), elbo, atol=0.1), (log_w.mean(0), elbo)
    log_p = log_w.logsumexp(dim=0) - math.log(len(log_w))
    assert (log_p > log_w.mean(dim=0) + 0.01).all()


def test_forward_is_the_mean_of_the_terms():
    model, x = VAE(hidden_dim=30, z_dim=4).eval(), binary(16).images.float()
    torch.manual_seed(0)
    loss = model(x)
    torch.manual_seed(0)
    reconstruction, kl = model.elbo_terms(x)
    assert torch.allclose(loss, (reconstruction + kl).mean())
    assert abs(zeroed(model)(x).item() - 784 * math.log(2)) < 1e-3


def test_an_update_follows_the_gradient_of_the_whole_elbo():
    torch.manual_seed(0)
    model, data = VAE(hidden_dim=30, z_dim=4, dropout=0.0), binary(16, batch_size=16)
    state = torch.get_rng_state()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.train()(data.images.float()).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    torch.set_rng_state(state)
    vae.epoch_iter(model, data, torch.optim.SGD(model.parameters(), lr=0.5))
    for old, gradient, new in zip(before, gradients, model.parameters(), strict=True):
        assert torch.allclose(new, old - 0.5 * gradient, atol=1e-5)


def test_evaluation_drops_no_pixels():
    model, x = VAE(hidden_dim=30, z_dim=4), binary(16).images.float()
    assert not torch.equal(model.train().encoder(x)[0], model.encoder(x)[0])
    assert torch.equal(model.eval().encoder(x)[0], model.encoder(x)[0])
    assert torch.equal(model.code(x), model.encoder(x)[0]), "the code of an image is q's mean"


def test_training_is_in_half_precision_if_asked_and_validation_never():
    model, data = VAE(hidden_dim=30, z_dim=4), binary(16)
    stands_still = torch.optim.SGD(model.parameters(), lr=0.0)
    half, full = (seeded(vae.run_epoch, model, (data, data), stands_still, bfloat16)
                  for bfloat16 in (True, False))
    assert half[0] != full[0] and abs(half[0] - full[0]) < 0.01 * full[0], (half[0], full[0])
    assert half[1] == full[1] == vae.epoch_iter(model, data), (half[1], full[1])


# Contracts -------------------------------------------------------------------------------------

def test_the_template_interface(tmp_path):
    """The course's names and keywords."""
    x = binary(5).images.float()
    mean, std = Encoder(hidden_dim=30, z_dim=4)(input=x)
    assert mean.shape == std.shape == (5, 4) and (std > 0).all()
    means = Decoder(hidden_dim=30, z_dim=4)(input=mean)
    assert means.shape == (5, 784) and means.min() >= 0 and means.max() <= 1
    model = VAE(hidden_dim=30, z_dim=4)
    loss = model(input=x)
    assert loss.shape == () and loss.isfinite()
    samples, im_means = model.sample(n_samples=3)
    assert samples.shape == im_means.shape == (3, 784)
    assert set(samples.unique().tolist()) <= {0.0, 1.0}
    data, optimizer = binary(16, batch_size=8), torch.optim.Adam(model.parameters())
    curves = zip(*(vae.run_epoch(model=model, data=(data, data), optimizer=optimizer)
                   for _ in range(2)), strict=True)
    assert math.isfinite(vae.epoch_iter(model=model, data=data, optimizer=optimizer))
    train_curve, val_curve = curves
    vae.save_elbo_plot(train_curve=train_curve, val_curve=val_curve,
                       filename=tmp_path / "elbo.pdf")
    assert (tmp_path / "elbo.pdf").stat().st_size > 1000


@pytest.mark.parametrize("network", [Encoder, Decoder, VAE])
def test_the_networks_have_the_sizes_of_the_template_by_default(network):
    first = list(inspect.signature(network).parameters.values())[:2]
    assert [(one.name, one.default) for one in first] == [("hidden_dim", 500), ("z_dim", 20)]


def test_std_is_positive_however_negative_its_weights():
    encoder = Encoder(hidden_dim=30, z_dim=4)
    nn.init.constant_(encoder.head.bias, -20)
    assert (encoder(binary(5).images.float())[1] > 0).all()


def test_every_parameter_gets_a_gradient():
    model = VAE(hidden_dim=30, z_dim=4)
    model(binary(8).images.float()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_gradient_passes_through_mean_and_std():
    """Without the reparametrization, only the KL would reach the encoder."""
    model = VAE(hidden_dim=30, z_dim=4)
    reconstruction, _ = model.elbo_terms(binary(8).images.float())
    reconstruction.sum().backward()
    gradient = model.encoder.head.bias.grad
    assert (gradient != 0).all(), gradient


def test_samples_follow_their_means():
    """P(x = 1) = mean, not 1 - mean."""
    model = zeroed(VAE(hidden_dim=30, z_dim=4))
    nn.init.constant_(model.decoder.net[-1].bias, 2.0)
    samples, means = model.sample(100)
    assert abs(float(samples.mean()) - 0.8808) < 0.01, float(samples.mean())
    assert abs(float(means.mean()) - 0.8808) < 1e-3


def test_a_sample_repeats_with_its_generator():
    model = VAE(hidden_dim=30, z_dim=4)
    one, two = (model.sample(3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


# Evaluation ------------------------------------------------------------------------------------

@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_the_result_does_not_depend_on_the_batch_size(batch_size):
    torch.manual_seed(0)
    model = VAE(hidden_dim=30, z_dim=4).eval()
    whole = vae.epoch_iter(model, binary(50, batch_size=50))
    parts = vae.epoch_iter(model, binary(50, batch_size=batch_size))
    assert abs(whole - parts) < 1e-3, (whole, parts)
    assert abs(parts - (parts.reconstruction + parts.kl)) < 1e-6


def test_evaluation_changes_nothing():
    model = VAE(hidden_dim=30, z_dim=4).eval()
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    vae.epoch_iter(model, binary(20))
    assert torch.equal(state, torch.get_rng_state()), "evaluation draws from its own generator"
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None and torch.equal(parameter, old)


def test_training_images_are_also_evaluated_as_validation_is(tmp_path):
    results = vae.main([
        "--dataset", "sample", "--device", "cpu", "--epochs", "1", "--limit", "600",
        "--hidden_dim", "20", "--nll_samples", "2", "--out", str(tmp_path)])
    (checkpoint,) = tmp_path.glob("checkpoints/*/last.pt")
    model = VAE(hidden_dim=20)
    model.load_state_dict(checkpoints.read(checkpoint)["kept"]["model"])
    train, val, _ = bmnist(dataset="sample")
    elbo = float(vae.epoch_iter(model.eval(), train.first(len(val.images))))
    assert abs(results["train_evaluated_elbo_nats"] - elbo) < 1e-3


def test_training_lowers_the_loss_on_a_fixed_batch():
    torch.manual_seed(0)
    model, data = VAE(hidden_dim=50, z_dim=4), binary(64, batch_size=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    curve = [vae.run_epoch(model, (data, data), optimizer)[1] for _ in range(30)]
    assert curve[-1] < curve[0] - 50, (curve[0], curve[-1])


def test_elbo_is_a_float_with_two_terms():
    elbo = Elbo(70.0, 27.5)
    assert elbo == 97.5 and (elbo.reconstruction, elbo.kl) == (70.0, 27.5)
    assert f"{elbo:.1f}" == "97.5"


def test_the_plot_takes_plain_curves(tmp_path):
    vae.save_elbo_plot([543.0, 120.0], [543.0, 118.0], tmp_path / "elbo.pdf")
    assert (tmp_path / "elbo.pdf").stat().st_size > 1000
