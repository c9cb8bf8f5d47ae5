"""One comparison of the models on held-out data (question 4.1).

The VAE's and the flow's likelihoods are of different data (binary and 8-bit images) and the GAN
has none, so the comparison is of what all can do: draw samples. They are judged in one domain. All
images, real and drawn, become binary by a Bernoulli draw of each pixel, and a classifier trained
on such images gives the features that a3/judge_metrics.py measures. A second judge, of random
weights, is one by which nobody chose a recipe. The floor is the score of as many of MNIST's last
10,000 training images, on which neither the GAN, the flows nor the classifier was trained; most of
them, in another binarization, are among the VAEs' training images.

Means and deviations are over trainings, where further seeds of a run are there (<run>-seed1, ...);
the deviation by the draws of samples has a name of its own.

    python code/evaluate.py                     # after the full runs: 16 min on 2 cores
    python code/evaluate.py --models vae gan nf      # the assignment's three
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from a3.cli import exit_with, parse, positive_int, run_label, run_name, seed_int, tool_flags, whole

import torch
from torch import Tensor, nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from a3 import figures
from a3.devices import describe_device
from a3.gan_figures import grey
from a3.importance import Estimate, importance_sampled_nll
from a3.judge_classifier import DIGITS, classify, features, judge
from a3.judge_comparison import agreement, measure_samples, over_repeats, over_trainings, rank
from a3.judge_memory import SAMPLES as MEMORY_SAMPLES
from a3.judge_memory import Memory, save_ratios
from a3.judge_metrics import frechet_distance, nearest
from a3.latents import slerp
from a3.nf_figures import save_bits_maps
from a3.records import REPOSITORY, report_folder, write_record
from a3.runs import RunError, finished_run, progress, random_stream
from datasets import Split, bernoulli, binarize, bmnist, mnist, same_again, shift_table
from nf_multiscale import Model as MultiscaleModel
from nf_multiscale import spent_bits
from vae_variants import trained_vae

# The contestants: their usual runs, and what they are.
RUNS = {"vae": ("vae-z20", "the VAE"), "gan": ("gan", "the GAN"), "nf": ("nf", "the flow"),
        "nf_multiscale": ("nf-multiscale", "the multi-scale flow"),
        "vae_best": ("vae-best", "the VAE of the highest likelihood"),
        "gan_template": ("gan-template", "the GAN of the course's plain recipe")}
LIKELIHOOD = "the model's own loss on validation images"
# How the recipe of each was chosen: not all by the kind of number that is compared here.
CHOSEN_BY = {**dict.fromkeys(RUNS, LIKELIHOOD), "gan_template": "the course, not us",
             "gan": "the Frechet distance to validation images, by the classifier of grey ones"}
INTERPOLATED = (3, 8)  # digits at the ends of the walks
TIMED_SAMPLES = 1000
IMAGE_ROWS = 100  # images in a batch of the VAE's likelihood


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Compare the trained models.", ("mnist", "sample"))
    add = parser.add_argument
    add("--models", nargs="+", choices=RUNS, default=list(RUNS), metavar="MODEL",
        help=f"which are compared: {', '.join(RUNS)}")
    for name, (run, what) in RUNS.items():
        add(f"--{name}", type=run_label, default=run, metavar="RUN",
            help=f"finished run of {what}")
    add("--nll_samples", type=positive_int, default=5000, metavar="K",
        help="importance samples for each image's likelihood under the VAE")
    add("--iw_samples", type=positive_int, default=16, metavar="K",
        help="noise draws for each image's likelihood under the flow")
    add("--chunk", type=whole(1, 10_000), default=50, metavar="N",
        help="draws at once: changes time and memory, not what is estimated")
    add("--samples", type=whole(10, 100_000), default=10_000, metavar="N",
        help="samples of each model in a repeat")
    add("--repeats", type=whole(1, 1000), default=4, metavar="R",
        help="sets of samples, over which mean and deviation are taken")
    add("--seed", type=seed_int, default=42, help="seed of samples, noise and binarization")
    return parse(parser, argv)


# The trained models, behind one interface --------------------------------------------------------

@dataclass
class Trained:
    """A trained model, as the comparison sees it.

    Attributes:
        results: of its run, as in ``results/<run>.json``.
        network: what draws samples, in eval mode.
        draw: (n, generator) to n grey images, (n, 784) in [0, 1]; the VAE gives its means.
        codes: images (B, 784) in 0..255 to codes, or None where the model has no encoder.
        decode: codes to grey images in [0, 1].
    """

    results: dict
    network: nn.Module
    draw: Callable[[int, torch.Generator], Tensor]
    codes: Callable[[Tensor], Tensor] | None
    decode: Callable[[Tensor], Tensor]


def load_vae(run: str, args: argparse.Namespace) -> Trained:
    """Return a VAE; its code of an image is the middle of q(z|x)."""
    return as_vae(*trained_vae(run, args.out, args.device), args)


def load_gan(run: str, args: argparse.Namespace) -> Trained:
    """Return the GAN's generator, the averaged one if the recipe has it."""
    state, results = finished_run(run, args.out, "a3_gan_template.py", "latent_dim")
    flags = state["flags"]
    model = gan.GAN(flags["latent_dim"], flags["loss"], flags["recipe"])
    model.load_state_dict(state["kept"]["model"])
    return as_gan(model.to(args.device).sampler(flags["seed"]), results, args)


