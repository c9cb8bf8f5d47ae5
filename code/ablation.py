"""The ablation: what parts of our recipes bring. VAE, flow and GAN are trained without them.

A case lacks one part, or several: the VAE and the flow have what is common in its place, the GAN
what its earlier recipe ("cycle") has. Each is trained with three seeds by the model's own script,
all for 40 epochs (the GAN's own recipe has 180), under study/ablation/. Compared are -ELBO (VAE)
and bits per dimension (flow) of validation images; of the GAN's samples, the Frechet distance to
validation images and the shares of the rarest digit and of clear ones.

    python code/ablation.py                 # 125 min on 2 cores: report/results/ablation-*.json
    python code/ablation.py --models vae    # 20 min: ablation-vae.json
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch
from a3.cli import exit_with, parse, positive_int, run_name, seed_int, tool_flags

import torch
from torch import nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from a3.devices import usable_cores
from a3.records import report_folder, write_record
from a3.speed import Dropout
from study import OUT, run_case, run_cases, runs_folder, threads

EPOCHS = 40


class Case(NamedTuple):
    """One training: what it puts in the place of its script's names, and its flags."""

    names: Mapping[str, object] = {}
    flags: Sequence[str] = ()


# Changes -----------------------------------------------------------------------------------------

def replace(model: nn.Module, kind: type[nn.Module], by: type[nn.Module]) -> None:
    """Put ``by()`` in the place of each layer of a kind, in all sequences of the model."""
    for sequence in [part for part in model.modules() if isinstance(part, nn.Sequential)]:
        for i, layer in enumerate(sequence):
            if isinstance(layer, kind):
                sequence[i] = by()


def remove_second_layer(model: vae.VAE) -> None:
    """Leave encoder and decoder one hidden layer, as Kingma & Welling (2014) had it."""
    del model.encoder.body[-2:], model.decoder.net[2:4]


def edited(build: Callable[..., nn.Module], *edits: Callable[[nn.Module], None]
           ) -> Callable[..., nn.Module]:
    """Return a function that builds the model, then edits it; the same random weights stay."""
    def built(*args, **options) -> nn.Module:
        model = build(*args, **options)
        for edit in edits:
            edit(model)
        return model
    return built


def constant_rate(optimizer: torch.optim.Optimizer, updates: int):
    """Return, in the place of ``one_cycle``, a schedule that changes nothing."""
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def gan_without(*keys: str) -> dict:
    """Return the names of a GAN whose default has the earlier recipe's values of these keys."""
    earlier = {key: gan.RECIPES["cycle"][key] for key in keys}
    return {"RECIPES": {**gan.RECIPES, "default": {**gan.RECIPES["default"], **earlier}}}


RELU = partial(replace, kind=nn.SiLU, by=nn.ReLU)
NO_DROPOUT = partial(replace, kind=Dropout, by=nn.Identity)
NO_LAYER_NORM = partial(replace, kind=nn.LayerNorm, by=nn.Identity)
CONSTANT = {"one_cycle": constant_rate}
ADAM_RATE = ("--lr", "0.001")  # of a constant rate: Kingma & Ba (2015)
CASES = {
    "vae": {
        "default": Case(),
        "ReLU": Case({"VAE": edited(vae.VAE, RELU)}),
        "one hidden layer": Case({"VAE": edited(vae.VAE, remove_second_layer)}),
        "no dropout": Case({"VAE": edited(vae.VAE, NO_DROPOUT)}),
        "constant rate": Case(CONSTANT, ADAM_RATE),
        "none of the four": Case({"VAE": edited(vae.VAE, RELU, remove_second_layer, NO_DROPOUT),
                                  **CONSTANT}, ADAM_RATE),
    },
    "nf": {
        "default": Case(),
        "ReLU": Case({"Model": edited(nf.Model, RELU)}),
        "no layer norm": Case({"Model": edited(nf.Model, NO_LAYER_NORM)}),
    },
    "gan": {
        "default": Case(),
        "without deviation": Case(gan_without("group")),
        "without R1": Case(gan_without("r1")),
        "beta_1 of 0.5": Case(gan_without("betas")),
        "none of the three": Case(gan_without("group", "r1", "betas")),
    },
}
# Each model's script, flags that shorten what is not compared, and what is.
MODELS: dict[str, tuple[ModuleType, Sequence[str], Sequence[str]]] = {
    "vae": (vae, ("--nll_samples", "1"), ("val_elbo_nats",)),
    "nf": (nf, ("--iw_samples", "1"), ("val_bits_per_dim",)),
    "gan": (gan, (), ("val_frechet_distance", "smallest_class_share", "clear_share")),
}


