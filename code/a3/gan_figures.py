"""What a run of the GAN draws: losses, samples, walks between classes, nearest neighbours."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from a3 import figures
from a3.gan_losses import AT_REST, PROBABILITIES
from a3.judge_classifier import classify
from a3.judge_metrics import nearest
from a3.latents import line_and_arc, slerp
from a3.runs import Run, random_stream


def grey(images: Tensor) -> Tensor:
    """Map [-1, 1], G's range, to grey values in [0, 1]."""
    return (images + 1) / 2


def save_loss_plot(history: Sequence[dict], loss: str, filename: Path) -> None:
    """Plot losses and D's outputs; mark their values where p_g = p_data, if there is only one."""
    *losses, output = AT_REST[loss]
    known = loss in PROBABILITIES
    with figures.canvas(filename, columns=2, width=4.4, height=1.7) as (left, right):
        plot_curves(left, history, {"d_loss": "$L_D$", "g_loss": "$L_G$"}, losses)
        left.set_ylabel("loss [nats]" if known else "loss")
        plot_curves(right, history, {"d_real": "$D(x)$", "d_fake": "$D(G(z))$"}, [output])
        right.set_ylabel("mean output of $D$" if known else "mean score of $D$")


def plot_curves(axis: Axes, history: Sequence[dict], curves: dict[str, str],
                levels: Sequence[float | None]) -> None:
    """Plot two columns of the history, named in the legend, and mark the levels that are known."""
    names = {math.log(4): "log 4", math.log(2): "log 2", -math.log(2): "$-$log 2"}
    for (key, name), style in zip(curves.items(), (figures.VAL, figures.TRAIN), strict=True):
        axis.plot([row[key] for row in history], label=name, **style)
    for level in levels:
        if level is not None:
            axis.axhline(level, color="0.4", linewidth=0.6, linestyle=":")
            axis.annotate(names.get(level, str(Fraction(level))), (len(history) - 1, level),
                          fontsize=7, ha="right", va="bottom")
    figures.epochs(axis)
    axis.legend()


def draw_moment(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw what the figures show of one moment of training, always from the same z."""
    return {"samples": grey(model.sampler(seed).sample(25, random_stream(seed, "figures"))).cpu()}


def save_training_figures(run: Run) -> None:
    """Draw the curves, and samples of the moments so far."""
    save_loss_plot(run.history, run.args.loss, run.figure("losses.pdf"))
    figures.save_moments(run)


def save_update(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write 25 samples if the optimizer's updates are a multiple of ``--save_interval``."""
    updates = int(next(iter(optimizer.state.values()))["step"])
    if updates % run.args.save_interval == 0:
        figures.save_png(figures.tile(draw_moment(model, run.args.seed)["samples"], 5),
                         run.figure(f"update-{updates:06}.png"))


def save_latent_figures(run: Run, generator: nn.Module, classifier: nn.Module | None,
                        train_images: Tensor) -> dict[str, list]:
    """Draw walks between two classes, a chain of walks, and the nearest training images.

    Args:
        classifier: None draws no walks between classes.
        train_images: (N, 784) grey values in [0, 1].

    Returns:
        what the classifier sees in the walks: the digits of both ends, and of every image, (2, 9),
        the likeliest digit and its probability.
    """
    z = torch.randn(1000, run.args.latent_dim, generator=random_stream(run.args.seed, "walks"))
    images = grey(generator.decode(z))  # (1000, 784)
    seen = {"interpolation_classes": []}
    if classifier is not None:
        digits, probabilities = (value.cpu() for value in classify(classifier, images))
        start = int(probabilities.argmax())
        end = int(torch.where(digits == digits[start], 0, probabilities).argmax())
        walks = grey(generator.decode(line_and_arc(z[start], z[end])))  # (18, 784)
        figures.save_png(figures.tile(walks, 9), run.figure("interpolation.png"))
        kinds, sure = (value.reshape(2, 9).tolist() for value in classify(classifier, walks))
        seen = {"interpolation_classes": [int(digits[start]), int(digits[end])],
                "interpolation_digits": kinds, "interpolation_probabilities": sure}
    chain = torch.cat([slerp(one, other, steps=9) for one, other in pairwise(z[:6])])  # (45, d)
    figures.save_png(figures.tile(grey(generator.decode(chain)), 9), run.figure("chain.png"))
    _, index = nearest(images[:10], train_images)
    pairs = torch.cat((images[:10], train_images[index]))
    figures.save_png(figures.tile(pairs, 10), run.figure("nearest.png"))
    return seen
