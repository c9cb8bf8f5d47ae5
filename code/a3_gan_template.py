"""Generative adversarial network on MNIST (questions 2.5-2.7).

Goodfellow et al. (2014), "Generative adversarial nets": a generator G and a discriminator D play

    min_G max_D V(D, G) = E_data[log D(x)] + E_z[log(1 - D(G(z)))].

For a fixed G the best D is p_data / (p_data + p_g), and V is lowest, -log 4, where p_g = p_data
and D = 1/2 everywhere. In training, G instead maximises log D(G(z)) (their section 3), whose
gradient does not vanish while D wins; other objectives are in gan_losses.py.

    x       (B, 784)   pixels in [-1, 1]
    z       (B, d)     noise, N(0, I); d = --latent_dim
    fake    (B, 784)   G(z), in [-1, 1]
    real_a  (B, 1)     D's logit on x: D(x) = sigmoid(real_a)
    fake_a  (B, 1)     D's logit on G(z)

    python code/a3_gan_template.py                      # all 200 epochs
    python code/a3_gan_template.py --recipe template    # the course's plain recipe, to compare
"""

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import figures
from cli import exit_with, flags, positive_int, run_name
from datasets import mnist, moved, shift_table
from digit_classifier import classify, sample_quality, trained_classifier
from gan_losses import LOSSES, PENALTY_WEIGHT, gradient_penalty
from gan_saturation import saturation, save_saturation_plot
from latents import lerp, slerp
from runs import Run, RunError, one_cycle, progress
from runs import generator as random_generator
from sample_metrics import nearest

EPOCHS = 200
FULL_PRECISION = nullcontext()  # in place of run.autocast()
SATURATION_UPDATES = 200  # in the demonstration of question 2.4
EVALUATION_SAMPLES = 10_000
HEALTH = ("d_loss", "g_loss", "d_real", "d_fake", "d_fake_after", "d_accuracy")
# The course's plain recipe and ours: learning rate and its schedule, Adam's betas, pixels by which
# images are moved on their way into D, decay of the exponential average of G's weights.
RECIPES = {
    "default": {"lr": 5e-4, "schedule": True, "betas": (0.5, 0.999), "shift": 1, "ema": 0.999},
    "template": {"lr": 2e-4, "schedule": False, "betas": (0.9, 0.999), "shift": 0, "ema": None},
}


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    parser = flags("Train a GAN on MNIST.", epochs=EPOCHS, lr=None, batch_size=64,
                   sources=("mnist", "sample"), epochs_alias="--n_epochs")
    add = parser.add_argument
    add("--latent_dim", type=positive_int, default=100, metavar="D", help="dimensions of z")
    add("--loss", choices=LOSSES, default="nonsaturating", help="objectives of D and G")
    add("--recipe", choices=RECIPES, default="default",
        help="ours, or the course's plain one; each has an --lr of its own")
    add("--save_interval", type=positive_int, default=None, metavar="N",
        help="also write 25 samples every N updates (None: never)")
    args = parser.parse_args(argv)
    args.lr = args.lr or RECIPES[args.recipe]["lr"]
    return args


# ---------------------------------------------------------------------------------------------
# Mathematics
# ---------------------------------------------------------------------------------------------

def scaled(x: Tensor) -> Tensor:
    """Map pixels 0..255 to [-1, 1], the range of tanh."""
    return x / 127.5 - 1


def grey(images: Tensor) -> Tensor:
    """Map [-1, 1] to grey values in [0, 1]."""
    return (images + 1) / 2


def health(d_loss: Tensor, g_loss: Tensor, real_a: Tensor, fake_a: Tensor, after_a: Tensor
           ) -> Tensor:
    """Return the numbers of HEALTH for a batch, summed over its images.

    Both losses, the means of D(x) and of D(G(z)) before and after D's own step, and the share of
    the images, real and generated, that D tells right by the sign of its logit.
    """
    right = 0.5 * ((real_a > 0).float() + (fake_a < 0).float())
    outputs = [a.sigmoid().mean() for a in (real_a, fake_a, after_a)]
    return len(real_a) * torch.stack((d_loss, g_loss, *outputs, right.mean())).detach()


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------

