"""Write explore.html: the trained models to play with, in one file that makes no request.

The parts of the page are in report/explore/. It holds the networks of code/weights/ that it knows,
8 bits a weight (16 in small matrices and where 8 are too few; vectors as they are), and what was
measured of them on test images (code/weights/explore.npz). A panel whose weights are missing is
left out. So a fresh clone, without data, writes the same page.

    python report/page.py                # 4 s: report/explore.html; or make page
    python report/page.py --measure      # after weights have changed: measures them first
"""

import base64
import json
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import sources

sys.path.insert(0, str(sources.REPORT.parent / "code"))

from a3.cli import Parser, exit_with
from a3.cli import folder as folder_name

import numpy as np
import torch
from torch import Tensor

import a3_gan_template as gan
import sample
from a3 import checkpoints
from a3.importance import importance_sampled_nll
from a3.records import write_atomically
from a3.runs import RunError, random_stream
from datasets import bmnist, labelled, mnist

PARTS = sources.REPORT / "explore"
PAGE = sources.REPORT / "explore.html"
SCRIPTS = ("networks.js", "state.js", "paint.js", "pen.js", "map.js", "digit.js", "gan.js",
           "flow.js", "main.js")
MEASURED = sample.WEIGHTS / "explore.npz"
# With 8 bits in these, images share a place on the map, and -ELBO moves by nats.
FINE = {("vae-z2", f"encoder.body.{layer}.weight") for layer in (1, 3)}
SMALL = 25_000  # numbers; a matrix of fewer has 16 bits as well, which costs little
LARGEST = 10_000_000  # bytes of the page
IMAGES = 16  # test images to begin with, among them the first of each digit
NLL_DRAWS = 200  # importance samples for each test image

Arrays = dict[str, np.ndarray]


# Networks ----------------------------------------------------------------------------------------

def vae_arrays(stored: dict) -> Arrays:
    """Return encoder and decoder by their names in ``VAE``."""
    network = network_of(stored)
    return {name: value.numpy() for name, value in network.state_dict().items()
            if value.is_floating_point()}


def gan_arrays(stored: dict) -> Arrays:
    """Return G, each batch normalisation folded into the layer before it, and D.

    In eval mode it is (h - m) g / sqrt(v + eps) + b, linear in h as the layer is in its input.
    """
    arrays, linear = {}, []
    for layer in network_of(stored).net:
        if isinstance(layer, torch.nn.Linear):
            linear.append([layer.weight.double(), layer.bias.double()])
        elif isinstance(layer, torch.nn.BatchNorm1d):
            scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
            weight, bias = linear[-1]
            linear[-1] = [scale[:, None] * weight,
                          scale * (bias - layer.running_mean) + layer.bias.double()]
    for i, (weight, bias) in enumerate(linear):
        arrays |= {f"generator.{i}.weight": weight.float().numpy(),
                   f"generator.{i}.bias": bias.float().numpy()}
    if "discriminator" in stored:
        for name, value in discriminator_of(stored).state_dict().items():
            if value.is_floating_point():
                arrays[name.replace("net.", "discriminator.")] = value.numpy()
    return arrays


def flow_arrays(stored: dict) -> Arrays:
    """Return the multi-scale flow, with features that lie together in a cell.

    So a row of a convolution has the C_in values of each of the 9 cells one after another.
    """
    def by_cell(name: str, value: Tensor) -> Tensor:
        if name == "place":  # (1, C, S, S)
            return value[0].flatten(1).T.flatten()
        return value if value.ndim < 4 else value.permute(0, 2, 3, 1).flatten(1)

    return {name: by_cell(name, value).contiguous().numpy()
            for name, value in network_of(stored).state_dict().items()}


NETWORKS: dict[str, Callable[[dict], Arrays]] = {
    "vae-z2": vae_arrays, "vae-z20": vae_arrays, "gan": gan_arrays, "nf-multiscale": flow_arrays}


def load(run: str) -> dict | None:
    """Return the committed weights of a run, or None, after a line, where there are none."""
    file = sample.WEIGHTS / f"{run}.pt"
    if file.exists():
        return {"run": run, **checkpoints.load(file)}
    print(f"{run}: left out, since there is no '{file}'; code/sample.py {run} --export writes it")
    return None


def network_of(stored: dict) -> torch.nn.Module:
    """Return the network of committed weights, in eval mode."""
    network = sample.kind_of(stored["run"])[1](stored["flags"]).requires_grad_(False).eval()
    sample.unpack(stored["packed"], network)
    return network


def discriminator_of(stored: dict) -> gan.Discriminator:
    """Return the GAN's D, in eval mode."""
    network = gan.GAN(recipe=stored["flags"]["recipe"]).discriminator.requires_grad_(False).eval()
    sample.unpack(stored["discriminator"], network)
    return network


# Packing -----------------------------------------------------------------------------------------

