"""The comparison, on models trained for an instant."""

import json
import math
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import evaluate
import nf_multiscale
import vae_variants
from a3 import figures, judge_classifier, judge_metrics
from a3.importance import Estimate
from a3.judge_comparison import BETTER_HIGH
from a3.runs import RunError
from datasets import Split
from helpers import SMALL_FLOW
from made_up import SMOKE

SCRIPTS = {"vae": (vae, ["--zdim", "3", "--hidden_dim", "16"]),
           "nf": (nf, ["--n_flows", "1", "--n_hidden", "8"]),
           "nf_multiscale": (nf_multiscale, []), "gan": (gan, [])}


@pytest.fixture(scope="module")
def results(tmp_path_factory, request) -> tuple[dict, dict, list[str]]:
    """Compare three tiny models twice, with other seeds and chunks; also return their flags."""
    out = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    for module, name, value in ((gan, "EVALUATION_SAMPLES", 300), (judge_classifier, "EPOCHS", 1),
                                (judge_metrics, "SUBSETS", 10), (figures, "ZOOM", 1),
                                *((nf_multiscale, *size) for size in SMALL_FLOW.items()),
                                (nf_multiscale, "ROUND_TRIPS", 20),
                                (evaluate, "TIMED_SAMPLES", 50)):
        patch.setattr(module, name, value)
    flags = ["--dataset", "sample", "--device", "cpu", "--out", str(out), "--models", *SCRIPTS]
    for name, (script, own) in SCRIPTS.items():
        before = {*(out / "results").glob("*.json")}
        script.main([*SMOKE, "--epochs", "1", "--out", str(out), *own])
        (run,) = {*(out / "results").glob("*.json")} - before
        flags += [f"--{name}", run.stem]
    small = [*flags, "--samples", "300", "--repeats", "2", "--iw_samples", "3"]
    one = evaluate.main([*small, "--nll_samples", "40", "--chunk", "40"])
    seed(out, flags[flags.index("--vae") + 1])
    other = evaluate.main([*small, "--nll_samples", "41", "--chunk", "7", "--seed", "7"])
    return one, other, flags


def seed(out: Path, run: str, name: str | None = None) -> None:
    """Give a finished run another name; by default that of a further seed of it."""
    name = name or f"{run}-seed1"
    shutil.copytree(out / "checkpoints" / run, out / "checkpoints" / name)
    shutil.copy(out / "results" / f"{run}.json", out / "results" / f"{name}.json")


def test_the_comparison_has_the_same_keys_for_all_and_is_written(results):
    one, other, flags = results
    out = evaluate.parse_args(flags).out
    assert {frozenset(one[name]) for name in (*SCRIPTS, "floor")} == {frozenset(one["vae"])}
    assert "vae_best" not in one, "it is not among --models"
    written = {json.dumps(json.loads(file.read_text())): file.stem
               for file in (out / "results").glob("comparison*.json")}
    assert set(written) == {json.dumps(one), json.dumps(other)}
    drawn = {file.name for file in (out / "figures").glob("comparison*")}
    assert drawn == {f"{name}-{figure}" for name in written.values()
                     for figure in ("samples.png", "nearest.png", "walks.png", "memory.pdf",
                                    "bits.pdf")}
    assert one["gan"]["test_nll_nats"] is None and one["floor"]["test_nll_nats"] is None
    assert one["vae"]["test_nll_draws"] == 40 and other["vae"]["test_nll_draws"] == 41


def test_other_seeds_and_chunks_agree_within_the_stated_errors(results):
    one, other, _ = results
    for name in ("vae", "nf"):
        error = math.hypot(*(row[name]["test_nll_draw_error_nats"] for row in (one, other)))
        difference = one[name]["test_nll_nats"] - other[name]["test_nll_nats"]
        assert abs(difference) < 5 * error, (name, difference, error)
    for key in ("frechet_distance", "coverage"):
        floor, again = one["floor"], other["floor"]
        error = math.hypot(floor[f"{key}_sampling_deviation"],
                           again[f"{key}_sampling_deviation"])
        assert abs(floor[key] - again[key]) < 6 * error + 0.02, (key, floor[key], again[key])


def test_real_images_beat_untrained_models_in_every_measure(results):
    one, _, _ = results
    for name in SCRIPTS:
        for key, high in BETTER_HIGH.items():
            model, floor = one[name][key], one["floor"][key]
            if key not in ("density", "clear_share", "precision"):
                assert (floor >= model) if high else (floor <= model), (name, key, model, floor)


