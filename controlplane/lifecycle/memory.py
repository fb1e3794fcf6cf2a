"""How much memory a model really takes: the proportional set size of its process tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

_MB = 1024 * 1024


def process_tree_mb(pids: Iterable[int]) -> float | None:
    """Memory of the processes and all their descendants in MB, None when none of them lives.

    PSS (proc(5), smaps_rollup) divides pages shared between processes among them, so that the
    sum over models does not count a shared library once for each.
    """
    total = 0
    seen: set[int] = set()
    for pid in pids:
        for process in _tree(pid):
            if process.pid in seen:
                continue
            size = _pss(process)
            if size is not None:
                seen.add(process.pid)
                total += size
    return total / _MB if seen else None


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:  # it ended meanwhile
        return []


def _pss(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # another user's process: RSS can still be read
        return int(process.memory_info().rss)


def alive(pid: int) -> bool:
    """True while the process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def device() -> str:
    """`cuda` where an NVIDIA GPU is visible, else `cpu`."""
    return "cuda" if Path("/dev/nvidia0").exists() else "cpu"
