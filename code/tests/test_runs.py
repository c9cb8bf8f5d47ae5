"""A run loses nothing: checkpoints, resuming, Ctrl-C, records and refusals."""

import argparse
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import runs
from cli import flags
from datasets import Source
from runs import Interrupted, Run, RunError, generator, write_atomically

CODE = Path(runs.__file__).parent
SOURCE = Source("bmnist", "test images", "0" * 64)


def arguments(out: Path, *more: str) -> argparse.Namespace:
    parser = flags("a test", epochs=4, lr=1e-3, batch_size=8, sources=("bmnist", "sample"))
    return parser.parse_args(["--out", str(out), "--device", "cpu", *more])


def train(out: Path, *more: str, stop: int | None = None, loss=lambda epoch: 1.0) -> Run:
    """Train one weight a random step an epoch; stop as by Ctrl-C in the middle of one."""
    run = Run("test", arguments(out, *more), SOURCE)
    weight, order = torch.nn.Linear(1, 1), torch.Generator().manual_seed(0)
    run.keep(model=weight, order=order)
    run.weight = weight
    with run.training():
        for epoch in run.epochs():
            step = torch.randn(()) + torch.rand((), generator=order)
            with torch.no_grad():
                weight.bias += step
            if epoch == stop:
                raise KeyboardInterrupt
            run.record(train_loss=loss(epoch), step=float(step))
            run.snapshots[epoch] = {"bias": weight.bias.detach().clone()}
    return run


def test_resumed_equals_uninterrupted_to_the_last_bit(tmp_path):
    whole = train(tmp_path / "whole")
    stopped = train(tmp_path / "parts", stop=3)
    assert stopped.interrupted and len(stopped.history) == 3
    torch.manual_seed(12345)
    resumed = train(tmp_path / "parts", "--resume")
    assert torch.equal(whole.weight.bias, resumed.weight.bias)
    assert [row["step"] for row in whole.history] == [row["step"] for row in resumed.history]
    assert all(torch.equal(whole.snapshots[epoch]["bias"], resumed.snapshots[epoch]["bias"])
               for epoch in range(5))


def test_ctrl_c_says_how_to_go_on(tmp_path):
    run = train(tmp_path, stop=2)
    with pytest.raises(Interrupted, match="--resume"):
        run.reload()


def test_ctrl_c_before_the_first_checkpoint_touches_no_older_one(tmp_path):
    train(tmp_path)
    before = (tmp_path / "checkpoints/test/last.pt").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "--lr", "0.5", stop=0)
    assert (tmp_path / "checkpoints/test/last.pt").read_bytes() == before


def test_figures_of_a_stopped_run_stand_beside_those_of_a_whole_one(tmp_path):
    run = train(tmp_path, stop=2)
    partial = run.figure("a.png")
    partial.touch()
    resumed = train(tmp_path, "--resume")
    assert resumed.figure("a.png").name == "test-a.png" != partial.name
    resumed.reload()
    resumed.finish()
    assert not partial.exists(), "a finished run leaves no partial figures"


def test_a_final_number_that_is_not_finite_is_refused(tmp_path):
    run = train(tmp_path)
    run.reload()
    with pytest.raises(RunError, match="test_loss became nan at the end"):
        run.finish(test_loss=float("nan"))


def test_the_results_name_every_machine_and_commit_that_trained(tmp_path, monkeypatch):
    train(tmp_path, stop=2)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "commit", lambda: "another")
        train(tmp_path, "--resume")
    run = train(tmp_path, "--resume")  # trains nothing more
    run.reload()
    results = run.finish()
    assert results["commit"] == "another"
    assert [one["commit"] for one in results["begun_on"]] == [runs.commit()]


@pytest.mark.parametrize("updates", [1, 2, 5, 10, 11, 20, 33, 400])
def test_the_schedule_rises_to_its_peak_and_falls_to_nothing(updates):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=3.0)
    schedule, rates, momenta = runs.one_cycle(optimizer, updates), [], []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step()
    peak = rates.index(max(rates))
    assert min(rates) > 0 and max(rates) < 3.0 + 1e-9
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if updates >= 20:
        assert max(rates) > 2.8 and rates[-1] < 0.1 and peak <= 0.1 * updates
        assert momenta[peak] == min(momenta) < 0.86 and momenta[-1] > 0.94


@pytest.mark.parametrize("cycle_momentum", [True, False])
def test_only_a_cycle_with_momentum_touches_it(cycle_momentum):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], betas=(0.5, 0.9))
    runs.one_cycle(optimizer, 100, cycle_momentum)
    assert (optimizer.param_groups[0]["betas"] == (0.5, 0.9)) == (not cycle_momentum)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(RunError, match="train_loss became nan in epoch 3"):
        train(tmp_path, loss=lambda epoch: float("nan") if epoch == 3 else 1.0)
    state = torch.load(tmp_path / "checkpoints/test/last.pt", weights_only=True)
    assert state["history"][-1]["epoch"] == 2


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
    for content in (b"damaged", {"foreign": 1}):
        checkpoint.unlink()
        if isinstance(content, bytes):
            checkpoint.write_bytes(content)
        else:
            torch.save(content, checkpoint)
        with pytest.raises(RunError, match="cannot be read as a checkpoint"):
            train(tmp_path, "--resume")


def test_resuming_without_a_checkpoint_begins(tmp_path, capsys):
    assert len(train(tmp_path, "--resume").history) == 5
    assert "starting from the beginning" in capsys.readouterr().out


def test_the_files_of_a_run_hold_every_number(tmp_path):
    run = train(tmp_path)
    run.reload()
    results = run.finish(test_loss=0.5)
    assert results == json.loads((tmp_path / "results/test.json").read_text())
    assert {"test_loss", "epochs", "epoch_seconds", "train_seconds", "flags", "seed", "data",
            "device", "precision", "versions", "commit", "date"} <= set(results)
    rows = (tmp_path / "results/test.csv").read_text().splitlines()
    assert rows[0] == "epoch,train_loss,step,seconds" and len(rows) == 6
    assert run.moments == [0, 1, 2, 3, 4]


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


def test_kill_during_a_checkpoint_leaves_a_loadable_one(tmp_path):
    """A child saves without pause and is killed (SIGKILL) at several moments."""
    child = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(CODE)!r})
        from pathlib import Path
        import torch
        from runs import write_atomically
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


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="choose another folder with --out"):
        Run("test", arguments(tmp_path / "file"), SOURCE)


def test_generators_of_different_uses_differ_and_repeat():
    draws = [torch.rand(1, generator=generator(seed, use)).item()
             for seed, use in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))]
    assert draws[0] == draws[1] and len(set(draws)) == 3
