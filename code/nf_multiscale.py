"""Multi-scale autoregressive flow on 8-bit MNIST: question 3 with a sense of neighbourhoods.

Like Real NVP, the map f takes an image to z = f(x) group by group: the pixels of a group change,
given those of the groups before it. Three things differ from a3_nf_template.py:

- The groups go from coarse to fine (the multi-scale idea of Dinh et al. 2017; the order of Reed et
  al. 2017, "Parallel multiscale autoregressive density estimation"). Every second row and column,
  a 14 x 14 grid, decides which digit it is: it is drawn in 7 x 7 cells of four pixels, one pixel
  after another, by a causal transformer (Vaswani et al. 2017), so that strokes meet. Three groups
  of 196 pixels then fill the gaps between them; convolutions read what is known so far.
- A coupling is no affine map but the pixel's own distribution function (Ho et al. 2019,
  "Flow++"), here one with a step for each of the 256 grey levels, piecewise linear between them.
- With such steps uniform dequantization loses nothing: log p(x + u) = log P(x) for every u. So
  what is reported is the exact code length of the discrete images, not a bound.

Seen from the pixels it is an autoregressive model with 52 passes; seen from z it is a flow with
a triangular Jacobian, with codes that give the images back (up to rounding, in float32), walks and
temperatures.

    x      (B, 784)      pixels in 0..255
    h      (B, T, C)     features of T cells, T = 49 or 196
    a      (B, n)        probability of ink, P(x > 0), of the n pixels of a group
    q      (m, 255)      probabilities of the grey levels 1..255 of the m pixels with ink
    u      (B, n)        dequantization noise, uniform on [0, 1)
    z      (B, 784)      code, standard normal if the model is right
    seen   (B, T, 256)   log(1 + how often the image has shown each grey level before a cell)

    python code/nf_multiscale.py      # 90 min on one core with bfloat16: validation 0.83
"""

import math
from collections.abc import Callable, Sequence
from a3.cli import exit_with, flags, parse, run_name

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import a3_nf_template as nf
from a3.devices import float64
from a3.nf_bits import spent_bits
from a3.nf_figures import save_bits_map, save_latent_figures, save_training_figures
from a3.runs import Run, random_stream
from datasets import RandomShift, mnist

EPOCHS = 18
SIDE, LEVELS = 28, 256  # of images, pixels; of pixels, grey levels
WIDTH, HEADS, LAYERS = 128, 4, 6  # of the transformer over the cells
CHANNELS, BLOCKS = 64, 3  # of the convolutions, before each group
CORNERS = (0, 0), (2, 2), (0, 2), (2, 0)  # the pixels of a cell as they are drawn: row, column
FINE = (0, 0), (1, 1), (0, 1), (1, 0)  # of 2 x 2 pixels; the last two have known neighbours
NEAR = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, -2), (-2, 0), (-2, -1), (-2, 1), (-1, -2),
        (-1, 2))  # the cells that a cell reads directly: rows, columns from it
DRAWN_TOGETHER = 500  # images that are decoded at once
ROUND_TRIPS = 500  # test images that are encoded and decoded


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    parser = flags("Train a multi-scale autoregressive flow on 8-bit MNIST.", epochs=EPOCHS,
                   lr=2e-3, batch_size=128, sources=("mnist", "sample"), precision="auto")
    return parse(parser, argv)


def grid(spacing: int, top: int = 0, left: int = 0) -> Tensor:
    """Return the indices of every so many pixels of an image, (rows, columns)."""
    return torch.arange(SIDE**2).reshape(SIDE, SIDE)[top::spacing, left::spacing]


