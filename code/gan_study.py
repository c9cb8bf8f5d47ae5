"""What three additions to the GAN's recipe bring: the default without each, three seeds each.

Every case is a run of a3_gan_template.py under study/, all of as many updates, fewer than the
default has. Compared are the Frechet distance to validation images, the share of the rarest digit
and that of clear ones, by the classifier of grey digits.

    python code/gan_study.py            # 35 min on 2 cores: report/results/gan-study.json
"""

import argparse
import statistics
from collections.abc import Sequence
from a3.cli import exit_with, parse, positive_int, run_name, seed_int, tool_flags

import a3_gan_template as gan
from a3.devices import usable_cores
from a3.records import report_folder, write_record
from study import run_case, run_cases, threads

OLD = gan.RECIPES["cycle"]
# What a case has of the earlier recipe, in the place of the default's.
CASES = {
    "default": {},
    "without deviation": {"group": OLD["group"]},
    "without R1": {"r1": OLD["r1"]},
    "beta_1 of 0.5": {"betas": OLD["betas"]},
    "none of the three": {key: OLD[key] for key in ("group", "r1", "betas")},
}
EPOCHS = 40
MEASURES = ("val_frechet_distance", "smallest_class_share", "clear_share")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Train the GAN without each of three additions to its recipe.",
                        ("mnist", "sample"))
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
        help="cases to run, by name")
    add("--seeds", nargs="+", type=seed_int, default=[42, 1, 2], metavar="N",
        help="a training each")
    add("--jobs", type=positive_int, default=usable_cores(), metavar="N",
        help="trainings at a time, sharing the usable cores")
    add("--epochs", type=positive_int, default=EPOCHS, metavar="N",
        help="passes over the training images")
    add("--limit", type=positive_int, default=None, metavar="N",
        help="train on the first N images only, for a quick trial")
    args = parse(parser, argv)
    if args.dataset not in ("auto", "mnist", "sample"):
        parser.error(f"argument --dataset: the judge knows MNIST's digits alone, and "
                     f"'{args.dataset}' is a folder; name mnist or sample")
    args.cases[:], args.seeds[:] = dict.fromkeys(args.cases), dict.fromkeys(args.seeds)
    args.jobs = min(args.jobs, len(args.cases) * len(args.seeds))
    return args


def train_case(name: str, args: argparse.Namespace) -> dict:
    """Return the numbers of one training, named by its case and seed."""
    case, seed = name.split(": seed ")
    recipe = case.replace(" ", "-")
    gan.RECIPES[recipe] = {**gan.RECIPES["default"], **CASES[case]}
    results = run_case(gan.main, name, ["--recipe", recipe, "--seed", seed], args)
    return {"case": case, **{key: results[key] for key in (
        *MEASURES, "flags", "seed", "precision", "epoch_seconds", "commit", "device",
        "classifier_sha256")}}


def averaged(rows: Sequence[dict], key: str) -> dict[str, float | None]:
    """Return the mean over trainings and their standard deviation, None for one training."""
    values = [row[key] for row in rows]
    return {key: statistics.fmean(values),
            f"{key}_deviation": statistics.stdev(values) if len(values) > 1 else None}


def main(argv: Sequence[str] | None = None) -> dict:
    """Train all cases; write gan-study.json and return its record."""
    args = parse_args(argv)
    name = run_name("gan-study", args, named=["jobs"])
    names = [f"{case}: seed {seed}" for case in args.cases for seed in args.seeds]
    trainings = run_cases(names, train_case, "val_frechet_distance", args)
    rows = []
    for case in args.cases:
        own = [row for row in trainings if row["case"] == case]
        rows.append({"name": case, "trainings": len(own), "runs": own,
                     **{key: value for measure in MEASURES
                        for key, value in averaged(own, measure).items()}})
    results = write_record(report_folder(args.out) / "results" / f"{name}.json", args.device,
                           rows=rows, epochs=args.epochs, threads=threads(args.jobs))
    print(f"\n{'case':20}{'Frechet':>9}{'rarest':>9}{'clear':>9}")
    for row in rows:
        print(f"{row['name']:20}" + f"{row[MEASURES[0]]:9.2f}"
              + "".join(f"{row[key]:9.3f}" for key in MEASURES[1:]))
    return results


if __name__ == "__main__":
    exit_with(main)
