"""Made-up images, draws that repeat and the flags of a smoke run, for several test modules."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from datasets import Split

SMOKE = ["--dataset", "sample", "--limit", "256", "--device", "cpu"]


def binary(number: int, **options) -> Split:
    """Return made-up binary images, a fifth of their pixels 1."""
    pixels = torch.rand(number, 784, generator=torch.Generator().manual_seed(0)) < 0.2
    return Split(pixels.to(torch.uint8), None, **options)


def grey(number: int, **options) -> Split:
    """Return made-up images of 8 bits a pixel."""
    pixels = torch.randint(0, 256, (number, 784), generator=torch.Generator().manual_seed(0))
    return Split(pixels.to(torch.uint8), None, **options)


def idx_of(array: np.ndarray) -> bytes:
    """Return the bytes of an array as an IDX file, the format of MNIST."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def own_arrays(train: int = 120, test: int = 40) -> dict[str, np.ndarray]:
    """Return made-up images like Fashion-MNIST's: bars, with their widths as labels."""
    arrays = {}
    for split, number in (("train", train), ("test", test)):
        images = np.random.default_rng(number).integers(0, 60, (number, 28, 28), dtype=np.uint8)
        for i, image in enumerate(images):
            image[4:24, 5:7 + i % 10] += 180
        arrays |= {split: images, f"{split}_labels": np.arange(number, dtype=np.uint8) % 10}
    return arrays


def own_files(folder: Path, arrays: dict[str, np.ndarray], train: str = "train",
              test: str = "t10k", packed: bool = True) -> Path:
    """Write arrays as IDX files, under names like MNIST's."""
    folder.mkdir(parents=True)
    for role, array in arrays.items():
        kind = "labels-idx1-ubyte" if role.endswith("_labels") else "images-idx3-ubyte"
        name = f"{train if role.startswith('train') else test}-{kind}{'.gz' * packed}"
        (folder / name).write_bytes(gzip.compress(idx_of(array), 1) if packed else idx_of(array))
    return folder


def seeded(function: Callable, *arguments):
    """Call a function with the same draws every time."""
    torch.manual_seed(7)
    return function(*arguments)
