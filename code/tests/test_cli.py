"""Flags, names and errors, as a user of the command line meets them."""

import argparse
from pathlib import Path

import pytest

import cli
from cli import flags, run_name
from datasets import DataError, Source
from runs import Interrupted, RunError


def arguments(out: Path, *more: str) -> argparse.Namespace:
    parser = flags("a test", epochs=4, lr=1e-3, batch_size=8, sources=("bmnist", "sample"))
    return parser.parse_args(["--out", str(out), "--device", "cpu", *more])


@pytest.mark.parametrize("wrong", [
    ("--epochs", "0"), ("--epochs", "1.5"), ("--batch_size", "-3"), ("--lr", "-1"),
    ("--lr", "nan"), ("--lr", "inf"), ("--device", "tpu"), ("--seed", "-1"),
    ("--precision", "float64"), ("--dataset", "cifar"), ("--limit", "0")])
def test_a_wrong_flag_is_named_in_one_line_with_status_2(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        arguments(tmp_path, *wrong)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert wrong[0] in last and wrong[1] in last, last


@pytest.mark.parametrize(("error", "status"), [
    (RunError("no"), 1), (DataError("no"), 1), (OSError("disk full"), 1),
    (Interrupted("later"), 130),
    (KeyboardInterrupt(), 130)])
def test_what_a_user_can_cause_ends_in_one_line(error, status, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.exit_with(main)
    assert stop.value.code == status
    told = capsys.readouterr()
    assert len((told.out + told.err).strip().splitlines()) == 1


@pytest.mark.parametrize(("more", "source", "name"), [
    ((), "bmnist", "vae"), (("--seed", "1"), "bmnist", "vae-seed1"),
    (("--epochs", "9", "--limit", "5"), "bmnist", "vae-epochs9-limit5"),
    (("--lr", "0.1", "--batch_size", "7"), "bmnist", "vae-batch_size7-lr0.1"),
    (("--precision", "bfloat16"), "bmnist", "vae-precisionbfloat16"),
    (("--resume",), "bmnist", "vae"), ((), "sample", "vae-sample")])
def test_only_the_full_run_bears_the_plain_name(tmp_path, more, source, name):
    args = arguments(tmp_path, *more)
    defaults = arguments(tmp_path)
    assert run_name("vae", args, defaults, Source(source, "", ""), "bmnist") == name
