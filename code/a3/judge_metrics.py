"""How far a set of samples is from a set of real images, by their features.

Features are (N, F) float64 on the CPU, from the last layer but one of a digit classifier. A
measure compares only with itself, by the same features on as many images; judge it against the
floor, its value between two sets of real images.
"""

import torch
from torch import Tensor

NEIGHBOURS_PRECISION = 3  # Kynkaanniemi et al. (2019), section 3
NEIGHBOURS_COVERAGE = 5  # Naeem et al. (2020), section 4
SUBSETS, SUBSET_SIZE = 100, 1000  # Binkowski et al. (2018), section 4
ROWS = 2000  # rows of a distance matrix computed at once


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Return the squared Frechet distance of two sets of features, as FID is (Heusel et al. 2017).

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    with their means m and covariances C. The trace of the root is the sum of the roots of the
    eigenvalues of C1 C2, which are real and not negative.
    """
    shift = one.mean(dim=0) - other.mean(dim=0)
    c1, c2 = one.T.cov(), other.T.cov()
    roots = torch.linalg.eigvals(c1 @ c2).real.clamp(min=0).sqrt()
    return float(shift @ shift + c1.trace() + c2.trace() - 2 * roots.sum())


def kernel_distance(one: Tensor, other: Tensor, noise: torch.Generator) -> tuple[float, float]:
    """Return the kernel distance (KID) and the deviation of its estimate.

    The unbiased estimate of the squared maximum mean discrepancy under the kernel
    (a . b / F + 1)^3 (Binkowski et al. 2018, section 4), averaged over random subsets; its
    deviation is the standard deviation over the subsets, which is theirs and not the mean's.

    Args:
        noise: draws the subsets.
    """
    size = min(SUBSET_SIZE, len(one), len(other))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def among(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (size * (size - 1))

    estimates = []
    for _ in range(SUBSETS):
        a = one[torch.randperm(len(one), generator=noise)[:size]]
        b = other[torch.randperm(len(other), generator=noise)[:size]]
        estimates.append(among(a) + among(b) - 2 * kernel(a, b).mean())
    values = torch.stack(estimates)
    return float(values.mean()), float(values.std())


def radii(points: Tensor, neighbours: int) -> Tensor:
    """Return the distance of every point to its k-th nearest other point, (N,)."""
    return torch.cat([torch.cdist(rows, points).topk(neighbours + 1, largest=False)[0][:, -1]
                      for rows in points.split(ROWS)])


def share_inside(points: Tensor, centres: Tensor, radius: Tensor) -> float:
    """Return the share of the points that lie in at least one ball."""
    inside = [(torch.cdist(rows, centres) <= radius).any(dim=1) for rows in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def precision_recall(sampled: Tensor, real: Tensor) -> tuple[float, float]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019, section 3).

    Precision is the share of samples within the real images' manifold, the union of balls that
    reach to their third neighbour; recall is the share of real images within the samples'.
    """
    k = NEIGHBOURS_PRECISION
    return (share_inside(sampled, real, radii(real, k)),
            share_inside(real, sampled, radii(sampled, k)))


def density_coverage(sampled: Tensor, real: Tensor) -> tuple[float, float]:
    """Return density and coverage (Naeem et al. 2020, eq. 4 and 5).

    Density counts the real images' balls that a sample lies in, over k, averaged (about 1 for
    real against real); coverage is the share of real images whose ball holds a sample.
    """
    k = NEIGHBOURS_COVERAGE
    radius, count = radii(real, k), 0
    hit = torch.zeros(len(real), dtype=torch.bool)
    for rows in sampled.split(ROWS):
        inside = torch.cdist(rows, real) <= radius  # (rows, N real)
        count += int(inside.sum())
        hit |= inside.any(dim=0)
    return count / (k * len(sampled)), float(hit.double().mean())


def class_divergence(sampled: Tensor, real: Tensor) -> float:
    """Return KL(shares of digits in samples || shares in real images), in nats.

    Args:
        sampled, real: (N,) digits; every digit occurs in ``real``.
    """
    p, q = (digits.bincount(minlength=10).double() / len(digits) for digits in (sampled, real))
    return float((torch.xlogy(p, p) - torch.xlogy(p, q)).sum())


def nearest(images: Tensor, others: Tensor, moves: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the distance of each image to the nearest of the others, and its index, each (N,).

    By |a - b|^2 = |a|^2 - 2 a.b + |b|^2 one matrix product finds the pair, though its rounding
    hides small distances; the distance of the pair found is therefore taken from their difference.

    Args:
        images, others: (N, 784) and (M, 784), float; Euclidean distance of the pixels.
        moves: (S, 784) source pixels of each move of an image that is tried; None: unmoved.
    """
    moves = torch.arange(images.shape[1])[None] if moves is None else moves
    half_norms, distances, indices = others.square().sum(dim=1) / 2, [], []
    for rows in images.split(ROWS // 4 // len(moves) + 1):
        moved = rows[:, moves.to(rows.device)].flatten(end_dim=1)  # (B S, 784)
        score, index = torch.addmm(half_norms, moved, others.T, alpha=-1).min(dim=1)  # (B S,)
        best = (score + moved.square().sum(dim=1) / 2).view(len(rows), -1).argmin(dim=1)  # (B,)
        best += len(moves) * torch.arange(len(rows), device=best.device)
        distances.append((moved[best] - others[index[best]]).norm(dim=1))
        indices.append(index[best])
    return torch.cat(distances), torch.cat(indices)
