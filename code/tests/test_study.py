"""The study on a handful of images: every case runs, and failures are told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import study
import vae_variants

SIGKILL = getattr(signal, "SIGKILL", None)
needs_signals = pytest.mark.skipif(SIGKILL is None, reason="needs the signals of Unix")


def test_every_case_has_flags_that_parse_and_a_name_of_its_own():
    parsed = [vae_variants.parse_args(flags) for flags in study.CASES.values()]
    assert len({str(sorted(vars(args).items())) for args in parsed}) == len(study.CASES)


def test_cases_run_and_are_written(tmp_path, capsys):
    cases = ["Gaussian likelihood", "ELBO"]  # not the order of the study
    results = study.main(["--epochs", "1", "--limit", "256", "--dataset", "sample", "--device",
                          "cpu", "--out", str(tmp_path), "--cases", *cases])
    assert [row["name"] for row in results["rows"]] == cases
    for row in results["rows"]:
        total = row["reconstruction_nats"] + row["kl_nats"]
        assert abs(row["test_elbo_nats"] - total) < 1e-6, (row["test_elbo_nats"], total)
        assert row["test_nll_nats"] <= row["test_elbo_nats"] + 0.5
    (file,) = (tmp_path / "results").glob("study*.json")
    assert json.loads(file.read_text()) == results
    drawn = tmp_path / "figures" / f"{file.stem}-likelihoods.pdf"
    assert drawn.stat().st_size > 1000
    assert {log.stem for log in tmp_path.glob("*.log")} == set(cases)
    progress = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(progress) == 2 and max(map(len, progress)) <= 100, progress


def killed(name: str, args) -> dict:
    """Stand for a case whose process the kernel kills; the others go well."""
    if name == "ELBO":
        time.sleep(0.3)  # the other, sent first, is in its own process by then
        os.kill(os.getpid(), SIGKILL)
    return {"name": name, "verdict": "healthy"}


@needs_signals
def test_a_killed_process_ends_the_study_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "train_case", killed)
    with pytest.raises(SystemExit) as stop:
        study.exit_with(lambda: study.main(
            ["--out", str(tmp_path), "--jobs", "1", "--cases", "shifts", "ELBO", "flow prior"]))
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "[1/3] shifts: healthy" in printed.out
    (line,) = printed.err.splitlines()
    for part in ("error: ", "killed", "memory", "cases 'ELBO';", "--jobs 1", "kept"):
        assert part in line, (part, line)


def waiting(name: str, args) -> dict:
    """Stand for a case that takes long."""
    print("begun", flush=True)
    time.sleep(60)
    return {}


@needs_signals
@pytest.mark.parametrize("kill", ["SIGTERM", "SIGKILL"])
def test_no_case_outlives_a_killed_study(kill, tmp_path):
    """The pipe for what is printed ends with the last process that holds it."""
    tests = Path(__file__).parent
    start = (f"import sys; sys.path[:0] = {[str(tests.parent), str(tests)]}\n"
             "import study, test_study\n"
             "study.train_case = test_study.waiting\n"
             "study.exit_with(lambda: study.main("
             f"['--out', {str(tmp_path)!r}, '--cases', 'ELBO']))")
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as child:
        while child.stdout.readline() not in ("begun\n", ""):
            pass
        child.send_signal(getattr(signal, kill))
        started = time.monotonic()
        told = child.stdout.read()
        assert time.monotonic() - started < 30
    assert child.returncode == (143 if kill == "SIGTERM" else -9)
    assert ("to go on, give the same command" in told) == (kill == "SIGTERM"), told


def test_a_case_named_twice_runs_once():
    args = study.parse_args(["--cases", "shifts", "ELBO", "shifts"])
    assert args.cases == args.changed["cases"] == ["shifts", "ELBO"]


@pytest.mark.parametrize(("cores", "flags", "jobs", "threads"), [
    (1, [], 1, 1), (2, [], 2, 1), (64, [], len(study.CASES), 64 // len(study.CASES)),
    (1, ["--jobs", "8"], 8, 1), (8, ["--jobs", "2"], 2, 4), (8, ["--cases", "ELBO"], 1, 8)])
def test_cases_share_the_usable_cores(cores, flags, jobs, threads, monkeypatch):
    monkeypatch.setattr(study, "usable_cores", lambda: cores)
    args = study.parse_args(flags)
    assert (args.jobs, study.threads(args.jobs)) == (jobs, threads)
