"""The comparison's table: every measure of a model's samples, over repeats, with ranks.

The features are a classifier's. A second judge, of random weights, gives Frechet distances by
which nobody chose a recipe; as its features have no scale of their own, they are given as a share
of the real images' variance.
"""

import itertools
import statistics

import torch
from torch import Tensor

from a3 import judge_metrics as metrics
from a3.judge_classifier import CLEAR, classify, features

# Whether more is better, for the measures by which models are ranked.
BETTER_HIGH = {"frechet_distance": False, "random_frechet_distance": False,
               "kernel_distance": False, "precision": True,
               "recall": True, "density": True, "coverage": True,
               "class_divergence_nats": False, "clear_share": True}


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
    """Return the mean of each measure over trainings, and its deviation; None of one training.

    Args:
        tables: of each training, as ``over_repeats`` gives them; the deviations by the draws are
            averaged.
    """
    table: dict = {"trainings": len(tables)}
    for key, first in tables[0].items():
        values = [one[key] for one in tables]
        if isinstance(first, list):
            table[key] = [statistics.fmean(shares) for shares in zip(*values, strict=True)]
            continue
        table[key] = None if first is None else statistics.fmean(values)
        if not key.endswith("_sampling_deviation"):
            table[f"{key}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
    return table


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
