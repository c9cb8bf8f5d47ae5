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
    logits  (B, 784)   of the Bernoulli means p(x_m = 1 | z) = sigmoid(logits_m)

    python code/a3_vae_template.py              # 2.5 min on 2 cores: validation -ELBO 96 nats
    python code/a3_vae_template.py --zdim 2     # 2.5 min on 2 cores: 139 nats, the manifold
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import figures
from cli import exit_with, flags, positive_int, run_name
from datasets import DataError, binarize, bmnist, mnist
from latents import normal_grid
from runs import Run, generator, one_cycle, progress

EPOCHS = 40
FULL_PRECISION = nullcontext()  # in place of run.autocast()
INPUT_DROPOUT = 0.2  # of the encoder
MANIFOLD_SIDE = 20  # the manifold is a 20 x 20 grid (question 1.15)


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    parser = flags("Train a VAE on binary MNIST.", epochs=EPOCHS, lr=3e-3, batch_size=128,
                   sources=("bmnist", "mnist", "sample"))
    parser.add_argument("--zdim", type=positive_int, default=20, metavar="D",
                        help="dimensions of the latent space")
    parser.add_argument("--hidden_dim", type=positive_int, default=500, metavar="N",
                        help="units of each hidden layer")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------
# Mathematics
# ---------------------------------------------------------------------------------------------

class Elbo(float):
    """A negative ELBO in nats per image, that remembers its two terms."""

    def __new__(cls, reconstruction: float, kl: float):
        """Take the two terms, each in nats per image."""
        elbo = super().__new__(cls, reconstruction + kl)
        elbo.reconstruction, elbo.kl = reconstruction, kl
        return elbo


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


