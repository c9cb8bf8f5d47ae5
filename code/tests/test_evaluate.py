"""The comparison, on models trained for an instant, and its parts on made-up numbers."""

import json
import math
from argparse import Namespace

import pytest
import torch
from torch import nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import digit_classifier
import evaluate
import sample_metrics as metrics
from cli import RunError
from datasets import Split
from importance import Estimate


@pytest.fixture(scope="module")
def results(tmp_path_factory, request) -> tuple[dict, dict, object]:
    """Compare three tiny models twice, with other seeds and chunks."""
    out = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    for module, name, value in ((gan, "EVALUATION_SAMPLES", 300), (gan, "SATURATION_UPDATES", 3),
                                (digit_classifier, "EPOCHS", 1), (metrics, "SUBSETS", 10)):
        patch.setattr(module, name, value)
    common = ["--dataset", "sample", "--device", "cpu", "--limit", "256", "--out", str(out)]
    names = {}
    for name, script, flags in (
            ("vae", vae, ["--epochs", "1", "--zdim", "2", "--hidden_dim", "16"]),
            ("nf", nf, ["--epochs", "1", "--n_flows", "1", "--n_hidden", "8"]),
            ("gan", gan, ["--n_epochs", "1"])):
        script.main([*common, *flags])
        newest = max((out / "results").glob(f"{name}*.json"), key=lambda f: f.stat().st_mtime)
        names[name] = newest.stem
    flags = ["--dataset", "sample", "--device", "cpu", "--out", str(out), "--samples", "300",
             "--repeats", "2", "--iw_samples", "3",
             *(text for name, run in names.items() for text in (f"--{name}", run))]
    one = evaluate.main([*flags, "--nll_samples", "40", "--chunk", "40"])
    other = evaluate.main([*flags, "--nll_samples", "41", "--chunk", "7", "--seed", "7"])
    return one, other, out


def test_the_comparison_has_the_same_keys_for_all_and_is_written(results):
    one, other, out = results
    assert set(one["vae"]) == set(one["gan"]) == set(one["nf"]) == set(one["floor"])
    assert json.loads((out / "results" / "comparison.json").read_text()) == other
    for figure in ("samples", "nearest", "walks"):
        assert (out / "figures" / f"comparison-{figure}.png").exists()
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
        error = math.hypot(floor[f"{key}_deviation"], again[f"{key}_deviation"])
        assert abs(floor[key] - again[key]) < 6 * error + 0.02, (key, floor[key], again[key])


def test_real_images_beat_untrained_models_in_every_measure(results):
    one, _, _ = results
    for name in ("vae", "gan", "nf"):
        for key, high in evaluate.BETTER_HIGH.items():
            model, floor = one[name][key], one["floor"][key]
            if key not in ("density", "clear_share"):
                assert (floor >= model) if high else (floor <= model), (name, key, model, floor)


def test_every_model_ranks_in_every_measure(results):
    one, _, _ = results
    for key in evaluate.BETTER_HIGH:
        ranks = sorted(one[name]["ranks"][key] for name in ("vae", "gan", "nf"))
        assert ranks[0] == 1 and ranks[-1] <= 3


def test_the_round_trips_are_those_of_their_models(results):
    one, _, _ = results
    assert one["nf"]["round_trip_rms"] < 0.01 < one["vae"]["round_trip_rms"]
    assert one["gan"]["round_trip_rms"] is None


def test_ranks_go_by_the_direction_of_the_measure_and_share_ties():
    table = {name: {**dict.fromkeys(evaluate.BETTER_HIGH, value), "precision": 0.5}
             for name, value in (("vae", 1.0), ("gan", 2.0), ("nf", 3.0))}
    evaluate.rank(table)
    assert [table[name]["ranks"]["recall"] for name in ("vae", "gan", "nf")] == [3, 2, 1]
    assert [table[name]["ranks"]["frechet_distance"] for name in ("vae", "gan", "nf")] == [1, 2, 3]
    assert [table[name]["ranks"]["precision"] for name in ("vae", "gan", "nf")] == [1, 1, 1]


def test_means_and_deviations_are_over_repeats():
    rows = [{"recall": value, "class_shares": [value, 1 - value]} for value in (0.2, 0.4)]
    table = evaluate.over_repeats(rows)
    assert math.isclose(table["recall"], 0.3)
    assert math.isclose(table["recall_deviation"], math.sqrt(0.02))
    assert table["class_shares"] == pytest.approx([0.3, 0.7])
    assert evaluate.over_repeats(rows[:1])["recall_deviation"] is None


def test_copies_of_training_images_are_seen_as_memorised():
    torch.manual_seed(0)
    train, unseen = (torch.rand(2, 400, 784) < 0.3).float()
    numbers, usual = evaluate.memorisation(unseen, train, None)
    assert abs(numbers["nearer_than_1_percent_of_test_share"] - 0.01) < 0.005
    copied, _ = evaluate.memorisation(train[:50], train, usual)
    assert copied["nearer_than_1_percent_of_test_share"] == 1
    assert copied["nearest_train_median_distance"] < 0.1


def test_estimates_are_given_in_both_units():
    nll = torch.full((4,), 784 * math.log(2) * 3, dtype=torch.float64)
    estimate = Estimate(nll, torch.ones(4).double())
    row = evaluate.in_units(estimate, "test_nll", 5)
    assert math.isclose(row["test_nll_bits_per_dim"], 3)
    assert math.isclose(row["test_nll_draw_error_nats"], 0.5)
    assert row["test_nll_image_error_nats"] < 1e-9 and row["test_nll_draws"] == 5


def test_a_missing_run_is_told_in_one_line(tmp_path):
    with pytest.raises(RunError, match="'nowhere' is not there or was stopped; make it with "
                                       "code/a3_vae_template.py --resume"):
        evaluate.main(["--vae", "nowhere", "--device", "cpu", "--out", str(tmp_path)])


def test_networks_are_in_eval_mode(results):
    _, _, out = results
    args = evaluate.parse_args(["--device", "cpu", "--out", str(out), *(
        text for name in ("vae", "gan", "nf") for text in (
            f"--{name}", next((out / "results").glob(f"{name}*.json")).stem))])
    for model in evaluate.load_models(args).values():
        assert isinstance(model.network, nn.Module) and not model.network.training


def test_every_repeat_draws_the_real_images_anew_and_alike_for_all_models(monkeypatch):
    """What the samples are measured against differs by repeat, and by nothing else."""
    seen = []

    def measure(images, real, digits, classifier, noise):
        seen.append(real)
        return {"frechet_distance": 1.0, "coverage": 1.0}

    monkeypatch.setattr(evaluate, "features", lambda classifier, images: images)
    monkeypatch.setattr(evaluate, "sample_quality", measure)
    grey = torch.full((20, 784), 128, dtype=torch.uint8)
    test = Split(grey, None, labels=torch.zeros(20, dtype=torch.int64))
    model = Namespace(draw=lambda number, noise: torch.rand(number, 784, generator=noise))
    evaluate.compare_samples({"vae": model}, test, grey / 255, None,
                             Namespace(seed=1, samples=20, repeats=2))
    assert len(seen) == 4 and not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
