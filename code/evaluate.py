"""One comparison of the three models on held-out data (question 4.1).

The VAE's and the flow's likelihoods are of different data (binary and 8-bit images) and the GAN
has none, so what is compared is what all three can do: draw samples. They are judged in one
domain. All images, real and drawn, become binary by a Bernoulli draw of each pixel, and a
classifier trained on such images gives the features that ``sample_metrics`` measures. The floor
is what real images score that neither the models nor the classifier were trained on.

    python code/evaluate.py                   # after the three full runs; 13 min on 2 cores
    python code/evaluate.py --nll_samples 500 --repeats 2         # 2 min: wider errors
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import figures
import sample_metrics as metrics
from cli import device_name, exit_with, positive_int, seed_int
from datasets import REPOSITORY, binarize, bmnist, mnist
from digit_classifier import CLEAR, classify, features, trained_classifier
from importance import Estimate, importance_sampled_nll
from latents import slerp
from runs import (
    describe_device,
    finished_run,
    generator,
    progress,
    write_record,
)

NAMES = {"vae": "VAE", "gan": "GAN", "nf": "flow"}
INTERPOLATED = (3, 8)  # digits at the ends of the walks
TIMED_SAMPLES = 1000
IMAGE_ROWS = 100  # images at once when likelihoods are estimated
# Of each measure of samples, whether more is better; the others (deviations, shares) rank nothing.
BETTER_HIGH = {"frechet_distance": False, "kernel_distance": False, "precision": True,
               "recall": True, "density": True, "coverage": True,
               "class_divergence_nats": False, "clear_share": True}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = argparse.ArgumentParser(
        description="Compare the trained VAE, GAN and flow.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    for name, run in (("vae", "vae-z20"), ("gan", "gan"), ("nf", "nf")):
        add(f"--{name}", default=run, metavar="RUN", help=f"finished run of the {NAMES[name]}")
    add("--nll_samples", type=positive_int, default=5000, metavar="K",
        help="importance samples of each image's likelihood under the VAE")
    add("--iw_samples", type=positive_int, default=16, metavar="K",
        help="noise draws of each image's likelihood under the flow")
    add("--chunk", type=positive_int, default=50, metavar="N",
        help="draws at once; changes time and memory, not what is estimated")
    add("--samples", type=positive_int, default=10_000, metavar="N",
        help="samples of a model in each repeat")
    add("--repeats", type=positive_int, default=4, metavar="R",
        help="sets of samples, over which mean and deviation are taken")
    add("--seed", type=seed_int, default=42, help="of samples, noise and binarization")
    add("--device", type=device_name, default="auto")
    add("--data_root", default=None, metavar="DIR", help="folder of the data sets")
    add("--dataset", choices=("auto", "mnist", "sample"), default="auto")
    add("--out", type=Path, default=None, metavar="DIR",
        help="where the runs are, and what this writes (None: the report's)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------
# The trained models, behind one face
# ---------------------------------------------------------------------------------------------

@dataclass
class Trained:
    """A trained model as it is compared.

    Attributes:
        results: of its run, as in ``results/<run>.json``.
        network: what draws samples, in eval mode.
        draw: (n, generator) to n grey images, (n, 784) in [0, 1]; of the VAE, its means.
        codes: images (B, 784) in 0..255 to codes, or None where the model has no encoder.
        decode: codes to grey images in [0, 1].
    """

    results: dict
    network: nn.Module
    draw: Callable[[int, torch.Generator], Tensor]
    codes: Callable[[Tensor], Tensor] | None
    decode: Callable[[Tensor], Tensor]


def load_vae(state: dict, results: dict, device: str) -> Trained:
    """Return the VAE; its code of an image is the middle of q(z|x)."""
    choices = ("hidden_dim", "zdim", "likelihood", "posterior", "prior")
    model = vae.VAE(*(state["flags"][choice] for choice in choices)).to(device)
    model.load_state_dict(state["kept"]["model"])
    return Trained(results, model.eval(), lambda n, noise: model.sample(n, noise)[1],
                   lambda x: model.code(binarize(x).float()), model.decode)


def load_gan(state: dict, results: dict, device: str) -> Trained:
    """Return the GAN's generator, the averaged one where the recipe has it."""
    flags = argparse.Namespace(**state["flags"])
    parts = gan.networks(flags, device, updates=1)
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            part.load_state_dict(state["kept"][name])
    model = gan.sampler(parts, flags.seed)
    return Trained(results, model.eval(), lambda n, noise: gan.grey(model.sample(n, noise)), None,
                   lambda z: gan.grey(model.decode(z)))


