"""The command line that the scripts share: flags, the name of a run, errors in one line.

    parser = flags("Train ...", epochs=40, lr=3e-3, batch_size=128, sources=("mnist", "sample"))
    parser.add_argument("--zdim", type=positive_int, default=20)
    ...
    if __name__ == "__main__":
        exit_with(main)

What a user can get wrong is told in one line that names the flag or the file, what came and what
was expected: with exit status 2 for flags, 1 for data and runs, 130 after Ctrl-C.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from datasets import DataError, Source
from runs import Interrupted, RunError, method_flags

SEED = 42


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < math.inf, "a number above 0")


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    return _number(text, float, lambda value: 0 <= value < math.inf, "a number of at least 0")


def share(text: str) -> float:
    """Parse a number from 0 to below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def seed_int(text: str) -> int:
    """Parse a seed that every generator accepts."""
    return _number(text, int, lambda value: 0 <= value < 2**63, "a whole number of at least 0")


def _number(text: str, kind: Callable, good: Callable, expected: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not good(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {expected}")
    return value


def device_name(text: str) -> str:
    """Parse a device and check that this machine has it.

    Returns:
        "cpu", "cuda" or "mps"; "auto" becomes the fastest that there is.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    if text == "auto":
        return next(name for name, available in there.items() if available)
    if text not in there:
        raise argparse.ArgumentTypeError(f"'{text}' is not one of auto, {', '.join(there)}")
    if not there[text]:
        raise argparse.ArgumentTypeError(f"this machine has no '{text}'; use auto or cpu")
    return text


def flags(description: str, epochs: int, lr: float | None, batch_size: int,
          sources: tuple[str, ...], precision: str = "float32", epochs_alias: str | None = None
          ) -> argparse.ArgumentParser:
    """Return a parser with the flags that all scripts share; the arguments are their defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add(*filter(None, (epochs_alias, "--epochs")), dest="epochs", type=positive_int,
        default=epochs, metavar="N", help="passes over the training images")
    add("--batch_size", type=positive_int, default=batch_size, metavar="N",
        help="images in one update")
    add("--lr", type=positive_float, default=lr, help="learning rate (peak of the schedule)")
    add("--seed", type=seed_int, default=SEED, help="of weights, order, noise and figures")
    add("--device", type=device_name, default="auto", help="auto, cpu, cuda or mps")
    add("--precision", choices=("auto", "float32", "bfloat16"), default=precision,
        help="of matrix products; auto: bfloat16 where the hardware multiplies it faster")
    add("--dataset", choices=("auto", *sources), default="auto",
        help="auto takes the first source that can be had")
    add("--data_root", default=None, metavar="DIR",
        help="data folder (None: the variable A3_DATA, else data/ of the repository)")
    add("--out", type=Path, default=None, metavar="DIR",
        help="where figures/, results/ and checkpoints/ go (None: report/ and checkpoints/)")
    add("--resume", action="store_true", help="go on from the last checkpoint of this run")
    add("--limit", type=positive_int, default=None, metavar="N",
        help="train on the first N images only, for smoke runs")
    return parser


def run_name(method: str, args: argparse.Namespace, defaults: argparse.Namespace,
             source: Source, first_source: str) -> str:
    """Name a run so that no other kind of run overwrites its results.

    The full run at the default flags is called after the method alone; to any other, the source
    and the flags that differ are added, as in "vae-z20-seed1".
    """
    parts = [method] + ([source.name] if source.name != first_source else [])
    parts += [f"{key}{value}" for key, value in method_flags(args).items()
              if key != "dataset" and value != getattr(defaults, key)]
    return "-".join(parts)


def exit_with(main: Callable) -> None:
    """Run ``main``; what a user can cause ends in one line, never in a traceback.

    Exit status: 0, 1 for data and run errors, 130 after Ctrl-C (argparse gives 2 for flags).
    """
    try:
        main()
    except Interrupted as stop:
        print(stop)
        sys.exit(130)
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(130)
    except (DataError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
