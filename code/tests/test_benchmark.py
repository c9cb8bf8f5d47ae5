"""The benchmark: its ratio on made-up times, the products that it counts, the common way."""

import json
import time

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import baseline
import benchmark
from a3.runs import RunError
from datasets import Source, Split
from made_up import binary, grey, seeded


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
        benchmark.gan_products(model.generator, model.discriminator, 8, torch.float32)()
    with FlopCounterMode(display=False) as update:
        gan.update(x, z, *players, *gan.optimizers(model, args), "nonsaturating")
    assert floor.get_total_flops() == update.get_total_flops()


def test_the_common_way_is_timed_in_the_same_turns(monkeypatch):
    clock = iter([3.0, 1.0, 12.0, 3.0, 1.5, 9.0, 4.0, 1.0, 14.0])
    monkeypatch.setattr(benchmark, "seconds", lambda work, device: next(clock))
    data = Split(torch.zeros(8, 784), Source("sample", "", ""), batch_size=4)
    row = benchmark.compare(*[lambda: None] * 2, data, 3, "cpu", lambda: None)
    assert (row["epoch_seconds"], row["floor_seconds"], row["common_seconds"]) == (3.0, 1.0, 12.0)
    assert row["gain"] == 3.5 and row["gains"] == [4.0, 3.0, 3.5]


# The common way computes what ours does ----------------------------------------------------------

def test_pictures_have_the_pixels_of_the_images():
    images = grey(20).images
    batches = torch.cat(list(baseline.loader(images, 8))).view(-1, 784)
    assert len(baseline.loader(images, 8)) == 3
    assert torch.equal((batches * 255).round().sum(dim=1).sort().values,
                       images.float().sum(dim=1).sort().values)


def test_the_common_vae_has_our_bound():
    model = seeded(vae.VAE, 20, 3).eval()
    x, eps = binary(16).images.float(), torch.randn(16, 3)
    ours, common = sum(model.elbo_terms(x, eps)).mean(), baseline.vae_loss(model, x, eps)
    assert torch.isclose(ours, common, rtol=1e-5), (ours, common)


def test_masks_over_full_size_layers_give_our_density():
    model = seeded(nf.Model, (784,), 1, 8)
    layers = baseline.masked_flow(nf.get_mask(), 1, 8)
    for ours, common in zip(model.flow.layers, layers, strict=True):
        nn.init.normal_(ours.nn[-1].weight, std=0.1)
        common.nn.load_state_dict({
            **ours.nn.state_dict(),
            "0.weight": torch.zeros(8, 784).index_copy(1, ours.kept, ours.nn[0].weight.detach()),
            **{f"6.{key}": torch.zeros_like(common.nn[6].get_parameter(key)).index_copy(
                0, torch.cat((ours.changed, 784 + ours.changed)),
                ours.nn[6].get_parameter(key).detach()) for key in ("weight", "bias")}})
    x = grey(12).images.float()
    u = torch.rand(12, 784, generator=torch.Generator().manual_seed(3))
    ours = -model(x, torch.Generator().manual_seed(3)).mean()
    common = baseline.nf_loss(layers, x, u, nf.ALPHA)
    assert torch.isclose(ours, common, rtol=1e-5), (ours, common)


def test_the_common_gan_has_our_losses():
    model = seeded(gan.GAN, 8)
    players = model.discriminator, model.generator
    still = [torch.optim.SGD(player.parameters(), lr=0.0) for player in players]
    pictures = torch.rand(16, 1, 28, 28)
    common = seeded(baseline.gan_epoch, *players, [pictures], *still[::-1], "cpu")
    z = seeded(torch.randn, 16, 8)
    ours = gan.update(pictures.view(16, 784) * 2 - 1, z, *players, *still[::-1], "nonsaturating")
    assert torch.allclose(ours[:2] / 16, torch.tensor(common), rtol=1e-4), (ours / 16, common)


@pytest.fixture
def few(monkeypatch):
    """Let the benchmark take few made-up images, whatever it asks for, and a small flow."""
    original = nf.parse_args
    monkeypatch.setattr(nf, "parse_args", lambda argv: original(
        [*argv, "--n_flows", "1", "--n_hidden", "16"]))
    splits = {"mnist": (grey(100), grey(20)), "bmnist": (binary(100), binary(20))}
    for name, (train, val) in splits.items():
        for split in (train, val):
            split.source, split.generator = Source("mnist", "", ""), torch.Generator()
        monkeypatch.setattr(benchmark, name, lambda *_, found=(train, val, val), **__: found)


class Multiplied(TorchDispatchMode):
    """Keeps the types of all matrices that are multiplied."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.dtypes |= {one.dtype for one in args if isinstance(one, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", benchmark.TRAININGS)
def test_products_and_epoch_are_of_the_precision_that_is_timed(name, dtype, few):
    training = benchmark.TRAININGS[name](benchmark.parse_args(["--device", "cpu"]), 48, 16, dtype)
    for work in (training.floor, training.epoch):
        with Multiplied() as multiplied:
            work()
        assert multiplied.dtypes == {dtype}


@pytest.mark.parametrize("name", benchmark.TRAININGS)
def test_every_training_trains_both_ways(name, few):
    args = benchmark.parse_args(["--device", "cpu"])
    training = benchmark.TRAININGS[name](args, 48, 16)
    assert len(training.data.images) == 48 and len(training.data) == 3
    ours, common = training.epoch, training.common()
    if name == "gan":
        assert set(ours()) == set(gan.MEASURES) and len(common()) == 2
        return
    for epoch in (ours, common):
        losses = [epoch() for _ in range(4)]
        assert losses[-1] < losses[0], losses


# Processes of their own --------------------------------------------------------------------------

def test_growth_is_measured_and_drawn(few, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "BATCHES", (16, 32))
    monkeypatch.setattr(benchmark, "IMAGES", (64, 120))
    monkeypatch.setattr(benchmark, "in_a_process", lambda code, arguments: benchmark.point(
        *json.loads(arguments)))
    results = benchmark.main(["--growth", "--device", "cpu", "--out", str(tmp_path)])
    for rows in (results[name] for name in benchmark.TRAININGS):
        assert [(row["images"], row["batch_size"]) for row in rows["batches"]] == [(64, 16),
                                                                                 (64, 32)]
        assert [row["images"] for row in rows["images"]] == [64, 120]
        assert all(row["seconds"] > 0 and row["peak_memory_mib"] > 50
                   for row in (*rows["batches"], *rows["images"]))
    assert {path.name for path in tmp_path.glob("*/*")} == {"benchmark-growth.json",
                                                            "benchmark-growth.pdf"}


SCRIPT = """
import time, sys, torch
from a3.runs import images_in
assert sys.argv[1:3] == ["--device", "cpu"]
time.sleep(0.2)
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([weight], lr=0.1)
for x in images_in([torch.ones(2, 784)] * 9):
    time.sleep(0.2)
    weight.sum().backward()
    optimizer.step()
raise SystemExit("has trained to its end")
"""


def test_the_start_of_a_script_is_timed_from_the_start_of_its_process(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(benchmark, "SCRIPTS", {"one": str(tmp_path / "script.py")})
    began = time.time()
    (row,) = benchmark.time_start(benchmark.parse_args(["--device", "cpu"])).values()
    passed = time.time() - began
    assert 0.2 < row["ready_seconds"] < row["first_update_seconds"] - 0.19 < passed
    assert 50 < row["peak_memory_mib"] < 5000
    with pytest.raises(RunError, match="status 1: no images"):
        benchmark.in_a_process("raise SystemExit('no images')")
