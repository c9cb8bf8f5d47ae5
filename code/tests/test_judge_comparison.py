"""The comparison on made-up numbers and images: measures, ranks, trainings of different times."""

import json
import math
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from a3 import judge_comparison as comparison
from a3 import judge_metrics as metrics
from a3.runs import RunError


def test_ranks_go_by_the_direction_of_the_measure_and_share_ties():
    table = {name: {**dict.fromkeys(comparison.BETTER_HIGH, value), "precision": 0.5}
             for name, value in (("vae", 1.0), ("gan", 2.0), ("nf", 3.0))}
    comparison.rank(table)
    high, low = [3, 2, 1], [1, 2, 3]
    for key, ranks in {"recall": high, "density": high, "coverage": high, "clear_share": high,
                       "frechet_distance": low, "random_frechet_distance": low,
                       "kernel_distance": low, "class_divergence_nats": low,
                       "precision": [1, 1, 1]}.items():
        assert [table[name]["ranks"][key] for name in ("vae", "gan", "nf")] == ranks, key
    assert all(set(row["ranks"]) == set(comparison.BETTER_HIGH) for row in table.values())


def test_every_judge_and_every_digit_is_measured_by_its_own(monkeypatch):
    """The judges see other pixels; of 40 samples 30 are zeros and 10 ones, 30 of them clear."""
    monkeypatch.setattr(comparison, "features", lambda judge, images: images[:, judge].double())
    monkeypatch.setattr(comparison, "classify", lambda judge, images: (
        images[:, 9].long(), 0.8 + 0.2 * (images[:, 9] == 0)))
    noise = torch.Generator().manual_seed(0)
    images, real = torch.randn(2, 40, 784, generator=noise)
    images[:, 9] = torch.arange(40) % 4 == 0
    ours, theirs = [0, 1, 2], [3, 4]
    row = comparison.measure_samples(
        images, [real[:, judge].double() for judge in (ours, theirs)], torch.arange(40) % 10,
        [ours, theirs], noise)
    variance = real[:, theirs].double().var(dim=0).sum().item()
    distances = [metrics.frechet_distance(images[:, judge].double(), real[:, judge].double())
                 for judge in (ours, theirs)]
    assert row["frechet_distance"] == pytest.approx(distances[0])
    assert row["random_frechet_distance"] == pytest.approx(distances[1] / variance)
    assert row["class_divergence_nats"] == pytest.approx(
        0.75 * math.log(7.5) + 0.25 * math.log(2.5))
    assert row["class_shares"] == pytest.approx([0.75, 0.25, *[0] * 8])
    assert row["clear_share"] == 0.75


def test_means_and_deviations_are_over_repeats():
    rows = [{"recall": value, "class_shares": [value, 1 - value]} for value in (0.2, 0.4)]
    table = comparison.over_repeats(rows)
    assert math.isclose(table["recall"], 0.3)
    assert math.isclose(table["recall_sampling_deviation"], math.sqrt(0.02))
    assert table["class_shares"] == pytest.approx([0.3, 0.7])
    assert comparison.over_repeats(rows[:1])["recall_sampling_deviation"] is None


def test_deviations_over_trainings_and_over_draws_have_names_of_their_own():
    tables = [{"recall": value, "recall_sampling_deviation": noise, "class_shares": [value, 1.0]}
              for value, noise in ((0.2, 0.01), (0.4, 0.03))]
    table = comparison.over_trainings(tables)
    assert table == {"trainings": 2, "recall": pytest.approx(0.3),
                     "recall_deviation": pytest.approx(math.sqrt(0.02)),
                     "recall_sampling_deviation": pytest.approx(0.02),
                     "class_shares": pytest.approx([0.3, 1.0])}
    alone = comparison.over_trainings([{"recall": 0.2, "recall_sampling_deviation": None}])
    assert alone == {"trainings": 1, "recall": 0.2, "recall_deviation": None,
                     "recall_sampling_deviation": None}


def test_the_judges_agree_on_the_pairs_that_both_order_alike():
    def ranked(ones, others):
        return {str(i): {"ranks": {"frechet_distance": a, "random_frechet_distance": b}}
                for i, (a, b) in enumerate(zip(ones, others, strict=True))}

    assert comparison.agreement(ranked([1, 2, 3], [1, 2, 3])) == 1
    assert comparison.agreement(ranked([1, 2, 3], [3, 2, 1])) == 0
    assert comparison.agreement(ranked([1, 2, 3], [2, 1, 3])) == pytest.approx(2 / 3)
    assert comparison.agreement(ranked([1, 2, 3], [1, 1, 3])) == pytest.approx(2 / 3)
    assert comparison.agreement(ranked([1], [1])) is None


