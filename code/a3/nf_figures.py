"""What a run of the flow draws: curves, one pixel's way to the prior, walks and temperatures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from a3 import figures
from a3.latents import line_and_arc
from a3.runs import Run, random_stream

TARGET_BITS_PER_DIM = 1.85  # question 3.8
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0)  # standard deviations of the prior
PIXEL = 28 * 14 + 14  # the middle of the image
WALK_DIGITS = (3, 8)  # at the ends of the walk


def save_bpd_plot(train_curve: Sequence[float], val_curve: Sequence[float], filename: Path
                  ) -> None:
    """Plot bits per dimension of each epoch; the untrained model, epoch 0, is off the plot."""
    with figures.canvas(filename, width=2.75, height=1.7) as axis:
        figures.train_and_val(axis, train_curve, val_curve, "bits per dimension")
        axis.axhline(TARGET_BITS_PER_DIM, color="0.4", linewidth=0.6, linestyle=":")
        axis.annotate(f"{TARGET_BITS_PER_DIM}", (0, TARGET_BITS_PER_DIM), fontsize=7, va="bottom")
        low = min(TARGET_BITS_PER_DIM, *train_curve, *val_curve)
        axis.set_ylim(low - 0.05, max([low, *val_curve[1:]]) + 0.05)


def draw_moment(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw what the figures show of one moment of training, always from the same z."""
    return {"samples": model.sample(25, random_stream(seed, "figures")).cpu() / 255}


def save_training_figures(run: Run) -> None:
    """Draw the curves, and samples of the moments so far."""
    curves = [[row[f"{split}_bits_per_dim"] for row in run.history] for split in ("train", "val")]
    save_bpd_plot(*curves, run.figure("bpd.pdf"))
    figures.save_moments(run)


def save_pixel_plot(model: nn.Module, data, filename: Path) -> None:
    """Histogram one pixel's values as stored, dequantized, and as logits (question 3.4)."""
    x = data.images[:, [PIXEL]].cpu().double()  # (N, 1)
    y = model.dequantize(x, random_stream(0, "pixel"))
    logits, _ = model.logit_normalize(y, torch.zeros(len(y)).double())
    panels = [(x, "stored value $x$", 256), (y, "dequantized $x + u$", 64),
              (logits, "logit of the squeezed value", 64)]
    with figures.canvas(filename, columns=3, height=1.7) as axes:
        for axis, (values, label, bins) in zip(axes, panels, strict=True):
            axis.hist(values.flatten().numpy(), bins=bins, density=True, color="#0072B2")
            axis.set(xlabel=label, yscale="log")
        axes[0].set_ylabel("density")


@torch.no_grad()
def save_latent_figures(run: Run, model: nn.Module, test) -> None:
    """Draw walks between two test digits, if there are labels; samples at several temperatures."""
    if test.labels is not None:
        ends = [int((test.labels == digit).nonzero()[0]) for digit in WALK_DIGITS]
        z, _ = model.encode(test.pixels(test.images[ends]),
                            random_stream(run.args.seed, "figures"))
        figures.save_png(figures.tile(model.decode(line_and_arc(*z)) / 255, 9),
                         run.figure("interpolation.png"))
    z = torch.randn(10, 784, generator=random_stream(run.args.seed, "figures")).to(run.device)
    rows = torch.cat([model.decode(temperature * z) for temperature in TEMPERATURES])
    figures.save_png(figures.tile(rows / 255, 10), run.figure("temperatures.png"))


def save_bits_map(bits: Tensor, filename: Path) -> None:
    """Draw how many bits each pixel, of (784,), costs."""
    with figures.canvas(filename, width=1.75, height=1.25) as axis:
        image = axis.imshow(bits.reshape(28, 28).numpy(), cmap="Greys", vmin=0)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        axis.figure.colorbar(image, ax=axis, label="bits per pixel")
