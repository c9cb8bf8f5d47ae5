"""The objectives that a GAN can be trained with, as pure functions of D's logits.

Every loss is minimised. A logit is D's output before the sigmoid, (B, 1): real_a of real images
and fake_a of generated ones; D = sigmoid(a) is the probability of being real. Hinge, least
squares and Wasserstein use the logit itself as a score; a sigmoid of it then means nothing.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTY_WEIGHT = 10.0  # of Gulrajani et al. (2017), algorithm 1


def discriminator_loss(real_a: Tensor, fake_a: Tensor) -> Tensor:
    """Return -V = -E[log D(x)] - E[log(1 - D(G(z)))], log 4 where D = 1/2, in nats.

    Goodfellow et al. (2014), eq. 1.
    """
    return F.softplus(-real_a).mean() + F.softplus(fake_a).mean()


def nonsaturating_loss(fake_a: Tensor) -> Tensor:
    """Return -E[log D(G(z))], log 2 where D = 1/2, in nats.

    Goodfellow et al. (2014), section 3. Its slope in the logit is D - 1: steep where D rejects.
    """
    return F.softplus(-fake_a).mean()


def minimax_loss(fake_a: Tensor) -> Tensor:
    """Return E[log(1 - D(G(z)))], -log 2 where D = 1/2, in nats.

    Goodfellow et al. (2014), eq. 1. Its slope in the logit is -D: it vanishes where D rejects.
    """
    return -F.softplus(fake_a).mean()


def hinge_discriminator_loss(real_a: Tensor, fake_a: Tensor) -> Tensor:
    """Return E[max(0, 1 - a(x))] + E[max(0, 1 + a(G(z)))] (Lim & Ye 2017)."""
    return F.relu(1 - real_a).mean() + F.relu(1 + fake_a).mean()


def least_squares_discriminator_loss(real_a: Tensor, fake_a: Tensor) -> Tensor:
    """Return E[(a(x) - 1)^2] / 2 + E[a(G(z))^2] / 2 (Mao et al. 2017, eq. 9)."""
    return 0.5 * ((real_a - 1) ** 2).mean() + 0.5 * (fake_a**2).mean()


def least_squares_generator_loss(fake_a: Tensor) -> Tensor:
    """Return E[(a(G(z)) - 1)^2] / 2 (Mao et al. 2017, eq. 9)."""
    return 0.5 * ((fake_a - 1) ** 2).mean()


def critic_loss(real_a: Tensor, fake_a: Tensor) -> Tensor:
    """Return E[a(G(z))] - E[a(x)] (Arjovsky et al. 2017); needs the gradient penalty."""
    return fake_a.mean() - real_a.mean()


def critic_generator_loss(fake_a: Tensor) -> Tensor:
    """Return -E[a(G(z))]: of the hinge and of the Wasserstein GAN."""
    return -fake_a.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], x: Tensor, fake: Tensor) -> Tensor:
    """Return E[(|grad a(y)| - 1)^2], y uniform between x and fake (Gulrajani et al. 2017, eq. 3).

    Args:
        critic: images (B, 784) to scores (B, 1), each of its own image only.
        x, fake: (B, 784) real and generated images.
    """
    share = torch.rand(len(x), 1, dtype=x.dtype, device=x.device)
    between = torch.lerp(x, fake, share).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return ((gradient.norm(dim=1) - 1) ** 2).mean()


# Name: the loss of D, the loss of G.
LOSSES = {
    "nonsaturating": (discriminator_loss, nonsaturating_loss),
    "minimax": (discriminator_loss, minimax_loss),
    "hinge": (hinge_discriminator_loss, critic_generator_loss),
    "least_squares": (least_squares_discriminator_loss, least_squares_generator_loss),
    "wasserstein": (critic_loss, critic_generator_loss),
}
