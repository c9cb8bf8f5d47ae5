"""The command line: flags, recipes, the name of a run, errors in one line.

    parser = flags("Train ...", epochs=40, lr=3e-3, batch_size=128, sources=("mnist", "sample"))
    parser.add_argument("--zdim", type=positive_int, default=20)
    args = parse(parser, argv)
    ...
    if __name__ == "__main__":
        exit_with(main)

Errors in flags, data and files end in one line that names the flag or the file, what came and what
was expected (for flags after the usage): exit status 2 for flags, 1 for data and runs, 130 after
Ctrl-C, 143 after SIGTERM.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import torch

from a3 import ranks
from a3.fetch import DataError, Source
from a3.interrupts import listening
from a3.records import RunError, expand_home
from a3.runs import EVALUATION_ONLY, NOT_METHOD, Interrupted, how_to_go_on

SEED = 42
LONGEST_NAME = 160  # characters of a run's name; file systems allow 255 with all that is added
LONGEST_LINE = 400  # characters of a message about flags
LONGEST_SHOWN = 40  # characters of a wrong value in a message
# What PyTorch says when there is no memory, on any device.
NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|failed to allocate",
                       re.IGNORECASE)


def _number(text: str, kind: Callable, good: Callable, expected: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not good(value):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not {expected}")
    return value


def _shown(text: str) -> str:
    """Return a text that came in quotes, on one line, and not too long."""
    return repr(text) if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]!r}..."


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return what parses a whole number from ``low`` to ``high``."""
    return functools.partial(_number, kind=int, good=lambda value: low <= value <= high,
                             expected=f"a whole number from {low:,} to {high:,}")


def real(low: float, high: float, below: bool = False) -> Callable[[str], float]:
    """Return what parses a number from ``low`` to ``high``, or to ``below`` it."""
    return functools.partial(_number, kind=float, good=lambda value: (
        low <= value < high if below else low <= value <= high),
        expected=f"a number from {low:g} to {'below ' * below}{high:g}")


# The bounds of all numbers, far above what is of use and below what no machine or float can hold.
positive_int = whole(1, 1_000_000)
units = whole(1, 10_000)  # of a layer or a code
seed_int = whole(0, 2**63 - 1)  # what every generator accepts
positive_float = real(1e-12, 1000)
non_negative_float = real(0, 1_000_000)
share = real(0, 1, below=True)


def folder(text: str) -> Path:
    """Parse the path of a folder; "~" is the home folder, whether or not the shell knew."""
    try:
        path = expand_home(text)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()  # is it a path at all?
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(
            f"{_shown(text)} cannot be a folder ({reason})") from None
    if not text:
        raise argparse.ArgumentTypeError("'' is not a folder")
    return path


def images(text: str, sources: tuple[str, ...]) -> str:
    """Parse a source of images by its name, or the path of one's own images."""
    if text in ("auto", *sources):
        return text
    path = folder(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(
            f"{_shown(text)} is none of auto, {', '.join(sources)}, and no folder or .npz there")
    return str(path.resolve())


def run_label(text: str) -> str:
    """Parse the name of a run, of which files and a folder have their names."""
    if not re.fullmatch(r"\w[\w.+-]*", text) or len(text) > LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not the name of a run: letters, "
                                         f"digits and _.+-, at most {LONGEST_NAME} of them")
    return text


def device_name(text: str) -> str:
    """Parse a device and check that this machine has it.

    Returns:
        "cpu", "mps", "cuda" or one of several, "cuda:1"; "auto" becomes the fastest of those
        available.

    Raises:
        ArgumentTypeError: the name is unknown, or this machine has no such device.
    """
    there = {"cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
             "mps": int(torch.backends.mps.is_available() and ranks.size() == 1), "cpu": 1}
    if text == "auto":
        text = next(name for name, number in there.items() if number)
    kind, _, _ = text.partition(":")
    if text == "cuda":
        text = ranks.gpu()
    if kind not in there:
        raise argparse.ArgumentTypeError(f"'{text}' is not one of auto, {', '.join(there)}")
    if not there[kind]:
        raise argparse.ArgumentTypeError(f"this machine has no '{kind}'; use auto or cpu")
    names = [f"{kind}:{index}" for index in range(there[kind])]
    if text not in (kind, *names):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not here: this machine has {len(names)} of them: {', '.join(names)}")
    return text if kind == "cuda" else kind


