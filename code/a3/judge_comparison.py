"""The comparison's table: every measure of a model's samples, over repeats, with ranks."""

import statistics

import torch
from torch import Tensor

from a3 import judge_metrics as metrics
from a3.judge_classifier import CLEAR, classify, features

# Whether more is better, for the measures by which models are ranked.
BETTER_HIGH = {"frechet_distance": False, "kernel_distance": False, "precision": True,
               "recall": True, "density": True, "coverage": True,
               "class_divergence_nats": False, "clear_share": True}


def measure_samples(images: Tensor, real: Tensor, real_digits: Tensor, classifier,
                    noise: torch.Generator) -> dict[str, float | list]:
    """Measure binary images (N, 784) against the features of real ones, (M, 128)."""
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


def rank(table: dict[str, dict]) -> None:
    """Add to each model its rank in every measure: 1 is the best, equal means share a rank."""
    for row in table.values():
        row["ranks"] = {
            key: 1 + sum(other[key] > row[key] if high else other[key] < row[key]
                         for other in table.values())
            for key, high in BETTER_HIGH.items()}
