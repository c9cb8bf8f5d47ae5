"""What a run of the VAE draws: curves, samples, manifolds, reconstructions and codes."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import figures
from datasets import DataError, binarize, mnist
from latents import normal_grid
from runs import Run, generator
from walks import draw_walks

MANIFOLD_SIDE = 20  # the manifold is a 20 x 20 grid (question 1.15)


class Elbo(float):
    """A negative ELBO in nats per image, that remembers its two terms."""

    def __new__(cls, reconstruction: float, kl: float):
        """Take the two terms, each in nats per image."""
        elbo = super().__new__(cls, reconstruction + kl)
        elbo.reconstruction, elbo.kl = reconstruction, kl
        return elbo


def save_elbo_plot(train_curve: Sequence[float], val_curve: Sequence[float], filename: Path,
                   binary: bool = True) -> None:
    """Plot the negative ELBO of each epoch, from 0, the untrained model; if known, its terms.

    Of binary pixels on a logarithmic axis, with the level at which every mean is 1/2.
    """
    panels = [("$-$ELBO", float)]
    if isinstance(train_curve[0], Elbo):
        panels += [("reconstruction", lambda elbo: elbo.reconstruction),
                   ("KL", lambda elbo: elbo.kl)]
    with figures.canvas(filename, columns=len(panels), squeeze=False) as axes:
        for axis, (label, term) in zip(axes[0], panels, strict=True):
            train, val = list(map(term, train_curve)), list(map(term, val_curve))
            figures.train_and_val(axis, train, val, f"{label} [nats per image]",
                                  legend="lower right" if label == "KL" else "center right")
            if binary and label != "KL":
                figures.log_ticks(axis, [70, 100, 150, 200, 300, 500])
        if binary:
            level = 784 * math.log(2)
            axes[0][0].axhline(level, color="0.4", linewidth=0.6, linestyle=":")
            axes[0][0].annotate("784 ln 2", (len(train_curve) - 1, level), fontsize=7, ha="right",
                                va="top", xytext=(0, -2), textcoords="offset points")


def draw_moment(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw what the figures show of one moment of training, always from the same z."""
    samples, means = model.sample(25, generator(seed, "figures"))
    moment = {"samples": samples, "means": means}
    if model.z_dim == 2:
        moment["manifold"] = model.decode(normal_grid(MANIFOLD_SIDE).to(means.device))
    return {key: images.cpu() for key, images in moment.items()}


def save_training_figures(run: Run):
    """Draw the curves and, for the moments that were reached, samples and manifolds."""
    curves = [[Elbo(row[f"{split}_reconstruction_nats"], row[f"{split}_kl_nats"])
               for row in run.history] for split in ("train", "val")]
    save_elbo_plot(*curves, run.figure("elbo.pdf"), run.args.likelihood == "bernoulli")
    moments = [run.snapshots[epoch] for epoch in sorted(run.snapshots)]
    for name, moment in run.named_moments():
        means, samples = (figures.tile(moment[key], 5) for key in ("means", "samples"))
        figures.save_png(figures.join((means, samples), axis=0),
                         run.figure(f"samples-{name}.png"))
        if "manifold" in moment:
            figures.save_png(figures.tile(moment["manifold"], MANIFOLD_SIDE),
                             run.figure(f"manifold-{name}.png"))
    gallery = [figures.tile(moment["means"][:16], 4) for moment in moments]
    figures.save_png(figures.join(gallery, axis=1), run.figure("gallery.png"))


def save_encoder_figures(run: Run, model: nn.Module, val, test) -> None:
    """Draw reconstructions of val images and, for two latent dimensions, the codes of digits."""
    x = val.images[:20].float() * val.scale
    means = model.decode(model.code(x))
    pairs = torch.cat([x[:10], means[:10], x[10:], means[10:]])
    figures.save_png(figures.tile(pairs, 10), run.figure("reconstructions.png"))
    if model.z_dim != 2:
        return
    try:
        images, labels = labelled(run, test)
    except DataError as error:
        print(f"the figure of the codes is left out, it needs labels: {error}")
        return
    figures.scatter_quantiles(run.figure("codes.pdf"), model.code(images).cpu(), labels.cpu())


def labelled(run: Run, test) -> tuple[Tensor, Tensor]:
    """Return test images as the model takes them, and their digits.

    Larochelle's files have no labels; MNIST's own test images, binarized, have them.

    Raises:
        DataError: MNIST is not to be had.
    """
    if test.labels is not None:
        return test.images.float() * test.scale, test.labels
    digits = mnist(run.args.data_root, dataset="mnist", device=run.device)[2]
    return binarize(digits.images).float(), digits.labels


def save_walks(run: Run, model: nn.Module, test) -> dict:
    """Draw the walks of ``walks.py``; return their numbers."""
    try:
        images, labels = labelled(run, test)
    except DataError as error:
        print(f"the walks are left out, they need labels: {error}")
        return {}
    with torch.no_grad():
        eps = torch.zeros(len(images), model.z_dim, device=images.device)
        kls = model.terms(images, eps).kls.mean(dim=0)
    return draw_walks(model, images, labels, kls, generator(run.args.seed, "walks"), run.figure)
