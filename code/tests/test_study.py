"""The study on a handful of images: every case runs, and failures are told."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import study
import vae_variants
from a3.runs import RunError, method_flags

SIGKILL = getattr(signal, "SIGKILL", None)
needs_signals = pytest.mark.skipif(SIGKILL is None, reason="needs the signals of Unix")


def test_every_case_has_flags_that_parse_and_a_name_of_its_own():
    parsed = [vae_variants.parse_args(flags) for flags in study.CASES.values()]
    assert len({str(sorted(vars(args).items())) for args in parsed}) == len(study.CASES)


def test_cases_run_and_are_written(tmp_path, capsys):
    cases = ["Gaussian likelihood", "ELBO"]  # not the order of the study
    results = study.main(["--epochs", "1", "--limit", "256", "--dataset", "sample", "--device",
                          "cpu", "--out", str(tmp_path), "--nll_samples", "30", "--cases", *cases])
    assert all(row["nll_samples"] == 30 and row["test_nll_doubling_nats"] > 0
               for row in results["rows"])
    assert [row["name"] for row in results["rows"]] == cases
    for row in results["rows"]:
        total = row["reconstruction_nats"] + row["kl_nats"]
        assert abs(row["test_elbo_nats"] - total) < 1e-6, (row["test_elbo_nats"], total)
        assert row["test_nll_nats"] <= row["test_elbo_nats"] + 0.5
        assert 0 <= row["samples_clear_share"] <= 1 and len(row["classifier_sha256"]) == 64
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


def trained_at_once(flags: list[str]) -> dict:
    """Return made-up results of a case, which follow from its flags."""
    args = vae_variants.parse_args(flags)
    numbers = {theirs: args.beta + i for i, theirs in enumerate(study.KEYS.values())}
    del numbers["samples_clear_share"]  # as of images that are no digits
    return {**numbers, "nll_samples": args.nll_samples, "test_active_units": 3,
            "verdict": "healthy", "commit": "c", "device": "d", "data": {"name": "sample"},
            "flags": method_flags(args)}


def test_rows_of_two_jobs_merge_into_the_study_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "usable_cores", lambda: 1)
    monkeypatch.setattr(study, "run_cases", lambda names, train, told, args: [
        train(name, args) for name in names])  # in this process
    monkeypatch.setattr(vae_variants, "main", trained_at_once)
    threads = torch.get_num_threads()
    common = ["--epochs", "1", "--limit", "64", "--dataset", "sample", "--device", "cpu"]
    pair = ["beta 4", "overload: UAE"]
    jobs, one = tmp_path / "jobs", tmp_path / "one"
    for case in reversed(pair):
        study.main([*common, "--out", str(jobs), "--cases", case])
    whole = study.main([*common, "--out", str(one), "--cases", *pair])
    parts = [json.loads(file.read_text())["rows"] for file in jobs.glob("results/study*.json")]
    assert sorted(row["name"] for rows in parts for row in rows) == sorted(pair)
    merged = study.main([*common, "--out", str(jobs), "--cases", *pair, "--collect"])
    torch.set_num_threads(threads)
    for record in (merged, whole):
        del record["date"], record["evaluated"]["date"]
        for row in record["rows"]:
            del row["train_seconds"]
    assert merged == whole
    assert {file.name for file in one.glob("*/study*")} <= {
        file.name for file in jobs.glob("*/study*")}
    for flags, said in ((["--cases", *pair, "IWAE 50"], "cases 'IWAE 50' with these flags"),
                        (["--cases", *pair, "--epochs", "2"], "cases 'beta 4', 'overload"),
                        (["--cases", *pair, "--nll_samples", "7"], "cases 'beta 4', 'overload")):
        with pytest.raises(RunError, match=said):
            study.main([*common, "--out", str(jobs), "--collect", *flags])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_jobs_of_a_cluster_are_the_cases_of_the_study_and_models(tmp_path):
    """In the places of sbatch and Python are scripts that write down how they are called."""
    (tmp_path / "code").mkdir()
    script = shutil.copy(Path(study.__file__).parent / "slurm.sh", tmp_path / "code")
    for name, prints in (("bin/sbatch", '{ printf "%s|" "$@"; echo; } >> sent; echo 7'),
                         (".venv/bin/python", '{ printf "%s|" "$@"; echo; } >> ran')):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/usr/bin/env bash\n{prints}\n")
        file.chmod(0o755)

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables}
        return subprocess.run(["bash", script, *arguments], cwd=tmp_path, env=env, check=False,
                              capture_output=True, text=True)

    def lines(name: str) -> list[list[str]]:
        text = (tmp_path / name).read_text()
        (tmp_path / name).unlink()
        return [line.split("|")[:-1] for line in text.splitlines()]

    assert run("study", "--partition=p").returncode == run("seeds").returncode == 0
    cases, collect, seeds = lines("sent")
    last = f"{len(study.CASES) - 1}"
    assert cases == ["--parsable", f"--array=0-{last}", "--partition=p", "code/slurm.sh", "study"]
    assert {"--dependency=afterok:7", "--partition=p"} <= set(collect)
    assert collect[-1] == ".venv/bin/python code/study.py --collect"
    for number in range(len(study.CASES)):
        run("study", SLURM_ARRAY_TASK_ID=str(number))
    assert lines("ran") == [["code/study.py", "--out", "study", "--cases", name]
                            for name in study.CASES]
    for number in range(int(seeds[1].split("-")[-1]) + 1):
        run("seeds", SLURM_ARRAY_TASK_ID=str(number))
    trainings = lines("ran")
    assert len({" ".join(one) for one in trainings}) == len(trainings) == 15
    for path, *argv in trainings:
        module = importlib.import_module(Path(path).stem)
        assert module.parse_args(argv).resume and "seed" in module.parse_args(argv).changed
    wrong = run("everything")
    assert (wrong.returncode, wrong.stderr) == (2, "error: 'everything' is not study or seeds\n")
