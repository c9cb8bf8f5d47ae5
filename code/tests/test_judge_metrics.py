"""Measures of samples: known answers, and what they say of good, bad and repeated samples."""

import math

import pytest
import torch
from scipy.linalg import sqrtm

from a3 import judge_metrics as metrics


@pytest.fixture(scope="module")
def clouds() -> dict[str, torch.Tensor]:
    """Real points, more of the same law, the same law shifted, and one point repeated."""
    torch.manual_seed(0)
    real, same, noise = torch.randn(3, 1500, 8, dtype=torch.float64)
    return {"real": real, "same": same, "shifted": noise + 3,
            "repeated": real[:1] + 1e-3 * noise}


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_frechet_distance_is_that_of_the_two_gaussians():
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 6, dtype=torch.float64)
    one, other = (torch.randn(4000, 6, dtype=torch.float64) @ mix for mix in (a, b))
    other = other + 1
    c1, c2 = one.T.cov().numpy(), other.T.cov().numpy()
    shift = (one.mean(0) - other.mean(0)).numpy()
    expected = shift @ shift + (c1 + c2 - 2 * sqrtm(c1 @ c2).real).trace()
    distance = metrics.frechet_distance(one, other)
    assert math.isclose(distance, expected, rel_tol=1e-6), (distance, expected)
    assert math.isclose(distance, metrics.frechet_distance(other, one), rel_tol=1e-6)
    assert math.isclose(metrics.frechet_distance(one, one + 2), 4 * 6, rel_tol=1e-6)


def test_the_kernel_distance_is_unbiased_and_by_the_published_kernel(clouds, monkeypatch):
    mean, deviation = metrics.kernel_distance(clouds["real"], clouds["same"], noise())
    assert abs(mean) < 3 * deviation / 10, (mean, deviation)  # 100 subsets, overlapping
    monkeypatch.setattr(metrics, "SUBSETS", 2)
    a, b = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
    # k(a, b) = (a b + 1)^3: k(1, 2) = 27, k(0, 1) = 1, across: 1, 8, 1, 27
    mean, _ = metrics.kernel_distance(a, b, noise())
    assert mean == 27 + 1 - 2 * (1 + 8 + 1 + 27) / 4


def test_radii_reach_to_the_kth_other_point():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert metrics.radii(points, 2).tolist() == [3.0, 2.0, 3.0, 6.0]


def test_samples_of_the_same_law_are_at_the_floor(clouds):
    precision, recall = metrics.precision_recall(clouds["same"], clouds["real"])
    density, coverage = metrics.density_coverage(clouds["same"], clouds["real"])
    assert abs(precision - recall) < 0.05 and precision > 0.75
    assert abs(density - 1) < 0.1, density
    assert abs(coverage - (1 - 0.5**metrics.NEIGHBOURS_COVERAGE)) < 0.02, coverage


def test_the_number_of_samples_does_not_change_what_they_are_worth(clouds):
    real, some = clouds["real"], clouds["same"][:500]
    density, _ = metrics.density_coverage(some, real)
    assert abs(density - 1) < 0.15, density
    precision, _ = metrics.precision_recall(some, real)
    assert abs(precision - metrics.precision_recall(clouds["same"], real)[0]) < 0.05


def test_samples_elsewhere_are_neither_precise_nor_covering(clouds):
    real, away = clouds["real"], clouds["shifted"]
    assert max(*metrics.precision_recall(away, real), *metrics.density_coverage(away, real)) < 0.02
    assert metrics.kernel_distance(real, away, noise())[0] > 10
    assert metrics.frechet_distance(real, away) > 50


def test_one_repeated_sample_is_precise_but_recalls_and_covers_nothing(clouds):
    real, one = clouds["real"], clouds["repeated"]
    precision, recall = metrics.precision_recall(one, real)
    density, coverage = metrics.density_coverage(one, real)
    assert precision == 1 and density > 0.1, (precision, density)
    assert recall < 0.01 and coverage < 0.02, (recall, coverage)


def test_the_class_divergence_is_the_kl_of_the_shares():
    real = torch.arange(10).repeat(10)
    assert metrics.class_divergence(real.flip(0), real) == 0
    assert math.isclose(metrics.class_divergence(torch.full((7,), 3), real), math.log(10))


def test_rows_at_once_change_nothing(clouds, monkeypatch):
    real, same = clouds["real"], clouds["same"]
    whole = [*metrics.precision_recall(same, real), *metrics.density_coverage(same, real)]
    monkeypatch.setattr(metrics, "ROWS", 7 * 4)
    assert whole == [*metrics.precision_recall(same, real), *metrics.density_coverage(same, real)]


def test_the_nearest_image_is_found():
    others = torch.rand(50, 784)
    distance, index = metrics.nearest(others[[7, 3]] + 0.1, others)
    assert index.tolist() == [7, 3]
    assert torch.allclose(distance, torch.full((2,), 0.1 * 28), rtol=1e-2)


def test_the_nearest_image_is_the_same_by_moves_and_by_rows_at_once(monkeypatch):
    torch.manual_seed(0)
    images, others = torch.rand(2, 90, 784)
    moves = torch.stack([torch.arange(784).roll(by) for by in (0, 1, 28)])
    every = torch.stack([torch.cdist(images[:, move], others) for move in moves]).amin(dim=0)
    for rows in (2000, 40):
        monkeypatch.setattr(metrics, "ROWS", rows)
        distance, index = metrics.nearest(images, others, moves)
        assert torch.equal(index, every.argmin(dim=1))
        assert torch.allclose(distance, every.amin(dim=1), rtol=1e-4)


def test_an_image_that_is_there_is_at_no_distance():
    """A product of norms alone would leave the root of its rounding, about 0.02."""
    others = torch.rand(500, 784)
    assert metrics.nearest(others, others)[0].max() == 0
