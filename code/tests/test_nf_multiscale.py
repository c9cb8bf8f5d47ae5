"""The multi-scale flow's mathematics at random weights: a distribution, and an invertible map."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest

import a3_nf_template as nf
import nf_multiscale as ms
from made_up import grey
from nf_multiscale import Cells, Layer, Model, Pixels

STRANGE = 0.4  # how far random weights are from the untrained ones


def randomised(scale: float = STRANGE) -> Model:
    torch.manual_seed(0)
    model = Model(embedding=2).double().eval()
    for part in model.parameters():
        part.data += scale * torch.randn_like(part) / max(part[0].numel(), 1) ** 0.5
    return model


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Let networks be small."""
    for name, value in (("WIDTH", 8), ("HEADS", 2), ("LAYERS", 2), ("CHANNELS", 6), ("BLOCKS", 1)):
        monkeypatch.setattr(ms, name, value)


@pytest.fixture
def toy(monkeypatch) -> Model:
    """Return a model of images of 4 x 4 pixels with three grey levels."""
    monkeypatch.setattr(ms, "SIDE", 4)
    monkeypatch.setattr(ms, "LEVELS", 3)
    return randomised(1.0)


def order(model: Model) -> torch.Tensor:
    """Return all pixels in the order in which the groups draw them."""
    return torch.cat([model.cells.flatten(), model.fine[1:].flatten()])


def images(number: int) -> torch.Tensor:
    """Return images like digits, a fifth of them ink, and the two extremes."""
    x = grey(number).images.double()
    x = x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2)
    x[0], x[1] = 0, 255
    return x


# A distribution ----------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("first", [0, 7])
def test_probabilities_of_all_images_sum_to_one(toy, first):
    """Of nine pixels, whatever the pixels before them are; the later ones do not matter."""
    places = order(toy)
    torch.manual_seed(1)
    x = torch.randint(0, 3, (1, 16)).expand(3**9, 16).clone()
    here = places[first : first + 9]
    x[:, here] = torch.tensor(list(itertools.product(range(3), repeat=9)))
    log_p = toy.log_probs(x)[:, here].sum(dim=1)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_p.std() > 0.1, "the model is uniform, which would hide mistakes"


@torch.no_grad()
def test_forward_is_the_sum_over_pixels(toy):
    x = torch.randint(0, 3, (5, 16))
    assert torch.equal(toy(x), toy.log_probs(x).sum(dim=1))


def test_groups_draw_each_pixel_once_and_refine_grids():
    model = Model()
    assert order(model).sort().values.tolist() == list(range(784))
    assert (model.cells.shape, model.fine.shape) == ((49, 4), (4, 196))
    assert model.cells[8].tolist() == [28 * 4 + 4, 28 * 6 + 6, 28 * 4 + 6, 28 * 6 + 4]
    # Once the lower right pixels are there, those of the last two groups have all neighbours.
    known = model.fine[:2].flatten()
    for pixel in model.fine[2:].flatten().tolist():
        row, column = divmod(pixel, 28)
        beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        assert all(28 * i + j in known for i, j in beside if i in range(28) and j in range(28))


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 20, 21, 22, 23, 100, 195, 196, 392, 588])
def test_a_pixel_depends_on_those_before_it_alone(first):
    """On the 14 x 14 grid pixel by pixel; afterwards group by group."""
    model = randomised()
    places, x = order(model), images(3)
    y = x.clone()
    y[:, places[first:]] = 255 - x[:, places[first:]]
    before, after = (model.log_probs(one)[:, places] for one in (x, y))
    assert torch.allclose(before[:, :first], after[:, :first], rtol=1e-12)
    assert not torch.allclose(before[:, first:], after[:, first:])


@torch.no_grad()
def test_all_pixels_before_a_group_are_read():
    """Where they are, not only which levels they have: two pixels exchange theirs."""
    model = randomised()
    places, x = order(model), images(3)[2:]
    for last, later in ((3, slice(4, 8)), (191, slice(192, 196)), (195, slice(196, 392)),
                        (391, slice(392, 588)), (587, slice(588, 784))):
        pair = places[[last - 1, last]]
        x[:, pair], y = torch.tensor([100.0, 200.0]).double(), x.clone()
        y[:, pair] = x[:, pair.flip(0)]
        moved = (model.log_probs(x) - model.log_probs(y))[:, places[later]].abs() > 1e-12
        assert moved.any(), last


