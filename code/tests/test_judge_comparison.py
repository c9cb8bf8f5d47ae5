"""The comparison's table on made-up numbers: ranks and means over repeats."""

import math

import pytest

from a3 import judge_comparison as comparison


def test_ranks_go_by_the_direction_of_the_measure_and_share_ties():
    table = {name: {**dict.fromkeys(comparison.BETTER_HIGH, value), "precision": 0.5}
             for name, value in (("vae", 1.0), ("gan", 2.0), ("nf", 3.0))}
    comparison.rank(table)
    for key, ranks in {"recall": [3, 2, 1], "frechet_distance": [1, 2, 3],
                       "precision": [1, 1, 1]}.items():
        assert [table[name]["ranks"][key] for name in ("vae", "gan", "nf")] == ranks, key
    assert all(set(row["ranks"]) == set(comparison.BETTER_HIGH) for row in table.values())


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
