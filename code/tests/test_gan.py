"""The GAN's steps: gradients, who changes whom, the average of G's weights, contracts."""

import copy
import inspect
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import a3_gan_template as gan
from a3 import gan_figures, gan_losses
from a3.gan_losses import LOSSES
from a3.runs import Run, one_cycle, random_stream
from a3_gan_template import GAN, Discriminator, Generator
from datasets import RandomShift, Source
from made_up import grey, seeded


def players(lr: float = 0.0) -> dict:
    torch.manual_seed(0)
    parts = {"generator": Generator(8), "discriminator": Discriminator()}
    for key, network in (("optimizer_G", "generator"), ("optimizer_D", "discriminator")):
        parts[key] = torch.optim.SGD(parts[network].parameters(), lr=lr)
    return parts


def pixels(number: int, **options):
    """Return made-up images in the range of tanh."""
    return grey(number, transform=gan.scaled, **options)


# Steps -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("loss", LOSSES)
def test_each_network_gets_the_gradient_of_its_own_loss_and_nothing_else(loss):
    """Two updates with learning rate 0: what a step leaves behind must not reach the next."""
    parts, x, z = players(), torch.rand(9, 784) * 2 - 1, torch.randn(9, 8)
    G, D = parts["generator"], parts["discriminator"]  # noqa: N806
    for _ in range(2):
        torch.manual_seed(1)
        gan.update(x, z, **parts, loss=loss)
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
    gan.update(x, z, **parts, loss="nonsaturating")
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
    data = pixels(64, batch_size=16)
    d_learns, g_learns = players(lr=0.1), players(lr=0.1)
    d_learns["optimizer_G"].param_groups[0]["lr"] = 0.0
    g_learns["optimizer_D"].param_groups[0]["lr"] = 0.0
    for parts, key in ((d_learns, "d_accuracy"), (g_learns, "d_fake")):
        first = gan.train(data, **parts)[key]
        for _ in range(5):
            last = gan.train(data, **parts)[key]
        assert last - first > 0.005, (key, first, last)


@pytest.mark.parametrize(("loss", "right"), [
    ("nonsaturating", 0.5), ("minimax", 0.5), ("hinge", 0.5), ("least_squares", 1.0),
    ("wasserstein", None)])
def test_the_accuracy_of_d_is_by_the_middle_of_its_objective(loss, right):
    """Logits 0.6 of real and 0.4 of generated images: least squares has its middle at 1/2."""
    real_a, fake_a, zero = torch.full((4, 1), 0.6), torch.full((4, 1), 0.4), torch.tensor(0.0)
    sums = [gan.measures(loss, zero, zero, real_a, fake_a, fake_a)]
    assert gan.averages(loss, sums).get("d_accuracy") == right


@pytest.mark.parametrize("loss", LOSSES)
def test_outputs_are_probabilities_where_the_objective_is_of_them_and_scores_elsewhere(loss):
    real_a, fake_a, after_a = (torch.full((4, 1), a) for a in (1.5, -2.0, -0.25))
    sums = [gan.measures(loss, torch.tensor(3.0), torch.tensor(5.0), real_a, fake_a, after_a)]
    read = torch.sigmoid if loss in ("nonsaturating", "minimax") else torch.clone
    expected = {"d_loss": 3.0, "g_loss": 5.0, "d_real": read(real_a[0]).item(),
                "d_fake": read(fake_a[0]).item(), "d_fake_after": read(after_a[0]).item()}
    found = gan.averages(loss, sums)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("loss", "levels"), [
    ("nonsaturating", [["log 4", "log 2"], ["1/2"]]), ("hinge", [["2"], []]),
    ("minimax", [["log 4", "$-$log 2"], ["1/2"]]), ("wasserstein", [["0"], []]),
    ("least_squares", [["1/4", "1/8"], ["1/2"]])])