@torch.no_grad()
def test_an_untrained_model_knows_the_training_images_levels():
    """Its code length is nearly the entropy of a pixel, far below the 8 bits of a uniform one."""
    x = images(40)
    torch.manual_seed(0)
    model = Model().double().eval()
    model.start_at(x)
    counts = torch.bincount(x.long().flatten(), minlength=256) + 1.0
    entropy = -(counts / counts.sum()).log()[x.long()].mean().item()
    assert -model.log_probs(x).mean().item() == pytest.approx(entropy, rel=0.05)
    assert entropy < 2.5


@torch.no_grad()
def test_levels_shown_before_a_group_or_cell_raise_their_logits():
    model, x = randomised(), images(3).long()
    groups = [*model.cells.T, *model.fine[1:]]
    repeats = [*model.repeat, *(step.repeat for step in model.steps)]
    found = []

    def couple(pixels, h, bias, indices):
        found.append(bias)
        return x[:, indices]

    model.scan(couple, len(x), x)
    before = model.cells[:30].flatten()  # the 31st cell
    for i, (repeat, bias) in enumerate(zip(repeats, found, strict=True)):
        if i >= 4:
            before = torch.cat(groups[:i])
        counts = torch.stack([torch.bincount(one[before], minlength=256) for one in x])
        expected = repeat * (counts[:, 1:] + 1.0).log()
        assert torch.allclose(bias[:, 30 if i < 4 else 0], expected), i
        assert expected.std() > 0


# An invertible map -------------------------------------------------------------------------------

@torch.no_grad()
def test_decode_inverts_encode_whatever_the_noise():
    model = randomised()
    x = images(6)
    for seed in range(2):
        z, _ = model.encode(x, torch.Generator().manual_seed(seed))
        assert torch.isfinite(z).all()
        assert torch.equal(model.decode(z), x)
    assert not torch.equal(z, model.encode(x, torch.Generator().manual_seed(0))[0])


@torch.no_grad()
def test_encode_inverts_decode_within_a_grey_level():
    """The code of a decoded image lies in the same bin: with its noise it would be the same."""
    model = randomised()
    z = torch.randn(4, 784, generator=torch.Generator().manual_seed(0)).double()
    x = model.decode(z)
    below, above = (model.encode_at(x.long(), torch.full(x.shape, u, dtype=torch.float64))
                    for u in (1e-9, 1 - 1e-9))
    assert ((below <= z + 1e-6) & (z <= above + 1e-6)).all()


def test_the_log_determinant_is_that_of_the_jacobian(toy):
    """Of z as a function of x + u: within a bin, by autograd through the noise."""
    pixels = toy.steps[-1].pixels
    h, bias = torch.randn(1, 6, ms.CHANNELS).double(), torch.randn(1, 6, 2).double()
    x = torch.tensor([[0, 1, 2, 2, 0, 1]])
    u = torch.rand(1, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda u: pixels.encode(h, bias, x, u).flatten(), u).reshape(6, 6)
    z = pixels.encode(h, bias, x, u)
    expected = pixels.log_prob(h, bias, x) - nf.log_prior(z)
    assert torch.allclose(jacobian.diag().log(), expected.flatten(), atol=1e-9)
    assert torch.equal(jacobian, jacobian.diag().diag())


@torch.no_grad()
def test_the_density_of_a_code_is_its_images_probability():
    model = randomised()
    x = images(4)
    z, ldj = model.encode(x)
    assert torch.allclose(nf.log_prior(z).sum(dim=1) + ldj, model(x).double(), rtol=1e-12)


@torch.no_grad()
def test_codes_of_the_models_own_samples_are_standard_normal():
    model = randomised()
    x = model.sample(40, torch.Generator().manual_seed(0))
    z, _ = model.encode(x, torch.Generator().manual_seed(1))
    assert kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    own, _ = model.encode(images(40), torch.Generator().manual_seed(1))
    assert kstest(own.flatten().numpy(), "norm").pvalue < 1e-6, "anything would pass"


