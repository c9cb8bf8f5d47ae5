"""The interface of the course's template, which graders import: names, arguments, loaders."""

import inspect

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from made_up import seeded

REQUIRED = inspect.Parameter.empty
# Each callable with its first arguments and their defaults.
INTERFACE = {
    vae.Encoder: {"hidden_dim": 500, "z_dim": 20},
    vae.Decoder: {"hidden_dim": 500, "z_dim": 20},
    vae.VAE: {"hidden_dim": 500, "z_dim": 20},
    vae.Encoder.forward: {"self": REQUIRED, "input": REQUIRED},
    vae.Decoder.forward: {"self": REQUIRED, "input": REQUIRED},
    vae.VAE.forward: {"self": REQUIRED, "input": REQUIRED},
    vae.VAE.sample: {"self": REQUIRED, "n_samples": REQUIRED},
    vae.epoch_iter: {"model": REQUIRED, "data": REQUIRED, "optimizer": None},
    vae.run_epoch: {"model": REQUIRED, "data": REQUIRED, "optimizer": None},
    vae.save_elbo_plot: {"train_curve": REQUIRED, "val_curve": REQUIRED, "filename": REQUIRED},
    gan.Generator: {"latent_dim": 100},
    gan.Discriminator: {},
    gan.Generator.forward: {"self": REQUIRED, "z": REQUIRED},
    gan.Discriminator.forward: {"self": REQUIRED, "img": REQUIRED},
    gan.train: dict.fromkeys(("dataloader", "discriminator", "generator", "optimizer_G",
                              "optimizer_D"), REQUIRED),
    nf.log_prior: {"x": REQUIRED},
    nf.sample_prior: {"size": REQUIRED},
    nf.get_mask: {},
    nf.Coupling: {"c_in": REQUIRED, "mask": REQUIRED, "n_hidden": 1024},
    nf.Flow: {"shape": REQUIRED, "n_flows": 4},
    nf.Coupling.forward: {"self": REQUIRED, "z": REQUIRED, "ldj": REQUIRED, "reverse": False},
    nf.Flow.forward: {"self": REQUIRED, "z": REQUIRED, "logdet": REQUIRED, "reverse": False},
    nf.Model.dequantize: {"self": REQUIRED, "z": REQUIRED},
    nf.Model.logit_normalize: {"self": REQUIRED, "z": REQUIRED, "logdet": REQUIRED,
                               "reverse": False},
    nf.Model.forward: {"self": REQUIRED, "input": REQUIRED},
    nf.Model.sample: {"self": REQUIRED, "n_samples": REQUIRED},
    nf.epoch_iter: {"model": REQUIRED, "data": REQUIRED, "optimizer": None},
    nf.run_epoch: {"model": REQUIRED, "data": REQUIRED, "optimizer": None},
    nf.save_bpd_plot: {"train_curve": REQUIRED, "val_curve": REQUIRED, "filename": REQUIRED},
    **{main: {"argv": None} for main in (vae.main, gan.main, nf.main)},
}


@pytest.mark.parametrize("function", INTERFACE, ids=lambda one: one.__qualname__)
def test_names_order_and_defaults_are_the_templates(function):
    parameters = list(inspect.signature(function).parameters.values())
    expected = INTERFACE[function]
    first, more = parameters[:len(expected)], parameters[len(expected):]
    assert {one.name: one.default for one in first} == expected
    assert list(expected) == [one.name for one in first]
    assert all(one.default is not REQUIRED for one in more), more


def test_a_coupling_has_the_templates_attributes():
    mask = nf.get_mask()
    layer = nf.Coupling(784, mask, n_hidden=8)
    assert layer.n_hidden == 8 and torch.equal(layer.mask, mask)
    assert nf.Model([784], n_flows=1, n_hidden=8).flow.layers[0].n_hidden == 8


def loader(images: torch.Tensor, kind: str, **options) -> DataLoader:
    """Return images (N, 784) as the template loads them: with labels, or as pictures too."""
    if kind == "images alone":
        return DataLoader(images, **options)
    shaped = images.view(-1, 1, 28, 28) if kind == "pictures" else images
    return DataLoader(TensorDataset(shaped, torch.arange(len(images)) % 10), **options)


KINDS = ("images alone", "images and labels", "pictures")
every_kind = pytest.mark.parametrize("kind", KINDS)


def noise_images(levels: int) -> torch.Tensor:
    return torch.randint(levels, (22, 784), generator=torch.Generator().manual_seed(0)).float()


@every_kind
@pytest.mark.parametrize(("script", "levels", "make"), [
    (vae, 2, lambda: vae.VAE(8, 3)), (nf, 256, lambda: nf.Model([784], 1, 8))],
    ids=["vae", "nf"])
def test_anybodys_loader_trains_and_is_evaluated(script, levels, make, kind):
    """An average over loaders of one data set depends neither on the batches nor on labels."""
    model, images = seeded(make), noise_images(levels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batches = loader(images, kind, batch_size=8)
    first, _ = script.run_epoch(model, (batches, batches), None)
    again, _ = script.run_epoch(model, (loader(images, "images alone", batch_size=22),) * 2, None)
    assert abs(first - again) < 1e-3 * abs(again)
    for _ in range(20):
        script.run_epoch(model, (batches, batches), optimizer)
    assert script.run_epoch(model, (batches, batches))[1] < first
    part = script.epoch_iter(model.eval(), loader(images, kind, batch_size=8, drop_last=True))
    whole = script.epoch_iter(model.eval(), loader(images[:16], kind, batch_size=8))
    assert abs(part - whole) < 0.05 * abs(whole)  # divided by the 16 images that there were


@every_kind
def test_the_templates_loader_trains_the_gan(kind):
    """Images are in [-1, 1], as the template's Normalize leaves them."""
    torch.manual_seed(0)
    generator, discriminator = gan.Generator(), gan.Discriminator()
    optimizers = [torch.optim.Adam(player.parameters(), lr=2e-4)
                  for player in (generator, discriminator)]
    images = noise_images(2) * 2 - 1
    seen = []
    discriminator.net[1].register_forward_hook(lambda layer, x, out: seen.append(x[0].detach()))
    numbers = gan.train(loader(images, kind, batch_size=11), discriminator, generator,
                        *optimizers)
    assert set(numbers) == set(gan.MEASURES)
    assert torch.equal(seen[0][0], images[:11])  # not scaled again
