"""The hardware of a run: what it is called, and its fastest precision."""

import contextlib
import platform
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
        return device == "cpu" and any(
            flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return False


def describe_device(device: str) -> str:
    """Return the device with its model and, for a processor, the threads in use."""
    if torch.device(device).type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x for x in lines if x.startswith("model name")).split(":")[1].strip()
    threads = torch.get_num_threads()
    return f"{device}: {model}, {threads} thread{'s' if threads > 1 else ''}"


def float64(values: torch.Tensor) -> torch.Tensor:
    """Return values as float64 on the CPU: Apple's GPUs (mps) have no such numbers."""
    return values.cpu().double()