def gaussian_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(mean, diag(std^2)) || N(0, I)) = 1/2 sum_d [std^2 + mean^2 - 1 - log std^2].

    Kingma & Welling (2014), appendix B.

    Args:
        mean, log_std: (B, D).

    Returns:
        (B,) nats, at least 0.
    """
    return 0.5 * (torch.exp(2 * log_std) + mean**2 - 1 - 2 * log_std).sum(dim=1)


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------

class Encoder(nn.Module):
    """q(z|x): two hidden layers, from the last of which mean and log std are read.

    In training, a share of its input pixels is set to 0 (and the others scaled up), so that it
    cannot learn where each of the 50,000 images belongs by heart, which is what overfits first.
    The bound holds for any q, so for this one too; evaluation drops nothing.
    """

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20):
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(INPUT_DROPOUT),
            nn.Linear(784, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, 2 * z_dim))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log std of q(z|x), each (B, D), for pixels x (B, 784)."""
        mean, log_std = self.net(x).to(x.dtype).chunk(2, dim=1)  # (B, 2 D) -> 2 x (B, D)
        return mean, log_std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std (positive) of q(z|x), each (B, D), for pixels x (B, 784)."""
        mean, log_std = self.posterior(x)
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


class VAE(nn.Module):
    """Encoder and decoder, trained together on the ELBO."""

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20):
        super().__init__()
        self.z_dim = z_dim
        self.encoder = Encoder(hidden_dim, z_dim)
        self.decoder = Decoder(hidden_dim, z_dim)

    def elbo_terms(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the two terms of -ELBO(x), with one sample of z per image.

        Args:
            x: (B, 784) pixels in {0, 1}.
            eps: (B, D) noise of the reparametrization; drawn if not given.

        Returns:
            reconstruction -log p(x|z) and KL(q(z|x) || p(z)), each (B,) nats.
        """
        mean, log_std = self.encoder.posterior(x)
        eps = torch.randn_like(mean) if eps is None else eps
        z = mean + log_std.exp() * eps  # (B, D); the gradient passes through mean and std
        return bernoulli_nll(self.decoder.logits(z), x), gaussian_kl(mean, log_std)

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
        mean, log_std = self.encoder.posterior(x)
        eps = torch.randn(n_samples, *mean.shape, generator=noise).to(mean.device)
        z = mean + log_std.exp() * eps  # (n, B, D)
        log_p_z = -0.5 * (z**2).sum(dim=-1)  # less D/2 log(2 pi), as is the next
        log_q_z = -(0.5 * eps**2 + log_std).sum(dim=-1)
        return log_p_z - log_q_z - bernoulli_nll(self.decoder.logits(z), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the average negative ELBO of a batch x (B, 784), a scalar in nats per image."""
        reconstruction, kl = self.elbo_terms(x)
        return (reconstruction + kl).mean()

    @torch.no_grad()
    def sample(self, n_samples: int, noise: torch.Generator | None = None
               ) -> tuple[Tensor, Tensor]:
        """Draw images ancestrally: z ~ p(z), then x_m ~ Bernoulli(mean_m(z)).

        Args:
            noise: a CPU generator, which makes the draw repeatable on any device.

        Returns:
            sampled images in {0, 1} and their means in [0, 1], each (n_samples, 784).
        """
        device = self.decoder.net[0].weight.device
        z = torch.randn(n_samples, self.z_dim, generator=noise).to(device)
        im_means = self.decoder(z)  # (n, 784)
        uniform = torch.rand(im_means.shape, generator=noise).to(device)
        return (uniform < im_means).float(), im_means


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------

def epoch_iter(model: VAE, data, optimizer=None, scheduler=None, autocast=FULL_PRECISION) -> Elbo:
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
                terms = torch.stack([term.sum() for term in model.elbo_terms(x, eps)])
            if model.training:
                optimizer.zero_grad()
                (terms.sum() / len(x)).backward()
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
            sums.append(terms.detach())
    total = torch.stack(sums).cpu().double().sum(dim=0)
    return Elbo(*(total / len(data.images)).tolist())


def run_epoch(model: VAE, data, optimizer=None, scheduler=None, autocast=FULL_PRECISION
              ) -> tuple[Elbo, Elbo]:
    """Train on the first split and validate on the second; without an optimizer, evaluate both.

    Validation is in float32, whatever the precision of training.

    Returns:
        the average negative ELBO of train (while it was trained) and val, in nats per image.
    """
    traindata, valdata = data

    model.train(optimizer is not None)
    train_elbo = epoch_iter(model, traindata, optimizer, scheduler, autocast)

    model.eval()
    val_elbo = epoch_iter(model, valdata)

    return train_elbo, val_elbo


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------

def save_elbo_plot(train_curve: Sequence[float], val_curve: Sequence[float], filename: Path):
    """Plot the negative ELBO of each epoch, from 0, the untrained model; if known, its terms."""
    panels = [("$-$ELBO", float)]
    if isinstance(train_curve[0], Elbo):
        panels += [("reconstruction", lambda elbo: elbo.reconstruction),
                   ("KL", lambda elbo: elbo.kl)]
    with figures.canvas(filename, columns=len(panels), squeeze=False) as axes:
        for axis, (label, term) in zip(axes[0], panels, strict=True):
            train, val = list(map(term, train_curve)), list(map(term, val_curve))
            figures.train_and_val(axis, train, val, f"{label} [nats per image]",
                                  legend="lower right" if label == "KL" else "center right")
            if label != "KL":
                figures.log_ticks(axis, [70, 100, 150, 200, 300, 500])
        axes[0][0].axhline(784 * math.log(2), color="0.4", linewidth=0.6, linestyle=":")
        axes[0][0].annotate("784 ln 2", (len(train_curve) - 1, 784 * math.log(2)), fontsize=7,
                            ha="right", va="top", xytext=(0, -2), textcoords="offset points")


def draw_moment(model: VAE, seed: int) -> dict[str, Tensor]:
    """Draw what the figures show of one moment of training, always from the same z."""
    samples, means = model.sample(25, generator(seed, "figures"))
    moment = {"samples": samples, "means": means}
    if model.z_dim == 2:
        with torch.no_grad():
            z = normal_grid(MANIFOLD_SIDE).to(means.device)
            moment["manifold"] = model.decoder(z)
    return {key: images.cpu() for key, images in moment.items()}


def save_training_figures(run: Run):
    """Draw the curves and, for the moments that were reached, samples and manifolds."""
    curves = [[Elbo(row[f"{split}_reconstruction_nats"], row[f"{split}_kl_nats"])
               for row in run.history] for split in ("train", "val")]
    save_elbo_plot(*curves, run.figure("elbo.pdf"))
    moments = [run.snapshots[epoch] for epoch in sorted(run.snapshots)]
    for name, moment in run.named_moments():
        means, samples = (figures.tile(moment[key], 5) for key in ("means", "samples"))
        figures.save_png(figures.join((means, samples), axis=0),
                         run.figure(f"samples-{name}.png"))
        if "manifold" in moment:
            figures.save_png(figures.tile(moment["manifold"], MANIFOLD_SIDE),
                             run.figure(f"manifold-{name}.png"))
    gallery = [figures.tile(moment["means"][:16], 4) for moment in moments]
    figures.save_png(figures.join(gallery, axis=1), run.figure("gallery.png"))


@torch.no_grad()
def save_encoder_figures(run: Run, model: VAE, val, test):
    """Draw reconstructions of val images and, for two latent dimensions, the codes of digits."""
    x = val.images[:20].float()
    pairs = torch.cat([x[:10], model.decoder(model.encoder(x[:10])[0]),
                       x[10:], model.decoder(model.encoder(x[10:])[0])])
    figures.save_png(figures.tile(pairs, 10), run.figure("reconstructions.png"))
    if model.z_dim != 2:
        return
    images, labels = test.images, test.labels
    if labels is None:  # in Larochelle's files; MNIST's own test images, binarized, have them
        try:
            digits = mnist(run.args.data_root, dataset="mnist", device=run.device)[2]
        except DataError as error:
            print(f"the figure of the codes is left out, it needs labels: {error}")
            return
        images, labels = binarize(digits.images), digits.labels
    mean, _ = model.encoder(images.float())
    figures.scatter_quantiles(run.figure("codes.pdf"), mean.cpu(), labels.cpu())


# ---------------------------------------------------------------------------------------------
# Main
# ---------------------------------------------------------------------------------------------

def main(argv: Sequence[str] | None = None) -> dict:
    """Train, draw the figures, evaluate once on test; return the results as written."""
    args = parse_args(argv)
    train, val, test = bmnist(args.data_root, args.batch_size, dataset=args.dataset,
                              device=args.device, seed=args.seed, limit=args.limit)
    name = run_name(f"vae-z{args.zdim}", args, parse_args(["--zdim", str(args.zdim)]),
                    train.source, "bmnist")
    run = Run(name, args, train.source)
    model = VAE(args.hidden_dim, args.zdim).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    scheduler = one_cycle(optimizer, args.epochs * len(train))
    run.keep(model=model, optimizer=optimizer, scheduler=scheduler, order=train.generator)

    with run.training():
        for epoch in run.epochs():  # epoch 0 evaluates the untrained model
            train_elbo, val_elbo = run_epoch(
                model, (train, val), optimizer if epoch else None, scheduler, run.autocast())
            run.record(train_elbo_nats=float(train_elbo), val_elbo_nats=float(val_elbo),
                       train_reconstruction_nats=train_elbo.reconstruction,
                       train_kl_nats=train_elbo.kl,
                       val_reconstruction_nats=val_elbo.reconstruction, val_kl_nats=val_elbo.kl)
            if epoch in run.moments:
                run.snapshots[epoch] = draw_moment(model, args.seed)

    save_training_figures(run)
    run.reload()
    model.eval()
    save_encoder_figures(run, model, val, test)
    test_elbo = epoch_iter(model, test)
    untrained, trained = run.history[0], run.history[-1]
    return run.finish(
        untrained_elbo_nats=untrained["val_elbo_nats"],
        train_elbo_nats=trained["train_elbo_nats"],
        val_elbo_nats=trained["val_elbo_nats"],
        val_reconstruction_nats=trained["val_reconstruction_nats"],
        val_kl_nats=trained["val_kl_nats"],
        test_elbo_nats=float(test_elbo),
        test_reconstruction_nats=test_elbo.reconstruction,
        test_kl_nats=test_elbo.kl)


if __name__ == "__main__":
    exit_with(main)
