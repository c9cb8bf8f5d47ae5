"""The life of a run: seeds, device, checkpoints, progress and records.

    run = Run("vae-z20", args, source)                # makes the folders, seeds
    run.keep(model=model, optimizer=optimizer)        # what a checkpoint holds; --resume loads it
    with run.training():                              # Ctrl-C ends here, with nothing lost
        for epoch in run.epochs():                    # 0 is the untrained model
            run.record(train_loss=..., val_loss=...)  # history, one line of progress
    run.reload()                                      # evaluate what is on the disk
    run.finish(test_loss=...)                         # report/results/<run>.json and .csv

Nothing here knows about a method: the numbers that it keeps are named by the script.
"""

import argparse
import contextlib
import csv
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy
import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from datasets import REPOSITORY, Source

# Flags that change no number and may differ when a run is resumed.
NOT_METHOD = {"device", "data_root", "out", "resume", "save_interval", "walks", "nll_samples"}


class RunError(RuntimeError):
    """A run cannot go on; the message is one line that says what to do."""


class Interrupted(RunError):
    """Ctrl-C, after everything was saved; the message says how to go on."""


def method_flags(args: argparse.Namespace) -> dict:
    """Return the flags that determine the numbers of a run."""
    return {key: value for key, value in vars(args).items() if key not in NOT_METHOD}


# ---------------------------------------------------------------------------------------------
# Randomness and hardware
# ---------------------------------------------------------------------------------------------

def generator(seed: int, use: str) -> torch.Generator:
    """Return a CPU generator for one use ("figures", "test", ...), independent of all others."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {use}".encode()))


def multiplies_bfloat16(device: str) -> bool:
    """Tell whether the hardware multiplies bfloat16 matrices faster than float32 ones."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    with contextlib.suppress(OSError):
        return device == "cpu" and any(
            flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return False


def describe_device(device: str) -> str:
    """Return the device with its model and, for a processor, the threads in use."""
    if device == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x for x in lines if x.startswith("model name")).split(":")[1].strip()
    threads = torch.get_num_threads()
    return f"{device}: {model}, {threads} thread{'s' if threads > 1 else ''}"


def one_cycle(optimizer: torch.optim.Optimizer, updates: int, cycle_momentum: bool = True
              ) -> torch.optim.lr_scheduler.OneCycleLR:
    """Return a schedule: up to the optimizer's learning rate in a tenth of the updates, then to 0.

    The momentum (Adam's beta_1) goes the other way, from 0.95 down to 0.85 and back (Smith &
    Topin 2019, "Super-convergence").

    Args:
        cycle_momentum: False leaves it as it is.
    """
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], pct_start=0.1,
        total_steps=max(updates, 20),  # fewer leave no whole update to rise in
        cycle_momentum=cycle_momentum)


def progress(batches):
    """Show a bar over the batches of one epoch on a terminal, and nothing elsewhere."""
    return tqdm(batches, leave=False, disable=None, unit="batch")


# ---------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------