@torch.no_grad()
def test_samples_have_the_models_frequencies(toy):
    n = 20_000
    x = toy.sample(n, torch.Generator().manual_seed(0)).long()
    everything = torch.tensor(list(itertools.product(range(3), repeat=4)))
    first = order(toy)[:4]
    images_ = torch.zeros(len(everything), 16, dtype=torch.long)
    images_[:, first] = everything
    p = toy.log_probs(images_)[:, first].sum(dim=1).exp()
    weights = torch.tensor([27, 9, 3, 1])
    seen = torch.bincount((x[:, first] * weights).sum(dim=1), minlength=81) / n
    assert ((seen - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


@torch.no_grad()
def test_far_tails_stay_finite():
    pixels = Pixels(4).double()
    pixels.ink.weight.zero_()
    pixels.levels.bias.copy_(torch.linspace(-300, 300, 255))
    h, bias = torch.zeros(1, 3, 4).double(), torch.zeros(1, 1, 255).double()
    x = torch.tensor([[0, 1, 255]])
    for ink in (-200.0, 200.0):
        pixels.ink.bias.fill_(ink)
        assert torch.isfinite(pixels.log_prob(h, bias, x)).all()
        for u in (0.0, 1.0):
            assert torch.isfinite(pixels.encode(h, bias, x, torch.full((1, 3), u))).all()
    for z in (-50.0, 50.0):
        found = pixels.decode(h, bias, torch.full((1, 3), z))
        assert ((found >= 0) & (found <= 255)).all()


# Parts -------------------------------------------------------------------------------------------

@torch.no_grad()
def test_a_layer_attends_as_the_library_does():
    torch.manual_seed(0)
    layer, h, seen = Layer(8).double(), torch.randn(2, 5, 8).double(), []
    layer.mix = torch.nn.Identity()
    layer.think = torch.nn.Identity()
    layer.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer(h, [])
    parts = layer.queries_keys_values(layer.attention_norm(h)).view(2, 5, 3, ms.HEADS, -1)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.allclose(seen[0] - h, expected.transpose(1, 2).flatten(2))


@torch.no_grad()
def test_cells_one_after_another_are_those_of_one_pass():
    """With the keys and values of the cells before; and each is read by all later ones."""
    torch.manual_seed(0)
    cells = Cells(2).double()
    for part in cells.parameters():
        part.add_(torch.randn_like(part), alpha=0.3)
    near, seen = torch.randn(2, 49, 80).double(), torch.rand(2, 49, 256).double()
    together = cells(near, seen, torch.arange(49), [[], []])
    past = [[], []]
    alone = [cells(near[:, [i]], seen[:, [i]], torch.tensor([i]), past) for i in range(49)]
    assert torch.allclose(torch.cat(alone, dim=1), together, atol=1e-12)
    near[:, 5] += 1
    moved = (cells(near, seen, torch.arange(49), [[], []]) - together).abs().amax(dim=(0, 2))
    assert torch.equal(moved > 1e-9, torch.arange(49) >= 5)


def test_the_cells_read_directly_are_near_and_before():
    near = ms.cells_near()
    assert near.shape == (49, 10)
    assert near[0].tolist() == [49] * 10
    assert near[24].tolist() == [24 + 7 * down + right for down, right in ms.NEAR]
    assert near[13].tolist().count(49) == 5, "nothing wraps around the edges"
    assert ((near < torch.arange(49)[:, None]) | (near == 49)).all()


def test_pixels_probabilities_sum_to_one():
    torch.manual_seed(0)
    pixels = Pixels(4).double()
    torch.nn.init.normal_(pixels.levels.weight)
    h, bias = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 255).double()
    p = torch.stack([pixels.log_prob(h, bias, torch.full((2, 3), k)).exp() for k in range(256)])
    assert torch.allclose(p.sum(dim=0), torch.ones(2, 3).double())
    assert p.std() > 0.01


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = Model().train()
    for part in model.parameters():  # layers that start at zero would hide those before them
        part.data += 0.05 * torch.randn_like(part)
    model(images(4).float()).sum().backward()
    silent = [name for name, part in model.named_parameters() if not part.grad.any()]
    assert not silent, silent
    assert model.embed.weight.grad[ms.LEVELS].any(), "what is outside has a code of its own"


@torch.no_grad()
def test_spent_bits_are_those_of_the_average_loss():
    model, data = randomised().float(), grey(50, batch_size=20)
    bits, by_region = ms.spent_bits(model.log_probs, data)
    expected = nf.epoch_iter(model, data)
    assert bits.mean().item() == pytest.approx(expected, rel=1e-6)
    assert sum(by_region.values()) / 784 == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(
        -model(data.images.float()).double().mean().item() / 784 / math.log(2), rel=1e-5)


def test_training_on_a_batch_lowers_the_loss():
    torch.manual_seed(0)
    model, x = Model(), images(8).float()
    model.start_at(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = -model(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
