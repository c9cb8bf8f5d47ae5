"""The ablation: what each case trains, and what the tables say of it."""

import json

import pytest
import torch
from torch import nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import ablation
import study
from a3.speed import Dropout

SMALL = ["--epochs", "1", "--limit", "128", "--dataset", "sample", "--device", "cpu"]
SCRIPTS = {"vae": vae, "nf": nf, "gan": gan}


@pytest.fixture(autouse=True)
def as_many_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_this_process(monkeypatch):
    """Train one case after the other, without processes of their own."""
    monkeypatch.setattr(ablation, "run_cases", lambda names, train, told, args: [
        train(name, args) for name in names])


def build(model: str, case: str) -> nn.Module:
    """Return the model that a case trains, of seed 0."""
    torch.manual_seed(0)
    names = {"VAE": vae.VAE, "Model": nf.Model, **ablation.CASES[model][case].names}
    return names["VAE" if model == "vae" else "Model"]()


def kinds(model: nn.Module) -> list[type]:
    return [type(layer) for sequence in model.modules() if isinstance(sequence, nn.Sequential)
            for layer in sequence]


def test_a_gan_lacks_what_its_case_names_and_nothing_else():
    lacks = {"default": {}, "without deviation": {"group": 0}, "without R1": {"r1": 0.0},
             "beta_1 of 0.5": {"betas": (0.5, 0.999)},
             "none of the three": {"group": 0, "r1": 0.0, "betas": (0.5, 0.999)}}
    default = gan.RECIPES["default"]
    assert list(ablation.CASES["gan"]) == list(lacks)
    for case, values in lacks.items():
        recipes = ablation.CASES["gan"][case].names.get("RECIPES", gan.RECIPES)
        assert recipes["default"] == {**default, **values}
        assert all(default[key] != value for key, value in values.items())
        assert {key: recipes[key] for key in recipes if key != "default"} == {
            key: gan.RECIPES[key] for key in gan.RECIPES if key != "default"}


@pytest.mark.parametrize(("model", "case", "kind", "by"), [
    ("vae", "ReLU", nn.SiLU, nn.ReLU), ("vae", "no dropout", Dropout, nn.Identity),
    ("nf", "ReLU", nn.SiLU, nn.ReLU), ("nf", "no layer norm", nn.LayerNorm, nn.Identity)])
def test_one_kind_of_layer_is_replaced_and_the_weights_stay(model, case, kind, by):
    default, changed = build(model, "default"), build(model, case)
    assert kind in kinds(default)
    assert kinds(changed) == [by if one is kind else one for one in kinds(default)]
    weights = default.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in changed.state_dict().items())


@pytest.mark.parametrize("case", ["one hidden layer", "none of the four"])
def test_the_plain_vae_is_that_of_the_paper(case):
    model = build("vae", case)
    act = nn.ReLU if case == "none of the four" else nn.SiLU
    drop = nn.Identity if case == "none of the four" else Dropout
    linear = nn.Linear
    assert [type(layer) for layer in model.encoder.body] == [drop, linear, act]
    assert [type(layer) for layer in model.decoder.net] == [linear, act, linear]
    assert sum(weights.numel() for weights in model.parameters()) == (
        784 * 500 + 500 + 500 * 40 + 40 + 20 * 500 + 500 + 500 * 784 + 784)
    assert model(torch.rand(3, 784).round()).isfinite()


def test_a_constant_rate_stays_what_it_is():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    schedule = ablation.constant_rate(optimizer, 30)
    for _ in range(30):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.25 and optimizer.param_groups[0]["betas"][
            0] == 0.9
    assert "last_epoch" in schedule.state_dict()  # checkpoints hold it
    for case in ("constant rate", "none of the four"):
        assert ablation.CASES["vae"][case].names["one_cycle"] is ablation.constant_rate
        assert vae.parse_args(ablation.CASES["vae"][case].flags).lr == 0.001


def test_images_that_are_no_digits_are_refused_before_a_gan_is_trained(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        ablation.parse_args(["--dataset", str(tmp_path)])
    assert stop.value.code == 2 and "digits alone" in capsys.readouterr().err
    assert ablation.parse_args(["--dataset", str(tmp_path), "--models", "vae"]).dataset


def test_trainings_have_their_case_and_seed_and_a_folder_of_their_own(
        monkeypatch, tmp_path, in_this_process):
    seen = []

    def trained(flags: list[str]) -> dict:
        args = gan.parse_args(flags)
        seen.append((args.out.name, args.seed, args.epochs, args.precision,
                     gan.RECIPES["default"]["r1"]))
        return {"val_frechet_distance": float(args.seed), "smallest_class_share": 0.1,
                "clear_share": 0.5, "flags": {}, "seed": args.seed, "precision": "float32",
                "epoch_seconds": 1.0, "commit": "c", "device": "d", "classifier_sha256": "s",
                "data": {"name": "sample"}}

    monkeypatch.setattr(gan, "main", trained)
    cases = {case: ablation.CASES["gan"][case] for case in ("default", "without R1")}
    monkeypatch.setitem(ablation.CASES, "gan", cases)
    recipes = gan.RECIPES
    record = ablation.main([*SMALL, "--out", str(tmp_path), "--seeds", "2", "4", "2",
                            "--models", "gan"])["gan"]
    r1 = gan.RECIPES["default"]["r1"]
    assert seen == [(folder, seed, 1, "auto", weight) for folder, weight in (
        ("gan-default", r1), ("gan-without-R1", 0.0)) for seed in (2, 4)]
    assert [(row["name"], row["trainings"], row["val_frechet_distance"]) for row in
            record["rows"]] == [("default", 2, 3.0), ("without R1", 2, 3.0)]
    assert abs(record["rows"][0]["val_frechet_distance_deviation"] - 2**0.5) < 1e-12
    assert gan.RECIPES is recipes


def test_a_case_is_trained_and_written(monkeypatch, tmp_path, in_this_process):
    case = "none of the four"
    monkeypatch.setitem(ablation.CASES, "vae", {case: ablation.CASES["vae"][case]})
    record = ablation.main([*SMALL, "--out", str(tmp_path), "--seeds", "3", "--models", "vae"])
    (file,) = (tmp_path / "results").glob("ablation-vae*.json")
    assert {"vae": json.loads(file.read_text())} == record
    (row,) = record["vae"]["rows"]
    assert row["val_elbo_nats_deviation"] is None and row["runs"][0]["seed"] == 3
    (checkpoint,) = tmp_path.glob("ablation/vae-none-of-the-four/checkpoints/*/last.pt")
    weights = torch.load(checkpoint, weights_only=True)["kept"]["model"]
    assert weights["decoder.net.2.weight"].shape == (784, 500)  # no second hidden layer


def test_every_measure_is_one_that_the_script_writes():
    results = study.REPOSITORY / "report/results"
    for model, name in (("vae", "vae-z20"), ("nf", "nf"), ("gan", "gan")):
        measures = ablation.MODELS[model][2]
        assert set(measures) <= set(json.loads((results / f"{name}.json").read_text()))


def test_more_trainings_than_cores_wait_and_are_at_most_as_many_as_there_are(
        monkeypatch, tmp_path):
    jobs = []
    monkeypatch.setattr(ablation, "run_cases", lambda names, train, told, args: [
        jobs.append(args.jobs) or {"case": name.split(": ")[1], "val_bits_per_dim": 1.0}
        for name in names])
    ablation.main([*SMALL, "--jobs", "64", "--models", "nf", "--out", str(tmp_path)])
    assert set(jobs) == {9} and study.threads(9) == 1