def test_the_plot_marks_what_its_own_objective_has_at_rest(loss, levels, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    keys = ("d_loss", "g_loss", "d_real", "d_fake")
    history = [{key: i + epoch for i, key in enumerate(keys)} for epoch in (0.25, 0.5)]
    gan_figures.save_loss_plot(history, loss, tmp_path / "losses.pdf")
    at_rest = dict(zip(levels[0] + levels[1], filter(
        lambda one: one is not None, gan_losses.AT_REST[loss]), strict=True))
    for axis, names, shown in zip(drawn, levels, (keys[:2], keys[2:]), strict=True):
        curves, marks = axis.lines[:2], axis.lines[2:]
        assert [list(line.get_ydata()) for line in curves] == [
            [row[key] for row in history] for key in shown]
        assert [text.get_text() for text in axis.texts] == names
        assert [line.get_ydata()[0] for line in marks] == [at_rest[name] for name in names]
    units = loss in ("nonsaturating", "minimax")
    assert [axis.get_ylabel() for axis in drawn] == [
        "loss [nats]" if units else "loss", f"mean {'output' if units else 'score'} of $D$"]


def test_a_critic_is_recorded_without_an_accuracy(tmp_path):
    one_epoch("default", tmp_path, "--loss", "wasserstein")
    (table,) = (tmp_path / "results").glob("*.csv")
    columns = table.read_text().splitlines()[0].split(",")
    assert "val_d_loss" in columns and not {"d_accuracy", "val_d_accuracy"} & {*columns}


def one_epoch(recipe: str, out: Path, *argv: str) -> tuple[GAN, tuple, list]:
    """Train for an epoch of two updates; return the model, its optimizers, G's first weights."""
    args = gan.parse_args(["--recipe", recipe, "--latent_dim", "8", "--epochs", "1",
                           "--device", "cpu", "--out", str(out), *argv])
    torch.manual_seed(0)
    model, seen = GAN(8, args.loss, recipe), []
    if model.average is not None:
        model.average.multi_avg_fn = get_ema_multi_avg_fn(0.5)
    optimizer = gan.optimizers(model, args)
    optimizer[0].register_step_post_hook(
        lambda *_: seen.append(model.generator.net[0].weight.detach().clone()))
    train = pixels(32, batch_size=16, generator=torch.Generator().manual_seed(0))
    gan.fit(Run("test", args, Source("", "", "")), model, (train, pixels(16), None), optimizer)
    return model, optimizer, seen


@pytest.mark.parametrize(("recipe", "betas"), [("default", (0, .999)), ("cycle", (.5, .999))])
def test_the_average_follows_the_weights_and_gets_its_own_statistics(recipe, betas, tmp_path):
    model, optimizer, seen = one_epoch(recipe, tmp_path)
    average = model.average.module
    every = [seen[0]] if recipe == "default" else seen  # only at each 8th update, or at all
    assert torch.allclose(average.net[0].weight, torch.stack(every).mean(dim=0))
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=gan.RECIPES[recipe]["lr"])
    one_cycle(other, 2, cycle_momentum=False)
    other.step()
    other.step()
    for one in optimizer:
        rates = one.param_groups[0]["lr"], other.param_groups[0]["lr"]
        assert rates[0] == rates[1], rates
        assert one.param_groups[0]["betas"] == betas

    generator = model.sampler(seed=3)
    z = torch.randn(10_000, 8, generator=random_stream(3, "statistics"))
    before_norm = generator.net[:3](z)  # up to the first batch normalisation
    assert torch.allclose(generator.net[3].running_mean, before_norm.mean(0), atol=1e-4)
    assert generator is average
    expected = gan_figures.grey(generator.sample(25, random_stream(3, "figures")))
    assert torch.equal(gan_figures.draw_moment(model, 3)["samples"], expected)


def test_the_courses_recipe_has_a_constant_rate_and_draws_from_the_generator(tmp_path):
    model, optimizer, seen = one_epoch("template", tmp_path)
    for one in optimizer:
        group = one.param_groups[0]
        assert (group["lr"], group["betas"]) == (2e-4, (0.9, 0.999))
    assert model.sampler(seed=3) is model.generator
    assert torch.equal(model.generator.net[0].weight, seen[1])


def test_the_recipes_are_those_of_the_committed_runs():
    """Results name a recipe: with another number in it, they would be of another one."""
    shared = {"epochs": 200, "batch_size": 64, "group": 0, "r1": 0.0, "every": 1}
    assert {
        "default": {"epochs": 180, "batch_size": 128, "precision": "auto", "lr": 7e-4,
                    "one_cycle": True, "betas": (0.0, 0.999), "shift": 1, "group": 16, "r1": 0.02,
                    "ema": 0.992, "every": 8},
        "cycle": {**shared, "precision": "float32", "lr": 5e-4, "one_cycle": True,
                  "betas": (0.5, 0.999), "shift": 1, "ema": 0.999},
        "template": {**shared, "precision": "auto", "lr": 2e-4, "one_cycle": False,
                     "betas": (0.9, 0.999), "shift": 0, "ema": None}} == gan.RECIPES


def test_samples_between_epochs_change_nothing_that_is_trained(tmp_path):
    plain, often = (one_epoch("default", tmp_path, *argv)[0]
                    for argv in ([], ["--save_interval", "1"]))
    assert all(map(torch.equal, plain.state_dict().values(), often.state_dict().values()))
    drawn = {file.name for file in (tmp_path / "figures").glob("*update*")}
    assert drawn == {f"test-partial-update-00000{i}.png" for i in (1, 2)}, drawn


def test_d_sees_real_and_generated_images_apart_each_among_its_own():
    """Its logits are those of both batches alone, and depend on the rest of an image's group."""
    torch.manual_seed(0)
    D = Discriminator(group=4).eval()  # noqa: N806
    x, fake = torch.randn(2, 6, 784)
    for logits, alone in zip(D.logits(torch.stack((x, fake))), (x, fake), strict=True):
        assert torch.allclose(logits, D.logits(alone), atol=1e-6)
    copies = x[:1].expand(6, 784)
    assert not torch.allclose(D.logits(copies)[0], D.logits(x)[0], atol=1e-4)


