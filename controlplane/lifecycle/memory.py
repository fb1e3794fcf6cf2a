"""How much memory a model really takes: the proportional set size of its process tree."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import psutil

from controlplane.cgroups import memory_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controlplane.lifecycle.gpu import GpuMemory

_MB = 1024 * 1024

K = TypeVar("K")


class MemoryUsage(msgspec.Struct, frozen=True):
    """What a model takes, in MB (domain §3.6); `gpu_mb` None where no GPU can be asked."""

    used_mb: float
    gpu_mb: float | None = None


def usage_of(
    roots: Mapping[K, Iterable[int]], gpus: GpuMemory | None = None
) -> dict[K, MemoryUsage]:
    """Memory of process trees, each named by a key; those of which no process lives are left out.

    PSS (proc(5), smaps_rollup) divides pages shared between processes among them, so that the
    sum over models does not count a shared library once for each. One reading of the process
    table serves all trees.
    """
    children = _children()
    found = {}
    for key, pids in roots.items():
        tree = _tree(pids, children)
        sizes = {pid: size for pid in tree if (size := _pss(pid)) is not None}
        if sizes:
            gpu_mb = gpus.used_mb(sizes.keys()) if gpus else None
            found[key] = MemoryUsage(sum(sizes.values()) / _MB, gpu_mb)
    return found


def usage_of_process(pid: int, gpus: GpuMemory | None = None) -> MemoryUsage | None:
    """Memory of one process without those below it; None when it is gone."""
    size = _pss(pid)
    return None if size is None else MemoryUsage(size / _MB, gpus.used_mb({pid}) if gpus else None)


def process_tree_mb(pids: Iterable[int]) -> float | None:
    """Memory of the processes and all their descendants in MB, None when none of them lives."""
    usage = usage_of({"": pids}).get("")
    return usage.used_mb if usage else None


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter(["ppid"]):
        children[process.info["ppid"]].append(process.pid)
    return children


def _tree(roots: Iterable[int], children: Mapping[int, list[int]]) -> set[int]:
    tree: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in tree:
            tree.add(pid)
            waiting += children.get(pid, ())
    return tree


def _pss(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        try:
            return int(process.memory_full_info().pss)
        except psutil.AccessDenied:  # another user's process: RSS can still be read
            return int(process.memory_info().rss)
    except psutil.Error:  # it ended meanwhile
        return None


def available_mb() -> float:
    """Memory that can still be had in MB: the machine's, or what a control group leaves of it."""
    free = (group.available for group in memory_groups())
    return min([psutil.virtual_memory().available, *free]) / _MB


def alive(pid: int) -> bool:
    """True while the process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def processor_seconds(pids: Iterable[int]) -> float:
    """Processor time that the processes have had, together; those that are gone count nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def device() -> str:
    """`cuda` where an NVIDIA GPU is visible, else `cpu`."""
    return "cuda" if Path("/dev/nvidia0").exists() else "cpu"
