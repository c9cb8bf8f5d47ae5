"""Variational autoencoder on binary MNIST (questions 1.12-1.15).

Kingma & Welling (2014), "Auto-encoding variational Bayes": a decoder p(x|z) p(z) and an encoder
q(z|x) are trained together on a lower bound of log p(x), the ELBO,

    -ELBO(x) = E_q(z|x)[-log p(x|z)] + KL(q(z|x) || p(z))  >=  -log p(x),

estimated with one z = mean + std * eps per image (their eq. 7 and 10). All values in nats.

    x       (B, 784)   pixels in {0, 1}
    z       (B, D)     latent code; prior N(0, I); D = --zdim
    mean    (B, D)     of q(z|x) = N(mean, diag(std^2))
    log_std (B, D)     std = exp(log_std), positive whatever the network says
    eps     (B, D)     noise, N(0, I)
    z_0, u  (B, D)     the code before the flow of the posterior and after that of the prior; both
                       are z itself unless --posterior flow or --prior flow is asked for
    logits  (B, 784)   of the Bernoulli means p(x_m = 1 | z) = sigmoid(logits_m)

    python code/a3_vae_template.py              # 3 min on 2 cores: validation -ELBO 95 nats
    python code/a3_vae_template.py --zdim 2     # 3 min on 2 cores: 138 nats, the manifold
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli import exit_with, flags, positive_int, run_name
from datasets import Split, bmnist, mnist
from importance import importance_sampled_nll
from latent_flows import CodeFlow
from monitors import check_codes, pixel_entropy
from runs import Run, generator, one_cycle, progress
from vae_figures import (
    Elbo,
    draw_moment,
    save_elbo_plot,  # noqa: F401  a name of the course's template
    save_encoder_figures,
    save_training_figures,
    save_walks,
)
from vae_options import (
    INPUT_DROPOUT,
    RECIPES,
    Objective,
    add_flags,
    check_flags,
    elbo,
    gaussian_nll,
    input_dropout,
    objective_of,
    shift_share,
)

EPOCHS = 40
NLL_CHUNK = 20  # importance samples of a batch at once
FULL_PRECISION = nullcontext()  # in place of run.autocast()
FLOW_COUPLINGS = 4  # of --posterior flow and of --prior flow
FLOW_MAX_NORM = 1000.0  # of the gradient, which is 30-60 but for rare explosions in a flow


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    parser = flags("Train a VAE on binary MNIST.", epochs=EPOCHS, lr=3e-3, batch_size=128,
                   sources=("bmnist", "mnist", "sample"))
    parser.add_argument("--zdim", type=positive_int, default=20, metavar="D",
                        help="dimensions of the latent space")
    parser.add_argument("--nll_samples", type=positive_int, default=200, metavar="K",
                        help="importance samples of each test image's likelihood")
    parser.add_argument("--walks", action="store_true",
                        help="also draw walks among the codes; with --resume, of a finished run")
    parser.add_argument("--hidden_dim", type=positive_int, default=500, metavar="N",
                        help="units of each hidden layer")
    add_flags(parser)
    parser.set_defaults(**RECIPES[parser.parse_args(argv).recipe])
    args = parser.parse_args(argv)
    check_flags(parser, args)
    return args


# ---------------------------------------------------------------------------------------------
# Mathematics
# ---------------------------------------------------------------------------------------------

def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """Return -log p(x|z) = -sum_m [x_m log f_m + (1 - x_m) log(1 - f_m)], f = sigmoid(logits).

    Computed from the logits, so that it is finite where f rounds to 0 or 1.

    Args:
        logits: (..., B, 784) real.
        x: (B, 784) pixels in {0, 1}.

    Returns:
        (..., B) nats.
    """
    x = x.expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=-1)


NLL = {"bernoulli": bernoulli_nll, "gaussian": gaussian_nll}


def gaussian_kls(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, 1)) = 1/2 [std^2 + mean^2 - 1 - log std^2] elementwise.

    Kingma & Welling (2014), appendix B. The KL of a code is the sum over its dimensions.

    Args:
        mean, log_std: (B, D).

    Returns:
        (B, D) nats, at least 0.
    """
    return 0.5 * (torch.exp(2 * log_std) + mean**2 - 1 - 2 * log_std)


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------

