"""Draw from a finished run of any training: one grid of images, and the arrays if wanted.

Codes are drawn from the prior on the CPU, times the temperature: below 1 they lie nearer to its
middle, and images are more typical and more alike. Of a VAE the means are shown.

A run that is not on this disk is drawn from its committed weights in code/weights/, if it has
some: 16 bits each (bfloat16, to which they are rounded), computed with in float32.

    python code/sample.py                       # of the run vae-z20
    python code/sample.py gan --seed 1 --temperature 0.7 --npz
    python code/sample.py gan --export          # write its weights, from the full checkpoint
"""

import argparse
import hashlib
import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from a3.cli import exit_with, parse, real, run_label, run_name, seed_int, tool_flags, whole

import numpy as np
import torch
from torch import Tensor, nn

import a3_gan_template as gan
import a3_nf_template as nf
from a3 import checkpoints, figures
from a3.judge_trained import Trained
from a3.records import REPOSITORY, report_folder, write_atomically
from a3.runs import RunError, random_stream
from evaluate import as_flow, as_gan, as_vae, load_gan, load_multiscale, load_nf
from nf_multiscale import Model as MultiscaleModel
from vae_variants import build, trained_vae

WEIGHTS = REPOSITORY / "code/weights"
DECODED_TOGETHER = 500  # codes
REMEMBERED = 16  # images in a file of weights, to tell whether they are drawn alike elsewhere
TABLE = re.compile(r"<!-- table: models -->\n.*?<!-- end -->\n", re.DOTALL)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Draw samples from a finished run.", data=False)
    add = parser.add_argument
    add("run", nargs="?", type=run_label, default="vae-z20", metavar="RUN",
        help="finished run of any model")
    add("--n", type=whole(1, 10_000), default=64, metavar="N", help="samples to draw")
    add("--seed", type=seed_int, default=42, help="seed of the samples")
    add("--temperature", type=real(0, 10), default=1.0, metavar="T",
        help="standard deviation of the codes, 1 in training")
    add("--npz", action="store_true", help="also write codes and images, in [0, 1], as arrays")
    add("--export", action="store_true",
        help="draw nothing, write the run's weights into code/weights/")
    return parse(parser, argv)


# The models, by the beginning of a run's name ----------------------------------------------------

def load_vae(run: str, args: argparse.Namespace) -> Trained:
    """Return a VAE of whatever likelihood."""
    return as_vae(*trained_vae(run, args.out, args.device, binary=False), args)


# What loads a checkpoint; the network of a run's flags, untrained; what makes one draw.
KINDS = {
    "nf-multiscale": (load_multiscale, lambda flags: MultiscaleModel(), as_flow),
    "nf": (load_nf, lambda flags: nf.Model(n_flows=flags["n_flows"], n_hidden=flags["n_hidden"]),
           as_flow),
    "gan": (load_gan, lambda flags: gan.Generator(flags["latent_dim"]), as_gan),
    "vae": (load_vae, build, as_vae),
}


def kind_of(run: str) -> tuple:
    """Return what a run's model is loaded by.

    Raises:
        RunError: no script gives a run such a name.
    """
    for beginning, kind in KINDS.items():
        if re.match(f"{beginning}(-|$)", run):
            return kind
    raise RunError(f"'{run}' is no run of a model: their names begin with {', '.join(KINDS)}")


def load(args: argparse.Namespace) -> Trained:
    """Return the model of a run: under --out, else of the repository, else of code/weights/.

    Raises:
        RunError: it is nowhere, unfinished or damaged.
    """
    from_checkpoint, untrained, as_trained = kind_of(args.run)
    places = list(dict.fromkeys((args.out, None)))
    for out in places:
        if os.path.lexists((out or REPOSITORY) / "checkpoints" / args.run / "last.pt"):
            return from_checkpoint(args.run, argparse.Namespace(out=out, device=args.device))
    file = WEIGHTS / f"{args.run}.pt"
    if args.export or not file.exists():
        there = sorted({*(path.parent.name for out in places
                          for path in (out or REPOSITORY).glob("checkpoints/*/last.pt")),
                        *(path.stem for path in exported())})
        raise RunError(f"there is no trained run '{args.run}' under "
                       f"'{(args.out or REPOSITORY) / 'checkpoints'}'; train it, or name another"
                       f" one: {', '.join(there) or 'there is none yet'}")
    stored = checkpoints.load(file)
    print(f"weights: {file}, 16 bits each, as no checkpoint of this run is here", flush=True)
    network = untrained(stored["flags"])
    unpack(stored["packed"], network)
    return as_trained(network, stored, args)


# Committed weights -------------------------------------------------------------------------------