def test_counts_and_texts_are_the_first_trainings_and_what_one_has_has_no_deviation():
    tables = [{"epochs": 40, "trained_on": "a", "round_trip_rms": None, "test_nll_nats": 91.0},
              {"epochs": 40, "trained_on": "b", "round_trip_rms": None}]
    table = comparison.over_trainings(tables)
    assert table == {"trainings": 2, **tables[0], "test_nll_nats_deviation": None}
    assert isinstance(table["epochs"], int)
    assert comparison.over_trainings(tables[:1]).keys() == table.keys()


# The exam ----------------------------------------------------------------------------------------

def exam(monkeypatch, test: torch.Tensor, unseen: torch.Tensor, judges: tuple, **options
         ) -> comparison.Exam:
    """Return an exam whose judges are factors, and their features three pixels times these."""
    given = iter(judges)
    monkeypatch.setattr(comparison, "judge", lambda kind, device: (
        next(given), {"classifier_sha256": kind}))
    monkeypatch.setattr(comparison, "features", lambda one, images: one * images[:, :3].double())
    return comparison.Exam(test, torch.zeros(len(test), dtype=torch.int64), unseen,
                           options.pop("binary", lambda images, noise: images),
                           Namespace(**options, device="cpu"))


def test_every_repeat_draws_the_real_images_anew_and_alike_for_all_models(monkeypatch):
    """What the samples are measured against differs by repeat, and by nothing else."""
    seen = []

    def measure(images, real, digits, judges, noise):
        assert len(images) == 15 and judges == [1.0, 2.0]
        assert torch.equal(2 * real[0], real[1]), "both judges see the same images"
        seen.append((images, real[0]))
        return {"frechet_distance": 1.0}

    monkeypatch.setattr(comparison, "measure_samples", measure)
    images = torch.full((20, 784), 0.5)
    held = exam(monkeypatch, images, images, (1.0, 2.0), seed=1, samples=15, repeats=2,
                binary=lambda x, noise: (torch.rand(x.shape, generator=noise) < x).float())
    assert held.facts == {"classifier_sha256": "binary", "second_judge_sha256": "random"}
    for _ in range(2):
        held.samples("vae", lambda number, noise: torch.rand(number, 784, generator=noise))
    floor = held.floor()
    assert floor["trainings"] == 1 and floor["frechet_distance_sampling_deviation"] == 0
    (first, real), (second, other), *later = seen
    assert len(seen) == 6 and not torch.equal(real, other) and not torch.equal(first, second)
    for (drawn, against), before in zip(later[:2], seen[:2], strict=True):  # the other training
        assert torch.equal(drawn, before[0]) and torch.equal(against, before[1])
    assert [torch.equal(against, one) for (_, against), one in zip(
        later[2:], (real, other), strict=True)] == [True, True]


