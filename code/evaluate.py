"""One comparison of the models on held-out data (question 4.1).

The VAE's and the flow's likelihoods are of different data (binary and 8-bit images) and the GAN
has none, so the comparison is of what all can do: draw samples. They are judged in one domain. All
images, real and drawn, become binary by a Bernoulli draw of each pixel, and a classifier trained
on such images gives the features that a3/judge_metrics.py measures. A second judge, of random
weights, is one by which nobody chose a recipe. The floor is the score of as many of MNIST's last
10,000 training images, on which neither the GAN, the flows nor the classifier was trained; most of
them, in another binarization, are among the VAEs' training images.

Every training is judged alone, and its numbers are kept by the name of its run. Means and
deviations are over a run and its further seeds, <run>-seed1, ...; the deviation by the draws of
samples has a name of its own. Figures and likelihoods are of the run without a further seed.

    python code/evaluate.py                     # after the full runs: 40 min on one core
    python code/evaluate.py --models vae gan nf      # the assignment's three
    python code/evaluate.py --only gan-seed1    # this run; others with the same settings stay
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from a3.cli import exit_with, parse, positive_int, run_label, run_name, seed_int, tool_flags, whole

from torch import nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from a3.devices import multiplies_bfloat16
from a3.gan_figures import grey
from a3.importance import importance_sampled_nll
from a3.judge_classifier import DIGITS
from a3.judge_comparison import Exam, agreement, merged, rows_of, to_judge
from a3.judge_memory import SAMPLES as MEMORY_SAMPLES
from a3.judge_memory import Memory
from a3.judge_trained import Trained, cost, round_trip, save_nearest, save_samples, save_walk
from a3.nf_bits import pixel_terms, spent_bits
from a3.nf_figures import save_bits_map
from a3.records import REPOSITORY, evaluated, report_folder, write_record
from a3.runs import RunError, finished_run, random_stream
from datasets import Split, bernoulli, binarize, bmnist, mnist, same_again, shift_table
from nf_multiscale import Model as MultiscaleModel
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
# Flags that all trainings of one comparison are judged with.
SETTINGS = ("seed", "samples", "repeats", "nll_samples", "iw_samples", "chunk")
IMAGE_ROWS = 50  # images in a batch of the VAE's likelihood


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Compare the trained models.", ("mnist", "sample"), own=False)
    add = parser.add_argument
    add("--models", nargs="+", choices=RUNS, default=list(RUNS), metavar="MODEL",
        help=f"which are compared: {', '.join(RUNS)}")
    for name, (run, what) in RUNS.items():
        add(f"--{name}", type=run_label, default=run, metavar="RUN",
            help=f"finished run of {what}")
    add("--only", nargs="+", type=run_label, default=None, metavar="RUN",
        help="runs to judge alone, such as gan or gan-seed1; others with the same settings stay")
    add("--nll_samples", type=positive_int, default=5000, metavar="K",
        help="importance samples for each image's likelihood under the VAE")
    add("--iw_samples", type=positive_int, default=16, metavar="K",
        help="noise draws for each image's likelihood under the flow")
    add("--chunk", type=whole(1, 10_000), default=50, metavar="N",
        help="draws at once: changes time and memory, not what is estimated")
    add("--samples", type=whole(10, 100_000), default=10_000, metavar="N",
        help="samples of each model in a repeat, at most as many as there are validation images")
    add("--repeats", type=whole(1, 1000), default=4, metavar="R",
        help="sets of samples, over which each training's numbers are averaged")
    add("--seed", type=seed_int, default=42, help="seed of samples, noise and binarization")
    return parse(parser, argv)


# The trained models, behind one interface --------------------------------------------------------

def load_vae(run: str, args: argparse.Namespace) -> Trained:
    """Return a VAE; its code of an image is the middle of q(z|x)."""
    return as_vae(*trained_vae(run, args.out, args.device), args)


def load_gan(run: str, args: argparse.Namespace) -> Trained:
    """Return the GAN's generator, the averaged one if the recipe has it, and its rival."""
    state, results = finished_run(run, args.out, "a3_gan_template.py", "latent_dim")
    flags = state["flags"]
    if flags["recipe"] not in gan.RECIPES:
        raise RunError(f"the run '{run}' has the recipe '{flags['recipe']}' of a study; name one "
                       f"with {' or '.join(map(str, gan.RECIPES))}")
    model = gan.GAN(flags["latent_dim"], flags["loss"], flags["recipe"])
    model.load_state_dict(state["kept"]["model"])
    trained = as_gan(model.to(args.device).sampler(flags["seed"]), results, args)
    return replace(trained, discriminator=model.discriminator.eval())


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


