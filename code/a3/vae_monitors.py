"""Monitors of a VAE: does its code carry information, and does it still generalise?

Two failures are opposite. In *posterior collapse* q(z|x) is the prior for every x: the code
carries no information about the image. In *information overload* q(z|x) shrinks to a point far
from the prior's mass, one for every image, and draws from the prior decode to images unlike any
seen (Garcia 2019, section 3).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from a3.devices import float64
from a3.runs import random_stream

EXAMINED_CODES = 200  # for the mutual information
LOW_SHARE = 0.01  # the smallest std of N images is an extreme value, which falls with N
ACTIVE_VARIANCE = 0.01  # of the posterior mean, in an active unit (Burda et al. 2016, section 5.2)
COLLAPSED_KL_NATS = 0.1
OVERLOADED_STD = 1e-3
COLLAPSE, OVERLOAD, HEALTHY = "posterior collapse", "information overload", "healthy"
REMEDIES = {
    COLLAPSE: "the code carries no information; try --objective free_bits, or --objective beta "
              "with --beta below 1 or with --beta_warmup",
    OVERLOAD: "the code singles out every image; the objective lacks the KL or weights it too "
              "little: try --objective elbo, or beta with a larger --beta",
}


@dataclass
class Health:
    """The state of the codes of a set of images."""

    active_units: int
    mutual_information_nats: float
    low_std: float
    verdict: str

    def numbers(self, split: str = "val") -> dict[str, float]:
        """Return the numbers under the names that the results use."""
        return {f"{split}_active_units": self.active_units,
                f"{split}_mutual_information_nats": self.mutual_information_nats,
                f"{split}_std_1_percent_quantile": self.low_std}

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
    (Hoffman & Johnson 2016, "ELBO surgery"); it cannot exceed log N, 9.2 for 10,000 images.

    Args:
        log_q: (M, N) nats, log q(z_i|x_j) for codes z_i ~ q(z|x_i) of the first M images.
    """
    log_q = float64(log_q)
    log_aggregate = log_q.logsumexp(dim=1) - math.log(log_q.shape[1])
    return (log_q.diagonal() - log_aggregate).mean().item()


def pixel_entropy(images: Tensor) -> float:
    """Return the sum of the pixels' entropies, in nats: a bound on the entropy of an image.

    On average a code needs no more nats than this to name one of these images.

    Args:
        images: (N, 784) uint8.
    """
    counts = torch.stack([images[:, m].bincount(minlength=256) for m in range(images.shape[1])])
    shares = float64(counts) / len(images)
    return -torch.xlogy(shares, shares).sum().item()


def verdict(kl: float, active: int, low_std: float, entropy: float) -> str:
    """Name the failure, if there is one.

    Args:
        kl: mean KL(q(z|x) || p(z)), nats.
        active: number of active units.
        low_std: of q(z|x), below which LOW_SHARE is, over images and dimensions.
        entropy: nats that on average are enough to name an image.
    """
    if kl < COLLAPSED_KL_NATS or active == 0:
        return COLLAPSE
    if low_std < OVERLOADED_STD or kl > entropy:
        return OVERLOAD
    return HEALTHY


def examine(mean: Tensor, log_std: Tensor, log_q: Tensor, kl: float, entropy: float) -> Health:
    """Examine the posteriors of a set of images.

    Args:
        mean: (N, D), the middle of each posterior.
        log_std: (N, D), before the flow if there is one.
        log_q: (M, N), see ``mutual_information``.
        kl: mean KL of the posterior from the prior, nats.
        entropy: of the images, see ``pixel_entropy``.
    """
    active, low = active_units(mean), log_std.cpu().quantile(LOW_SHARE).exp().item()
    return Health(active, mutual_information(log_q), low, verdict(kl, active, low, entropy))


@torch.no_grad()
def check_codes(model, data, kl: float, entropy: float) -> Health:
    """Look for collapse and overload in the codes that a VAE gives all images of a split.

    The codes whose information is estimated are of images drawn at random, since a file may be
    sorted: the first half of MNIST's test images is easier.

    Args:
        model: a VariantVAE.
        data: a Split.
        kl: mean KL over the split, nats.
        entropy: see ``pixel_entropy``.
    """
    order = torch.randperm(len(data.images), generator=random_stream(0, "examined images"))
    x = data.pixels(data.images[order.to(data.images.device)])
    mean, log_std, features = model.gaussian(x)
    eps = torch.randn(mean.shape, generator=random_stream(0, "monitors")).to(x.device)
    log_q = model.log_posterior(model.terms(x, eps).z[:EXAMINED_CODES], x)  # (M, N)
    return examine(model.posterior(mean, features)[0], log_std, log_q, kl, entropy)
