"""The study of objectives, posteriors and priors at 20 latent dimensions (Garcia 2019).

Every case is a run of vae_variants.py with --precision auto and the flags below, under study/; a
complete one is only evaluated again. Likelihoods are the model's, whatever was trained. Networks
this small use two cores better with a case on each than with one case on both.

    python code/study.py                # 90 min on 2 cores: report/results/study.json
    python code/study.py --collect      # the same from what jobs with --cases have written

slurm.sh sends a job a case to a cluster, and then the second command.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from a3.cli import exit_with, parse, positive_int, run_name, tool_flags

import torch

import vae_variants
from a3 import figures
from a3.devices import usable_cores
from a3.records import REPOSITORY, report_folder, write_record
from a3.runs import Interrupted, RunError
from a3_vae_template import EPOCHS

CASES = {
    "ELBO": [],
    "beta 0.25": ["--objective", "beta", "--beta", "0.25"],
    "beta 4": ["--objective", "beta", "--beta", "4"],
    "warm-up 10": ["--objective", "beta", "--beta_warmup", "10"],
    "free bits 2": ["--objective", "free_bits", "--free_bits", "2"],
    "free bits 8": ["--objective", "free_bits", "--free_bits", "8"],
    "free bits 0.5 a dimension": ["--objective", "free_bits", "--free_bits", "0.5",
                                  "--per_dimension"],
    "flow posterior": ["--posterior", "flow"],
    "flow prior": ["--prior", "flow"],
    "IWAE 50": ["--objective", "iwae", "--importance_samples", "50"],
    "Gaussian likelihood": ["--likelihood", "gaussian"],
    "shifts": ["--shift", "1"],
    "shifts, flow prior": ["--shift", "1", "--prior", "flow"],
    # The failures, provoked. The second case cures the first, and the ELBO the third.
    "collapse: beta 30": ["--objective", "beta", "--beta", "30", "--lr", "0.0005"],
    "cure: beta 30, free bits 8": ["--objective", "free_bits", "--beta", "30", "--free_bits", "8",
                                   "--lr", "0.0005"],
    "overload: UAE": ["--objective", "uae"],
}
KEYS = {"test_elbo_nats": "test_elbo_nats", "test_nll_nats": "test_nll_nats",
        "nll_samples": "nll_samples", "reconstruction_nats": "test_reconstruction_nats",
        "kl_nats": "test_kl_nats", "mutual_information_nats": "test_mutual_information_nats",
        "active_units": "test_active_units",
        "std_1_percent_quantile": "test_std_1_percent_quantile",
        "test_nll_doubling_nats": "test_nll_doubling_nats",
        "test_nll_draw_error_nats": "test_nll_draw_error_nats",
        "samples_clear_share": "samples_clear_share", "classifier_sha256": "classifier_sha256",
        "verdict": "verdict", "precision": "precision", "train_seconds": "train_seconds"}


OUT = "for figures/, results/ and checkpoints/ (None: report/, and study/ for the cases' own)"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Train the VAE in all its variants, and compare them.",
                        ("mnist", "sample"), out=OUT)
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
        help="cases to run, by name")
    add("--jobs", type=positive_int, default=usable_cores(), metavar="N",
        help="cases at a time, sharing the usable cores")
    add("--epochs", type=positive_int, default=EPOCHS, metavar="N",
        help="passes over the training images")
    add("--nll_samples", type=positive_int, default=2000, metavar="K",
        help="importance samples for each image's likelihood; few favour a q(z|x) near p(z|x)")
    add("--limit", type=positive_int, default=None, metavar="N",
        help="train on the first N images only, for a quick trial")
    add("--collect", action="store_true",
        help="run nothing: merge the results of jobs that ran some --cases each")
    args = parse(parser, argv)
    args.cases[:] = dict.fromkeys(args.cases)  # two runs at once would write the same files
    args.jobs = min(args.jobs, len(args.cases))
    return args


def runs_folder(args: argparse.Namespace) -> Path:
    """Return where the cases' runs and logs go."""
    return args.out or REPOSITORY / "study"


def run_case(main: Callable[[list[str]], dict], name: str, flags: Sequence[str],
             args: argparse.Namespace) -> dict:
    """Train one case by a script's main, or go on with it; it prints into its own log file.

    Args:
        flags: of the script, besides those that all cases share.
    """
    torch.set_num_threads(threads(args.jobs))
    runs = runs_folder(args)
    flags = ["--epochs", str(args.epochs), "--device", args.device, "--dataset", args.dataset,
             "--out", str(runs), "--precision", "auto", "--resume", *flags]
    for flag in ("data_root", "limit"):
        if getattr(args, flag) is not None:
            flags += [f"--{flag}", str(getattr(args, flag))]
    runs.mkdir(parents=True, exist_ok=True)
    file = runs / f"{name.replace(': ', '-')}.log"
    with file.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        return main(flags)


def train_case(name: str, args: argparse.Namespace) -> dict:
    """Return the row of one case."""
    results = run_case(vae_variants.main, name,
                       ["--nll_samples", str(args.nll_samples), *CASES[name]], args)
    return {"name": name, **{ours: results.get(theirs) for ours, theirs in KEYS.items()},
            "data": results["data"]["name"],
            "flags": results["flags"], "commit": results["commit"],
            "device": results["device"]}