def load_nf(run: str, args: argparse.Namespace) -> Trained:
    """Return the flow; the code of an image has the noise of one fixed dequantization."""
    state, results = finished_run(run, args.out, "a3_nf_template.py", "n_flows")
    flags = state["flags"]
    model = nf.Model(n_flows=flags["n_flows"], n_hidden=flags["n_hidden"])
    model.load_state_dict(state["kept"]["model"])
    return as_flow(model, results, args)


def load_multiscale(run: str, args: argparse.Namespace) -> Trained:
    """Return the multi-scale flow, likewise.

    Raises:
        RunError: the run is another model's.
    """
    state, results = finished_run(run, args.out, "nf_multiscale.py", "epochs")
    model = MultiscaleModel()
    try:
        model.load_state_dict(state["kept"]["model"])
    except RuntimeError:
        raise RunError(f"the run '{run}' is not one of code/nf_multiscale.py; name another "
                       "run") from None
    return as_flow(model, results, args)


def as_vae(model: nn.Module, results: dict, args: argparse.Namespace) -> Trained:
    """Return a VAE as the comparison sees it."""
    model = model.to(args.device).eval()
    return Trained(results, model, lambda n, noise: model.sample(n, noise)[1],
                   lambda x: model.code(binarize(x).float()), model.decode)


def as_gan(generator: nn.Module, results: dict, args: argparse.Namespace) -> Trained:
    """Return a generator as the comparison sees it."""
    generator = generator.to(args.device).eval()
    return Trained(results, generator, lambda n, noise: grey(generator.sample(n, noise)), None,
                   lambda z: grey(generator.decode(z)))


def as_flow(model: nn.Module, results: dict, args: argparse.Namespace) -> Trained:
    """Return a flow as the comparison sees it."""
    model = model.to(args.device).eval()
    return Trained(results, model, lambda n, noise: model.sample(n, noise) / 255,
                   lambda x: model.encode(x.float(), random_stream(0, "codes"))[0],
                   lambda z: model.decode(z) / 255)


LOADERS = {"vae": load_vae, "gan": load_gan, "nf": load_nf, "nf_multiscale": load_multiscale,
           "vae_best": load_vae, "gan_template": load_gan}


def load_models(args: argparse.Namespace) -> dict[str, list[Trained]]:
    """Load the finished runs of the models that are compared, with all their seeds.

    What was not asked for by name is left out, with a line, where it is missing.

    Raises:
        RunError: a run is missing or was stopped half-way; the message names the command.
    """
    models: dict[str, list[Trained]] = {}
    results = (args.out or REPOSITORY / "report") / "results"
    for name in (name for name in RUNS if name in args.models):
        run = getattr(args, name)
        further = re.compile(re.escape(run) + r"-seed\d+")
        runs = [run, *sorted(file.stem for file in results.glob("*.json")
                             if further.fullmatch(file.stem))]
        asked = args.changed.keys() & {"models", name} or len(args.models) == 1
        if asked or (results / f"{run}.json").exists():
            models[name] = [LOADERS[name](one, args) for one in runs]
            print(f"{name}: {len(runs)} training{'s' * (len(runs) > 1)}: {', '.join(runs)}")
        else:
            print(f"{name}: left out, since there is no finished run '{run}'")
    if not models:
        raise RunError("there is no finished run to compare; make models makes them")
    return models


