"""Variants of the VAE: other objectives, likelihoods, posteriors and priors (Garcia 2019).

a3_vae_template.py is the plain VAE. This script imports it, overrides what differs and trains by
its loop. L is the reconstruction term, KL the other, all in nats:

    --objective   beta: L + beta KL; free_bits: a part of the KL is free; uae: L alone; iwae: the
                  importance-weighted bound (a3/vae_objectives.py)
    --likelihood  gaussian: of grey pixels in [0, 1], variance 1/2
    --posterior   flow: z = F(mean + std * eps; x), an invertible F (a3/vae_flows.py)
    --prior       flow: u = G(z) is standard normal, an invertible G
    --shift       shifted training images; input dropout is then 0 unless given

    z_0  (B, D)  the code before the flow of the posterior: mean + std * eps
    z    (B, D)  the code that the decoder reads
    u    (B, D)  the code after the flow of the prior; without flows z_0 = z = u

Whatever is minimised, the results give the ELBO. After each epoch the codes are checked for
posterior collapse and information overload (a3/vae_monitors.py).

    python code/vae_variants.py --recipe best                  # 20 min on one core: -log p(x) 83
    python code/vae_variants.py --objective beta --beta 4      # 2 min on 2 cores
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from a3.cli import exit_with, non_negative_float, parse, positive_int, run_name, share, whole

import torch
from torch import Tensor, nn

import a3_vae_template as vae
from a3.devices import float64
from a3.judge_classifier import CLEAR, classify, judge
from a3.runs import Run, RunError, finished_run, random_stream
from a3.vae_figures import save_latent_figures, save_training_figures
from a3.vae_flows import CodeFlow
from a3.vae_monitors import Health, check_codes, pixel_entropy
from a3.vae_objectives import (
    OBJECTIVES,
    Objective,
    beta_elbo,
    free_bits,
    free_bits_per_dimension,
    iwae,
    uae,
)
from datasets import RandomShift, bernoulli, bmnist, labelled, mnist

# The recipe of the highest likelihood: other defaults.
RECIPES = {None: {},
           "best": {"zdim": 40, "hidden_dim": 700, "prior": "flow", "shift": 1,
                    "input_dropout": 0.1, "epochs": 120, "precision": "auto",
                    "nll_samples": 1000}}
SCRIPTS = "a3_vae_template.py or code/vae_variants.py"  # which make runs of a VAE, in messages
PAIRS = 40_000  # of codes and images at once, in a density under a flow
FLOW_COUPLINGS = 4  # of the posterior's flow and of the prior's
FLOW_MAX_NORM = 1000.0  # of the gradient, far above the usual: a flow can explode
ALL_SHIFTED, NONE_SHIFTED = 0.5, 0.9  # shares of the epochs: until and from which, with --shift


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = vae.parser("Train a variant of the VAE on MNIST.")
    add = parser.add_argument
    add("--recipe", choices=[name for name in RECIPES if name], default=None,
        help="best: the defaults of the highest likelihood")
    add("--likelihood", choices=("bernoulli", "gaussian"), default="bernoulli",
        help="gaussian: grey pixels in [0, 1], variance 1/2")
    add("--objective", choices=OBJECTIVES, default="elbo", help="what training minimises")
    add("--beta", type=non_negative_float, default=1.0, help="weight of the KL (beta, free_bits)")
    add("--beta_warmup", type=positive_int, default=None, metavar="EPOCHS",
        help="epochs over which beta rises from 0 to its value (beta)")
    add("--free_bits", type=non_negative_float, default=0.0, metavar="NATS",
        help="KL nats left unpenalised (free_bits)")
    add("--per_dimension", action="store_true",
        help="apply --free_bits per dimension, not per image (free_bits)")
    add("--importance_samples", type=whole(1, 10_000), default=50, metavar="K",
        help="draws in the bound (iwae)")
    add("--posterior", choices=("gaussian", "flow"), default="gaussian",
        help="q(z|x): a diagonal Gaussian, or a flow of one")
    add("--prior", choices=("gaussian", "flow"), default="gaussian",
        help="p(z): standard normal, or a flow of it")
    add("--shift", type=whole(1, 27), default=None, metavar="PIXELS",
        help="largest shift in pixels; the share of shifted images falls to 0 during training")
    add("--input_dropout", type=share, default=None, metavar="P",
        help=f"dropout of the encoder's input (None: {vae.INPUT_DROPOUT}, or 0 with --shift)")
    args = parse(parser, argv, RECIPES)
    check_flags(parser, args)
    return args


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse, in one line, flags that do not go together."""
    for flag in sorted({flag for flags in OBJECTIVES.values() for flag in flags}):
        readers = [name for name, flags in OBJECTIVES.items() if flag in flags]
        if args.objective not in readers and flag in args.changed:
            parser.error(f"'--{flag}' needs '--objective {' or '.join(readers)}', "
                         f"not {args.objective}")
    unweighted = args.beta == 1 and not args.beta_warmup
    if args.objective == "beta" and unweighted:
        parser.error("'--objective beta' needs a '--beta' other than 1, or '--beta_warmup': it "
                     "is the ELBO else")
    if args.objective == "free_bits" and unweighted and args.free_bits == 0:
        parser.error("'--objective free_bits' needs '--free_bits' above 0: it is the ELBO else")
    if args.per_dimension and args.posterior == "flow":
        parser.error("'--per_dimension' needs '--posterior gaussian': with a flow, the KL is not "
                     "a sum over dimensions")
    if "flow" in (args.posterior, args.prior) and args.zdim < 2:
        parser.error(f"'--zdim {args.zdim}': a flow needs at least 2 dimensions")
    if (args.likelihood, args.dataset) == ("gaussian", "bmnist"):
        parser.error("'--dataset bmnist' holds binary images; '--likelihood gaussian' needs grey "
                     "ones: mnist, sample or auto")


