"""The same trainings written the common way: what benchmark.py --baseline times beside ours.

Pictures are made and transformed one by one behind a DataLoader, networks end in probabilities
for a BCELoss, couplings mask full-size layers, D sees real and generated images in two passes,
and every step waits for the value of its loss. Hidden sizes, learning rates and objectives are
ours, so the tests also compare the mathematics of both; but G steps before D, and the flow's Adam
is not fused.
"""

import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Pictures(Dataset):
    """Images (N, 784) uint8 as torchvision's data sets give them: a transformed picture each."""

    def __init__(self, images: Tensor, transform):
        self.images, self.transform = images.cpu().reshape(-1, 28, 28), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[index].numpy()))


def loader(images: Tensor, batch_size: int, *steps) -> DataLoader:
    """Return shuffled batches of pictures in [0, 1], (B, 1, 28, 28), after further transforms."""
    transform = transforms.Compose([*steps, transforms.ToTensor()])
    return DataLoader(Pictures(images, transform), batch_size, shuffle=True)


# VAE ---------------------------------------------------------------------------------------------

def vae_loss(model: nn.Module, x: Tensor, eps: Tensor) -> Tensor:
    """Return -ELBO of pixels x (B, 784) with noise eps (B, D), averaged, from probabilities."""
    mean, std = model.encoder(x)
    means = model.decoder(mean + std * eps)  # (B, 784)
    reconstruction = F.binary_cross_entropy(means, x, reduction="sum") / len(x)
    kl = 0.5 * (std**2 + mean**2 - 1 - torch.log(std**2)).sum() / len(x)
    return reconstruction + kl


def vae_epoch(model: nn.Module, data: DataLoader, optimizer, device: str) -> float:
    """Train for one epoch; return the mean of the batches' losses."""
    losses = []
    for pictures in data:
        x = pictures.view(-1, 784).to(device)
        loss = vae_loss(model, x, torch.randn(len(x), model.z_dim, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


# Flow --------------------------------------------------------------------------------------------

class MaskedCoupling(nn.Module):
    """A coupling whose layers see all pixels, the changed ones as zeros, and return all."""

    def __init__(self, mask: Tensor, n_hidden: int):
        super().__init__()
        self.register_buffer("mask", mask)  # (1, 784), 1 on the kept pixels
        self.nn = nn.Sequential(
            nn.Linear(784, n_hidden), nn.LayerNorm(n_hidden), nn.SiLU(),
            nn.Linear(n_hidden, n_hidden), nn.LayerNorm(n_hidden), nn.SiLU(),
            nn.Linear(n_hidden, 2 * 784))

    def forward(self, z: Tensor, ldj: Tensor) -> tuple[Tensor, Tensor]:
        """Map z (B, 784) and add the log-determinant to ldj (B,)."""
        h, t = self.nn(z * self.mask).chunk(2, dim=1)
        log_scale = torch.tanh(h) * (1 - self.mask)
        z = z * self.mask + (1 - self.mask) * (z * torch.exp(log_scale) + t)
        return z, ldj + log_scale.sum(dim=1)


def masked_flow(mask: Tensor, n_flows: int, n_hidden: int) -> nn.ModuleList:
    """Return couplings in pairs that keep a mask and its complement."""
    return nn.ModuleList(MaskedCoupling(one, n_hidden)
                         for _ in range(n_flows) for one in (mask, 1 - mask))


def nf_loss(layers: nn.ModuleList, x: Tensor, u: Tensor, alpha: float) -> Tensor:
    """Return -log p(x + u) of pixels x (B, 784) in 0..255, averaged over the images."""
    s = alpha / 2 + (1 - alpha) * (x + u) / 256
    ldj = (math.log((1 - alpha) / 256) - torch.log(s) - torch.log(1 - s)).sum(dim=1)
    z = torch.log(s) - torch.log(1 - s)
    for layer in layers:
        z, ldj = layer(z, ldj)
    log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(dim=1)
    return -(log_prior + ldj).mean()


def nf_epoch(layers: nn.ModuleList, data: DataLoader, optimizer, device: str, alpha: float,
             max_norm: float) -> float:
    """Train for one epoch; return the mean of the batches' losses."""
    losses = []
    for pictures in data:
        x = (pictures * 255).view(-1, 784).to(device)
        loss = nf_loss(layers, x, torch.rand_like(x), alpha)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layers.parameters(), max_norm)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


# GAN ---------------------------------------------------------------------------------------------

def gan_epoch(discriminator: nn.Module, generator: nn.Module, data: DataLoader, optimizer_g,
              optimizer_d, device: str) -> tuple[float, float]:
    """Train for one epoch; return the means of the batches' losses of D and G."""
    losses, bce = [], nn.BCELoss()
    for pictures in data:
        x = (pictures * 2 - 1).view(-1, 784).to(device)
        real, generated = (make(len(x), 1, device=device) for make in (torch.ones, torch.zeros))

        optimizer_g.zero_grad()
        fake = generator(torch.randn(len(x), generator.latent_dim, device=device))
        g_loss = bce(discriminator(fake), real)
        g_loss.backward()
        optimizer_g.step()

        optimizer_d.zero_grad()
        d_loss = bce(discriminator(x), real) + bce(discriminator(fake.detach()), generated)
        d_loss.backward()
        optimizer_d.step()
        losses.append((d_loss.item(), g_loss.item()))
    return tuple(sum(one) / len(one) for one in zip(*losses, strict=True))
