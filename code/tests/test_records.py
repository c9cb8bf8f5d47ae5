"""Files are written whole or not at all, and say where their numbers come from."""

import json
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from a3 import records
from a3.records import RunError, write_atomically, write_record, write_table

CODE = Path(records.__file__).parents[1]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def half(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_writers_of_one_file_do_not_get_in_each_others_way(tmp_path):
    path, together = tmp_path / "file", threading.Barrier(4, timeout=10)

    def write(number):
        def content(file):
            together.wait()  # every writer has its file open
            file.write(bytes([number]) * 1000)

        write_atomically(path, content)
        return path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(write, range(4)))
    assert all(len(content) == 1000 and len(set(content)) == 1 for content in seen)
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "file", b"")
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "file")]
    assert modes[0] == modes[1], list(map(oct, modes))


def test_kill_during_a_checkpoint_leaves_a_loadable_one(tmp_path):
    """A child saves without pause and is killed (SIGKILL) at several moments."""
    child = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(CODE)!r})
        from pathlib import Path
        import torch
        from a3.records import RunError, write_atomically
        for i in range(10**6):
            write_atomically(Path({str(tmp_path)!r}) / "last.pt",
                             lambda file: torch.save({{"i": i, "x": torch.full((500_000,), i)}},
                                                     file))
            print(i, flush=True)
        """)
    for delay_s in (0, 0.0007, 0.0031):
        with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
            process.stdout.readline()  # the first is complete
            time.sleep(delay_s)
            process.kill()
        state = torch.load(tmp_path / "last.pt", weights_only=True)
        assert (state["x"] == state["i"]).all()


def test_a_table_has_six_significant_digits(tmp_path):
    rows = [{"epoch": 0, "nats": 543.4271828, "seconds": 1.0},
            {"epoch": 1, "nats": 95.0, "seconds": 0.000123456789}]
    write_table(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_text() == (
        "epoch,nats,seconds\n0,543.427,1\n1,95,0.000123457\n")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_never_written(tmp_path, wrong):
    with pytest.raises(RunError, match=r"a.json' is not written: rows.1.nats is -?(nan|inf)"):
        write_record(tmp_path / "a.json", "cpu", rows=[{"nats": 1.0}, {"nats": wrong}])
    with pytest.raises(RunError, match=r"a.csv' is not written: 1.nats is"):
        write_table(tmp_path / "a.csv", [{"nats": 1.0}, {"nats": wrong}])
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder"):
        with pytest.raises(OSError, match=rf"'{path}' cannot be written \(.*\)$"):
            write_atomically(path, b"")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_a_record_says_where_its_numbers_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "describe_device", lambda device: f"{device}: Abacus")
    monkeypatch.setattr(records, "commit", lambda: "0123abc")
    record = write_record(tmp_path / "new" / "a.json", "cpu", nats=[1.5, None])
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == record
    assert record.pop("date").endswith("+00:00")
    evaluated = record.pop("evaluated")
    assert (evaluated["commit"], evaluated["device"]) == ("0123abc", "cpu: Abacus")
    assert evaluated["threads"] == torch.get_num_threads()
    assert record == {"nats": [1.5, None], "device": "cpu: Abacus", "commit": "0123abc",
                      "torch": torch.__version__}


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_commit_is_dirty_if_and_only_if_code_differs_from_it(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", tmp_path, *who, *command], check=True,
                              capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    assert records.commit() == "unknown", "there is no repository yet"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "notes").touch()
    assert records.commit() == head, "notes are no code"
    (tmp_path / "code" / "a.py").write_text("2")
    assert records.commit() == f"{head}-dirty"
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # as inside a git hook
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert records.commit() == f"{head}-dirty"
    monkeypatch.setattr(records, "REPOSITORY", tmp_path / "code")
    assert records.commit() == "unknown", "the repository around it is another one"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    assert records.commit() == "unknown", "without git"
