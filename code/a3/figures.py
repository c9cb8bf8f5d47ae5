"""Curves as vector PDF and image grids as exact PNG, in one style, for the report's text width.

Nothing here trains: every function draws the numbers or images it is given.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from a3.records import write_atomically

TEXT_WIDTH_IN = 5.5  # the NIPS page's
ZOOM = 3  # each pixel becomes 3 x 3 equal ones, so that no viewer blurs it
GAP_PX = 2  # between two images of a grid
# Two colours of different lightness (Okabe & Ito 2008), and lines of different style: readable in
# grey and by colour-blind readers.
TRAIN = {"color": "#E69F00", "linestyle": "--", "linewidth": 1.2}
VAL = {"color": "#0072B2", "linestyle": "-", "linewidth": 1.2}
STYLE = {
    "font.size": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "axes.grid": True, "grid.linewidth": 0.3, "grid.color": "0.85",
    "legend.frameon": False, "font.family": "serif", "font.serif": ["STIXGeneral"],
    "mathtext.fontset": "stix", "pdf.fonttype": 42, "savefig.bbox": "tight", "savefig.dpi": 300,
    "savefig.pad_inches": 0.02,
}  # fmt: skip


@contextmanager
def canvas(path: Path, columns: int = 1, width: float = TEXT_WIDTH_IN, height: float = 2.0,
           rows: int = 1, **options):
    """Yield the axes of a figure in the report's style, and write it as PDF at the end.

    The figure has a canvas of its own: the user's pyplot stays as it is. The date is left out of
    the file, so that equal numbers give equal bytes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(rows, columns, **options)
        kind = Path(path).suffix[1:] or "pdf"
        write_atomically(path, lambda file: figure.savefig(file, format=kind,
                                                           metadata={"CreationDate": None}))


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Lay images out in rows, with white lines between and around them.

    Args:
        images: (N, 784) grey values in [0, 1]; others are clipped.

    Returns:
        (H, W) uint8; an incomplete last row is filled up with white.
    """
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.reshape(-1, 28, 28).numpy()
    rows = -(-len(pixels) // columns)
    step = 28 + GAP_PX
    sheet = np.full((rows * step + GAP_PX, columns * step + GAP_PX), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = GAP_PX + i // columns * step, GAP_PX + i % columns * step
        sheet[top : top + 28, left : left + 28] = image
    return sheet


def join(sheets: Sequence[np.ndarray], axis: int, gap: int = 14) -> np.ndarray:
    """Put sheets of the same size below (axis 0) or beside (axis 1) each other on white."""
    space = np.full_like(np.take(sheets[0], [0] * gap, axis), 255)
    parts = [part for sheet in sheets for part in (space, sheet)][1:]
    return np.concatenate(parts, axis)


def save_png(sheet: np.ndarray, path: Path) -> None:
    """Write grey values pixel by pixel, each enlarged to a square: nothing is interpolated."""
    image = Image.fromarray(sheet.repeat(ZOOM, 0).repeat(ZOOM, 1))
    write_atomically(path, lambda file: image.save(file, format="png", optimize=True))


def save_gallery(run, kind: str = "samples") -> None:
    """Write the first 16 images of every moment so far side by side, in the order of training."""
    moments = [run.snapshots[epoch] for epoch in sorted(run.snapshots)]
    save_png(join([tile(moment[kind][:16], 4) for moment in moments], axis=1),
             run.figure("gallery.png"))


def save_moments(run) -> None:
    """Write the samples of the start, half and end of a run, and the gallery of all moments."""
    for name, moment in run.named_moments():
        save_png(tile(moment["samples"], 5), run.figure(f"samples-{name}.png"))
    save_gallery(run)


def train_and_val(axis, train: Sequence[float], val: Sequence[float], label: str,
                  legend: str = "upper right", evaluated: Sequence[float] = ()) -> None:
    """Draw the two curves of one quantity against epochs 0, 1, ...; the legend has the ends.

    Args:
        evaluated: of training images too, but evaluated as validation is.
    """
    digits = 3 if max(train[-1], val[-1]) < 10 else 2
    axis.plot(train, label=f"train {train[-1]:.{digits}f}", **TRAIN)
    if evaluated:
        axis.plot(evaluated, label=f"train, evaluated {evaluated[-1]:.{digits}f}",
                  **{**TRAIN, "linestyle": ":"})
    axis.plot(val, label=f"validation {val[-1]:.{digits}f}", **VAL)
    axis.set(ylabel=label)
    epochs(axis)
    axis.legend(loc=legend)


def epochs(axis) -> None:
    """Label the horizontal axis as epochs: whole numbers, in a short run too."""
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)


def log_ticks(axis, ticks: Sequence[float]) -> None:
    """Make the vertical axis logarithmic, with plain numbers at these ticks."""
    axis.set_yscale("log")
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
