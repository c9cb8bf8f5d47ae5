"""What a VAE can be trained on besides the ELBO, and the flags that choose it.

An objective takes the model and a batch x, (B, 784), and returns three tensors, (B,) in nats: what
is minimised, and the two terms of the true -ELBO, which is what is reported whatever is trained.
L is the reconstruction term, KL the other; the sections are those of Garcia (2019).
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from cli import non_negative_float, positive_int, share

Objective = Callable[..., tuple[Tensor, Tensor, Tensor]]
# What else than the defaults a recipe sets: the assignment's model, and the best of all.
RECIPES = {None: {},
           "best": {"zdim": 40, "hidden_dim": 700, "prior": "flow", "shift": 1,
                    "input_dropout": 0.1, "epochs": 120, "precision": "auto"}}
INPUT_DROPOUT = 0.2  # where --shift does not keep the encoder from learning images by heart
ALL_SHIFTED, NONE_SHIFTED = 0.5, 0.9  # up to and from which share of the epochs, with --shift
# Each objective with the flags that not all of them read.
OBJECTIVES = {"elbo": (), "beta": ("beta", "beta_warmup"),
              "free_bits": ("free_bits", "per_dimension", "beta"), "uae": (),
              "iwae": ("importance_samples",)}


def gaussian_nll(logits: Tensor, x: Tensor) -> Tensor:
    """Return -log N(x; f, I/2) = |x - f|^2 + 784/2 log pi, f = sigmoid(logits) (section 2.2).

    Args:
        logits: (..., B, 784) real.
        x: (B, 784) grey pixels in [0, 1].

    Returns:
        (..., B) nats.
    """
    return (x - torch.sigmoid(logits)).square().sum(dim=-1) + 784 / 2 * math.log(math.pi)


def elbo(model, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return L + KL (Kingma & Welling 2014, eq. 10).

    Args:
        eps: (B, D) noise of the code; drawn if not given.
    """
    reconstruction, kl = model.elbo_terms(x, eps)
    return reconstruction + kl, reconstruction, kl


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
    """Return L + beta max(KL - nats, 0): so much is free, in each image (section 4.3)."""
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
        rest = terms.kl - terms.kls.sum(dim=1)  # 0 but for a flow
        bounded = terms.kls.mean(dim=0).clamp(min=nats).sum()
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


def objective_of(args: argparse.Namespace, epoch: int) -> Objective:
    """Return the objective of an epoch (from 1): beta grows in equal steps while it warms up."""
    if args.objective == "beta":
        warm = min(1.0, (epoch - 1) / args.beta_warmup) if args.beta_warmup else 1.0
        return beta_elbo(args.beta * warm)
    if args.objective == "free_bits":
        bounded = free_bits_per_dimension if args.per_dimension else free_bits
        return bounded(args.free_bits, args.beta)
    return {"elbo": elbo, "uae": uae, "iwae": iwae(args.importance_samples)}[args.objective]


def shift_share(epoch: int, epochs: int) -> float:
    """Return the share of images to move: all in the first half, none in the last tenth.

    Moved images are not of the distribution to be learned, but there are many more of them. What
    was learned from them lasts, the wish to generate them does not.
    """
    left = (NONE_SHIFTED - (epoch - 1) / epochs) / (NONE_SHIFTED - ALL_SHIFTED)
    return min(1.0, max(0.0, left))


def input_dropout(args: argparse.Namespace) -> float:
    """Return the share of its pixels that the encoder does not see in training."""
    if args.input_dropout is not None:
        return args.input_dropout
    return 0.0 if args.shift else INPUT_DROPOUT


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of likelihood, objective, posterior and prior."""
    add = parser.add_argument
    add("--recipe", choices=[name for name in RECIPES if name], default=None,
        help="other defaults: those of the highest likelihood")
    add("--likelihood", choices=("bernoulli", "gaussian"), default="bernoulli",
        help="of binary pixels, or of grey ones in [0, 1] with variance 1/2")
    add("--objective", choices=OBJECTIVES, default="elbo", help="what is minimised")
    add("--beta", type=non_negative_float, default=1.0, help="weight of the KL (beta, free_bits)")
    add("--beta_warmup", type=positive_int, default=None, metavar="EPOCHS",
        help="over which beta grows from 0 (beta)")
    add("--free_bits", type=non_negative_float, default=0.0, metavar="NATS",
        help="of the KL that cost nothing (free_bits)")
    add("--per_dimension", action="store_true",
        help="so many of each latent dimension, not of the image (free_bits)")
    add("--importance_samples", type=positive_int, default=50, metavar="K",
        help="draws of the bound (iwae)")
    add("--posterior", choices=("gaussian", "flow"), default="gaussian",
        help="q(z|x): diagonal, or that and a flow conditioned on x")
    add("--prior", choices=("gaussian", "flow"), default="gaussian",
        help="p(z): standard normal, or what a flow makes of it")
    add("--shift", type=positive_int, default=None, metavar="PIXELS",
        help="move training images by so much at most, later fewer of them")
    add("--input_dropout", type=share, default=None, metavar="P",
        help="of the encoder, in training (None: 0.2, or 0 with --shift)")


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse, in one line, a flag that the chosen objective would not read."""
    for flag in sorted({flag for flags in OBJECTIVES.values() for flag in flags}):
        readers = [name for name, flags in OBJECTIVES.items() if flag in flags]
        if args.objective not in readers and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"'--{flag}' needs '--objective {' or '.join(readers)}', "
                         f"not {args.objective}")
    if args.per_dimension and args.posterior == "flow":
        parser.error("'--per_dimension' needs '--posterior gaussian': of a flow, the KL is no sum "
                     "over dimensions")
    if "flow" in (args.posterior, args.prior) and args.zdim < 2:
        parser.error(f"'--zdim {args.zdim}': a flow needs at least 2 dimensions")
