"""A run loses nothing: checkpoints, resuming, Ctrl-C, unfinished files, results and refusals."""

import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from a3 import checkpoints, cli, figures, records, runs
from a3.fetch import Source
from a3.records import write_atomically
from a3.runs import (
    Interrupted,
    Run,
    RunError,
    epoch_sum,
    finished_run,
    one_cycle,
    random_stream,
)
from helpers import arguments

SOURCE = Source("bmnist", "test images", "0" * 64)


def draw_curve(run: Run) -> None:
    """Draw what there is: the number of epochs."""
    write_atomically(run.figure("curve.pdf"), f"{len(run.history)} epochs".encode())


def train(out: Path, *more: str, stop: int | None = None, loss=lambda epoch: 1.0,
          draw=draw_curve) -> Run:
    """Train one weight a random step an epoch; stop as by Ctrl-C in the middle of one."""
    run = Run("test", arguments(out, *more), SOURCE)
    weight, order = torch.nn.Linear(1, 1), torch.Generator().manual_seed(0)
    run.keep(model=weight, order=order)
    run.resume()
    run.weight = weight
    with run.training(draw):
        for epoch in run.epochs():
            step = torch.randn(()) + torch.rand((), generator=order)
            with torch.no_grad():
                weight.bias += step
            if epoch == stop:
                raise KeyboardInterrupt
            run.record("", train_loss=loss(epoch), step=float(step))
            run.snapshots[epoch] = {"bias": weight.bias.detach().clone()}
    return run


def train_until(stop: int, out: Path, *more: str, **options) -> str:
    """Train, stop in the middle of an epoch, and return the message."""
    with pytest.raises(Interrupted) as stopped:
        train(out, *more, stop=stop, **options)
    return str(stopped.value)


def finish(run: Run, **numbers) -> dict:
    draw_curve(run)
    run.reload()
    return run.finish(**numbers)


def files(out: Path) -> dict[str, bytes]:
    """Return the figures and results under a folder, by their names."""
    return {path.name: path.read_bytes() for folder in ("figures", "results")
            for path in (out / folder).iterdir()}


def table(path: Path) -> list[tuple]:
    """Return the epochs and losses of a table."""
    return [(int(row["epoch"]), float(row["train_loss"]))
            for row in csv.DictReader(path.read_text().splitlines())]


# Resuming ----------------------------------------------------------------------------------------

def test_resumed_equals_uninterrupted_to_the_last_bit(tmp_path):
    whole = train(tmp_path / "whole")
    train_until(3, tmp_path / "parts")
    resumed = train(tmp_path / "parts", "--resume")
    assert torch.equal(whole.weight.bias, resumed.weight.bias)
    assert [row["step"] for row in whole.history] == [row["step"] for row in resumed.history]
    assert all(torch.equal(whole.snapshots[epoch]["bias"], resumed.snapshots[epoch]["bias"])
               for epoch in range(5))


def test_keep_only_names_and_resume_loads_if_it_was_asked_for(tmp_path):
    bias = train(tmp_path).weight.bias
    for more, epochs in (((), 0), (("--resume",), 5)):
        run, weight = Run("test", arguments(tmp_path, *more), SOURCE), torch.nn.Linear(1, 1)
        run.keep(model=weight)
        assert run.history == [] and weight.bias != bias, more
        run.resume()
        assert len(run.history) == epochs, (more, len(run.history))
        assert (weight.bias == bias) == bool(epochs), (more, weight.bias, bias)


def test_resuming_without_a_checkpoint_begins(tmp_path, capsys):
    assert len(train(tmp_path, "--resume").history) == 5
    assert "starting from the beginning" in capsys.readouterr().out


def test_resuming_refuses_other_flags_other_data_and_damage(tmp_path, monkeypatch):
    train(tmp_path)
    with pytest.raises(RunError, match=r"--lr 0.001 there, 0.5 here"):
        train(tmp_path, "--resume", "--lr", "0.5")
    with pytest.raises(RunError, match=r"--precision float32 there, bfloat16 here"):
        train(tmp_path, "--resume", "--precision", "bfloat16")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", Source("bmnist", "others", "1" * 64))
    with pytest.raises(RunError, match="other data"):
        train(tmp_path, "--resume")
    checkpoint = tmp_path / "checkpoints/test/last.pt"
    (checkpoint.parent / "previous.pt").unlink()
    for content in (b"damaged", {"foreign": 1}):
        checkpoint.unlink()
        if isinstance(content, bytes):
            checkpoint.write_bytes(content)
        else:
            torch.save(content, checkpoint)
        with pytest.raises(RunError, match="cannot be read as a checkpoint"):
            train(tmp_path, "--resume")