# Trainings ---------------------------------------------------------------------------------------

def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Train VAE, flow and GAN without parts of their recipes.",
                        ("mnist", "sample"), out=OUT)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL",
        help=f"of {', '.join(MODELS)}")
    add("--seeds", nargs="+", type=seed_int, default=[42, 1, 2], metavar="N",
        help="a training each")
    add("--jobs", type=positive_int, default=usable_cores(), metavar="N",
        help="trainings at a time, sharing the usable cores")
    add("--epochs", type=positive_int, default=EPOCHS, metavar="N",
        help="passes over the training images")
    add("--limit", type=positive_int, default=None, metavar="N",
        help="train on the first N images only, for a quick trial")
    args = parse(parser, argv)
    if "gan" in args.models and args.dataset not in ("auto", "mnist", "sample"):
        parser.error(f"argument --dataset: the GAN's judge knows MNIST's digits alone, and "
                     f"'{args.dataset}' is a folder; name mnist or sample")
    args.models[:], args.seeds[:] = dict.fromkeys(args.models), dict.fromkeys(args.seeds)
    return args


def train_case(name: str, args: argparse.Namespace) -> dict:
    """Return the numbers of one training, named by its model, case and seed."""
    model, case, seed = name.split(": ")
    script, brief, measures = MODELS[model]
    own = copy.copy(args)
    own.out = runs_folder(args) / "ablation" / f"{model}-{case.replace(' ', '-')}"
    with patch.dict(vars(script), CASES[model][case].names):
        results = run_case(script.main, seed.replace(" ", "-"), [
            "--seed", seed.removeprefix("seed "), *brief, *CASES[model][case].flags], own)
    return {"case": case, "data": results["data"]["name"], **{key: results.get(key) for key in (
        *measures, "flags", "seed", "precision", "epoch_seconds", "commit", "device",
        "classifier_sha256")}}


def averaged(rows: Sequence[dict], key: str) -> dict[str, float | None]:
    """Return the mean over trainings and their standard deviation, None for one training."""
    values = [row[key] for row in rows]
    return {key: statistics.fmean(values),
            f"{key}_deviation": statistics.stdev(values) if len(values) > 1 else None}


def ablate(model: str, args: argparse.Namespace) -> dict:
    """Train all cases of one model; write ablation-MODEL.json and return its record."""
    measures = MODELS[model][2]
    name = run_name(f"ablation-{model}", args, named=["jobs", "models"])
    args = copy.copy(args)
    names = [f"{model}: {case}: seed {seed}" for case in CASES[model] for seed in args.seeds]
    args.jobs = min(args.jobs, len(names))
    trainings = run_cases(names, train_case, measures[0], args)
    rows = []
    for case in CASES[model]:
        own = [row for row in trainings if row["case"] == case]
        rows.append({"name": case, "trainings": len(own), "runs": own,
                     **{key: value for measure in measures
                        for key, value in averaged(own, measure).items()}})
    print(f"\n{model + ', mean ± deviation':26}" + "".join(f"{key:>22}" for key in measures))
    for row in rows:
        print(f"{row['name']:26}" + "".join(
            f"{row[key]:14.3f} ± {row[f'{key}_deviation'] or 0:5.3f}" for key in measures))
    file = report_folder(args.out) / "results" / f"{name}.json"
    record = write_record(file, args.device, rows=rows, epochs=args.epochs,
                          threads=threads(args.jobs))
    print(f"done: {file}\n", flush=True)
    return record


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Ablate the models; return each one's record."""
    args = parse_args(argv)
    return {model: ablate(model, args) for model in args.models}


if __name__ == "__main__":
    exit_with(main)
