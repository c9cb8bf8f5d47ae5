"""What happens to runs, done to them on purpose: kills, full disks, damaged files, absurd flags.

A trial trains a small model on the sample digits in a process forked from one that has imported
everything. Whatever befell it, the same command with --resume must end in the same bytes as a run
that was left alone: figures, table, numbers and weights, times apart.

    make soak      # 12 min on 2 cores: prints what was tried, writes report/results/soak.json

It stands among the tests, whose packages it needs; pytest does not collect it.
"""

import contextlib
import errno
import functools
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from a3.cli import Parser, exit_with, parse, positive_float, run_name, tool_flags

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import benchmark
import datasets
import evaluate
import made_up
import nf_multiscale
import study
import vae_variants
import walks
from a3 import (
    checkpoints,
    fetch,
    figures,
    judge_classifier,
    judge_metrics,
    judge_trained,
    vae_figures,
)
from a3 import vae_monitors as monitors
from a3.devices import usable_cores
from a3.fetch import DataError
from a3.records import RunError, report_folder, write_record
from helpers import SMALL_FLOW

CODE = Path(__file__).resolve().parents[1]
SMALL = ["--dataset", "sample", "--device", "cpu"]
TINY = [*SMALL, "--limit", "256", "--epochs", "2"]
SCRIPTS = {  # a script and its flags
    "vae": (vae, [*TINY, "--zdim", "2", "--hidden_dim", "20", "--nll_samples", "20"]),
    "variants": (vae_variants, [*TINY, "--zdim", "3", "--hidden_dim", "20", "--nll_samples", "20",
                                "--shift", "1", "--posterior", "flow", "--prior", "flow"]),
    "nf": (nf, [*TINY, "--n_flows", "1", "--n_hidden", "16", "--iw_samples", "2"]),
    "gan": (gan, [*TINY, "--latent_dim", "8"]),
    "gan-template": (gan, [*TINY, "--latent_dim", "8", "--recipe", "template"]),
    "multiscale": (nf_multiscale, TINY),
}
COMPARED = {"vae": "vae-z2-*", "nf": "nf-s*", "gan": "gan-s*"}  # names of their runs
STUDY = [*SMALL, "--limit", "64", "--epochs", "2", "--nll_samples", "20", "--jobs", "2", "--cases",
         "ELBO", "shifts"]
# What differs between equal runs: times, and the commit, which may be another by then.
CLOCKS = {"epoch_seconds", "train_seconds", "date", "evaluated", "commit",
          "milliseconds_per_1000_samples", "begun_on"}
# How many trials of each kind; with --share, a part of them.
KILLS = {"vae": 45, "variants": 45, "nf": 45, "gan": 10, "gan-template": 25, "multiscale": 10,
         "evaluate": 8, "study": 12}
STOPS = {"vae": 22, "variants": 22, "nf": 22, "gan": 5, "gan-template": 12, "multiscale": 5,
         "evaluate": 6, "study": 6}
FULL_DISKS, NOT_FINITE = 10, 3  # for each script; of the second, for each kind too
MUTATIONS, LEAST_FLAGS = 500, 1000  # of each kind of file; values of all flags
PATIENCE_S = 300  # for one process: then it hangs


def parse_args(argv: Sequence[str] | None = None):
    """Parse the flags of the command line."""
    parser = tool_flags("Do to runs on purpose what happens to them, and look what is lost.")
    parser.add_argument("--share", type=positive_float, default=1.0, metavar="PART",
                        help="part of the trials to do")
    parser.add_argument("--minutes", type=positive_float, default=15, metavar="M",
                        help="time for all; if it does not do, nothing is written")
    return parse(parser, argv)


def script_of(name: str):
    """Return the module that a kind of trial runs."""
    return SCRIPTS[name][0] if name in SCRIPTS else {"evaluate": evaluate, "study": study}[name]


