"""Question 2.4 as an experiment: which loss still teaches G when D rejects its images?

G stays as it was initialised while D learns (after Arjovsky & Bottou 2017, section 2). After each
of D's updates, the norm of the gradient that G would get is measured for both losses.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import figures
from gan_losses import discriminator_loss, minimax_loss, nonsaturating_loss

GENERATOR_LOSSES = {"minimax": minimax_loss, "nonsaturating": nonsaturating_loss}


def saturation(generator: nn.Module, discriminator: nn.Module, optimizer_D: torch.optim.Optimizer,  # noqa: N803
               batches: Sequence[Tensor]) -> dict[str, list[float]]:
    """Train D alone, and measure what G would learn from it.

    Args:
        generator: z (B, latent_dim) to images (B, 784); its weights stay.
        discriminator: with ``logits``, images (B, 784) to (B, 1).
        batches: real images, (B, 784) in [-1, 1]; D makes one update with each.

    Returns:
        the norms of the two gradients, by name, and the mean D(G(z)) as "d_fake"; one value an
        update.
    """
    curves: dict[str, list[float]] = {name: [] for name in (*GENERATOR_LOSSES, "d_fake")}
    noise = [torch.randn(len(x), generator.latent_dim).to(x.device) for x in batches]
    watched = noise[0]
    generator.train()
    for x, z in zip(batches, noise, strict=True):
        discriminator.train()
        loss = discriminator_loss(discriminator.logits(x),
                                  discriminator.logits(generator(z).detach()))
        optimizer_D.zero_grad()
        loss.backward()
        optimizer_D.step()

        discriminator.eval()  # nothing random in what is measured
        fake_a = discriminator.logits(generator(watched))
        for name, g_loss in GENERATOR_LOSSES.items():
            gradients = torch.autograd.grad(g_loss(fake_a), list(generator.parameters()),
                                            retain_graph=True)
            curves[name].append(nn.utils.get_total_norm(gradients).item())
        curves["d_fake"].append(fake_a.sigmoid().mean().item())
    return curves


def save_saturation_plot(curves: dict[str, list[float]], filename: Path) -> None:
    """Plot the norms of the two gradients, and D(G(z)), against the updates of D."""
    updates = range(1, len(curves["d_fake"]) + 1)
    with figures.canvas(filename, columns=2) as (norms, outputs):
        norms.semilogy(updates, curves["nonsaturating"], label="of $-\\log D(G(z))$",
                       **figures.VAL)
        norms.semilogy(updates, curves["minimax"], label="of $\\log(1 - D(G(z)))$",
                       **figures.TRAIN)
        norms.set(xlabel="update of $D$", ylabel="gradient norm of $G$")
        norms.legend()
        outputs.semilogy(updates, curves["d_fake"], **figures.VAL)
        outputs.set(xlabel="update of $D$", ylabel="mean $D(G(z))$")
