"""Training speed against the floor: the bare matrix products of the same work.

A linear layer with an (m, n) weight needs three products in an update with a batch of B: the
output (B, n) (n, m), the weight's gradient (m, B) (B, n), and the gradient of its input
(B, m) (m, n), which the layer that reads the data does not need. The floor of an epoch is the
time of these products alone, in the same shapes, number and precision. Epoch and floor are timed
in turns in one process, so that a slow change in the machine's speed affects both alike.

Before that, each script runs in a process of its own: the seconds until it asks for its first
images (everything is imported and loaded), until its first update (the untrained model has been
evaluated too), and the memory that it has needed at most a few updates later.

    python code/benchmark.py            # 9 min on 2 cores; let nothing else run
    python code/benchmark.py --baseline     # 18 min: also the common way (baseline.py), in float32
    python code/benchmark.py --growth       # 11 min: over batch sizes and images, as a figure
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from a3.cli import exit_with, parse, positive_int, run_name, tool_flags

import torch
from torch import nn
from torchvision import transforms

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import baseline
from a3 import figures
from a3.devices import backend, multiplies_bfloat16, peak_memory_mib
from a3.records import report_folder, write_record
from a3.runs import RunError
from datasets import RandomShift, Split, bmnist, mnist

CODE = Path(__file__).resolve().parent
SCRIPTS = {"vae": "a3_vae_template.py", "nf": "a3_nf_template.py", "gan": "a3_gan_template.py"}
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of the first number of images
IMAGES = (10_000, 20_000, 30_000, 40_000, 50_000, 60_000)  # in a script's own batches
STYLES = {"vae": ("VAE", figures.VAL), "nf": ("flow", figures.TRAIN),
          "gan": ("GAN", {"color": "0.3", "linestyle": ":", "linewidth": 1.2})}
# A script's process: the moments of its first images and updates, and its memory after a few.
START = """
import json, os, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
import a3.runs
from a3.devices import peak_memory_mib
device, *sys.argv = sys.argv[1:]
moments, images_in = [], a3.runs.images_in
def first_images(data):
    moments.extend([] if moments else [time.time()])
    return images_in(data)
def update(*_):
    moments.append(time.time())
    if len(moments) > 6:
        print(json.dumps([moments[:2], peak_memory_mib(device)]), flush=True)
        os._exit(0)
a3.runs.images_in = first_images
register_optimizer_step_post_hook(update)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
POINT = """
import json, sys, benchmark
print(json.dumps(benchmark.point(*json.loads(sys.argv[1]))))
"""


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
            device: str, common: Callable[[], None] | None = None) -> dict:
    """Time an epoch and its floor in turns; return the medians and the median of the ratios.

    Args:
        floor: the products of one full batch; a short last batch counts in proportion.
        common: the same epoch the common way, timed in turns too.
    """
    full, images = len(data.images) // data.batch_size, len(data.images)

    def full_batches() -> None:
        for _ in range(full):
            floor()

    epoch(), floor()  # warm up
    times = [(seconds(epoch, device),
              seconds(full_batches, device) * images / (full * data.batch_size),
              seconds(common, device) if common else None) for _ in range(turns)]
    ratios = [epoch / bare for epoch, bare, _ in times]
    row = {"images": images, "data": vars(data.source), "batch_size": data.batch_size,
           "turns": turns, "epoch_seconds": statistics.median(one[0] for one in times),
           "floor_seconds": statistics.median(one[1] for one in times),
           "ratio": statistics.median(ratios), "ratios": [round(ratio, 3) for ratio in ratios]}
    if common:
        gains = [slow / epoch for epoch, _, slow in times]
        row |= {"common_seconds": statistics.median(one[2] for one in times),
                "gain": statistics.median(gains), "gains": [round(gain, 3) for gain in gains]}
    return row


# The trainings -----------------------------------------------------------------------------------

class Training(NamedTuple):
    """A training: data, our epoch, the products of a batch, what makes the common epoch."""

    data: Split
    epoch: Callable[[], object]
    floor: Callable[[], None]
    common: Callable[[], Callable[[], object]]


def cut(train: Split, val: Split, images: int, batch_size: int, **options) -> Split:
    """Return the first images of training and validation together, shuffled."""
    return Split(torch.cat((train.images, val.images))[:images], train.source,
                 batch_size=batch_size, generator=train.generator, **options)