def load_models(names: dict[str, str], args: argparse.Namespace) -> dict[str, dict[str, Trained]]:
    """Load the finished runs that are judged now, by contestant and run.

    Args:
        names: the run of each contestant.

    Raises:
        RunError: a run is no contestant's, is missing or was stopped half-way; the message names
            the command.
    """
    asked = names if "models" in args.changed or len(names) == 1 else args.changed
    results = (args.out or REPOSITORY / "report") / "results"
    return {name: {run: LOADERS[name](run, args) for run in runs}
            for name, runs in to_judge(names, args.only, asked, results).items()}


# Likelihood: each model on its own data ----------------------------------------------------------

def vae_likelihood(model: vae.VAE, results: dict, test, args: argparse.Namespace) -> dict:
    """Return -ELBO and importance-sampled NLL of binary test images.

    The many draws are in the precision of the training, where it is fast here.
    """
    noise = random_stream(args.seed, "importance sampling")
    bfloat16 = results["precision"] == "bfloat16" and multiplies_bfloat16(args.device)
    estimate = importance_sampled_nll(
        lambda x, n: model.log_weights(x.float(), n, noise), test.images.split(IMAGE_ROWS),
        args.nll_samples, args.chunk, bfloat16)
    return {"test_elbo_nats": float(vae.epoch_iter(model, test)),
            **estimate.numbers("test_nll", args.nll_samples, nf.NATS_PER_BIT_PER_DIM)}


def nf_likelihood(model: nn.Module, test, args: argparse.Namespace, prefix: Path) -> dict:
    """Return bits per dimension of 8-bit test images, and where they are spent.

    With one noise draw, and with many; the multi-scale flow's are exact, and need no draws.
    """
    estimates, log_probs = {}, getattr(model, "log_probs", None)
    if log_probs is None:
        noise = random_stream(args.seed, "importance weighting")
        estimates = importance_sampled_nll(
            partial(model.log_weights, noise=noise), test, args.iw_samples, args.chunk).numbers(
                "test_nll", args.iw_samples, nf.NATS_PER_BIT_PER_DIM)
        log_probs = partial(pixel_terms, model, nf.log_prior,
                            noise=random_stream(args.seed, "bits"))
    bits, by_region = spent_bits(log_probs, test)
    save_bits_map(bits, Path(f"{prefix}-bits.pdf"))
    return {"test_bits_per_dim": nf.epoch_iter(model, test), **estimates, **by_region}


# Judging one training ----------------------------------------------------------------------------

class Data:
    """The images: those that all samples are judged by, and those that a model was trained on."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.grey = mnist(args.data_root, dataset=args.dataset, device=args.device)
        self.source = self.grey[0].source
        self.memories: dict[tuple, Memory] = {}

    def binary(self, results: dict) -> tuple[Split, Split, Split]:
        """Return the binary images of a VAE's run."""
        return bmnist(self.args.data_root, device=self.args.device, dataset=same_again(
            results["flags"]["dataset"], results["data"]["name"]))

    def memory(self, results: dict, is_vae: bool) -> Memory:
        """Return what a run was trained on, made once for all that share it."""
        key = (results["data"]["name"], results["flags"]["limit"], is_vae)
        if key not in self.memories:
            splits = self.binary(results) if is_vae else self.grey
            train, unseen, usual = (split.images / (1 if is_vae else 255) for split in splits)
            self.memories[key] = Memory(train[:results["flags"]["limit"]], unseen, usual,
                                        shift_table(1))
        return self.memories[key]


def memorised(name: str, model: Trained, data: Data, prefix: Path | None) -> dict:
    """Return how near samples come to the training images of their own model.

    A VAE's are binary images: its samples are held against them, and its means.
    """
    noise, is_vae = random_stream(data.args.seed, f"{name} memory"), LOADERS[name] is load_vae
    means = model.draw(MEMORY_SAMPLES, noise)
    kinds = {"": bernoulli(means, noise), "means_": means} if is_vae else {"": means}
    return data.memory(model.results, is_vae).judged(
        kinds, prefix and Path(f"{prefix}-memory.pdf"))


