"""The hardware of a run: what it is called, its fastest precision, the cores it may use."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch


def backend(device: str) -> tuple[ModuleType, tuple]:
    """Return torch.cpu, torch.cuda or torch.mps, and which arguments name the device to it."""
    kind = torch.device(device).type
    return getattr(torch, kind), (device,) if kind == "cuda" else ()


def multiplies_bfloat16(device: str) -> bool:
    """Return whether the hardware multiplies bfloat16 matrices faster than float32 ones."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return device == "cpu" and ("avx512_bf16" in text or "amx_bf16" in text)
    return False


def describe_device(device: str) -> str:
    """Return the device with its model and, for a processor, the threads in use."""
    if torch.device(device).type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(x for x in lines if x.startswith("model name")).split(":")[1].strip()
    threads = torch.get_num_threads()
    return f"{device}: {model}, {threads} thread{'s' if threads > 1 else ''}"


def peak_memory_mib(device: str) -> float | None:
    """Return the most memory that this process has had, in MiB: on a GPU, the GPU's.

    None where the system does not tell (Windows).
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(ImportError):
        import resource  # noqa: PLC0415  of Unix only
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
    return None


def float64(values: torch.Tensor) -> torch.Tensor:
    """Return values as float64 on the CPU: Apple's GPUs (mps) have no such numbers."""
    return values.cpu().double()


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use, at least 1.

    A batch job or a container has a part of the machine only: what its affinity, the time that
    its control groups grant, and the batch system's variables leave.

    Args:
        root: where /proc and /sys are.
    """
    machine = os.cpu_count() or 1
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine]
    for variable in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        first = os.environ.get(variable, "").split(",")[0].strip()  # one a level of nesting
        limits += [int(first)] if first.isdecimal() and int(first) else []
    return max(1, int(min([*limits, *_granted_cores(root)])))


def _granted_cores(root: Path) -> Iterator[float]:
    """Yield the cores' worth of time granted to this process' groups and those above (Linux)."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            # A container often sees its own group as the root, so the groups above count too.
            hierarchy = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            own = hierarchy / group.lstrip("/")
            for folder in (own, *own.parents):
                with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else (
                        "cpu.max",)
                    text = " ".join((folder / file).read_text(encoding="utf-8") for file in files)
                    quota, period = map(int, text.split())  # "max" and -1: no limit
                    if quota > 0:
                        yield quota / period
