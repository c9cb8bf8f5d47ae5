"""Training speed against the floor: the bare matrix products of the same work.

A linear layer with an (n, m) weight needs three products an update of a batch of B: the output
(B, n) (n, m), the weight's gradient (m, B) (B, n), and the gradient of its input (B, m) (m, n),
which the layer that reads the data does not need. The floor of an epoch is the time that these
products take, in the same shapes, number and precision, and nothing else. Epoch and floor are
timed in turns in one process, so that a change of the machine's speed meets both alike.

    python code/benchmark.py            # 1 min on 2 cores; let nothing else run
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

import torch
from torch import nn

import a3_nf_template as nf
import a3_vae_template as vae
from datasets import REPOSITORY, bmnist, mnist
from runs import (
    commit,
    describe_device,
    device_name,
    exit_with,
    multiplies_bfloat16,
    positive_int,
    write_atomically,
)


def matrix_products(model: nn.Module, data_layers: set[nn.Module], batch: int,
                    dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that does the matrix products of one update of all linear layers.

    Args:
        data_layers: those whose input is data and needs no gradient.
        batch: images in the update.
        dtype: in which the products are done.
    """
    products = []
    for layer in (part for part in model.modules() if isinstance(part, nn.Linear)):
        weight = layer.weight.detach().to(dtype)  # (m, n)
        x = torch.randn(batch, layer.in_features).to(weight)
        gradient = torch.randn(batch, layer.out_features).to(weight)
        products += [(x, weight.T), (gradient.T, x)]
        products += [(gradient, weight)] if layer not in data_layers else []

    def run() -> None:
        for left, right in products:
            torch.mm(left, right)

    return run


def seconds(work: Callable[[], None], device: str) -> float:
    """Return how long the work takes, on a GPU until its last kernel has ended."""
    synchronise = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    wait = synchronise.get(device, lambda: None)
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def compare(epoch: Callable[[], None], floor: Callable[[], None], updates: int, turns: int,
            device: str) -> dict:
    """Time epoch and floor in turns; return the medians and the median of the ratios."""
    def all_updates():
        for _ in range(updates):
            floor()

    epoch()  # warm up
    times = [(seconds(epoch, device), seconds(all_updates, device)) for _ in range(turns)]
    return {"epoch_seconds": statistics.median(time for time, _ in times),
            "floor_seconds": statistics.median(time for _, time in times),
            "ratio": statistics.median(time / bare for time, bare in times),
            "ratios": [time / bare for time, bare in times]}


def time_vae(args: argparse.Namespace) -> dict:
    """Time training epochs of the VAE at its defaults, float32, 50,000 images."""
    defaults = vae.parse_args(["--device", args.device])
    train, _, _ = bmnist(defaults.data_root, defaults.batch_size, device=args.device)
    model = vae.VAE(defaults.hidden_dim, defaults.zdim).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=defaults.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)  # has no last epoch
    floor = matrix_products(model, {model.encoder.net[1]}, defaults.batch_size, torch.float32)
    return {"images": len(train.images), "precision": "float32",
            **compare(lambda: vae.epoch_iter(model, train, optimizer, scheduler), floor,
                      len(train), args.turns, args.device)}


def time_nf(args: argparse.Namespace, precision: str = "float32") -> dict:
    """Time training of the flow at its defaults, on 40,000 images: the course's epoch."""
    defaults = nf.parse_args(["--device", args.device])
    train, _, _ = mnist(defaults.data_root, defaults.batch_size, device=args.device, shift=1,
                        limit=40_000)
    model = nf.Model(n_flows=defaults.n_flows, n_hidden=defaults.n_hidden).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=defaults.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    dtype = getattr(torch, precision)
    autocast = torch.autocast(args.device, dtype, enabled=precision == "bfloat16")
    first = {coupling.nn[0] for coupling in model.flow.layers[:1]}
    floor = matrix_products(model, first, defaults.batch_size, dtype)
    return {"images": len(train.images), "precision": precision,
            **compare(lambda: nf.epoch_iter(model, train, optimizer, scheduler, autocast), floor,
                      len(train), args.turns, args.device)}


def time_nf_bfloat16(args: argparse.Namespace) -> dict:
    """Time the flow as it trains by default where the hardware multiplies bfloat16."""
    return time_nf(args, "bfloat16")


MODELS = {"vae": time_vae, "nf": time_nf, "nf-bfloat16": time_nf_bfloat16}


def main(argv: Sequence[str] | None = None) -> dict:
    """Time the models, print a table, and write report/results/benchmark.json."""
    parser = argparse.ArgumentParser(description="Time training against its matrix products.")
    parser.add_argument("--model", choices=(*MODELS, "all"), default="all")
    parser.add_argument("--turns", type=positive_int, default=7, help="of which the median")
    parser.add_argument("--device", type=device_name, default="auto")
    args = parser.parse_args(argv)

    file = REPOSITORY / "report" / "results" / "benchmark.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    names = [name for name in MODELS if args.model in ("all", name)]
    if args.model == "all" and not multiplies_bfloat16(args.device):
        names.remove("nf-bfloat16")
    for name in names:
        row = results[name] = MODELS[name](args)
        row |= {"device": describe_device(args.device), "torch": str(torch.__version__),
                "commit": commit(),
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        print(f"{name}: {row['epoch_seconds']:.2f} s for {row['images']:,} images, "
              f"{row['floor_seconds']:.2f} s for the matrix products alone, "
              f"ratio {row['ratio']:.2f} ({row['precision']})", flush=True)
    write_atomically(file, (json.dumps(results, indent=2) + "\n").encode())
    return results


if __name__ == "__main__":
    exit_with(main)