def vae_training(args: argparse.Namespace, images: int = 50_000, batch_size: int | None = None,
                 dtype: torch.dtype = torch.float32) -> Training:
    """Return the training of the VAE at its defaults."""
    defaults = vae.parse_args(["--device", args.device])
    train, val, _ = bmnist(args.data_root, device=args.device)
    data = cut(train, val, images, batch_size or defaults.batch_size)

    def new() -> tuple:
        model = vae.VAE(defaults.hidden_dim, defaults.zdim).to(args.device).train()
        return model, torch.optim.Adam(model.parameters(), lr=defaults.lr, fused=True)

    def common() -> Callable[[], float]:
        pictures = baseline.loader(255 * data.images, data.batch_size)
        model, optimizer = new()
        return lambda: baseline.vae_epoch(model, pictures, optimizer, args.device)

    model, optimizer = new()
    return Training(
        data, lambda: vae.epoch_iter(model, data, optimizer, dtype == torch.bfloat16),
        matrix_products(model, {model.encoder.body[1]}, data.batch_size, dtype), common)


def nf_training(args: argparse.Namespace, images: int = 40_000, batch_size: int | None = None,
                dtype: torch.dtype = torch.float32) -> Training:
    """Return the training of the flow at its defaults; 40,000 images are the course's epoch."""
    defaults = nf.parse_args(["--device", args.device])
    train, val, _ = mnist(args.data_root, device=args.device)
    data = cut(train, val, images, batch_size or defaults.batch_size,
               augment=RandomShift(1).to(args.device))
    model = nf.Model(n_flows=defaults.n_flows, n_hidden=defaults.n_hidden).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=defaults.lr, fused=True)

    def common() -> Callable[[], float]:
        pictures = baseline.loader(data.images, data.batch_size, transforms.RandomCrop(
            28, padding=1, padding_mode="edge"))
        flow = baseline.masked_flow(nf.get_mask(), defaults.n_flows, defaults.n_hidden)
        flow.to(args.device)
        adam = torch.optim.Adam(flow.parameters(), lr=defaults.lr)
        return lambda: baseline.nf_epoch(flow, pictures, adam, args.device, nf.ALPHA,
                                         nf.MAX_GRADIENT_NORM)

    return Training(
        data, lambda: nf.epoch_iter(model, data, optimizer, dtype == torch.bfloat16),
        matrix_products(model, {model.flow.layers[0].nn[0]}, data.batch_size, dtype), common)


def gan_products(G: nn.Module, D: nn.Module, batch: int, dtype: torch.dtype  # noqa: N803
                 ) -> Callable[[], None]:
    """Return the products of one update: D's on real and generated images, G's through D."""
    first = {next(layer for layer in D.net if isinstance(layer, nn.Linear))}
    steps = (matrix_products(D, first, 2 * batch, dtype),
             matrix_products(D, set(), batch, dtype, trained=False),
             matrix_products(G, {G.net[0]}, batch, dtype))

    def run() -> None:
        for step in steps:
            step()

    return run


def gan_training(args: argparse.Namespace, images: int = 60_000, batch_size: int | None = None,
                 dtype: torch.dtype = torch.float32) -> Training:
    """Return the training of the GAN with the course's recipe."""
    defaults = gan.parse_args(["--device", args.device, "--recipe", "template"])
    train, val, _ = mnist(args.data_root, device=args.device)
    data = cut(train, val, images, batch_size or defaults.batch_size, transform=gan.scaled)

    def new() -> tuple:
        model = gan.GAN(defaults.latent_dim).to(args.device).train()
        return (model.discriminator, model.generator), gan.optimizers(model, defaults)

    def common() -> Callable[[], tuple]:
        pictures = baseline.loader(data.images, data.batch_size)
        players, optimizers = new()
        return lambda: baseline.gan_epoch(*players, pictures, *optimizers, args.device)

    players, optimizers = new()
    return Training(
        data, lambda: gan.train(data, *players, *optimizers, bfloat16=dtype == torch.bfloat16),
        gan_products(players[1], players[0], data.batch_size, dtype), common)


TRAININGS = {"vae": vae_training, "nf": nf_training, "gan": gan_training}


def time_training(name: str, args: argparse.Namespace, precision: str = "float32") -> dict:
    """Time the training of a model against its floor, and on demand against the common way.

    The common way is in float32, whatever ours is in.
    """
    data, epoch, floor, common = TRAININGS[name](args, dtype=getattr(torch, precision))
    return {"precision": precision, **compare(epoch, floor, data, args.turns, args.device,
                                              common() if args.baseline else None)}


# Processes of their own --------------------------------------------------------------------------

def in_a_process(code: str, *arguments: str):
    """Return what Python code prints last, read as JSON.

    Raises:
        RunError: the process failed.
    """
    child = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True,
                           text=True, check=False, env={**os.environ, "PYTHONPATH": str(CODE)})
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise RunError(f"a process ended with status {child.returncode}: {reason}")
    return json.loads(child.stdout.splitlines()[-1])


