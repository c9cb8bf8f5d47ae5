"""What is fed to what: change one split of the data, and see which numbers move.

A formula can be right and measure the wrong images. So every script runs on a few digits whose
training, validation or test images are then exchanged for others; each number must move with the
splits that it is of, and with no other.
"""

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import datasets
import evaluate
import nf_multiscale
import vae_variants
from a3 import figures, judge_classifier, judge_comparison, judge_metrics, vae_figures
from a3.fetch import sample_digits
from helpers import SMALL_FLOW

SPLITS = ("train", "val", "test")
SIZES = (96, 64, 64)
SMALL = ["--dataset", "mnist", "--device", "cpu", "--epochs", "1", "--batch_size", "32"]
RUNS = {
    "vae": (vae, ["--zdim", "3", "--hidden_dim", "12", "--nll_samples", "4"]),
    "vae_variants": (vae_variants, ["--zdim", "3", "--hidden_dim", "12", "--nll_samples", "4",
                                    "--prior", "flow"]),
    "nf": (nf, ["--n_flows", "1", "--n_hidden", "12", "--iw_samples", "2"]),
    "nf_multiscale": (nf_multiscale, []),
    "gan": (gan, ["--latent_dim", "8"]),
}
# Facts of the machine and the moment, and what the flags say.
NO_NUMBERS = {"epochs", "epoch_seconds", "train_seconds", "seconds", "snapshot_epochs", "flags",
              "seed", "data", "device", "vector_instructions", "precision", "versions", "commit",
              "date", "evaluated", "parameters", "classifier", "classifier_sha256", "nll_samples",
              "test_iw_samples", "samples", "epoch"}
COUNT = re.compile("active_units|wrong|accuracy|share|classes_found")  # may be the same by chance
# Numbers that do not carry the name of their splits.
OF = {
    "untrained_elbo_nats": {"val"}, "untrained_bits_per_dim": {"val"},
    "verdict": set(),  # a word, the same for all these digits
    "frechet_distance": {"test"}, "frechet_floor": {"val", "test"},
    "interpolation_classes": set(),  # decided by the samples, and these are the same
    "interpolation_digits": set(), "interpolation_probabilities": set(),
}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Let every run draw small images, and judge few samples quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "ZOOM", 1)
        patch.setattr(Figure, "savefig", lambda *_, **__: None)  # numbers are looked at
        patch.setattr(vae_figures, "MANIFOLD_SIDE", 4)
        patch.setattr(judge_classifier, "EPOCHS", 2)
        patch.setattr(judge_metrics, "SUBSETS", 2)
        patch.setattr(gan, "EVALUATION_SAMPLES", 200)
        patch.setattr(nf_multiscale, "ROUND_TRIPS", 20)
        for name, value in SMALL_FLOW.items():
            patch.setattr(nf_multiscale, name, value)
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return images and labels of six sets of digits: three splits, and others in their place."""
    images, labels, _ = sample_digits(Path(), download=False)
    order = torch.randperm(len(images[0]), generator=torch.Generator().manual_seed(0))
    parts = order[:2 * sum(SIZES)].split(SIZES * 2)
    return tuple(images[0][part] for part in parts), tuple(labels[0][part] for part in parts)


@pytest.fixture
def use(digits, monkeypatch):
    """Return a function that puts digits in MNIST's place, those of one split exchanged."""
    images, labels = digits

    def put(changed: str | None = None) -> None:
        chosen = [i + 3 * (split == changed) for i, split in enumerate(SPLITS)]
        monkeypatch.setattr(datasets, "mnist_files", lambda root, download: (
            tuple(images[i] for i in chosen), tuple(labels[i] for i in chosen), "a few digits"))

    return put


def numbers_of(script, flags: list[str], out: Path) -> dict[str, object]:
    """Run a script; return its results and, as ``key in epoch N``, its table."""
    results = script.main([*SMALL, *flags, "--out", str(out)])
    (table,) = (out / "results").glob("*.csv")
    numbers = {key: value for key, value in results.items() if key not in NO_NUMBERS}
    for row in csv.DictReader(table.open()):
        numbers |= {f"{key} in epoch {row['epoch']}": value for key, value in row.items()
                    if key not in NO_NUMBERS}
    return numbers


def splits_of(key: str) -> set[str]:
    """Return the splits other than train that a number may, and must, move with."""
    name = key.removeprefix("classifier_").split(" in epoch")[0]
    return OF[name] if name in OF else {name.split("_")[0]} & {"val", "test"}


