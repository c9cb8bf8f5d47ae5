"""Training speed against the floor: the bare matrix products of the same work.

A linear layer with an (n, m) weight needs three products in an update with a batch of B: the
output (B, n) (n, m), the weight's gradient (m, B) (B, n), and the gradient of its input
(B, m) (m, n), which the layer that reads the data does not need. The floor of an epoch is the
time of these products alone, in the same shapes, number and precision. Epoch and floor are timed
in turns in one process, so that a change in the machine's speed affects both alike.

    python code/benchmark.py            # 8 min on 2 cores; let nothing else run
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from a3.cli import exit_with, parse, positive_int, run_name, tool_flags

import torch
from torch import nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from a3.devices import backend, multiplies_bfloat16
from a3.records import report_folder, write_record
from datasets import RandomShift, Split, bmnist, mnist


def matrix_products(model: nn.Module, data_layers: set[nn.Module], batch: int,
                    dtype: torch.dtype, trained: bool = True) -> Callable[[], None]:
    """Return a function that does the matrix products of one update of all linear layers.

    Args:
        data_layers: those whose input is data and needs no gradient.
        batch: images in the update.
        dtype: in which the products are done.
        trained: False if the gradient only passes through, and the weights need none.
    """
    products = []
    for layer in (part for part in model.modules() if isinstance(part, nn.Linear)):
        weight = layer.weight.detach().to(dtype)  # (m, n)
        x = torch.randn(batch, layer.in_features).to(weight)
        gradient = torch.randn(batch, layer.out_features).to(weight)
        products += [(x, weight.T), (gradient.T, x)] if trained else [(x, weight.T)]
        products += [(gradient, weight)] if layer not in data_layers else []

    def run() -> None:
        for left, right in products:
            torch.mm(left, right)

    return run


def seconds(work: Callable[[], None], device: str) -> float:
    """Return how long the work takes; on a GPU, until its last kernel has ended."""
    module, which = backend(device)
    module.synchronize(*which)
    start = time.perf_counter()
    work()
    module.synchronize(*which)
    return time.perf_counter() - start


def compare(epoch: Callable[[], None], floor: Callable[[], None], data: Split, turns: int,
            device: str) -> dict:
    """Time an epoch and its floor in turns; return the medians and the median of the ratios.

    Args:
        floor: the products of one full batch; a short last batch counts in proportion.
    """
    full, images = len(data.images) // data.batch_size, len(data.images)

    def full_batches() -> None:
        for _ in range(full):
            floor()

    epoch(), floor()  # warm up
    times = [(seconds(epoch, device),
              seconds(full_batches, device) * images / (full * data.batch_size))
             for _ in range(turns)]
    return {"images": images, "data": vars(data.source), "batch_size": data.batch_size,
            "turns": turns,
            "epoch_seconds": statistics.median(epoch for epoch, _ in times),
            "floor_seconds": statistics.median(bare for _, bare in times),
            "ratio": statistics.median(epoch / bare for epoch, bare in times),
            "ratios": [round(epoch / bare, 3) for epoch, bare in times]}


def time_vae(args: argparse.Namespace) -> dict:
    """Time training epochs of the VAE at its defaults, float32."""
    defaults = vae.parse_args(["--device", args.device])
    train, _, _ = bmnist(args.data_root, defaults.batch_size, device=args.device)
    model = vae.VAE(defaults.hidden_dim, defaults.zdim).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=defaults.lr, fused=True)
    floor = matrix_products(model, {model.encoder.body[1]}, train.batch_size, torch.float32)
    return {"precision": "float32", **compare(lambda: vae.epoch_iter(model, train, optimizer),
                                              floor, train, args.turns, args.device)}


def time_nf(args: argparse.Namespace, precision: str = "float32") -> dict:
    """Time training of the flow at its defaults, on 40,000 images: the course's epoch."""
    defaults = nf.parse_args(["--device", args.device])
    train, _, _ = mnist(args.data_root, defaults.batch_size, device=args.device, limit=40_000,
                        augment=RandomShift(1).to(args.device))
    model = nf.Model(n_flows=defaults.n_flows, n_hidden=defaults.n_hidden).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=defaults.lr, fused=True)
    dtype = getattr(torch, precision)
    floor = matrix_products(model, {model.flow.layers[0].nn[0]}, train.batch_size, dtype)
    return {"precision": precision,
            **compare(lambda: nf.epoch_iter(model, train, optimizer, dtype == torch.bfloat16),
                      floor, train, args.turns, args.device)}


def gan_products(G: nn.Module, D: nn.Module, batch: int) -> Callable[[], None]:  # noqa: N803
    """Return the products of one update: D's on real and generated images, G's through D."""
    first = {next(layer for layer in D.net if isinstance(layer, nn.Linear))}
    steps = (matrix_products(D, first, 2 * batch, torch.float32),
             matrix_products(D, set(), batch, torch.float32, trained=False),
             matrix_products(G, {G.net[0]}, batch, torch.float32))

    def run() -> None:
        for step in steps:
            step()

    return run


def time_gan(args: argparse.Namespace) -> dict:
    """Time training of the GAN with the course's recipe, float32, on all 60,000 images."""
    defaults = gan.parse_args(["--device", args.device, "--recipe", "template"])
    train, val, _ = mnist(args.data_root, defaults.batch_size, device=args.device)
    images = Split(torch.cat((train.images, val.images)), train.source,
                   batch_size=defaults.batch_size, generator=train.generator,
                   transform=gan.scaled)
    model = gan.GAN(defaults.latent_dim).to(args.device)
    players = model.discriminator, model.generator
    optimizer = gan.optimizers(model, defaults)
    floor = gan_products(model.generator, model.discriminator, defaults.batch_size)
    return {"precision": "float32",
            **compare(lambda: gan.train(images, *players, *optimizer), floor, images, args.turns,
                      args.device)}


def main(argv: Sequence[str] | None = None) -> dict:
    """Time the models, print a line each, and write report/results/benchmark.json."""
    parser = tool_flags("Time training against its matrix products.")
    parser.add_argument("--turns", type=positive_int, default=5, metavar="N",
                        help="timings of each, whose median counts")
    args = parse(parser, argv)
    report = report_folder(args.out)
    rows = {"vae": time_vae, "nf": time_nf, "gan": time_gan}
    if multiplies_bfloat16(args.device):
        rows["nf_bfloat16"] = lambda args: time_nf(args, "bfloat16")
    results: dict = {}
    for name, measure in rows.items():
        row = results[name] = measure(args)
        print(f"{name}: {row['epoch_seconds']:.2f} s for {row['images']:,} images, "
              f"{row['floor_seconds']:.2f} s for the matrix products alone, "
              f"ratio {row['ratio']:.2f} ({row['precision']})", flush=True)
    sample = any(row["data"]["name"] == "sample" for row in results.values())
    name = run_name("benchmark-sample" if sample else "benchmark", args)
    return write_record(report / "results" / f"{name}.json", args.device, **results)


if __name__ == "__main__":
    exit_with(main)
