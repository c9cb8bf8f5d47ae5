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
    assert math.isclose(table["recall_deviation"], math.sqrt(0.02))
    assert table["class_shares"] == pytest.approx([0.3, 0.7])
    assert comparison.over_repeats(rows[:1])["recall_deviation"] is None