def test_other_files_show_beside_the_number_of_images(monkeypatch):
    """The unseen images are two steps away from the test images."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4000, 784), generator=noise) / 255
    found = exam(monkeypatch, images, images[:3000] + 2, (1.0, 5.0), seed=0, samples=10_000,
                 repeats=3).files()
    assert found["images"] == 2000
    assert found["frechet_distance_within_test"] < 0.01
    assert math.isclose(found["frechet_distance_between_files"], 12, rel_tol=0.05)
    variance = 3 * (256 / 255)**2 / 12  # of the three pixels, by which the other judge's is given
    assert math.isclose(found["random_frechet_distance_between_files"], 12 / variance,
                        rel_tol=0.1)


# Trainings judged at different times -------------------------------------------------------------

SETTINGS = {"seed": 42, "samples": 10, "data": {"sha256": "d"}}
RUNS = {"vae": "vae-z20", "gan": "gan"}


def training(recall: float, weights: str = "w") -> dict:
    """Return the record of a training."""
    return {"numbers": dict.fromkeys(comparison.BETTER_HIGH, recall), "weights_sha256": weights,
            "evaluated": {}}


def earlier(folder: Path, **changed) -> Path:
    """Write a comparison of a VAE's two trainings and a GAN's; return its file."""
    judged = {"vae": {"vae-z20": training(0.2), "vae-z20-seed1": training(0.4)},
              "gan": {"gan": training(0.5)}}
    rows = comparison.rows_of(judged, comparison.over_trainings([training(0.9)["numbers"]]))
    file = folder / "comparison.json"
    file.write_text(json.dumps({**rows, **SETTINGS, **changed}))
    return file


def test_a_seed_that_is_judged_later_joins_its_siblings(tmp_path, capsys):
    judged = comparison.merged({"vae": {"vae-z20-seed2": training(0.9)}}, earlier(tmp_path),
                               SETTINGS, RUNS)
    assert {key: list(runs) for key, runs in judged.items()} == {
        "vae": ["vae-z20", "vae-z20-seed1", "vae-z20-seed2"], "gan": ["gan"]}
    rows = comparison.rows_of(judged, {"recall": 1.0})
    assert rows["vae"]["trainings"] == 3 and math.isclose(rows["vae"]["recall"], 0.5)
    assert math.isclose(rows["vae"]["recall_deviation"], math.sqrt(0.13))
    assert rows["gan"]["recall"] == 0.5 and rows["gan"]["recall_deviation"] is None
    assert rows["gan"]["ranks"]["recall"] == 1 and rows["floor"]["ranks"] is None
    assert capsys.readouterr().out == ""


def test_a_training_that_is_judged_again_takes_its_own_place(tmp_path):
    judged = comparison.merged({"vae": {"vae-z20": training(0.3, "another")}}, earlier(tmp_path),
                               SETTINGS, RUNS)
    assert [one["numbers"]["recall"] for one in judged["vae"].values()] == [0.3, 0.4]


@pytest.mark.parametrize(("changed", "reason"), [
    ({"seed": 7, "data": {"sha256": "e"}}, "which were judged with another seed, data"),
    ({"samples": None}, "which were judged with another samples"),
    ({"vae": {"recall": 0.5}}, "which another version wrote")])
def test_rows_that_were_judged_otherwise_are_dropped(changed, reason, tmp_path, capsys):
    now = {"gan": {"gan": training(0.9)}}
    assert comparison.merged(now, earlier(tmp_path, **changed), SETTINGS, RUNS) == now
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dropped: all rows of") and reason in line


def test_a_damaged_or_missing_comparison_has_no_rows(tmp_path, capsys):
    now = {"gan": {"gan": training(0.9)}}
    file = tmp_path / "comparison.json"
    assert comparison.merged(now, file, SETTINGS, RUNS) == now and not capsys.readouterr().out
    file.write_text("{")
    assert comparison.merged(now, file, SETTINGS, RUNS) == now
    assert "damaged" in capsys.readouterr().out


def test_a_run_that_was_trained_anew_is_dropped_with_a_line(tmp_path, capsys):
    file = earlier(tmp_path)
    for run, weights in (("vae-z20", "w"), ("vae-z20-seed1", "another"), ("gan", "another")):
        (tmp_path / f"{run}.json").write_text(json.dumps({"weights_sha256": weights}))
    judged = comparison.merged({"gan": {"gan": training(0.9, "another")}}, file, SETTINGS, RUNS)
    assert {key: list(runs) for key, runs in judged.items()} == {"vae": ["vae-z20"],
                                                                 "gan": ["gan"]}
    assert judged["gan"]["gan"]["numbers"]["recall"] == 0.9
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dropped: vae-z20-seed1 of ") and "trained anew" in line


def test_what_is_judged_is_all_seeds_or_those_that_are_named(tmp_path, capsys):
    for run in ("gan", "gan-seed1", "gan-template", "gan-seed1-lr2", "vae-z20-seed2"):
        (tmp_path / f"{run}.json").touch()
    assert comparison.to_judge(RUNS, None, (), tmp_path) == {"gan": ["gan", "gan-seed1"]}
    assert "vae: left out, since there is no finished run 'vae-z20'" in capsys.readouterr().out
    assert comparison.to_judge(RUNS, None, ["vae"], tmp_path)["vae"] == ["vae-z20",
                                                                         "vae-z20-seed2"]
    assert comparison.to_judge(RUNS, ["vae-z20-seed2"], (), tmp_path) == {
        "vae": ["vae-z20-seed2"]}
    with pytest.raises(RunError, match="'--only gan-template': expected runs"):
        comparison.to_judge(RUNS, ["gan", "gan-template"], (), tmp_path)