def test_the_round_trips_are_those_of_their_models(results):
    one, _, _ = results
    assert one["nf"]["round_trip_rms"] < 0.01 < one["vae"]["round_trip_rms"]
    assert one["nf_multiscale"]["round_trip_rms"] == 0, "whole numbers come back as they were"
    assert one["gan"]["round_trip_rms"] is None


def test_the_loaded_models_are_those_of_the_runs_in_eval_mode(results):
    """The likelihoods are reached again: the weights are those of the checkpoint."""
    one, _, flags = results
    args = evaluate.parse_args(flags)
    models = {name: trainings[0] for name, trainings in evaluate.load_models(args).items()}
    for name, model in models.items():
        assert isinstance(model.network, nn.Module) and not model.network.training, name
    assert one["vae"]["test_elbo_nats"] == models["vae"].results["test_elbo_nats"]
    assert one["nf"]["test_bits_per_dim"] == models["nf"].results["test_bits_per_dim"]
    multiscale = models["nf_multiscale"].results["test_bits_per_dim"]
    assert math.isclose(one["nf_multiscale"]["test_bits_per_dim"], multiscale, rel_tol=1e-6)
    assert one["nf_multiscale"]["test_nll_nats"] is None, "it is exact, and no estimate"


def test_the_terms_of_all_pixels_are_the_flows_density(results):
    one, _, _ = results
    torch.manual_seed(0)
    model = nf.Model(n_flows=1, n_hidden=8).eval()
    for part in model.parameters():
        part.data += 0.1 * torch.randn_like(part)
    x = torch.randint(0, 256, (3, 784)).float()
    terms, whole = (work(torch.Generator().manual_seed(1)) for work in (
        lambda noise: evaluate.pixel_terms(model, x, noise), lambda noise: model(x, noise)))
    assert torch.allclose(terms.sum(dim=1), whole, rtol=1e-5)
    for name in ("nf", "nf_multiscale"):
        row = one[name]
        spent = row["test_bits_background"] + row["test_bits_edge"] + row["test_bits_inside"]
        assert math.isclose(spent / 784, row["test_bits_per_dim"], rel_tol=0.02)
    assert one["vae"]["test_bits_edge"] is None


def test_estimates_are_given_in_both_units():
    nll = torch.full((4,), 784 * math.log(2) * 3, dtype=torch.float64)
    estimate = Estimate(nll, torch.ones(4).double(), nll + 0.25)
    row = evaluate.in_units(estimate, "test_nll", 5)
    assert math.isclose(row["test_nll_bits_per_dim"], 3)
    assert math.isclose(row["test_nll_draw_error_nats"], 0.5)
    assert math.isclose(row["test_nll_doubling_nats"], 0.25)
    assert row["test_nll_image_error_nats"] < 1e-9 and row["test_nll_draws"] == 5


@pytest.mark.parametrize("wrong", [("--samples", "9"), ("--repeats", "0"), ("--vae", "../run")])
def test_what_no_measure_can_use_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.parse_args([*wrong])
    assert stop.value.code == 2 and f"argument {wrong[0]}: " in capsys.readouterr().err


def test_a_missing_run_is_told_in_one_line(tmp_path):
    told = ("there is no finished run 'nowhere'; make it with code/a3_vae_template.py or "
            "code/vae_variants.py --resume")
    with pytest.raises(RunError, match=told) as error:
        evaluate.main(["--vae", "nowhere", "--device", "cpu", "--out", str(tmp_path)])
    assert "\n" not in str(error.value)


def test_a_run_of_another_script_is_refused_in_one_line(results):
    flags = results[2]
    runs = {name: flags[flags.index(f"--{name}") + 1] for name in SCRIPTS}
    for name, other in (("vae", "gan"), ("gan", "nf"), ("nf", "vae"), ("nf_multiscale", "nf")):
        script = Path(SCRIPTS[name][0].__file__).name
        with pytest.raises(RunError, match=f"the run '{runs[other]}' is not one of "
                                           f"code/{script}") as error:
            evaluate.main([*flags, f"--{name}", runs[other]])
        assert "\n" not in str(error.value)


