"""Memory limits of the control groups that this process is in: v1 and v2, all levels.

A limit anywhere above counts, not only the innermost one: containers set it on a parent. Format of
the files: the kernel's cgroup-v2.rst, cgroup-v1/memory.rst, and proc(5) for mountinfo.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_ESCAPED = re.compile(r"\\([0-7]{3})")
# v1 writes "no limit" as the largest number of whole pages.
_NO_LIMIT = 2**62


class MemoryGroup(NamedTuple):
    """One group that has a limit; all in bytes.

    Attributes:
        limit: the lower of its hard limit and the one from which the kernel slows it down.
        used: what its processes and their files take.
        reclaimable: the part of `used` that the kernel gives back first: files read long ago.
    """

    limit: int
    used: int
    reclaimable: int

    @property
    def available(self) -> int:
        """What can still be had before the limit."""
        return max(0, self.limit - self.used + self.reclaimable)


class _Hierarchy(NamedTuple):
    """Where a version of cgroups keeps its figures."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str


_V2 = _Hierarchy(("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = _Hierarchy(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def memory_groups(root: Path = Path("/")) -> list[MemoryGroup]:
    """The groups with a limit that this process is in, innermost first; none outside of Linux.

    Args:
        root: what paths begin with; another one for tests.
    """
    found = []
    memberships = _lines(root / "proc/self/cgroup")
    for mount in _lines(root / "proc/self/mountinfo"):
        hierarchy = _hierarchy(mount)
        if hierarchy is None:
            continue
        path = _membership(memberships, v2=hierarchy is _V2)
        if path is not None:
            found += _with_limits(root, mount, path, hierarchy)
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _hierarchy(mount: str) -> _Hierarchy | None:
    """Which figures a mount holds; None for anything but control groups of memory."""
    kind, _, options = [*mount.partition(" - ")[2].split(" ", 2), "", ""][:3]
    if kind == "cgroup2":
        return _V2
    return _V1 if kind == "cgroup" and "memory" in options.split(",") else None


def _membership(memberships: list[str], *, v2: bool) -> str | None:
    """Path of our group in the hierarchy; lines are `number:controllers:path`."""
    for line in memberships:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number == "0" and not controllers) if v2 else ("memory" in controllers.split(",")):
            return path
    return None


def _with_limits(root: Path, mount: str, path: str, files: _Hierarchy) -> list[MemoryGroup]:
    fields = [_unescaped(field) for field in mount.split(" ")[:5]]
    if len(fields) < 5:
        return []
    top = root / fields[4].lstrip("/")
    found = []
    for folder in _levels(top, fields[3], path):
        group = _read(folder, files)
        if group is not None:
            found.append(group)
    return found


def _levels(top: Path, mounted: str, path: str) -> list[Path]:
    """Our group's folder and those above it, down to the mount's own.

    Args:
        top: where the hierarchy is mounted.
        mounted: which part of it: a container may see only its own.
        path: our group; outside of what is mounted it cannot be seen, and `top` counts.
    """
    base = mounted.rstrip("/")
    inside = path == base or path.startswith(base + "/")
    below = path[len(base) :].strip("/") if inside else ""
    parts = [part for part in below.split("/") if part]
    if ".." in parts:  # from another namespace
        parts = []
    return [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _unescaped(field: str) -> str:
    """A path of mountinfo: blanks and backslashes are written in octal."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)


def _read(folder: Path, files: _Hierarchy) -> MemoryGroup | None:
    limits = [limit for name in files.limits if (limit := _number(folder / name)) is not None]
    limit = min(limits, default=_NO_LIMIT)
    if limit >= _NO_LIMIT:
        return None
    used = _number(folder / files.used) or 0
    return MemoryGroup(limit, used, min(used, _statistic(folder, files.reclaimable)))


def _number(path: Path) -> int | None:
    """The file's number; None when there is none, or the word "max"."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _statistic(folder: Path, name: str) -> int:
    for line in _lines(folder / "memory.stat"):
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0