class Run:
    """One training run: where its files go, what it has recorded, how it goes on.

    Attributes:
        name: file name of everything that the run writes.
        device: "cpu", "cuda" or "mps".
        history: one dict an epoch, from epoch 0, the untrained model.
        snapshots: what the script drew at the moments of the run, tensors by epoch.
        moments: the five epochs at which to draw: start, quarter, half, three quarters, end.
    """

    def __init__(self, name: str, args: argparse.Namespace, source: Source):
        self.name, self.args, self.source = name, args, source
        self.device = args.device
        self.precision = args.precision
        if args.precision == "auto":
            self.precision = "bfloat16" if multiplies_bfloat16(self.device) else "float32"
        report = args.out or REPOSITORY / "report"
        self.folder, self.results = report / "figures", report / "results"
        self.checkpoint = (args.out or REPOSITORY) / "checkpoints" / name / "last.pt"
        for folder in (self.folder, self.results, self.checkpoint.parent):
            _make_writable(folder)
        self.history: list[dict[str, float]] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.moments = sorted({round(args.epochs * part / 4) for part in range(5)})
        self.interrupted = False
        self._kept: dict = {}
        self._begun = False  # the checkpoint on the disk is of this run
        self._clock = 0.0
        self.provenance = [{
            "device": describe_device(self.device),
            "precision": self.precision,
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__),
                         "torchvision": torchvision.__version__, "numpy": numpy.__version__},
            "commit": commit(),
        }]
        torch.manual_seed(generator(args.seed, "weights and noise").initial_seed())
        print(f"run:  {name} on {describe_device(self.device)}, {self.precision}, "
              f"seed {args.seed}", flush=True)

    def autocast(self):
        """Return a context in which matrix products run in the chosen precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")

    def keep(self, **parts) -> None:
        """Name what a checkpoint holds: modules, optimisers, schedules, torch.Generators.

        With ``--resume`` they are loaded from the last checkpoint of this run, if there is one.

        Raises:
            RunError: the checkpoint is of a run with other flags or data.
        """
        self._kept = parts
        if not self.args.resume:
            return
        if not self.checkpoint.exists():
            print(f"no checkpoint at '{self.checkpoint}' yet: starting from the beginning")
            return
        here, there = self.provenance, self._load()["provenance"]
        self.provenance = there if len(self.history) > self.args.epochs else [
            *(one for one in there if one not in here), *here]
        print(f"resumed after epoch {self.history[-1]['epoch']}")

    def epochs(self) -> Iterator[int]:
        """Yield the epochs still to do, 0 (untrained) to ``args.epochs``; save after each."""
        for epoch in range(len(self.history), self.args.epochs + 1):
            self._clock = time.perf_counter()
            yield epoch
            self._save()

    def record(self, **numbers: float) -> None:
        """Add an epoch's numbers to the history, and print them in one line.

        Raises:
            RunError: one of them is not finite; the last checkpoint stays as it is.
        """
        epoch, seconds = len(self.history), time.perf_counter() - self._clock
        self._check(numbers, f"in epoch {epoch}")
        self.history.append({"epoch": epoch, **numbers, "seconds": seconds})
        shown = " · ".join(f"{key} {value:.4g}" if abs(value) < 10 else f"{key} {value:.2f}"
                           for key, value in numbers.items())
        left = round((self.args.epochs - epoch) * (self.epoch_seconds() if epoch else 0))
        tqdm.write(f"[{epoch:3d}/{self.args.epochs}] {shown} · {seconds:.1f} s"
                   + (f" · {left // 60}:{left % 60:02} left" if left else ""))
        sys.stdout.flush()

    def named_moments(self) -> list[tuple[str, dict[str, Tensor]]]:
        """Return the snapshots for the report: of the start, of half-way and of the end.

        Of a run that was stopped: those that there are, the last one as the end.
        """
        last = max(self.snapshots)
        epochs = {"start": 0, "half": round(self.args.epochs / 2), "end": last}
        return [(name, self.snapshots[epoch]) for name, epoch in epochs.items()
                if epoch in self.snapshots]

    @contextlib.contextmanager
    def training(self):
        """End the training loop cleanly on Ctrl-C: the last whole epoch is on the disk."""
        try:
            yield
        except KeyboardInterrupt:
            if not self._begun:  # there is nothing of this run yet
                raise
            self.interrupted = True
            self._load()

    def figure(self, name: str) -> Path:
        """Return where a figure goes: of a run that was stopped, beside those of a whole one."""
        return self.folder / f"{self.name}-{'partial-' if self.interrupted else ''}{name}"

    def reload(self) -> None:
        """Load everything kept from the checkpoint on the disk, which is then evaluated.

        Raises:
            Interrupted: the run was stopped by Ctrl-C and has no final numbers.
        """
        if self.interrupted:
            raise Interrupted(f"\nstopped after epoch {len(self.history) - 1}; to go on, give the "
                              f"same command with --resume (from '{self.checkpoint}')")
        self._load()

    def epoch_seconds(self) -> float:
        """Median seconds of an epoch: training and validation."""
        return statistics.median(row["seconds"] for row in self.history[1:])

    def finish(self, **numbers) -> dict:
        """Write ``results/<run>.json`` and ``.csv``, and return what the JSON holds.

        Raises:
            RunError: one of the numbers is not finite.
        """
        self._check(numbers, "at the end")
        results = {
            **numbers,
            "epochs": self.args.epochs,
            "epoch_seconds": round(self.epoch_seconds(), 3),
            "train_seconds": round(sum(row["seconds"] for row in self.history[1:]), 1),
            "snapshot_epochs": self.moments,
            "flags": method_flags(self.args),
            "seed": self.args.seed,
            "data": vars(self.source),
            **self.provenance[-1],
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        if len(self.provenance) > 1:
            results["begun_on"] = self.provenance[:-1]
        write_atomically(self.results / f"{self.name}.json",
                         (json.dumps(results, indent=2) + "\n").encode())
        table = io.StringIO()
        writer = csv.DictWriter(table, self.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" for key, value in row.items()}
                         for row in self.history)
        write_atomically(self.results / f"{self.name}.csv", table.getvalue().encode())
        for partial in self.folder.glob(f"{self.name}-partial-*"):
            partial.unlink()
        print(f"done: {self.results / self.name}.json, figures in {self.folder}", flush=True)
        return results

    def _check(self, numbers: dict, when: str) -> None:
        for key, value in numbers.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise RunError(f"{key} became {value} {when}; the last good checkpoint is "
                               f"'{self.checkpoint}'; try a lower --lr")

    def _save(self) -> None:
        state = {
            "kept": {key: part.get_state() if isinstance(part, torch.Generator)
                     else part.state_dict() for key, part in self._kept.items()},
            "history": self.history,
            "snapshots": self.snapshots,
            "flags": {**method_flags(self.args), "precision": self.precision},
            "data": self.source.sha256,
            "provenance": self.provenance,
            "random": {"cpu": torch.get_rng_state()},
        }
        if self.device != "cpu":
            state["random"][self.device] = getattr(torch, self.device).get_rng_state()
        write_atomically(self.checkpoint, lambda file: torch.save(state, file))
        self._begun = True

    def _load(self) -> dict:
        state = _read(self.checkpoint)
        try:
            self._refuse_another_run(state)
            for key, part in self._kept.items():
                is_generator = isinstance(part, torch.Generator)
                (part.set_state if is_generator else part.load_state_dict)(state["kept"][key])
            self.history, self.snapshots = state["history"], state["snapshots"]
            torch.set_rng_state(state["random"]["cpu"])
            if self.device != "cpu" and self.device in state["random"]:
                getattr(torch, self.device).set_rng_state(state["random"][self.device])
        except RunError:
            raise
        except Exception as error:  # whatever a damaged or foreign file makes torch raise
            raise _unreadable(self.checkpoint, error) from error
        self._begun = True
        return state

    def _refuse_another_run(self, state: dict) -> None:
        ours, theirs = {**method_flags(self.args), "precision": self.precision}, state["flags"]
        other = [f"--{key} {theirs.get(key)} there, {ours[key]} here"
                 for key in ours if ours[key] != theirs.get(key)]
        other += ["other data"] if state["data"] != self.source.sha256 else []
        if other:
            raise RunError(f"'{self.checkpoint}' is of another run ({'; '.join(other)}); give the "
                           "same flags, or leave out --resume")


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------

def finished_run(name: str, out: Path | None, script: str) -> tuple[dict, dict]:
    """Return the checkpoint of a run that has ended, and its results.

    Args:
        out: the ``--out`` of the run.
        script: that makes such runs, for the message.

    Raises:
        RunError: the run is not there, was stopped half-way, or its checkpoint is damaged.
    """
    checkpoint = (out or REPOSITORY) / "checkpoints" / name / "last.pt"
    results = (out or REPOSITORY / "report") / "results" / f"{name}.json"
    for file in (checkpoint, results):
        if not file.exists():
            raise RunError(f"'{file}' is missing: the run '{name}' is not there or was stopped; "
                           f"make it with code/{script} --resume, or name another run")
    return _read(checkpoint), json.loads(results.read_text())


def _read(checkpoint: Path) -> dict:
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        raise _unreadable(checkpoint, error) from error


def _unreadable(checkpoint: Path, error: Exception) -> RunError:
    return RunError(f"'{checkpoint}' cannot be read as a checkpoint of this program "
                    f"({type(error).__name__}); delete it and start again")


def write_atomically(path: Path, content: bytes | Callable) -> None:
    """Write a file that, whenever the process or the machine dies, is the old or the new one.

    Args:
        content: the bytes, or a function that writes them to an open binary file.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def commit() -> str:
    """Return the git commit of the code, with "-dirty" if code/ differs from it, or "unknown"."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True,
                              check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "code"], capture_output=True,
                                 text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changed else "")


def write_record(path: Path, device: str, **numbers) -> dict:
    """Write numbers that are not of one training run as JSON, with where they are from.

    Returns:
        what the file holds.
    """
    record = {**numbers, "device": describe_device(device), "torch": str(torch.__version__),
              "commit": commit(), "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
    return record


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"cannot write to '{folder}' ({error.strerror}); choose another folder "
                       "with --out") from error
