"""One training by several processes, the ranks, which torchrun starts: data parallel.

    torchrun --nproc_per_node=2 code/a3_nf_template.py

Every rank has the whole model and all images, and draws the same order. It computes on its share
of each batch only; gradients and the sums of an epoch are added up over the ranks, so that model
and numbers are those of the whole batch; only the groups whose deviation a GAN's discriminator
sees are of one rank's images. Validation runs on every rank in full. Rank 0 alone
writes and prints, and evaluates at the end, when the others are gone.

The engine is torch.distributed: nccl between GPUs, each rank on its own, gloo between processors.
Without torchrun there is one rank, and nothing here changes a number.
"""

import contextlib
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from a3.devices import usable_cores
from a3.interrupts import held

VARIABLES = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
KEPT = "whole epochs are kept: the same command with --resume goes on"

_rank, _size = 0, 1
_store: dist.Store | None = None  # what all ranks can read and write
_weight = 1.0  # this rank's share of the images of the batch


def rank() -> int:
    """Return the number of this process among those that train together, from 0."""
    return _rank


def size() -> int:
    """Return how many processes train together."""
    return _size


# Beginning and end -------------------------------------------------------------------------------

@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Meet the other ranks, if torchrun has started any; all but rank 0 are then silent."""
    if os.environ.keys() >= VARIABLES:
        _join()
    with open(os.devnull, "w", encoding="utf-8") as nothing, \
            contextlib.redirect_stdout(nothing if _rank else sys.stdout), \
            contextlib.redirect_stderr(nothing if _rank else sys.stderr):
        yield


def _join() -> None:
    global _rank, _size, _store  # noqa: PLW0603
    if os.environ.get("OMP_NUM_THREADS") == "1":  # by torchrun, where the user has said nothing
        del os.environ["OMP_NUM_THREADS"]
        torch.set_num_threads(max(1, usable_cores() // _ranks_here()))
    signal.signal(signal.SIGTERM, _told_to_end)
    with _no_contact_lost():
        store, _rank, _size = next(dist.rendezvous("env://"))
        _store = dist.PrefixStore(_meeting(store), store)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                                store=_store, rank=_rank, world_size=_size)


def _meeting(store: dist.Store) -> str:
    """Return a name that only the ranks have that meet now: a store outlives a restart.

    Its old entries name processes that are gone, to which a rank would try to connect for ever.
    """
    own = uuid.uuid4().hex
    if _rank == 0:
        store.set("meeting", own)
        for other in range(1, _size):
            store.set(store.get(f"{own} {other}").decode(), own)
        return own
    while not store.check([own]):
        store.set(f"{store.get('meeting').decode()} {_rank}", own)
        time.sleep(0.05)
    return store.get(own).decode()


def _ranks_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def gpu() -> str:
    """Return the GPU of this rank: a machine's first rank has its first one."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if _store else "cuda"


def leave(stopped: bool = False) -> None:
    """Let rank 0 go on alone, with the cores of the others on its machine; these end here.

    Args:
        stopped: whether Ctrl-C ends all ranks; nobody then waits for another.
    """
    global _rank, _size
    if _store is None:
        return
    if stopped:  # torchrun repeats what it was told
        for repeated in (signal.SIGINT, signal.SIGTERM):
            signal.signal(repeated, signal.SIG_IGN)
    elif dist.is_initialized():
        dist.destroy_process_group()
    if _rank:
        sys.exit(130 if stopped else 0)
    _rank, _size = 0, 1
    torch.set_num_threads(torch.get_num_threads() * _ranks_here())


def _told_to_end(number: int, _) -> None:
    if held.depth:
        held.waiting.append(number)
        return
    raise InterruptedError(f"rank {_rank} was told to end, since another one failed or the batch "
                           f"system ends the job; {KEPT}")


@contextlib.contextmanager
def _no_contact_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # torch.distributed's own name many lines of its C++ code
        raise ConnectionError(f"rank {_rank} has lost the others: one of them failed, or the "
                              f"network between them; {KEPT}") from None


def first_to_fail() -> bool:
    """Return whether no other rank has failed yet: one tells the error, and most share it."""
    if _store is None:
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(RuntimeError):
        return _store.add("failed", 1) == 1
    return True


def job() -> list[str] | None:
    """Return what is the same in all restarts of a job by torchrun: its name, its agent here."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    agent = f"{socket.gethostname()} {os.getppid()}"
    with contextlib.suppress(OSError):  # process numbers come again, but not at the same tick
        stat = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8")
        agent += " " + stat.rpartition(")")[2].split()[19]
    return [name, agent]


def goes_on(begun: list[str] | None) -> bool:
    """Return whether this process restarts the job that ``begun`` is from.

    The agent tells, or where rank 0 is on another machine now, the name that the user gave.
    """
    own, restarts = job(), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return own is not None and begun is not None and own[0] == begun[0] and (
        own[1] == begun[1] or (restarts != "0" and own[0] != "none"))


# Together ----------------------------------------------------------------------------------------

def of_first(function: Callable):
    """Return on every rank what the function returns on rank 0."""
    box = [None if _rank else function()]
    if _size > 1:
        with _no_contact_lost():
            dist.broadcast_object_list(box)
    return box[0]


def share(batch: Tensor) -> Tensor:
    """Return this rank's part of a batch; all of it while no gradient is recorded.

    A batch of fewer images than ranks is taken whole by each, with equal weights.
    """
    global _weight  # noqa: PLW0603
    parts = batch.tensor_split(_size)
    whole = not torch.is_grad_enabled() or not len(parts[-1])
    mine = batch if whole else parts[_rank]
    _weight = 1 / _size if whole else len(mine) / len(batch)
    return mine


def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, in its place."""
    if _size > 1:
        with _no_contact_lost():
            dist.all_reduce(values)
    return values


class _Total(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of theirs, weighed as their losses are."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return total(values.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return total(gradient * _weight) / _weight  # train_together multiplies by it once more


def batch_mean(values: Tensor) -> Tensor:
    """Return the mean over the images of the whole batch, for values (B, ...) of this share."""
    mean = values.mean(dim=0)
    return _Total.apply(mean * _weight) if _size > 1 else mean


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation by the statistics of the whole batch (torch's own is for GPUs only)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise x (B, C)."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        x = input.double()  # so that the difference of squares loses nothing
        mean, square = batch_mean(torch.cat((x, x**2), dim=1)).chunk(2)  # each (C,)
        variance, images = square - mean**2, len(x) / _weight
        with torch.no_grad():
            self.num_batches_tracked += 1
            for kept, new in ((self.running_mean, mean),
                              (self.running_var, variance * images / (images - 1))):
                kept.lerp_(new.to(kept), self.momentum)
        normal = ((x - mean) / (variance + self.eps).sqrt()).to(self.weight)
        return (normal * self.weight + self.bias).to(input.dtype)


def train_together(module: nn.Module) -> None:
    """Let a module's gradients be those of the whole batch as soon as ``backward`` has them.

    The loss is a mean over this rank's images, so the rank weighs as much as it has of them.
    """
    def add_up(parameter: Tensor) -> None:
        parameter.grad = total(parameter.grad * _weight)

    if _size > 1:
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(add_up)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.__class__ = BatchNorm
