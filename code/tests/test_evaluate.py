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
from a3 import figures, judge_metrics, judge_trained
from a3.judge_comparison import BETTER_HIGH, Exam
from a3.runs import RunError, random_stream
from datasets import bernoulli, mnist
from helpers import SMALL_FLOW
from made_up import SMOKE

SCRIPTS = {"vae": (vae, ["--zdim", "3", "--hidden_dim", "16"]),
           "nf": (nf, ["--n_flows", "1", "--n_hidden", "8"]),
           "nf_multiscale": (nf_multiscale, []), "gan": (gan, [])}


@pytest.fixture(scope="module")
def results(tmp_path_factory, request) -> tuple[dict, dict, dict, list[str]]:
    """Compare tiny models, again with another seed and chunk, and then judge a VAE more.

    Returns:
        what the comparison said at these three times, and the flags.
    """
    out = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    for module, name, value in ((gan, "EVALUATION_SAMPLES", 300), (judge_metrics, "SUBSETS", 10),
                                *((nf_multiscale, *size) for size in SMALL_FLOW.items()),
                                (nf_multiscale, "ROUND_TRIPS", 20), (figures, "ZOOM", 1),
                                (evaluate, "MEMORY_SAMPLES", 100),
                                (judge_trained, "TIMED_SAMPLES", 50)):
        patch.setattr(module, name, value)
    flags = ["--dataset", "sample", "--device", "cpu", "--out", str(out), "--models", *SCRIPTS]
    for name, (script, own) in SCRIPTS.items():
        before = {*(out / "results").glob("*.json")}
        script.main([*SMOKE, "--epochs", "1", "--out", str(out), *own])
        (run,) = {*(out / "results").glob("*.json")} - before
        flags += [f"--{name}", run.stem]
    small = [*flags, "--samples", "300", "--repeats", "2", "--iw_samples", "3"]
    one = evaluate.main([*small, "--nll_samples", "40", "--chunk", "40"])
    again = [*small, "--nll_samples", "41", "--chunk", "7", "--seed", "7"]
    other = evaluate.main(again)
    later = evaluate.main([*again, "--only", seed(out, flags[flags.index("--vae") + 1])])
    return one, other, later, flags


def seed(out: Path, run: str, name: str | None = None) -> str:
    """Give a finished run another name, and return it; by default that of a further seed."""
    name = name or f"{run}-seed1"
    shutil.copytree(out / "checkpoints" / run, out / "checkpoints" / name)
    shutil.copy(out / "results" / f"{run}.json", out / "results" / f"{name}.json")
    return name


def load(flags: list[str]) -> dict[str, dict[str, judge_trained.Trained]]:
    """Load the models that are compared with these flags."""
    args = evaluate.parse_args(flags)
    return evaluate.load_models({name: getattr(args, name) for name in args.models}, args)


def test_the_comparison_has_the_same_keys_for_all_and_is_written(results):
    one, other, later, flags = results
    out = evaluate.parse_args(flags).out
    assert {frozenset(one[name]) for name in (*SCRIPTS, "floor")} == {frozenset(one["vae"])}
    assert "vae_best" not in one, "it is not among --models"
    written = {json.dumps(json.loads(file.read_text())): file.stem
               for file in (out / "results").glob("comparison*.json")}
    assert set(written) == {json.dumps(one), json.dumps(later)}
    drawn = {file.name for file in (out / "figures").glob("comparison*")}
    figures = {f"{model}-{figure}" for model in SCRIPTS
               for figure in ("samples.png", "nearest.png", "walk.png", "memory.pdf")}
    figures |= {"real-samples.png", "nf-bits.pdf", "nf_multiscale-bits.pdf"}
    assert drawn == {f"{name}-{figure}" for name in written.values() for figure in figures}
    assert one["gan"]["test_nll_nats"] is None and one["floor"]["test_nll_nats"] is None
    assert one["vae"]["test_nll_draws"] == 40 and other["vae"]["test_nll_draws"] == 41


def test_other_seeds_and_chunks_agree_within_the_stated_errors(results):
    one, other, _, _ = results
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
    one, *_ = results
    for name in SCRIPTS:
        for key, high in BETTER_HIGH.items():
            model, floor = one[name][key], one["floor"][key]
            if key not in ("density", "clear_share", "precision"):
                assert (floor >= model) if high else (floor <= model), (name, key, model, floor)


def test_the_round_trips_are_those_of_their_models(results):
    one, *_ = results
    assert one["nf"]["round_trip_rms"] < 0.01 < one["vae"]["round_trip_rms"]
    assert one["nf_multiscale"]["round_trip_rms"] == 0, "whole numbers come back as they were"
    assert one["gan"]["round_trip_rms"] is None


def test_the_clear_share_of_reconstructions_is_the_vaes(results):
    one = results[0]
    assert 0 <= one["vae"]["reconstruction_clear_share"] <= 1
    assert one["gan"]["reconstruction_clear_share"] is None


def test_real_images_are_as_clear_as_the_classifier_finds_them(results):
    args = evaluate.parse_args(["--dataset", "sample", "--device", "cpu", "--repeats", "1"])
    _, val, test = mnist(dataset="sample")
    exam = Exam(test.images / 255, test.labels, val.images / 255, bernoulli, args)
    digits = bernoulli(test.images / 255, random_stream(args.seed, "vae clear share"))
    logits = exam.judges[0](digits)
    expected = (logits.softmax(dim=1).amax(dim=1) > 0.9).float().mean()
    assert exam.clear_share("vae", test.images / 255) == expected > 0.8
    assert exam.clear_share("vae", torch.zeros(10, 784)) < 0.5


