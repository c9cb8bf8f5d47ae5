"""Walks among the codes of a trained VAE: what do its latent dimensions mean?

Draws from the prior, walks between two digits on the line and on the great arc, adds attribute
vectors (White 2016; Garcia 2019, section 3.3), and varies single dimensions. All codes are u,
(D,), standard normal under the prior: a model gives them with ``code(x)`` and takes them back
with ``decode(u)``.

    python code/walks.py               # of the run vae-z20; 10 s on 2 cores
    python code/walks.py vae-best      # of any other finished run of a VAE of binary pixels
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from a3.cli import exit_with, parse, run_label, run_name, seed_int, tool_flags

import torch
from torch import Tensor

from a3 import figures
from a3.latents import line_and_arc
from a3.records import REPOSITORY, write_record
from a3.runs import RunError, random_stream
from a3.vae_monitors import active_units
from datasets import bmnist, labelled, same_again
from vae_variants import trained_vae

STEPS = 9
PRIOR_DRAWS = 20
PATH_DRAWS = 500  # codes over which the ELBO of an image is averaged
ATTRIBUTE_SHARE = 0.1  # share of images that count as having most, or least, of an attribute
ATTRIBUTE_DOSES = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
TRAVERSAL = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # prior standard deviations
SHOWN_DIMENSIONS = 10


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Draw walks among the codes of a trained VAE.")
    parser.add_argument("run", nargs="?", type=run_label, default="vae-z20", metavar="RUN",
                        help="finished run of the VAE or of a variant of binary pixels")
    parser.add_argument("--seed", type=seed_int, default=42, help="seed of the samples")
    return parse(parser, argv)


# Attributes --------------------------------------------------------------------------------------

def attribute_vector(codes: Tensor, has: Tensor) -> Tensor:
    """Return the mean code with an attribute less the mean code without it, (D,).

    White (2016); Garcia (2019, section 3.3) averages only the codes that have the attribute.

    Args:
        codes: (N, D).
        has: (N,) bool, neither all nor none.
    """
    return codes[has].mean(dim=0) - codes[~has].mean(dim=0)


def slant(images: Tensor) -> Tensor:
    """Return how far each digit leans to the right: -cov(column, row) / var(row), (N,).

    Args:
        images: (N, 784), row by row from the top; none of them empty.
    """
    ink = images.reshape(-1, 28, 28) / images.sum(dim=1)[:, None, None]
    line = torch.arange(28.0, device=images.device)
    row, column = ink.sum(dim=2) @ line, ink.sum(dim=1) @ line  # means, (N,)
    rows, columns = line[None, :, None] - row[:, None, None], line - column[:, None, None]
    return -(ink * rows * columns).sum(dim=(1, 2)) / (ink * rows**2).sum(dim=(1, 2))


def thickness(images: Tensor) -> Tensor:
    """Return the mean width of each digit's strokes in pixels: twice its area over its outline.

    Args:
        images: (N, 784) in [0, 1], with empty borders; none of them empty.
    """
    board = images.reshape(-1, 28, 28)
    outline = sum(board.diff(dim=dim).abs().sum(dim=(1, 2)) for dim in (1, 2))
    return 2 * board.sum(dim=(1, 2)) / outline


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the images with most and with least of an attribute, (N,) values."""
    order, count = values.argsort(), max(1, round(ATTRIBUTE_SHARE * len(values)))
    return order[-count:], order[:count]


# Walks -------------------------------------------------------------------------------------------

@torch.no_grad()
def path_numbers(model, path: Tensor) -> tuple[list[float], list[float]]:
    """Return, for each code on a path, its norm and the -ELBO of the image it decodes to.

    Each pixel of the image takes its likelier value: it is neither a sample nor a blend.
    """
    images = (model.decode(path) > 0.5).float()
    noise = torch.Generator().manual_seed(0)  # the same for every path: equal ends stay equal
    weights = model.log_weights(images, PATH_DRAWS, noise)
    return path.norm(dim=1).tolist(), (-weights.mean(dim=0)).tolist()


def save_path_plot(paths: dict[str, Tensor], model, filename: Path) -> None:
    """Plot norms and -ELBO along a straight and a spherical path, from codes (steps, D)."""
    styles = {"straight": figures.TRAIN, "spherical": figures.VAL}
    with figures.canvas(filename, columns=2) as (norms, elbos):
        for name, path in paths.items():
            norm, elbo = path_numbers(model, path)
            norms.plot(norm, label=name, **styles[name])
            elbos.plot(elbo, label=name, **styles[name])
        norms.axhline(path.shape[1] ** 0.5, color="0.4", linewidth=0.6, linestyle=":")
        norms.annotate("$\\sqrt{D}$", (0, path.shape[1] ** 0.5), fontsize=7, va="bottom")
        norms.set(xlabel="step", ylabel="norm of the code", ylim=(0, None))
        elbos.set(xlabel="step", ylabel="$-$ELBO of the image [nats]")
        norms.legend()


