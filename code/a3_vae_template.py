"""Variational autoencoder on binary MNIST (questions 1.12-1.15).

Kingma & Welling (2014), "Auto-encoding variational Bayes": a decoder p(x|z) p(z) and an encoder
q(z|x) are trained together on a lower bound of log p(x), the ELBO,

    -ELBO(x) = E_q(z|x)[-log p(x|z)] + KL(q(z|x) || p(z))  >=  -log p(x),

estimated with one z = mean + std * eps per image (their eq. 7 and 10). All values in nats.

    x       (B, 784)   pixels in {0, 1}
    z       (B, D)     latent code; prior N(0, I); D = --zdim
    mean    (B, D)     of q(z|x) = N(mean, diag(std^2))
    log_std (B, D)     std = exp(log_std), positive whatever the network returns
    eps     (B, D)     noise, N(0, I)
    logits  (B, 784)   of the Bernoulli means p(x_m = 1 | z) = sigmoid(logits_m)

    python code/a3_vae_template.py              # 2 min on 2 cores: validation -ELBO 95 nats
    python code/a3_vae_template.py --zdim 2     # 2 min on 2 cores: 139 nats, and the manifold

Other objectives, likelihoods, posteriors and priors: vae_variants.py, which trains by this loop.
"""

from collections.abc import Sequence
from functools import partial
from a3.cli import exit_with, flags, parse, positive_int, run_name, units

import torch
from torch import Tensor, nn

from a3.importance import importance_sampled_nll
from a3.runs import Run, epoch_sum, images_in, one_cycle, random_stream
from a3.speed import Dropout, binary_cross_entropy
from a3.vae_figures import (
    Elbo,
    draw_moment,
    save_elbo_plot,  # noqa: F401  a name of the course's template
    save_latent_figures,
    save_training_figures,
)
from datasets import bernoulli, bmnist, labelled

EPOCHS = 40
INPUT_DROPOUT = 0.2  # share of the pixels that the encoder does not see in training
NLL_CHUNK = 20  # importance samples drawn together


def parser(description: str = "Train a VAE on binary MNIST."):
    """Return the parser of the flags."""
    parser = flags(description, epochs=EPOCHS, lr=3e-3, batch_size=128,
                   sources=("bmnist", "mnist", "sample"), precision="auto")
    add = parser.add_argument
    add("--zdim", type=units, default=20, metavar="D", help="latent dimensions")
    add("--hidden_dim", type=units, default=500, metavar="N",
        help="units of each hidden layer")
    add("--nll_samples", type=positive_int, default=200, metavar="K",
        help="importance samples for each test image's likelihood")
    return parser


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    return parse(parser(), argv)


# Mathematics -------------------------------------------------------------------------------------

def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """Return -log p(x|z) = -sum_m [x_m log f_m + (1 - x_m) log(1 - f_m)], f = sigmoid(logits).

    Computed from the logits, so that it is finite where f rounds to 0 or 1.

    Args:
        logits: (..., B, 784) real.
        x: (B, 784) pixels in {0, 1}.

    Returns:
        (..., B) nats.
    """
    return binary_cross_entropy(logits, x).sum(dim=-1)


def gaussian_kls(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, 1)) = 1/2 [std^2 + mean^2 - 1 - log std^2] elementwise.

    Kingma & Welling (2014), appendix B. The KL of a code is the sum over its dimensions.

    Args:
        mean, log_std: (B, D).

    Returns:
        (B, D) nats, at least 0.
    """
    return 0.5 * (torch.exp(2 * log_std) + mean**2 - 1 - 2 * log_std)


# Networks ----------------------------------------------------------------------------------------

class Encoder(nn.Module):
    """q(z|x): two hidden layers, and mean and log std as two linear functions of the last.

    In training, a share of its input pixels is set to 0 (the others are scaled up), so that it
    memorises the training images less. The bound holds for any q; evaluation drops nothing.
    """

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20, dropout: float = INPUT_DROPOUT):
        super().__init__()
        self.body = nn.Sequential(
            Dropout(dropout),
            nn.Linear(784, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU())
        self.head = nn.Linear(hidden_dim, 2 * z_dim)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log std of q(z|x), each (B, D), for pixels x (B, 784)."""
        h = self.body(x)  # (B, hidden_dim)
        return self.head(h).to(x.dtype).chunk(2, dim=1)  # (B, 2 D) -> 2 x (B, D)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std (positive) of q(z|x), each (B, D), for pixels x (B, 784)."""
        mean, log_std = self.posterior(input)
        return mean, log_std.exp()


