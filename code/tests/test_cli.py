"""Flags, recipes, names and errors, as a user of the command line meets them."""

import argparse
from a3.cli import parse, run_name

import pytest
import torch

from a3 import cli
from a3.fetch import DataError, Source, data_folder
from a3.interrupts import Stopped
from a3.records import RunError
from a3.runs import Interrupted, Run
from helpers import arguments

SOURCE = Source("bmnist", "", "")


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


@pytest.mark.parametrize(("kind", "good", "value", "bad"), [
    (cli.positive_int, "1", 1, "0"), (cli.positive_int, "1000000", 10**6, "1000001"),
    (cli.units, "10000", 10_000, "10001"), (cli.positive_float, "1e-9", 1e-9, "0"),
    (cli.positive_float, "1000", 1000.0, "1000.1"), (cli.non_negative_float, "1e6", 1e6, "1e300"),
    (cli.non_negative_float, "0", 0.0, "-1e-9"), (cli.share, "0.99", 0.99, "1"),
    (cli.seed_int, str(2**63 - 1), 2**63 - 1, str(2**63))])
def test_numbers_are_taken_up_to_their_bounds(kind, good, value, bad):
    assert kind(good) == value and type(kind(good)) is type(value)
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{bad}' is not a .* from .* to "):
        kind(bad)


@pytest.mark.parametrize("wrong", [
    "--epochs=--", "--epochs=" + "9" * 400, "--epochs=" + "9" * 9000, "--epochs=1\n2",
    "--lr=1e300", "--out=a\0b", f"--out={'a' * 5000}", "--out=", "--dataset=a\nb",
    "--no\nsuch=1"])
def test_absurd_values_end_in_one_short_line_with_status_2(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        arguments(tmp_path, wrong)
    assert stop.value.code == 2
    usage, last = capsys.readouterr().err.split(": error: ")
    assert usage.startswith("usage:") and last.count("\n") == 1 and len(last) < 500, last
    assert wrong.split("=")[0].split("\n")[0] in last, last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["", "../run", "a/b", "a b", "-x", "x\0", "x" * 161, "~root"])
def test_what_is_no_name_of_a_run_is_refused(wrong):
    assert cli.run_label("vae-z20-lr0.1+e_2") == "vae-z20-lr0.1+e_2"
    with pytest.raises(argparse.ArgumentTypeError, match="is not the name of a run"):
        cli.run_label(wrong)


