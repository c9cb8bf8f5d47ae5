"""Walks in latent space: norms, ends, and masses of the grid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from a3.latents import lerp, line_and_arc, normal_grid, quantiles, slerp


def draws(dimensions: int, seed: int):
    torch.manual_seed(seed)
    return torch.randn(2, dimensions, dtype=torch.float64)


@pytest.mark.parametrize("walk", [lerp, slerp])
@settings(max_examples=20)
@given(dimensions=st.integers(2, 100), seed=st.integers(0, 1000))
def test_a_walk_begins_and_ends_at_its_ends(walk, dimensions, seed):
    start, end = draws(dimensions, seed)
    path = walk(start, end, 9)
    assert path.shape == (9, dimensions)
    assert torch.allclose(path[[0, -1]], torch.stack((start, end)), atol=1e-12)


@settings(max_examples=20)
@given(dimensions=st.integers(2, 100), seed=st.integers(0, 1000))
def test_slerp_keeps_the_norm_between_equal_norms(dimensions, seed):
    start, end = draws(dimensions, seed)
    end = end * start.norm() / end.norm()
    norms = slerp(start, end, 9).norm(dim=1)
    assert torch.allclose(norms, start.norm().expand(9), rtol=1e-9), (norms, start.norm())


def test_slerp_goes_in_equal_angles():
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    angles = torch.linspace(0, torch.pi / 2, 5)
    expected = torch.stack((angles.cos(), angles.sin()), dim=1)
    assert torch.allclose(slerp(start, end, 5), expected, atol=1e-6)


def test_a_short_arc_is_still_an_arc():
    angle = 0.05
    start, end = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]]).double()
    assert (slerp(start, end, 3).norm(dim=1) - 1).abs().max() < 1e-6
    assert (lerp(start, end, 3).norm(dim=1) - 1).abs().max() > 1e-4


def test_slerp_of_parallel_vectors_is_the_line():
    start = torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(slerp(start, 2 * start, 5), lerp(start, 2 * start, 5))


def test_the_line_leaves_the_sphere_that_the_arc_stays_on():
    """Half-way between orthogonal codes of norm 3 the line is lower by a factor sqrt(2)."""
    start, end = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 3.0]]).double()
    line, arc = line_and_arc(start, end, 5).split(5)
    assert torch.allclose(line.norm(dim=1)[2], torch.tensor(3 / 2**0.5).double()), line
    assert torch.allclose(arc.norm(dim=1), torch.full((5,), 3.0).double()), arc
    ends = torch.stack((start, end))
    assert torch.allclose(line[[0, -1]], ends) and torch.allclose(arc[[0, -1]], ends)


def test_quantiles_are_finite_symmetric_and_of_equal_mass():
    z = quantiles(20).numpy()
    assert abs(z + z[::-1]).max() < 1e-12
    assert abs(norm.cdf(z) - (torch.arange(20).numpy() + 0.5) / 20).max() < 1e-12


def test_the_grid_reads_like_a_plot():
    grid = normal_grid(3).reshape(3, 3, 2)
    assert (grid[:, 0, 0] < grid[:, 2, 0]).all(), "z_1 grows to the right"
    assert (grid[0, :, 1] > grid[2, :, 1]).all(), "z_2 grows upwards"
    assert torch.equal(grid[1, 1], torch.zeros(2))
    assert torch.allclose(grid[0, :, 0], quantiles(3).float())