class Encoder(nn.Module):
    """q(z|x): two hidden layers, from the last of which mean and log std are read.

    In training, a share of its input pixels is set to 0 (and the others scaled up), so that it
    cannot learn where each of the 50,000 images belongs by heart, which is what overfits first.
    The bound holds for any q, so for this one too; evaluation drops nothing.
    """

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20, dropout: float = INPUT_DROPOUT):
        super().__init__()
        self.body = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(784, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU())
        self.head = nn.Linear(hidden_dim, 2 * z_dim)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log std of q(z|x), each (B, D), and the features (B, hidden_dim)."""
        features = self.body(x)
        mean, log_std = self.head(features).to(x.dtype).chunk(2, dim=1)  # (B, 2 D) -> 2 x (B, D)
        return mean, log_std, features

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std (positive) of q(z|x), each (B, D), for pixels x (B, 784)."""
        mean, log_std, _ = self.posterior(x)
        return mean, log_std.exp()


class Decoder(nn.Module):
    """p(x|z): the encoder's hidden layers the other way round."""

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(z_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, 784))

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits of the Bernoulli means, (B, 784), for codes z (B, D)."""
        return self.net(z).to(z.dtype)

    def forward(self, z: Tensor) -> Tensor:
        """Return the Bernoulli means, (B, 784) in [0, 1], for codes z (B, D)."""
        return torch.sigmoid(self.logits(z))


class Terms(NamedTuple):
    """What codes z ~ q(z|x) say of the images x; all in nats."""

    reconstruction: Tensor  # (..., B) -log p(x|z)
    kl: Tensor  # (..., B) KL(q(z|x) || p(z)); with flows, its estimate by these codes
    kls: Tensor  # (B, D) of the Gaussian part alone, by dimension
    log_weight: Tensor  # (..., B) log p(x, z) - log q(z|x); its mean is the ELBO
    z: Tensor  # (..., B, D)


class VAE(nn.Module):
    """Encoder and decoder, trained together on the ELBO.

    Args:
        hidden_dim: units of each hidden layer.
        z_dim: dimensions D of a code.
        likelihood, posterior, prior: see the flags of the same names.
        dropout: of the encoder's input.
    """

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20, likelihood: str = "bernoulli",
                 posterior: str = "gaussian", prior: str = "gaussian",
                 dropout: float = INPUT_DROPOUT):
        super().__init__()
        self.z_dim, self.likelihood, self.nll = z_dim, likelihood, NLL[likelihood]
        self.encoder = Encoder(hidden_dim, z_dim, dropout)
        self.decoder = Decoder(hidden_dim, z_dim)
        couplings = {"gaussian": 0, "flow": FLOW_COUPLINGS}  # none: the identity
        self.posterior = CodeFlow(z_dim, couplings[posterior], hidden_dim)
        self.prior = CodeFlow(z_dim, couplings[prior])
        self.has_flows = "flow" in (posterior, prior)

    def terms(self, x: Tensor, eps: Tensor) -> Terms:
        """Return what the codes z = F(mean + std * eps; x) of some eps, (..., B, D), say of x.

        With Gaussian posterior and prior z_0 = z = u, and the KL is exact. A flow as prior adds
        log N(z; 0, I) - log p(z) to it. With a flow as posterior it is log q(z|x) - log p(z): the
        exact part would be as large as the code before the flow, which nothing bounds.
        """
        mean, log_std, features = self.encoder.posterior(x)
        z_0 = mean + log_std.exp() * eps  # the gradient passes through mean and std
        z, ldj = self.posterior(z_0, features)
        u, prior_ldj = self.prior(z)
        log_ratio = (0.5 * (eps**2 - u**2) + log_std).sum(dim=-1) + ldj + prior_ldj
        kls = gaussian_kls(mean, log_std)
        if self.posterior.layers:
            kl = -log_ratio
        else:
            kl = kls.sum(dim=1) + (0.5 * (u**2 - z_0**2).sum(dim=-1) - prior_ldj)
        reconstruction = self.nll(self.decoder.logits(z), x)
        return Terms(reconstruction, kl, kls, log_ratio - reconstruction, z)

    def elbo_terms(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the two terms of -ELBO(x), with one sample of z per image.

        Args:
            x: (B, 784) pixels in {0, 1}.
            eps: (B, D) noise of the reparametrization; drawn if not given.

        Returns:
            reconstruction -log p(x|z) and KL(q(z|x) || p(z)), each (B,) nats.
        """
        eps = torch.randn(len(x), self.z_dim, device=x.device) if eps is None else eps
        terms = self.terms(x, eps)
        return terms.reconstruction, terms.kl

    def log_weights(self, x: Tensor, n_samples: int, noise: torch.Generator | None = None
                    ) -> Tensor:
        """Return log p(x, z) - log q(z|x) of fresh z ~ q(z|x), whose mean is the ELBO.

        The weights' own mean is p(x), by importance sampling (Burda et al. 2016, eq. 8).

        Args:
            x: (B, 784) pixels in {0, 1}.
            noise: a CPU generator, which makes the draw repeatable on any device.

        Returns:
            (n_samples, B) nats.
        """
        eps = torch.randn(n_samples, len(x), self.z_dim, generator=noise).to(x.device)
        return self.terms(x, eps).log_weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the average negative ELBO of a batch x (B, 784), a scalar in nats per image."""
        reconstruction, kl = self.elbo_terms(x)
        return (reconstruction + kl).mean()

    @torch.no_grad()
    def code(self, x: Tensor) -> Tensor:
        """Return the codes u, (B, D), at the middle of q(z|x), of pixels x (B, 784)."""
        mean, _, features = self.encoder.posterior(x)
        return self.prior(self.posterior(mean, features)[0])[0]

    @torch.no_grad()
    def logits(self, u: Tensor) -> Tensor:
        """Return the logits of the means, (B, 784), of codes u (B, D), normal under the prior."""
        return self.decoder.logits(self.prior.inverse(u)[0])

    def decode(self, u: Tensor) -> Tensor:
        """Return the means, (B, 784) in [0, 1], of codes u (B, D)."""
        return torch.sigmoid(self.logits(u))

    @torch.no_grad()
    def sample(self, n_samples: int, noise: torch.Generator | None = None
               ) -> tuple[Tensor, Tensor]:
        """Draw images ancestrally: z ~ p(z), then each pixel from p(x_m|z).

        Args:
            noise: a CPU generator, which makes the draw repeatable on any device.

        Returns:
            sampled images and their means in [0, 1], each (n_samples, 784).
        """
        device = self.decoder.net[0].weight.device
        im_means = self.decode(torch.randn(n_samples, self.z_dim, generator=noise).to(device))
        if self.likelihood == "gaussian":
            pixel_noise = torch.randn(im_means.shape, generator=noise).to(device)
            return im_means + 0.5**0.5 * pixel_noise, im_means
        uniform = torch.rand(im_means.shape, generator=noise).to(device)
        return (uniform < im_means).float(), im_means


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------

def epoch_iter(model: VAE, data, optimizer=None, scheduler=None, autocast=FULL_PRECISION,
               objective: Objective = elbo) -> Elbo:
    """Go once through the data; train if the model is in training mode, else only evaluate.

    Evaluation draws its noise for the whole split at once and always alike, so that the result
    depends neither on the batch size nor on what was drawn before.

    Returns:
        the negative ELBO averaged over the images, in nats.
    """
    sums = []  # of each batch: reconstruction and KL
    noise = [None] * len(data)
    if not model.training:
        noise = torch.randn(len(data.images), model.z_dim, generator=generator(0, "evaluation"))
        noise = noise.to(data.images.device).split(data.batch_size)
    with torch.set_grad_enabled(model.training):
        for x, eps in zip(progress(data), noise, strict=True):
            with autocast:
                loss, *terms = objective(model, x) if model.training else elbo(model, x, eps)
            if model.training:
                optimizer.zero_grad()
                loss.mean().backward()
                if model.has_flows:
                    nn.utils.clip_grad_norm_(model.parameters(), FLOW_MAX_NORM)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
            sums.append(torch.stack([term.detach().sum() for term in terms]))
    total = torch.stack(sums).cpu().double().sum(dim=0)
    return Elbo(*(total / len(data.images)).tolist())


def run_epoch(model: VAE, data, optimizer=None, scheduler=None, autocast=FULL_PRECISION,
              objective: Objective = elbo) -> tuple[Elbo, Elbo]:
    """Train on the first split and validate on the second; without an optimizer, evaluate both.

    Validation is in float32, whatever the precision of training, and of the ELBO, whatever the
    objective.

    Returns:
        the average negative ELBO of train (while it was trained) and val, in nats per image.
    """
    traindata, valdata = data

    model.train(optimizer is not None)
    train_elbo = epoch_iter(model, traindata, optimizer, scheduler, autocast, objective)

    model.eval()
    val_elbo = epoch_iter(model, valdata)

    return train_elbo, val_elbo


# ---------------------------------------------------------------------------------------------
# Main
# ---------------------------------------------------------------------------------------------

def load(args) -> tuple[Split, Split, Split]:
    """Return train, val and test: binary images, or grey ones in [0, 1] for the Gaussian."""
    splits = (bmnist if args.likelihood == "bernoulli" else mnist)(
        args.data_root, args.batch_size, dataset=args.dataset, device=args.device,
        seed=args.seed, limit=args.limit, shift=args.shift or 0)
    for split in splits:
        split.scale = 1.0 if args.likelihood == "bernoulli" else 1 / 255
    return splits


def main(argv: Sequence[str] | None = None) -> dict:
    """Train, draw the figures, evaluate once on test; return the results as written."""
    args = parse_args(argv)
    train, val, test = load(args)
    method, kind = f"vae-z{args.zdim}", ["--zdim", str(args.zdim)]
    if args.recipe:
        method, kind = f"vae-{args.recipe}", ["--recipe", args.recipe]
    name = run_name(method, args, parse_args(kind), train.source,
                    "bmnist" if args.likelihood == "bernoulli" else "mnist")
    run = Run(name, args, train.source)
    model = VAE(args.hidden_dim, args.zdim, args.likelihood, args.posterior, args.prior,
                input_dropout(args)).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    scheduler = one_cycle(optimizer, args.epochs * len(train))
    run.keep(model=model, optimizer=optimizer, scheduler=scheduler, order=train.generator)
    entropy = pixel_entropy(train.images)

    with run.training():
        for epoch in run.epochs():  # epoch 0 evaluates the untrained model
            train.shift_share = shift_share(epoch, args.epochs)
            train_elbo, val_elbo = run_epoch(
                model, (train, val), optimizer if epoch else None, scheduler, run.autocast(),
                objective_of(args, epoch))
            health = check_codes(model, val, val_elbo.kl, entropy)
            run.record(train_elbo_nats=float(train_elbo), val_elbo_nats=float(val_elbo),
                       train_reconstruction_nats=train_elbo.reconstruction,
                       train_kl_nats=train_elbo.kl,
                       val_reconstruction_nats=val_elbo.reconstruction, val_kl_nats=val_elbo.kl,
                       **health.numbers())
            if epoch in run.moments:
                run.snapshots[epoch] = draw_moment(model, args.seed)
            if epoch in run.moments[1:] and health.warning():
                print(health.warning(), flush=True)

    save_training_figures(run)
    run.reload()
    model.eval()
    save_encoder_figures(run, model, val, test)
    test_elbo, trained = epoch_iter(model, test), run.history[-1]
    walked = save_walks(run, model, test) if args.walks else {}
    health = check_codes(model, test, test_elbo.kl, entropy)
    noise = generator(args.seed, "importance sampling")
    nll = importance_sampled_nll(partial(model.log_weights, noise=noise), test, args.nll_samples,
                                 NLL_CHUNK)
    return run.finish(
        untrained_elbo_nats=run.history[0]["val_elbo_nats"],
        **{key: value for key, value in trained.items() if key not in ("epoch", "seconds")},
        test_elbo_nats=float(test_elbo),
        test_reconstruction_nats=test_elbo.reconstruction,
        test_kl_nats=test_elbo.kl,
        test_nll_nats=nll.mean(), test_nll_draw_error_nats=nll.draw_error(),
        nll_samples=args.nll_samples,
        **health.numbers("test"), verdict=health.verdict, **walked)


if __name__ == "__main__":
    exit_with(main)
