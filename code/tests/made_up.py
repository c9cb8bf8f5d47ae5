"""Made-up images, draws that repeat and the flags of a smoke run, for several test modules."""

from collections.abc import Callable

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


def seeded(function: Callable, *arguments):
    """Call a function with the same draws every time."""
    torch.manual_seed(7)
    return function(*arguments)
