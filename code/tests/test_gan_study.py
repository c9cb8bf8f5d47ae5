"""The study of the GAN's recipe: what is trained, and what the table says of it."""

import json

import pytest
import torch

import a3_gan_template as gan
import gan_study
import study

SMALL = ["--epochs", "1", "--limit", "128", "--dataset", "sample", "--device", "cpu"]


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    """Keep the table of recipes and the number of threads as they were."""
    monkeypatch.setattr(gan, "RECIPES", dict(gan.RECIPES))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_this_process(monkeypatch):
    """Train one case after the other, without processes of their own."""
    monkeypatch.setattr(gan_study, "run_cases", lambda names, train, told, args: [
        train(name, args) for name in names])


def test_a_case_lacks_what_it_names_and_nothing_else():
    default = gan.RECIPES["default"]
    lacks = {"default": {}, "without deviation": {"group": 0}, "without R1": {"r1": 0.0},
             "beta_1 of 0.5": {"betas": (0.5, 0.999)},
             "none of the three": {"group": 0, "r1": 0.0, "betas": (0.5, 0.999)}}
    assert lacks == gan_study.CASES
    assert all(default[key] != value for case in lacks.values() for key, value in case.items())


def test_images_that_are_no_digits_are_refused_before_anything_is_trained(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        gan_study.parse_args(["--dataset", str(tmp_path)])
    assert stop.value.code == 2 and "digits alone" in capsys.readouterr().err


def test_trainings_have_their_recipe_and_seed(monkeypatch, tmp_path, in_this_process):
    seen = []

    def trained(flags: list[str]) -> dict:
        args = gan.parse_args(flags)
        seen.append((gan.RECIPES[args.recipe], args.seed, args.epochs, args.precision))
        return {"val_frechet_distance": float(args.seed), "smallest_class_share": 0.1,
                "clear_share": 0.5, "flags": {}, "seed": args.seed, "precision": "float32",
                "epoch_seconds": 1.0, "commit": "c", "device": "d", "classifier_sha256": "s"}

    monkeypatch.setattr(gan, "main", trained)
    record = gan_study.main([*SMALL, "--out", str(tmp_path), "--seeds", "2", "4", "2", "--cases",
                             "without R1", "default"])
    default = gan.RECIPES["default"]
    without = {**default, "r1": 0.0}
    assert seen == [(recipe, seed, 1, "auto") for recipe in (without, default) for seed in (2, 4)]
    assert [(row["name"], row["trainings"], row["val_frechet_distance"]) for row in
            record["rows"]] == [("without R1", 2, 3.0), ("default", 2, 3.0)]
    assert abs(record["rows"][0]["val_frechet_distance_deviation"] - 2**0.5) < 1e-12


def test_a_case_is_trained_and_written(tmp_path, in_this_process):
    record = gan_study.main([*SMALL, "--out", str(tmp_path), "--seeds", "3", "--cases",
                             "without deviation"])
    (file,) = (tmp_path / "results").glob("gan-study*.json")
    assert json.loads(file.read_text()) == record
    (row,) = record["rows"]
    assert row["clear_share_deviation"] is None and row["runs"][0]["seed"] == 3
    (checkpoint,) = tmp_path.glob("checkpoints/*/last.pt")
    weights = torch.load(checkpoint, weights_only=True)["kept"]["model"]
    assert weights["discriminator.net.6.weight"].shape == (1, 256)  # reads no deviation


def test_more_trainings_than_cores_wait_and_are_at_most_as_many_as_there_are():
    args = gan_study.parse_args(["--jobs", "64"])
    assert args.jobs == len(gan_study.CASES) * 3 and study.threads(args.jobs) == 1
