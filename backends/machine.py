"""What this process may use of the machine: CPU cores and CUDA devices."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """CPU cores this process may use, at least 1: its affinity, and the cgroup's quota if lower.

    A quota of 1.5 cores counts as 1: a second thread would be throttled in every period, and
    all threads of a matrix product wait for the slowest.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for quota in _quotas(cgroups, own_cgroup):
        cores = min(cores, quota)
    return max(1, int(cores))


def _quotas(cgroups: Path, own_cgroup: Path) -> list[float]:
    """CPU quotas in cores of this process's cgroup and all above it (a parent's limit binds)."""
    quotas = []
    for controllers, group in _memberships(own_cgroup):
        root = cgroups if controllers == "" else cgroups / controllers
        # In a container the path is the host's and does not exist here; the root is then ours.
        inner = root / group.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                quotas.append(_quota(folder))
    return [quota for quota in quotas if quota is not None]


def _memberships(own_cgroup: Path) -> list[tuple[str, str]]:
    """(controllers, path) of /proc/self/cgroup's lines; controllers is "" for cgroup v2."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return []
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return [(names, path) for _, names, path in parts if names == "" or "cpu" in names.split(",")]


def _quota(folder: Path) -> float | None:
    """The quota set on one cgroup, v2 (cpu.max: "QUOTA PERIOD") or v1 (two files), in cores."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in files).split()
            return float(quota) / float(period) if float(quota) > 0 else None
        except (OSError, ValueError):  # absent, or the word "max"
            continue
    return None


def cuda_devices() -> int:
    """Number of CUDA devices the driver shows to this process; 0 without a driver.

    Asks the driver itself (`cuInit`, `cuDeviceGetCount`), because ONNX Runtime prints errors
    when it is asked for CUDA on a machine that has none.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def return_free_memory() -> None:
    """Give freed heap pages back to the system (glibc's `malloc_trim`; elsewhere nothing)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
