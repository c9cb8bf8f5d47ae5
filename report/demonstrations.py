"""Small experiments for the report's derivations, against exact answers where there are any.

By the number of the question:

    1.3   a simple map turns a Gaussian cloud into a ring
    1.4   the naive Monte Carlo estimate of log p(x), of the trained VAEs: their committed weights
    1.5   KL divergences of Gaussians: closed form against sampling
    1.11  the reparametrized gradient has far less variance than the score function's
    1.13  the VAE's curves of three seeds, from report/results: nothing is trained
    2.4   the minimax loss stops teaching G once D rejects its images; the other does not
    3.3   a general log-determinant takes O(m^3), a coupling's O(m)
    3.4   a density fitted to discrete values without noise has no upper bound

    python report/demonstrations.py      # 22 s on one core: demo-*.pdf and demonstrations.json
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))

from a3.cli import Parser, exit_with
from a3.cli import folder as folder_name

import numpy as np
import torch
import torch.nn.functional as F
from sources import results as read_results
from torch import Tensor, nn

import a3_gan_template as gan
from a3 import checkpoints
from a3.figures import TRAIN, VAL, canvas, epochs, log_ticks
from a3.gan_losses import discriminator_loss, minimax_loss, nonsaturating_loss
from a3.importance import importance_sampled_nll
from a3.records import REPOSITORY, write_record
from a3.runs import RunError, random_stream
from a3.vae_figures import COIN_NATS
from a3_nf_template import Coupling, get_mask
from datasets import bmnist, mnist
from sample import WEIGHTS, unpack
from vae_variants import build

SEED = 42
HALF_WIDTH = {"width": 2.31, "height": 1.35}  # inches: a figure beside text
LATENTS = 20  # most dimensions in the figure of 1.11, as in the VAE
NAIVE_DRAWS = tuple(10**i for i in range(6))
NAIVE_IMAGES = 500  # test images whose naive estimates are averaged
IMPORTANCE_DRAWS = 200  # for each of them, from q(z|x)
DECODED_TOGETHER = 1000  # codes
KL_EXAMPLES = {"zero": (0.0, 1.0), "small": (0.1, 1.1), "narrow": (10.0, 0.01),
               "wide": (10.0, 100.0)}  # mean and variance of q
KL_DRAWS = 1_000_000
GRADIENT_DRAWS = 400_000
SIZES = (98, 196, 392, 784, 1568, 3136)  # m of the determinants; 784 is MNIST
BATCH = 1000  # images in one sum of the coupling's log scales
SATURATION_UPDATES = 200  # of D, against a G that stays as it is
GENERATOR_LOSSES = {"minimax": minimax_loss, "nonsaturating": nonsaturating_loss}
VALUES = 8  # of the discrete variable of 3.4: uniform, 3 bits
WIDTHS = 2.0 ** np.arange(1, -10.5, -0.5)  # of the bumps that are fitted to it
SEEDS = ("vae-z20", "vae-z20-seed1", "vae-z20-seed2")  # the runs of 1.13
ZOOMED_FROM = 5  # the first epoch of the enlarged curves
# Columns of the runs' tables, their labels and lines. Older runs lack the last one.
ELBO_CURVES = {
    "train_elbo_nats": ("train, while training", TRAIN),
    "val_elbo_nats": ("validation", VAL),
    "train_evaluated_elbo_nats": ("train, evaluated", {**TRAIN, "linestyle": ":"})}



# The experiments ---------------------------------------------------------------------------------

def log_normal(x: Tensor, mean: Tensor | float, variance: float) -> Tensor:
    """Return log N(x; mean, variance) of every element, in nats."""
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


def ring(z: Tensor) -> Tensor:
    """Return z / 10 + z / |z|, (N, 2): a ring from a cloud (the example of Doersch 2016)."""
    return z / 10 + z / z.norm(dim=1, keepdim=True)


def committed_vae(run: str) -> nn.Module:
    """Return the VAE of a run by its weights in code/weights."""
    stored = checkpoints.load(WEIGHTS / f"{run}.pt")
    network = build(stored["flags"])
    unpack(stored["packed"], network)
    return network.eval()


@torch.no_grad()
def naive_estimates(model: nn.Module, x: Tensor, noise: torch.Generator) -> list[float]:
    """Return the mean of -log (1/K sum_k p(x|z_k)), z_k ~ p(z), in nats, for each of NAIVE_DRAWS.

    Smaller K use the first of the draws, which all images share.

    Args:
        x: (N, 784) binary pixels.
    """
    log_sum, done, estimates = torch.full((len(x),), -math.inf, dtype=torch.float64), 0, []
    while done < max(NAIVE_DRAWS):
        upto = next(draws for draws in NAIVE_DRAWS if draws > done)
        z = torch.randn(min(DECODED_TOGETHER, upto - done), model.z_dim, generator=noise)
        logits = model.decoder.logits(z)  # (k, 784); log p(x|z) = x l - log(1 + e^l)
        log_p = (x @ logits.T - F.softplus(logits).sum(dim=1)).double()  # (N, k)
        log_sum = torch.logaddexp(log_sum, log_p.logsumexp(dim=1))
        done += len(z)
        if done in NAIVE_DRAWS:
            estimates.append((math.log(done) - log_sum).mean().item())
    return estimates


def gaussian_kl(mean: float, variance: float) -> float:
    """Return KL(N(mean, variance) || N(0, 1)) in nats.

    It is (variance + mean^2 - 1 - log variance) / 2.
    """
    return 0.5 * (variance + mean**2 - 1 - math.log(variance))


def sampled_kl(mean: float, variance: float, noise: torch.Generator) -> tuple[float, float]:
    """Return the mean of log q(z) - log p(z) over z ~ q, and its standard error, in nats."""
    z = mean + math.sqrt(variance) * torch.randn(KL_DRAWS, generator=noise).double()
    ratio = log_normal(z, mean, variance) - log_normal(z, 0.0, 1.0)
    return ratio.mean().item(), ratio.std().item() / math.sqrt(KL_DRAWS)


def gradient_variances(noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the variance of two estimates of d/d mean_1 E_q[g(z)], for D = 1, ..., LATENTS.

    g(z) = |z - x|^2 / (2 tau^2), that is -log N(x; z, tau^2 I) without its constant;
    q = N(x, tau^2 I), where the gradient is 0. With z = x + tau eps the two estimates are

        score function      g(z) (z_1 - x_1) / tau^2 = |eps|^2 / 2 * eps_1 / tau
        reparametrization   dg/dz_1                  = eps_1 / tau

    whose variances are (D + 2)(D + 4) / (4 tau^2) and 1 / tau^2.

    Returns:
        of the score function and of the reparametrization, each (LATENTS,), times tau^2.
    """
    eps = torch.randn(GRADIENT_DRAWS, LATENTS, generator=noise).double()
    score = 0.5 * (eps**2).cumsum(dim=1) * eps[:, :1]  # (draws, LATENTS), times tau
    return score.var(dim=0), eps[:, 0].var().expand(LATENTS)


