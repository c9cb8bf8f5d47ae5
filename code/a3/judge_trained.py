"""A trained model of any kind, as those see it who judge it or draw from it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from a3 import figures
from a3.devices import describe_device
from a3.judge_classifier import DigitClassifier, classify
from a3.judge_metrics import nearest
from a3.latents import slerp

WALK_DIGITS = (3, 8)  # at the ends of the walk
TIMED_SAMPLES = 1000


@dataclass
class Trained:
    """A trained model behind the one interface that all have.

    Attributes:
        results: of its run, as in ``results/<run>.json``.
        network: what draws samples, in eval mode.
        draw: (n, generator) to n grey images, (n, 784) in [0, 1]; the VAE gives its means.
        codes: images (B, 784) in 0..255 to codes, or None where the model has no encoder.
        decode: codes to grey images in [0, 1].
        discriminator: of a GAN, in eval mode.
    """

    results: dict
    network: nn.Module
    draw: Callable[[int, torch.Generator], Tensor]
    codes: Callable[[Tensor], Tensor] | None
    decode: Callable[[Tensor], Tensor]
    discriminator: nn.Module | None = None


def cost(model: Trained, noise: torch.Generator, device: str) -> dict:
    """Return size and time: training's from the run's record, sampling's measured here.

    The GAN counts G alone; the VAE's samples are its means.
    """
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        model.draw(TIMED_SAMPLES, noise).cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return {"parameters": sum(p.numel() for p in model.network.parameters()),
            **{key: model.results[key] for key in ("epochs", "train_seconds", "epoch_seconds")},
            "trained_on": model.results["device"],
            "milliseconds_per_1000_samples": 1000 * statistics.median(seconds[1:]),
            "sampled_on": describe_device(device)}


@torch.no_grad()
def round_trip(model: Trained, images: Tensor, x: Tensor) -> float | None:
    """Return the root mean square of x - decode(code of the images); None without an encoder.

    Args:
        images: (B, 784) uint8 in 0..255.
        x: what the code is of, grey values in [0, 1].
    """
    if model.codes is None:
        return None
    return (x - model.decode(model.codes(images))).square().mean().sqrt().item()


# Figures: a file for each model, since they may be judged at different times ---------------------

def save_samples(grey: Tensor, binary: Tensor, filename: Path) -> None:
    """Draw 36 images and, below, the same made binary, each (36, 784)."""
    figures.save_png(figures.join([figures.tile(images, 6) for images in (grey, binary)], axis=0),
                     filename)


def save_nearest(samples: Tensor, train: Tensor, filename: Path) -> None:
    """Draw samples (N, 784) and, below each, the nearest of the images train (M, 784)."""
    _, index = nearest(samples.to(train.device), train)
    figures.save_png(figures.tile(torch.cat([samples, train[index].cpu()]), len(samples)),
                     filename)


@torch.no_grad()
def save_walk(model: Trained, images: Tensor, labels: Tensor, classifier: DigitClassifier,
              noise: torch.Generator, filename: Path) -> None:
    """Draw nine images on the great arc between digits of two classes.

    A VAE and a flow start from the codes of the first such images; a GAN, which has no encoder,
    from the clearest such samples of a thousand.

    Args:
        images, labels: (N, 784) uint8 in 0..255, and (N,).
    """
    if model.codes is not None:
        first = [int((labels == digit).nonzero()[0]) for digit in WALK_DIGITS]
        z = model.codes(images[first])
    else:
        z = torch.randn(1000, model.network.latent_dim, generator=noise)
        digits, probability = classify(classifier, model.decode(z))
        z = z[[int(torch.where(digits == digit, probability, 0).argmax().cpu())
               for digit in WALK_DIGITS]]
    figures.save_png(figures.tile(model.decode(slerp(*z, steps=9)), 9), filename)