def draw_prior(model, noise: torch.Generator, figure) -> dict:
    """Draw from the prior; return log p(x|z), in nats, of each image drawn."""
    images, means = model.sample(PRIOR_DRAWS, noise)  # 2 x (PRIOR_DRAWS, 784)
    figures.save_png(figures.tile(means, 10), figure("prior.png"))
    log_p = torch.where(images > 0, means.log(), (1 - means).log()).sum(dim=1)
    return {"prior_samples_log_likelihood_nats": log_p.tolist()}


def draw_interpolation(model, start: Tensor, end: Tensor, figure) -> None:
    """Walk on the straight line and on the great arc between two codes (D,)."""
    codes = line_and_arc(start, end, STEPS)  # (2 STEPS, D)
    figures.save_png(figures.tile(model.decode(codes), STEPS), figure("interpolation.png"))
    straight, spherical = codes.split(STEPS)
    save_path_plot({"straight": straight, "spherical": spherical}, model, figure("path.pdf"))


def draw_attributes(model, codes: Tensor, images: Tensor, labels: Tensor, figure) -> None:
    """Add multiples of the vectors of slant, thickness and being an 8 to one code each."""
    vectors = []
    for values in (slant(images), thickness(images)):
        most, least = extremes(values)
        chosen = torch.cat((most, least))
        vectors.append(attribute_vector(codes[chosen], torch.arange(len(chosen)) < len(most)))
    vectors.append(attribute_vector(codes, labels == 8))  # of a class
    bases = [codes[int((labels == digit).nonzero()[1])] for digit in (1, 7, 3)]
    rows = [base + dose * vector for base, vector in zip(bases, vectors, strict=True)
            for dose in ATTRIBUTE_DOSES]
    figures.save_png(figures.tile(model.decode(torch.stack(rows)), len(ATTRIBUTE_DOSES)),
                     figure("attributes.png"))


def draw_dimensions(model, kls: Tensor, figure) -> None:
    """Vary single dimensions of the code 0, those of the largest mean KL (D,) first.

    The KL is that of the code before any flow: with flows the order means little.
    """
    dimensions = kls.argsort(descending=True)[:SHOWN_DIMENSIONS]
    codes = torch.zeros(len(dimensions), len(TRAVERSAL), len(kls), device=kls.device)
    for row, dimension in zip(codes, dimensions, strict=True):
        row[:, dimension] = torch.tensor(TRAVERSAL, device=kls.device)
    figures.save_png(figures.tile(model.decode(codes.flatten(0, 1)), len(TRAVERSAL)),
                     figure("dimensions.png"))


@torch.no_grad()
def draw_walks(model, digits, noise: torch.Generator, figure) -> dict:
    """Draw all walks from the codes of labelled test images.

    Args:
        model: a VariantVAE with binary pixels.
        digits: a Split with labels.
        noise: of the samples.
        figure: file name to the path of a figure.

    Returns:
        log p(x|z) in nats of the prior samples drawn, and how many units are active.
    """
    images, labels = digits.pixels(digits.images), digits.labels
    codes = model.code(images)  # (N, D)
    numbers = draw_prior(model, noise, figure)
    start, end = (codes[int((labels == digit).nonzero()[0])] for digit in (3, 8))
    draw_interpolation(model, start, end, figure)
    draw_attributes(model, codes, images, labels, figure)
    eps = torch.zeros(len(images), model.z_dim, device=images.device)
    draw_dimensions(model, model.terms(images, eps).kls.mean(dim=0), figure)
    return {**numbers, "active_units": active_units(codes)}


# Main --------------------------------------------------------------------------------------------

def main(argv: Sequence[str] | None = None) -> dict:
    """Draw the walks; write <run>-walk.json and return what it holds."""
    args = parse_args(argv)
    model, results = trained_vae(args.run, args.out, args.device)
    dataset = same_again(results["flags"]["dataset"], results["data"]["name"])
    test = bmnist(args.data_root, dataset=dataset, device=args.device)[2]
    digits = labelled(test, args.data_root)
    if digits is None:
        raise RunError("walks start from labelled digits, which need MNIST; put it under the data "
                       "folder, or name another with --data_root")
    report, name = args.out or REPOSITORY / "report", run_name(f"{args.run}-walk", args,
                                                               named=["run"])
    numbers = draw_walks(model, digits, random_stream(args.seed, "walks"),
                         lambda figure: report / "figures" / f"{name}-{figure}")
    record = write_record(report / "results" / f"{name}.json", args.device, **numbers,
                          run=args.run, seed=args.seed)
    print(f"done: {report / 'results' / name}.json, figures in {report / 'figures'}")
    return record


if __name__ == "__main__":
    exit_with(main)