def jacobian_check(noise: torch.Generator) -> tuple[float, float]:
    """Return a coupling's sum of s, and log |det J| of its Jacobian by autograd, in nats.

    The coupling has m = 784 pixels, a small network and random weights, in float64.
    """
    coupling = Coupling(784, get_mask(), n_hidden=32).double()
    for weight in coupling.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=noise).double()
    x = torch.randn(784, generator=noise).double()
    start = torch.zeros(1, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: coupling(x[None], start)[0][0])(x)
    own = coupling(x[None], start)[1].item()
    return own, torch.linalg.slogdet(jacobian).logabsdet.item()


def milliseconds(work: Callable[[], object], turns: int = 9) -> float:
    """Return the shortest of several times, which others on the machine disturb the least."""
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def determinant_times(noise: torch.Generator) -> tuple[list[float], list[float]]:
    """Time log |det J| of a dense m x m matrix, and of a coupling: the sum of m/2 numbers.

    Both are given what they need: the Jacobian there, the log scales of a batch here.

    Returns:
        milliseconds an image, for each of SIZES, of the matrix and of the sum.
    """
    dense, coupling = [], []
    for m in SIZES:
        jacobian = torch.randn(m, m, generator=noise)
        log_scale = torch.randn(BATCH, m // 2, generator=noise)
        dense.append(milliseconds(lambda matrix=jacobian: torch.linalg.slogdet(matrix)))
        coupling.append(milliseconds(lambda s=log_scale: s.sum(dim=1), turns=50) / BATCH)
    return dense, coupling


def saturation(model: gan.GAN, optimizer_D: torch.optim.Optimizer,  # noqa: N803
               batches: Sequence[Tensor]) -> dict[str, list[float]]:
    """Train D alone, and measure what G would learn from it (after Arjovsky & Bottou 2017).

    After each of D's updates, the norm of the gradient that G would get is measured for both
    losses; G itself stays as it is.

    Args:
        batches: real images, (B, 784) in [-1, 1]; D makes one update with each.

    Returns:
        the norms of the two gradients, by name, and the mean D(G(z)) as "d_fake"; one value an
        update.
    """
    generator, discriminator = model.generator.train(), model.discriminator
    curves: dict[str, list[float]] = {name: [] for name in (*GENERATOR_LOSSES, "d_fake")}
    noise = [torch.randn(len(x), generator.latent_dim) for x in batches]
    for x, z in zip(batches, noise, strict=True):
        discriminator.train()
        loss = discriminator_loss(discriminator.logits(x),
                                  discriminator.logits(generator(z).detach()))
        optimizer_D.zero_grad()
        loss.backward()
        optimizer_D.step()

        discriminator.eval()  # nothing random in what is measured
        fake_a = discriminator.logits(generator(noise[0]))  # (B, 1), always of the same z
        for name, g_loss in GENERATOR_LOSSES.items():
            gradients = torch.autograd.grad(g_loss(fake_a), list(generator.parameters()),
                                            retain_graph=True)
            curves[name].append(nn.utils.get_total_norm(gradients).item())
        curves["d_fake"].append(fake_a.sigmoid().mean().item())
    return curves


def growth(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the exponent a of time ~ size^a, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def bits_of_bumps(width: float, with_noise: bool) -> float:
    """Return -E[log2 p(y)] of y = x + u, x uniform on VALUES integers, in bits.

    The density p(y) = 1/VALUES sum_k N(y; k + 1/2, width^2) has a bump at the centre of every
    bin. It is what a flow in one dimension gives whose map is the standard normal quantile of
    p's distribution function. The expectation over u is exact (u = 1/2, without noise) or by the
    midpoint rule on [0, 1).
    """
    steps = 4096 if with_noise else 1
    u = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    x = torch.arange(VALUES, dtype=torch.float64)
    y = (x[:, None] + u).flatten()
    log_p = log_normal(y[:, None], x + 0.5, width**2).logsumexp(dim=1) - math.log(VALUES)
    return -log_p.mean().item() / math.log(2)


# Figures and numbers -----------------------------------------------------------------------------

def show_ring(folder: Path) -> None:
    """Draw a Gaussian cloud and its image, the ring."""
    z = torch.randn(600, 2, generator=random_stream(SEED, "ring"))
    with canvas(folder / "demo-ring.pdf", columns=2, width=2.03, height=1.25) as axes:
        for axis, points, name in zip(axes, (z, ring(z)), ("z", "g(z)"), strict=True):
            axis.plot(*points.T, ".", markersize=2, color=VAL["color"], markeredgewidth=0)
            axis.set(title=f"${name}$", aspect="equal")
            limit = 1.05 * points.abs().max().item()
            ticks = (-int(limit), 0, int(limit))
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=ticks, yticks=ticks)


def show_naive_estimate(folder: Path) -> dict:
    """Draw and return naive estimates of the trained VAEs, with -ELBO and importance sampling."""
    test, rows = bmnist(dataset="bmnist")[2], {}
    chosen = torch.randperm(len(test.images), generator=random_stream(SEED, "naive images"))
    x = test.pixels(test.images[chosen[:NAIVE_IMAGES]])
    with canvas(folder / "demo-naive-estimate.pdf", width=2.03, height=1.35) as axis:
        for run, style in (("vae-z20", TRAIN), ("vae-z2", VAL)):
            model, noise = committed_vae(run), random_stream(SEED, f"naive {run}")
            naive = naive_estimates(model, x, noise)
            one, many = (importance_sampled_nll(partial(model.log_weights, noise=noise), [x], k, 4)
                         for k in (1, IMPORTANCE_DRAWS))
            rows[run] = {"naive_nats": dict(zip(map(str, NAIVE_DRAWS), naive, strict=True)),
                         "elbo_nats": one.mean(), "importance_nats": many.mean()}
            axis.semilogx(NAIVE_DRAWS, naive, marker=".", label=f"$D={model.z_dim}$", **style)
            axis.axhline(many.mean(), color=style["color"], linewidth=0.6, linestyle=":")
        axis.set(xlabel="draws $K$ from the prior", ylabel="$-\\log p(x)$ [nats]")
        log_ticks(axis, (80, 100, 150, 200, 300, 400))
        axis.legend()
    return {"images": NAIVE_IMAGES, "importance_draws": IMPORTANCE_DRAWS, **rows}


def compare_kl() -> dict:
    """Return the examples' divergences in closed form and by sampling."""
    noise, rows = random_stream(SEED, "kl"), {}
    for name, (mean, variance) in KL_EXAMPLES.items():
        sampled, error = sampled_kl(mean, variance, noise)
        rows[name] = {"mean": mean, "variance": variance, "kl_nats": gaussian_kl(mean, variance),
                      "sampled_kl_nats": sampled, "sampled_kl_error_nats": error}
    return {"draws": KL_DRAWS, **rows}


def show_gradients(folder: Path) -> dict:
    """Draw and return both variances, and their ratio beside the exact one."""
    score, reparametrized = gradient_variances(random_stream(SEED, "gradient"))
    dims = np.arange(1, LATENTS + 1)
    exact = (dims + 2) * (dims + 4) / 4
    with canvas(folder / "demo-gradient.pdf", **HALF_WIDTH) as axis:
        axis.semilogy(dims, exact, label="score function", **TRAIN)
        axis.semilogy(dims, np.ones(LATENTS), label="reparametrized", **VAL)
        axis.semilogy(dims, score, "o", markersize=2.5, color=TRAIN["color"])
        axis.semilogy(dims, reparametrized, "o", markersize=2.5, color=VAL["color"])
        axis.set(xlabel="latent dimensions $D$", ylabel="variance $\\times\\ \\tau^2$")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="center right")
    ratio = score / reparametrized
    return {"draws": GRADIENT_DRAWS,
            "ratio": {f"d{d}": ratio[d - 1].item() for d in (1, 2, 5, 10, 20)},
            "exact_ratio": {f"d{d}": float(exact[d - 1]) for d in (1, 2, 5, 10, 20)}}


