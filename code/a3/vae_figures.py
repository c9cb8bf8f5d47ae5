"""What a run of the VAE draws: curves, samples, manifolds, reconstructions and codes."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn

from a3 import figures
from a3.latents import normal_grid
from a3.runs import Run, random_stream

MANIFOLD_SIDE = 20  # the manifold is a 20 x 20 grid (question 1.15)
LABEL_DISTANCE = 0.085  # smallest distance of two labels on the unit square
COIN_NATS = 784 * math.log(2)  # -log p(x|z) where every Bernoulli mean is 1/2


class Elbo(float):
    """A negative ELBO in nats per image that keeps its two terms."""

    def __new__(cls, reconstruction: float, kl: float):
        """Take the two terms, each in nats per image."""
        elbo = super().__new__(cls, reconstruction + kl)
        elbo.reconstruction, elbo.kl = reconstruction, kl
        return elbo


def save_elbo_plot(train_curve: Sequence[float], val_curve: Sequence[float], filename: Path,
                   evaluated: Sequence[float] = ()) -> None:
    """Plot the negative ELBO of each epoch, from 0, the untrained model; and its terms, if known.

    Curves that start at 784 ln 2 are of binary pixels: they get a logarithmic axis, and that
    level is marked.

    Args:
        train_curve, val_curve: nats per image; the terms are those of an ``Elbo``.
        evaluated: -ELBO of training images, evaluated as those of validation are.
    """
    panels = [("$-$ELBO", float)]
    if isinstance(train_curve[0], Elbo):
        panels += [("reconstruction", lambda elbo: elbo.reconstruction),
                   ("KL", lambda elbo: elbo.kl)]
    binary = abs(val_curve[0] - COIN_NATS) < 10
    with figures.canvas(filename, columns=len(panels), squeeze=False) as axes:
        for axis, (label, term) in zip(axes[0], panels, strict=True):
            train, val = list(map(term, train_curve)), list(map(term, val_curve))
            figures.train_and_val(axis, train, val, f"{label} [nats per image]",
                                  legend="lower right" if label == "KL" else "center right",
                                  evaluated=evaluated if term is float else ())
            if binary and label != "KL":
                figures.log_ticks(axis, [70, 100, 150, 200, 300, 500])
        if binary:
            axes[0][0].axhline(COIN_NATS, color="0.4", linewidth=0.6, linestyle=":")
            axes[0][0].annotate("784 ln 2", (len(train_curve) - 1, COIN_NATS), fontsize=7,
                                ha="right", va="top", xytext=(0, -2), textcoords="offset points")


def draw_moment(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw what the figures show of one moment of training, always from the same z."""
    samples, means = model.sample(25, random_stream(seed, "figures"))
    moment = {"samples": samples, "means": means}
    if model.z_dim == 2:
        moment["manifold"] = model.decode(normal_grid(MANIFOLD_SIDE).to(means.device))
    return {key: images.cpu() for key, images in moment.items()}


def save_training_figures(run: Run) -> None:
    """Draw the curves, and of the moments so far samples below their means, and manifolds."""
    curves = [[Elbo(row[f"{split}_reconstruction_nats"], row[f"{split}_kl_nats"])
               for row in run.history] for split in ("train", "val")]
    save_elbo_plot(*curves, run.figure("elbo.pdf"),
                   [row["train_evaluated_elbo_nats"] for row in run.history])
    for name, moment in run.named_moments():
        means, samples = (figures.tile(moment[key], 5) for key in ("means", "samples"))
        figures.save_png(figures.join((means, samples), axis=0),
                         run.figure(f"samples-{name}.png"))
        if "manifold" in moment:
            figures.save_png(figures.tile(moment["manifold"], MANIFOLD_SIDE),
                             run.figure(f"manifold-{name}.png"))
    figures.save_gallery(run, "means")


def save_latent_figures(run: Run, model: nn.Module, val, digits=None) -> None:
    """Draw reconstructions of val images and the codes of labelled digits.

    Args:
        val: a Split.
        digits: a Split with labels, for a model of two latent dimensions; None draws no codes.
    """
    x = val.pixels(val.images[:20])
    means = model.decode(model.code(x))
    pairs = torch.cat([x[:10], means[:10], x[10:], means[10:]])
    figures.save_png(figures.tile(pairs, 10), run.figure("reconstructions.png"))
    if digits is not None:
        codes = model.code(digits.pixels(digits.images))
        save_codes(run.figure("codes.pdf"), codes.cpu(), digits.labels.cpu())


def apart(places: np.ndarray, distance: float) -> np.ndarray:
    """Return the places (N, 2), moved so that no two are closer than ``distance``."""
    places = places.copy()
    for _ in range(100):
        for i, j in itertools.combinations(range(len(places)), 2):
            way = places[j] - places[i]
            length = np.hypot(*way)
            if length < distance:
                push = (distance - length) / 2 * (way / length if length else np.array([1.0, 0.0]))
                places[i] -= push
                places[j] += push
    return places


def save_codes(path: Path, points: Tensor, labels: Tensor) -> None:
    """Draw labelled codes (N, 2) by their quantiles under N(0, I), one colour a class.

    The axes are those of the inverse-CDF grid (``latents.normal_grid``), so that the cloud of a
    class lies where the manifold shows its digits. The label of a class stands at the median of
    its cloud, or a little beside it where two labels would overlap.
    """
    quantiles = torch.special.ndtr(points).numpy()
    clouds = [quantiles[labels.numpy() == digit] for digit in range(10)]
    places = apart(np.array([np.median(cloud, axis=0) for cloud in clouds]), LABEL_DISTANCE)
    with figures.canvas(path, width=2.7, height=2.7) as axis:
        for digit, (cloud, place, color) in enumerate(
                zip(clouds, places, matplotlib.colormaps["tab10"].colors, strict=True)):
            axis.plot(*cloud.T, ".", markersize=2, alpha=0.5, color=color, rasterized=True,
                      markeredgewidth=0)
            axis.annotate(str(digit), place, fontsize=8, weight="bold", ha="center", va="center",
                          zorder=3,
                          bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": color})
        ticks = torch.special.ndtr(torch.arange(-2.0, 3)).tolist()
        axis.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(0, 1), ylim=(0, 1), aspect="equal",
                 xticks=ticks, yticks=ticks, xticklabels=range(-2, 3), yticklabels=range(-2, 3))