def time_start(args: argparse.Namespace) -> dict:
    """Return, for each script, seconds to its first images and update, and its peak memory."""
    flags = ["--device", args.device, "--precision", "float32", "--epochs", "1"]
    flags += ["--data_root", str(args.data_root)] if args.data_root else []
    rows = {}
    for name, script in SCRIPTS.items():
        with tempfile.TemporaryDirectory() as out:
            began = time.time()
            (ready, update), memory = in_a_process(START, args.device, str(CODE / script), *flags,
                                                   "--out", out)
        rows[name] = {"ready_seconds": ready - began, "first_update_seconds": update - began,
                      "peak_memory_mib": memory}
        print(f"{name}: {ready - began:.1f} s to the first images, {update - began:.1f} s to the "
              f"first update, {memory or 0:.0f} MiB", flush=True)
    return rows


def point(name: str, images: int, batch_size: int | None, device: str, data_root: str | None
          ) -> dict:
    """Return the seconds of one epoch, after a first one, and the peak memory of this process."""
    args = argparse.Namespace(device=device, data_root=data_root)
    data, epoch, *_ = TRAININGS[name](args, images, batch_size)
    epoch()
    return {"batch_size": data.batch_size, "images": len(data.images),
            "seconds": seconds(epoch, device), "peak_memory_mib": peak_memory_mib(device)}


def time_growth(args: argparse.Namespace) -> dict:
    """Return the points of each model, over batch sizes and over numbers of images."""
    rows: dict = {name: {"batches": [], "images": []} for name in TRAININGS}
    for name, row in rows.items():
        for kind, images, batch_size in [*(("batches", IMAGES[0], size) for size in BATCHES),
                                         *(("images", number, None) for number in IMAGES)]:
            one = in_a_process(POINT, json.dumps([name, images, batch_size, args.device,
                                                  str(args.data_root or "") or None]))
            row[kind].append(one)
            print(f"{name}: {one['images']:,} images in batches of {one['batch_size']}: "
                  f"{one['seconds']:.2f} s, {one['peak_memory_mib'] or 0:.0f} MiB", flush=True)
    return rows


def save_growth(rows: dict, filename: Path) -> None:
    """Plot seconds and memory over batch sizes, above, and over numbers of images, below."""
    kinds = [("batches", "batch_size", "images in a batch"),
             ("images", "images", "images in an epoch")]
    values = [("seconds", "seconds an epoch"), ("peak_memory_mib", "peak memory, MiB")]
    with figures.canvas(filename, columns=2, rows=2, height=3.4) as axes:
        for line, (kind, key, label) in zip(axes, kinds, strict=True):
            for axis, (value, unit) in zip(line, values, strict=True):
                for name, (legend, style) in STYLES.items():
                    points = rows[name][kind]
                    axis.plot([one[key] for one in points], [one[value] for one in points],
                              label=legend, **style)
                axis.set(xlabel=label, ylabel=unit)
                if value == "seconds":
                    axis.set_yscale("log")
                if kind == "batches":
                    axis.set_xscale("log")
                    axis.set_xticks(BATCHES[::2], BATCHES[::2], minor=False)
                    axis.minorticks_off()
        axes[0][1].legend(loc="upper left")


# Main --------------------------------------------------------------------------------------------

def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Time training against its matrix products.",
                        out="for figures/ and results/ (None: report/)")
    add = parser.add_argument
    add("--turns", type=positive_int, default=5, metavar="N",
        help="timings of each, whose median counts")
    add("--baseline", action="store_true", help="time the same work the common way too, in turns")
    add("--growth", action="store_true",
        help="time single epochs over batch sizes and numbers of images instead")
    return parse(parser, argv)


def main(argv: Sequence[str] | None = None) -> dict:
    """Time the models, print a line each, and write report/results/benchmark*.json."""
    args = parse_args(argv)
    kind = "-growth" if args.growth else "-baseline" if args.baseline else ""
    report = report_folder(args.out)
    if args.growth:
        name = run_name(f"benchmark{kind}", args, named=["growth", "baseline"])
        rows = time_growth(args)
        save_growth(rows, report / "figures" / f"{name}.pdf")
        return write_record(report / "results" / f"{name}.json", args.device, **rows)
    results = {"start": time_start(args)}
    timed = [(name, name, "float32") for name in TRAININGS]
    if multiplies_bfloat16(args.device):
        timed += [(f"{name}_bfloat16", name, "bfloat16") for name in TRAININGS]
    for key, name, precision in timed:
        row = results[key] = time_training(name, args, precision)
        print(f"{key}: {row['epoch_seconds']:.2f} s for {row['images']:,} images, "
              f"{row['floor_seconds']:.2f} s for the matrix products alone, "
              f"ratio {row['ratio']:.2f} ({precision})"
              + (f"; the common way {row['common_seconds']:.2f} s, {row['gain']:.1f} times as long"
                 if "gain" in row else ""), flush=True)
    sample = any(results[key]["data"]["name"] == "sample" for key, *_ in timed)
    name = run_name("benchmark" + "-sample" * sample + kind, args, named=["growth", "baseline"])
    return write_record(report / "results" / f"{name}.json", args.device, **results)


if __name__ == "__main__":
    exit_with(main)
