"""The flow's mathematics, at random weights: at initialisation it is the identity."""

import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

import a3_nf_template as nf
from a3.importance import Estimate, importance_sampled_nll
from a3_nf_template import Coupling, Flow, Model, get_mask, log_prior, sample_prior
from datasets import Split
from made_up import grey, seeded


def randomised(module: nn.Module, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Give all layers, the last ones too, random weights, in float64."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=scale / part.in_features**0.5)
            nn.init.normal_(part.bias, std=scale)
    return module.double().eval()


def small_mask(dimensions: int = 6) -> torch.Tensor:
    return (torch.arange(dimensions) % 2 == 0).double()[None]


class SmallFlow(nn.Module):
    """The script's couplings in few dimensions."""

    def __init__(self, dimensions: int = 6, n_flows: int = 2):
        super().__init__()
        mask = small_mask(dimensions)
        self.layers = nn.ModuleList(
            Coupling(dimensions, one, 16) for _ in range(n_flows) for one in (mask, 1 - mask))

    forward = Flow.forward


def small_model(dimensions: int = 6, scale: float = 0.3) -> Model:
    model = Model(n_hidden=4)
    model.flow = SmallFlow(dimensions)
    model.flow.z_shape = (dimensions,)
    return randomised(model, scale)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def zeros(batch: int) -> torch.Tensor:
    return torch.zeros(batch, dtype=torch.float64)


def logdet(function, x: torch.Tensor) -> torch.Tensor:
    """Log |det| of the Jacobian of each row's map, by autograd."""
    return torch.stack([
        torch.autograd.functional.jacobian(lambda r: function(r[None])[0], row).slogdet()[1]
        for row in x])


# Inverses and log-determinants -------------------------------------------------------------------

MAPS = {
    "coupling": lambda: randomised(Coupling(6, small_mask(), 16)),
    "flow": lambda: randomised(SmallFlow()),
    "logit": lambda: Model(n_hidden=4).double().logit_normalize,
}


def points(name: str, batch: int = 5) -> torch.Tensor:
    torch.manual_seed(1)
    x = torch.randn(batch, 6, dtype=torch.float64)
    return torch.rand_like(x) * 256 if name == "logit" else x


@pytest.mark.parametrize("name", MAPS)
def test_reverse_of_forward_is_the_identity_both_ways(name):
    function, x = MAPS[name](), points(name)
    z, ldj = function(x, zeros(5))
    assert (z - x).abs().max() > 0.01, "the map must not be the identity"
    assert ldj.abs().max() > 0.01, "nor must it keep the volume"
    back, left = function(z, ldj, reverse=True)
    assert (back - x).abs().max() < 1e-9 * max(1, x.abs().max()), (back - x).abs().max()
    assert left.abs().max() < 1e-9, left

    start = torch.randn(5, 6, dtype=torch.float64)
    x, ldj = function(start, zeros(5), reverse=True)
    again, left = function(x, ldj)
    assert (again - start).abs().max() < 1e-9 and left.abs().max() < 1e-9


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("reverse", [False, True])
def test_ldj_is_the_slogdet_of_the_autograd_jacobian(name, reverse):
    function = MAPS[name]()
    x = points("any" if reverse else name)
    _, ldj = function(x, zeros(5), reverse)
    expected = logdet(lambda r: function(r, zeros(1), reverse)[0], x)
    assert torch.allclose(ldj, expected, atol=1e-9), (ldj, expected)


def test_ldj_adds_to_what_came_in_and_changes_no_input():
    coupling, x, ldj = MAPS["coupling"](), points("any"), torch.arange(5.0).double()
    before = x.clone(), ldj.clone()
    _, out = coupling(x, ldj)
    _, fresh = coupling(x, zeros(5))
    assert torch.allclose(out, ldj + fresh)
    assert torch.equal(x, before[0]) and torch.equal(ldj, before[1])


def test_a_coupling_keeps_where_the_mask_is_1_and_changes_the_rest():
    for mask in (small_mask(), 1 - small_mask()):
        x = points("any")
        z, _ = randomised(Coupling(6, mask, 16))(x, zeros(5))
        kept = mask[0].bool()
        assert torch.equal(z[:, kept], x[:, kept])
        assert (z[:, ~kept] != x[:, ~kept]).all()


def test_the_half_size_coupling_equals_a_masked_full_one_of_the_same_weights():
    """The template's form: y = b x + (1 - b) (x exp(s(b x)) + t(b x))."""
    mask, x = small_mask(), points("any")
    coupling = randomised(Coupling(6, mask, 16))
    kept, changed = mask[0].bool(), ~mask[0].bool()
    first, last = coupling.nn[0], coupling.nn[-1]
    full_in = torch.zeros(16, 6).double()
    full_in[:, kept] = first.weight.detach()
    hidden = coupling.nn[1:-1]((mask * x) @ full_in.T + first.bias)
    s, t = torch.zeros(5, 6).double(), torch.zeros(5, 6).double()
    out = last(hidden)
    s[:, changed], t[:, changed] = torch.tanh(out[:, :3]), out[:, 3:]
    expected = mask * x + (1 - mask) * (x * s.exp() + t)
    z, ldj = coupling(x, zeros(5))
    assert torch.allclose(z, expected, atol=1e-12)
    assert torch.allclose(ldj, ((1 - mask) * s).sum(1), atol=1e-12)


def test_an_extreme_pixel_moves_no_other_far_and_is_still_inverted():
    coupling, x = MAPS["coupling"](), points("any")
    x[:, 0] = 1e6
    z, ldj = coupling(x, zeros(5))
    assert torch.equal(z[:, 0], x[:, 0]) and z[:, 1:].abs().max() < 100
    back, left = coupling(z, ldj, reverse=True)
    assert (back - x).abs().max() < 1e-9 and left.abs().max() < 1e-9
    expected = logdet(lambda r: coupling(r, zeros(1))[0], x)
    assert torch.allclose(ldj, expected, atol=1e-9)


def test_the_flow_starts_as_the_identity_and_its_masks_alternate():
    flow, x = Flow((784,), n_flows=2, n_hidden=8), torch.randn(3, 784)
    z, ldj = flow(x, torch.zeros(3))
    assert torch.equal(z, x) and torch.equal(ldj, torch.zeros(3))
    for one, other in zip(flow.layers[:-1], flow.layers[1:], strict=True):
        assert torch.equal(one.kept, other.changed) and torch.equal(one.changed, other.kept)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_flow_is_its_couplings_one_after_the_other(reverse):
    flow, z, ldj = randomised(SmallFlow()), points("any"), torch.randn(5).double()
    expected = z, ldj
    for layer in reversed(flow.layers) if reverse else flow.layers:
        expected = layer(*expected, reverse)
    assert all(map(torch.equal, flow(z, ldj, reverse), expected))


def test_the_mask_is_a_checkerboard():
    mask = get_mask()
    assert mask.shape == (1, 784)
    board = mask.reshape(28, 28)
    assert board[0, 0] == 1 and (board[1:] + board[:-1] == 1).all()
    assert (board[:, 1:] + board[:, :-1] == 1).all()


def test_log_p_is_the_prior_plus_every_log_determinant():
    """The change of variables for the whole model, from the image to z."""
    model, x = small_model(), torch.randint(0, 256, (5, 6)).double()

    def f(y: torch.Tensor) -> torch.Tensor:
        return model.flow(*model.logit_normalize(y, zeros(len(y))))[0]

    y = model.dequantize(x, noise())
    expected = Normal(0.0, 1.0).log_prob(f(y)).sum(1) + logdet(f, y)
    log_p = model(x, noise())
    assert torch.allclose(log_p, expected, atol=1e-6), (log_p, expected)
    assert torch.equal(model.encode(x, noise())[0], f(y))


# Densities -------------------------------------------------------------------------------------

def test_log_prior_is_elementwise_standard_normal():
    x = torch.randn(3, 5, dtype=torch.float64)
    assert torch.allclose(log_prior(x), Normal(0, 1).log_prob(x).double(), atol=1e-12)


def test_a_two_dimensional_density_integrates_to_1():
    flow = randomised(SmallFlow(dimensions=2), scale=1.0)
    line = torch.linspace(-25, 25, 801, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    with torch.no_grad():
        z, ldj = flow(x, zeros(len(x)))
        density = torch.exp(log_prior(z).sum(1) + ldj)
    total = float(density.sum() * (line[1] - line[0]) ** 2)
    assert abs(total - 1) < 1e-3, total


def test_a_discrete_model_of_one_pixel_sums_to_1():
    """P(x) = int_[0,1) p(x + u) du over all 256 values; Gauss-Legendre in each bin."""
    model = Model(n_hidden=4).double()
    nodes, node_weights = np.polynomial.legendre.leggauss(20)
    u = torch.tensor((nodes + 1) / 2)
    x = torch.arange(256).double()[:, None, None]
    y = (x + u[None, :, None]).reshape(-1, 1)
    z, ldj = model.logit_normalize(y, zeros(len(y)))
    # Not the prior of the model: a scale that makes the tails part of the test.
    log_p = (Normal(-1.0, 2.0).log_prob(z).sum(1) + ldj).reshape(256, -1)
    mass = (log_p.exp() @ torch.tensor(node_weights / 2)).sum()
    # What is outside [0, 256): the squeeze leaves alpha / 2 of the unit interval on each side.
    edge = math.log(nf.ALPHA / 2 / (1 - nf.ALPHA / 2))
    outside = Normal(-1.0, 2.0).cdf(torch.tensor(edge).double())
    outside += 1 - Normal(-1.0, 2.0).cdf(torch.tensor(-edge).double())
    assert abs(float(mass + outside) - 1) < 1e-4, (float(mass), float(outside))


def test_a_uniform_model_has_exactly_8_bits_per_dimension(monkeypatch):
    """Under a logistic prior, logit(s) is uniform in s: p(x) = 256^-784, but for alpha."""
    monkeypatch.setattr(
        nf, "log_prior", lambda z: nn.functional.logsigmoid(z) + nn.functional.logsigmoid(-z))
    bits = nf.epoch_iter(Model(n_hidden=4).eval(), grey(20, batch_size=7))
    expected = 8 - math.log2(1 - nf.ALPHA)
    assert abs(bits - expected) < 1e-5, (bits, expected)


def test_dequantization_stays_in_the_bin_and_the_logit_is_finite_at_its_ends():
    model, x = Model(n_hidden=4), torch.tensor([[0.0, 127.0, 255.0]])
    y = torch.cat([model.dequantize(x) for _ in range(1000)])
    assert (y >= x).all() and (y <= x + 1).all() and (y < 256.001).all()
    assert abs(float((y - x).mean()) - 0.5) < 0.03
    z, ldj = model.logit_normalize(torch.tensor([[0.0, 128.0, 256.0]]), torch.zeros(1))
    assert z.isfinite().all() and ldj.isfinite().all()
    assert torch.allclose(z[0, 0], -z[0, 2], rtol=1e-5), z


def test_float32_agrees_with_float64():
    model = randomised(Model(n_flows=2, n_hidden=32))
    x = grey(20).images.double()
    exact, rounded = model(x, noise()), model.float()(x.float(), noise())
    assert torch.allclose(rounded.double(), exact, rtol=1e-5), (rounded, exact)


# Evaluation and contracts ----------------------------------------------------------------------

@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_the_result_does_not_depend_on_the_batch_size(batch_size):
    model = randomised(Model(n_flows=1, n_hidden=16)).float()
    whole = nf.epoch_iter(model, grey(50, batch_size=50))
    parts = nf.epoch_iter(model, grey(50, batch_size=batch_size))
    assert abs(whole - parts) < 1e-5, (whole, parts)


def bound(model: Model, data: Split, draws: int, seed: int = 0) -> Estimate:
    """Return the importance-weighted bound as a run of the script has it."""
    return importance_sampled_nll(partial(model.log_weights, noise=noise(seed)), data, draws,
                                  nf.NLL_CHUNK)


def test_the_importance_weighted_bound_of_one_draw_is_the_plain_one_and_more_draws_tighten_it():
    model = small_model().float()
    data = Split(torch.randint(0, 256, (200, 6)).to(torch.uint8), None, batch_size=200)
    bounds = {draws: bound(model, data, draws).nll for draws in (1, 4, 64)}
    plain = -model(data.images.float(), noise())
    assert torch.allclose(bounds[1], plain.double(), atol=1e-4), (bounds[1], plain)
    means = [bounds[draws].mean().item() for draws in (1, 4, 64)]
    assert means[0] > means[1] > means[2], means
    stream, x = noise(), data.images.float()
    p = torch.stack([model(x, stream).double().exp() for _ in range(4)])
    assert torch.allclose(bounds[4], -p.mean(0).log(), atol=1e-4), (bounds[4], -p.mean(0).log())


def test_log_weights_are_those_of_as_many_noise_draws():
    model, x, stream = small_model(), torch.randint(0, 256, (5, 6)).double(), noise()
    expected = torch.stack([model(x, stream) for _ in range(3)])
    assert torch.equal(model.log_weights(x, 3, noise()), expected)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_importance_weighted_bound_of_other_batches_agrees_within_its_error(batch_size):
    """Other batches mean other noise for an image, but the same for their sum."""
    model = randomised(Model(n_flows=1, n_hidden=16)).float()
    whole, parts = (bound(model, grey(20, batch_size=size), 8) for size in (20, batch_size))
    error = math.hypot(whole.draw_error(), parts.draw_error())
    assert 0 < error < 0.01 * whole.mean(), (error, whole.mean())
    assert abs(whole.mean() - parts.mean()) < 4 * error, (whole.mean(), parts.mean(), error)


def test_samples_are_decoded_standard_normals():
    model = Model(n_flows=1, n_hidden=16)
    z = sample_prior((50, 784), noise())
    assert abs(float(z.std()) - 1) < 0.02 and z.mean().abs() < 0.02
    assert torch.equal(model.sample(50, noise()), model.decode(z))


def test_the_template_interface(tmp_path):
    """The course's names and keywords."""
    mask, z, ldj = get_mask(), torch.randn(2, 784), torch.zeros(2)
    coupling = Coupling(784, mask, n_hidden=16)
    assert torch.equal(coupling.mask, mask) and coupling.n_hidden == 16
    out, change = coupling(z=z, ldj=ldj, reverse=False)
    assert out.shape == (2, 784) and change.shape == (2,)
    out, change = Flow([784], n_hidden=16)(z=z, logdet=ldj, reverse=True)
    assert out.shape == (2, 784) and change.shape == (2,)
    model, x = Model([784], n_hidden=16), grey(5).images.float()
    log_px = model(input=x)
    assert log_px.shape == (5,) and log_px.isfinite().all()
    y = model.dequantize(z=x)
    logits, change = model.logit_normalize(z=y, logdet=torch.zeros(5), reverse=False)
    assert logits.shape == (5, 784) and change.shape == (5,)
    samples = model.sample(n_samples=3)
    assert samples.shape == (3, 784) and samples.min() >= 0 and samples.max() <= 255
    assert torch.equal(samples, samples.floor())
    assert sample_prior(size=(3, 784)).shape == (3, 784) and log_prior(x=z).shape == (2, 784)
    data, optimizer = grey(16, batch_size=8), torch.optim.Adam(model.parameters())
    train_curve, val_curve = zip(*(
        nf.run_epoch(model=model, data=(data, data), optimizer=optimizer) for _ in range(2)),
        strict=True)
    assert math.isfinite(nf.epoch_iter(model=model, data=data, optimizer=optimizer))
    nf.save_bpd_plot(train_curve=train_curve, val_curve=val_curve, filename=tmp_path / "bpd.pdf")
    assert (tmp_path / "bpd.pdf").stat().st_size > 1000


@pytest.mark.parametrize(("part", "name", "size"), [
    (Coupling, "n_hidden", 1024), (Flow, "n_flows", 4), (Model, "n_flows", 4)])
def test_the_sizes_are_those_of_the_template_by_default(part, name, size):
    assert inspect.signature(part).parameters[name].default == size


def test_every_parameter_gets_a_gradient():
    model = randomised(Model(n_flows=2, n_hidden=16)).float()
    model(grey(8).images.float()).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_decoding_a_code_gives_the_image_back():
    model, x = randomised(Model(n_flows=2, n_hidden=16)), grey(5).images.double()
    z, _ = model.encode(x)
    assert torch.equal(model.decode(z), x)


@pytest.mark.parametrize("limit", [1.0, 1e9])
def test_an_update_follows_the_gradient_of_the_mean_loss_up_to_its_limit(limit, monkeypatch):
    monkeypatch.setattr(nf, "MAX_GRADIENT_NORM", limit)
    model, data = randomised(Model(n_flows=1, n_hidden=16)).float().train(), grey(16)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    (-seeded(model, data.images.float()).mean()).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    norm = nn.utils.get_total_norm(gradients)
    assert norm > 2
    seeded(nf.epoch_iter, model, data, torch.optim.SGD(model.parameters(), lr=1.0))
    for old, gradient, new in zip(before, gradients, model.parameters(), strict=True):
        step = gradient * min(1.0, limit / norm)
        assert torch.allclose(old - new, step, rtol=1e-2, atol=1e-3 * step.abs().max().item())


def test_training_lowers_the_loss_on_a_fixed_batch():
    torch.manual_seed(0)
    model, data = Model(n_flows=1, n_hidden=32), grey(32, batch_size=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    curve = [nf.run_epoch(model, (data, data), optimizer)[1] for _ in range(20)]
    assert curve[-1] < curve[0] - 0.1, (curve[0], curve[-1])


def test_training_is_in_half_precision_if_asked_and_validation_never():
    model, data = randomised(Model(n_flows=1, n_hidden=16)).float(), grey(16)
    stands_still = torch.optim.SGD(model.parameters(), lr=0.0)
    half, full = (seeded(nf.run_epoch, model, (data, data), stands_still, bfloat16)
                  for bfloat16 in (True, False))
    assert half[0] != full[0] and abs(half[0] - full[0]) < 0.01 * full[0], (half[0], full[0])
    assert half[1] == full[1] == nf.epoch_iter(model, data), (half[1], full[1])


def test_half_precision_products_leave_the_likelihood_in_float32():
    model = randomised(Model(n_flows=2, n_hidden=32)).float()
    x = grey(8).images.float()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, noise())
    assert half.dtype == torch.float32
    full = model(x, noise())
    assert ((half - full) / full).abs().max() < 0.01, (half, full)
