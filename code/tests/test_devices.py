"""What the hardware is called, and what it is good at."""

from types import SimpleNamespace

import pytest
import torch

from a3 import devices


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine with this /proc/cpuinfo and this capability of its GPU."""
    def pretend(cpuinfo: str | None = None, capability: tuple = (0, 0)):
        def read_text():
            if cpuinfo is None:
                raise OSError("no such file")
            return cpuinfo

        monkeypatch.setattr(torch.cuda, "get_device_capability",
                            lambda device: capability if device == "cuda:1" else (0, 0))
        monkeypatch.setattr(devices, "Path", lambda file: SimpleNamespace(read_text=read_text))
    return pretend


@pytest.mark.parametrize(("device", "cpuinfo", "capability", "fast"), [
    ("cpu", "flags : sse avx512_bf16 fma", (0, 0), True), ("cpu", "amx_bf16", (0, 0), True),
    ("cpu", "flags : sse avx512f", (0, 0), False), ("cpu", None, (0, 0), False),
    ("mps", "amx_bf16", (0, 0), False), ("cuda:1", None, (8, 0), True),
    ("cuda:1", "amx_bf16", (7, 5), False), ("cuda:0", None, (8, 0), False)])
def test_bfloat16_is_for_hardware_that_multiplies_it(machine, device, cpuinfo, capability, fast):
    machine(cpuinfo=cpuinfo, capability=capability)
    assert devices.multiplies_bfloat16(device) == fast


@pytest.mark.parametrize(("threads", "told"), [(1, "1 thread"), (2, "2 threads")])
def test_a_processor_is_described_by_its_model_and_the_threads_in_use(machine, monkeypatch,
                                                                      threads, told):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    machine(cpuinfo="processor\t: 0\nmodel name\t: Abacus 3000\nmodel name\t: Abacus 3000\n")
    assert devices.describe_device("cpu") == f"cpu: Abacus 3000, {told}"
    monkeypatch.setattr(devices.platform, "processor", lambda: "beads")
    machine(cpuinfo=None)
    assert devices.describe_device("cpu") == f"cpu: beads, {told}"


def test_of_several_gpus_the_one_in_use_is_described(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Beads of {device}")
    assert devices.describe_device("cuda:1") == "cuda: Beads of cuda:1"
    assert devices.backend("cuda:1") == (torch.cuda, ("cuda:1",))
    assert devices.backend("mps") == (torch.mps, ()) and devices.backend("cpu") == (torch.cpu, ())