# Likelihood: each model on its own data ----------------------------------------------------------

def vae_likelihood(model: vae.VAE, test, args: argparse.Namespace) -> dict:
    """Return -ELBO and importance-sampled NLL of binary test images."""
    noise = random_stream(args.seed, "importance sampling")
    estimate = importance_sampled_nll(
        lambda x, n: model.log_weights(x.float(), n, noise), test.images.split(IMAGE_ROWS),
        args.nll_samples, args.chunk)
    return {"test_elbo_nats": float(vae.epoch_iter(model, test)),
            **in_units(estimate, "test_nll", args.nll_samples)}


def nf_likelihood(model: nn.Module, test, args: argparse.Namespace) -> dict:
    """Return bits per dimension of 8-bit test images: with one noise draw, and with many.

    The multi-scale flow's are exact, and need no draws.
    """
    if isinstance(model, MultiscaleModel):
        return {"test_bits_per_dim": nf.epoch_iter(model, test)}
    noise = random_stream(args.seed, "importance weighting")
    estimate = importance_sampled_nll(partial(model.log_weights, noise=noise), test,
                                      args.iw_samples, args.chunk)
    return {"test_bits_per_dim": nf.epoch_iter(model, test),
            **in_units(estimate, "test_nll", args.iw_samples)}


def in_units(estimate: Estimate, key: str, draws: int) -> dict:
    """Return an estimate in nats per image and bits per dimension, with both its errors."""
    nats = {key: estimate.mean(), f"{key}_draw_error": estimate.draw_error(),
            f"{key}_image_error": estimate.image_error(), f"{key}_doubling": estimate.doubling()}
    numbers: dict = {f"{key}_draws": draws}
    for name, value in nats.items():
        numbers[f"{name}_nats"] = value
        numbers[f"{name}_bits_per_dim"] = value and value / nf.NATS_PER_BIT_PER_DIM
    return numbers


@torch.no_grad()
def pixel_terms(model: nf.Model, x: Tensor, noise: torch.Generator) -> Tensor:
    """Return what each pixel adds to the flow's log p(x + u), (B, 784) nats.

    That is its own prior and the logarithm of its own derivatives: of the logit, and of the scales
    of the couplings that change it.
    """
    pixels = model.dequantize(x, noise).reshape(-1, 1)
    z, terms = model.logit_normalize(pixels, torch.zeros(len(pixels), device=x.device))
    z, terms = z.reshape(x.shape), terms.reshape(x.shape)
    for layer in model.flow.layers:
        h, _ = layer.nn(z[:, layer.kept]).chunk(2, dim=1)
        terms = terms.index_add(1, layer.changed, torch.tanh(h))
        z, _ = layer(z, terms[:, 0])
    return terms + nf.log_prior(z)


def where_bits_are_spent(models: dict[str, Trained], test, path: Path, seed: int) -> dict:
    """Draw the bits that each flow spends on each pixel; return them by region, an image."""
    maps, rows = {}, {}
    for name, what in (("nf", "flow"), ("nf_multiscale", "multi-scale flow")):
        if name in models:
            network, noise = models[name].network, random_stream(seed, "bits")
            maps[what], rows[name] = spent_bits(
                network.log_probs if isinstance(network, MultiscaleModel)
                else partial(pixel_terms, network, noise=noise), test)
    if maps:
        save_bits_maps(maps, path)
    return rows


# Cost and latent space ---------------------------------------------------------------------------

