"""Results on the disk: written whole or not at all, with the commit that made them."""

import contextlib
import csv
import io
import json
import math
import os
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from a3.devices import describe_device
from a3.interrupts import held

REPOSITORY = Path(__file__).resolve().parents[2]


class RunError(RuntimeError):
    """A run cannot go on; the message is one line that says what to do."""


def expand_home(path: str | Path) -> Path:
    """Return a path a user gave, "~" and "~user" replaced where no shell has done it.

    Raises:
        OSError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise OSError(f"'{path}' begins in no user's home folder; write out the path") from None


def make_writable(folder: Path) -> None:
    """Make a folder if there is none.

    Raises:
        RunError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"cannot write to '{folder}' ({error.strerror}); choose another folder "
                       "with --out") from error


def report_folder(out: Path | None) -> Path:
    """Return the folder of figures/ and results/, both of which can be written to.

    Args:
        out: the flag --out.

    Raises:
        RunError: they cannot.
    """
    report = out or REPOSITORY / "report"
    for folder in (report / "figures", report / "results"):
        make_writable(folder)
    return report


def write_atomically(path: str | Path, content: bytes | Callable) -> None:
    """Write a file so that a crash leaves either the old file or the new one.

    Of several writers at a time, each writes a file of its own, and the last one's stays. Ctrl-C
    and SIGTERM wait until the end. A folder that is missing is made.

    Args:
        content: the bytes, or a function that writes them to an open binary file.

    Raises:
        OSError: it cannot be written; the message names the path.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(content) if isinstance(content, bytes) else content(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise OSError(f"'{path}' cannot be written ({error.strerror or error})") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_json(path: Path, record: dict) -> None:
    """Write a record as JSON, a key a line.

    Raises:
        RunError: a number is not finite.
    """
    _refuse_not_finite(path, record)
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def write_table(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write rows with the same keys as CSV, six significant digits a number.

    Raises:
        RunError: a number is not finite.
    """
    _refuse_not_finite(path, rows)
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)
    write_atomically(path, table.getvalue().encode())


def _refuse_not_finite(path: Path, value: object, key: str = "") -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise RunError(f"'{path}' is not written: {key} is {value}, and results are finite or "
                       "null")
    if isinstance(value, dict | list | tuple):
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_not_finite(path, entry, f"{key}.{name}" if key else str(name))


def write_record(path: Path, device: str, **numbers) -> dict:
    """Write numbers that belong to no single training run, and where they come from.

    Returns:
        what the file holds.
    """
    record = {**numbers, "device": describe_device(device), "torch": str(torch.__version__),
              "commit": commit(), "date": now(), "evaluated": evaluated(device)}
    write_json(path, record)
    return record


def evaluated(device: str) -> dict:
    """Return who computes the numbers at the end: a finished run may be evaluated again."""
    return {"commit": commit(), "date": now(), "device": describe_device(device),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads()}


def now() -> str:
    """Return the time as ISO 8601, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def commit() -> str:
    """Return the git commit of the code, with "-dirty" if code/ differs from it, or "unknown".

    A repository around ours says nothing about our code.
    """
    # Inside a git hook, variables name another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*command: str) -> str:
        child = subprocess.run(["git", "-C", REPOSITORY, *command], env=env, capture_output=True,
                               check=True)
        return os.fsdecode(child.stdout).strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != REPOSITORY.resolve():
            return "unknown"
        dirty = "-dirty" if git("status", "--porcelain", "code") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
