"""Invertible maps of codes, for a posterior or prior that is not a diagonal Gaussian.

A VAE whose code is z = F(z_0; x) with z_0 ~ N(mean(x), std(x)^2) is an f-VAE (Su & Wu 2018), and
by the change of variables log q(z|x) = log q_0(z_0|x) - log |det dF/dz_0|. A prior whose codes
become standard normal, u = G(z), has the density log p(z) = log N(u; 0, I) + log |det dG/dz|.

The couplings are Real NVP's affine ones, but not those of a3_nf_template.py: a code has few
dimensions and no pixels to mask, and the posterior's couplings also see the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 128  # units of a coupling
SCALE_LIMIT = 1.0  # of |log scale|, softly


class CodeCoupling(nn.Module):
    """Change one half of a code, given the other and, if there is one, a context.

        forward   b' = b * exp(s) + t      ldj = +sum(s)
        inverse   b  = (b' - t) * exp(-s)  ldj = -sum(s)

    (s, t) come from one network of a and the context; its last layer starts at zero, so that the
    coupling starts as the identity.

    Args:
        n_given, n_changed: dimensions of the halves a and b.
        n_context: dimensions of the context, or 0.
    """

    def __init__(self, n_given: int, n_changed: int, n_context: int = 0):
        super().__init__()
        self.of_code = nn.Linear(n_given, HIDDEN)
        self.of_context = nn.Linear(n_context, HIDDEN, bias=False) if n_context else None
        self.hidden = nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, 2 * n_changed)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def scale_and_shift(self, a: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return s and t, each (..., n_changed), of codes a (..., n_given)."""
        h = self.of_code(a)
        if self.of_context is not None:
            h = h + self.of_context(context)  # once for all draws: broadcast over the first axes
        s, t = self.last(F.silu(self.hidden(F.silu(h)))).to(a.dtype).chunk(2, dim=-1)
        return SCALE_LIMIT * torch.tanh(s / SCALE_LIMIT), t

    def forward(self, a: Tensor, b: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return b' (..., n_changed) and the log-determinant (...)."""
        s, t = self.scale_and_shift(a, context)
        return b * s.exp() + t, s.sum(dim=-1)

    def inverse(self, a: Tensor, b: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Undo ``forward``: return b and the log-determinant of the inverse."""
        s, t = self.scale_and_shift(a, context)
        return (b - t) * torch.exp(-s), -s.sum(dim=-1)


class CodeFlow(nn.Module):
    """Couplings of which every second one changes the first half of the code, the others the rest.

    Args:
        z_dim: dimensions of a code, at least 2.
        n_couplings: 0 makes the flow the identity.
        n_context: dimensions of the context, or 0.
    """

    def __init__(self, z_dim: int, n_couplings: int = 4, n_context: int = 0):
        super().__init__()
        sizes = self.sizes = [z_dim // 2, z_dim - z_dim // 2]
        self.layers = nn.ModuleList(
            CodeCoupling(sizes[i % 2], sizes[1 - i % 2], n_context) for i in range(n_couplings))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the image of z (..., D) and the log-determinant (...), in nats."""
        return self._through(z, context, range(len(self.layers)), CodeCoupling.forward)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the code that ``forward`` maps to z (..., D), and the inverse's log-det."""
        return self._through(z, context, range(len(self.layers))[::-1], CodeCoupling.inverse)

    def _through(self, z: Tensor, context: Tensor | None, order: range, step
                 ) -> tuple[Tensor, Tensor]:
        ldj = torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)
        if not order:
            return z, ldj
        halves = list(z.split(self.sizes, dim=-1))
        for i in order:
            given, changed = i % 2, 1 - i % 2
            halves[changed], change = step(self.layers[i], halves[given], halves[changed], context)
            ldj = ldj + change
        return torch.cat(halves, dim=-1), ldj