def test_the_loaded_models_are_those_of_the_runs_in_eval_mode(results):
    """The likelihoods are reached again: the weights are those of the checkpoint."""
    one, *_, flags = results
    models = {name: model for name, runs in load(flags).items() for model in runs.values()}
    for name, model in models.items():
        assert isinstance(model.network, nn.Module) and not model.network.training, name
    assert one["vae"]["test_elbo_nats"] == models["vae"].results["test_elbo_nats"]
    assert one["nf"]["test_bits_per_dim"] == models["nf"].results["test_bits_per_dim"]
    multiscale = models["nf_multiscale"].results["test_bits_per_dim"]
    assert math.isclose(one["nf_multiscale"]["test_bits_per_dim"], multiscale, rel_tol=1e-6)
    assert one["nf_multiscale"]["test_nll_nats"] is None, "it is exact, and no estimate"


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
    flags = results[-1]
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


def test_where_bits_are_spent_adds_up(results):
    one, *_ = results
    for name in ("nf", "nf_multiscale"):
        row = one[name]
        spent = row["test_bits_background"] + row["test_bits_edge"] + row["test_bits_inside"]
        assert math.isclose(spent / 784, row["test_bits_per_dim"], rel_tol=0.02)
    assert one["vae"]["test_bits_edge"] is None


# Trainings judged at different times -------------------------------------------------------------

def test_a_training_judged_later_has_the_numbers_that_it_had_among_all(results):
    """It is a copy of the first, so whatever differs would be of the order of judging."""
    _, other, later, flags = results
    run = flags[flags.index("--vae") + 1]
    assert list(later["vae"]["by_run"]) == [run, f"{run}-seed1"]
    first, second = later["vae"]["by_run"].values()
    assert first == other["vae"]["by_run"][run]
    same = {key for key, value in second["numbers"].items() if first["numbers"][key] == value}
    assert second["numbers"].keys() - same <= {"milliseconds_per_1000_samples"}
    assert {"frechet_distance", "nearer_to_train_share", "round_trip_rms"} <= same
    assert not any(key.startswith("test_") for key in second["numbers"]), "it has no likelihood"
    trained = json.loads((evaluate.parse_args(flags).out / f"results/{run}.json").read_text())
    assert first["weights_sha256"] == second["weights_sha256"] == trained["weights_sha256"]
    assert set(second["evaluated"]) == {"commit", "date", "device", "vector_instructions",
                                        "threads"}


def test_what_was_judged_before_stays_as_it_was(results):
    _, other, later, _ = results
    for name in ("gan", "nf", "nf_multiscale", "floor"):
        assert later[name] == other[name], name
    for key in ("seed", "samples", "nll_samples", "data", "classifier_sha256", "runs", "files",
                "second_judge_ranks_alike"):
        assert later[key] == other[key], key


def test_deviations_are_over_all_seeds_that_have_been_judged(results):
    _, other, later, _ = results
    assert [row["vae"]["trainings"] for row in (other, later)] == [1, 2]
    assert other["vae"]["frechet_distance_deviation"] is None
    for key in ("frechet_distance", "nearer_to_train_share"):
        assert later["vae"][f"{key}_deviation"] == 0, "it is the same training twice"
    assert later["vae"]["test_nll_nats"] == other["vae"]["test_nll_nats"]
    assert later["gan"]["trainings"] == 1 and later["gan"]["frechet_distance_deviation"] is None
    for row in (other["vae"], later["vae"], later["gan"], later["floor"]):
        assert row["frechet_distance_sampling_deviation"] > 0
    assert {other[name]["chosen_by"] for name in SCRIPTS} == {
        evaluate.LIKELIHOOD, evaluate.CHOSEN_BY["gan"]}


def test_only_runs_of_the_models_that_are_compared_are_judged(results):
    *_, flags = results
    with pytest.raises(RunError, match="^'--only vae-best': expected runs of the models that are "
                                       "compared, vae-z3") as error:
        evaluate.main([*flags, "--only", "vae-best"])
    assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="there is no finished run 'gan-.*-seed9'"):
        evaluate.main([*flags, "--only", f"{flags[flags.index('--gan') + 1]}-seed9"])


def test_a_missing_run_that_was_not_asked_for_is_left_out_with_a_line(results, capsys):
    flags = results[-1]
    out = evaluate.parse_args(flags).out
    here = ["--device", "cpu", "--out", str(out)]
    with pytest.raises(RunError, match="no finished run to compare"):
        load(here)
    seed(out, flags[flags.index("--gan") + 1], "gan")
    assert list(load(here)) == ["gan"]
    assert "nf_multiscale: left out, since there is no finished run 'nf-multiscale'" in (
        capsys.readouterr().out)


def test_the_floor_is_told_apart_into_files_and_number_of_images(results):
    one, *_ = results
    files = one["files"]
    assert files["images"] == 250, "half of the test images"
    for kind in ("", "random_"):
        assert files[f"{kind}frechet_distance_within_test"] > 0
    assert one["samples"] == 300 and 0 <= one["second_judge_ranks_alike"] <= 1




def test_a_gan_of_a_studys_recipe_is_refused_in_one_line(monkeypatch):
    state = {"flags": {"recipe": "without-R1", "latent_dim": 100, "loss": "nonsaturating"}}
    monkeypatch.setattr(evaluate, "finished_run", lambda *_: (state, {}))
    with pytest.raises(RunError, match="'gan-x' has the recipe 'without-R1' of a study"):
        evaluate.load_gan("gan-x", Namespace(out=None, device="cpu"))
