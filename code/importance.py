"""Likelihood by importance sampling: a bound of log p(x) that tightens with every draw.

With weights w_k = p(x, z_k) / q(z_k | x) and z_k ~ q(z|x), the mean of K weights is an unbiased
estimate of p(x), so by Jensen's inequality

    E[log (1/K sum_k w_k)] <= log p(x),

with equality as K grows (Burda et al. 2016, theorem 1). K = 1 is the ELBO. The noise draws of
dequantization are the same case: q is uniform, and the weights are p(x + u_k).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from runs import progress


class Estimate(NamedTuple):
    """-log p(x) of every image, (N,) nats, and the variance of the estimate by its draws."""

    nll: Tensor
    variance: Tensor

    def mean(self) -> float:
        """Return the average over the images, in nats."""
        return self.nll.mean().item()

    def draw_error(self) -> float:
        """Return the standard error of the average that comes from the draws (Monte Carlo)."""
        return (self.variance.sum().sqrt() / len(self.nll)).item()

    def image_error(self) -> float:
        """Return the standard error of the average as one of other images of the same kind."""
        return (self.nll.std() / math.sqrt(len(self.nll))).item()


@torch.no_grad()
def importance_sampled_nll(log_weights: Callable[[Tensor, int], Tensor], batches, n_samples: int,
                           chunk: int) -> Estimate:
    """Estimate -log p(x) of every image with K draws each.

    The variance is by the delta method, Var[log mean(w)] = (E[w^2] / E[w]^2 - 1) / K.

    Args:
        log_weights: (x, n) to n fresh log-weights of each image of x, (n, B) nats.
        batches: yields images x, (B, ...).
        n_samples: K, which need not be a multiple of ``chunk``.
        chunk: draws at once.

    Returns:
        float64 on the CPU, in the order of the images.
    """
    log_means, variances = [], []
    for x in progress(batches):
        log_sum = torch.full((len(x),), -math.inf, dtype=torch.float64)
        log_squares = log_sum.clone()
        for done in range(0, n_samples, chunk):
            log_w = log_weights(x, min(chunk, n_samples - done)).double().cpu()
            log_sum = torch.logaddexp(log_sum, log_w.logsumexp(dim=0))
            log_squares = torch.logaddexp(log_squares, (2 * log_w).logsumexp(dim=0))
        log_means.append(log_sum - math.log(n_samples))
        variances.append(((log_squares - 2 * log_sum).exp() - 1 / n_samples).clamp(min=0))
    return Estimate(-torch.cat(log_means), torch.cat(variances))
