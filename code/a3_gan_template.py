"""Generative adversarial network on MNIST (questions 2.5-2.7).

Goodfellow et al. (2014), "Generative adversarial nets": a generator G and a discriminator D play

    min_G max_D V(D, G) = E_data[log D(x)] + E_z[log(1 - D(G(z)))].

For a fixed G the best D is p_data / (p_data + p_g), and V is lowest, -log 4, where p_g = p_data
and D = 1/2 everywhere. In training, G instead maximises log D(G(z)) (their section 3), whose
gradient does not vanish while D wins; other objectives are in a3/gan_losses.py.

    x       (B, 784)   pixels in [-1, 1]
    z       (B, d)     noise, N(0, I); d = --latent_dim
    fake    (B, 784)   G(z), in [-1, 1]
    real_a  (B, 1)     D's logit on x: D(x) = sigmoid(real_a)
    fake_a  (B, 1)     D's logit on G(z)

    python code/a3_gan_template.py                      # 11 min on 2 cores: Frechet distance 2
    python code/a3_gan_template.py --recipe template    # 18 min: the course's plain recipe, 25
"""

import itertools
from collections.abc import Sequence
from a3.cli import exit_with, flags, parse, positive_int, run_name, units

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from a3.gan_figures import (
    draw_moment,
    grey,
    save_latent_figures,
    save_training_figures,
    save_update,
)
from a3.gan_losses import LOSSES, MinibatchDeviation, output, penalties, right_share
from a3.judge_classifier import judge, judge_samples
from a3.runs import Run, RunError, epoch_sum, images_in, one_cycle, random_stream
from datasets import RandomShift, mnist

EVALUATION_SAMPLES = 10_000
MEASURES = ("d_loss", "g_loss", "d_real", "d_fake", "d_fake_after", "d_accuracy")
# Ours, our earlier one, the course's: four flags; one-cycle rate; Adam's betas; shift of D's
# images in pixels; images whose deviation D sees; weight of R1, decay of G's average, and at every
# which update there are these two.
RECIPE = ("epochs", "batch_size", "precision", "lr",
          "one_cycle", "betas", "shift", "group", "r1", "ema", "every")
RECIPES = {name: dict(zip(RECIPE, values, strict=True)) for name, values in {
    "default": (180, 128, "auto", 7e-4, True, (0.0, 0.999), 1, 16, 0.02, 0.992, 8),
    "cycle": (200, 64, "float32", 5e-4, True, (0.5, 0.999), 1, 0, 0.0, 0.999, 1),
    "template": (200, 64, "auto", 2e-4, False, (0.9, 0.999), 0, 0, 0.0, None, 1),
}.items()}


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    defaults = {name: {key: recipe[key] for key in RECIPE[:4]} for name, recipe in RECIPES.items()}
    parser = flags("Train a GAN on MNIST.", **defaults["default"], sources=("mnist", "sample"),
                   epochs_alias="--n_epochs")
    add = parser.add_argument
    add("--latent_dim", type=units, default=100, metavar="D", help="dimensions of z")
    add("--loss", choices=LOSSES, default="nonsaturating", help="objectives of D and G")
    add("--recipe", choices=RECIPES, default="default",
        help="ours, our earlier one or the course's; sets --n_epochs, --batch_size, --lr and more")
    add("--save_interval", type=positive_int, default=None, metavar="N",
        help="also write 25 samples every N updates (None: never)")
    return parse(parser, argv, defaults)


# Mathematics -------------------------------------------------------------------------------------

def scaled(x: Tensor) -> Tensor:
    """Map pixels 0..255 to [-1, 1], the range of tanh."""
    return x / 127.5 - 1


def measures(loss: str, d_loss: Tensor, g_loss: Tensor, real_a: Tensor, fake_a: Tensor,
             after_a: Tensor) -> Tensor:
    """Return the MEASURES of a batch, summed over its images, and their number, (7,).

    Losses are without penalty; D's outputs are probabilities or scores, as the objective has it.
    """
    right = right_share(loss, real_a, fake_a)
    outputs = [output(loss, a).mean() for a in (real_a, fake_a, after_a)]
    means = (d_loss, g_loss, *outputs, right, torch.ones_like(d_loss))
    return len(real_a) * torch.stack(means).detach()


# Networks ----------------------------------------------------------------------------------------

