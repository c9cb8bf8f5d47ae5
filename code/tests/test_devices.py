"""What the hardware is called, and what it is good at."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from a3 import devices


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine with this /proc/cpuinfo and this capability of its GPU."""
    def pretend(cpuinfo: str | None = None, capability: tuple = (0, 0)):
        def read_text(encoding):
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


@pytest.fixture
def allowance(tmp_path, monkeypatch):
    """Return a function that gives this process so many cores, variables and files below /."""
    def allow(affinity: int, variables: dict, files: dict) -> Path:
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)),
                            raising=False)
        for variable in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path
    return allow


V1, V2 = "9:name=systemd:/\n2:cpu,cpuacct:/docker/a\n", "0::/jobs/a\n"
GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(("affinity", "variables", "files", "cores"), [
    (64, {}, {}, 64), (1, {}, {}, 1),
    (64, {"SLURM_CPUS_PER_TASK": "2"}, {}, 2), (64, {"OMP_NUM_THREADS": "4,2"}, {}, 4),
    (4, {"OMP_NUM_THREADS": "many", "SLURM_CPUS_PER_TASK": ""}, {}, 4),
    (2, {"OMP_NUM_THREADS": "8"}, {}, 2), (2, {"OMP_NUM_THREADS": "0"}, {}, 2),
    (64, {}, {"proc/self/cgroup": V2, f"{GROUPS}/jobs/a/cpu.max": "250000 100000\n"}, 2),
    (64, {}, {"proc/self/cgroup": V2, f"{GROUPS}/jobs/a/cpu.max": "max 100000\n",
              f"{GROUPS}/jobs/cpu.max": "300000 100000\n"}, 3),
    (64, {}, {"proc/self/cgroup": "0::/\n", f"{GROUPS}/cpu.max": "50000 100000\n"}, 1),
    (64, {}, {"proc/self/cgroup": V1, f"{GROUPS}/cpu/cpu.cfs_quota_us": "500000\n",
              f"{GROUPS}/cpu/cpu.cfs_period_us": "100000\n"}, 5),
    (64, {}, {"proc/self/cgroup": V1, f"{GROUPS}/cpu/docker/a/cpu.cfs_quota_us": "-1\n",
              f"{GROUPS}/cpu/docker/a/cpu.cfs_period_us": "100000\n"}, 64)])
def test_the_usable_cores_are_those_that_every_limit_leaves(allowance, affinity, variables, files,
                                                            cores):
    assert devices.usable_cores(allowance(affinity, variables, files)) == cores


def test_without_affinity_the_cores_of_the_machine_count(allowance, monkeypatch):
    root = allowance(1, {}, {})
    monkeypatch.delattr(os, "sched_getaffinity")
    assert devices.usable_cores(root) == 64