def load_nf(state: dict, results: dict, device: str) -> Trained:
    """Return the flow; the code of an image has the noise of one fixed dequantization."""
    flags = state["flags"]
    model = nf.Model(n_flows=flags["n_flows"], n_hidden=flags["n_hidden"]).to(device)
    model.load_state_dict(state["kept"]["model"])

    def codes(x: Tensor) -> Tensor:
        return model.encode(x.float(), nf.uniform(x.float(), generator(0, "codes")))[0]

    return Trained(results, model.eval(), lambda n, noise: model.sample(n, noise) / 255, codes,
                   lambda z: model.decode(z) / 255)


def load_models(args: argparse.Namespace) -> dict[str, Trained]:
    """Load the three finished runs.

    Raises:
        RunError: one is missing or was stopped half-way; the message names the command.
    """
    loaders = {"vae": load_vae, "gan": load_gan, "nf": load_nf}
    return {name: load(*finished_run(getattr(args, name), args.out, f"a3_{name}_template.py"),
                       args.device)
            for name, load in loaders.items()}


# ---------------------------------------------------------------------------------------------
# Likelihood: each model on its own data
# ---------------------------------------------------------------------------------------------

def vae_likelihood(model: vae.VAE, test, args: argparse.Namespace) -> dict:
    """Return -ELBO and importance-sampled NLL of binary test images."""
    noise = generator(args.seed, "importance sampling")
    estimate = importance_sampled_nll(
        lambda x, n: model.log_weights(x.float(), n, noise), test.images.split(IMAGE_ROWS),
        args.nll_samples, args.chunk)
    return {"test_elbo_nats": float(vae.epoch_iter(model, test)),
            **in_units(estimate, "test_nll", args.nll_samples)}


def nf_likelihood(model: nf.Model, test, args: argparse.Namespace) -> dict:
    """Return bits per dimension of 8-bit test images: of one noise draw, and of many."""
    noise = generator(args.seed, "importance weighting")
    estimate = importance_sampled_nll(
        lambda x, n: torch.stack([model(x, nf.uniform(x, noise)) for _ in range(n)]), test,
        args.iw_samples, args.chunk)
    return {"test_bits_per_dim": nf.epoch_iter(model, test),
            **in_units(estimate, "test_nll", args.iw_samples)}


def in_units(estimate: Estimate, key: str, draws: int) -> dict:
    """Return an estimate in nats per image and bits per dimension, with both its errors."""
    nats = {key: estimate.mean(), f"{key}_draw_error": estimate.draw_error(),
            f"{key}_image_error": estimate.image_error()}
    numbers: dict = {f"{key}_draws": draws}
    for name, value in nats.items():
        known = math.isfinite(value)  # one draw has no error
        numbers[f"{name}_nats"] = value if known else None
        numbers[f"{name}_bits_per_dim"] = value / (784 * math.log(2)) if known else None
    return numbers


# ---------------------------------------------------------------------------------------------
# Samples: all models in one domain
# ---------------------------------------------------------------------------------------------

def bernoulli(grey: Tensor, noise: torch.Generator) -> Tensor:
    """Draw binary images from grey ones in [0, 1]."""
    return (torch.rand(grey.shape, generator=noise).to(grey.device) < grey).float()


