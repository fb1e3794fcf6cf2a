"""Limits of control groups, read from trees of files as the kernel lays them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import settings as settings_module
from controlplane.cgroups import MemoryGroup, memory_groups
from controlplane.settings import Settings, machine_memory_mb

if TYPE_CHECKING:
    from pathlib import Path

MB = 1024 * 1024
V2_MOUNT = "30 23 0:26 {mounted} {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {mounted} {top} rw,relatime - cgroup cgroup rw,memory"
OTHER = """32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
22 1 8:1 / / rw - ext4 /dev/root rw"""


class Machine:
    """A root directory with the kernel's files in it."""

    def __init__(self, root: Path, version: int, path: str, mounted: str = "/") -> None:
        self.root = root
        self.version = version
        self.top = "/sys/fs/cgroup" if version == 2 else "/sys/fs/cgroup/memory"
        line = (V2_MOUNT if version == 2 else V1_MOUNT).format(mounted=mounted, top=self.top)
        self.write("/proc/self/mountinfo", f"{OTHER}\n{line}\n")
        membership = f"0::{path}" if version == 2 else f"4:memory:{path}\n3:cpu:/elsewhere\n0::/"
        self.write("/proc/self/cgroup", membership + "\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def group(
        self, path: str, limit: str, used: int = 0, inactive: int = 0, high: str = "max"
    ) -> None:
        folder = f"{self.top}/{path.strip('/')}"
        if self.version == 2:
            self.write(f"{folder}/memory.max", limit + "\n")
            self.write(f"{folder}/memory.high", high + "\n")
            self.write(f"{folder}/memory.current", f"{used}\n")
            self.write(f"{folder}/memory.stat", f"anon 1\ninactive_file {inactive}\n")
        else:
            self.write(f"{folder}/memory.limit_in_bytes", limit + "\n")
            self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
            self.write(f"{folder}/memory.stat", f"cache 1\ntotal_inactive_file {inactive}\n")

    def groups(self) -> list[MemoryGroup]:
        return memory_groups(self.root)


def test_a_v2_limit_and_what_is_left_of_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2, "/app")
    machine.group("/app", str(1000 * MB), used=700 * MB, inactive=100 * MB)
    (group,) = machine.groups()
    assert group == MemoryGroup(1000 * MB, 700 * MB, 100 * MB)
    assert group.available == 400 * MB


def test_the_lower_of_max_and_high_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2, "/app")
    machine.group("/app", str(1000 * MB), high=str(800 * MB))
    assert machine.groups()[0].limit == 800 * MB


def test_limits_of_all_levels_count_innermost_first(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2, "/pod/container")
    machine.group("/pod/container", "max")
    machine.group("/pod", str(500 * MB))
    machine.group("/", str(900 * MB))
    assert [group.limit for group in machine.groups()] == [500 * MB, 900 * MB]


def test_no_limit_is_none(tmp_path: Path) -> None:
    two = Machine(tmp_path / "v2", 2, "/app")
    two.group("/app", "max")
    one = Machine(tmp_path / "v1", 1, "/app")
    one.group("/app", "9223372036854771712")
    assert two.groups() == one.groups() == []


def test_a_v1_limit_above_our_group(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 1, "/docker/abc")
    machine.group("/docker/abc", "9223372036854771712")
    machine.group("/docker", str(600 * MB), used=100 * MB, inactive=200 * MB)
    (group,) = machine.groups()
    assert group.limit == 600 * MB
    assert group.available == 600 * MB  # never more reclaimable than used


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_that_sees_only_its_own_group(tmp_path: Path, version: int) -> None:
    """Without a namespace of its own: the path is the host's, the mount starts at the container."""
    machine = Machine(tmp_path, version, "/docker/abc", mounted="/docker/abc")
    machine.group("/", str(300 * MB))
    assert [group.limit for group in machine.groups()] == [300 * MB]


@pytest.mark.parametrize("path", ["/../../elsewhere", "/somewhere/else"])
def test_a_group_outside_of_what_is_mounted(tmp_path: Path, path: str) -> None:
    machine = Machine(tmp_path, 2, path, mounted="/docker/abc")
    machine.group("/", str(300 * MB))
    assert [group.limit for group in machine.groups()] == [300 * MB]


def test_a_mount_point_with_a_blank(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2, "/app")
    machine.top = "/sys/fs/c group"
    line = V2_MOUNT.format(mounted="/", top="/sys/fs/c\\040group")
    machine.write("/proc/self/mountinfo", line)
    machine.group("/app", str(100 * MB))
    assert machine.groups()[0].limit == 100 * MB


def test_nothing_to_read(tmp_path: Path) -> None:
    assert memory_groups(tmp_path) == []
    machine = Machine(tmp_path, 2, "/app")
    machine.write("/proc/self/mountinfo", "broken\n1 2 - cgroup2\n")
    assert machine.groups() == []


@given(st.text(max_size=200), st.text(max_size=200))
def test_whatever_the_files_say_nothing_breaks(
    tmp_path_factory: pytest.TempPathFactory, membership: str, mounts: str
) -> None:
    machine = Machine(tmp_path_factory.mktemp("root"), 2, "/app")
    machine.write("/proc/self/cgroup", membership.replace("\x00", "") or "0::/")
    machine.write("/proc/self/mountinfo", f"{mounts} - cgroup2 c rw\n")
    machine.groups()


def test_the_budget_is_a_share_of_the_lowest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [MemoryGroup(1000 * MB, 0, 0), MemoryGroup(400 * MB, 0, 0)]
    monkeypatch.setattr(settings_module, "memory_groups", lambda: limits)
    assert machine_memory_mb() == 400
    assert Settings().memory_budget_mb == 340
    assert Settings(max_memory_mb=123).memory_budget_mb == 123
    monkeypatch.setattr(settings_module, "memory_groups", list)
    assert machine_memory_mb() > 400


def test_this_machine_can_be_read() -> None:
    assert all(group.limit > 0 for group in memory_groups())