@pytest.mark.parametrize(("error", "status", "out", "err"), [
    (RunError("no"), 1, "", "error: no"), (DataError("no"), 1, "", "error: no"),
    (OSError("disk full"), 1, "", "error: disk full"), (Interrupted("later"), 130, "later", ""),
    (Interrupted("later", Stopped(15)), 143, "later", ""), (RunError("a\nb"), 1, "", "error: a b"),
    (KeyboardInterrupt(), 130, "stopped", ""), (Stopped(15), 143, "stopped", ""),
    *((error, 1, "", "error: there is not enough memory; lower --batch_size, the draws at once, "
       "or the sizes of the networks") for error in (
           MemoryError(), torch.OutOfMemoryError("CUDA out of memory."),
           RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")))])
def test_what_a_user_can_cause_ends_in_one_line(error, status, out, err, capsys, monkeypatch):
    monkeypatch.setattr(Run, "unfinished", None)  # whatever other tests have left

    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.exit_with(main)
    assert stop.value.code == status
    told = capsys.readouterr()
    assert (told.out.strip(), told.err.strip()) == (out, err)


def test_other_errors_are_not_hidden():
    def main():
        raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake"):
        cli.exit_with(main)


# Recipes and what was changed --------------------------------------------------------------------

RECIPES = {None: {}, "big": {"zdim": 40, "lr": 0.5}}


def variant(*argv: str) -> argparse.Namespace:
    """Parse the flags of a script with a recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", choices=["big"], default=None)
    parser.add_argument("--zdim", type=cli.positive_int, default=20)
    parser.add_argument("--lr", type=cli.positive_float, default=0.1)
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--cases", nargs="+", default=["a", "b"])
    return parse(parser, argv, RECIPES)


def test_a_flag_counts_as_changed_if_it_differs_from_its_default():
    assert variant().changed == {}
    assert variant("--zdim", "20", "--lr", "1e-1", "--cases", "a", "b").changed == {}
    assert variant("--lr", "0.2", "--flat", "--cases", "b").changed == {
        "lr": 0.2, "flat": True, "cases": ["b"]}


def test_a_recipe_sets_defaults_which_flags_still_override():
    args = variant("--recipe", "big")
    assert (args.zdim, args.lr, args.changed) == (40, 0.5, {"recipe": "big"})
    args = variant("--zdim", "20", "--recipe", "big", "--lr", "0.5")
    assert (args.zdim, args.lr) == (20, 0.5)
    assert args.changed == {"recipe": "big", "zdim": 20}, "against the recipe's defaults"
    assert (variant().zdim, variant().lr) == (20, 0.1), "without a recipe"


# Names -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("more", "source", "name"), [
    ((), "bmnist", "vae"), (("--seed", "1"), "bmnist", "vae-seed1"),
    (("--epochs", "9", "--limit", "5"), "bmnist", "vae-epochs9-limit5"),
    (("--lr", "0.1", "--batch_size", "7"), "bmnist", "vae-batch_size7-lr0.1"),
    (("--precision", "bfloat16"), "bmnist", "vae-precisionbfloat16"),
    (("--resume", "--data_root", "elsewhere"), "bmnist", "vae"), ((), "sample", "vae-sample"),
    (("--dataset", "bmnist"), "bmnist", "vae"), (("--dataset", "sample"), "sample", "vae-sample")])
def test_only_the_full_run_bears_the_plain_name(tmp_path, more, source, name):
    assert run_name("vae", arguments(tmp_path, *more), Source(source, "", ""), "bmnist") == name


def test_flags_that_the_method_names_are_not_named_again():
    args = variant("--recipe", "big", "--zdim", "3")
    assert run_name("vae-big", args, SOURCE, "bmnist", named=["recipe"]) == "vae-big-zdim3"
    assert run_name("vae-big-z3", args, SOURCE, "bmnist", named=["recipe", "zdim"]) == "vae-big-z3"


def test_what_trains_nothing_names_the_flag_of_its_data(tmp_path):
    args = arguments(tmp_path, "--dataset", "sample")
    assert run_name("comparison", args) == "comparison-datasetsample"


def test_a_list_in_a_name_has_no_sign_that_a_file_may_not_have():
    args = variant("--cases", "beta 0.25", "cure: x/y", "--flat")
    assert run_name("study", args) == "study-flatTrue-casesbeta0.25+curexy"


def test_overlong_names_are_cut_and_still_differ():
    def name(*cases: str, method: str = "study") -> str:
        return run_name(method, variant("--cases", *cases))

    cases = [f"case number {i}" for i in range(30)]
    one, other = name(*cases, "last"), name(*cases, "end")
    assert one.startswith("study-casescasenumber0+casenumber1+")
    assert len(one) == len(other) == cli.LONGEST_NAME == 160, (len(one), len(other))
    assert one != other and one == name(*cases, "last")
    bare = name("c", method="")
    assert name("c", method="m" * (160 - len(bare))) == "m" * (160 - len(bare)) + bare
    assert len(name("c", method="m" * (161 - len(bare)))) == 160


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine with these accelerators."""
    def pretend(*there: str):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * ("cuda" in there))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    return pretend


@pytest.mark.parametrize(("there", "best"), [
    ((), "cpu"), (("mps",), "mps"), (("cuda",), "cuda"), (("cuda", "mps"), "cuda")])
def test_auto_is_the_fastest_device_of_the_machine(machine, there, best):
    machine(*there)
    assert cli.device_name("auto") == best
    assert [cli.device_name(name) for name in ("cpu", *there)] == ["cpu", *there]


def test_a_device_that_the_machine_lacks_is_refused(machine):
    machine("cuda")
    with pytest.raises(argparse.ArgumentTypeError, match="this machine has no 'mps'"):
        cli.device_name("mps")
    with pytest.raises(argparse.ArgumentTypeError, match="'tpu' is not one of auto, cuda, mps"):
        cli.device_name("tpu")


@pytest.mark.parametrize(("asked", "given"), [("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"),
                                              ("mps:0", "mps"), ("cpu:0", "cpu")])
def test_one_of_several_devices_is_named_by_its_number(machine, asked, given):
    machine("cuda", "mps")
    assert cli.device_name(asked) == given


@pytest.mark.parametrize("asked", ["cuda:2", "cuda:", "cuda:-1", "cuda:x", "cuda:01", "cuda:0:1"])
def test_a_number_that_no_device_has_is_refused(machine, asked):
    machine("cuda")
    with pytest.raises(argparse.ArgumentTypeError,
                       match=f"'{asked}' is not here: this machine has 2 of them: cuda:0, cuda:1"):
        cli.device_name(asked)


@pytest.mark.parametrize("flag", ["--out", "--data_root"])
def test_the_home_folder_is_found_where_the_shell_left_it(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = arguments(tmp_path / "other", f"{flag}=~/a b")
    assert getattr(args, flag[2:]) == tmp_path / "a b"
    for wrong in ("~no-such-user/a", ""):
        with pytest.raises(SystemExit) as stop:
            arguments(tmp_path, f"{flag}={wrong}")
        last = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2 and f"argument {flag}: '{wrong}'" in last, last


def test_the_home_folder_is_found_in_the_variable_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("A3_DATA", "~/a")
    assert data_folder(None) == tmp_path / "a"
    monkeypatch.setenv("A3_DATA", "~no-such-user/a")
    with pytest.raises(OSError, match="'~no-such-user/a' begins in no user's home folder"):
        data_folder(None)
