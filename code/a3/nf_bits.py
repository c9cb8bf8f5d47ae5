"""Where a flow spends its bits: on each pixel, and on background, edge and inside of a stroke."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a3.devices import float64

SIDE = 28  # of images, pixels


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
def pixel_terms(model: nn.Module, log_prior: Callable[[Tensor], Tensor], x: Tensor,
                noise: torch.Generator) -> Tensor:
    """Return what each pixel adds to the log p(x + u) of affine couplings, (B, 784) nats.

    That is its own prior and the logarithm of its own derivatives: of the logit, and of the scales
    of the couplings that change it.

    Args:
        model: of a3_nf_template.py.
        log_prior: the prior's density, elementwise, in nats.
        x: (B, 784) pixels in 0..255.
        noise: of the dequantization.
    """
    pixels = model.dequantize(x, noise).reshape(-1, 1)
    z, terms = model.logit_normalize(pixels, torch.zeros(len(pixels), device=x.device))
    z, terms = z.reshape(x.shape), terms.reshape(x.shape)
    for layer in model.flow.layers:
        h, _ = layer.nn(z[:, layer.kept]).chunk(2, dim=1)
        terms = terms.index_add(1, layer.changed, torch.tanh(h))
        z, _ = layer(z, terms[:, 0])
    return terms + log_prior(z)