def sample_quality(images: Tensor, real: Tensor, real_digits: Tensor, classifier,
                   noise: torch.Generator) -> dict[str, float | list]:
    """Measure binary images (N, 784) against real ones, of which the features are given."""
    sampled = features(classifier, images)
    digits, probability = (value.cpu() for value in classify(classifier, images))
    kernel, deviation = metrics.kernel_distance(sampled, real, noise)
    precision, recall = metrics.precision_recall(sampled, real)
    density, coverage = metrics.density_coverage(sampled, real)
    return {"frechet_distance": metrics.frechet_distance(sampled, real),
            "kernel_distance": kernel, "kernel_distance_subset_deviation": deviation,
            "precision": precision, "recall": recall, "density": density, "coverage": coverage,
            "class_divergence_nats": metrics.class_divergence(digits, real_digits),
            "clear_share": (probability > CLEAR).float().mean().item(),
            "class_shares": (digits.bincount(minlength=10) / len(digits)).tolist()}


def over_repeats(rows: list[dict]) -> dict:
    """Return the mean of each measure and, if there are several rows, its deviation."""
    table: dict = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if key == "class_shares":
            table[key] = [statistics.fmean(shares) for shares in zip(*values, strict=True)]
            continue
        table[key] = statistics.fmean(values)
        table[f"{key}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
    return table


def memorisation(images: Tensor, train: Tensor, usual: Tensor | None) -> tuple[dict, Tensor]:
    """Compare the distance to the nearest training image with that of real unseen images.

    Args:
        images, train: binary, (N, 784) and (M, 784); the squared distance counts pixels.
        usual: distances of unseen real images; None if ``images`` are these.

    Returns:
        the numbers, and the distances.
    """
    distance, _ = metrics.nearest(images, train)
    near = torch.quantile(distance if usual is None else usual, 0.01)
    return {"nearest_train_median_distance": distance.median().item(),
            "nearer_than_1_percent_of_test_share":
                (distance < near).float().mean().item()}, distance


def rank(table: dict[str, dict]) -> None:
    """Add to each model its rank in every measure: 1 is the best, equal means share a rank."""
    for name, row in table.items():
        row["ranks"] = {
            key: 1 + sum(other[key] > row[key] if high else other[key] < row[key]
                         for other in table.values())
            for key, high in BETTER_HIGH.items()}
        assert name in NAMES


# ---------------------------------------------------------------------------------------------
# Cost and latent space
# ---------------------------------------------------------------------------------------------

def cost(model: Trained, noise: torch.Generator, device: str) -> dict:
    """Return size and time: of training from the run's record, of sampling as it is here."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        model.draw(TIMED_SAMPLES, noise).cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return {"parameters": sum(p.numel() for p in model.network.parameters()),
            **{key: model.results[key] for key in ("epochs", "train_seconds", "epoch_seconds")},
            "trained_on": model.results["device"],
            "milliseconds_per_1000_samples": 1000 * statistics.median(seconds[1:]),
            "sampled_on": describe_device(device)}


@torch.no_grad()
def round_trip(model: Trained, images: Tensor, binary: bool) -> float | None:
    """Return the root mean square of x - decode(code of x), grey values in [0, 1]."""
    if model.codes is None:
        return None
    x = binarize(images).float() if binary else images / 255
    return (x - model.decode(model.codes(images))).square().mean().sqrt().item()


@torch.no_grad()
def walks(models: dict[str, Trained], test, classifier, args: argparse.Namespace) -> Tensor:
    """Walk on great arcs between digits of two classes, one row of nine images a model.

    The VAE and the flow start from the codes of the first such test images, the GAN, which has no
    encoder, from the clearest such samples of a thousand.
    """
    ends = test.images[[int((test.labels == digit).nonzero()[0]) for digit in INTERPOLATED]]
    rows = []
    for name, model in models.items():
        if model.codes is not None:
            z = model.codes(ends)
        else:
            noise = torch.randn(1000, model.network.latent_dim,
                                generator=generator(args.seed, f"{name} walk"))
            grey = model.decode(noise)
            digits, probability = classify(classifier, grey)
            z = noise[[int(torch.where(digits == digit, probability, 0).argmax().cpu())
                       for digit in INTERPOLATED]]
        rows.append(model.decode(slerp(*z, steps=9)).cpu())
    return torch.cat(rows)


# ---------------------------------------------------------------------------------------------
# Main
# ---------------------------------------------------------------------------------------------

def compare_samples(models: dict[str, Trained], test, unseen: Tensor, classifier,
                    args: argparse.Namespace) -> dict[str, dict]:
    """Return the measures of all models and of the floor, with deviations over repeats.

    A repeat draws everything anew: the samples, and the binary images of test and of the floor.
    """
    real = [features(classifier, bernoulli(test.images / 255, generator(args.seed, f"test {r}")))
            for r in range(args.repeats)]
    table = {}
    for name in (*models, "floor"):
        rows = []
        for repeat in progress(range(args.repeats)):
            noise = generator(args.seed, f"{name} samples {repeat}")
            grey = models[name].draw(args.samples, noise) if name in models else unseen
            rows.append(sample_quality(bernoulli(grey, noise), real[repeat], test.labels.cpu(),
                                       classifier, noise))
        table[name] = over_repeats(rows)
        print(f"{name}: Frechet distance {table[name]['frechet_distance']:.2f}, "
              f"coverage {table[name]['coverage']:.3f}", flush=True)
    return table


def save_figures(models: dict[str, Trained], test, train: Tensor, classifier,
                 args: argparse.Namespace, folder: Path) -> None:
    """Draw real and sampled digits side by side, nearest neighbours, and walks."""
    grey = {"real": test.images[:36].cpu() / 255}
    for name, model in models.items():
        grey[name] = model.draw(36, generator(args.seed, f"{name} figures")).cpu()
    binary = {name: bernoulli(images, generator(args.seed, "binary figures"))
              for name, images in grey.items()}
    sheets = [figures.join([figures.tile(images, 6) for images in kind.values()], axis=1)
              for kind in (grey, binary)]
    figures.save_png(figures.join(sheets, axis=0), folder / "comparison-samples.png")
    pairs = []
    for name in models:
        samples = binary[name][:12]
        _, index = metrics.nearest(samples.to(train.device), train)
        pairs += [samples, train[index].cpu()]
    figures.save_png(figures.tile(torch.cat(pairs), 12), folder / "comparison-nearest.png")
    figures.save_png(figures.tile(walks(models, test, classifier, args), 9),
                     folder / "comparison-walks.png")


def main(argv: Sequence[str] | None = None) -> dict:
    """Load the models, measure, draw; write comparison.json and return what it holds."""
    args = parse_args(argv)
    out = args.out or REPOSITORY / "report"
    models = load_models(args)
    train, val, test = mnist(args.data_root, dataset=args.dataset, device=args.device)
    binary_test = bmnist(args.data_root, device=args.device,
                         dataset=models["vae"].results["data"]["name"])[2]
    classifier, facts = trained_classifier(args.data_root, train.source.name, args.device,
                                           (args.out or REPOSITORY) / "checkpoints", binary=True)

    binary = {"train": binarize(train.images, args.seed).float(),
              "test": binarize(test.images, args.seed + 1).float()}
    table = compare_samples(models, test, val.images / 255, classifier, args)
    rank({name: table[name] for name in models})

    numbers, usual = memorisation(binary["test"], binary["train"], None)
    table["floor"].update(numbers)
    for name, model in models.items():
        noise = generator(args.seed, f"{name} memory")
        drawn = bernoulli(model.draw(len(test.images), noise), noise)
        table[name].update(memorisation(drawn, binary["train"], usual)[0])
        table[name].update(cost(model, noise, args.device))
        table[name]["round_trip_rms"] = round_trip(model, test.images[:1000], name == "vae")
    save_figures(models, test, binary["train"], classifier, args, out / "figures")

    print("likelihoods", flush=True)
    table["vae"].update(vae_likelihood(models["vae"].network, binary_test, args))
    table["nf"].update(nf_likelihood(models["nf"].network, test, args))
    keys = sorted({key for row in table.values() for key in row})
    rows = {name: {key: row.get(key) for key in keys} for name, row in table.items()}
    results = write_record(
        out / "results" / "comparison.json", args.device, **rows, **facts, seed=args.seed,
        samples=args.samples, repeats=args.repeats,
        runs={name: getattr(args, name) for name in models})
    print(f"done: {out / 'results' / 'comparison.json'}, figures in {out / 'figures'}")
    return results


if __name__ == "__main__":
    exit_with(main)