def test_a_run_of_grey_pixels_is_refused_in_one_line(tmp_path):
    vae_variants.main([*SMOKE, "--epochs", "1", "--out", str(tmp_path), "--hidden_dim", "16",
                       "--nll_samples", "2", "--likelihood", "gaussian"])
    (run,) = (tmp_path / "results").glob("*.json")
    with pytest.raises(RunError, match=f"the run '{run.stem}' has a Gaussian likelihood") as error:
        evaluate.main(["--vae", run.stem, "--device", "cpu", "--out", str(tmp_path)])
    assert "\n" not in str(error.value)


def test_every_repeat_draws_the_real_images_anew_and_alike_for_all_models(monkeypatch):
    """What the samples are measured against differs by repeat, and by nothing else."""
    seen = []

    def measure(images, real, digits, judges, noise):
        assert len(images) == 15 and judges == ["ours", "another"]
        assert all(torch.equal(real[0], one) for one in real)
        seen.append(real[0])
        return {"frechet_distance": 1.0, "coverage": 1.0}

    monkeypatch.setattr(evaluate, "features", lambda classifier, images: images)
    monkeypatch.setattr(evaluate, "measure_samples", measure)
    images = torch.full((20, 784), 128, dtype=torch.uint8)
    test = Split(images, None, labels=torch.zeros(20, dtype=torch.int64))
    model = Namespace(draw=lambda number, noise: torch.rand(number, 784, generator=noise))
    table = evaluate.compare_samples({"vae": 2 * [model]}, test, images / 255,
                                     ["ours", "another"], Namespace(seed=1, samples=15, repeats=2))
    assert (table["vae"]["trainings"], table["floor"]["trainings"]) == (2, 1)
    assert len(seen) == 6 and not torch.equal(seen[0], seen[1])
    for repeat in range(2):
        for later in (seen[2 + repeat], seen[4 + repeat]):  # the other training, and the floor
            assert torch.equal(seen[repeat], later)


def test_deviations_are_over_all_seeds_that_are_there(results, capsys):
    one, other, _ = results
    assert [row["vae"]["trainings"] for row in (one, other)] == [1, 2]
    assert one["vae"]["frechet_distance_deviation"] is None
    assert other["vae"]["frechet_distance_deviation"] == 0, "it is the same training twice"
    assert other["gan"]["trainings"] == 1 and other["gan"]["frechet_distance_deviation"] is None
    for row in (one["vae"], other["vae"], other["gan"], other["floor"]):
        assert row["frechet_distance_sampling_deviation"] > 0
    assert {one[name]["chosen_by"] for name in SCRIPTS} == {
        evaluate.LIKELIHOOD, evaluate.CHOSEN_BY["gan"]}


def test_a_missing_run_that_was_not_asked_for_is_left_out_with_a_line(results, capsys):
    flags = results[2]
    out = evaluate.parse_args(flags).out
    here = ["--device", "cpu", "--out", str(out)]
    with pytest.raises(RunError, match="no finished run to compare"):
        evaluate.load_models(evaluate.parse_args(here))
    seed(out, flags[flags.index("--gan") + 1], "gan")
    assert list(evaluate.load_models(evaluate.parse_args(here))) == ["gan"]
    assert "nf_multiscale: left out, since there is no finished run 'nf-multiscale'" in (
        capsys.readouterr().out)


def test_the_floor_is_told_apart_into_files_and_number_of_images(results):
    one, _, _ = results
    files = one["files"]
    assert files["images"] == 250, "half of the test images"
    for kind in ("", "random_"):
        assert files[f"{kind}frechet_distance_within_test"] > 0
    assert one["samples"] == 300 and 0 <= one["second_judge_ranks_alike"] <= 1


def test_other_files_show_beside_the_number_of_images(monkeypatch):
    """Features are three pixels; the unseen images are two steps away from the test images."""
    monkeypatch.setattr(evaluate, "features", lambda judge, images: judge * images[:, :3].double())
    monkeypatch.setattr(evaluate, "bernoulli", lambda images, noise: images)
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4000, 784), generator=noise)
    found = evaluate.shift_between_files(
        Split(images, None), images[:3000] / 255 + 2, [1.0, 5.0],
        Namespace(seed=0, samples=10_000, repeats=3))
    assert found["images"] == 2000
    assert found["frechet_distance_within_test"] < 0.01
    assert math.isclose(found["frechet_distance_between_files"], 12, rel_tol=0.05)
    variance = 3 * (255 / 256)**2 / 12  # of the three pixels, by which the other judge's is given
    assert math.isclose(found["random_frechet_distance_between_files"], 12 / variance,
                        rel_tol=0.1)