def cells_near() -> Tensor:
    """Return the cells that each of the cells reads directly, (49, 10); 49 is outside."""
    side = SIDE // 4
    row, column = (torch.arange(side**2) // side)[:, None], (torch.arange(side**2) % side)[:, None]
    down, right = torch.tensor(NEAR).T
    row, column = row + down, column + right
    inside = (row >= 0) & (column >= 0) & (column < side)
    return torch.where(inside, row * side + column, side**2)


def levels_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how often each grey level is among the last dimension of x, (..., 256) counts."""
    counts = torch.zeros(*x.shape[:-1], LEVELS, dtype=dtype, device=x.device)
    return counts.scatter_add(-1, x, torch.ones_like(x, dtype=dtype))


# Networks ----------------------------------------------------------------------------------------

class Pixels(nn.Module):
    """The distribution of each pixel of a group, and the coupling that it gives.

        P(0) = 1 - a,  P(k) = a q_k           first whether there is ink, then how much
        encode   z = -Phi^-1(S + (1 - u) P(x)),  S = P(X > x)
        decode   x = the pixel with S <= Phi(-z) < S + P(x)
        log |dz / dx| = log P(x) - log N(z; 0, 1)

    Only pixels with ink, a fifth, need the 255 levels, so an exact table of them is affordable.
    They get a bias of their own for each image, or each pixel: an image repeats its grey levels.
    """

    def __init__(self, width: int, hidden: int = 128):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.ink = nn.Linear(width, 1)
        self.hidden = nn.Linear(width, hidden)
        self.levels = nn.Linear(hidden, LEVELS - 1)
        nn.init.zeros_(self.levels.weight)

    def level_logits(self, h: Tensor, bias: Tensor, chosen: Tensor) -> Tensor:
        """Return the logits of q, (m, 255), for the m pixels that are chosen (B, n)."""
        image, pixel = chosen.nonzero(as_tuple=True)
        row = image * bias.shape[1] + pixel % bias.shape[1]
        return self.levels(F.silu(self.hidden(h[image, pixel]))) + (
            F.embedding(row, bias.flatten(0, 1)))

    def log_prob(self, h: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        """Return log P(x), (B, n) nats, for x (B, n) in 0..255 and h (B, n, C).

        Args:
            bias: of the logits of grey levels, (B, n, 255), or (B, 1, 255) for all n pixels.
        """
        h, has_ink = self.norm(h), x > 0
        ink = self.ink(h).squeeze(-1).to(bias.dtype)  # (B, n)
        log_p = F.logsigmoid(torch.where(has_ink, ink, -ink))
        logits = self.level_logits(h, bias, has_ink)
        of_level = -F.cross_entropy(logits, x[has_ink] - 1, reduction="none")
        return log_p + torch.zeros_like(log_p).masked_scatter(has_ink, of_level)

    def encode(self, h: Tensor, bias: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """Return z, (B, n), in float64 on the CPU, which resolves the least likely levels."""
        h, has_ink = self.norm(h), x > 0
        a, v = float64(self.ink(h).squeeze(-1)).sigmoid(), 1 - float64(u)
        tail = a + (1 - a) * v
        q = float64(self.level_logits(h, bias, has_ink)).softmax(1)
        above = q.flip(1).cumsum(1).flip(1) - q  # probability of a higher level
        level, has_ink = x[has_ink].cpu()[:, None] - 1, has_ink.cpu()
        above, q = above.gather(1, level).squeeze(1), q.gather(1, level).squeeze(1)
        tail[has_ink] = a[has_ink] * (above + q * v[has_ink])
        return -torch.special.ndtri(tail.clamp(1e-300, 1 - 2**-53))

    def decode(self, h: Tensor, bias: Tensor, z: Tensor) -> Tensor:
        """Return x, (B, n), for z (B, n): the inverse of encode, whatever u was."""
        h, tail = self.norm(h), torch.special.ndtr(-float64(z))
        a = float64(self.ink(h).squeeze(-1)).sigmoid()
        x, has_ink = torch.zeros(z.shape, dtype=torch.long), tail < a
        q = float64(self.level_logits(h, bias, has_ink.to(h.device))).softmax(1)
        steps = torch.searchsorted(q.flip(1).cumsum(1), (tail / a)[has_ink][:, None], right=True)
        x[has_ink] = (LEVELS - 1 - steps.squeeze(1)).clamp(min=1)
        return x.to(h.device)


class Layer(nn.Module):
    """Causal transformer layer: each cell reads itself and those before it, then thinks."""

    def __init__(self, width: int):
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(),
                                   nn.Linear(4 * width, width))
        for last in (self.mix, self.think[-1]):
            nn.init.zeros_(last.weight)

    def forward(self, h: Tensor, past: list[Tensor]) -> Tensor:
        """Map (B, T, C) to the same shape; past has the keys and values of the cells before."""
        parts = self.queries_keys_values(self.attention_norm(h)).unflatten(2, (3, HEADS, -1))
        query, *new = parts.permute(2, 0, 3, 1, 4)  # each (B, HEADS, T, C / HEADS)
        past[:] = [torch.cat(pair, dim=2) for pair in zip(past, new, strict=True)] if past else new
        key, value = past
        scores = query @ key.mT * query.shape[3] ** -0.5  # (B, HEADS, T, all cells so far)
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=h.device).triu(
            1 + scores.shape[3] - scores.shape[2])
        mixed = scores.masked_fill(later, -math.inf).softmax(dim=3).to(value.dtype) @ value
        h = h + self.mix(mixed.transpose(1, 2).flatten(2))
        return h + self.think(self.norm(h))


class Cells(nn.Module):
    """Features of each cell from those before it alone.

    A cell reads the pixels of the cells near it directly, as a masked convolution would, and the
    rest by attention.
    """

    def __init__(self, embedding: int):
        super().__init__()
        self.near = nn.Linear(len(NEAR) * len(CORNERS) * embedding, WIDTH)
        self.seen = nn.Linear(LEVELS, WIDTH, bias=False)
        self.place = nn.Parameter(0.02 * torch.randn((SIDE // 4) ** 2, WIDTH))
        self.layers = nn.ModuleList(Layer(WIDTH) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, near: Tensor, seen: Tensor, here: Tensor, past: list[list]) -> Tensor:
        """Return h (B, T, C) for the embedded pixels near (B, T, 40 E) of the cells here (T,)."""
        h = self.near(near) + self.seen(seen) + self.place[here]
        for layer, before in zip(self.layers, past, strict=True):
            h = layer(h, before)
        return self.norm(h)


class Block(nn.Module):
    """Residual block: two layers, the first of which reads the 3 x 3 cells around each."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(), nn.Conv2d(width, width, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, C, S, S) to the same shape."""
        return h + self.layers(h)


class Step(nn.Module):
    """What comes before a group is drawn: read the pixels drawn last, and change h by them."""

    def __init__(self, embedding: int):
        super().__init__()
        self.read = nn.Conv2d(embedding, CHANNELS, 3, padding=1)
        self.read_seen = nn.Linear(LEVELS, CHANNELS, bias=False)
        self.repeat = nn.Parameter(torch.zeros(LEVELS - 1))
        self.blocks = nn.Sequential(*(Block(CHANNELS) for _ in range(BLOCKS)))
        self.pixels = Pixels(CHANNELS)

    def forward(self, h: Tensor, new: Tensor, seen: Tensor) -> Tensor:
        """Return h (B, C, 14, 14), having read the embedded pixels new (B, 196, E)."""
        new = new.mT.unflatten(2, h.shape[2:])
        return self.blocks(h + self.read(new) + self.read_seen(seen)[:, :, None, None])


class Model(nn.Module):
    """An exact distribution of images 0..255, and the flow that it defines."""

    def __init__(self, embedding: int = 16):
        super().__init__()
        cells = torch.stack([grid(4, *corner).flatten() for corner in CORNERS], dim=1)  # (49, 4)
        fine = torch.stack([grid(2, *first).flatten() for first in FINE])  # (4, 196)
        outside = torch.full((1, len(CORNERS)), SIDE**2)
        near = torch.cat((cells, outside))[cells_near()].flatten(1)  # (49, 40)
        for name, pixels in {"cells": cells, "fine": fine, "near": near}.items():
            self.register_buffer(name, pixels, persistent=False)
        self.embed = nn.Embedding(LEVELS + 1, embedding)  # the last for pixels outside
        self.coarse = Cells(embedding)
        self.corners = nn.ModuleList(nn.Linear(WIDTH + i * embedding, WIDTH) for i in range(4))
        self.corner_pixels = nn.ModuleList(Pixels(WIDTH) for _ in CORNERS)
        self.repeat = nn.Parameter(torch.zeros(len(CORNERS), LEVELS - 1))
        self.place = nn.Parameter(torch.zeros(1, CHANNELS, SIDE // 2, SIDE // 2))
        self.steps = nn.ModuleList(Step(embedding) for _ in range(3))

    def start_at(self, images: Tensor) -> None:
        """Let the untrained model give each pixel nearly the distribution of all pixels."""
        counts = torch.bincount(images.flatten().long(), minlength=LEVELS) + 1.0
        for part in self.modules():
            if isinstance(part, Pixels):
                nn.init.constant_(part.ink.bias, (counts[1:].sum() / counts[0]).log().item())
                part.levels.bias.data.copy_((counts[1:] / counts[1:].sum()).log())

    def scan(self, couple: Callable, n: int, known: Tensor | None = None) -> Tensor:
        """Go through the groups once; return the images (n, 784), whole numbers.

        A group of the last three depends on those before it alone, whatever the networks compute:
        they see only what ``couple`` has returned. With ``known``, that a cell does rests on the
        cells that it reads, on the attention's mask and on counts of earlier cells.

        Args:
            couple: takes a group's ``Pixels``, its h (n, m, C), bias (n, m or 1, 255) and the
                indices (m,) of its pixels; returns their values, (n, m).
            known: the images (n, 784), where ``couple`` returns theirs: all cells then take one
                pass, not one each.
        """
        x = torch.zeros(n, SIDE**2 + 1, dtype=torch.long, device=self.place.device)
        x[:, -1] = LEVELS  # outside
        if known is not None:
            x[:, self.cells] = known[:, self.cells]
        past = [[] for _ in self.coarse.layers]
        counts = levels_of(x[:, :0], self.place.dtype)[:, None]  # (n, 1, 256), of nothing yet
        here = torch.arange(len(self.cells), device=x.device)
        for some in here.split(1 if known is None else len(here)):
            counts = self._draw_cells(couple, x, some, counts, past)
        h = self.place.expand(n, -1, -1, -1)
        for step, read, drawn in zip(self.steps, self.fine, self.fine[1:], strict=False):
            seen = counts.log1p()
            h = step(h, self.embed(x[:, read]), seen[:, 0])
            x[:, drawn] = couple(step.pixels, h.flatten(2).mT, step.repeat * seen[..., 1:], drawn)
            counts = counts + levels_of(x[:, drawn], counts.dtype)[:, None]
        return x[:, :-1]

    def _draw_cells(self, couple: Callable, x: Tensor, here: Tensor, counts: Tensor, past: list
                    ) -> Tensor:
        """Draw the cells here (T,) into x, corner by corner; return the counts with theirs."""
        shown = levels_of(x[:, self.cells[here]], counts.dtype)  # (n, T, 256)
        seen = (counts + shown.cumsum(dim=1) - shown).log1p()
        h = self.coarse(self.embed(x[:, self.near[here]]).flatten(2), seen, here, past)
        drawn = []
        for i, (corner, pixels) in enumerate(zip(self.corners, self.corner_pixels, strict=True)):
            indices = self.cells[here, i]
            x[:, indices] = couple(pixels, F.silu(corner(torch.cat((h, *drawn), dim=2))),
                                   self.repeat[i] * seen[..., 1:], indices)
            drawn.append(self.embed(x[:, indices]))
        shown = levels_of(x[:, self.cells[here]], counts.dtype)
        return counts + shown.sum(dim=1, keepdim=True)

    def log_probs(self, x: Tensor) -> Tensor:
        """Return log P of each pixel given those before it, (B, 784) nats, for x in 0..255."""
        x, parts, order = x.long(), [], []

        def couple(pixels: Pixels, h: Tensor, bias: Tensor, indices: Tensor) -> Tensor:
            parts.append(pixels.log_prob(h, bias, x[:, indices]))
            order.append(indices)
            return x[:, indices]

        self.scan(couple, len(x), x)
        return torch.cat(parts, dim=1)[:, torch.cat(order).argsort()]

    def forward(self, input: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return log P(x), (B,) nats, for images x (B, 784) in 0..255; it needs no noise."""
        return self.log_probs(input).sum(dim=1)

    def encode(self, x: Tensor, noise: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return z = f(x + u), (B, 784), and the log-determinant, (B,), in float64 on the CPU."""
        z = self.encode_at(x.long(), torch.rand(x.shape, generator=noise, dtype=torch.float64))
        return z, float64(self(x)) - nf.log_prior(z).sum(dim=1)

    def encode_at(self, x: Tensor, u: Tensor) -> Tensor:
        """Return z = f(x + u), (B, 784), for whole numbers x and noise u (B, 784)."""
        z = torch.empty(x.shape, dtype=torch.float64)

        def couple(pixels: Pixels, h: Tensor, bias: Tensor, indices: Tensor) -> Tensor:
            here = indices.cpu()
            z[:, here] = pixels.encode(h, bias, x[:, indices], u[:, here])
            return x[:, indices]

        self.scan(couple, len(x), x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return f^-1(z) as an image, (B, 784), whole numbers in 0..255."""
        def draw(z: Tensor) -> Tensor:
            return self.scan(lambda pixels, h, bias, indices: pixels.decode(
                h, bias, z[:, indices.cpu()]), len(z))

        z = float64(z)
        return torch.cat([draw(part) for part in z.split(DRAWN_TOGETHER)]).to(self.place.dtype)

    @torch.no_grad()
    def sample(self, n_samples: int, noise: torch.Generator | None = None) -> Tensor:
        """Draw z ~ N(0, I) and return the images f^-1(z), (n_samples, 784) in 0..255."""
        return self.decode(nf.sample_prior((n_samples, SIDE**2), noise))


# Main --------------------------------------------------------------------------------------------

@torch.no_grad()
def evaluate(run: Run, model: nn.Module, test) -> dict:
    """Return the final numbers: the last epoch's, and test's, on which nothing is chosen."""
    x = test.pixels(test.images[:ROUND_TRIPS])
    z, _ = model.encode(x, random_stream(run.args.seed, "round trip"))
    bits, by_region = spent_bits(model.log_probs, test)
    save_bits_map(bits, run.figure("bits.pdf"))
    return {"untrained_bits_per_dim": run.history[0]["val_bits_per_dim"], **run.last_numbers(),
            "test_bits_per_dim": bits.mean().item(), **by_region,
            "test_group_bits_per_dim": [bits[group.cpu()].mean().item() for group in (
                *model.cells.T, *model.fine[1:])],
            "test_wrong_round_trips": (model.decode(z) != x).any(dim=1).sum().item(),
            "parameters": sum(part.numel() for part in model.parameters())}


def main(argv: Sequence[str] | None = None) -> dict:
    """Train, draw the figures, evaluate once on test; return the results as written."""
    args = parse_args(argv)
    data = train, _, test = mnist(args.data_root, args.batch_size, dataset=args.dataset,
                                  device=args.device, seed=args.seed, limit=args.limit,
                                  augment=RandomShift(1).to(args.device))
    run = Run(run_name("nf-multiscale", args, train.source, "mnist"), args, train.source)
    model = Model().to(run.device, memory_format=torch.channels_last)
    model.start_at(train.images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True)

    nf.fit(run, model, data, optimizer)
    save_training_figures(run)
    run.reload()
    model.eval()
    save_latent_figures(run, model, test)
    return run.finish(**evaluate(run, model, test))


if __name__ == "__main__":
    exit_with(main)