def elbo_curves(report: Path) -> dict[str, np.ndarray]:
    """Return the curves of ELBO_CURVES that all SEEDS have, each (seeds, epochs + 1) in nats.

    Raises:
        RunError: a run is missing, or what it must have.
    """
    curves = {}
    for column in ELBO_CURVES:
        try:
            runs = [read_results(report, f"{run}.csv.#1.{column}").values() for run in SEEDS]
        except LookupError as error:
            if column == "train_evaluated_elbo_nats":
                continue
            raise RunError(str(error.args[0])) from None
        curves[column] = np.array(list(zip(*runs, strict=False))).T  # as long as the shortest
    return curves


def show_elbo(folder: Path, report: Path = REPOSITORY / "report") -> None:
    """Draw -ELBO against epochs: mean and range over the seeds, all of it and its last part."""
    curves = elbo_curves(report)
    with canvas(folder / "demo-elbo.pdf", columns=2, height=1.5) as (whole, zoomed):
        for column, values in curves.items():
            label, style = ELBO_CURVES[column]
            for axis, first in ((whole, 0), (zoomed, ZOOMED_FROM)):
                shown = values[:, first:]
                steps = np.arange(first, first + shown.shape[1])
                axis.fill_between(steps, shown.min(axis=0), shown.max(axis=0), alpha=0.25,
                                  color=style["color"], linewidth=0)
                axis.plot(steps, shown.mean(axis=0), label=label, **style)
        for axis in (whole, zoomed):
            axis.set(ylabel="$-$ELBO [nats per image]")
            epochs(axis)
        log_ticks(whole, [100, 150, 200, 300, 500])
        whole.axhline(COIN_NATS, color="0.4", linewidth=0.6, linestyle=":")
        whole.annotate("784 ln 2", (values.shape[1] - 1, COIN_NATS), fontsize=7, ha="right",
                       va="top", xytext=(0, -2), textcoords="offset points")
        zoomed.legend()


