"""Nothing has float64 on the device: Apple's GPUs (mps) refuse it."""

from functools import partial

import pytest
import torch
from torch import Tensor

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import vae_variants
from a3 import vae_monitors
from a3.importance import importance_sampled_nll
from a3.judge_classifier import DigitClassifier, classify, features
from datasets import Split
from made_up import binary, grey


class Apple(Tensor):
    """A tensor that refuses float64, as does all that is computed from it, until ``cpu()``."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Call a function; what comes out is such a tensor again."""
        if function is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        out = super().__torch_function__(function, types, args, kwargs or {})
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, cls) and one.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out


def on_device(split: Split) -> Split:
    split.images = split.images.as_subclass(Apple)
    return split


def test_the_device_refuses_float64():
    x = torch.ones(3).as_subclass(Apple)
    for wrong in ((x + 1).double, lambda: x.exp().to(torch.float64),
                  lambda: x + torch.ones(3).double(), lambda: x.sum().double().cpu()):
        with pytest.raises(TypeError):
            wrong()
    assert (x + 1).cpu().double().dtype == torch.float64


def train_and_evaluate_vae():
    model, data = vae.VAE(8, 3), on_device(binary(20, batch_size=10))
    vae.epoch_iter(model.train(), data, torch.optim.Adam(model.parameters()))
    vae.epoch_iter(model.eval(), data)
    importance_sampled_nll(model.log_weights, data, 3, 2)


def examine_variant():
    model, data = vae_variants.VariantVAE(8, 3, prior="flow", posterior="flow"), on_device(
        binary(20, batch_size=10))
    vae_monitors.check_codes(model.eval(), data, 1.0, vae_monitors.pixel_entropy(data.images))


def train_and_evaluate_flow():
    model, data = nf.Model(n_flows=1, n_hidden=8), on_device(grey(20, batch_size=10))
    nf.epoch_iter(model.train(), data, torch.optim.Adam(model.parameters()))
    nf.epoch_iter(model.eval(), data)
    noise = torch.Generator().manual_seed(0)
    importance_sampled_nll(partial(model.log_weights, noise=noise), data, 3, 2)


def train_and_judge_gan():
    model, data = gan.GAN(4), on_device(grey(20, batch_size=10))
    optimizers = gan.optimizers(model, gan.parse_args(["--device", "cpu"]))
    gan.train(data, model.discriminator, model.generator, *optimizers)
    gan.validate(data, model.discriminator, model.generator)
    classifier = DigitClassifier().eval()
    classify(classifier, data.images / 255)
    features(classifier, data.images / 255)


@pytest.mark.parametrize("work", [train_and_evaluate_vae, examine_variant,
                                  train_and_evaluate_flow, train_and_judge_gan])
def test_every_model_trains_and_is_evaluated_without_it(work):
    torch.manual_seed(0)
    work()