class Decoder(nn.Module):
    """p(x|z): the encoder's hidden layers in reverse order."""

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(z_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, 784))

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits of the Bernoulli means, (..., 784), for codes z (..., D)."""
        return self.net(z).to(z.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return the Bernoulli means, (B, 784) in [0, 1], for codes z (B, D)."""
        return torch.sigmoid(self.logits(input))


class VAE(nn.Module):
    """Encoder and decoder, trained together on the ELBO."""

    def __init__(self, hidden_dim: int = 500, z_dim: int = 20, dropout: float = INPUT_DROPOUT):
        super().__init__()
        self.z_dim = z_dim
        self.encoder = Encoder(hidden_dim, z_dim, dropout)
        self.decoder = Decoder(hidden_dim, z_dim)

    def elbo_terms(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the two terms of -ELBO(x), with one sample of z per image (eq. 10).

        Args:
            x: (B, 784) pixels in {0, 1}.
            eps: (B, D) noise of the reparametrization; drawn if not given.

        Returns:
            reconstruction -log p(x|z) and KL(q(z|x) || p(z)), each (B,) nats.
        """
        eps = torch.randn(len(x), self.z_dim, device=x.device) if eps is None else eps
        mean, log_std = self.encoder.posterior(x)  # 2 x (B, D)
        z = mean + log_std.exp() * eps  # (B, D)
        reconstruction = bernoulli_nll(self.decoder.logits(z), x)  # (B, 784) -> (B,)
        kl = gaussian_kls(mean, log_std).sum(dim=1)  # (B, D) -> (B,)
        return reconstruction, kl

    def objective(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what training minimises, -ELBO, and its two terms, each (B,) nats."""
        reconstruction, kl = self.elbo_terms(x, eps)
        return reconstruction + kl, reconstruction, kl

    def forward(self, input: Tensor) -> Tensor:
        """Return the average negative ELBO of a batch (B, 784), a scalar in nats per image."""
        return sum(self.elbo_terms(input)).mean()

    def log_weights(self, x: Tensor, n_samples: int, noise: torch.Generator | None = None
                    ) -> Tensor:
        """Return log p(x, z) - log q(z|x) of fresh z ~ q(z|x), (n_samples, B) nats.

        Their expectation is the ELBO, that of their exponentials p(x) (Burda et al. 2016).
        ``noise`` is a CPU generator, which makes the draw repeatable on any device.
        """
        mean, log_std = self.encoder.posterior(x)  # 2 x (B, D)
        eps = torch.randn(n_samples, *mean.shape, generator=noise).to(x.device)  # (K, B, D)
        z = mean + log_std.exp() * eps
        log_ratio = (0.5 * (eps**2 - z**2) + log_std).sum(dim=-1)  # log p(z) - log q(z|x), (K, B)
        return log_ratio - bernoulli_nll(self.decoder.logits(z), x)

    @torch.no_grad()
    def code(self, x: Tensor) -> Tensor:
        """Return the mean of q(z|x), (B, D), for pixels x (B, 784)."""
        return self.encoder.posterior(x)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the Bernoulli means, (B, 784) in [0, 1], for codes z (B, D)."""
        return self.decoder(z)

    @torch.no_grad()
    def sample(self, n_samples: int, noise: torch.Generator | None = None
               ) -> tuple[Tensor, Tensor]:
        """Draw z ~ p(z), then x ~ p(x|z); return x and its means, each (n_samples, 784)."""
        z = torch.randn(n_samples, self.z_dim, generator=noise)
        im_means = self.decode(z.to(self.decoder.net[0].weight.device))
        return bernoulli(im_means, noise), im_means


# Training ----------------------------------------------------------------------------------------

def epoch_iter(model: nn.Module, data, optimizer=None, bfloat16: bool = False) -> Elbo:
    """Go once through the data; train if the model is in training mode, else only evaluate.

    Evaluation draws the same noise each time, so that the result depends neither on the batch
    size nor on earlier draws.

    Returns:
        the negative ELBO averaged over the images, in nats.
    """
    sums, images = [], []  # for each batch: reconstruction and KL, and how many images
    noise = [None] * len(data)
    if not model.training:  # drawn for the whole split, whatever the batches
        stream = random_stream(0, "evaluation")
        noise = torch.randn(len(data.dataset), model.z_dim, generator=stream)
        noise = noise.to(next(model.parameters()).device).split(data.batch_size)
    with torch.set_grad_enabled(model.training):
        for x, eps in zip(images_in(data), noise, strict=False):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
                loss, *terms = model.objective(x, eps)  # each (B,)
            if model.training:
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
            sums.append(torch.stack(terms).detach().sum(dim=1))  # (2,)
            images.append(len(x))
    return Elbo(*(epoch_sum(sums) / epoch_sum(images)).tolist())


def run_epoch(model: nn.Module, data, optimizer=None, bfloat16: bool = False) -> tuple:
    """Train on the first split and validate on the second; without an optimizer, evaluate both.

    Validation is in float32, whatever the precision of training.

    Returns:
        the losses of train (while it was trained) and val, as ``epoch_iter`` gives them.
    """
    traindata, valdata = data

    model.train(optimizer is not None)
    train_loss = epoch_iter(model, traindata, optimizer, bfloat16)

    model.eval()
    val_loss = epoch_iter(model, valdata)

    return train_loss, val_loss


def fit(run: Run, model: nn.Module, data, optimizer) -> None:
    """Train for all epochs, from the last checkpoint if the run is resumed."""
    train, val, _ = data
    as_val = train.first(len(val.images))  # to be evaluated after the epoch, without dropout
    schedule = one_cycle(optimizer, run.args.epochs * len(train))
    run.keep(model=model, optimizer=optimizer, schedule=schedule, order=train.generator)
    run.resume()
    with run.training(save_training_figures):
        for epoch in run.epochs():  # epoch 0 evaluates the untrained model
            train_loss, val_loss = run_epoch(
                model, (train, val), optimizer if epoch else None, run.bfloat16)
            run.record(f"-ELBO: train {train_loss:.2f}, val {val_loss:.2f} nats "
                       f"(KL {val_loss.kl:.2f})",
                       train_elbo_nats=float(train_loss), val_elbo_nats=float(val_loss),
                       train_evaluated_elbo_nats=float(epoch_iter(model, as_val)),
                       train_reconstruction_nats=train_loss.reconstruction,
                       train_kl_nats=train_loss.kl,
                       val_reconstruction_nats=val_loss.reconstruction, val_kl_nats=val_loss.kl)
            if epoch in run.moments:
                run.snapshots[epoch] = draw_moment(model, run.args.seed)
                save_training_figures(run)


# Main --------------------------------------------------------------------------------------------

def evaluate(run: Run, model: nn.Module, test) -> dict:
    """Return the final numbers: the last epoch's, and test's, on which nothing is chosen."""
    test_elbo = epoch_iter(model, test)
    noise = random_stream(run.args.seed, "importance sampling")
    nll = importance_sampled_nll(partial(model.log_weights, noise=noise), test,
                                 run.args.nll_samples, NLL_CHUNK, run.bfloat16)
    print(f"-log p(x): {nll.mean():.2f} nats with {run.args.nll_samples} draws; the last doubling "
          f"lowered it by {nll.doubling() or 0:.3f}", flush=True)
    return {"untrained_elbo_nats": run.history[0]["val_elbo_nats"], **run.last_numbers(),
            "test_elbo_nats": float(test_elbo),
            "test_reconstruction_nats": test_elbo.reconstruction, "test_kl_nats": test_elbo.kl,
            "test_nll_nats": nll.mean(), "test_nll_draw_error_nats": nll.draw_error(),
            "test_nll_doubling_nats": nll.doubling(), "nll_samples": run.args.nll_samples}


def main(argv: Sequence[str] | None = None) -> dict:
    """Train, draw the figures, evaluate once on test; return the results as written."""
    args = parse_args(argv)
    data = train, val, test = bmnist(args.data_root, args.batch_size, dataset=args.dataset,
                                     device=args.device, seed=args.seed, limit=args.limit)
    name = run_name(f"vae-z{args.zdim}", args, train.source, "bmnist", named=["zdim"])
    run = Run(name, args, train.source)
    model = VAE(args.hidden_dim, args.zdim).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)

    fit(run, model, data, optimizer)
    save_training_figures(run)
    run.reload()
    model.eval()
    digits = labelled(test, args.data_root) if args.zdim == 2 else None
    save_latent_figures(run, model, val, digits)
    return run.finish(**evaluate(run, model, test))


if __name__ == "__main__":
    exit_with(main)
