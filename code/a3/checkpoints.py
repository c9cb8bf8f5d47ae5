"""Checkpoints: written whole, verified when they are read, never one run's over another's.

    last.pt        after the last whole epoch
    previous.pt    after the one before; taken where the last one is damaged
    epoch-40.pt    of an earlier run of the same name, set aside when a fresh one saves its first;
                   the next such is epoch-40-2.pt
    damaged*.pt    what could not be read
    next.pt        while it is written
    lock           names the process that trains, and is locked by it

A checkpoint is what torch.save makes of a state, followed by the 32 bytes of its SHA-256: PyTorch
itself reads on over flipped bits.
"""

import hashlib
import io
import json
import math
import mmap
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from a3.interrupts import held
from a3.records import RunError, write_atomically

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, two runs of one name are the user's care
    fcntl = None

DIGEST_BYTES = 32
ZIP = b"PK\x03\x04"  # how what torch.save writes begins
PARTS = {"kept": dict, "history": list, "snapshots": dict, "flags": dict, "data": str,
         "provenance": list, "random": dict}
_owned: dict = {}  # open lock files of this process, by folder


def write(path: Path, state: dict) -> None:
    """Write a state; the checkpoint that was there becomes the previous one."""
    save(state, following := path.with_name("next.pt"))
    with held:
        if path.exists():
            path.replace(path.with_name("previous.pt"))
        following.replace(path)


def save(state: dict, path: Path) -> None:
    """Write what torch.save makes of a state, and its SHA-256."""
    buffer = io.BytesIO()
    torch.save(state, buffer)  # into memory, where no disk can be full
    whole = buffer.getbuffer()
    write_atomically(path, lambda file: (file.write(whole),
                                         file.write(hashlib.sha256(whole).digest())))


def load(path: Path) -> dict:
    """Return what ``save`` wrote, on the CPU.

    Raises:
        RunError: it is missing, damaged, or no such file.
    """
    try:
        if not path.is_file():  # opening a FIFO would wait forever
            raise OSError("there is no such file")
        with path.open("rb") as file:
            if file.read(len(ZIP)) != ZIP:  # before a huge file is read whole
                raise OSError("its beginning is not a checkpoint's")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, \
                    memoryview(content) as view, view[:-DIGEST_BYTES] as whole, \
                    view[-DIGEST_BYTES:] as digest:
                if hashlib.sha256(whole).digest() != digest:
                    raise OSError("its SHA-256 is another")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes torch raise
        raise unreadable(path, error) from error


def read(path: Path) -> dict:
    """Return the state in a run's checkpoint.

    Raises:
        RunError: it is missing, damaged, or holds something else.
    """
    state = load(path)
    try:
        _inspect(state)
    except Exception as error:  # whatever is foreign in it
        raise unreadable(path, error) from error
    return state


def _inspect(state: dict) -> None:
    """Raise if the parts of a state are not what a run keeps."""
    for key, kind in PARTS.items():
        if not isinstance(state[key], kind):
            raise TypeError(f"{key} is another thing")
    if not state["history"] or not state["provenance"]:
        raise ValueError("it has no epoch")
    for epoch, row in enumerate(state["history"]):
        if row["epoch"] != epoch or row.keys() != state["history"][0].keys() or \
                not all(math.isfinite(value) for value in [*row.values(), row["seconds"]]):
            raise ValueError("its history is broken")
    for epoch, moment in state["snapshots"].items():
        if state["history"][epoch]["epoch"] != epoch or \
                not all(isinstance(value, Tensor) for value in moment.values()):
            raise ValueError("its snapshots are broken")
    json.dumps([{**part} for part in (state["flags"], *state["provenance"])])


def last_good(path: Path) -> dict:
    """Return the state in a run's last checkpoint or, if that is damaged, in the one before.

    Raises:
        RunError: there is no good one.
    """
    try:
        return read(path)
    except RunError as error:
        previous = path.with_name("previous.pt")
        if not previous.exists():
            raise
        state = read(previous)
        print(f"note: {str(error).split(';')[0]}; taking the one before it, after epoch "
              f"{state['history'][-1]['epoch']}", flush=True)
    with held:
        if os.path.lexists(path):
            path.replace(path.with_name("damaged.pt"))
        previous.replace(path)
    return state


def set_aside(path: Path) -> None:
    """Move an earlier run's checkpoint out of a fresh one's way, and say where it is."""
    for file in (path, path.with_name("previous.pt")):
        if not os.path.lexists(file):
            continue
        try:
            name = f"epoch-{read(file)['history'][-1]['epoch']}.pt"
        except RunError:
            name = f"damaged-{file.name}"
        kept, further = file.with_name(name), 2
        while not name.startswith("damaged") and os.path.lexists(kept):
            kept, further = file.with_name(f"{name[:-3]}-{further}.pt"), further + 1
        file.replace(kept)
        if not name.startswith("damaged"):
            print(f"note: the checkpoint of an earlier run is kept as '{kept}'; as last.pt again, "
                  "--resume would take it", flush=True)
            path.with_name("previous.pt").unlink(missing_ok=True)  # older still
            return


def unreadable(path: Path, error: Exception) -> RunError:
    """Return what to raise about a checkpoint that cannot be read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return RunError(f"'{path}' cannot be read as a checkpoint of this program ({reason[:80]}); "
                    "delete it and start again")


# Contents ----------------------------------------------------------------------------------------

def tensors(value, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested dicts and lists, with its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from tensors(entry, f"{name}.{key}" if name else str(key))


def weights_sha256(weights: dict) -> str:
    """Return a hash of the names and values of a model's state_dict, the same on any device."""
    made_of = hashlib.sha256()
    for name, value in tensors(weights):
        made_of.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        made_of.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return made_of.hexdigest()


# One run, one owner ------------------------------------------------------------------------------

def own(folder: Path) -> None:
    """Make this process the only one to write a run's checkpoints, until it ends.

    The kernel frees the lock however the process ends.

    Raises:
        RunError: another process has it; the message names that.
    """
    folder = folder.resolve()
    if fcntl is None or folder in _owned:
        return
    file = (folder / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another one"
        file.close()
        raise RunError(f"the run in '{folder}' is being trained by process {holder}; wait for "
                       "it, end it, or choose another folder with --out") from None
    except OSError:  # a file system without locks
        file.close()
        return
    file.truncate(0)
    file.write(f"{os.getpid()} on {platform.node()}\n")
    file.flush()
    _owned[folder] = file


def disown(folder: Path) -> None:
    """Let other processes train the run."""
    if file := _owned.pop(folder.resolve(), None):
        file.close()