def show_saturation(folder: Path) -> dict:
    """Draw both gradient norms and D(G(z)) against D's updates; return first and last values."""
    args = gan.parse_args(["--recipe", "template", "--device", "cpu"])
    train = mnist(dataset="mnist")[0]
    torch.manual_seed(random_stream(SEED, "saturation").initial_seed())
    model = gan.GAN(args.latent_dim)
    batches = gan.scaled(train.images[:SATURATION_UPDATES * args.batch_size])
    curves = saturation(model, gan.optimizers(model, args)[1], batches.split(args.batch_size))
    updates = range(1, len(curves["d_fake"]) + 1)
    with canvas(folder / "demo-saturation.pdf", **HALF_WIDTH) as axis:
        for key, label, above, style in (
                ("nonsaturating", "gradient of $-\\log D(G(z))$", 2, VAL),
                ("minimax", "gradient of $\\log(1 - D(G(z)))$", 8, TRAIN),
                ("d_fake", "mean $D(G(z))$", -3,
                 {"color": "0.4", "linestyle": ":", "linewidth": 1.2})):
            axis.semilogy(updates, curves[key], **style)
            axis.annotate(label, (len(updates), curves[key][-1]), fontsize=7, ha="right",
                          va="bottom" if above > 0 else "top", textcoords="offset points",
                          xytext=(0, above))
        axis.set(xlabel="update of $D$", ylabel="norm; mean", ylim=(1e-5, 1e3))
    return {"data": train.source.name,
            **{f"{when}_{name}": curves[name][index] for name in curves
               for when, index in (("first", 0), ("last", -1))}}