# Mathematics -------------------------------------------------------------------------------------

def gaussian_nll(logits: Tensor, x: Tensor) -> Tensor:
    """Return -log N(x; f, I/2) = |x - f|^2 + 784/2 log pi, f = sigmoid(logits) (section 2.2).

    Args:
        logits: (..., B, 784) real.
        x: (B, 784) grey pixels in [0, 1].

    Returns:
        (..., B) nats.
    """
    return (x - torch.sigmoid(logits)).square().sum(dim=-1) + 784 / 2 * math.log(math.pi)


NLL = {"bernoulli": vae.bernoulli_nll, "gaussian": gaussian_nll}


def objective_of(args: argparse.Namespace, epoch: int) -> Objective:
    """Return the objective of an epoch (from 1): beta rises in equal steps while it warms up."""
    if args.objective == "beta":
        warm = min(1.0, max(0, epoch - 1) / args.beta_warmup) if args.beta_warmup else 1.0
        return beta_elbo(args.beta * warm)
    if args.objective == "free_bits":
        bounded = free_bits_per_dimension if args.per_dimension else free_bits
        return bounded(args.free_bits, args.beta)
    return {"elbo": vae.VAE.objective, "uae": uae,
            "iwae": iwae(args.importance_samples)}[args.objective]


def shift_share(epoch: int, epochs: int) -> float:
    """Return the share of images to shift: all in the first half, none in the last tenth.

    Shifted images do not follow the distribution to be learned, but there are many more of them.
    The last epochs, without shifts, teach the model not to draw shifted digits.
    """
    left = (NONE_SHIFTED - (epoch - 1) / epochs) / (NONE_SHIFTED - ALL_SHIFTED)
    return min(1.0, max(0.0, left))


# Networks ----------------------------------------------------------------------------------------

class Terms(NamedTuple):
    """What codes z ~ q(z|x) contribute to the bounds of images x, in nats."""

    reconstruction: Tensor  # (..., B) -log p(x|z)
    kl: Tensor  # (..., B) KL(q(z|x) || p(z)); with flows, its estimate from these codes
    kls: Tensor  # (B, D) the Gaussian part alone, by dimension
    log_weight: Tensor  # (..., B) log p(x, z) - log q(z|x); its mean is the ELBO
    z: Tensor  # (..., B, D)