def quantized(matrix: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix (R, C) as whole numbers of a signed type, and a scale a row, (R,).

    Each row's largest value is the type's largest times its scale, so an error is at most half of
    the scale.
    """
    scale = np.abs(matrix).max(axis=1) / np.float32(np.iinfo(dtype).max)
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    return np.rint(matrix / divisor).astype(dtype), scale.astype("<f4")


def packed(networks: dict[str, Arrays]) -> tuple[dict, bytes]:
    """Return the shapes by network and name, and one block: floats, 16-bit and 8-bit numbers.

    A matrix gives a row of scales to the floats, and the bytes of a number to its shape; any other
    array gives itself.
    """
    floats, whole, shapes = [], {"<i2": [], "i1": []}, {}
    for network, arrays in networks.items():
        shapes[network] = {key: list(value.shape) for key, value in arrays.items()}
        for key, value in arrays.items():
            if value.ndim == 2:
                kind = "<i2" if (network, key) in FINE or value.size < SMALL else "i1"
                numbers, scale = quantized(value, np.dtype(kind))
                whole[kind].append(numbers.tobytes())
                floats.append(scale.tobytes())
                shapes[network][key].append(numbers.itemsize)
            else:
                floats.append(value.astype("<f4").tobytes())
    return shapes, b"".join(floats + whole["<i2"] + whole["i1"])


def deflated(block: bytes) -> str:
    """Return a block, deflated, in base64."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(deflate.compress(block) + deflate.flush()).decode()


def inflated(text: str) -> tuple[str, bytes]:
    """Return a page without its block of numbers, and the block."""
    before, block, after = re.split(r'(?<=id="numbers">)([A-Za-z0-9+/=]*)(?=</script>)', text)
    return before + after, zlib.decompress(base64.b64decode(block), -15)


# What is measured on test images -----------------------------------------------------------------

def begin_with(grey) -> list[int]:
    """Return the indices of the first test image of each digit, then of the first others."""
    first = [int((grey.labels == digit).nonzero()[0]) for digit in range(10)]
    return first + [i for i in range(2 * IMAGES) if i not in first][:IMAGES - 10]


@torch.no_grad()
def measure(stored: dict[str, dict], data_root: Path | None) -> None:
    """Write what the page shows of test images: codes, likelihoods, a few images.

    Each array's name begins with its network's; of each network the hash of its weights. What is
    there of the same weights stays.
    """
    grey, binary = mnist(data_root)[2], bmnist(data_root)[2]
    chosen, old = begin_with(grey), all_measured()
    found = {"images": grey.images[chosen].numpy(), "labels": grey.labels[chosen].numpy()}
    for run, weights in stored.items():
        if is_of(old, weights):
            found |= {key: value for key, value in old.items() if key.startswith(f"{run} ")}
            continue
        found[f"{run} weights_sha256"] = np.array(weights["weights_sha256"])
        network = network_of(weights)
        if run == "vae-z2":
            digits = labelled(binary, data_root)
            found[f"{run} codes"] = network.code(digits.images.float()).numpy()
            found[f"{run} labels"] = digits.labels.numpy().astype(np.uint8)
        elif run == "vae-z20":
            weigh = partial(network.log_weights, noise=random_stream(0, "explore"))
            nll = importance_sampled_nll(weigh, binary, NLL_DRAWS, 20).nll
            found[f"{run} nll"] = sorted_floats(nll)
        elif run == "nf-multiscale":
            bits = torch.cat([-network(x) for x in grey]) / (784 * np.log(2))
            found[f"{run} bits_per_dim"] = sorted_floats(bits)
    write_atomically(MEASURED, lambda file: np.savez_compressed(file, **found))


def sorted_floats(values: Tensor) -> np.ndarray:
    """Return numbers, one an image, from the least to the greatest."""
    return values.sort().values.float().numpy()


def all_measured() -> Arrays:
    """Return what was measured, of whatever weights; nothing where there is no file."""
    try:
        with np.load(MEASURED) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        return {}


def is_of(found: Arrays, weights: dict) -> bool:
    """Tell whether the measures of a run are of these weights."""
    return str(found.get(f"{weights['run']} weights_sha256")) == str(weights["weights_sha256"])


def measured(stored: dict[str, dict]) -> Arrays:
    """Return what was measured of the stored weights, each array flat.

    Raises:
        RunError: it was not, or of other weights.
    """
    found = all_measured()
    for run, weights in stored.items():
        if not is_of(found, weights):
            raise RunError(f"'{MEASURED}' is not of the weights of '{run}' in code/weights; "
                           "report/page.py --measure makes it so")
    return {key: value.astype(np.float32).flatten() for key, value in found.items()
            if value.dtype.kind in "fui" and (" " not in key or key.split(" ")[0] in stored)}


# Main --------------------------------------------------------------------------------------------

def page(stored: dict[str, dict]) -> str:
    """Return the page, of the weights that there are."""
    networks = {run: NETWORKS[run](weights) for run, weights in stored.items()}
    shapes, block = packed({**networks, "test": measured(stored)})
    parts = {name: sources.read(PARTS / name) for name in ("explore.html", "explore.css")}
    script = "\n".join(sources.read(PARTS / name) for name in SCRIPTS)
    fill = {"style": parts["explore.css"], "script": script,
            "shapes": json.dumps(shapes, separators=(",", ":")), "numbers": deflated(block)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], parts["explore.html"])


def main(argv: Sequence[str] | None = None) -> Path:
    """Write the page; return where it is."""
    parser = Parser(description="Write the page to play with.")
    parser.add_argument("--measure", action="store_true",
                        help="measure the networks on test images first")
    parser.add_argument("--data_root", type=folder_name, default=None, metavar="DIR",
                        help="data folder, for --measure alone")
    args = parser.parse_args(argv)
    stored = {run: weights for run in NETWORKS if (weights := load(run))}
    if args.measure:
        measure(stored, args.data_root)
    content = page(stored).encode()
    if len(content) > LARGEST:
        raise RunError(f"the page would have {len(content):,} bytes, and may have {LARGEST:,}")
    write_atomically(PAGE, content)
    print(f"done: {PAGE}, {len(content) / 1e6:.1f} MB: {', '.join(stored) or 'no network'}")
    return PAGE


if __name__ == "__main__":
    exit_with(main)