@pytest.mark.parametrize(("begun", "resumed"), [((), ("--dataset", "bmnist")),
                                                (("--dataset", "bmnist"), ())])
def test_equal_data_may_be_named_or_found(tmp_path, begun, resumed):
    """The hash decides, and not whether --dataset is auto or names what auto takes."""
    train_until(2, tmp_path, *begun)
    assert len(train(tmp_path, "--resume", *resumed).history) == 5


def test_what_only_the_evaluation_uses_may_differ(tmp_path):
    """Draws of the final likelihood: the training, its name and its checkpoint are the same."""
    def run(draws: int, *more: str) -> Run:
        parser = cli.flags("a test", epochs=4, lr=1e-3, batch_size=8, sources=("sample",))
        parser.add_argument("--iw_samples", type=int, default=16)
        args = cli.parse(parser, ["--out", str(tmp_path), "--device", "cpu", "--iw_samples",
                                  str(draws), *more])
        assert cli.run_name("flow", args) == "flow"
        one = Run("flow", args, Source("", "", ""))
        one.keep(model=torch.nn.Linear(2, 2))
        one.resume()
        for _ in one.epochs():
            one.record("", loss=1.0)
        return one

    first = finish(run(16))
    again = finish(run(500, "--resume"))
    assert (first["flags"]["iw_samples"], again["flags"]["iw_samples"]) == (16, 500)
    finished_run("flow", tmp_path, "", "iw_samples")  # and it may take part in the comparison


# Ctrl-C ------------------------------------------------------------------------------------------

def test_ctrl_c_draws_what_has_been_trained_and_says_how_to_go_on(tmp_path):
    seen = []

    def draw(run):
        seen.append((len(run.history), run.weight.bias.item(),
                     {epoch: moment["bias"].item() for epoch, moment in run.snapshots.items()}))

    message = train_until(3, tmp_path, draw=draw)
    assert "stopped after epoch 2" in message and "--resume" in message, message
    whole = train(tmp_path / "whole").snapshots
    moments = {epoch: whole[epoch]["bias"].item() for epoch in range(3)}
    assert seen == [(3, moments[2], moments)], "as after the last whole epoch"


def test_ctrl_c_before_the_first_checkpoint_touches_no_older_one(tmp_path):
    finish(train(tmp_path))
    checkpoint, before = tmp_path / "checkpoints/test/last.pt", files(tmp_path)
    older = checkpoint.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "--lr", "0.5", stop=0)
    assert checkpoint.read_bytes() == older and files(tmp_path) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_while_a_checkpoint_is_written_waits_until_it_is(tmp_path, monkeypatch, capsys,
                                                                number, status):
    save, saved = torch.save, []

    def stopped(state, file):
        saved.append(1)
        if len(saved) == 2:
            signal.raise_signal(number)
        save(state, file)

    monkeypatch.setattr(torch, "save", stopped)
    with pytest.raises(SystemExit) as stop:
        cli.exit_with(lambda: train(tmp_path))
    assert stop.value.code == status
    assert re.search("stopped after epoch 1; to go on, give the same command with --resume",
                     capsys.readouterr().out)
    assert len(checkpoints.read(tmp_path / "checkpoints/test/last.pt")["history"]) == 2


def test_a_stop_after_the_training_says_how_to_go_on(tmp_path, capsys):
    def main(trouble):
        train(tmp_path, "--resume")
        raise trouble

    for trouble, stream in ((KeyboardInterrupt(), "out"), (OSError("full"), "err"),
                            (MemoryError(), "err")):
        with pytest.raises(SystemExit):
            cli.exit_with(lambda trouble=trouble: main(trouble))
        told = getattr(capsys.readouterr(), stream).splitlines()[-1]
        assert "to go on, give the same command with --resume" in told, told