def save_figures(name: str, model: Trained, data: Data, exam: Exam, prefix: Path) -> None:
    """Draw samples, what is nearest to some of them, and a walk."""
    seed, (train, _, test) = data.args.seed, data.grey
    drawn = model.draw(36, random_stream(seed, f"{name} figures")).cpu()
    binary = bernoulli(drawn, random_stream(seed, "binary figures"))
    save_samples(drawn, binary, Path(f"{prefix}-samples.png"))
    save_nearest(binary[:12], binarize(train.images, seed).float(), Path(f"{prefix}-nearest.png"))
    save_walk(model, test.images, test.labels, exam.judges[0],
              random_stream(seed, f"{name} walk"), Path(f"{prefix}-walk.png"))


def judge_training(name: str, model: Trained, data: Data, exam: Exam, prefix: Path | None
                   ) -> dict:
    """Return the numbers of one training.

    Args:
        name: of the contestant.
        prefix: of the figures. None draws none, and leaves out the likelihood, which takes as long
            as all else; a run's own results have it, by fewer draws.
    """
    args, test, is_vae = data.args, data.grey[2], LOADERS[name] is load_vae
    few = test.images[:1000]
    numbers = {
        **exam.samples(name, model.draw),
        **memorised(name, model, data, prefix),
        **cost(model, random_stream(args.seed, f"{name} cost"), args.device),
        "round_trip_rms": round_trip(model, few, binarize(few).float() if is_vae else few / 255),
        "chosen_by": CHOSEN_BY[name]}
    if is_vae:  # the decoder on codes that images have, not on the prior's
        numbers["reconstruction_clear_share"] = exam.clear_share(
            name, model.decode(model.codes(test.images)))
    print(f"{name}: Frechet distance {numbers['frechet_distance']:.2f}, coverage "
          f"{numbers['coverage']:.3f}; {numbers['nearer_to_train_share']:.1%} of samples are as "
          "near to training images as 1 % of unseen images", flush=True)
    if prefix:
        save_figures(name, model, data, exam, prefix)
        if is_vae:
            numbers |= vae_likelihood(model.network, model.results,
                                      data.binary(model.results)[2], args)
        elif model.codes is not None:
            numbers |= nf_likelihood(model.network, test, args, prefix)
    return numbers


# Main --------------------------------------------------------------------------------------------

def main(argv: Sequence[str] | None = None) -> dict:
    """Judge the trainings; write comparison.json and return what it holds."""
    args = parse_args(argv)
    names = {key: getattr(args, key) for key in RUNS if key in args.models}
    models, data = load_models(names, args), Data(args)
    _, val, test = data.grey
    name = run_name("comparison", args, data.source, "mnist", named=["only"])
    if data.source.name not in DIGITS:
        raise RunError(f"'--dataset {args.dataset}': the judges know MNIST's digits alone; name "
                       "mnist or sample")
    out = report_folder(args.out)
    args.samples = min(args.samples, len(val.images))  # as many as the floor can have
    exam = Exam(test.images / 255, test.labels, val.images / 255, bernoulli, args)

    prefix = out / "figures" / name
    real = test.images[:36].cpu() / 255
    save_samples(real, bernoulli(real, random_stream(args.seed, "binary figures")),
                 Path(f"{prefix}-real-samples.png"))
    judged: dict[str, dict[str, dict]] = {key: {} for key in models}
    for key, runs in models.items():
        for run, model in runs.items():
            first = run == names[key]  # not a further seed
            judged[key][run] = {
                "numbers": judge_training(key, model, data, exam,
                                          Path(f"{prefix}-{key}") if first else None),
                "weights_sha256": model.results["weights_sha256"],
                "evaluated": evaluated(args.device)}

    file = out / "results" / f"{name}.json"
    settings = {**{key: getattr(args, key) for key in SETTINGS}, **exam.facts,
                "data": {"name": data.source.name, "sha256": data.source.sha256}}
    floor, files = exam.floor(), exam.files()
    if args.only:  # as late as possible: another process may have written by now
        judged = merged(judged, file, settings, names)
    rows = rows_of(judged, floor)
    alike = agreement({key: rows[key] for key in judged})
    if alike is not None:
        print(f"the second judge ranks {alike:.0%} of the pairs of models alike")
    results = write_record(file, args.device, **rows, **settings, files=files,
                           second_judge_ranks_alike=alike,
                           runs={key: names[key] for key in judged})
    print(f"done: {file}, figures in {out / 'figures'}")
    return results


if __name__ == "__main__":
    exit_with(main)
