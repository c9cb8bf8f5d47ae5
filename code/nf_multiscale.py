"""Multi-scale convolutional flow on 8-bit MNIST: question 3 with a sense of neighbourhoods.

Like Real NVP, the map f takes an image to z = f(x) group by group: the pixels of a group change,
given those of the groups before it. Three things differ from a3_nf_template.py:

- The groups go from coarse to fine (the multi-scale idea of Dinh et al. 2017; the order of Reed et
  al. 2017, "Parallel multiscale autoregressive density estimation"): a 7 x 7 grid of every fourth
  pixel, one pixel after another (by a masked MLP, Germain et al. 2015, "MADE"), then nine groups
  that double the grid to 14 x 14 and to 28 x 28. Convolutions read what is known so far.
- A coupling is no affine map but the pixel's own distribution function (Ho et al. 2019,
  "Flow++"), here one with a step for each of the 256 grey levels, piecewise linear between them.
- With such steps uniform dequantization loses nothing: log p(x + u) = log P(x) for every u. So
  what is reported is the exact code length of the discrete images, not a bound.

Seen from the pixels it is an autoregressive model with 58 passes; seen from z it is a flow with
a triangular Jacobian, with exact codes, walks and temperatures.

    x      (B, 784)   pixels in 0..255
    h      (B, C, S, S)   features on a grid of S x S cells, S = 7 or 14
    a      (B, n)     probability of ink, P(x > 0), of the n pixels of a group
    q      (m, 255)   probabilities of the grey levels 1..255 of the m pixels with ink
    u      (B, n)     dequantization noise, uniform on (0, 1)
    z      (B, 784)   code, standard normal if the model is right
    seen   (B, 256)   log(1 + how often the image has shown each grey level so far)

    python code/nf_multiscale.py      # 85 min on one core with bfloat16: validation 0.86
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from a3.cli import exit_with, flags, parse, run_name

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import a3_nf_template as nf
from a3.devices import float64
from a3.nf_figures import save_bits_maps, save_latent_figures, save_training_figures
from a3.runs import Run, random_stream
from datasets import RandomShift, mnist

EPOCHS = 10
SIDE, LEVELS = 28, 256  # of images, pixels; of pixels, grey levels
COARSE, FINE = 96, 64  # channels on the 7 x 7 and on the 14 x 14 grid
COARSE_BLOCKS, FINE_BLOCKS = 2, 3  # before each group
DRAWN_TOGETHER = 250  # images that are decoded at once
ROUND_TRIPS = 500  # test images that are encoded and decoded


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    parser = flags("Train a multi-scale convolutional flow on 8-bit MNIST.", epochs=EPOCHS,
                   lr=2e-3, batch_size=128, sources=("mnist", "sample"), precision="auto")
    return parse(parser, argv)


def grid(spacing: int, top: int = 0, left: int = 0) -> Tensor:
    """Return the indices of every so many pixels of an image, (rows, columns)."""
    return torch.arange(SIDE**2).reshape(SIDE, SIDE)[top::spacing, left::spacing]


def groups(spacing: int) -> list[Tensor]:
    """Return the pixels, (n,) indices, of each group that halves the spacing of a known grid.

    In each cell of the grid the upper left pixel is known. The lower right one comes first: all
    others then have known neighbours (quincunx order). On the coarse grid, where strokes can hide
    between known pixels, the cells take turns like the fields of a chessboard.
    """
    half, cells = spacing // 2, torch.arange(SIDE // spacing)
    white = (cells[:, None] + cells) % 2 == 0
    turns = [white | ~white] if half == 1 else [white, ~white]
    return [grid(spacing, top, left)[turn]
            for top, left in ((half, half), (0, half), (half, 0)) for turn in turns]


# Networks ----------------------------------------------------------------------------------------

class Pixels(nn.Module):
    """The distribution of each pixel of a group, and the coupling that it gives.

        P(0) = 1 - a,  P(k) = a q_k           first whether there is ink, then how much
        encode   z = -Phi^-1(S + (1 - u) P(x)),  S = P(X > x)
        decode   x = the pixel with S <= Phi(-z) < S + P(x)
        log |dz / dx| = log P(x) - log N(z; 0, 1)

    Only pixels with ink, a fifth, need the 255 levels, so an exact table of them is affordable.
    They get a bias of their own for each image.
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
        return self.levels(F.silu(self.hidden(h[image, pixel]))) + F.embedding(image, bias)

    def log_prob(self, h: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        """Return log P(x), (B, n) nats, for x (B, n) in 0..255, h (B, n, C), bias (B, 255)."""
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


class MaskedMLP(nn.Module):
    """Features of each pixel of a sequence from those before it alone (MADE, eq. 13-15)."""

    def __init__(self, length: int, c_in: int, c_out: int, hidden: int = 512):
        super().__init__()
        self.c_out = c_out
        self.layers = nn.ModuleList([nn.Linear(length * c_in, hidden), nn.Linear(hidden, hidden),
                                     nn.Linear(hidden, length * c_out)])
        reads = torch.arange(length).repeat_interleave(c_in)  # a unit reads pixels up to its own
        units = torch.arange(hidden) % max(length - 1, 1)
        gives = torch.arange(length).repeat_interleave(c_out)
        for name, mask in (("first", units[:, None] >= reads), ("middle", units[:, None] >= units),
                           ("last", gives[:, None] > units)):
            self.register_buffer(name, mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, length, c_in) to (B, length, c_out)."""
        first, middle, last = (partial(F.linear, weight=layer.weight * mask, bias=layer.bias)
                               for layer, mask in zip(self.layers, (self.first, self.middle,
                                                                    self.last), strict=True))
        h = F.silu(first(x.flatten(1)))  # (B, hidden)
        h = h + F.silu(middle(h))
        return last(h).unflatten(1, (-1, self.c_out))


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
    """What comes before a group is drawn: read the pixels drawn last, and change h by them.

    An image repeats its own grey levels (half of its pixels with ink do so, and the strongest
    is 253 in one image, 254 in another), which convolutions cannot know: hence ``seen``.
    """

    def __init__(self, spacing: int, width: int, blocks: int, embedding: int, reads: Tensor,
                 draws: Tensor):
        super().__init__()
        self.side = SIDE // spacing
        self.register_buffer("reads", reads, persistent=False)  # (m,) pixels of the last group
        self.register_buffer("draws", draws, persistent=False)  # (n,) pixels of this group
        for name, pixels in (("read_cells", reads), ("draw_cells", draws)):
            cells = pixels // SIDE // spacing * self.side + pixels % SIDE // spacing
            self.register_buffer(name, cells, persistent=False)
        self.read = nn.Conv2d(embedding, width, 3, padding=1)
        self.read_seen = nn.Linear(LEVELS, width, bias=False)
        self.repeat = nn.Parameter(torch.zeros(LEVELS - 1))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.pixels = Pixels(width)

    def forward(self, h: Tensor, new: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return h (B, C, S, S) with the embedded pixels new, its n cells (B, n, C), a bias."""
        grid = new.new_zeros(len(new), self.side**2, new.shape[2])
        grid = grid.index_copy(1, self.read_cells, new).unflatten(1, (self.side, self.side))
        h = h + self.read(grid.permute(0, 3, 1, 2)) + self.read_seen(seen)[:, :, None, None]
        h = self.blocks(h)
        cells = h.flatten(2)[:, :, self.draw_cells].transpose(1, 2)  # (B, n, C)
        return h, cells, self.repeat * seen[:, 1:]


class Model(nn.Module):
    """An exact distribution of images 0..255, and the flow that it defines."""

    def __init__(self, embedding: int = 8, base_width: int = 24):
        super().__init__()
        self.register_buffer("grid", grid(4).flatten(), persistent=False)
        self.embed = nn.Embedding(LEVELS, embedding)
        self.base = MaskedMLP(len(self.grid), embedding, base_width)
        self.base_pixels = Pixels(base_width)
        self.start = nn.Parameter(torch.zeros(1, COARSE, SIDE // 4, SIDE // 4))
        self.refine = nn.ConvTranspose2d(COARSE, FINE, 2, 2)
        self.place = nn.Parameter(torch.zeros(1, FINE, SIDE // 2, SIDE // 2))
        self.steps = nn.ModuleList(
            Step(spacing, width, blocks, embedding, reads, draws)
            for spacing, width, blocks in ((4, COARSE, COARSE_BLOCKS), (2, FINE, FINE_BLOCKS))
            for reads, draws in itertools.pairwise([grid(spacing).flatten(), *groups(spacing)]))

    def start_at(self, images: Tensor) -> None:
        """Let the untrained model give each pixel nearly the distribution of all pixels."""
        counts = torch.bincount(images.flatten().long(), minlength=LEVELS) + 1.0
        for part in self.modules():
            if isinstance(part, Pixels):
                nn.init.constant_(part.ink.bias, (counts[1:].sum() / counts[0]).log().item())
                part.levels.bias.data.copy_((counts[1:] / counts[1:].sum()).log())

    def scan(self, couple: Callable, n: int, known: Tensor | None = None) -> Tensor:
        """Go through the groups once; return the images (n, 784), whole numbers.

        The networks see only what ``couple`` has returned, so that a group depends on those
        before it alone, whatever they compute.

        Args:
            couple: takes a group's ``Pixels``, its h (n, m, C), bias (n, 255) and the indices (m,)
                of its pixels; returns their values, (n, m).
            known: the images (n, 784), where ``couple`` returns theirs: the base grid then takes
                one pass, not one a pixel.
        """
        x = torch.zeros(n, SIDE**2, dtype=torch.long, device=self.start.device)
        counts = torch.zeros(n, LEVELS, device=x.device, dtype=self.start.dtype)
        no_bias = counts[:, 1:]
        if known is not None:
            x[:, self.grid] = known[:, self.grid]
        for part in self.grid.split(1 if known is None else len(self.grid)):
            h = self.base(self.embed(x[:, self.grid]))[:, torch.isin(self.grid, part)]
            x[:, part] = couple(self.base_pixels, h, no_bias, part)
        drawn, h = self.grid, self.start.expand(n, -1, -1, -1)
        for step in self.steps:
            values = x[:, drawn]
            counts = counts.scatter_add(1, values, torch.ones_like(values, dtype=counts.dtype))
            if step.side > h.shape[2]:
                h = self.refine(h) + self.place
            h, cells, bias = step(h, self.embed(x[:, step.reads]), counts.log1p())
            drawn = step.draws
            x[:, drawn] = couple(step.pixels, cells, bias, drawn)
        return x

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
        return torch.cat([draw(part) for part in z.split(DRAWN_TOGETHER)]).to(self.start.dtype)

    @torch.no_grad()
    def sample(self, n_samples: int, noise: torch.Generator | None = None) -> Tensor:
        """Draw z ~ N(0, I) and return the images f^-1(z), (n_samples, 784) in 0..255."""
        return self.decode(nf.sample_prior((n_samples, SIDE**2), noise))


# Main --------------------------------------------------------------------------------------------

def regions(x: Tensor) -> dict[str, Tensor]:
    """Return which pixels of x (B, 784) are background, edge or inside of a stroke.

    Background and inside are where all 3 x 3 pixels around are blank, or none is.
    """
    ink = (x > 0).float().unflatten(1, (1, SIDE, SIDE))
    any_ink = F.max_pool2d(ink, 3, 1, 1).flatten(1) > 0
    all_ink = -F.max_pool2d(-F.pad(ink, (1, 1, 1, 1)), 3, 1).flatten(1) > 0
    return {"background": ~any_ink, "edge": any_ink & ~all_ink, "inside": all_ink}


@torch.no_grad()
def spent_bits(log_probs: Callable[[Tensor], Tensor], data) -> tuple[Tensor, dict[str, float]]:
    """Return where bits are spent: each pixel's average, (784,); each region's, an image.

    Args:
        log_probs: images (B, 784) to what each pixel adds to log p, (B, 784) nats.
        data: a Split.
    """
    bits, by_region = torch.zeros(SIDE**2, dtype=torch.float64), {}
    for x in data:
        spent = -float64(log_probs(x)) / math.log(2)
        bits += spent.sum(dim=0)
        for region, chosen in regions(x).items():
            by_region[region] = by_region.get(region, 0.0) + spent[chosen.cpu()].sum().item()
    number = len(data.images)
    return bits / number, {f"test_bits_{key}": value / number for key, value in by_region.items()}


@torch.no_grad()
def evaluate(run: Run, model: nn.Module, test) -> dict:
    """Return the final numbers: the last epoch's, and test's, on which nothing is chosen."""
    x = test.pixels(test.images[:ROUND_TRIPS])
    z, _ = model.encode(x, random_stream(run.args.seed, "round trip"))
    bits, by_region = spent_bits(model.log_probs, test)
    save_bits_maps({"average of the test images": bits}, run.figure("bits.pdf"))
    return {"untrained_bits_per_dim": run.history[0]["val_bits_per_dim"], **run.last_numbers(),
            "test_bits_per_dim": bits.mean().item(), **by_region,
            "test_base_bits_per_dim": bits[model.grid.cpu()].mean().item(),
            "test_group_bits_per_dim": [bits[step.draws.cpu()].mean().item()
                                        for step in model.steps],
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