def test_a_full_disk_is_told_with_the_path_and_costs_no_good_checkpoint(tmp_path, monkeypatch,
                                                                        capsys):
    fsync, written = os.fsync, []

    def full(number):
        written.append(number)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SystemExit) as stop:
            cli.exit_with(lambda: train(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1
    assert re.match(r"error: '/.*' cannot be written \(No space left on device\); to go on, give "
                    "the same command with --resume", line), line
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(train(tmp_path, "--resume").history) == 5
    assert "resumed after epoch 2" in capsys.readouterr().out


# Damage ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, bytes, bytes]:
    """Train once; return the folder and its last two checkpoints."""
    out = tmp_path_factory.mktemp("trained")
    train(out)
    return out, *((out / "checkpoints/test" / name).read_bytes()
                  for name in ("last.pt", "previous.pt"))


@pytest.mark.parametrize("damage", ["bit", "zeros", "cut", "empty", "missing", "longer"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, trained, tmp_path, capsys):
    """The resumed run ends as the whole one did, whatever befell its last checkpoint."""
    _, last, previous = trained
    folder = tmp_path / "checkpoints/test"
    folder.mkdir(parents=True)
    (folder / "previous.pt").write_bytes(previous)
    places = range(0, len(last), 97) if damage == "bit" else [len(last) // 2]
    for place in places:
        damaged = {"bit": last[:place] + bytes([last[place] ^ 1]) + last[place + 1:],
                   "zeros": last[:place] + bytes(64) + last[place + 64:], "cut": last[:place],
                   "empty": b"", "longer": last + b"0", "missing": None}[damage]
        (folder / "last.pt").unlink(missing_ok=True)
        if damaged is not None:
            (folder / "last.pt").write_bytes(damaged)
            with pytest.raises(RunError, match="cannot be read as a checkpoint"):
                checkpoints.read(folder / "last.pt")
    run = train(tmp_path, "--resume")
    told = capsys.readouterr().out
    assert "taking the one before it, after epoch 3" in told and "resumed after epoch 3" in told
    assert torch.equal(run.weight.bias, checkpoints.read(
        trained[0] / "checkpoints/test/last.pt")["kept"]["model"]["bias"])


@pytest.mark.parametrize(("part", "broken"), [
    ("history", []), ("history", [{"epoch": 0}]), ("history", "abc"), ("provenance", []),
    ("provenance", [1]), ("snapshots", {9: {}}), ("snapshots", {0: {"a": 1}}), ("kept", {}),
    ("random", {}), ("flags", [1]), ("data", None)])
def test_a_checkpoint_with_foreign_parts_is_refused_in_one_line(part, broken, trained, tmp_path):
    folder = tmp_path / "checkpoints/test"
    state = {**checkpoints.read(trained[0] / "checkpoints/test/last.pt"), part: broken}
    checkpoints.save(state, folder / "last.pt")
    with pytest.raises(RunError, match="cannot be read as a checkpoint") as error:
        train(tmp_path, "--resume")
    assert "\n" not in str(error.value)


def test_a_finished_checkpoint_is_set_aside_by_a_fresh_run(tmp_path, capsys):
    finish(train(tmp_path))
    folder = tmp_path / "checkpoints/test"
    finished = (folder / "last.pt").read_bytes()
    train_until(2, tmp_path)
    assert f"an earlier run is kept as '{folder}/epoch-4.pt'" in capsys.readouterr().out
    train_until(1, tmp_path)
    assert (folder / "epoch-4.pt").read_bytes() == finished, "nor does a second one lose it"
    assert {path.name for path in folder.glob("*.pt")} == {"epoch-4.pt", "epoch-1.pt", "last.pt"}
    (folder / "epoch-4.pt").replace(folder / "last.pt")
    assert len(train(tmp_path, "--resume").history) == 5


def test_every_fresh_run_of_one_length_is_kept(tmp_path):
    folder, whole = tmp_path / "checkpoints/test", []
    for _ in range(3):
        finish(train(tmp_path))
        whole.append((folder / "last.pt").read_bytes())
    kept = [(folder / name).read_bytes() for name in ("epoch-4.pt", "epoch-4-2.pt", "last.pt")]
    assert kept == whole


def test_results_name_the_weights_of_the_checkpoint_whatever_evaluation_does_to_them(tmp_path):
    """As the GAN does, which computes the batch statistics of its average anew."""
    run = train(tmp_path)
    run.reload()
    with torch.no_grad():
        run.weight.bias += 1e-6
    named = run.finish()["weights_sha256"]
    saved = checkpoints.read(tmp_path / "checkpoints/test/last.pt")["kept"]["model"]
    assert named == checkpoints.weights_sha256(saved)


# One run, one owner ------------------------------------------------------------------------------

OTHER = """
import sys; sys.path[:0] = {path!r}
from pathlib import Path
from types import SimpleNamespace
import test_runs
test_runs.Run("test", test_runs.arguments(Path({out!r})), test_runs.SOURCE)
print("begun", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(checkpoints.fcntl is None, reason="needs the locks of Unix")
def test_a_second_process_of_one_run_is_refused_until_the_first_has_ended(tmp_path):
    tests = Path(__file__).parent
    code = OTHER.format(path=[str(tests), str(tests.parent)], out=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        while other.stdout.readline() not in ("begun\n", ""):
            pass
        with pytest.raises(RunError, match=f"being trained by process {other.pid} on ") as error:
            train(tmp_path)
        other.kill()
    assert "\n" not in str(error.value)
    assert len(train(tmp_path).history) == 5


# Until a run has finished ------------------------------------------------------------------------

def test_files_are_partial_until_the_run_has_finished(tmp_path):
    sibling = tmp_path / "figures" / "test-seed1-partial-a.png"
    sibling.parent.mkdir()
    sibling.write_text("another run's")
    run = train(tmp_path)
    assert run.figure("a.png") == tmp_path / "figures" / "test-partial-a.png"
    run.figure("a.png").write_text("a")
    draw_curve(run)
    assert set(files(tmp_path)) == {"test-partial-a.png", "test-partial-curve.pdf",
                                    "test-partial.csv", sibling.name}
    finish(run)
    assert set(files(tmp_path)) == {"test-a.png", "test-curve.pdf", "test.csv", "test.json",
                                    sibling.name}
    assert (tmp_path / "figures" / "test-a.png").read_text() == "a"


def test_the_partial_table_has_a_row_an_epoch_also_of_a_stopped_run(tmp_path):
    seen, partial = [], tmp_path / "results" / "test-partial.csv"

    def loss(epoch):
        seen.append(table(partial) if partial.exists() else [])
        return float(10 - epoch)

    rows = [(epoch, 10.0 - epoch) for epoch in range(5)]
    train_until(3, tmp_path, loss=loss)
    assert table(partial) == rows[:3]
    run = train(tmp_path, "--resume", loss=loss)
    assert seen == [rows[:epoch] for epoch in range(5)], seen
    assert table(partial) == rows
    finish(run)
    assert table(tmp_path / "results" / "test.csv") == rows and not partial.exists()


def test_a_stop_while_the_results_are_written_ends_a_run_that_is_done(
        tmp_path, monkeypatch, capsys):
    run, write = train(tmp_path), runs.write_json

    def stopped(*args) -> None:
        signal.raise_signal(signal.SIGTERM)
        write(*args)

    monkeypatch.setattr(runs, "write_json", stopped)
    with pytest.raises(SystemExit) as end:
        cli.exit_with(lambda: finish(run))
    *_, done, _, last = capsys.readouterr().out.splitlines()
    assert done.startswith("done: ") and last == "stopped" and end.value.code == 143
    assert {"test.csv", "test.json"} <= set(files(tmp_path))


def test_a_new_run_is_not_told_to_go_on_with_the_last(tmp_path, monkeypatch):
    """In a notebook, one process has many."""
    monkeypatch.setattr(Run, "unfinished", "the last")
    Run("test", arguments(tmp_path), SOURCE)
    assert runs.how_to_go_on() == ""


def test_an_unfinished_run_changes_no_file_of_a_finished_one(tmp_path):
    finish(train(tmp_path), test_loss=0.5)
    finished = files(tmp_path)
    train_until(2, tmp_path, loss=lambda epoch: 9.0)
    after = files(tmp_path)
    assert after == {**finished, **{name: after[name] for name in (
        "test-partial.csv", "test-partial-curve.pdf")}}
    assert after["test-partial-curve.pdf"] == b"2 epochs"
    finish(train(tmp_path, "--resume", loss=lambda epoch: 9.0), test_loss=0.25)
    replaced = files(tmp_path)
    assert set(replaced) == set(finished) and replaced["test.csv"] != finished["test.csv"]


def test_only_a_resumed_run_keeps_the_partial_figures_that_there_are(tmp_path):
    def draw_update(run):
        run.figure(f"update-{len(run.history)}.png").touch()

    def updates():
        return {name for name in files(tmp_path) if "update" in name}

    train_until(2, tmp_path, draw=draw_update)
    train_until(3, tmp_path, "--resume", draw=draw_update)
    assert updates() == {"test-partial-update-2.png", "test-partial-update-3.png"}
    train_until(1, tmp_path, draw=draw_update)
    assert updates() == {"test-partial-update-1.png"}, "those of the run given up are gone"


def test_the_moments_are_named_start_half_and_end(tmp_path):
    def names(run):
        return [(name, next(epoch for epoch in run.snapshots if run.snapshots[epoch] is moment))
                for name, moment in run.named_moments()]

    seen = []
    train_until(2, tmp_path, draw=lambda run: seen.append(names(run)))
    train_until(4, tmp_path, "--resume", draw=lambda run: seen.append(names(run)))
    assert seen == [[("start", 0), ("end", 1)], [("start", 0), ("half", 2), ("end", 3)]]
    whole = train(tmp_path, "--resume")
    assert names(whole) == [("start", 0), ("half", 2), ("end", 4)]


# Numbers -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("shown", [
    "-ELBO: train 106.12, val 106.34 nats (KL 25.00), 20 units",
    "loss D: train 1.386, val 1.386; G 0.693; D(x) 0.50, D(G(z)) 0.50"])
def test_an_epoch_is_one_short_line_and_a_row_of_numbers(tmp_path, capsys, monkeypatch, shown):
    run = Run("test", arguments(tmp_path, "--epochs", "300"), SOURCE)
    capsys.readouterr()
    clock = iter([0.0, 5.0, 5.0, 17.0, 17.0, 77.0, 77.0, 91.0])  # epochs of 5, 12, 60 and 14 s
    monkeypatch.setattr(runs.time, "perf_counter", lambda: next(clock))
    for epoch in run.epochs():
        run.record(shown, val_nats=1.5 - epoch, kl=2.0)
        if epoch == 3:
            break
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"[  0/300] {shown}; 5.0 s", f"[  1/300] {shown}; 12.0 s, 59:48 left",
                     f"[  2/300] {shown}; 60.0 s, 178:48 left",
                     f"[  3/300] {shown}; 14.0 s, 69:18 left"]  # by the median, 14 s
    assert max(map(len, lines)) <= 100, max(map(len, lines))
    assert run.history[1] == {"epoch": 1, "val_nats": 0.5, "kl": 2.0, "seconds": 12.0}
    assert run.last_numbers() == {"val_nats": -1.5, "kl": 2.0}


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(RunError, match="train_loss became nan in epoch 3"):
        train(tmp_path, loss=lambda epoch: float("nan") if epoch == 3 else 1.0)
    state = torch.load(tmp_path / "checkpoints/test/last.pt", weights_only=True)
    assert state["history"][-1]["epoch"] == 2


@pytest.mark.parametrize(("key", "fine"), [("val_elbo_nats", False), ("val_bits_per_dim", False),
                                           ("val_d_loss", True)])
def test_a_loss_ten_times_that_of_the_untrained_model_stops(tmp_path, key, fine):
    run = Run("test", arguments(tmp_path), SOURCE)
    run.record("", **{key: 5.0})
    run.record("", **{key: 49.0})
    if fine:
        run.record("", **{key: 51.0})
    else:
        with pytest.raises(RunError, match=f"{key} is 51 in epoch 2, of the untrained model 5: "
                                           "the training diverged.*lower --lr"):
            run.record("", **{key: 51.0})
        with pytest.raises(RunError, match="at the end"):
            run.finish(**{key.replace("val", "test"): 1e10})


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_weights_that_no_loss_shows_are_not_saved_unless_finite(tmp_path, wrong):
    run, weight = Run("test", arguments(tmp_path), SOURCE), torch.nn.Linear(1, 1)
    run.keep(model=weight)
    with pytest.raises(RunError, match="model.bias became nan in epoch 2; the last good check"):
        for epoch in run.epochs():
            run.record("", loss=1.0)
            weight.bias.data.fill_(wrong if epoch == 2 else 1.0)
    assert checkpoints.read(run.checkpoint)["history"][-1]["epoch"] == 1


def test_a_final_number_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(RunError, match="test_loss became nan at the end"):
        finish(train(tmp_path), test_loss=float("nan"))
    assert set(files(tmp_path)) == {"test-partial.csv", "test-partial-curve.pdf"}


def test_the_files_of_a_run_hold_every_number(tmp_path):
    run = train(tmp_path)
    results = finish(run, test_loss=0.5, verdict="healthy", error=None)
    assert results == json.loads((tmp_path / "results/test.json").read_text())
    assert {"test_loss", "verdict", "error", "epochs", "epoch_seconds", "train_seconds", "flags",
            "seed", "data", "device", "precision", "versions", "commit", "date"} <= set(results)
    assert "changed" not in results["flags"] and results["flags"]["lr"] == 0.001
    rows = (tmp_path / "results/test.csv").read_text().splitlines()
    assert rows[0] == "epoch,train_loss,step,seconds" and len(rows) == 6
    assert run.moments == results["snapshot_epochs"] == [0, 1, 2, 3, 4]


def test_the_results_name_every_machine_and_commit_that_trained(tmp_path, monkeypatch):
    train_until(2, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "commit", lambda: "another")
        train(tmp_path, "--resume")
    results = finish(train(tmp_path, "--resume"))  # trains nothing more
    assert results["commit"] == "another"
    assert [one["commit"] for one in results["begun_on"]] == [runs.commit()]


def test_the_results_name_who_evaluated_beside_who_trained(tmp_path, monkeypatch):
    first = finish(train(tmp_path))
    for module in (runs, records):
        monkeypatch.setattr(module, "commit", lambda: "later")
    monkeypatch.setattr(records, "describe_device", lambda device: "elsewhere")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    again = finish(train(tmp_path, "--resume"))
    for key in ("commit", "device", "vector_instructions"):
        assert again[key] == first[key] == first["evaluated"][key], key
    assert (again["evaluated"]["commit"], again["evaluated"]["device"],
            again["evaluated"]["threads"]) == ("later", "elsewhere", 7)
    assert again["evaluated"]["date"] >= first["evaluated"]["date"]


@pytest.mark.parametrize(("asked", "fast", "used"), [
    ("auto", True, "bfloat16"), ("auto", False, "float32"), ("float32", True, "float32"),
    ("bfloat16", False, "bfloat16")])
def test_auto_is_the_precision_that_the_hardware_is_good_at(tmp_path, monkeypatch, asked, fast,
                                                            used):
    monkeypatch.setattr(runs, "multiplies_bfloat16", lambda device: fast)
    run = Run("test", arguments(tmp_path, "--precision", asked), SOURCE)
    assert (run.precision, run.bfloat16) == (used, used == "bfloat16")
    assert run.provenance[0]["precision"] == used


def test_auto_goes_on_in_what_another_machine_is_good_at(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "multiplies_bfloat16", lambda device: True)
    train_until(2, tmp_path, "--precision", "auto")
    monkeypatch.setattr(runs, "multiplies_bfloat16", lambda device: False)
    with pytest.raises(RunError, match="--precision bfloat16 there, float32 here"):
        train(tmp_path, "--resume", "--precision", "float32")
    results = finish(train(tmp_path, "--resume", "--precision", "auto"))
    assert results["precision"] == "float32" and "note:" not in capsys.readouterr().out
    assert [one["precision"] for one in results["begun_on"]] == ["bfloat16"]


def test_slow_bfloat16_that_was_asked_for_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "multiplies_bfloat16", lambda device: False)
    Run("test", arguments(tmp_path, "--precision", "bfloat16"), SOURCE)
    assert "note: this hardware is not known to multiply bfloat16 fast" in capsys.readouterr().out


def test_a_gpu_keeps_its_own_random_numbers_whatever_its_number(tmp_path, monkeypatch):
    state = {"cuda:0": torch.zeros(1), "cuda:1": torch.ones(1)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", state.get)
    monkeypatch.setattr(torch.cuda, "set_rng_state",
                        lambda random, device: state.update({device: random}))
    run = Run("test", arguments(tmp_path), SOURCE)
    run.device = "cuda:1"
    run.record("", loss=1.0)
    run._save()
    run.device = "cuda:0"
    run.reload()
    assert state["cuda:0"].item() == 1


def test_a_finished_run_is_found_and_others_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"no finished run 'test'; make it with code/a.py --resume"):
        finished_run("test", tmp_path, "a.py", "lr")
    train_until(2, tmp_path)
    with pytest.raises(RunError, match=r"test.json' is missing"):
        finished_run("test", tmp_path, "a.py", "lr")
    run = train(tmp_path, "--resume")
    written = finish(run, test_loss=0.5)
    state, results = finished_run("test", tmp_path, "a.py", "lr")
    assert results == written and torch.equal(state["kept"]["model"]["bias"], run.weight.bias)
    run.checkpoint.write_bytes(b"damaged")
    with pytest.raises(RunError, match="cannot be read as a checkpoint"):
        finished_run("test", tmp_path, "a.py", "lr")


def test_results_of_another_checkpoint_are_refused(tmp_path):
    """As where the results are committed and the run was only begun, or begun anew."""
    written = finish(train(tmp_path), test_loss=0.5)
    file = tmp_path / "results/test.json"
    others = {"weights": {"weights_sha256": "0" * 64}, "data": {"data": {"sha256": "1"}},
              "--lr": {"flags": {**written["flags"], "lr": 0.5}}, "step": {"step": 7.0}}
    for part, other in others.items():
        file.write_text(json.dumps({**written, **other}))
        with pytest.raises(RunError, match=rf"is not of '.*last.pt' \(they differ in {part}\)"):
            finished_run("test", tmp_path, "a.py", "lr")
    file.write_text(json.dumps(written))
    train_until(2, tmp_path)
    with pytest.raises(RunError, match="was stopped after epoch 1 of 4; finish it"):
        finished_run("test", tmp_path, "a.py", "lr")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"<html>", b"\xff\xfe\0", b'{"epochs": 4}',
                                     b'{"epochs": "4", "flags": {}, "data": {"sha256": ""}}'])
def test_results_that_are_damaged_or_foreign_are_refused_in_one_line(trained, content):
    (trained[0] / "results/test.json").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read as the results of a run") as error:
        finished_run("test", trained[0], "a.py", "lr")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["results/test.json", "figures/test-curve.pdf",
                                  "checkpoints/test/last.pt"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_training(tmp_path, path):
    (tmp_path / path).mkdir(parents=True)
    with pytest.raises(RunError, match=f"{path}' is in the place of a file"):
        Run("test", arguments(tmp_path), SOURCE)


def test_folders_that_vanish_during_the_run_are_made_anew(tmp_path):
    def loss(epoch):
        if epoch == 3:
            shutil.rmtree(tmp_path)
        return 1.0

    finish(train(tmp_path, loss=loss))
    assert set(files(tmp_path)) == {"test.csv", "test.json", "test-curve.pdf"}


def test_what_a_killed_write_left_is_removed_by_the_next_run(tmp_path):
    left = [tmp_path / name for name in (
        "checkpoints/test/next.pt.0f.tmp", "results/test.json.0f.tmp",
        "figures/test-partial-curve.pdf.0f.tmp")]
    others = tmp_path / "results/test-seed1.json.0f.tmp"
    for path in (*left, others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Run("test", arguments(tmp_path), SOURCE)
    assert others.exists() and not any(path.exists() for path in left)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="choose another folder with --out"):
        Run("test", arguments(tmp_path / "file"), SOURCE)


def test_runs_that_start_together_in_a_new_folder_all_start(tmp_path):
    together = threading.Barrier(8, timeout=10)

    def start(folder):
        together.wait()
        runs.make_writable(folder)

    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            list(pool.map(start, [tmp_path / str(number)] * 8))
            assert list((tmp_path / str(number)).iterdir()) == [], "nothing is left"


# Schedules and noise -----------------------------------------------------------------------------

def adam(lr: float = 3.0, betas: tuple = (0.9, 0.999)) -> torch.optim.Adam:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=lr, betas=betas)


def rates_of(optimizer: torch.optim.Optimizer, updates: int) -> list[tuple[float, float]]:
    """Return the learning rate and momentum of each update."""
    used = []

    def use(*_):
        group = optimizer.param_groups[0]
        used.append((group["lr"], group["betas"][0]))

    last = optimizer.register_step_pre_hook(use)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a schedule that steps too early warns
        for _ in range(updates):
            optimizer.step()
    last.remove()
    return used


@pytest.mark.parametrize("updates", [1, 2, 5, 10, 11, 20, 33, 400])
def test_the_schedule_follows_each_step_up_to_its_peak_and_down_to_nothing(updates):
    optimizer = adam(lr=3.0)
    schedule = one_cycle(optimizer, updates)
    rates, momenta = zip(*rates_of(optimizer, updates), strict=True)
    assert schedule.last_epoch == updates, "one step of the schedule for each of the optimizer"
    assert math.isclose(rates[0], 3.0 / 25), rates[0]
    peak = rates.index(max(rates))
    assert min(rates) > 0 and max(rates) < 3.0 + 1e-9
    assert list(rates[: peak + 1]) == sorted(rates[: peak + 1])
    assert list(rates[peak:]) == sorted(rates[peak:], reverse=True)
    if updates >= 20:
        assert max(rates) > 2.8 and rates[-1] < 0.1 and peak <= 0.1 * updates
        assert momenta[peak] == min(momenta) < 0.86 and momenta[-1] > 0.94


def test_a_resumed_schedule_goes_on_where_it_was():
    whole, first, second = adam(), adam(), adam()
    one_cycle(whole, 40)
    schedule, resumed = one_cycle(first, 40), one_cycle(second, 40)
    expected, begun = rates_of(whole, 40), rates_of(first, 15)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert begun + rates_of(second, 25) == expected


@pytest.mark.parametrize("cycle_momentum", [True, False])
def test_only_a_cycle_with_momentum_touches_it(cycle_momentum):
    optimizer = adam(betas=(0.5, 0.9))
    one_cycle(optimizer, 100, cycle_momentum)
    assert optimizer.param_groups[0]["betas"] == ((0.95, 0.9) if cycle_momentum else (0.5, 0.9))
    momenta = {momentum for _, momentum in rates_of(optimizer, 30)}
    assert (momenta == {0.5}) == (not cycle_momentum), momenta


def test_the_sums_of_an_epoch_lose_nothing_to_single_precision():
    values = [torch.tensor([2.0**24, 1.0]), torch.tensor([1.0, 2.0])]
    assert epoch_sum(values).tolist() == [2**24 + 1, 3]
    assert epoch_sum([2**24, 1]).dtype == torch.float64


def test_streams_of_different_uses_differ_and_repeat():
    draws = [torch.rand(1, generator=random_stream(seed, use)).item()
             for seed, use in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))]
    assert draws[0] == draws[1] and len(set(draws)) == 3


# TensorBoard -------------------------------------------------------------------------------------

class Board:
    """Keeps what a SummaryWriter is asked to write, by folder and step, like its files."""

    written: dict = {}  # noqa: RUF012

    def __init__(self, folder: str, purge_step: int):
        self.shown = self.written.setdefault(folder, {})
        for step in [step for step in self.shown if step >= purge_step]:
            del self.shown[step]
        self.kept = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.flush()

    def add_scalar(self, key: str, value: float, step: int) -> None:
        """Keep a number until it is flushed."""
        self.kept.setdefault(step, {})[key] = value

    def add_image(self, key: str, image: np.ndarray, step: int, dataformats: str) -> None:
        """Keep an image until it is flushed."""
        assert dataformats == "HW" and image.dtype == np.uint8
        self.kept[step][key] = image

    def flush(self) -> None:
        """Write what was kept."""
        self.shown.update(self.kept)


def train_with_images(out: Path, *more: str, stop: int | None = None) -> Run:
    """Train an instant, with 25 images at each of the five moments."""
    run = Run("test", arguments(out, "--epochs", "8", *more), SOURCE)
    run.keep(model=torch.nn.Linear(1, 1))
    run.resume()
    with run.training(draw_curve):
        for epoch in run.epochs():
            if epoch == stop:
                raise KeyboardInterrupt
            run.record("", train_loss=1.0 + epoch)
            if epoch in run.moments:
                run.snapshots[epoch] = {"samples": torch.full((25, 784), epoch / 10)}
    return run


def check_curves(shown: dict[int, dict]) -> None:
    """Raise unless every epoch is there, with its numbers, and the five moments with images."""
    assert sorted(shown) == list(range(9))
    for epoch, values in shown.items():
        assert values.keys() - {"samples"} == {"train_loss", "seconds"}
        assert values["train_loss"] == 1.0 + epoch
        assert ("samples" in values) == (epoch in (0, 2, 4, 6, 8)), epoch
        if "samples" in values:
            assert (values["samples"] == figures.tile(
                torch.full((25, 784), epoch / 10), 5)).all()


def test_tensorboard_shows_numbers_of_each_epoch_and_images_of_each_moment(tmp_path, monkeypatch):
    """Stopped and resumed or not, and again from the beginning, which takes back the old."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard",
                        SimpleNamespace(SummaryWriter=Board))
    monkeypatch.setattr(Board, "written", {})
    folder = str(tmp_path / "checkpoints/test/tensorboard")
    with pytest.raises(Interrupted):
        train_with_images(tmp_path, "--tensorboard", stop=3)
    assert sorted(Board.written[folder]) == [0, 1, 2]
    train_with_images(tmp_path, "--tensorboard", "--resume")
    assert list(Board.written) == [folder]
    check_curves(Board.written[folder])
    with pytest.raises(Interrupted):
        train_with_images(tmp_path, "--tensorboard", stop=2)
    assert sorted(Board.written[folder]) == [0, 1]


def test_without_the_flag_nothing_is_shown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it would raise
    train_with_images(tmp_path)
    assert not list(tmp_path.rglob("*tensorboard*"))


def test_without_the_package_the_flag_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as stop:
        arguments(tmp_path, "--tensorboard")
    assert stop.value.code == 2
    told = capsys.readouterr().err.split(": error: ")[1]
    assert told.startswith("'--tensorboard' needs the package tensorboard (") and \
        told.endswith("give pip install tensorboard, or leave the flag out\n") and \
        told.count("\n") == 1, told


def test_tensorboard_itself_reads_the_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Interrupted):
        train_with_images(tmp_path, "--tensorboard", stop=3)
    train_with_images(tmp_path, "--tensorboard", "--resume")
    events = accumulator.EventAccumulator(str(tmp_path / "checkpoints/test/tensorboard"),
                                          size_guidance={"images": 0})  # all
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("train_loss")] == [
        (epoch, 1.0 + epoch) for epoch in range(9)]
    assert [one.step for one in events.Images("samples")] == [0, 2, 4, 6, 8]
