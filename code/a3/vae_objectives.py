"""What a VAE can be trained on besides the ELBO.

An objective takes the model and a batch x, (B, 784), and returns three tensors, (B,) in nats: what
is minimised, and the two terms of the true -ELBO, which is reported whatever is trained. L is the
reconstruction term, KL the other; sections are Garcia's (2019).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from a3.ranks import batch_mean

Objective = Callable[..., tuple[Tensor, Tensor, Tensor]]
# Each objective with the flags that not all of them read.
OBJECTIVES = {"elbo": (), "beta": ("beta", "beta_warmup"),
              "free_bits": ("free_bits", "per_dimension", "beta"), "uae": (),
              "iwae": ("importance_samples",)}


def noise(model, x: Tensor, *draws: int) -> Tensor:
    """Return eps ~ N(0, I), (*draws, B, D)."""
    return torch.randn(*draws, len(x), model.z_dim, device=x.device)


def beta_elbo(beta: float) -> Objective:
    """Return L + beta KL (Higgins et al. 2017, eq. 4; section 4.2)."""
    def objective(model, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reconstruction, kl = model.elbo_terms(x)
        return reconstruction + beta * kl, reconstruction, kl
    return objective


def free_bits(nats: float, beta: float = 1.0) -> Objective:
    """Return L + beta max(KL - nats, 0): ``nats`` are free in each image (section 4.3)."""
    def objective(model, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reconstruction, kl = model.elbo_terms(x)
        return reconstruction + beta * (kl - nats).clamp(min=0), reconstruction, kl
    return objective


def free_bits_per_dimension(nats: float, beta: float = 1.0) -> Objective:
    """Return L + beta sum_d max(mean_B KL_d, nats) (Kingma et al. 2016, eq. 15).

    The mean is over the batch, so that a dimension may be silent for some images.
    """
    def objective(model, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        terms = model.terms(x, noise(model, x))
        rest = terms.kl - terms.kls.sum(dim=1)  # 0 without a flow
        bounded = batch_mean(terms.kls).clamp(min=nats).sum()
        loss = terms.reconstruction + beta * (rest + bounded)
        return loss, terms.reconstruction, terms.kl
    return objective


def uae(model, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return L alone, the uncertainty autoencoder (Grover & Ermon 2019; section 4.1)."""
    reconstruction, kl = model.elbo_terms(x)
    return reconstruction, reconstruction, kl


def iwae(n_samples: int) -> Objective:
    """Return -log (1/K sum_k w_k), w_k = p(x, z_k) / q(z_k|x) (Burda et al. 2016, eq. 8).

    Its gradient passes through the codes, and weights each draw by its share of the sum.
    """
    def objective(model, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        terms = model.terms(x, noise(model, x, n_samples))  # each (K, B)
        bound = math.log(n_samples) - terms.log_weight.logsumexp(dim=0)
        return bound, terms.reconstruction.mean(dim=0), terms.kl.expand(n_samples, -1).mean(dim=0)
    return objective