class Generator(nn.Module):
    """G: noise to an image, through 128, 256, 512 and 1024 units."""

    def __init__(self, latent_dim: int = 100):
        super().__init__()
        self.latent_dim = latent_dim
        layers: list[nn.Module] = [nn.Linear(latent_dim, 128), nn.LeakyReLU(0.2)]
        for n_in, n_out in itertools.pairwise((128, 256, 512, 1024)):
            layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(1024, 784), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Return images, (B, 784) in [-1, 1], for noise z (B, latent_dim)."""
        return self.net(z).to(z.dtype)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return G(z) in eval mode: an image then depends on its own z, not on the batch."""
        mode = self.training
        images = self.eval()(z.to(self.net[0].weight.device))
        self.train(mode)
        return images

    def sample(self, n_samples: int, noise: torch.Generator | None = None) -> Tensor:
        """Return G(z) for z ~ N(0, I), (n_samples, 784) in [-1, 1], in eval mode."""
        return self.decode(torch.randn(n_samples, self.latent_dim, generator=noise))


class Discriminator(nn.Module):
    """D: an image to the probability that it is real, through 512 and 256 units."""

    def __init__(self, shift: int = 0, group: int = 0):
        super().__init__()
        self.net = nn.Sequential(
            RandomShift(shift),
            nn.Linear(784, 512), nn.LeakyReLU(0.2),
            nn.Linear(512, 256), nn.LeakyReLU(0.2), MinibatchDeviation(group),
            nn.Linear(257 if group else 256, 1))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of D(x), (..., B, 1), for images x (..., B, 784) in [-1, 1]."""
        return self.net(x).to(x.dtype)

    def forward(self, img: Tensor) -> Tensor:
        """Return D(x), (B, 1) in [0, 1], for images x (B, 784) in [-1, 1]."""
        return torch.sigmoid(self.logits(img))


class GAN(nn.Module):
    """Both players, their objectives, and an average of G's weights if the recipe has one."""

    def __init__(self, latent_dim: int = 100, loss: str = "nonsaturating",
                 recipe: str = "template"):
        super().__init__()
        chosen = RECIPES[recipe]
        self.loss, self.r1, self.every = loss, chosen["r1"], chosen["every"]
        self.generator = Generator(latent_dim)
        self.discriminator = Discriminator(chosen["shift"], chosen["group"])
        self.average = None if chosen["ema"] is None else AveragedModel(
            self.generator, multi_avg_fn=get_ema_multi_avg_fn(chosen["ema"]))

    def sampler(self, seed: int) -> Generator:
        """Return what to draw from: G's average, with batch statistics of its own, or G itself."""
        if self.average is None:
            return self.generator
        generator = self.average.module
        z = torch.randn(10_000, generator.latent_dim, generator=random_stream(seed, "statistics"))
        with torch.no_grad():
            update_bn(z.to(generator.net[0].weight.device).split(1000), generator)
        return generator


# Training ----------------------------------------------------------------------------------------

def update(x: Tensor, z: Tensor, discriminator: Discriminator, generator: Generator,
           optimizer_G, optimizer_D, loss: str, bfloat16: bool = False,  # noqa: N803
           r1_weight: float = 0.0) -> Tensor:
    """Take one step of D on its objective, then one of G on its own; return their measures."""
    d_loss, g_loss = LOSSES[loss]
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16)

    # D minimises L_D(D(x), D(fake)), with fake a constant.
    with autocast:
        fake = generator(z)  # (B, 784)
        real_a, fake_a = discriminator.logits(torch.stack((x, fake.detach())))  # 2 x (B, 1)
        d_value = d_loss(real_a, fake_a)
        penalty = penalties(loss, discriminator.logits, x, fake.detach(), r1_weight)
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

    return measures(loss, d_value, g_value, real_a, fake_a, after_a)


def averages(loss: str, sums: list[Tensor]) -> dict[str, float]:
    """Divide the sums of an epoch once, by the number of images; a critic has no accuracy."""
    *totals, images = epoch_sum(sums).tolist()
    return {key: total / images for key, total in zip(MEASURES, totals, strict=True)
            if key != "d_accuracy" or loss != "wasserstein"}


def train(dataloader, discriminator: Discriminator, generator: Generator, optimizer_G,  # noqa: N803
          optimizer_D, loss: str = "nonsaturating", bfloat16: bool = False,  # noqa: N803
          r1: float = 0.0, average: AveragedModel | None = None, every: int = 1
          ) -> dict[str, float]:
    """Train for one epoch; return the MEASURES, averaged over the images as they were trained.

    Of ``every`` n updates one has the R1 penalty, n times as strong (Karras et al. 2020), and is
    followed by G's average.
    """
    discriminator.train()
    generator.train()
    optimizers, sums = (optimizer_G, optimizer_D), []
    for i, x in enumerate(images_in(dataloader)):  # (B, 784) in [-1, 1]
        z = torch.randn(len(x), generator.latent_dim, device=x.device)
        r1_weight = 0.0 if i % every else r1 * every
        sums.append(update(x, z, discriminator, generator, *optimizers, loss, bfloat16, r1_weight))
        if average is not None and i % every == 0:
            average.update_parameters(generator)
    return averages(loss, sums)