class VariantVAE(vae.VAE):
    """The VAE with a choice of likelihood, posterior and prior; see the flags of these names.

    Attributes:
        trained: the objective that training minimises.
    """

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20, likelihood: str = "bernoulli",
                 posterior: str = "gaussian", prior: str = "gaussian",
                 dropout: float = vae.INPUT_DROPOUT):
        super().__init__(hidden_dim, z_dim, dropout)
        self.likelihood, self.nll, self.trained = likelihood, NLL[likelihood], vae.VAE.objective
        couplings = {"gaussian": 0, "flow": FLOW_COUPLINGS}  # none: the identity
        self.posterior = CodeFlow(z_dim, couplings[posterior], hidden_dim)
        self.prior = CodeFlow(z_dim, couplings[prior])
        self.has_flows = "flow" in (posterior, prior)

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log std of z_0, each (B, D), and the encoder's features (B, H)."""
        features = self.encoder.body(x)  # (B, H)
        mean, log_std = self.encoder.head(features).to(x.dtype).chunk(2, dim=1)  # 2 x (B, D)
        return mean, log_std, features

    def terms(self, x: Tensor, eps: Tensor) -> Terms:
        """Return the terms of codes z = F(mean + std * eps; x), for some eps (..., B, D).

        With Gaussian posterior and prior z_0 = z = u, and the KL is exact. A flow as prior adds
        log N(z; 0, I) - log p(z) to it. With a flow as posterior the KL is log q(z|x) - log p(z):
        the Gaussian part alone can grow without bound, as nothing limits the code before the flow.
        """
        mean, log_std, features = self.gaussian(x)
        z_0 = mean + log_std.exp() * eps  # (..., B, D); the gradient passes through mean and std
        z, ldj = self.posterior(z_0, features)  # (..., B, D) and (..., B)
        u, prior_ldj = self.prior(z)  # likewise
        log_ratio = (0.5 * (eps**2 - u**2) + log_std).sum(dim=-1) + ldj + prior_ldj
        kls = vae.gaussian_kls(mean, log_std)  # (B, D)
        if self.posterior.layers:
            kl = -log_ratio
        else:
            kl = kls.sum(dim=1) + (0.5 * (u**2 - z_0**2).sum(dim=-1) - prior_ldj)
        reconstruction = self.nll(self.decoder.logits(z), x)  # (..., B)
        return Terms(reconstruction, kl, kls, log_ratio - reconstruction, z)

    def elbo_terms(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return reconstruction and KL, each (B,) nats, with one sample of z per image."""
        eps = torch.randn(len(x), self.z_dim, device=x.device) if eps is None else eps
        terms = self.terms(x, eps)
        return terms.reconstruction, terms.kl

    def objective(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what training minimises and the terms of -ELBO; in eval mode -ELBO itself."""
        return self.trained(self, x) if self.training else super().objective(x, eps)

    def log_weights(self, x: Tensor, n_samples: int, noise: torch.Generator | None = None
                    ) -> Tensor:
        """Return log p(x, z) - log q(z|x) of fresh z ~ q(z|x), (n_samples, B) nats."""
        eps = torch.randn(n_samples, len(x), self.z_dim, generator=noise).to(x.device)
        return self.terms(x, eps).log_weight

    def clip_gradient(self) -> None:
        """Shorten the gradient to FLOW_MAX_NORM."""
        nn.utils.clip_grad_norm_(self.parameters(), FLOW_MAX_NORM)

    def log_posterior(self, z: Tensor, x: Tensor) -> Tensor:
        """Return log q(z_i|x_j) of all pairs, (M, N) nats; z (M, D) codes, x (N, 784) pixels.

        Without a flow the squares are multiplied out, so that all pairs are two matrix products.
        """
        mean, log_std, features = self.gaussian(x)
        if not self.posterior.layers:
            z, mean, log_std = map(float64, (z, mean, log_std))
            precision = torch.exp(-2 * log_std)  # (N, D)
            squares = (z**2 @ precision.T - 2 * z @ (mean * precision).T
                       + (mean**2 * precision).sum(dim=1))
            return -0.5 * squares - (log_std + 0.5 * math.log(2 * math.pi)).sum(dim=1)
        rows = []
        for some in z.split(max(1, PAIRS // len(x))):  # (m, D) each
            z_0, ldj = self.posterior.inverse(some[:, None].expand(-1, len(x), -1), features)
            eps = (z_0 - mean) * torch.exp(-log_std)  # (m, N, D)
            rows.append(ldj - (0.5 * eps**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1))
        return torch.cat(rows)

    @torch.no_grad()
    def code(self, x: Tensor) -> Tensor:
        """Return the code u, (B, D), in the middle of q(z|x), for pixels x (B, 784)."""
        mean, _, features = self.gaussian(x)
        return self.prior(self.posterior(mean, features)[0])[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the means, (B, 784) in [0, 1], of codes u (B, D), standard normal under p."""
        return self.decoder(self.prior.inverse(z)[0])

    @torch.no_grad()
    def sample(self, n_samples: int, noise: torch.Generator | None = None
               ) -> tuple[Tensor, Tensor]:
        """Draw z ~ p(z), then x ~ p(x|z); return x and its means, each (n_samples, 784)."""
        if self.likelihood == "bernoulli":
            return super().sample(n_samples, noise)
        u = torch.randn(n_samples, self.z_dim, generator=noise)
        im_means = self.decode(u.to(self.decoder.net[0].weight.device))
        pixel_noise = torch.randn(im_means.shape, generator=noise).to(im_means.device)
        return im_means + 0.5**0.5 * pixel_noise, im_means


# Training ----------------------------------------------------------------------------------------

class VariantRun(Run):
    """A run whose objective and share of shifted images change by epoch, and that checks codes."""

    def watch(self, model: VariantVAE, train, val, shift: RandomShift | None) -> None:
        """Name what changes by epoch, and the images whose codes are checked."""
        self.model, self.val, self.shift = model, val, shift
        self.entropy = pixel_entropy(train.images)

    def epochs(self) -> Iterator[int]:
        """Yield the epochs still to do, each with its objective and its share of shifts."""
        for epoch in super().epochs():
            self.model.trained = objective_of(self.args, epoch)
            if self.shift is not None:
                self.shift.share = shift_share(epoch, self.args.epochs)
            yield epoch

    def check(self, data, kl: float) -> Health:
        """Check the codes of a split whose mean KL is known."""
        return check_codes(self.model, data, kl, self.entropy)

    def record(self, shown: str, **numbers: float) -> None:
        """Record an epoch with the state of its codes; warn, at the moments, of a failure."""
        health = self.check(self.val, numbers["val_kl_nats"])
        super().record(f"{shown}, {health.active_units} units", **numbers, **health.numbers())
        if self.history[-1]["epoch"] in self.moments[1:] and health.warning():
            print(health.warning(), flush=True)


# Main --------------------------------------------------------------------------------------------

def load(args: argparse.Namespace, shift: RandomShift | None) -> tuple:
    """Return train, val and test: binary images, or grey ones in [0, 1] for the Gaussian."""
    options = {"dataset": args.dataset, "device": args.device, "seed": args.seed,
               "limit": args.limit, "augment": shift}
    if args.likelihood == "gaussian":
        return mnist(args.data_root, args.batch_size, transform=lambda x: x * (1 / 255),
                     **options)
    return bmnist(args.data_root, args.batch_size, **options)


def build(flags: dict) -> VariantVAE:
    """Return the untrained model of a run's flags, of this script or of the plain one."""
    choices = {key: flags[key] for key in ("likelihood", "posterior", "prior") if key in flags}
    dropout = flags.get("input_dropout")
    if dropout is None:
        dropout = 0.0 if flags.get("shift") else vae.INPUT_DROPOUT
    return VariantVAE(flags["hidden_dim"], flags["zdim"], **choices, dropout=dropout)


def trained_vae(name: str, out: Path | None, device: str, binary: bool = True
                ) -> tuple[VariantVAE, dict]:
    """Return the model of a finished run, in eval mode, and the run's results.

    Raises:
        RunError: there is no such run, or its pixels are not binary though they must be.
    """
    state, results = finished_run(name, out, SCRIPTS, "zdim")
    if binary and state["flags"].get("likelihood") == "gaussian":
        raise RunError(f"the run '{name}' has a Gaussian likelihood, and here images are binary; "
                       "name a run with Bernoulli pixels")
    model = build(state["flags"]).to(device)
    model.load_state_dict(state["kept"]["model"])
    return model.eval(), results


def judged_samples(model: VariantVAE, test) -> dict:
    """Return the share of clear digits among draws from the prior, and by which judge.

    The means of as many draws as there are test images are made binary, as in the comparison. Of
    images that are not digits, nothing.
    """
    classifier, facts = judge("binary", test.images.device, test.source.name)
    if classifier is None:
        return {}
    noise = random_stream(0, "judged samples")
    means = model.sample(len(test.images), noise)[1]
    _, probability = classify(classifier, bernoulli(means, noise))
    return {"samples_clear_share": (probability > CLEAR).float().mean().item(), **facts}


def main(argv: Sequence[str] | None = None) -> dict:
    """Train, draw the figures, evaluate once on test; return the results as written."""
    args = parse_args(argv)
    shift = RandomShift(args.shift).to(args.device) if args.shift else None
    data = train, val, test = load(args, shift)
    method = f"vae-{args.recipe}" if args.recipe else f"vae-variant-z{args.zdim}"
    name = run_name(method, args, train.source, "mnist" if args.likelihood == "gaussian"
                    else "bmnist", named=["recipe"] if args.recipe else ["zdim"])
    run = VariantRun(name, args, train.source)
    model = build(vars(args)).to(run.device)
    run.watch(model, train, val, shift)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    if model.has_flows:
        optimizer.register_step_pre_hook(lambda *_: model.clip_gradient())

    vae.fit(run, model, data, optimizer)
    save_training_figures(run)
    run.reload()
    model.eval()
    digits = labelled(test, args.data_root) if args.zdim == 2 else None
    save_latent_figures(run, model, val, digits)
    numbers = vae.evaluate(run, model, test)
    health = run.check(test, numbers["test_kl_nats"])
    return run.finish(**numbers, **health.numbers("test"), verdict=health.verdict,
                      **judged_samples(model, test))


if __name__ == "__main__":
    exit_with(main)
