"""Normalizing flow on 8-bit MNIST (questions 3.7-3.8).

Dinh, Sohl-Dickstein & Bengio (2017), "Density estimation using Real NVP": an invertible map f
takes an image x to z = f(x), and the change of variables gives the exact density

    log p(x) = log N(f(x); 0, I) + log |det df(x)/dx^T|.

Images are integers: uniform noise u makes them continuous (Theis et al. 2016), and
E_u[log p(x + u)] <= log P(x), so what is reported bounds the discrete code length from above.

    x    (B, 784)   pixels in 0..255
    u    (B, 784)   dequantization noise, uniform on [0, 1)
    s    (B, 784)   alpha / 2 + (1 - alpha) (x + u) / 256, in (0, 1); alpha = 1e-5
    z    (B, 784)   logit(s) before, f(x) after the couplings; prior N(0, I)
    ldj  (B,)       log |det Jacobian| so far, in nats
    mask (1, 784)   1 on the pixels that a coupling keeps

    python code/a3_nf_template.py               # 9 min on 2 cores with bfloat16: validation 1.69
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
from datasets import mnist
from latents import lerp, slerp
from runs import Run, generator, one_cycle, progress

EPOCHS = 40
FULL_PRECISION = nullcontext()  # in place of run.autocast()
ALPHA = 1e-5  # keeps the logit finite; of the assignment's template
MAX_GRADIENT_NORM = 1.0  # of the loss in nats per image
NATS_PER_BIT_PER_DIM = 784 * math.log(2)
TARGET_BITS_PER_DIM = 1.85  # question 3.8
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0)  # of the prior's standard deviation in the figure


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    parser = flags("Train a normalizing flow on 8-bit MNIST.", epochs=EPOCHS, lr=2e-3,
                   batch_size=512, sources=("mnist", "sample"), precision="auto")
    parser.add_argument("--n_flows", type=positive_int, default=4, metavar="N",
                        help="pairs of coupling layers")
    parser.add_argument("--n_hidden", type=positive_int, default=1024, metavar="N",
                        help="units of each hidden layer of a coupling")
    parser.add_argument("--iw_samples", type=positive_int, default=16, metavar="K",
                        help="noise draws of the importance-weighted bound on test")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------
# Mathematics
# ---------------------------------------------------------------------------------------------

def log_prior(x: Tensor) -> Tensor:
    """Return log N(x; 0, 1) of every element, in nats."""
    return -0.5 * (x**2 + math.log(2 * math.pi))


def sample_prior(size: Sequence[int], noise: torch.Generator | None = None) -> Tensor:
    """Draw from N(0, I), on the CPU, so that a generator gives the same on any device."""
    return torch.randn(*size, generator=noise)


def uniform(x: Tensor, noise: torch.Generator) -> Tensor:
    """Return u ~ U[0, 1) for a batch, from a CPU generator; any batches give one same stream."""
    return torch.rand(x.shape, generator=noise).to(x)


def get_mask() -> Tensor:
    """Return the (1, 784) checkerboard: 1 where row + column is even."""
    line = torch.arange(28)
    return ((line[:, None] + line[None, :]) % 2 == 0).float().reshape(1, 784)


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------

class Coupling(nn.Module):
    """Affine coupling (Real NVP, eq. 7-9): the kept pixels b say how to change the others.

        forward   y_changed = x_changed * exp(s) + t      ldj + sum(s)
        reverse   x_changed = (y_changed - t) * exp(-s)   ldj - sum(s)

    with s = tanh(.) and t from one network of x_kept, which both directions know. Ordered
    (kept, changed), the Jacobian is triangular, its diagonal ones and exp(s). The network sees
    the kept half only and computes the changed half only; its last layer starts at zero, so
    that the coupling starts as the identity.

    Two departures from the template. SiLU instead of ReLU learns markedly faster. And the hidden
    layers are normalised (Ba et al. 2016), which bounds s and t whatever is put in: else a rare
    unusual image is pushed further out by every coupling, and its density alone spoils the
    average of an epoch.

    Args:
        c_in: number of pixels.
        mask: (1, c_in), 1 on the kept pixels.
        n_hidden: units of the two hidden layers.
    """

    def __init__(self, c_in: int, mask: Tensor, n_hidden: int = 1024):
        super().__init__()
        self.register_buffer("kept", mask.flatten().nonzero().flatten(), persistent=False)
        self.register_buffer("changed", (1 - mask).flatten().nonzero().flatten(),
                             persistent=False)
        self.nn = nn.Sequential(
            nn.Linear(len(self.kept), n_hidden), nn.LayerNorm(n_hidden), nn.SiLU(),
            nn.Linear(n_hidden, n_hidden), nn.LayerNorm(n_hidden), nn.SiLU(),
            nn.Linear(n_hidden, 2 * len(self.changed)))
        nn.init.zeros_(self.nn[-1].weight)
        nn.init.zeros_(self.nn[-1].bias)
        assert len(self.kept) + len(self.changed) == c_in

    def halves(self, kept: Tensor, changed: Tensor, ldj: Tensor, reverse: bool = False
               ) -> tuple[Tensor, Tensor]:
        """Map the changed half, given the kept one, each (B, c_in / 2); return it and the ldj."""
        h, t = self.nn(kept).to(kept.dtype).chunk(2, dim=1)  # each (B, c_in / 2)
        log_scale = torch.tanh(h)
        if not reverse:
            changed = changed * log_scale.exp() + t
            ldj = ldj + log_scale.sum(dim=1)
        else:
            changed = (changed - t) * torch.exp(-log_scale)
            ldj = ldj - log_scale.sum(dim=1)
        return changed, ldj

    def forward(self, z: Tensor, ldj: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Map z (B, c_in) and add the log-determinant to ldj (B,); reverse undoes both."""
        changed, ldj = self.halves(z[:, self.kept], z[:, self.changed], ldj, reverse)
        return z.index_copy(1, self.changed, changed), ldj


