"""The objectives that a GAN can be trained with, and what steadies its training.

Every loss is a pure function of D's logits, and minimised. A logit is D's output before the
sigmoid, (B, 1): real_a of real images and fake_a of generated ones; D = sigmoid(a) is the
probability of being real. Hinge, least squares and Wasserstein use the logit itself as a score; a
sigmoid of it then means nothing.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        critic: images (B, 784) to scores (B, 1), each of its own image; with MinibatchDeviation
            also of its group's, and the gradient is that of all their sum.
        x, fake: (B, 784) real and generated images.
    """
    share = torch.rand(len(x), 1, dtype=x.dtype, device=x.device)
    between = torch.lerp(x, fake, share).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return ((gradient.norm(dim=1) - 1) ** 2).mean()


def output(loss: str, a: Tensor) -> Tensor:
    """Return D's output as its objective reads it: a probability, or the score a itself."""
    return a.sigmoid() if loss in PROBABILITIES else a


def right_share(loss: str, real_a: Tensor, fake_a: Tensor) -> Tensor:
    """Return the share of images that D takes for what they are, by the middle of its logits.

    Least squares aims at 1 and 0, the others to both sides of 0. Wasserstein's critic only
    compares: it has no middle, and the share no meaning.
    """
    middle = 0.5 if loss == "least_squares" else 0.0
    return 0.5 * ((real_a > middle).float().mean() + (fake_a < middle).float().mean())


def r1_penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return E[|grad a(x)|^2] / 2 at real images x (B, 784) (Mescheder et al. 2018, eq. 9).

    It keeps D flat around the data, so that G comes to rest there.
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return 0.5 * (gradient**2).sum(dim=1).mean()


def penalties(loss: str, critic: Callable[[Tensor], Tensor], x: Tensor, fake: Tensor,
              r1_weight: float) -> Tensor | float:
    """Return what D's objective adds to its loss: Wasserstein's penalty, R1 if it has weight."""
    total = PENALTY_WEIGHT * gradient_penalty(critic, x, fake) if loss == "wasserstein" else 0.0
    return total + (r1_weight * r1_penalty(critic, x) if r1_weight else 0.0)


class MinibatchDeviation(nn.Module):
    """Append one feature: how much a group of images differs, the same for all of them.

        s = mean over features f of sqrt(var_group(h_f) + 1e-8)

    A generator that varies too little, or draws one image again and again, then shows in its
    groups (Karras et al. 2018, "Progressive growing of GANs", section 3). So D(x) is the answer
    for an image *among others*: of one alone, or of copies, s is (nearly) 0.

    Args:
        group: neighbouring images compared; if they do not divide the batch, all of it is one
            group. 0 leaves the features as they are.
    """

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, h: Tensor) -> Tensor:
        """Map features (..., B, F) to (..., B, F + 1); batches before the last two stay apart."""
        if not self.group:
            return h
        size = self.group if h.shape[-2] % self.group == 0 else h.shape[-2]
        groups = h.float().unflatten(-2, (-1, size))  # (..., B / size, size, F)
        apart = groups - groups.mean(dim=-2, keepdim=True)
        s = (apart.square().mean(dim=-2) + 1e-8).sqrt().mean(dim=-1, keepdim=True)
        return torch.cat((h, s.to(h).repeat_interleave(size, dim=-2)), dim=-1)


# Name: the loss of D, the loss of G.
LOSSES = {
    "nonsaturating": (discriminator_loss, nonsaturating_loss),
    "minimax": (discriminator_loss, minimax_loss),
    "hinge": (hinge_discriminator_loss, critic_generator_loss),
    "least_squares": (least_squares_discriminator_loss, least_squares_generator_loss),
    "wasserstein": (critic_loss, critic_generator_loss),
}
PROBABILITIES = ("nonsaturating", "minimax")  # the objectives of D = sigmoid(a), in nats
# Where p_g = p_data and D is the best against it: the losses of D and G, and D's output; None
# where that leaves D's scores open.
AT_REST = {
    "nonsaturating": (math.log(4), math.log(2), 0.5),
    "minimax": (math.log(4), -math.log(2), 0.5),
    "hinge": (2.0, None, None),
    "least_squares": (1 / 4, 1 / 8, 0.5),
    "wasserstein": (0.0, None, None),
}
