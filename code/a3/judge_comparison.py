"""The comparison: every measure of a model's samples, over repeats and trainings, with ranks.

The features are a classifier's. A second judge, of random weights, gives Frechet distances by
which nobody chose a recipe; as its features have no scale of their own, they are given as a share
of the real images' variance.

Each training is judged alone, and its record is kept, so that trainings may be judged at different
times: what is said of a model is made of its trainings' records whenever one is added.
"""

import argparse
import itertools
import json
import re
import statistics
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from a3 import judge_metrics as metrics
from a3.judge_classifier import CLEAR, classify, features, judge
from a3.runs import RunError, progress, random_stream

# Whether more is better, for the measures by which models are ranked.
BETTER_HIGH = {"frechet_distance": False, "random_frechet_distance": False,
               "kernel_distance": False, "precision": True,
               "recall": True, "density": True, "coverage": True,
               "class_divergence_nats": False, "clear_share": True}

Draw = Callable[[int, torch.Generator], Tensor]


class Exam:
    """What every training is held against: the same real images, by the same two judges.

    All images, real and drawn, are made binary. A repeat draws everything anew: the samples, and
    the binary images of test and of the floor.

    Args:
        test: (M, 784) grey values in [0, 1], with their digits, (M,).
        unseen: (K, 784), likewise; neither the judges nor the GANs and flows were trained on them.
        binary: makes grey images binary, drawing from a generator.
        args: the flags ``seed``, ``samples`` (in a repeat), ``repeats`` and ``device``.

    Attributes:
        judges: the classifier of binary digits, and the network of random weights.
        facts: by which results name them.
        real: for each repeat the features of test by each judge, (M, 128).
    """

    def __init__(self, test: Tensor, digits: Tensor, unseen: Tensor,
                 binary: Callable[[Tensor, torch.Generator], Tensor], args: argparse.Namespace):
        self.test, self.digits, self.unseen = test, digits.cpu(), unseen
        self.binary, self.args = binary, args
        (classifier, facts), (random, other) = (judge(kind, args.device)
                                                for kind in ("binary", "random"))
        self.judges = [classifier, random]
        self.facts = {**facts, "second_judge_sha256": other["classifier_sha256"]}
        self.real = []
        for repeat in range(args.repeats):
            images = binary(test, random_stream(args.seed, f"test {repeat}"))
            self.real.append([features(one, images) for one in self.judges])

    def samples(self, name: str, draw: Draw) -> dict:
        """Return the measures of a training's samples, with their deviations by the draws.

        Args:
            name: of the model: all its trainings have the same noise.
            draw: (n, generator) to n grey images, (n, 784) in [0, 1].
        """
        rows = []
        for repeat, real in enumerate(progress(self.real)):
            noise = random_stream(self.args.seed, f"{name} samples {repeat}")
            images = self.binary(draw(self.args.samples, noise), noise)
            rows.append(measure_samples(images, real, self.digits, self.judges, noise))
        return over_repeats(rows)

    def clear_share(self, name: str, images: Tensor) -> float:
        """Return the share of clear digits among grey images, made binary."""
        noise = random_stream(self.args.seed, f"{name} clear share")
        _, probability = classify(self.judges[0], self.binary(images, noise))
        return (probability > CLEAR).float().mean().item()

    def floor(self) -> dict:
        """Return the measures of as many unseen images as there are samples."""
        return over_trainings([self.samples("floor", partial(some_of, self.unseen))])

    def files(self) -> dict:
        """Return what of the floor is the difference of two files, and what the number of images.

        The Frechet distance of n unseen images to n test images, beside that of n test images to
        n others, both averaged over the repeats; n is half of the test images at most.
        """
        n = min(self.args.samples, len(self.test) // 2)
        rows = []
        for repeat in range(self.args.repeats):
            noise = random_stream(self.args.seed, f"files {repeat}")
            two = some_of(self.test, 2 * n, noise).chunk(2)
            parts = [self.binary(images, noise)
                     for images in (*two, some_of(self.unseen, n, noise))]
            row = {}
            for kind, one in zip(("", "random_"), self.judges, strict=True):
                same, other, file = (features(one, images) for images in parts)
                scale = same.var(dim=0).sum().item() if kind else 1.0
                for where, images in (("within_test", other), ("between_files", file)):
                    row[f"{kind}frechet_distance_{where}"] = (
                        metrics.frechet_distance(images, same) / scale)
            rows.append(row)
        return {"images": n, **{key: statistics.fmean(row[key] for row in rows)
                                for key in sorted(rows[0])}}


def some_of(images: Tensor, number: int, noise: torch.Generator) -> Tensor:
    """Return so many of the images, drawn without replacement."""
    return images[torch.randperm(len(images), generator=noise)[:number].to(images.device)]


def measure_samples(images: Tensor, real: list[Tensor], real_digits: Tensor, judges: list,
                    noise: torch.Generator) -> dict[str, float | list]:
    """Measure binary images (N, 784) against real ones.

    Args:
        real: the features of the real images by each judge, (M, 128).
        judges: the classifier, and the network of random weights.
    """
    classifier, random = judges
    sampled, (real, random_real) = features(classifier, images), real
    second = metrics.frechet_distance(features(random, images), random_real)
    digits, probability = (value.cpu() for value in classify(classifier, images))
    kernel, deviation = metrics.kernel_distance(sampled, real, noise)
    precision, recall = metrics.precision_recall(sampled, real)
    density, coverage = metrics.density_coverage(sampled, real)
    return {"frechet_distance": metrics.frechet_distance(sampled, real),
            "random_frechet_distance": second / random_real.var(dim=0).sum().item(),
            "kernel_distance": kernel, "kernel_distance_subset_deviation": deviation,
            "precision": precision, "recall": recall, "density": density, "coverage": coverage,
            "class_divergence_nats": metrics.class_divergence(digits, real_digits),
            "clear_share": (probability > CLEAR).float().mean().item(),
            "class_shares": (digits.bincount(minlength=10) / len(digits)).tolist()}


def over_repeats(rows: list[dict]) -> dict:
    """Return the mean of each measure and, of several rows, its deviation by the draws."""
    table: dict = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if key == "class_shares":
            table[key] = [statistics.fmean(shares) for shares in zip(*values, strict=True)]
            continue
        table[key] = statistics.fmean(values)
        table[f"{key}_sampling_deviation"] = statistics.stdev(values) if len(values) > 1 else None
    return table


def over_trainings(tables: list[dict]) -> dict:
    """Return the mean of each number over trainings, and its deviation; None of one training.

    What only some trainings have is over these; counts and texts are the first training's.

    Args:
        tables: the numbers of each training. Those named as deviations by the draws are averaged.
    """
    table: dict = {"trainings": len(tables)}
    for key, first in tables[0].items():
        values = [one[key] for one in tables if one.get(key) is not None]
        if isinstance(first, list):
            table[key] = [statistics.fmean(shares) for shares in zip(*values, strict=True)]
        elif not isinstance(first, float):
            table[key] = first
        else:
            table[key] = statistics.fmean(values)
            if not key.endswith("_sampling_deviation"):
                table[f"{key}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
    return table


def rows_of(judged: dict[str, dict], floor: dict) -> dict[str, dict]:
    """Return the rows of all models and of the floor, None where one lacks another's key.

    Args:
        judged: by model and run, what ``merged`` returns.
    """
    table = {key: {**over_trainings([one["numbers"] for one in by_run.values()]),
                   "by_run": by_run} for key, by_run in judged.items()}
    rank(table)
    table["floor"] = floor
    keys = sorted({key for row in table.values() for key in row})
    return {name: {key: row.get(key) for key in keys} for name, row in table.items()}


def rank(table: dict[str, dict]) -> None:
    """Add to each model its rank in every measure: 1 is the best, equal means share a rank."""
    for row in table.values():
        row["ranks"] = {
            key: 1 + sum(other[key] > row[key] if high else other[key] < row[key]
                         for other in table.values())
            for key, high in BETTER_HIGH.items()}


def agreement(table: dict[str, dict], one: str = "frechet_distance",
              other: str = "random_frechet_distance") -> float | None:
    """Return the share of pairs of models that two measures rank alike; None of one model."""
    def order(measure: str) -> list[int]:
        pairs = itertools.combinations([row["ranks"][measure] for row in table.values()], 2)
        return [(a > b) - (a < b) for a, b in pairs]

    same = [a == b for a, b in zip(order(one), order(other), strict=True)]
    return sum(same) / len(same) if same else None


# Trainings judged at different times -------------------------------------------------------------

def trainings(run: str, names: Sequence[str]) -> list[str]:
    """Return which of the names are the run's, or its further seeds': "gan", "gan-seed1"."""
    return [name for name in names if re.fullmatch(rf"{re.escape(run)}(-seed\d+)?", name)]


def to_judge(names: dict[str, str], only: Sequence[str] | None, asked: Container[str],
             results: Path) -> dict[str, list[str]]:
    """Return the runs that are judged now, by model: all with their seeds, or ``only`` some.

    Of all, a model that was not asked for by name is left out, with a line, if its run is missing.

    Args:
        names: the run of each model.
        results: the folder of their results.

    Raises:
        RunError: there is none, or one is no model's.
    """
    runs: dict[str, list[str]] = {}
    for name, run in names.items():
        seeds = sorted(file.stem for file in results.glob(f"{run}-seed*.json"))
        if only or name in asked or (results / f"{run}.json").exists():
            runs[name] = trainings(run, only or [run, *seeds])
        else:
            print(f"{name}: left out, since there is no finished run '{run}'")
    for run in {*(only or ())}.difference(*runs.values()):
        raise RunError(f"'--only {run}': expected runs of the models that are compared, "
                       f"{', '.join(names.values())}, or further seeds of them, as '...-seed1'")
    if not runs:
        raise RunError("there is no finished run to compare; make models makes them")
    runs = {name: some for name, some in runs.items() if some}
    for name, some in runs.items():
        print(f"{name}: {len(some)} training{'s' * (len(some) > 1)}: {', '.join(some)}")
    return runs


def merged(judged: dict[str, dict], file: Path, settings: dict, runs: dict[str, str]
           ) -> dict[str, dict]:
    """Return the records of trainings that were judged now and, from a file, earlier.

    Dropped, with a line, are those that were judged with other settings, and those of runs that
    have been trained anew since.

    Args:
        judged: by model and run.
        file: an earlier comparison; missing or damaged, it has none.
        settings: what all trainings of a comparison are judged with, as the file has them.
        runs: the run of each model.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        rows = {key: record[key]["by_run"] for key in runs if key in record}
    except FileNotFoundError:
        return judged
    except (OSError, ValueError, LookupError, TypeError):
        print(f"dropped: all rows of '{file}', which another version wrote, or which is damaged")
        return judged
    if other := [key for key, value in settings.items() if record.get(key) != value]:
        print(f"dropped: all rows of '{file}', which were judged with another {', '.join(other)}")
        return judged
    both = {}
    for key, run in runs.items():
        now, earlier = judged.get(key, {}), rows.get(key, {})
        stay = {name: earlier[name] for name in trainings(run, sorted(earlier))
                if name in now or not retrained(file.with_name(f"{name}.json"), earlier[name])}
        if gone := sorted(earlier.keys() - stay.keys()):
            print(f"dropped: {', '.join(gone)} of '{file}', since trained anew")
        if both_of := {**stay, **now}:
            both[key] = {name: both_of[name] for name in sorted(both_of)}
    return both


def retrained(results: Path, training: dict) -> bool:
    """Return whether a run's results are of other weights than those that were judged."""
    try:
        weights = json.loads(results.read_text(encoding="utf-8")).get("weights_sha256")
    except (OSError, ValueError):
        return False  # trained elsewhere
    return weights not in (None, training["weights_sha256"])