@torch.no_grad()
def validate(dataloader, discriminator: Discriminator, generator: Generator,
             loss: str = "nonsaturating") -> dict[str, float]:
    """Return the MEASURES without training, always with the same noise."""
    d_loss, g_loss = LOSSES[loss]
    discriminator.eval()
    images, sums = len(dataloader.dataset), []
    z = torch.randn(images, generator.latent_dim, generator=random_stream(0, "evaluation"))
    for x, noise in zip(images_in(dataloader), z.split(dataloader.batch_size), strict=False):
        real_a = discriminator.logits(x)
        fake_a = discriminator.logits(generator.decode(noise))
        sums.append(measures(loss, d_loss(real_a, fake_a), g_loss(fake_a), real_a, fake_a, fake_a))
    return averages(loss, sums)


def run_epoch(model: nn.Module, data, optimizer=None, bfloat16: bool = False) -> tuple:
    """Train on the first split and validate on the second; without an optimizer, evaluate both.

    Validation is in float32, whatever the precision of training.

    Returns:
        the MEASURES of train (while it was trained) and val.
    """
    traindata, valdata = data
    players = model.discriminator, model.generator

    if optimizer is None:
        train_loss = validate(traindata, *players, model.loss)
    else:
        train_loss = train(traindata, *players, *optimizer, model.loss, bfloat16, model.r1,
                           model.average, model.every)

    return train_loss, validate(valdata, *players, model.loss)


def optimizers(model: GAN, args) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return G's and D's optimizer, with the recipe's betas."""
    return tuple(torch.optim.Adam(player.parameters(), args.lr, RECIPES[args.recipe]["betas"],
                                  fused=True) for player in (model.generator, model.discriminator))


def fit(run: Run, model: nn.Module, data, optimizer) -> None:
    """Train for all epochs, from the last checkpoint if the run is resumed."""
    train, val, _ = data
    optimizer_G, optimizer_D = optimizer  # noqa: N806
    schedules = [one_cycle(one, run.args.epochs * len(train), cycle_momentum=False)
                 for one in optimizer if RECIPES[run.args.recipe]["one_cycle"]]
    if run.args.save_interval:
        optimizer_G.register_step_post_hook(lambda *_: save_update(run, model, optimizer_G))
    run.keep(model=model, optimizer_G=optimizer_G, optimizer_D=optimizer_D, order=train.generator,
             **{f"schedule_{player}": one for player, one in zip("GD", schedules, strict=False)})
    run.resume()
    with run.training(save_training_figures):
        for epoch in run.epochs():  # epoch 0 evaluates the untrained model
            train_loss, val_loss = run_epoch(
                model, (train, val), optimizer if epoch else None, run.bfloat16)
            run.record("loss D: train {d_loss:.3f}, val {val:.3f}; G {g_loss:.3f}; D(x) "
                       "{d_real:.2f}, D(G(z)) {d_fake:.2f}".format(
                           **train_loss, val=val_loss["d_loss"]), **train_loss,
                       **{f"val_{key}": value for key, value in val_loss.items()
                          if key in ("d_loss", "d_accuracy")})
            if epoch in run.moments:
                run.snapshots[epoch] = draw_moment(model, run.args.seed)
                save_training_figures(run)


# Main --------------------------------------------------------------------------------------------

def evaluate(run: Run, generator: Generator, classifier, val, test) -> dict:
    """Return the final numbers: the last epoch's, and how the classifier judges the samples."""
    samples = grey(generator.sample(EVALUATION_SAMPLES, random_stream(run.args.seed, "test")))
    return {**{key: value for key, value in run.history[-1].items() if key in MEASURES},
            **judge_samples(classifier, samples, val.images / 255, test.images / 255)}


def main(argv: Sequence[str] | None = None) -> dict:
    """Train, draw the figures, judge the samples; return the results as written."""
    args = parse_args(argv)
    data = train, val, test = mnist(args.data_root, args.batch_size, dataset=args.dataset,
                                    device=args.device, seed=args.seed, limit=args.limit,
                                    transform=scaled)
    if len(train.images) % args.batch_size == 1 or args.batch_size == 1:
        raise RunError(f"'--batch_size {args.batch_size}' leaves a batch of one image, on which "
                       "batch normalisation cannot train; give another")
    method = "gan" if args.recipe == "default" else f"gan-{args.recipe}"
    run = Run(run_name(method, args, train.source, "mnist", named=["recipe"]), args, train.source)
    model = GAN(args.latent_dim, args.loss, args.recipe).to(run.device)
    fit(run, model, data, optimizers(model, args))
    save_training_figures(run)
    run.reload()
    classifier, facts = judge("grey", run.device, train.source.name)
    generator = model.sampler(args.seed)
    walks = save_latent_figures(run, generator, classifier, train.images / 255)
    return run.finish(**evaluate(run, generator, classifier, val, test), **facts, **walks)


if __name__ == "__main__":
    exit_with(main)
