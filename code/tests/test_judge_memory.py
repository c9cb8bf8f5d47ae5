"""Memorisation: planted copies of real digits are found, and unseen digits are not."""

from pathlib import Path

import pytest
import torch

from a3.fetch import sample_digits
from a3.judge_memory import Memory, save_ratios
from datasets import binarize, shift_table

COPIES = 100


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, ...]:
    """Return real digits: training images, unseen ones, usual ones, further unseen ones."""
    images, _, _ = sample_digits(Path(), download=False)
    order = torch.randperm(len(images[0]), generator=torch.Generator().manual_seed(0))
    return tuple(images[0][part] for part in order[:2300].split([1000, 600, 600, 100]))


@pytest.fixture(scope="module", params=["grey", "binary"])
def memory(request, digits) -> Memory:
    """Return what grey or binary images are compared with."""
    parts = [binarize(x, i).float() if request.param == "binary" else x / 255
             for i, x in enumerate(digits)]
    held = Memory(*parts[:3], shift_table(1))
    held.further = parts[3]
    return held


def found(memory: Memory, images: torch.Tensor) -> float:
    return memory.numbers(memory.ratios(images))["nearer_to_train_share"]


def moved(images: torch.Tensor, pixels: int = 1) -> torch.Tensor:
    """Move each image by so many pixels, one after another in each direction."""
    table = shift_table(1)
    for _ in range(pixels):
        images = torch.stack([image[table[(i + i // 4) % 4 + (i % 8 >= 4) + 4 * (i % 2)]]
                              for i, image in enumerate(images)])
    return images


def test_planted_copies_are_found(memory):
    noise = torch.Generator().manual_seed(1)
    copies = memory.train[:COPIES]
    assert memory.ratios(copies).max() < 1e-6, "no rounding hides a copy"
    assert found(memory, copies) == 1
    for images in (copies, moved(copies)):
        noisy = (images + 0.05 * torch.randn(images.shape, generator=noise)).clamp(0, 1)
        assert found(memory, images) == 1
        assert found(memory, noisy) >= 0.95
    mixed = torch.cat([copies[:5], memory.further[:95]])
    assert found(memory, mixed) >= 0.05
    assert found(memory, mixed) - found(memory, memory.further[:95]) > 0.04


def test_copies_that_moved_are_found_because_moves_are_tried(digits):
    """Moved by a pixel, a copy is as far from its original as another digit is."""
    still = Memory(*(x / 255 for x in digits[:3]), shift_table(0))
    assert found(still, moved(still.train[:COPIES])) < 0.2
    assert found(still, still.train[:COPIES]) == 1


def test_unseen_images_are_not_taken_for_copies(memory):
    """One per cent are, by the threshold: of the few images here, a few per cent at most."""
    share = memory.numbers(memory.unseen_ratios)["nearer_to_train_share"]
    assert share < 0.04 and found(memory, memory.further) < 0.06, share
    assert 0.8 < memory.unseen_ratios.median() < 1.1


def test_every_second_unseen_image_gives_the_threshold_and_the_others_try_it():
    torch.manual_seed(0)
    images = torch.rand(4, 200, 784)
    memory = Memory(*images[:3], torch.arange(784)[None])
    ratios = memory.ratios(images[2])
    assert torch.equal(memory.unseen_ratios, ratios[1::2])
    assert memory.threshold == torch.quantile(ratios[::2], 0.01)


def test_the_ratio_is_of_the_two_nearest_distances():
    train, unseen = torch.zeros(1, 784), torch.ones(1, 784)
    memory = Memory(train, unseen, torch.rand(4, 784), torch.arange(784)[None])
    image = torch.zeros(1, 784)
    image[0, :16] = 1.0  # 4 from the one, sqrt(768) from the other
    assert torch.allclose(memory.ratios(image), torch.tensor(4 / 768**0.5))


def test_the_ratios_are_drawn(tmp_path):
    save_ratios({"samples": torch.rand(9), "unseen": torch.rand(9)}, tmp_path / "memory.pdf")
    assert (tmp_path / "memory.pdf").stat().st_size > 1000