def make_small() -> None:
    """Let runs draw small images, look at few codes, and judge few samples."""
    for module, name, value in (
            (figures, "ZOOM", 1), (vae_figures, "MANIFOLD_SIDE", 4),
            *((nf_multiscale, *size) for size in SMALL_FLOW.items()),
            (nf_multiscale, "ROUND_TRIPS", 20), (gan, "EVALUATION_SAMPLES", 300),
            (monitors, "EXAMINED_CODES", 20),
            (judge_classifier, "EPOCHS", 1), (judge_metrics, "SUBSETS", 5),
            (evaluate, "MEMORY_SAMPLES", 40), (judge_trained, "TIMED_SAMPLES", 50)):
        assert hasattr(module, name), name
        setattr(module, name, value)
    torch.set_num_threads(1)
    fetch._package_digits()  # read once, as fonts and optimizers are, before processes are forked
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True).zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        with figures.canvas(Path(folder, "a.pdf")) as axis:
            axis.plot([0, 1], label="$x$")
            axis.set(xlabel="$-\\log p(x)$", ylabel="y")
            axis.legend()
        figures.save_png(np.zeros((28, 28), np.uint8), Path(folder, "a.png"))


# Processes ---------------------------------------------------------------------------------------

def forked(work: Callable, log: Path, fault: Callable = lambda: None,
           stop: tuple[float, int] | None = None) -> tuple[int, str]:
    """Do some work as a script does its ``main``, in a process of its own.

    Args:
        fault: called in that process before the work.
        stop: after how many seconds to send which signal.

    Returns:
        the exit status, negative for a signal, and what was printed.
    """
    pid = os.fork()
    if not pid:
        status = 70
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = map(io.TextIOWrapper, map(io.FileIO, (1, 2), "ww"))
            fault()
            exit_with(work)
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    begun, sent = time.monotonic(), stop is None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        passed = time.monotonic() - begun
        if not sent and passed >= stop[0]:
            os.kill(pid, stop[1])
            sent = True
        if passed > PATIENCE_S:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def at_operations(act: Callable[[int], None]) -> Callable:
    """Return a fault: call ``act`` with n before the n-th file is opened, synced or renamed."""
    def fault() -> None:
        numbers = itertools.count()

        def counted(operation: Callable) -> Callable:
            @functools.wraps(operation)
            def wrapped(*args, **kwargs):
                act(next(numbers))
                return operation(*args, **kwargs)
            return wrapped

        os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)
        Path.open = counted(Path.open)
    return fault


def contents(out: Path) -> dict[str, object]:
    """Return what figures/ and results/ hold, times apart."""
    def of(path: Path):
        if path.suffix == ".json":
            return without_clocks(json.loads(path.read_text()))
        if path.suffix == ".csv":
            return [line.rpartition(",")[0] for line in path.read_text().splitlines()]
        return path.read_bytes()

    return {f"{folder}/{path.name}": of(path) for folder in ("figures", "results")
            for path in sorted((out / folder).glob("*")) if path.suffix != ".tmp"}


def without_clocks(value):
    """Return a record without what differs between equal runs, at any depth."""
    if isinstance(value, dict):
        return {key: without_clocks(entry) for key, entry in value.items() if key not in CLOCKS}
    return [without_clocks(entry) for entry in value] if isinstance(value, list) else value


# Trials ------------------------------------------------------------------------------------------