@pytest.mark.parametrize("name", RUNS)
def test_a_number_moves_with_the_split_that_it_is_of(name, use, tmp_path):
    script, flags = RUNS[name]
    use()
    before = numbers_of(script, flags, tmp_path / "before")
    assert any("test" in splits_of(key) for key in before)
    for split in SPLITS[1:]:
        use(split)
        after = numbers_of(script, flags, tmp_path / split)
        moved = {key for key in before if after[key] != before[key]}
        expected = {key for key in before if split in splits_of(key)}
        counts = {key for key in expected if COUNT.search(key)}
        assert moved | counts == expected, (split, sorted(moved ^ expected))
    use("train")
    after = numbers_of(script, flags, tmp_path / "train")
    still = {key for key in before if key.split(" in epoch")[0] not in OF
             and not COUNT.search(key) and after[key] == before[key]}
    # The untrained model knows no training images, and what G draws knows none.
    assert all(key.endswith("in epoch 0") and not key.startswith(("train", "d_real", "d_loss"))
               for key in still), still


# What training sees ------------------------------------------------------------------------------

def watch(monkeypatch, network, method: str = "forward") -> list[Tensor]:
    """Return a list that collects what a network is given while it is trained."""
    seen, original = [], getattr(network, method)

    def watched(self, x, *args, **kwargs):
        if self.training and torch.is_grad_enabled():
            seen.append(x.detach().clone())
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(network, method, watched)
    return seen


def shifted(images: Tensor) -> set[bytes]:
    """Return images (N, 784) and all that a shift by one pixel makes of them."""
    return {image.to(torch.uint8).numpy().tobytes() for move in datasets.shift_table(1)
            for image in images[:, move]}


def test_the_flow_trains_on_shifted_training_images(use, digits, tmp_path, monkeypatch):
    use()
    seen = watch(monkeypatch, nf.Model)
    numbers_of(nf, RUNS["nf"][1], tmp_path)
    trained, own = torch.cat(seen), digits[0][0]
    unmoved = {image.numpy().tobytes() for image in own}
    given = {image.to(torch.uint8).numpy().tobytes() for image in trained}
    assert len(trained) == len(own) and given <= shifted(own)
    assert len(given - unmoved) > len(own) / 2