class Parser(argparse.ArgumentParser):
    """A parser whose every complaint is one line."""

    def parse_known_args(self, args=None, namespace=None):
        """Refuse what argparse itself stumbles over: "--epochs=--"."""
        for text in sys.argv[1:] if args is None else args:
            if re.fullmatch("--[^=]+=--", text):
                self.error(f"argument {text[:-3]}: '--' is not a value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        """Print usage and message, and exit with status 2."""
        message = " ".join(message.split())
        super().error(message if len(message) <= LONGEST_LINE else
                      f"{message[:LONGEST_LINE]}...")


def tool_flags(description: str, sources: tuple[str, ...] = (), own: bool = True,
               data: bool = True, out: str = "for figures/, results/ and checkpoints/ (None: "
                                             "report/ and checkpoints/)") -> Parser:
    """Return a parser with the flags that every script has, those that train nothing included.

    Args:
        own: whether ``--dataset`` may be a folder of anybody's images.
        data: whether it reads images.
        out: what the folder of ``--out`` is for.
    """
    parser = Parser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--device", type=device_name, default="auto",
        help="auto, cpu, cuda (of several, cuda:1 is the second) or mps")
    if sources:
        add("--dataset", type=functools.partial(images, sources=sources), default="auto",
            metavar=f"{{auto,{','.join(sources)}{',DIR' * own}}}",
            help="auto: the first available source"
                 + "; DIR: your own images, as IDX files or an .npz" * own)
    if data:
        add("--data_root", type=folder, default=None, metavar="DIR",
            help="data folder (None: the variable A3_DATA, else data/ of the repository)")
    add("--out", type=folder, default=None, metavar="DIR",
        help=f"folder {out}")
    return parser


def flags(description: str, epochs: int, lr: float, batch_size: int, sources: tuple[str, ...],
          precision: str = "float32", epochs_alias: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the flags of every training; the arguments are their defaults."""
    parser = tool_flags(description, sources)
    add = parser.add_argument
    add(*filter(None, (epochs_alias, "--epochs")), dest="epochs", type=positive_int,
        default=epochs, metavar="N", help="passes over the training images")
    add("--batch_size", type=positive_int, default=batch_size, metavar="N",
        help="images in one update")
    add("--lr", type=positive_float, default=lr, help="learning rate (its peak, with a schedule)")
    add("--seed", type=seed_int, default=SEED, help="seed of weights, order, noise and figures")
    add("--precision", choices=("auto", "float32", "bfloat16"), default=precision,
        help="precision of matrix products; auto: bfloat16 where the hardware has it")
    add("--resume", action="store_true", help="go on from the last checkpoint of this run")
    add("--limit", type=positive_int, default=None, metavar="N",
        help="train on the first N images only, for a quick trial")
    add("--tensorboard", action="store_true",
        help="write numbers and samples for TensorBoard beside the checkpoints")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None,
          recipes: dict[str, dict] | None = None) -> argparse.Namespace:
    """Parse the command line; a recipe sets other defaults, which flags still override.

    Args:
        recipes: the defaults that each value of ``--recipe`` sets, by flag.

    Returns:
        the flags, and as ``changed`` those that differ from their defaults, by name (the device
        always does, since auto is resolved).
    """
    if recipes:
        parser.set_defaults(**recipes[parser.parse_args(argv).recipe])
    args = parser.parse_args(argv)
    if ranks.size() > 1 and "resume" not in args:
        parser.error("only a training runs on several ranks; start this script without torchrun")
    if getattr(args, "tensorboard", False):
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            parser.error(f"'--tensorboard' needs the package tensorboard ({error}); give pip "
                         "install tensorboard, or leave the flag out")
    args.changed = {key: value for key, value in vars(args).items()
                    if value != parser.get_default(key)}
    return args


def run_name(method: str, args: argparse.Namespace, source: Source | None = None,
             usual_source: str = "", named: Sequence[str] = ()) -> str:
    """Name a run so that a trial does not overwrite its results.

    Only the full run at the default flags of training has the method's name alone. The source, if
    it is not the usual one, and the flags that differ are added, as in "vae-z20-seed1". The device
    is not, nor are a training's flags of evaluation: it is the same run.

    Args:
        named: flags that ``method`` already names.
    """
    skip = NOT_METHOD | {*named} | ({"dataset"} if source else set())
    skip |= EVALUATION_ONLY if "resume" in args else set()  # evaluated again, it is the same run
    parts = [method] + ([source.name] if source and source.name != usual_source else [])
    for key, value in args.changed.items():
        if key not in skip:
            text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(key + re.sub(r"[^\w.+-]", "", text))
    name = "-".join(parts)
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[:LONGEST_NAME - 9]}-{digest}"
    return name


class Printer:
    """A stream of text which outlives its encoding, its reader and its disk.

    A training of hours does not end because its terminal or the reader of its pipe does.
    """

    def __init__(self, stream: TextIO | None):
        # Without one, what is opened here also keeps its number from other files.
        self.stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or be silent from now on."""
        self._or_be_silent(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or be silent from now on."""
        self._or_be_silent(self.stream.flush)

    def _or_be_silent(self, work: Callable) -> None:
        try:
            work()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def exit_with(main: Callable) -> None:
    """Run ``main``; errors in data, files and runs end in one line, not in a traceback.

    Exit status: 0, 1 for data and run errors, 130 after Ctrl-C, 143 after SIGTERM (argparse gives
    2 for flags).
    """
    out, err = Printer(sys.stdout), Printer(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            _exit_with(main)
        finally:
            out.flush()
            err.flush()


def _exit_with(main: Callable) -> None:
    try:
        with listening(), ranks.joined():
            main()
    except Interrupted as stop:
        print(stop)
        sys.exit(stop.status)
    except KeyboardInterrupt as stop:
        print(f"\nstopped{how_to_go_on()}")
        sys.exit(getattr(stop, "status", 130))
    except (DataError, RunError, ConnectionError, InterruptedError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error}{how_to_go_on()}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not NO_MEMORY.search(str(error)):
            raise
        _fail("there is not enough memory; lower --batch_size, the draws at once, or the sizes of "
              f"the networks{how_to_go_on()}")


def _fail(message: str) -> None:
    if ranks.first_to_fail():
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
