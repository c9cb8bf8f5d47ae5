"""The life of a run: seeds, checkpoints, progress, results.

    run = Run("vae-z20", args, source)                     # makes the folders, seeds
    run.keep(model=model, optimizer=optimizer)             # what a checkpoint holds
    run.resume()                                           # with --resume: load the last one
    with run.training(save_training_figures):              # a stop ends here; whole epochs stay
        for epoch in run.epochs():                         # 0 is the untrained model
            run.record("train 101.2, val 99.9", val_elbo_nats=99.9)     # table and progress
    run.reload()                                           # evaluate what is on the disk
    run.finish(test_elbo_nats=99.1)                        # report/results/<run>.json and .csv

Until ``finish``, tables and figures have "partial" in their names, so an unfinished run does not
overwrite a finished one's; a fresh run sets an earlier one's checkpoint aside. But for a few flags
and losses, named below, nothing here knows about a method: scripts name their numbers.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy
import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from a3 import checkpoints, figures, ranks
from a3.devices import backend, describe_device, float64, multiplies_bfloat16
from a3.fetch import Source
from a3.interrupts import held
from a3.records import (
    REPOSITORY,
    RunError,
    commit,
    evaluated,
    make_writable,
    now,
    write_json,
    write_table,
)

# Flags left out of a run's name; they may differ when it is resumed.
NOT_METHOD = {"device", "data_root", "out", "resume", "save_interval", "tensorboard", "changed"}
EVALUATION_ONLY = {"nll_samples", "iw_samples"}  # likewise for a training
LOSSES = ("_elbo_nats", "_bits_per_dim")  # what the names of losses in units end in
DIVERGED = 10  # times worse than the untrained model


class Interrupted(RunError):
    """Ctrl-C or SIGTERM, after everything was saved; the message says how to go on."""

    def __init__(self, message: str, stop: KeyboardInterrupt | None = None):
        super().__init__(message)
        self.status = getattr(stop, "status", 130)


def how_to_go_on() -> str:
    """Return what to say at the end of an unfinished run; nothing if there is none."""
    return "" if Run.unfinished is None else (
        "; to go on, give the same command with --resume: it trains nothing anew that is in "
        f"'{Run.unfinished.checkpoint}'")


def method_flags(args: argparse.Namespace) -> dict:
    """Return the flags that determine the numbers of a run."""
    return {key: value for key, value in vars(args).items() if key not in NOT_METHOD}


# What every training loop uses -------------------------------------------------------------------

def random_stream(seed: int, use: str) -> torch.Generator:
    """Return a CPU generator for one use ("figures", "test", ...), independent of all others."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {use}".encode()))


def one_cycle(optimizer: torch.optim.Optimizer, updates: int, cycle_momentum: bool = True
              ) -> torch.optim.lr_scheduler.OneCycleLR:
    """Return a schedule that follows each of the optimizer's steps by itself.

    The learning rate rises to the optimizer's own in a tenth of the updates, then falls to almost
    0. The momentum (Adam's beta_1) goes the other way, from 0.95 down to 0.85 and back (PyTorch's
    two-phase cosine form of Smith & Topin 2017, "Super-convergence").

    Args:
        cycle_momentum: False leaves the momentum as it is.
    """
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], pct_start=0.1,
        total_steps=max(updates, 20),  # fewer leave no whole update to rise in
        cycle_momentum=cycle_momentum)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return schedule


def progress(batches):
    """Show a bar over the batches of one epoch on a terminal, and nothing elsewhere."""
    return tqdm(batches, leave=False, disable=None, unit="batch")


def images_in(data) -> Iterator[Tensor]:
    """Yield the images of every batch, (B, 784), of a Split or of anybody's DataLoader.

    A batch may be a tensor or a pair (images, labels), and an image (784,) or (1, 28, 28). Of
    several ranks, each trains on its share.
    """
    for batch in progress(data):
        images = batch[0] if isinstance(batch, tuple | list) else batch
        yield ranks.share(images.flatten(start_dim=1))


def epoch_sum(values: Sequence[Tensor | int]) -> Tensor:
    """Return the sum over an epoch's batches, and over all ranks, in float64 on the CPU.

    Args:
        values: of each batch a tensor of the same shape, or a number.
    """
    stacked = torch.stack([torch.as_tensor(value) for value in values])
    return ranks.total(float64(stacked).sum(dim=0))