def test_the_vae_trains_on_its_training_images_and_its_encoder_misses_a_fifth(
        use, digits, tmp_path, monkeypatch):
    use()
    seen = watch(monkeypatch, vae.Encoder, "posterior")
    hidden = []
    original = torch.nn.Linear.forward

    def watched(self, x):
        if self.in_features == 784 and torch.is_grad_enabled():
            hidden.append(x.detach().clone())
        return original(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    numbers_of(vae, RUNS["vae"][1], tmp_path)
    trained, dropped = torch.cat(seen), torch.cat(hidden)
    own = datasets.binarize(digits[0][0], datasets.BINARIZATION_SEED).float()
    assert {x.numpy().tobytes() for x in trained} == {x.numpy().tobytes() for x in own}
    kept = dropped[trained == 1]
    assert abs((kept == 0).float().mean() - 0.2) < 0.02
    assert torch.allclose(kept[kept > 0], torch.tensor(1.25))


def test_the_gan_plays_with_normal_noise_and_training_images(use, digits, tmp_path, monkeypatch):
    use()
    noise = watch(monkeypatch, gan.Generator)
    judged = watch(monkeypatch, gan.Discriminator, "logits")
    numbers_of(gan, RUNS["gan"][1], tmp_path)
    z = torch.cat(noise).flatten()
    assert len(z) == 96 * 8
    for moment, value in ((1, 0), (2, 1), (3, 0), (4, 3)):  # of N(0, 1); uniform has 1/2, 1/3, ...
        error = 5 * math.sqrt({1: 1, 2: 2, 3: 15, 4: 96}[moment] / len(z))
        assert abs((z**moment).mean() - value) < error, moment
    assert z.abs().max() > 2.5  # uniform noise of this variance ends at 1.73
    real, fake = zip(*(x for x in judged if x.dim() == 3), strict=True)  # what D learns from
    own = {x.numpy().tobytes() for x in digits[0][0]}
    grey = [((torch.cat(x) + 1) * 127.5).round().to(torch.uint8) for x in (real, fake)]
    assert {x.numpy().tobytes() for x in grey[0]} == own
    assert not {x.numpy().tobytes() for x in grey[1]} & own


@pytest.mark.parametrize("name", RUNS)
def test_the_learning_rate_falls_over_the_whole_training(name, use, tmp_path, monkeypatch):
    class Begun(Exception):
        """Ends the run where the schedule is made."""

    def one_cycle(optimizer, updates, **_):
        raise Begun(updates)

    use()
    script, flags = RUNS[name]
    loop = {vae_variants: vae, nf_multiscale: nf}.get(script, script)
    monkeypatch.setattr(loop, "one_cycle", one_cycle)
    with pytest.raises(Begun) as begun:
        script.main([*SMALL, *flags, "--epochs", "5", "--out", str(tmp_path)])
    assert begun.value.args == (5 * 3,), "96 images in batches of 32"


@pytest.mark.parametrize("recipe", gan.RECIPES)
def test_a_recipe_is_what_the_game_is_played_with(recipe, use, tmp_path, monkeypatch):
    use()
    chosen, models, players, judged = gan.RECIPES[recipe], [], [], []
    original, evaluate_run = gan.fit, gan.evaluate

    def fit(run, model, data, optimizer):
        models.append(model)
        players.extend(optimizer)
        original(run, model, data, optimizer)

    monkeypatch.setattr(gan, "fit", fit)
    monkeypatch.setattr(gan, "evaluate", lambda run, generator, *rest: judged.append(generator)
                        or evaluate_run(run, generator, *rest))
    numbers_of(gan, [*RUNS["gan"][1], "--recipe", recipe], tmp_path)
    (model,) = models
    assert judged == [model.average.module if chosen["ema"] else model.generator]
    moves = (2 * chosen["shift"] + 1) ** 2
    assert len(model.discriminator.net[0].moves) == moves
    assert model.discriminator.net[5].group == chosen["group"]
    assert (model.r1, model.every) == (chosen["r1"], chosen["every"])
    for player, network in zip(players, (model.generator, model.discriminator), strict=True):
        (group,) = player.param_groups
        assert group["betas"] == chosen["betas"]
        assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
        assert (group["lr"] < chosen["lr"]) == chosen["one_cycle"]
    if chosen["ema"] is None:
        assert model.average is None
    else:
        weight, mean = torch.zeros(2), torch.ones(2)
        model.average.multi_avg_fn([mean], [weight], 1)
        assert torch.allclose(mean, torch.tensor(chosen["ema"]))


def test_iwae_moves_the_weights_along_its_own_gradient():
    """By differences of the bound itself, with the noise held fixed, in float64."""
    torch.manual_seed(0)
    model = vae_variants.VariantVAE(hidden_dim=6, z_dim=2, dropout=0.0).double().train()
    x = (torch.rand(5, 784) < 0.2).double()
    eps = torch.randn(7, 5, 2).double()

    def bound() -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("a3.vae_objectives.noise", lambda *_: eps)
            return vae_variants.iwae(7)(model, x)[0].mean()

    for weight in (model.encoder.head.weight, model.decoder.net[0].weight):
        model.zero_grad()
        bound().backward()
        direction = torch.randn(weight.shape).double()
        slope, step = (weight.grad * direction).sum().item(), 1e-5
        with torch.no_grad():
            up = (weight.add_(step * direction), bound().item())[1]
            down = (weight.sub_(2 * step * direction), bound().item())[1]
            weight.add_(step * direction)
        assert math.isclose(slope, (up - down) / (2 * step), rel_tol=1e-5), slope


# The comparison ----------------------------------------------------------------------------------

def test_samples_that_show_one_kind_of_image_have_precision_and_no_recall(monkeypatch):
    """Exchange the roles, and precision and recall are exchanged; coverage follows recall."""
    monkeypatch.setattr(judge_comparison, "features", lambda _, images: images.double())
    monkeypatch.setattr(judge_comparison, "classify", lambda _, images: (
        torch.arange(len(images)) % 10, torch.ones(len(images))))
    noise = torch.Generator().manual_seed(0)
    kinds = 20 * torch.arange(4).repeat(100)[:, None]
    real = kinds + torch.randn(400, 3, generator=noise).double()
    narrow = torch.randn(400, 3, generator=noise).double()  # one of the four kinds
    labels = torch.arange(400) % 10

    def measured(one: Tensor, other: Tensor) -> dict:
        return judge_comparison.measure_samples(one, [other.double()] * 2, labels, [None] * 2,
                                                torch.Generator().manual_seed(1))

    one, other = measured(narrow, real), measured(real, narrow)
    assert (one["precision"], one["recall"]) == (other["recall"], other["precision"])
    assert one["precision"] > 0.9 and one["recall"] < 0.3
    assert one["density"] > 0.8 and one["coverage"] < 0.3
    assert other["density"] < 0.3 and other["coverage"] > 0.5


MEASURES = {*judge_comparison.BETTER_HIGH, "kernel_distance_subset_deviation", "class_shares"}
NEAR = {f"{kind}nearest_train_ratio_median" for kind in ("", "unseen_", "means_")} | {
    f"{kind}nearer_to_train_share" for kind in ("", "unseen_", "means_")}


def test_the_comparison_measures_what_it_says(use, tmp_path, monkeypatch):
    use()
    flags = ["--dataset", "mnist", "--device", "cpu", "--out", str(tmp_path), "--models", "vae",
             "nf", "gan", "--samples", "60", "--repeats", "1", "--nll_samples", "4",
             "--iw_samples", "2"]
    for name in ("vae", "nf", "gan"):
        script, own = RUNS[name]
        script.main([*SMALL, *own, "--out", str(tmp_path)])
        (run,) = (tmp_path / "results").glob(f"{name}-*.json")
        flags += [f"--{name}", run.stem]
    judges, original = [], judge_comparison.judge

    def judge(kind, device):
        judges.append(kind)
        return original(kind, device)

    memories, remember = [], evaluate.Memory

    def memory(train, *others):
        memories.append([train.unique().numel() == 2, *map(len, (train, *others[:2]))])
        return remember(train, *others)

    monkeypatch.setattr(evaluate, "Memory", memory)
    monkeypatch.setattr(evaluate, "MEMORY_SAMPLES", 40)
    monkeypatch.setattr(judge_comparison, "judge", judge)
    monkeypatch.setattr(evaluate, "save_figures", lambda *_: None)
    before = evaluate.main(flags)
    assert judges == ["binary", "random"]  # what judges binary images has learnt from such
    assert memories == [[True, *SIZES], [False, *SIZES]]  # the VAE's own images are binary
    assert before["classifier_sha256"] != gan_judge(tmp_path)
    of_test = {"test_elbo_nats", "test_nll_nats", "test_bits_per_dim", "round_trip_rms",
               "reconstruction_clear_share"}
    expected = {
        "train": {**dict.fromkeys(("vae", "gan", "nf"), NEAR)},
        "val": {**dict.fromkeys(("vae", "gan", "nf"), NEAR), "floor": MEASURES},
        "test": {**dict.fromkeys(("vae", "gan", "nf"), MEASURES | NEAR | of_test),
                 "floor": MEASURES}}
    samples_alone = {"clear_share", "class_shares"}  # these compare with no real image
    near = {"nearest_train_ratio_median", "unseen_nearest_train_ratio_median"}
    own = {"vae": near | {"means_nearest_train_ratio_median"}, "gan": near, "nf": near}
    must = {"train": own,
            "val": {**own, "floor": {"frechet_distance", "kernel_distance"}},
            "test": {"vae": {"frechet_distance", "kernel_distance", "test_elbo_nats",
                             "test_nll_nats", "round_trip_rms"},
                     "nf": {"frechet_distance", "kernel_distance", "test_bits_per_dim",
                            "test_nll_nats"},
                     "gan": {"frechet_distance", "kernel_distance"},
                     "floor": {"frechet_distance"}}}
    for split, may in expected.items():
        use(split)
        after = evaluate.main(flags)
        assert after["classifier_sha256"] == before["classifier_sha256"]
        for row in ("vae", "gan", "nf", "floor"):
            moved = {key for key in MEASURES | NEAR | of_test
                     if after[row][key] != before[row][key]}
            assert moved <= may.get(row, set()), (split, row, moved - may.get(row, set()))
            assert moved >= must[split].get(row, set()), (split, row, moved)
            assert split == "val" or not moved & samples_alone, (split, row, moved)


def gan_judge(out: Path) -> str:
    """Return the hash of the classifier of grey images, which judged the GAN."""
    (file,) = (out / "results").glob("gan-*.json")
    return json.loads(file.read_text())["classifier_sha256"]
