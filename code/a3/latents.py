"""Points and paths in the latent space of any model.

A standard Gaussian in many dimensions lives near the sphere of radius sqrt(D). A straight line
between two of its draws leaves that sphere (half-way the norm is lower by a factor sqrt(2)); the
great arc stays on it (White 2016, "Sampling generative networks").
"""

import torch
from torch import Tensor


def lerp(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Return the straight line: (1 - t) start + t end, for ``steps`` even t in [0, 1].

    Args:
        start, end: (D,).

    Returns:
        (steps, D); the first and last row are ``start`` and ``end``.
    """
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[:, None]
    return torch.lerp(start[None], end[None], t)


def slerp(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Return the great arc (Shoemake 1985, "Animating rotation with quaternion curves").

        sin((1 - t) w) / sin(w) start + sin(t w) / sin(w) end,   w = angle(start, end)

    Between equal norms the norm stays; parallel vectors have no arc and give the straight line.

    Args:
        start, end: (D,), not of opposite direction (no arc is then the shortest).

    Returns:
        (steps, D); the first and last row are ``start`` and ``end``.
    """
    cosine = torch.dot(start, end) / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-3:
        return lerp(start, end, steps)
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[:, None]
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


def line_and_arc(start: Tensor, end: Tensor, steps: int = 9) -> Tensor:
    """Return the straight line, then the great arc, from one code to another, (2 * steps, D)."""
    return torch.cat((lerp(start, end, steps), slerp(start, end, steps)))


def quantiles(side: int) -> Tensor:
    """Return ``side`` quantiles of N(0, 1), in the middle of bins of equal probability.

    The probabilities (i + 1/2) / side lie symmetrically in the *open* unit interval, since the
    quantiles of 0 and 1 are infinite.
    """
    return torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side)


def normal_grid(side: int) -> Tensor:
    """Return the inverse-CDF grid of the unit square: cells of equal mass under N(0, I_2).

    Returns:
        (side * side, 2) in the order of an image grid: z_1 grows to the right, z_2 upwards.
    """
    z = quantiles(side).float()
    z2, z1 = torch.meshgrid(z.flip(0), z, indexing="ij")
    return torch.stack((z1, z2), dim=-1).reshape(-1, 2)