def test_every_so_many_updates_pay_the_gradient_penalty_for_all_and_are_averaged(monkeypatch):
    weights, images = [], []

    def penalties(loss, critic, x, fake, weight):
        images.append((x, fake))
        return weights.append(weight) or 0.0

    monkeypatch.setattr(gan, "penalties", penalties)
    data, parts, averaged = pixels(80, batch_size=16), players(), []
    average = SimpleNamespace(update_parameters=lambda model: averaged.append(
        (model, len(weights))))
    gan.train(data, **parts, r1=0.5, average=average, every=3)
    assert weights == [1.5, 0.0, 0.0, 1.5, 0.0]
    assert averaged == [(parts["generator"], 1), (parts["generator"], 4)]
    for batch, (x, fake) in zip(data, images, strict=True):
        assert torch.equal(x, batch) and not torch.equal(fake, batch) and not fake.requires_grad


@pytest.mark.parametrize("recipe", ["default", "cycle"])
def test_an_epoch_has_the_penalties_and_averages_of_its_recipe(recipe, monkeypatch):
    weights, model, chosen = [], GAN(8, recipe=recipe), gan.RECIPES[recipe]
    monkeypatch.setattr(gan, "penalties", lambda *args: weights.append(args[-1]) or 0.0)
    optimizer = gan.optimizers(model, gan.parse_args(["--device", "cpu", "--recipe", recipe]))
    gan.run_epoch(model, (pixels(18, batch_size=2), pixels(16)), optimizer)
    every = chosen["every"]
    assert weights == [chosen["r1"] * every * (i % every == 0) for i in range(9)]
    assert model.average.n_averaged == len(range(0, 9, every))


# Contracts -------------------------------------------------------------------------------------

def test_the_template_interface():
    """The course's names and keywords."""
    images = Generator(latent_dim=100)(z=torch.randn(4, 100))
    assert images.shape == (4, 784) and images.abs().max() <= 1
    probability = Discriminator()(img=images)
    assert probability.shape == (4, 1)
    assert (probability >= 0).all() and (probability <= 1).all()
    parts = players(lr=1e-3)
    numbers = gan.train(
        dataloader=pixels(16, batch_size=8), discriminator=parts["discriminator"],
        generator=parts["generator"], optimizer_G=parts["optimizer_G"],
        optimizer_D=parts["optimizer_D"])
    assert set(numbers) == set(gan.MEASURES) and all(map(math.isfinite, numbers.values()))
    assert inspect.signature(Generator).parameters["latent_dim"].default == 100


def test_every_parameter_gets_a_gradient():
    parts = players(lr=1e-3)
    gan.train(pixels(16, batch_size=8), **parts)
    for network in (parts["generator"], parts["discriminator"]):
        for name, parameter in network.named_parameters():
            assert parameter.grad.abs().sum() > 0, name


def test_images_are_moved_in_training_only_each_on_its_own_and_the_gradient_comes_back():
    torch.manual_seed(0)
    shift, x = RandomShift(1), torch.randn(200, 784, requires_grad=True)
    moved = shift.train()(x)
    all_moves = torch.stack([x[:, move] for move in shift.moves])  # (9, 200, 784)
    matches = (all_moves == moved).all(dim=2)
    assert (matches.sum(dim=0) == 1).all() and matches.any(dim=1).all()
    (gradient,) = torch.autograd.grad(moved[:, 14 * 28 + 14].sum(), x)
    assert (gradient.sum(dim=1) == 1).all() and (gradient.argmax(dim=1).unique().numel() == 9)
    assert shift.eval()(x) is x and RandomShift(0).train()(x) is x


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
    one, other = (gan.validate(pixels(48, batch_size=size), parts["discriminator"],
                               parts["generator"]) for size in (48, 7))
    for key in gan.MEASURES:
        assert abs(one[key] - other[key]) < 1e-5, (key, one[key], other[key])


@pytest.mark.parametrize("loss", LOSSES)
def test_an_epoch_trains_on_the_first_split_and_validates_on_the_second_in_float32(loss):
    """With learning rate 0, so that nothing but the mode and the noise differs."""
    model, train, val = GAN(8, loss), pixels(16, batch_size=8), pixels(24)
    optimizer = tuple(torch.optim.SGD(part.parameters(), lr=0.0)
                      for part in (model.generator, model.discriminator))
    half, full = (seeded(gan.run_epoch, copy.deepcopy(model), (train, val), optimizer, bfloat16)
                  for bfloat16 in (True, False))
    assert half[0] != full[0], "training is in half precision"
    expected = seeded(gan.train, train, model.discriminator, model.generator, *optimizer, loss)
    assert full[0] == expected, (full[0], expected)
    expected = gan.validate(val, model.discriminator, model.generator, loss)
    assert full[1] == expected, (full[1], expected)
    without, _ = gan.run_epoch(model, (train, val))
    assert without == gan.validate(train, model.discriminator, model.generator, loss)


def test_pixels_are_scaled_to_the_range_of_tanh_and_back():
    x = torch.tensor([0.0, 127.5, 255.0])
    assert gan.scaled(x).tolist() == [-1.0, 0.0, 1.0]
    assert torch.allclose(gan_figures.grey(gan.scaled(x)), x / 255)