def exported() -> list[Path]:
    """Return the files of weights that runs have been exported to."""
    return sorted(path for path in WEIGHTS.glob("*.pt")
                  if re.match(f"({'|'.join(KINDS)})(-|$)", path.stem))


def floats(network: nn.Module) -> list[Tensor]:
    """Return what decides the output of a network in eval mode: no counters."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]


def pack(network: nn.Module) -> Tensor:
    """Return the weights of a network as bfloat16, packed, (bytes,) uint8.

    The low bytes, which nothing can pack, come first, then the high ones, which are much alike.
    """
    flat = torch.cat([value.flatten().cpu() for value in floats(network)]).bfloat16()
    planes = flat.view(torch.uint8).unflatten(0, (-1, 2)).T.contiguous()  # (2, N)
    return torch.frombuffer(bytearray(zlib.compress(planes.numpy(), 9)), dtype=torch.uint8)


def unpack(packed: Tensor, network: nn.Module) -> None:
    """Fill a network with packed weights."""
    planes = bytearray(zlib.decompress(packed.numpy().tobytes()))
    flat = torch.frombuffer(planes, dtype=torch.uint8).unflatten(0, (2, -1)).T.contiguous()
    values = floats(network)
    parts = flat.view(torch.bfloat16).flatten().split([value.numel() for value in values])
    for value, part in zip(values, parts, strict=True):
        value.copy_(part.view_as(value))


def export(run: str, trained: Trained, device: str) -> Path:
    """Write a run's weights, of a GAN both networks', and list them in the README beside them.

    Returns:
        the file.
    """
    _, untrained, as_trained = kind_of(run)
    stored = {"flags": trained.results["flags"], "packed": pack(trained.network),
              "weights_sha256": trained.results.get("weights_sha256")}
    unpack(stored["packed"], network := untrained(stored["flags"]))
    rounded = as_trained(network, stored, argparse.Namespace(device=device))
    _, images = draw(rounded, REMEMBERED, 0, 1.0, device)
    stored["images"] = (255 * images).round().to(torch.uint8)
    if trained.discriminator is not None:
        stored["discriminator"] = pack(trained.discriminator)
    checkpoints.save(stored, file := WEIGHTS / f"{run}.pt")
    list_weights()
    return file


def list_weights() -> None:
    """Write the table of the weights' README anew, and leave the rest of it as it is."""
    readme = WEIGHTS / "README.md"
    rows = [f"| {path.name} | {path.stat().st_size / 1e6:.2f} | "
            f"report/results/{path.stem}.json | `code/sample.py {path.stem} --export` | "
            f"{hashlib.sha256(path.read_bytes()).hexdigest()} |" for path in exported()]
    table = "\n".join(["<!-- table: models -->", "| weights | MB | results of the run | made by, "
                       "after its training | SHA-256 |", "|---|---|---|---|---|", *rows,
                       "<!-- end -->\n"])
    text = readme.read_text(encoding="utf-8") if readme.exists() else "# Committed weights\n"
    if not TABLE.search(text):
        text += ("\nOf trained models, 16 bits a weight (bfloat16): `code/sample.py` draws from "
                 f"them where no checkpoint\nof the run is on the disk.\n\n{table}")
    write_atomically(readme, TABLE.sub(lambda _: table, text).encode())


# Main --------------------------------------------------------------------------------------------

@torch.no_grad()
def draw(trained: Trained, n: int, seed: int, temperature: float, device: str
         ) -> tuple[Tensor, Tensor]:
    """Draw n codes, (n, D), and return them with their images, (n, 784) in [0, 1]."""
    flags = trained.results["flags"]
    dimensions = flags.get("zdim") or flags.get("latent_dim") or 784
    z = temperature * torch.randn(n, dimensions, generator=random_stream(seed, "samples"))
    return z, torch.cat([trained.decode(part.to(device)).cpu()
                         for part in z.split(DECODED_TOGETHER)])


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw and write the grid; return where it, or the exported weights, are."""
    args = parse_args(argv)
    name = run_name(f"{args.run}-drawn", args, named=["run", "npz", "export"])
    trained = load(args)
    if args.export:
        file = export(args.run, trained, args.device)
        print(f"done: {file}, listed in {WEIGHTS / 'README.md'}")
        return file
    grid = report_folder(args.out) / "figures" / f"{name}.png"
    codes, images = draw(trained, args.n, args.seed, args.temperature, args.device)
    figures.save_png(figures.tile(images, math.ceil(math.sqrt(args.n))), grid)
    if args.npz:
        arrays = {"codes": codes.numpy(), "images": images.unflatten(1, (28, 28)).numpy()}
        write_atomically(grid.with_suffix(".npz"),
                         lambda file: np.savez_compressed(file, **arrays))
    print(f"done: {grid}{' and .npz' * args.npz}")
    return grid


if __name__ == "__main__":
    exit_with(main)
