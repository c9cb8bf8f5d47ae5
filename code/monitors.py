"""Signs of health of a VAE: is its code used, and is it a code or a list of images?

Two failures are opposite. In *posterior collapse* q(z|x) is the prior for every x: the code says
nothing. In *information overload* q(z|x) shrinks to a point far out, a code of its own for every
image, and draws from the prior decode to nothing that was seen (Garcia 2019, section 3).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets import Split
from runs import generator

EXAMINED_IMAGES = 2000
EXAMINED_CODES = 200  # of these, for the mutual information
ACTIVE_VARIANCE = 0.01  # of the posterior mean, in an active unit (Burda et al. 2016, section 5.2)
COLLAPSED_KL_NATS = 0.1
OVERLOADED_STD = 1e-3
COLLAPSE, OVERLOAD, HEALTHY = "posterior collapse", "information overload", "healthy"
REMEDIES = {
    COLLAPSE: "the code says nothing about the image; try --objective free_bits, or --objective "
              "beta with --beta below 1 or with --beta_warmup",
    OVERLOAD: "the code singles out every image; the KL is missing from the objective or too "
              "weak: try --objective elbo, or beta with a larger --beta",
}


@dataclass
class Health:
    """What is looked at, over a set of images."""

    active_units: int
    mutual_information_nats: float
    smallest_std: float
    verdict: str

    def numbers(self, split: str = "val") -> dict[str, float]:
        """Return the numbers by the names that records use."""
        return {f"{split}_active_units": self.active_units,
                f"{split}_mutual_information_nats": self.mutual_information_nats,
                f"{split}_smallest_std": self.smallest_std}

    def warning(self) -> str | None:
        """Return the warning in one line, or None."""
        return f"warning: {self.verdict}: {REMEDIES[self.verdict]}" if (
            self.verdict in REMEDIES) else None


def active_units(mean: Tensor) -> int:
    """Count the dimensions whose posterior mean, (N, D), differs from image to image."""
    return int((mean.var(dim=0) > ACTIVE_VARIANCE).sum())


def mutual_information(log_q: Tensor) -> float:
    """Return I(x; z) = E[log q(z|x) - log q(z)] of N images under q, in nats.

    q(z) = 1/N sum_n q(z|x_n) is the aggregate posterior, and so I is the KL less KL(q(z) || p(z))
    (Hoffman & Johnson 2016, "ELBO surgery", eq. 4); it cannot exceed log N.

    Args:
        log_q: (M, N) nats, log q(z_i|x_j) of codes z_i ~ q(z|x_i) of the first M of the images.
    """
    log_q = log_q.double()
    log_aggregate = log_q.logsumexp(dim=1) - math.log(log_q.shape[1])
    return (log_q.diagonal() - log_aggregate).mean().item()


def pixel_entropy(images: Tensor) -> float:
    """Return the sum of the entropies of the pixels, in nats: a bound of an image's entropy.

    A code needs no more than this to name any image, whatever the model.

    Args:
        images: (N, 784) uint8.
    """
    counts = torch.stack([images[:, m].bincount(minlength=256) for m in range(images.shape[1])])
    shares = counts.double() / len(images)
    return -torch.xlogy(shares, shares).sum().item()


def verdict(kl: float, active: int, smallest_std: float, entropy: float) -> str:
    """Name the failure, if there is one.

    Args:
        kl: mean KL(q(z|x) || p(z)), nats.
        active: number of active units.
        smallest_std: of q(z|x), over images and dimensions.
        entropy: nats that suffice to name any image.
    """
    if kl < COLLAPSED_KL_NATS or active == 0:
        return COLLAPSE
    if smallest_std < OVERLOADED_STD or kl > entropy:
        return OVERLOAD
    return HEALTHY


def examine(mean: Tensor, log_std: Tensor, log_q: Tensor, kl: float, entropy: float) -> Health:
    """Examine the posteriors of a set of images.

    Args:
        mean: (N, D), the middle of each posterior.
        log_std: (N, D), of a flow, before it.
        log_q: (M, N), see ``mutual_information``.
        kl: mean KL of the posterior from the prior, nats.
        entropy: of the images, see ``pixel_entropy``.
    """
    active, smallest = active_units(mean), log_std.min().exp().item()
    return Health(active, mutual_information(log_q), smallest,
                  verdict(kl, active, smallest, entropy))


def log_posterior(model, z: Tensor, x: Tensor) -> Tensor:
    """Return log q(z_i|x_j) of all pairs, (M, N) nats; z (M, D) codes, x (N, 784) pixels."""
    mean, log_std, features = model.encoder.posterior(x)
    z_0, ldj = model.posterior.inverse(z[:, None].expand(-1, len(x), -1), features)
    eps = (z_0 - mean) * torch.exp(-log_std)
    return ldj - (0.5 * eps**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)


@torch.no_grad()
def check_codes(model, data: Split, kl: float, entropy: float) -> Health:
    """Look for collapse and overload in what a VAE makes of some images of a split.

    They are drawn, as a file may be in an order: the first half of MNIST's test images is easier.
    """
    order = torch.randperm(len(data.images), generator=generator(0, "examined images"))
    x = data.images[order[:EXAMINED_IMAGES].to(data.images.device)].float() * data.scale
    mean, log_std, features = model.encoder.posterior(x)
    eps = torch.randn(mean.shape, generator=generator(0, "monitors")).to(x.device)
    z = model.terms(x, eps).z[:EXAMINED_CODES]
    log_q = torch.cat([log_posterior(model, rows, x) for rows in z.split(20)])
    return examine(model.posterior(mean, features)[0], log_std, log_q, kl, entropy)