class Soak:
    """The runs that were left alone, and the trials that are compared with them.

    Attributes:
        folder: where all of it is, deleted at the end.
        whole: what each command writes; ``seconds`` and ``operations``: how long it takes.
        ends: when no trial is begun any more.
    """

    def __init__(self, folder: Path, ends: float):
        self.ends = ends
        self.folder, self.whole, self.seconds, self.operations = folder, {}, {}, {}
        (folder / "runs").mkdir()
        for name in SCRIPTS:
            self._measure(name, folder / "runs")
        flags = []
        for name, run in COMPARED.items():
            (file,) = (folder / "runs/results").glob(f"{run}.json")
            flags += [f"--{name}", file.stem]
        self.compared = [*SMALL, "--models", *COMPARED, *flags, "--samples", "100",
                         "--repeats", "2", "--iw_samples", "2", "--nll_samples", "20"]
        self._measure("evaluate", folder / "runs")
        self.whole["study"], self.seconds["study"] = self._studied(folder / "study")

    def _measure(self, name: str, out: Path) -> None:
        begun, count = time.monotonic(), out / "operations"
        ticks = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        before = contents(out)
        status, told = forked(self.command(name, out), out / "log",
                              at_operations(lambda _: os.write(ticks, b".")))
        os.close(ticks)
        assert status == 0, told
        self.whole[name] = {key: value for key, value in contents(out).items()
                            if key not in before}
        self.seconds[name] = time.monotonic() - begun
        self.operations[name] = count.stat().st_size

    def command(self, name: str, out: Path, resume: bool = False) -> Callable:
        """Return what runs a script into a folder."""
        if name == "evaluate":
            return lambda: evaluate.main([*self.compared, "--out", str(out)])
        script, flags = SCRIPTS[name]
        return lambda: script.main([*flags, "--out", str(out), *(["--resume"] * resume)])

    def begin(self, name: str) -> Path:
        """Return a new folder with what a script finds there: the runs."""
        out = Path(tempfile.mkdtemp(dir=self.folder))
        if name == "evaluate":
            shutil.copytree(self.folder / "runs/checkpoints", out / "checkpoints")
            for kind in ("results", "figures"):
                (out / kind).mkdir()
                for file in (self.folder / "runs" / kind).iterdir():
                    if not file.name.startswith("comparison"):
                        shutil.copy(file, out / kind)
        return out

    def ends_alike(self, name: str, out: Path) -> list[str]:
        """Resume, and return in what the end differs from that of the run left alone."""
        status, told = forked(self.command(name, out, resume=True), out / "log")
        if status:
            return [f"{name}: resumed, it ends with status {status}: {told[-300:]}"]
        found = {key: value for key, value in contents(out).items()
                 if name != "evaluate" or key.split("/")[1].startswith("comparison")}
        whole = self.whole[name]
        left = [str(path.relative_to(out)) for path in out.rglob("*.tmp")
                if name in SCRIPTS]
        return [f"{name}: {key} differs" for key in sorted({*found, *whole})
                if found.get(key) != whole.get(key)] + ([f"left: {left}"] if left else [])

    def stopped(self, name: str, number: int, seed: int) -> tuple[str, list[str]]:
        """Send a signal at a random moment, or at an operation on a file; resume; compare."""
        random.seed(seed)
        if name == "study":
            return self._stopped_study(number)
        out, inside = self.begin(name), seed % 2
        while True:
            moment = random.uniform(0, self.seconds[name])
            if inside:
                at = random.randrange(self.operations[name])
                fault = at_operations(lambda n, at=at: n == at and os.kill(os.getpid(), number))
                status, told = forked(self.command(name, out), out / "log", fault)
            else:
                status, told = forked(self.command(name, out), out / "log", stop=(moment, number))
            if status:
                break
            shutil.rmtree(out)  # it had ended before
            out = self.begin(name)
        troubles = []
        if number != signal.SIGKILL:
            if status not in (128 + number, -number):
                troubles.append(f"{name}: status {status} after signal {number}: {told[-300:]}")
            saved = name in SCRIPTS and list(out.glob("checkpoints/*/last.pt"))
            says_how = "--resume" in told or "done: " in told  # written whole, then stopped
            if "Traceback" in told or (saved and status > 0 and not says_how):
                troubles.append(f"{name}: it says after signal {number}: {told[-300:]}")
        troubles += self.ends_alike(name, out)
        shutil.rmtree(out)
        return "inside_a_file_operation" if inside else "at_a_random_moment", troubles

    def _studied(self, out: Path, stop: tuple[float, int] | None = None) -> tuple:
        """Run the study, or stop it; return what it writes, or the seconds until all is still."""
        begun = time.monotonic()
        with subprocess.Popen([sys.executable, CODE / "study.py", *STUDY, "--out", out],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
            if stop:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(stop[0])
                child.send_signal(stop[1])
                sent = time.monotonic()
            child.stdout.read()  # until the last process that could write to it has ended
        if stop:
            return child.returncode, time.monotonic() - sent
        assert child.returncode == 0, out
        return contents(out), time.monotonic() - begun

    def _stopped_study(self, number: int) -> tuple[str, list[str]]:
        while True:
            out = Path(tempfile.mkdtemp(dir=self.folder))
            status, still = self._studied(out, (random.uniform(0.2, 1) * self.seconds["study"],
                                                number))
            if status:
                break
            shutil.rmtree(out)
        troubles = [f"study: its cases ended {still:.0f} s after it"] if still > 20 else []
        if status not in (-number, 128 + number):
            troubles.append(f"study: status {status} after signal {number}")
        try:
            found, _ = self._studied(out)
            troubles += [f"study: {key} differs" for key in sorted({*found, *self.whole["study"]})
                         if found.get(key) != self.whole["study"].get(key)]
        except AssertionError:
            troubles.append("study: begun again, it fails")
        shutil.rmtree(out)
        return "at_a_random_moment", troubles

    def fault(self, name: str, kind: str, seed: int) -> tuple[str, list[str]]:
        """Let something go wrong in a run: it must end in one line, and go on when resumed."""
        random.seed(seed)
        out = self.begin(name)
        status, told = forked(self.command(name, out), out / "log",
                              FAULTS[kind](random.randrange(1, 10**6), self.operations[name]))
        lines = [line for line in told.splitlines() if line.startswith("error: ")]
        troubles = []
        if status != 1 or len(lines) != 1 or "Traceback" in told:
            troubles.append(f"{name}, {kind}: status {status}: {told[-400:]}")
        elif kind == "disk_full" and not any(part in lines[0] for part in (str(out), "tmp")):
            troubles.append(f"{name}, {kind}: no path in '{lines[0]}'")
        elif kind != "disk_full" and "nan" not in lines[0]:
            troubles.append(f"{name}, {kind}: '{lines[0]}'")
        troubles += self.ends_alike(name, out)
        shutil.rmtree(out)
        return kind, troubles


def disk_full(random_number: int, operations: int) -> Callable:
    """Refuse the n-th and all later writes, or every file above a size (a real error's)."""
    if random_number % 3 == 0:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (
            20_000 + random_number % 60_000, resource.RLIM_INFINITY))  # more than the log's size

    def fault() -> None:
        first, count, fsync = random_number % (operations // 4), itertools.count(), os.fsync

        def full(file: int) -> None:
            if next(count) >= first:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(file)
        os.fsync = full
    return fault


def once(kind: str, random_number: int, operations: int) -> Callable:
    """Put NaN into the data, the loss, the gradient or the weights of one update."""
    def fault() -> None:
        at, count = random_number % 2, itertools.count()  # the flows make but two updates
        step, backward = torch.optim.Adam.step, torch.Tensor.backward
        pixels = datasets.Split.pixels

        def now() -> bool:
            return next(count) == at

        @functools.wraps(step)  # or PyTorch wraps it again, and every hook runs twice
        def stepped(self, *args, **kwargs):
            if now():
                weight = self.param_groups[0]["params"][0]
                (weight.grad if kind == "nan_gradient" else weight.data).view(-1)[0] = math.nan
            return step(self, *args, **kwargs)

        if kind == "nan_data":
            datasets.Split.pixels = lambda self, images: pixels(self, images) * (
                math.nan if now() else 1)
        elif kind == "nan_loss":
            torch.Tensor.backward = lambda self, *args, **kwargs: backward(
                self * (math.nan if now() else 1), *args, **kwargs)
        else:
            torch.optim.Adam.step = stepped
    return fault


NANS = ("nan_data", "nan_loss", "nan_gradient", "nan_weights")
FAULTS = {"disk_full": disk_full, **{kind: functools.partial(once, kind) for kind in NANS}}


# Damaged files -----------------------------------------------------------------------------------

DAMAGES = {  # content, place, length and noise to a damaged copy
    "bit": lambda content, place, length, noise:
        content[:place] + bytes([content[place] ^ 1 << length % 8]) + content[place + 1:],
    "zeros": lambda content, place, length, noise:
        content[:place] + bytes(min(length, len(content) - place)) + content[place + length:],
    "noise": lambda content, place, length, noise:
        content[:place] + noise + content[place + len(noise):],
    "inserted": lambda content, place, length, noise: content[:place] + noise + content[place:],
    "cut": lambda content, place, length, noise: content[:place],
    "headless": lambda content, place, length, noise: content[place + 1:],
    "moved": lambda content, place, length, noise: content[place:] + content[:place],
    "longer": lambda content, place, length, noise: content + noise,
    "other": lambda content, place, length, noise: noise,
}


def damage(content: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy that draws damaged copies of a file."""
    return st.builds(lambda kind, *drawn: DAMAGES[kind](content, *drawn),
                     st.sampled_from(list(DAMAGES)), st.integers(0, len(content) - 1),
                     st.integers(1, 4096), st.binary(min_size=1, max_size=64))


def each(number: int, content: bytes, look: Callable[[bytes], bool]) -> tuple[int, list[str]]:
    """Show damaged copies to ``look``, which says whether one was refused; return how many."""
    shown: set[bytes] = set()
    loaded = 0

    def examine(damaged: bytes) -> None:
        nonlocal loaded
        if damaged != content and damaged not in shown and len(shown) < number:
            shown.add(damaged)
            loaded += not look(damaged)

    many = settings(max_examples=number, database=None, deadline=None,
                    suppress_health_check=list(HealthCheck))
    for attempt in itertools.count():
        if len(shown) == number:
            break
        seed(attempt)(many(given(damage(content))(examine)))()
    return number, [f"{loaded} loaded"] if loaded else []


def read_judge(file: Path) -> None:
    """Read a judge of samples from another folder than that of the committed ones."""
    with mock.patch.object(judge_classifier, "WEIGHTS", file.parent):
        judge_classifier.judge("grey")


def damaged_files(folder: Path, checkpoint: Path, number: int
                  ) -> Iterator[tuple[str, int, list[str]]]:
    """Yield for each kind of file how many damaged ones were shown, and what was wrong."""
    noise = np.random.default_rng(0)
    idx = {name: np.array([0x803, 3, 28, 28] if "images" in name else [0x801, 3], ">u4").tobytes()
           + noise.bytes(2352 if "images" in name else 3) for name in fetch.MNIST_FILES}
    amat = {name: (" ".join("01"[i] for i in noise.integers(0, 2, 784)) + "\n").encode() * 2
            for name in fetch.BMNIST_FILES}
    fetch.PUBLISHED.update({name: (len(content), hashlib.sha256(content).hexdigest())
                            for name, content in (idx | amat).items()})
    for kind, files, places in (("idx", idx, fetch.MNIST_PLACES),
                                ("amat", amat, fetch.BMNIST_PLACES)):
        for packed in (False, True):
            root = folder / f"{kind}-{packed}"
            for name, content in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
            first = next(iter(files))
            stored = gzip.compress(files[first]) if packed else files[first]

            def look(damaged: bytes, root=root, files=files, first=first, places=places) -> bool:
                (root / first).write_bytes(damaged)
                try:  # a packed file may be damaged where it does not matter, as in its date
                    return fetch._contents(root, list(files), places, [])[0] == files[first]
                except DataError as error:
                    return "\n" not in str(error)

            yield (f"{kind}{'_gz' * packed}", *each(number // 2, stored, look))
    packed = io.BytesIO()
    np.savez_compressed(packed, **made_up.own_arrays())
    mine = folder / "mine.npz"
    mine.write_bytes(packed.getvalue())
    own, labels, _ = fetch.own_images(mine)

    def look(damaged: bytes) -> bool:
        mine.write_bytes(damaged)
        try:  # here too the date and the like may be damaged
            with contextlib.redirect_stdout(io.StringIO()):
                found = fetch.own_images(mine)
            return all(map(np.array_equal, (*found[0], *found[1]), (*own, *labels)))
        except DataError as error:
            return "\n" not in str(error)

    yield ("npz", *each(number, packed.getvalue(), look))
    (judge,) = judge_classifier.WEIGHTS.glob("grey-*.pt")
    for kind, path, read in (("checkpoint", checkpoint, checkpoints.read),
                             ("judge", judge, read_judge)):
        copy = folder / path.name

        def look(damaged: bytes, copy=copy, read=read) -> bool:
            copy.write_bytes(damaged)
            try:
                read(copy)
            except RunError as error:
                return "\n" not in str(error)
            return False

        yield (kind, *each(number, path.read_bytes(), look))


# Absurd flags ------------------------------------------------------------------------------------

ABSURD = ["", " ", "-", "--", "-1", "nan", "inf", "-inf", "1e999", "abc", "0x10", "1;2", "1\n2",
          "a\0b", "None", "[]", "9" * 12, "9" * 40, "9" * 400, "9" * 5000, "-" + "9" * 30, "1e300",
          "\x1b[2J", "../../x", "~no-such-user/x", "a" * 5000, "½", "1_", "$(x)", "*", "\ud800"]
PATHS = ["", "a\0b", "~no-such-user/x", "a" * 5000]
NAMES = ["", " ", "../../x", "a/b", "a\0b", "1\n2", "~no-such-user/x", "a" * 5000, "*", "$(x)",
         "\ud800"]


class Accepted(Exception):
    """A value was not refused."""


def absurd_flags(every: int = 1) -> tuple[int, list[str]]:
    """Give every flag of eight scripts and tools what it cannot mean.

    Each must end with status 2 and one line, which names the flag or its value, and touch no file.

    Args:
        every: try each n-th only.

    Returns:
        how many were tried, and what was wrong.
    """
    tried, troubles = 0, []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for script in (vae, gan, nf, vae_variants, evaluate, study, walks, benchmark):
            for arguments in itertools.islice(absurd_arguments(parser_of(script)), 0, None, every):
                tried += 1
                if trouble := refusal(script, arguments):
                    troubles.append(f"{script.__name__} {str(arguments)[:60]}: {trouble}")
        if list(Path(folder).iterdir()):
            troubles.append("files were written")
    return tried, troubles


def parser_of(script) -> Parser:
    """Return the parser of a script's flags."""
    parsers = []

    def seen(parser: Parser, *rest):
        parsers.append(parser)
        raise Accepted

    before = script.parse
    script.parse = seen
    with contextlib.suppress(Accepted):
        script.main([])
    script.parse = before
    return parsers[0]


def absurd_arguments(parser: Parser) -> Iterator[list[str]]:
    """Yield command lines with one absurd argument each."""
    for action in parser._actions:
        kind = getattr(action.type, "__name__", "")
        values = PATHS if kind == "folder" else NAMES if kind == "run_label" else ABSURD
        if action.dest == "help":
            continue
        if action.dest == "seed":
            values = [value for value in ABSURD if value != "9" * 12]  # which is a seed
        if action.nargs == 0:
            values = ["1", "true", "\n"]
        for value in values:
            if not action.option_strings:
                yield ["--", value]
            elif action.nargs == "+":
                yield [action.option_strings[-1], value]
            else:
                yield [f"{action.option_strings[-1]}={value}"]
    yield from ([text] for text in ("--no-such-flag", "--no-such=1", "-x"))
    yield from ([*(["vae-z20"] if "run" in {a.dest for a in parser._actions} else []), text]
                for text in ("stray", "a\nb"))


def refusal(script, arguments: list[str]) -> str | None:
    """Return what is wrong with how a script refuses a command line, if anything is."""
    def stop(*_, **__):
        raise Accepted

    names = ("bmnist", "mnist", "load", "load_models", "run_cases", "trained_vae", "report_folder")
    before = {name: getattr(script, name) for name in names if hasattr(script, name)}
    told = io.StringIO()
    try:
        for name in before:
            setattr(script, name, stop)
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            script.main(arguments)
    except Accepted:
        return "accepted"
    except SystemExit as end:
        _, _, line = told.getvalue().rpartition(": error: ")
        flag = arguments[0].partition("=")[0]
        if end.code != 2 or line.count("\n") != 1 or len(line) > 500:
            return f"status {end.code}: {line[:100]}"
        if len(flag) > 2 and flag.startswith("--") and flag not in line:
            return f"it does not name the flag: {line[:100]}"
        return None
    except Exception as error:
        return type(error).__name__
    finally:
        for name, value in before.items():
            setattr(script, name, value)
    return "nothing happened"


# Main --------------------------------------------------------------------------------------------

def trials(share: float) -> list[tuple]:
    """Return all trials, those of the study first, since they take longest."""
    rounds = [("killed", signal.SIGKILL, KILLS), ("stopped", None, STOPS)]
    found, seed = [], 0
    for group, number, numbers in rounds:
        for name, many in numbers.items():
            for i in range(many):
                seed += 1
                which = number or (signal.SIGINT, signal.SIGTERM)[i % 2]
                found.append((group, "stopped", name, which, seed))
    for name in SCRIPTS:
        for kind in FAULTS:
            many = FULL_DISKS if kind == "disk_full" else NOT_FINITE
            if (name, kind) == ("multiscale", "nan_data"):
                many = 0  # its pixels index tables: they are whole numbers from the file on
            for _ in range(many):
                seed += 1
                group = kind if kind == "disk_full" else "not_finite"
                found.append((group, "fault", name, kind, seed))
    random.Random(1).shuffle(found)
    return sorted(found[:math.ceil(share * len(found))], key=lambda trial: trial[2] != "study")


def tried(trial: tuple) -> tuple[str, str, list[str]]:
    """Do one trial; return its group, its kind, and what was wrong."""
    group, method, *arguments = trial
    if time.time() > SOAK[0].ends:
        return "skipped", "skipped", []
    try:
        kind, troubles = getattr(SOAK[0], method)(*arguments)
    except Exception:
        kind, troubles = "failed", [traceback.format_exc(limit=3)[-400:]]
    return group, kind, troubles


SOAK: list[Soak] = []  # one, made before the processes are forked


def main(argv: Sequence[str] | None = None) -> dict:
    """Do all trials, print what was tried and what was lost, and write soak.json."""
    args, begun = parse_args(argv), time.time()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    report = report_folder(args.out)
    make_small()
    counts, kinds, lost = Counter(), Counter(), Counter()

    def count(group: str, kind: str, number: int, troubles: list[str]) -> None:
        counts[group] += number
        kinds[kind] += number
        lost[group] += len(troubles)
        for trouble in troubles:
            print(f"lost: {group}: {trouble}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        count("absurd_flags", "absurd_flags", *absurd_flags())
        SOAK.append(Soak(Path(folder), begun + 60 * args.minutes))
        runs, work = Path(folder) / "runs/checkpoints", trials(args.share)
        (checkpoint,) = runs.glob("vae-z2-*/last.pt")
        with ProcessPoolExecutor(usable_cores(), get_context("fork")) as pool:
            for done, (group, kind, troubles) in enumerate(pool.map(tried, work), start=1):
                count(group, f"{group}_{kind}" if kind.startswith(("at_", "inside_")) else kind,
                      1, troubles)
                print(f"[{done}/{len(work)}] {group}, {kind}; lost: {lost.total()}; "
                      f"{(time.time() - begun) / 60:.0f} min", flush=True)
        for kind, number, troubles in damaged_files(
                Path(folder), checkpoint, math.ceil(MUTATIONS * args.share)):
            count("damaged_files", f"damaged_{kind}", number, troubles)
    if counts["skipped"]:
        raise RunError(f"{counts['skipped']} of {len(work)} trials did not fit into "
                       f"{args.minutes:g} minutes, and nothing is written; give more --minutes")
    name = run_name("soak", args, named=["minutes"])
    record = write_record(
        report / "results" / f"{name}.json", "cpu", tried=dict(counts),
        lost={group: lost[group] for group in counts}, kinds=dict(sorted(kinds.items())),
        minutes=round((time.time() - begun) / 60, 1), cores=usable_cores())
    print("\n".join(f"{group:16}{number:>8} tried{lost[group]:>8} lost"
                    for group, number in counts.items()))
    return record


if __name__ == "__main__":
    exit_with(main)