# A run -------------------------------------------------------------------------------------------

class Run:
    """One training run: where its files go, what it has recorded, how it goes on.

    Attributes:
        name: what the names of its files begin with.
        device: "cpu", "mps", "cuda" or one of several, "cuda:1".
        bfloat16: whether matrix products run in bfloat16.
        history: one dict an epoch, from epoch 0, the untrained model.
        snapshots: what the script drew at the moments of the run, tensors by epoch.
        moments: the epochs at which to draw: start, quarter, half, three quarters, end.
    """

    unfinished: "Run | None" = None  # the last run with a checkpoint and without results

    def __init__(self, name: str, args: argparse.Namespace, source: Source):
        Run.unfinished = None
        self.name, self.args, self.source = name, args, source
        self.device = args.device
        self.precision = args.precision
        if args.precision == "auto":
            self.precision = "bfloat16" if multiplies_bfloat16(self.device) else "float32"
        self.bfloat16 = self.precision == "bfloat16"
        report = args.out or REPOSITORY / "report"
        self.folder, self.results = report / "figures", report / "results"
        self.checkpoint = (args.out or REPOSITORY) / "checkpoints" / name / "last.pt"
        if ranks.rank():  # rank 0 alone writes what stays
            self._scratch = tempfile.TemporaryDirectory()
            self.folder = self.results = Path(self._scratch.name)
        else:
            for folder in (self.folder, self.results, self.checkpoint.parent):
                make_writable(folder)
            checkpoints.own(self.checkpoint.parent)
            self._look_for_what_is_in_the_way()
        self.history: list[dict[str, float]] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.moments = sorted({round(args.epochs * part / 4) for part in range(5)})
        self._kept: dict = {}
        self._begun = False  # the checkpoint on the disk is this run's
        self._weights: str | None = None  # the hash of those that are evaluated
        self._clock = 0.0
        self.provenance = [{
            "device": describe_device(self.device),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
            "precision": self.precision,
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__),
                         "torchvision": torchvision.__version__, "numpy": numpy.__version__},
            "commit": commit(),
            **({"ranks": ranks.size()} if ranks.size() > 1 else {}),
        }]
        torch.manual_seed(random_stream(args.seed, "weights and noise").initial_seed())
        others = f", {ranks.size()} ranks" if ranks.size() > 1 else ""
        print(f"run:  {name} on {describe_device(self.device)}, {self.precision}, "
              f"seed {args.seed}{others}", flush=True)
        if self.bfloat16 and not multiplies_bfloat16(self.device):
            print("note: this hardware is not known to multiply bfloat16 fast, which can make "
                  "training many times slower; --precision auto avoids that", flush=True)

    def keep(self, **parts) -> None:
        """Name what a checkpoint holds: modules, optimizers, schedules, torch.Generators."""
        self._kept = parts
        for part in parts.values():
            if isinstance(part, nn.Module):
                ranks.train_together(part)

    def resume(self) -> None:
        """Load the last checkpoint of this run, if there is one, with ``--resume``.

        Where torchrun restarts its job, that is done without the flag.

        Raises:
            RunError: the checkpoint is damaged, or another run's: other flags or data.
        """
        if not (self.args.resume or ranks.of_first(self._goes_on)):
            return
        kept = self.checkpoint, self._before()
        if not ranks.of_first(lambda: any(map(os.path.lexists, kept))):
            print(f"no checkpoint at '{self.checkpoint}' yet: starting from the beginning")
            return
        here, there = self.provenance, self._load()["provenance"]
        self.provenance = there if len(self.history) > self.args.epochs else [
            *(one for one in there if one not in here), *here]
        print(f"resumed after epoch {self.history[-1]['epoch']}")

    @contextlib.contextmanager
    def training(self, draw: Callable[["Run"], None]):
        """Surround the training loop; Ctrl-C and SIGTERM end it after the last whole epoch.

        Args:
            draw: draws the figures of what has been trained.

        Raises:
            Interrupted: the run was stopped and has no final numbers.
        """
        try:
            yield
        except KeyboardInterrupt as stop:
            ranks.leave(stopped=True)
            if not self._begun:  # there is nothing of this run yet
                raise
            self._load()
            draw(self)
            raise Interrupted(f"\nstopped after epoch {len(self.history) - 1}{how_to_go_on()}",
                              stop) from None
        ranks.leave()

    def epochs(self) -> Iterator[int]:
        """Yield the epochs still to do, 0 (untrained) to ``args.epochs``; save after each."""
        if not self.history:  # figures of an earlier run, stopped and given up
            for partial in self.folder.glob(f"{self.name}-partial-*"):
                partial.unlink(missing_ok=True)
        with self._board() as show:
            for epoch in range(len(self.history), self.args.epochs + 1):
                self._clock = time.perf_counter()
                if rank := ranks.rank():  # the checkpoint has the random numbers of rank 0
                    use = f"noise of rank {rank} in epoch {epoch}"
                    torch.manual_seed(random_stream(self.args.seed, use).initial_seed())
                yield epoch
                self._save()
                show(epoch)

    @contextlib.contextmanager
    def _board(self) -> Iterator[Callable[[int], None]]:
        """Yield what shows an epoch in TensorBoard, with ``--tensorboard``."""
        if not self.args.tensorboard or ranks.rank():
            yield lambda epoch: None
            return
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  it may be missing
        folder = self.checkpoint.with_name("tensorboard")
        print(f"curves: tensorboard --logdir '{folder.parents[1]}'", flush=True)

        def show(epoch: int) -> None:
            for key, value in self.history[epoch].items():
                if key != "epoch":
                    board.add_scalar(key, value, epoch)
            for kind, images in self.snapshots.get(epoch, {}).items():
                sheet = figures.tile(images, math.ceil(math.sqrt(len(images))))
                board.add_image(kind, sheet, epoch, dataformats="HW")
            board.flush()  # a killed process loses an epoch at most

        # What an earlier run of this name, or the epoch that was lost, has shown is taken back.
        with SummaryWriter(str(folder), purge_step=len(self.history)) as board:
            yield show

    def record(self, shown: str, **numbers: float) -> None:
        """Add an epoch's numbers to the table, and print one line of progress.

        Args:
            shown: the numbers to watch, in words.

        Raises:
            RunError: a number is not finite, or the run diverged; the last checkpoint stays as
                it is.
        """
        epoch, seconds = len(self.history), time.perf_counter() - self._clock
        self._check(numbers, f"in epoch {epoch}")
        self.history.append({"epoch": epoch, **numbers, "seconds": seconds})
        write_table(self._partial_table(), self.history)
        left = round((self.args.epochs - epoch) * (self.epoch_seconds() if epoch else 0))
        tqdm.write(f"[{epoch:3d}/{self.args.epochs}] {shown}; {seconds:.1f} s"
                   + (f", {left // 60}:{left % 60:02} left" if left else ""))
        sys.stdout.flush()

    def figure(self, name: str) -> Path:
        """Return where to draw a figure; ``finish`` takes "partial" out of its name."""
        return self.folder / f"{self.name}-partial-{name}"

    def named_moments(self) -> list[tuple[str, dict[str, Tensor]]]:
        """Return the snapshots for the report: start, half and end.

        Of an unfinished run those that exist, the last one as the end.
        """
        epochs = {"start": 0, "half": round(self.args.epochs / 2), "end": max(self.snapshots)}
        return [(name, self.snapshots[epoch]) for name, epoch in epochs.items()
                if epoch in self.snapshots]

    def reload(self) -> None:
        """Load everything kept from the checkpoint on the disk, which is then evaluated.

        Raises:
            RunError: it is damaged, even if the one before is good.
        """
        trained = len(self.history)
        self._load()
        if len(self.history) != trained:
            raise RunError("the last epochs are to be trained again; give the same command with "
                           "--resume")
        if "model" in self._kept:  # what is evaluated may change its batch statistics
            self._weights = checkpoints.weights_sha256(self._kept["model"].state_dict())

    def last_numbers(self) -> dict[str, float]:
        """Return what the last epoch recorded."""
        return {key: value for key, value in self.history[-1].items()
                if key not in ("epoch", "seconds")}

    def epoch_seconds(self) -> float:
        """Return the median seconds of an epoch: training and validation."""
        return statistics.median(row["seconds"] for row in self.history[1:])

    def finish(self, **numbers) -> dict:
        """Write ``results/<run>.json`` and ``.csv``, give the figures their names.

        Returns:
            what the JSON holds.

        Raises:
            RunError: a number is not finite, or a loss far above that of the untrained model.
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
            "date": now(),
            "evaluated": evaluated(self.device),
        }
        if self._weights is not None:
            results["weights_sha256"] = self._weights
        if len(self.provenance) > 1:
            results["begun_on"] = self.provenance[:-1]
        with held:
            write_table(self.results / f"{self.name}.csv", self.history)
            self._partial_table().unlink(missing_ok=True)
            for partial in self.folder.glob(f"{self.name}-partial-*"):
                partial.replace(partial.with_name(partial.name.replace("-partial", "", 1)))
            write_json(self.results / f"{self.name}.json", results)
            Run.unfinished = None
            checkpoints.disown(self.checkpoint.parent)
            print(f"done: {self.results / self.name}.json, figures in {self.folder}", flush=True)
        return results

    def _partial_table(self) -> Path:
        return self.results / f"{self.name}-partial.csv"

    def _before(self) -> Path:
        return self.checkpoint.with_name("previous.pt")

    def _look_for_what_is_in_the_way(self) -> None:
        """Refuse folders in the place of files, and remove what a killed process left unwritten.

        Raises:
            RunError: there is a folder where a file will be.
        """
        files = [self.checkpoint, self._before(), self._partial_table(),
                 *(self.results / f"{self.name}.{kind}" for kind in ("json", "csv"))]
        for file in (*files, *self.folder.glob(f"{self.name}-*.p[dn][fg]")):
            if file.is_dir():
                raise RunError(f"the folder '{file}' is in the place of a file that the run will "
                               "write; move it, or choose another folder with --out")
        for file in (*files, self.checkpoint.with_name("next.pt"), self.figure("*")):
            for left in file.parent.glob(f"{file.name}.*.tmp"):
                left.unlink(missing_ok=True)

    def _check(self, numbers: dict, when: str) -> None:
        kept = f"the last good checkpoint is '{self.checkpoint}'"
        hint = kept if when == "at the end" else f"{kept}; try a lower --lr"
        for key, value in numbers.items():
            if not isinstance(value, float):
                continue
            if not math.isfinite(value):
                raise RunError(f"{key} became {value} {when}; {hint}")
            loss = next((end for end in LOSSES if key in (f"val{end}", f"test{end}")), None)
            untrained = self.history[0].get(f"val{loss}") if self.history else None
            if untrained is not None and value > DIVERGED * abs(untrained):
                raise RunError(f"{key} is {value:.4g} {when}, of the untrained model "
                               f"{untrained:.4g}: the training diverged; {hint}")

    def _save(self) -> None:
        if ranks.rank():
            return
        state = {
            "kept": {key: part.get_state() if isinstance(part, torch.Generator)
                     else part.state_dict() for key, part in self._kept.items()},
            "history": self.history,
            "snapshots": self.snapshots,
            "flags": {**method_flags(self.args), "precision": self.precision},
            "data": self.source.sha256,
            "provenance": self.provenance,
            "random": {"cpu": torch.get_rng_state()},
            "job": ranks.job(),
        }
        module, which = backend(self.device)
        if module is not torch.cpu:
            state["random"][torch.device(self.device).type] = module.get_rng_state(*which)
        for name, value in checkpoints.tensors(state["kept"]):
            if value.is_floating_point() and not value.isfinite().all():
                self._check({name: math.nan}, f"in epoch {len(self.history) - 1}")
        with held:
            if not self._begun:
                checkpoints.set_aside(self.checkpoint)
            checkpoints.write(self.checkpoint, state)
            self._begun, Run.unfinished = True, self

    def _goes_on(self) -> bool:
        """Return whether the checkpoint is of this job, which torchrun has restarted."""
        with contextlib.suppress(RunError):
            return ranks.job() is not None and ranks.goes_on(
                checkpoints.read(self.checkpoint).get("job"))
        return False

    def _load(self) -> dict:
        state = ranks.of_first(lambda: checkpoints.last_good(self.checkpoint))
        try:
            self._refuse_another_run(state)
            for key, part in self._kept.items():
                is_generator = isinstance(part, torch.Generator)
                (part.set_state if is_generator else part.load_state_dict)(state["kept"][key])
            self.history, self.snapshots = state["history"], state["snapshots"]
            torch.set_rng_state(state["random"]["cpu"])
            (module, which), kind = backend(self.device), torch.device(self.device).type
            if module is not torch.cpu and kind in state["random"]:
                module.set_rng_state(state["random"][kind], *which)
        except RunError:
            raise
        except Exception as error:  # whatever a damaged or foreign file makes torch raise
            raise checkpoints.unreadable(self.checkpoint, error) from error
        self._begun, Run.unfinished = True, self
        return state

    def _refuse_another_run(self, state: dict) -> None:
        ours, theirs = {**method_flags(self.args), "precision": self.precision}, state["flags"]
        if self.args.precision == "auto":  # goes on in what is fast here
            ours.pop("precision")
        other = [f"--{key} {theirs.get(key)} there, {ours[key]} here"
                 for key in sorted(ours.keys() - EVALUATION_ONLY - {"dataset"})
                 if ours[key] != theirs.get(key)]
        other += ["other data"] if state["data"] != self.source.sha256 else []
        if other:
            raise RunError(f"'{self.checkpoint}' is another run's ({'; '.join(other)}); give the "
                           "same flags, or leave out --resume")


def finished_run(name: str, out: Path | None, script: str, flag: str) -> tuple[dict, dict]:
    """Return the checkpoint of a finished run, and its results, with the hash of its weights.

    Args:
        out: the ``--out`` of the run.
        script: what makes such runs, for the message.
        flag: one that such runs have.

    Raises:
        RunError: the run is missing, was stopped half-way or is another script's, its checkpoint
            is damaged, or its results are of another checkpoint.
    """
    checkpoint = (out or REPOSITORY) / "checkpoints" / name / "last.pt"
    results = (out or REPOSITORY / "report") / "results" / f"{name}.json"
    for file in (checkpoint, results):
        if not file.is_file():
            raise RunError(f"'{file}' is missing: there is no finished run '{name}'; make it with "
                           f"code/{script} --resume, or name another run")
    state, record = checkpoints.read(checkpoint), _results(results)
    if flag not in state["flags"]:
        raise RunError(f"the run '{name}' is not one of code/{script}; name another run")
    last = state["history"][-1]
    if last["epoch"] != record["epochs"]:
        raise RunError(f"'{checkpoint}' was stopped after epoch {last['epoch']} of "
                       f"{record['epochs']}; finish it with code/{script} --resume")
    weights = checkpoints.weights_sha256(state["kept"]["model"])
    record.setdefault("weights_sha256", weights)
    if other := [*_differences(record, state, weights)]:
        raise RunError(f"'{results}' is not of '{checkpoint}' (they differ in "
                       f"{', '.join(other)}); write it anew with code/{script} --resume")
    return state, record


def _differences(record: dict, state: dict, weights: str) -> Iterator[str]:
    """Yield in what results and a checkpoint, with the hash of its weights, are not of one run."""
    if record["data"]["sha256"] != state["data"]:
        yield "data"
    changeable = {"precision", "dataset", *EVALUATION_ONLY}  # auto there, known here
    for key in sorted(record["flags"].keys() & state["flags"].keys() - changeable):
        if record["flags"][key] != state["flags"][key]:
            yield f"--{key}"
    for key, value in state["history"][-1].items():
        if key not in ("epoch", "seconds") and record.get(key, value) != value:
            yield key
    if record["weights_sha256"] != weights:
        yield "weights"


def _results(file: Path) -> dict:
    """Return a run's results.

    Raises:
        RunError: the file is damaged or foreign.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record["epochs"], int) or not isinstance(record["flags"], dict) or \
                not isinstance(record["data"]["sha256"], str):
            raise ValueError("its parts are other things")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"'{file}' cannot be read as the results of a run "
                       f"({type(error).__name__}); write it anew with --resume") from error
    return record
