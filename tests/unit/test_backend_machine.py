"""How many cores this process may use: its affinity and the quotas of its control groups."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from backends.machine import usable_cores

if TYPE_CHECKING:
    from pathlib import Path

OURS = len(os.sched_getaffinity(0))


class Groups:
    """A /proc/self/cgroup and a /sys/fs/cgroup of a test's own."""

    def __init__(self, folder: Path, membership: str) -> None:
        self.root = folder / "cgroup"
        self.own = folder / "self"
        self.own.write_text(membership)

    def put(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def cores(self) -> int:
        return usable_cores(self.root, self.own)


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 1)]
)
def test_a_quota_is_rounded_down_but_never_to_nothing(
    tmp_path: Path, quota: str, cores: int
) -> None:
    groups = Groups(tmp_path, "0::/\n")
    groups.put("cpu.max", quota)
    assert groups.cores() == cores


@pytest.mark.parametrize("quota", ["max 100000", "6400000 100000"])
def test_affinity_counts_where_no_lower_quota_is_set(tmp_path: Path, quota: str) -> None:
    groups = Groups(tmp_path, "0::/\n")
    groups.put("cpu.max", quota)
    assert groups.cores() == OURS


def test_a_parents_quota_binds_its_children(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/user/app\n")
    groups.put("user/cpu.max", "100000 100000")
    groups.put("user/app/cpu.max", "max 100000")
    assert groups.cores() == 1


def test_in_a_container_the_root_is_ours_although_the_path_is_the_hosts(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/docker/0123\n")
    groups.put("cpu.max", "100000 100000")
    assert groups.cores() == 1


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n")
    groups.put("cpu,cpuacct/a/cpu.cfs_quota_us", "100000")
    groups.put("cpu,cpuacct/a/cpu.cfs_period_us", "100000")
    assert groups.cores() == 1


def test_no_quota_in_the_first_version(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "4:cpu,cpuacct:/\n")
    groups.put("cpu,cpuacct/cpu.cfs_quota_us", "-1")
    groups.put("cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert groups.cores() == OURS


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "nothing") == OURS
