"""What a VAE's codes mean, shown: walks between images, attributes, single dimensions.

All codes are u, (D,), of which the prior is standard normal; a model gives them with ``code(x)``
and takes them back with ``decode(u)``.
"""

from pathlib import Path

import torch
from torch import Tensor

import figures
from latents import lerp, slerp

STEPS = 9
PATH_DRAWS = 500  # codes of an image, over which its ELBO is averaged
ATTRIBUTE_SHARE = 0.1  # of the images that have most, and least, of a measured attribute
ATTRIBUTE_DOSES = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
TRAVERSAL = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # prior standard deviations
SHOWN_DIMENSIONS = 10


def attribute_vector(codes: Tensor, has: Tensor) -> Tensor:
    """Return the mean code with an attribute less the mean code without it, (D,).

    White (2016), section 4.1; Garcia (2019), section 3.3.

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


@torch.no_grad()
def path_numbers(model, path: Tensor) -> tuple[list[float], list[float]]:
    """Return, for each code on a path, its norm and -ELBO of the image that it decodes to.

    The image is what is likelier, pixel by pixel: it is no draw, and no average of two digits.
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


@torch.no_grad()
def draw_walks(model, images: Tensor, labels: Tensor, kls: Tensor, noise: torch.Generator, figure
               ) -> dict:
    """Draw all walks from the codes of labelled test images.

    Args:
        images: (N, 784) as the model takes them.
        labels: (N,) digits.
        kls: (D,) mean KL of each dimension.
        noise: of the samples.
        figure: file name to the path of a figure.

    Returns:
        log p(x|z) in nats of the prior samples that are shown.
    """
    codes = model.code(images)
    u = torch.randn(20, codes.shape[1], generator=noise).to(codes.device)
    means = model.decode(u)
    figures.save_png(figures.tile(means, 10), figure("walk-prior.png"))
    sampled = torch.bernoulli(means.cpu(), generator=noise).to(means.device)
    log_likelihood = -model.nll(model.logits(u), sampled)

    start, end = (codes[int((labels == digit).nonzero()[0])] for digit in (3, 8))
    paths = {"straight": lerp(start, end, STEPS), "spherical": slerp(start, end, STEPS)}
    figures.save_png(figures.tile(torch.cat([model.decode(path) for path in paths.values()]),
                                  STEPS), figure("walk-interpolation.png"))
    save_path_plot(paths, model, figure("walk-path.pdf"))

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
                     figure("walk-attributes.png"))

    rows = []
    for dimension in kls.argsort(descending=True)[:SHOWN_DIMENSIONS]:
        for value in TRAVERSAL:
            code = torch.zeros_like(start)
            code[dimension] = value
            rows.append(code)
    figures.save_png(figures.tile(model.decode(torch.stack(rows)), len(TRAVERSAL)),
                     figure("walk-dimensions.png"))
    return {"prior_samples_log_likelihood_nats": log_likelihood.tolist()}