class Generator(nn.Module):
    """G: noise to an image, through 128, 256, 512 and 1024 units."""

    def __init__(self, latent_dim: int = 100):
        super().__init__()
        self.latent_dim = latent_dim
        layers: list[nn.Module] = [nn.Linear(latent_dim, 128), nn.LeakyReLU(0.2)]
        for n_in, n_out in pairwise((128, 256, 512, 1024)):
            layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(1024, 784), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Return images, (B, 784) in [-1, 1], for noise z (B, latent_dim)."""
        return self.net(z).to(z.dtype)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return G(z) with batch normalisation in eval mode, whatever mode G is in.

        An image then depends on its own z only, not on the others of the batch.
        """
        mode = self.training
        images = self.eval()(z.to(self.net[0].weight.device))
        self.train(mode)
        return images

    def sample(self, n_samples: int, noise: torch.Generator | None = None) -> Tensor:
        """Return G(z) for z ~ N(0, I), (n_samples, 784) in [-1, 1], in eval mode."""
        return self.decode(torch.randn(n_samples, self.latent_dim, generator=noise))


class RandomShift(nn.Module):
    """Move each image by up to so many pixels a side, in training only.

    So D cannot learn the training images by heart. Generated images are moved alike, and the
    gradient passes, or G would learn to draw moved digits (Zhao et al. 2020, DiffAugment).
    """

    def __init__(self, pixels: int):
        super().__init__()
        self.register_buffer("moves", shift_table(pixels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images x (B, 784), moved, with edges repeated."""
        return moved(x, self.moves) if self.training and len(self.moves) > 1 else x


class Discriminator(nn.Module):
    """D: an image to the probability that it is real, through 512 and 256 units."""

    def __init__(self, shift: int = 0):
        super().__init__()
        self.net = nn.Sequential(
            RandomShift(shift),
            nn.Linear(784, 512), nn.LeakyReLU(0.2),
            nn.Linear(512, 256), nn.LeakyReLU(0.2),
            nn.Linear(256, 1))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of D(x), (B, 1), for images x (B, 784) in [-1, 1]."""
        return self.net(x).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return D(x), (B, 1) in [0, 1], for images x (B, 784) in [-1, 1]."""
        return torch.sigmoid(self.logits(x))


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------

def update(x: Tensor, z: Tensor, discriminator: Discriminator, generator: Generator,
           optimizer_G, optimizer_D, loss: str, autocast=FULL_PRECISION) -> Tensor:  # noqa: N803
    """Take one step of D on its objective, then one of G on its own; return their health."""
    d_loss, g_loss = LOSSES[loss]

    # D minimises L_D(D(x), D(fake)), with fake a constant.
    with autocast:
        fake = generator(z)  # (B, 784)
        real_a, fake_a = discriminator.logits(torch.cat((x, fake.detach()))).chunk(2)  # (B, 1)
        d_value = d_loss(real_a, fake_a)
        penalty = 0.0
        if loss == "wasserstein":
            penalty = PENALTY_WEIGHT * gradient_penalty(discriminator.logits, x, fake.detach())
    optimizer_D.zero_grad()
    (d_value + penalty).backward()
    optimizer_D.step()

    # G minimises L_G(D(fake)), with D a constant through which the gradient passes.
    discriminator.requires_grad_(False)
    with autocast:
        after_a = discriminator.logits(fake)  # (B, 1)
        g_value = g_loss(after_a)
    optimizer_G.zero_grad()
    g_value.backward()
    optimizer_G.step()
    discriminator.requires_grad_(True)

    return health(d_value, g_value, real_a, fake_a, after_a)


def averages(sums: list[Tensor], images: int) -> dict[str, float]:
    """Divide the sums of an epoch once, by the number of images."""
    total = torch.stack(sums).cpu().double().sum(dim=0)
    return dict(zip(HEALTH, (total / images).tolist(), strict=True))


def train(dataloader, discriminator: Discriminator, generator: Generator, optimizer_G,  # noqa: N803
          optimizer_D, loss: str = "nonsaturating", autocast=FULL_PRECISION,  # noqa: N803
          after_update: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Train for one epoch.

    Args:
        loss: one of LOSSES.
        after_update: is called after each update.

    Returns:
        the numbers of HEALTH, averaged over the images, as they were trained.
    """
    discriminator.train()
    generator.train()
    sums = []
    for x in progress(dataloader):
        z = torch.randn(len(x), generator.latent_dim, device=x.device)
        sums.append(update(scaled(x), z, discriminator, generator, optimizer_G, optimizer_D,
                           loss, autocast))
        after_update()
    return averages(sums, len(dataloader.images))


@torch.no_grad()
def evaluate(dataloader, discriminator: Discriminator, generator: Generator,
             loss: str = "nonsaturating") -> dict[str, float]:
    """Return the numbers of HEALTH, without training, always with the same noise."""
    d_loss, g_loss = LOSSES[loss]
    discriminator.eval()
    images, sums = dataloader.images, []
    z = torch.randn(len(images), generator.latent_dim, generator=random_generator(0, "evaluation"))
    for x, noise in zip(dataloader, z.split(dataloader.batch_size), strict=True):
        real_a = discriminator.logits(scaled(x))
        fake_a = discriminator.logits(generator.decode(noise))
        sums.append(health(d_loss(real_a, fake_a), g_loss(fake_a), real_a, fake_a, fake_a))
    return averages(sums, len(images))


def run_epoch(data, parts: dict, loss: str, optimize: bool, autocast=FULL_PRECISION,
              after_update: Callable[[], None] = lambda: None) -> tuple[dict, dict]:
    """Train on the first split and evaluate on the second; or else evaluate both.

    Args:
        parts: networks and optimizers, by the names of the arguments of ``train``.
    """
    traindata, valdata = data
    players = {key: parts[key] for key in ("discriminator", "generator")}
    optimizers = {key: parts[key] for key in ("optimizer_G", "optimizer_D")}
    numbers = (train(traindata, **players, **optimizers, loss=loss, autocast=autocast,
                     after_update=after_update)
               if optimize else evaluate(traindata, **players, loss=loss))
    return numbers, evaluate(valdata, **players, loss=loss)


def networks(args, device: str, updates: int) -> dict:
    """Return what is trained: networks, optimizers, and what the recipe adds to them.

    Args:
        updates: length of the learning rate's schedule.
    """
    recipe = RECIPES[args.recipe]
    parts = {"generator": Generator(args.latent_dim).to(device),
             "discriminator": Discriminator(recipe["shift"]).to(device)}
    for key, network in (("G", "generator"), ("D", "discriminator")):
        optimizer = parts[f"optimizer_{key}"] = torch.optim.Adam(
            parts[network].parameters(), lr=args.lr, betas=recipe["betas"], fused=True)
        if recipe["schedule"]:
            parts[f"scheduler_{key}"] = one_cycle(optimizer, updates, cycle_momentum=False)
    if recipe["ema"] is not None:
        decay = get_ema_multi_avg_fn(recipe["ema"])
        parts["average"] = AveragedModel(parts["generator"], multi_avg_fn=decay)
    return parts


def follow(parts: dict) -> None:
    """End an update: step the schedules, and the average of G."""
    for key in ("scheduler_G", "scheduler_D"):
        if key in parts:
            parts[key].step()
    if "average" in parts:
        parts["average"].update_parameters(parts["generator"])


def sampler(parts: dict, seed: int) -> Generator:
    """Return the generator to draw from: the average of G where there is one.

    Averaged weights have other batch statistics than the last ones: they are taken anew.
    """
    if "average" not in parts:
        return parts["generator"]
    generator = parts["average"].module
    z = torch.randn(10_000, generator.latent_dim, generator=random_generator(seed, "statistics"))
    with torch.no_grad():
        update_bn(z.to(generator.net[0].weight.device).split(1000), generator)
    return generator


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------

def save_loss_plot(history: Sequence[dict], loss: str, filename: Path):
    """Plot losses and D's outputs; of the default loss with their values where p_g = p_data."""
    panels = [(("d_loss", "$L_D$"), ("g_loss", "$L_G$"), "loss [nats]"),
              (("d_real", "$D(x)$"), ("d_fake", "$D(G(z))$"), "mean output of $D$")]
    references = [((math.log(4), "log 4"), (math.log(2), "log 2")), ((0.5, "1/2"),)]
    with figures.canvas(filename, columns=2) as axes:
        for axis, (*curves, label), levels in zip(axes, panels, references, strict=True):
            for (key, name), style in zip(curves, (figures.VAL, figures.TRAIN), strict=True):
                axis.plot([row[key] for row in history], label=name, **style)
            for level, name in levels if loss == "nonsaturating" else ():
                axis.axhline(level, color="0.4", linewidth=0.6, linestyle=":")
                axis.annotate(name, (len(history) - 1, level), fontsize=7, ha="right", va="bottom")
            axis.set_ylabel(label)
            figures.epochs(axis)
            axis.legend()


def save_training_figures(run: Run):
    """Draw the curves and, for the moments that were reached, samples."""
    save_loss_plot(run.history, run.args.loss, run.figure("losses.pdf"))
    moments = [run.snapshots[epoch] for epoch in sorted(run.snapshots)]
    for name, moment in run.named_moments():
        figures.save_png(figures.tile(moment["samples"], 5), run.figure(f"samples-{name}.png"))
    gallery = [figures.tile(moment["samples"][:16], 4) for moment in moments]
    figures.save_png(figures.join(gallery, axis=1), run.figure("gallery.png"))


def save_latent_figures(run: Run, generator: Generator, classifier, train_images: Tensor
                        ) -> list[int]:
    """Draw walks between two classes, a chain of walks, and the nearest training images.

    Returns:
        the digits at both ends of the walks, as the classifier sees them.
    """
    z = torch.randn(1000, run.args.latent_dim, generator=random_generator(run.args.seed, "walks"))
    images = grey(generator.decode(z))
    digits, probabilities = (value.cpu() for value in classify(classifier, images))
    start = int(probabilities.argmax())
    end = int(torch.where(digits == digits[start], 0, probabilities).argmax())
    walks = torch.cat([walk(z[start], z[end], steps=9) for walk in (lerp, slerp)])
    figures.save_png(figures.tile(grey(generator.decode(walks)), 9),
                     run.figure("interpolation.png"))
    chain = torch.cat([slerp(one, other, steps=9) for one, other in pairwise(z[:6])])
    figures.save_png(figures.tile(grey(generator.decode(chain)), 9), run.figure("chain.png"))
    _, index = nearest(images[:10], train_images)
    pairs = torch.cat((images[:10], train_images[index]))
    figures.save_png(figures.tile(pairs, 10), run.figure("nearest.png"))
    return [int(digits[start]), int(digits[end])]


# ---------------------------------------------------------------------------------------------
# Main
# ---------------------------------------------------------------------------------------------

def main(argv: Sequence[str] | None = None) -> dict:
    """Train, draw the figures, judge the samples; return the results as written."""
    args = parse_args(argv)
    data = train_data, val, test = mnist(args.data_root, args.batch_size, dataset=args.dataset,
                                         device=args.device, seed=args.seed, limit=args.limit)
    if len(train_data.images) % args.batch_size == 1 or args.batch_size == 1:
        raise RunError(f"'--batch_size {args.batch_size}' leaves a batch of one image, on which "
                       "batch normalisation cannot train; give another")
    method = "gan" if args.recipe == "default" else f"gan-{args.recipe}"
    run = Run(run_name(method, args, parse_args(["--recipe", args.recipe]), train_data.source,
                       "mnist"), args, train_data.source)
    parts = networks(args, run.device, args.epochs * len(train_data))
    run.keep(**parts, order=train_data.generator)
    updates = max(0, len(run.history) - 1) * len(train_data)

    def after_update() -> None:
        nonlocal updates
        updates += 1
        follow(parts)
        if args.save_interval and updates % args.save_interval == 0:
            figures.save_png(figures.tile(moment()["samples"], 5),
                             run.figure(f"update-{updates:06}.png"))

    def moment() -> dict[str, Tensor]:
        noise = random_generator(args.seed, "figures")  # the same z at every moment
        return {"samples": grey(sampler(parts, args.seed).sample(25, noise)).cpu()}

    with run.training():
        for epoch in run.epochs():  # epoch 0 evaluates the untrained networks
            numbers, held_out = run_epoch(data[:2], parts, args.loss, epoch > 0, run.autocast(),
                                          after_update)
            run.record(**numbers, val_d_loss=held_out["d_loss"],
                       val_d_accuracy=held_out["d_accuracy"])
            if epoch in run.moments:
                run.snapshots[epoch] = moment()

    save_training_figures(run)
    run.reload()
    generator = sampler(parts, args.seed)
    torch.manual_seed(random_generator(args.seed, "saturation").initial_seed())
    new = networks(Namespace(**{**vars(args), "recipe": "template"}), run.device, updates=1)
    batches = scaled(train_data.images).split(args.batch_size)[:SATURATION_UPDATES]
    curves = saturation(new["generator"], new["discriminator"], new["optimizer_D"], batches)
    save_saturation_plot(curves, run.figure("saturation.pdf"))
    classifier, facts = trained_classifier(args.data_root, train_data.source.name, run.device,
                                           run.checkpoint.parent.parent)
    ends = save_latent_figures(run, generator, classifier, train_data.images / 255)
    samples = grey(generator.sample(EVALUATION_SAMPLES, random_generator(args.seed, "test")))
    return run.finish(
        **{key: run.history[-1][key] for key in HEALTH},
        **sample_quality(classifier, samples, val.images / 255, test.images / 255),
        **facts,
        interpolation_classes=ends)


if __name__ == "__main__":
    exit_with(main)
