"""The soak's quick parts, on a sample: absurd flags, damaged files."""

import pytest
import test_runs

import soak
from a3 import checkpoints, fetch


def test_absurd_flags_end_in_one_line_with_status_2():
    tried, troubles = soak.absurd_flags(every=8)
    assert tried >= 300 and not troubles, troubles[:5]


def test_damaged_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PUBLISHED", dict(fetch.PUBLISHED))
    test_runs.train(tmp_path)
    path = tmp_path / "checkpoints/test/last.pt"
    found = {kind: (number, troubles) for kind, number, troubles in soak.damaged_files(
        tmp_path, path, 20)}
    assert set(found) == {"idx", "idx_gz", "amat", "amat_gz", "npz", "checkpoint", "judge"}
    assert not any(troubles for _, troubles in found.values()), found
    assert sum(number for number, _ in found.values()) >= 80


def test_a_reader_that_looks_away_is_found_out(tmp_path, monkeypatch):
    """The soak itself sees what it is made to see."""
    monkeypatch.setattr(fetch, "PUBLISHED", dict(fetch.PUBLISHED))
    monkeypatch.setattr(checkpoints, "read", lambda path: {})
    test_runs.train(tmp_path)
    path = tmp_path / "checkpoints/test/last.pt"
    found = {kind: troubles for kind, _, troubles in soak.damaged_files(tmp_path, path, 5)}
    assert found["checkpoint"] and not found["idx"], found


@pytest.mark.parametrize("name", ["killed", "stopped", "disk_full", "not_finite"])
def test_the_trials_are_of_all_kinds(name):
    assert name in {group for group, *_ in soak.trials(1.0)}
    assert sum(soak.KILLS.values()) >= 200
    assert sum(soak.KILLS.values()) + sum(soak.STOPS.values()) >= 300
