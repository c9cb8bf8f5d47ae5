"""The benchmark: its ratio on made-up times, and the products that it counts."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import a3_gan_template as gan
import benchmark
from datasets import Source, Split


def test_the_benchmark_divides_the_epoch_by_its_floor(monkeypatch):
    clock = iter([3.0, 1.0] * 5)
    monkeypatch.setattr(benchmark, "seconds", lambda work, device: next(clock))
    images, source = torch.zeros(10, 784), Source("sample", "", "")
    row = benchmark.compare(lambda: None, lambda: None, Split(images, source, batch_size=4), 5,
                            "cpu")
    assert row["epoch_seconds"] == 3.0
    assert row["floor_seconds"] == 1.0 * 10 / 8, "two full batches of four stand for ten images"
    assert row["ratio"] == 3.0 / 1.25


def test_the_benchmark_counts_the_products_of_one_update():
    """Two layers on data: 3 x 2 m n B operations each, less the first one's input gradient."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    floor = benchmark.matrix_products(model, {model[0]}, 11, torch.float32)
    with FlopCounterMode(display=False) as counter:
        floor()
    with FlopCounterMode(display=False) as update:
        model(torch.randn(11, 5)).sum().backward()
    expected = 2 * 11 * (2 * 5 * 7 + 3 * 7 * 3)
    assert counter.get_total_flops() == update.get_total_flops() == expected


def test_the_benchmark_counts_the_products_of_one_update_of_the_gan():
    args = gan.parse_args(["--recipe", "template"])
    model = gan.GAN(args.latent_dim)
    players = model.discriminator, model.generator
    x, z = torch.rand(8, 784), torch.randn(8, args.latent_dim)
    with FlopCounterMode(display=False) as floor:
        benchmark.gan_products(model.generator, model.discriminator, 8)()
    with FlopCounterMode(display=False) as update:
        gan.update(x, z, *players, *gan.optimizers(model, args), "nonsaturating")
    assert floor.get_total_flops() == update.get_total_flops()