def cost(model: Trained, noise: torch.Generator, device: str) -> dict:
    """Return size and time: training's from the run's record, sampling's measured here.

    The GAN counts G alone; the VAE's samples are its means.
    """
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

    The VAE and the flow start from the codes of the first such test images; the GAN, which has no
    encoder, from the clearest such samples of a thousand.
    """
    ends = test.images[[int((test.labels == digit).nonzero()[0]) for digit in INTERPOLATED]]
    rows = []
    for name, model in models.items():
        if model.codes is not None:
            z = model.codes(ends)
        else:
            noise = torch.randn(1000, model.network.latent_dim,
                                generator=random_stream(args.seed, f"{name} walk"))
            digits, probability = classify(classifier, model.decode(noise))
            z = noise[[int(torch.where(digits == digit, probability, 0).argmax().cpu())
                       for digit in INTERPOLATED]]
        rows.append(model.decode(slerp(*z, steps=9)).cpu())
    return torch.cat(rows)


# Main --------------------------------------------------------------------------------------------

def some_of(images: Tensor, number: int, noise: torch.Generator) -> Tensor:
    """Return so many of the images, drawn without replacement."""
    return images[torch.randperm(len(images), generator=noise)[:number].to(images.device)]


def compare_samples(models: dict[str, list[Trained]], test, unseen: Tensor, judges: list,
                    args: argparse.Namespace) -> dict[str, dict]:
    """Return the measures of all models and of the floor, with their deviations.

    A repeat draws everything anew: the samples, and the binary images of test and of the floor.
    The floor is of as many real images as there are samples.
    """
    real = [[features(one, bernoulli(test.images / 255, random_stream(args.seed, use)))
             for one in judges] for use in (f"test {repeat}" for repeat in range(args.repeats))]
    floor = argparse.Namespace(draw=partial(some_of, unseen))
    table = {}
    for name, trainings in {**models, "floor": [floor]}.items():
        tables = []
        for model in trainings:
            rows = []
            for repeat in progress(range(args.repeats)):
                noise = random_stream(args.seed, f"{name} samples {repeat}")
                images = bernoulli(model.draw(args.samples, noise), noise)
                rows.append(measure_samples(images, real[repeat], test.labels.cpu(), judges,
                                            noise))
            tables.append(over_repeats(rows))
        table[name] = over_trainings(tables)
        print(f"{name}: Frechet distance {table[name]['frechet_distance']:.2f}, "
              f"coverage {table[name]['coverage']:.3f}", flush=True)
    return table


def shift_between_files(test, unseen: Tensor, judges: list, args: argparse.Namespace) -> dict:
    """Return what of the floor is the difference of two files, and what the number of images.

    The Frechet distance of n unseen training images to n test images, beside that of n test
    images to n others, both averaged over the repeats; n is half of the test images at most.
    """
    n = min(args.samples, len(test.images) // 2)
    rows = []
    for repeat in range(args.repeats):
        noise = random_stream(args.seed, f"files {repeat}")
        two = some_of(test.images / 255, 2 * n, noise).chunk(2)
        parts = [bernoulli(images, noise) for images in (*two, some_of(unseen, n, noise))]
        for kind, one in zip(("", "random_"), judges, strict=True):
            same, other, file = (features(one, images) for images in parts)
            scale = same.var(dim=0).sum().item() if kind else 1.0
            rows.append({f"{kind}frechet_distance_{where}": frechet_distance(images, same) / scale
                         for where, images in (("within_test", other), ("between_files", file))})
    return {"images": n, **{key: statistics.fmean(row[key] for row in rows if key in row)
                            for key in sorted({key for row in rows for key in row})}}


def memorised(models: dict[str, Trained], grey: Sequence[Split], args: argparse.Namespace,
              path: Path) -> dict[str, dict]:
    """Return how near samples come to the training images of their own model; draw the ratios.

    A VAE's are binary images of its own file: its samples are held against them, and its means.

    Args:
        grey: train, val and test of the GAN and the flows.
    """
    memories: dict[tuple, Memory] = {}
    rows, ratios = {}, {}
    for key, model in models.items():
        noise, is_vae = random_stream(args.seed, f"{key} memory"), LOADERS[key] is load_vae
        source, limit = model.results["data"]["name"], model.results["flags"]["limit"]
        if (source, limit, is_vae) not in memories:
            splits = grey if not is_vae else bmnist(args.data_root, dataset=source,
                                                    device=args.device)
            train, unseen, usual = (split.images / (1 if is_vae else 255) for split in splits)
            memories[source, limit, is_vae] = Memory(train[:limit], unseen, usual, shift_table(1))
        memory = memories[source, limit, is_vae]
        means = model.draw(MEMORY_SAMPLES, noise)
        drawn = memory.ratios(bernoulli(means, noise) if is_vae else means)
        rows[key] = {**memory.numbers(drawn), **{
            f"unseen_{name}": value for name, value in
            memory.numbers(memory.unseen_ratios).items()}}
        if is_vae:
            rows[key] |= {f"means_{name}": value for name, value in
                          memory.numbers(memory.ratios(means)).items()}
        ratios[key.replace("_", " ")] = {"samples": drawn, "unseen images": memory.unseen_ratios}
        print(f"{key}: {rows[key]['nearer_to_train_share']:.1%} of samples are nearer to the "
              f"training images than 1 % of unseen images are", flush=True)
    save_ratios(ratios, path)
    return rows


def save_figures(models: dict[str, Trained], test, train: Tensor, classifier,
                 args: argparse.Namespace, prefix: Path) -> None:
    """Draw real and sampled digits side by side, nearest neighbours, and walks."""
    drawn = {"real": test.images[:36].cpu() / 255}
    for name, model in models.items():
        drawn[name] = model.draw(36, random_stream(args.seed, f"{name} figures")).cpu()
    binary = {name: bernoulli(images, random_stream(args.seed, "binary figures"))
              for name, images in drawn.items()}
    sheets = [figures.join([figures.tile(images, 6) for images in kind.values()], axis=1)
              for kind in (drawn, binary)]
    figures.save_png(figures.join(sheets, axis=0), Path(f"{prefix}-samples.png"))
    pairs = []
    for name in models:
        samples = binary[name][:12]
        _, index = nearest(samples.to(train.device), train)
        pairs += [samples, train[index].cpu()]
    figures.save_png(figures.tile(torch.cat(pairs), 12), Path(f"{prefix}-nearest.png"))
    figures.save_png(figures.tile(walks(models, test, classifier, args), 9),
                     Path(f"{prefix}-walks.png"))


def main(argv: Sequence[str] | None = None) -> dict:
    """Load the models, measure, draw; write comparison.json and return what it holds."""
    args = parse_args(argv)
    trainings = load_models(args)
    models = {name: runs[0] for name, runs in trainings.items()}  # cost, walks: of the first
    train, val, test = mnist(args.data_root, dataset=args.dataset, device=args.device)
    name = run_name("comparison", args, train.source, "mnist")
    if train.source.name not in DIGITS:
        raise RunError(f"'--dataset {args.dataset}': the judges know MNIST's digits alone; name "
                       "mnist or sample")
    out = report_folder(args.out)
    args.samples = min(args.samples, len(val.images))  # as many as the floor can have
    (classifier, facts), (random, other) = judge("binary", args.device), judge("random",
                                                                               args.device)
    judges = [classifier, random]

    binary_train = binarize(train.images, args.seed).float()
    table = compare_samples(trainings, test, val.images / 255, judges, args)
    rank({key: table[key] for key in models})
    alike = agreement({key: table[key] for key in models})
    if alike is not None:
        print(f"the second judge ranks {alike:.0%} of the pairs of models alike", flush=True)

    near = memorised(models, (train, val, test), args, out / "figures" / f"{name}-memory.pdf")
    for key, model in models.items():
        table[key].update(near[key])
        table[key].update(cost(model, random_stream(args.seed, f"{key} cost"), args.device))
        table[key]["chosen_by"] = CHOSEN_BY[key]
        is_vae = LOADERS[key] is load_vae
        table[key]["round_trip_rms"] = round_trip(model, test.images[:1000], is_vae)
        if is_vae:
            binary_test = bmnist(args.data_root, device=args.device,
                                 dataset=same_again(model.results["flags"]["dataset"],
                                                    model.results["data"]["name"]))[2]
            table[key].update(vae_likelihood(model.network, binary_test, args))
        elif model.codes is not None:
            table[key].update(nf_likelihood(model.network, test, args))
    save_figures(models, test, binary_train, classifier, args, out / "figures" / name)

    for key, numbers in where_bits_are_spent(
            models, test, out / "figures" / f"{name}-bits.pdf", args.seed).items():
        table[key].update(numbers)
    keys = sorted({key for row in table.values() for key in row})
    rows = {key: {one: row.get(one) for one in keys} for key, row in table.items()}
    results = write_record(
        out / "results" / f"{name}.json", args.device, **rows, **facts,
        second_judge_sha256=other["classifier_sha256"], second_judge_ranks_alike=alike,
        files=shift_between_files(test, val.images / 255, judges, args), seed=args.seed,
        samples=args.samples, repeats=args.repeats,
        runs={key: getattr(args, key) for key in models})
    print(f"done: {out / 'results' / name}.json, figures in {out / 'figures'}")
    return results


if __name__ == "__main__":
    exit_with(main)