class Flow(nn.Module):
    """Couplings in pairs: what one of a pair keeps, the other changes.

    The two halves are taken apart once, before the first coupling, and put together once, after
    the last; in between they only change roles.
    """

    def __init__(self, shape: Sequence[int], n_flows: int = 4, n_hidden: int = 1024):
        super().__init__()
        (channels,) = self.z_shape = tuple(shape)
        mask = get_mask()
        self.layers = nn.ModuleList(
            Coupling(channels, one, n_hidden) for _ in range(n_flows) for one in (mask, 1 - mask))

    def forward(self, z: Tensor, ldj: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Apply all couplings in order; in reverse, undo them from the last to the first."""
        first = self.layers[0]
        halves = [z[:, first.kept], z[:, first.changed]]
        steps = list(enumerate(self.layers))
        for i, layer in reversed(steps) if reverse else steps:
            kept, changed = i % 2, (i + 1) % 2
            halves[changed], ldj = layer.halves(halves[kept], halves[changed], ldj, reverse)
        order = torch.cat((first.kept, first.changed)).argsort()
        return torch.cat(halves, dim=1)[:, order], ldj


class Model(nn.Module):
    """A density of images 0..255: dequantization, logit, couplings, and the prior N(0, I)."""

    def __init__(self, shape: Sequence[int] = (784,), n_flows: int = 4, n_hidden: int = 1024):
        super().__init__()
        self.flow = Flow(shape, n_flows, n_hidden)

    def dequantize(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return z + u, u uniform on [0, 1): exactly the width of a bin."""
        return z + (torch.rand_like(z) if u is None else u)

    def logit_normalize(self, z: Tensor, logdet: Tensor, reverse: bool = False
                        ) -> tuple[Tensor, Tensor]:
        """Map [0, 256) to the real line: y = z / 256, s = alpha / 2 + (1 - alpha) y, logit(s).

        Each pixel adds -log 256 + log(1 - alpha) - log s - log(1 - s) to logdet, the logarithm
        of the derivative. Reverse takes logits, undoes the map and subtracts the same.

        Args:
            z: (B, D) in [0, 256), or logits if reverse.
            logdet: (B,) nats, to which it is added.
        """
        constant = z[0].numel() * (math.log1p(-ALPHA) - math.log(256))
        if not reverse:
            y = z / 256
            # 1 - s is not computed from s, which rounds to 1 near the upper end.
            log_s = torch.log(ALPHA / 2 + (1 - ALPHA) * y)
            log_1_minus_s = torch.log(ALPHA / 2 + (1 - ALPHA) * (1 - y))
            logdet = logdet + constant - (log_s + log_1_minus_s).sum(dim=1)
            z = log_s - log_1_minus_s
        else:
            logdet = logdet - constant + (F.logsigmoid(z) + F.logsigmoid(-z)).sum(dim=1)
            z = (torch.sigmoid(z) - ALPHA / 2) / (1 - ALPHA) * 256
        return z, logdet

    def encode(self, x: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z = f(x + u), (B, 784), and the log-determinant, (B,), of images in 0..255."""
        z, ldj = self.dequantize(x, u), torch.zeros(len(x), dtype=x.dtype, device=x.device)
        z, ldj = self.logit_normalize(z, ldj)
        return self.flow(z, ldj)

    def decode(self, z: Tensor) -> Tensor:
        """Return f^-1(z) as an image, (B, 784), whole numbers in 0..255."""
        z, ldj = self.flow(z, torch.zeros(len(z), dtype=z.dtype, device=z.device), reverse=True)
        z, _ = self.logit_normalize(z, ldj, reverse=True)
        return z.floor().clamp(0, 255)

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """Return log p(x + u), (B,) nats, of images x (B, 784) in 0..255, with fresh noise u."""
        z, ldj = self.encode(x, u)
        return log_prior(z).sum(dim=1) + ldj

    @torch.no_grad()
    def sample(self, n_samples: int, noise: torch.Generator | None = None) -> Tensor:
        """Draw z ~ N(0, I) and return the images f^-1(z), (n_samples, 784) in 0..255."""
        z = sample_prior((n_samples, *self.flow.z_shape), noise)
        return self.decode(z.to(self.flow.layers[0].kept.device))


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------

def epoch_iter(model: Model, data, optimizer=None, scheduler=None, autocast=FULL_PRECISION
               ) -> float:
    """Go once through the data; train if the model is in training mode, else only evaluate.

    Evaluation draws its noise always alike, image after image, so that the result depends
    neither on the batch size nor on what was drawn before.

    Returns:
        bits per dimension, -log2 p(x + u) / 784, averaged over the images.
    """
    sums = []  # of each batch: -log p in nats
    noise = generator(0, "evaluation")
    with torch.set_grad_enabled(model.training):
        for x in progress(data):
            u = None if model.training else uniform(x, noise)
            with autocast:
                nll = -model(x, u).sum()
            if model.training:
                optimizer.zero_grad()
                (nll / len(x)).backward()
                nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
            sums.append(nll.detach())
    total = torch.stack(sums).cpu().double().sum().item()
    return total / len(data.images) / NATS_PER_BIT_PER_DIM


def run_epoch(model: Model, data, optimizer=None, scheduler=None, autocast=FULL_PRECISION
              ) -> tuple[float, float]:
    """Train on the first split and validate on the second; without an optimizer, evaluate both.

    Validation is in float32, whatever the precision of training.

    Returns:
        bits per dimension of train (while it was trained, images shifted) and val.
    """
    traindata, valdata = data

    model.train(optimizer is not None)
    train_bpd = epoch_iter(model, traindata, optimizer, scheduler, autocast)

    model.eval()
    val_bpd = epoch_iter(model, valdata)

    return train_bpd, val_bpd


@torch.no_grad()
def importance_weighted_bpd(model: Model, data, n_noise: int, noise: torch.Generator) -> Tensor:
    """Return the bound -log2 (1/K sum_k p(x + u_k)) / 784 of every image.

    The mean inside the logarithm (Burda et al. 2016) makes it tighter than one draw's bound; it
    tends to -log2 P(x) / 784 as K grows.

    Args:
        n_noise: K.

    Returns:
        (N,) bits per dimension.
    """
    log_sum = torch.full((len(data.images),), -math.inf, device=data.images.device)
    for _ in progress(range(n_noise)):
        log_p = torch.cat([model(x, uniform(x, noise)) for x in data])  # (N,)
        log_sum = torch.logaddexp(log_sum, log_p)
    return (math.log(n_noise) - log_sum) / NATS_PER_BIT_PER_DIM


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------

def save_bpd_plot(train_curve: Sequence[float], val_curve: Sequence[float], filename: Path):
    """Plot bits per dimension of each epoch; the untrained model, epoch 0, is off the plot."""
    with figures.canvas(filename, width=3.6, height=2.3) as axis:
        figures.train_and_val(axis, train_curve, val_curve, "bits per dimension")
        axis.axhline(TARGET_BITS_PER_DIM, color="0.4", linewidth=0.6, linestyle=":")
        axis.annotate(f"{TARGET_BITS_PER_DIM}", (0, TARGET_BITS_PER_DIM), fontsize=7, va="bottom")
        low = min(TARGET_BITS_PER_DIM, *train_curve, *val_curve)
        axis.set_ylim(low - 0.05, max([low, *val_curve[1:]]) + 0.05)


def save_pixel_plot(model: Model, data, filename: Path):
    """Histogram one pixel's values as stored, dequantized, and as logits (question 3.4)."""
    x = data.images[:, [28 * 14 + 14]].cpu().double()  # (N, 1), the middle of the image
    y = model.dequantize(x, uniform(x, generator(0, "pixel")))
    logits, _ = model.logit_normalize(y, torch.zeros(len(y)).double())
    panels = [(x, "stored value $x$", 256), (y, "dequantized $x + u$", 64),
              (logits, "logit of the squeezed value", 64)]
    with figures.canvas(filename, columns=3, height=1.7) as axes:
        for axis, (values, label, bins) in zip(axes, panels, strict=True):
            axis.hist(values.flatten().numpy(), bins=bins, density=True, color="#0072B2")
            axis.set(xlabel=label, yscale="log")
        axes[0].set_ylabel("density")


def draw_moment(model: Model, seed: int) -> dict[str, Tensor]:
    """Draw what the figures show of one moment of training, always from the same z."""
    return {"samples": model.sample(25, generator(seed, "figures")).cpu() / 255}


def save_training_figures(run: Run):
    """Draw the curves and, for the moments that were reached, samples."""
    curves = [[row[f"{split}_bits_per_dim"] for row in run.history] for split in ("train", "val")]
    save_bpd_plot(*curves, run.figure("bpd.pdf"))
    moments = [run.snapshots[epoch] for epoch in sorted(run.snapshots)]
    for name, moment in run.named_moments():
        figures.save_png(figures.tile(moment["samples"], 5), run.figure(f"samples-{name}.png"))
    gallery = [figures.tile(moment["samples"][:16], 4) for moment in moments]
    figures.save_png(figures.join(gallery, axis=1), run.figure("gallery.png"))


@torch.no_grad()
def save_latent_figures(run: Run, model: Model, test):
    """Draw walks between two test digits, and samples at several temperatures."""
    ends = [int((test.labels == digit).nonzero()[0]) for digit in (3, 8)]
    x = test.images[ends].float()
    z, _ = model.encode(x, uniform(x, generator(run.args.seed, "figures")))
    walks = torch.cat([walk(*z, steps=9) for walk in (lerp, slerp)])
    figures.save_png(figures.tile(model.decode(walks) / 255, 9), run.figure("interpolation.png"))
    z = sample_prior((10, 784), generator(run.args.seed, "figures")).to(x.device)
    rows = torch.cat([model.decode(temperature * z) for temperature in TEMPERATURES])
    figures.save_png(figures.tile(rows / 255, 10), run.figure("temperatures.png"))


# ---------------------------------------------------------------------------------------------
# Main
# ---------------------------------------------------------------------------------------------

def main(argv: Sequence[str] | None = None) -> dict:
    """Train, draw the figures, evaluate once on test; return the results as written."""
    args = parse_args(argv)
    train, val, test = mnist(args.data_root, args.batch_size, dataset=args.dataset,
                             device=args.device, seed=args.seed, limit=args.limit, shift=1)
    run = Run(run_name("nf", args, parse_args([]), train.source, "mnist"), args, train.source)
    model = Model(n_flows=args.n_flows, n_hidden=args.n_hidden).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    scheduler = one_cycle(optimizer, args.epochs * len(train))
    run.keep(model=model, optimizer=optimizer, scheduler=scheduler, order=train.generator)

    with run.training():
        for epoch in run.epochs():  # epoch 0 evaluates the untrained model
            train_bpd, val_bpd = run_epoch(
                model, (train, val), optimizer if epoch else None, scheduler, run.autocast())
            run.record(train_bits_per_dim=train_bpd, val_bits_per_dim=val_bpd)
            if epoch in run.moments:
                run.snapshots[epoch] = draw_moment(model, args.seed)

    save_training_figures(run)
    run.reload()
    model.eval()
    save_latent_figures(run, model, test)
    save_pixel_plot(model, train, run.figure("pixel.pdf"))
    bound = importance_weighted_bpd(model, test, args.iw_samples,
                                    generator(args.seed, "importance weighting"))
    untrained, trained = run.history[0], run.history[-1]
    return run.finish(
        untrained_bits_per_dim=untrained["val_bits_per_dim"],
        train_bits_per_dim=trained["train_bits_per_dim"],
        val_bits_per_dim=trained["val_bits_per_dim"],
        test_bits_per_dim=epoch_iter(model, test),
        test_iw_bits_per_dim=bound.double().mean().item(),
        test_iw_samples=args.iw_samples)


if __name__ == "__main__":
    exit_with(main)
