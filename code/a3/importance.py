"""Likelihood by importance sampling: a bound on log p(x) that tightens with every draw.

With weights w_k = p(x, z_k) / q(z_k | x) and z_k ~ q(z|x), the mean of K weights is an unbiased
estimate of p(x), so by Jensen's inequality

    E[log (1/K sum_k w_k)] <= log p(x),

to which it tends as K grows if the weights are bounded (Burda et al. 2016, theorem 1). K = 1 is
the ELBO. The noise draws of dequantization are the same case: q is uniform, the weights are
p(x + u_k).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from a3.devices import float64
from a3.runs import progress


class Estimate(NamedTuple):
    """-log p(x) of every image, (N,) nats, and the variance of the estimate by its draws.

    ``half`` is the same estimate with half as many draws, averaged over the two halves.
    """

    nll: Tensor
    variance: Tensor
    half: Tensor

    def mean(self) -> float:
        """Return the average over the images, in nats."""
        return self.nll.mean().item()

    def draw_error(self) -> float | None:
        """Return the standard error of the average due to the draws; None with one draw."""
        error = (self.variance.sum().sqrt() / len(self.nll)).item()
        return error if math.isfinite(error) else None

    def doubling(self) -> float | None:
        """Return by how much the last doubling of the draws lowered the average, in nats.

        About what the next one will: where it is above the error by the draws, more are needed.
        None with one draw.
        """
        fall = (self.half.mean() - self.nll.mean()).item()
        return fall if math.isfinite(fall) else None

    def image_error(self) -> float:
        """Return the standard error of the average due to the choice of images."""
        return (self.nll.std() / math.sqrt(len(self.nll))).item()

    def numbers(self, key: str, draws: int, nats_per_bit_per_dim: float) -> dict:
        """Return average, errors and doubling, each in nats per image and in bits per dimension.

        Args:
            key: what the names of all begin with.
            draws: how many there were for each image, also returned.
        """
        nats = {key: self.mean(), f"{key}_draw_error": self.draw_error(),
                f"{key}_image_error": self.image_error(), f"{key}_doubling": self.doubling()}
        numbers: dict = {f"{key}_draws": draws}
        for name, value in nats.items():
            numbers[f"{name}_nats"] = value
            numbers[f"{name}_bits_per_dim"] = value and value / nats_per_bit_per_dim
        return numbers


@torch.no_grad()
def importance_sampled_nll(log_weights: Callable[[Tensor, int], Tensor], batches, n_samples: int,
                           chunk: int, bfloat16: bool = False) -> Estimate:
    """Estimate -log p(x) of every image with K draws each.

    The variance comes from two halves of the draws: (l_1 - l_2)^2 / 4, with l their log mean
    weights. It is crude for one image and good for a test set's average. Where a few weights
    carry the sum it is up to half too small (the delta method far more). It leaves out the bias
    of a finite K.

    Args:
        log_weights: (x, n) to n fresh log-weights of each image in x, (n, B) nats.
        batches: yields images x, (B, ...).
        n_samples: K, which need not be a multiple of ``chunk``; 1 leaves the variance NaN.
        chunk: draws at once.
        bfloat16: whether the weights' matrix products run in it; their sums never do.

    Returns:
        float64 on the CPU, in the order of the images.
    """
    log_means, variances, halves_means = [], [], []
    sizes = torch.tensor([[n_samples - n_samples // 2], [n_samples // 2]], dtype=torch.float64)
    for x in progress(batches):
        log_sums = torch.full((2, len(x)), -math.inf, dtype=torch.float64)  # of even, odd draws
        for done in range(0, n_samples, chunk):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
                log_w = float64(log_weights(x, min(chunk, n_samples - done)))
            halves = (log_w[done % 2::2], log_w[(done + 1) % 2::2])
            log_sums = torch.stack([torch.logaddexp(log_sum, half.logsumexp(dim=0))
                                    for log_sum, half in zip(log_sums, halves, strict=True)])
        log_means.append(log_sums.logsumexp(dim=0) - math.log(n_samples))
        halves_means.append((log_sums - sizes.log()).mean(dim=0))
        variances.append((log_sums - sizes.log()).diff(dim=0).squeeze(0) ** 2 / 4)
    return Estimate(-torch.cat(log_means), torch.cat(variances), -torch.cat(halves_means))