def compare_determinants() -> dict:
    """Return the times, and the check of the coupling's log-determinant."""
    noise = random_stream(SEED, "determinant")
    dense, coupling = determinant_times(noise)
    own, of_autograd = jacobian_check(noise)
    return {"dense_ms": {f"m{m}": ms for m, ms in zip(SIZES, dense, strict=True)},
            "coupling_ns": {f"m{m}": 1e6 * ms for m, ms in zip(SIZES, coupling, strict=True)},
            "dense_exponent": growth(SIZES[-3:], dense[-3:]),
            "coupling_exponent": growth(SIZES[-3:], coupling[-3:]),
            "coupling_log_det_nats": own,
            "jacobian_log_det_nats": of_autograd,
            "agreeing_decimals": math.floor(-math.log10(max(abs(own - of_autograd), 1e-15)))}


def show_discrete_density(folder: Path) -> dict:
    """Draw and return the bits of a discrete variable, fitted with and without noise."""
    bare, noisy = ([bits_of_bumps(float(width), with_noise) for width in WIDTHS]
                   for with_noise in (False, True))
    entropy = math.log2(VALUES)
    with canvas(folder / "demo-discrete-density.pdf", width=2.65, height=1.5) as axis:
        axis.semilogx(WIDTHS, bare, label="without noise", **TRAIN)
        axis.semilogx(WIDTHS, noisy, label="with uniform noise", **VAL)
        axis.axhline(entropy, color="0.4", linewidth=0.6, linestyle=":")
        axis.annotate("entropy of $x$", (WIDTHS[-1], entropy), fontsize=7, va="bottom",
                      ha="right")
        axis.set(xlabel="width of the bumps", ylabel="$-\\log_2 p$ [bits]",
                 ylim=(min(bare) - 1, 14), xlim=(WIDTHS[0], WIDTHS[-1]))
        axis.legend(loc="lower left")
    return {"values": VALUES, "entropy_bits": entropy,
            "narrowest_width": float(WIDTHS[-1]),
            "narrowest_bits_without_noise": bare[-1],
            "gain_of_halving_bits": bare[-3] - bare[-1],
            "best_bits_with_noise": min(noisy),
            "best_width_with_noise": float(WIDTHS[int(np.argmin(noisy))])}


def main(argv: Sequence[str] | None = None) -> dict:
    """Run all experiments; write figures and numbers, and return the numbers."""
    parser = Parser(description="Run the small experiments of the report.")
    parser.add_argument("--out", type=folder_name, default=REPOSITORY / "report", metavar="DIR",
                        help="folder for figures/ and results/")
    folder = parser.parse_args(argv).out
    torch.set_num_threads(1)
    show_ring(folder / "figures")
    show_elbo(folder / "figures")
    results = write_record(folder / "results" / "demonstrations.json", "cpu", **{
        "naive_estimate": show_naive_estimate(folder / "figures"),
        "kl": compare_kl(),
        "gradient": show_gradients(folder / "figures"),
        "saturation": show_saturation(folder / "figures"),
        "determinant": compare_determinants(),
        "discrete_density": show_discrete_density(folder / "figures"),
        "seed": SEED})
    print(f"done: {folder / 'results' / 'demonstrations.json'}, figures in {folder / 'figures'}")
    return results


if __name__ == "__main__":
    exit_with(main)