def threads(jobs: int) -> int:
    """Return the threads of each case when ``jobs`` run at a time."""
    return max(1, usable_cores() // jobs)


def end_with_parent() -> None:
    """Let this process end when its parent does, however that ended."""
    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def run_cases(names: Sequence[str], train: Callable[[str, argparse.Namespace], dict],
              told: str, args: argparse.Namespace) -> list[dict]:
    """Train the cases, ``args.jobs`` at a time, and return their rows in this order.

    Args:
        names: the cases; those that take long first.
        train: maps a name and the flags to a row, in a process of its own.
        told: what of a row is printed.
    """
    report_folder(args.out)  # long before it is written to
    print(f"{len(names)} cases, {args.jobs} at a time; each prints into a .log under "
          f"{runs_folder(args)}", flush=True)
    start = time.time()
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), end_with_parent) as pool:
        runs = {pool.submit(train, name, args): name for name in names}
        try:
            for number, run in enumerate(as_completed(runs), start=1):
                value = run.result()[told]
                value = f"{value:.3f}" if isinstance(value, float) else value
                print(f"[{number}/{len(runs)}] {runs[run]}: {value}, "
                      f"{(time.time() - start) / 60:.0f} min", flush=True)
        except BrokenProcessPool:
            left = [name for run, name in runs.items() if run.exception() is not None]
            raise RunError(
                f"a process was killed, perhaps for want of memory; it ran one of the cases "
                f"{', '.join(map(repr, left[:args.jobs]))}; finished cases and epochs are kept: "
                "give the same command with --jobs 1") from None
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            for case in active_children() if stopped else []:
                case.terminate()  # the last whole epoch of each is kept
            pool.shutdown(cancel_futures=True)  # running cases end, no other begins
            if stopped:
                raise Interrupted("\nstopped; finished cases and epochs are kept: to go on, give "
                                  "the same command", error) from None
            raise
    return [run.result() for run in runs]


def trained(args: argparse.Namespace) -> list[dict]:
    """Train all cases, IWAE first, as it is slow, and return their rows in the table's order."""
    slowest_first = sorted(args.cases, key=lambda name: "iwae" not in CASES[name])
    rows = run_cases(slowest_first, train_case, "verdict", args)
    return sorted(rows, key=lambda row: args.cases.index(row["name"]))


def collected(args: argparse.Namespace) -> list[dict]:
    """Return the rows of all cases, each the latest that a job with these flags has written.

    Raises:
        RunError: a case is missing.
    """
    folders = [args.out] if args.out else [REPOSITORY / "study", REPOSITORY / "report"]
    records = [json.loads(file.read_text(encoding="utf-8")) for folder in folders
               for file in (folder / "results").glob("study*-cases*.json")]
    rows = {row["name"]: row for record in sorted(records, key=lambda one: one["date"])
            for row in record["rows"]
            if (row["flags"]["epochs"], row["flags"]["limit"], row["nll_samples"]) == (
                args.epochs, args.limit, args.nll_samples)
            and args.dataset in ("auto", row["data"], row["flags"]["dataset"])}
    if missing := [name for name in args.cases if name not in rows]:
        raise RunError(f"no job has written the cases {', '.join(map(repr, missing))} with these "
                       f"flags into 'results' of {' or '.join(map(repr, map(str, folders)))}; "
                       "run them with --cases")
    return [rows[name] for name in args.cases]


def save_likelihoods(rows: list[dict], filename: Path) -> None:
    """Plot -ELBO and -log p(x) of each binary case, about KL(q(z|x) || p(z|x)) apart.

    The provoked failures and their cure are left out: they would be far to the right.
    """
    shown = [row for row in rows if row["flags"]["likelihood"] == "bernoulli"
             and ":" not in row["name"]][::-1]
    if not shown:
        return
    filename.parent.mkdir(parents=True, exist_ok=True)
    with figures.canvas(filename, width=4.2, height=0.35 + 0.19 * len(shown)) as axis:
        for y, row in enumerate(shown):
            ends = (row["test_nll_nats"], row["test_elbo_nats"])
            axis.plot(ends, (y, y), color="0.7", linewidth=1.2, zorder=1)
        for key, label, style in (("test_nll_nats", "$-\\log p(x)$", figures.VAL),
                                  ("test_elbo_nats", "$-$ELBO", figures.TRAIN)):
            axis.plot([row[key] for row in shown], range(len(shown)), "o", markersize=4,
                      color=style["color"], label=label)
        axis.set(xlabel="nats per image, test", yticks=range(len(shown)),
                 yticklabels=[row["name"] for row in shown])
        axis.grid(visible=False, axis="y")
        axis.legend(loc="upper right")


def main(argv: Sequence[str] | None = None) -> dict:
    """Run or collect the cases; write study.json and its figure, and return the JSON's record."""
    args = parse_args(argv)
    rows = collected(args) if args.collect else trained(args)
    report = args.out or REPOSITORY / "report"
    unusual = {row["data"] for row in rows} - {"bmnist", "mnist"} | {
        row["data"] for row in rows if row["flags"]["likelihood"] == "bernoulli"} - {"bmnist"}
    name = run_name("-".join(["study", *sorted(unusual)]), args, named=["jobs", "collect"])
    save_likelihoods(rows, report / "figures" / f"{name}-likelihoods.pdf")
    results = write_record(report / "results" / f"{name}.json", args.device, rows=rows,
                           epochs=args.epochs, threads=threads(args.jobs))
    columns = ("test_elbo_nats", "test_nll_nats", "reconstruction_nats", "kl_nats",
               "samples_clear_share")  # which images that are no digits lack
    print(f"\n{'case':26}{'-ELBO':>9}{'NLL':>9}{'L':>9}{'KL':>9}{'clear':>9}  units  verdict")
    for row in rows:
        print(f"{row['name']:26}"
              + "".join(f"{math.nan if row[key] is None else row[key]:9.2f}" for key in columns)
              + f"{row['active_units']:7}  {row['verdict']}")
    return results


if __name__ == "__main__":
    exit_with(main)
