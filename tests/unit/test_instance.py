"""What a state directory's server is called: one name as long as it lives, none for its copies."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from controlplane.triton.processes import instance_prefix

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_a_directory_keeps_its_name_wherever_it_is(state: Path, tmp_path: Path) -> None:
    name = instance_prefix(state)
    assert instance_prefix(state) == name
    (tmp_path / "link").symlink_to(state)
    assert instance_prefix(tmp_path / "link") == name
    moved = state.rename(tmp_path / "moved")
    assert instance_prefix(moved) == name


def test_a_copy_gets_its_own_name_and_the_original_keeps_its_own(
    state: Path, tmp_path: Path
) -> None:
    name = instance_prefix(state)
    copy = shutil.copytree(state, tmp_path / "copy")
    other = instance_prefix(copy)
    assert other != name
    assert (instance_prefix(copy), instance_prefix(state)) == (other, name)


@pytest.mark.parametrize(
    "content", [b"", b"0123456789", b"0123456789 1:2", b"../x 1:2", b"\xff", b" \n \n"]
)
def test_what_does_not_belong_to_the_directory_is_replaced(state: Path, content: bytes) -> None:
    (state / "instance").write_bytes(content)
    name = instance_prefix(state)
    assert name.startswith("modelmora-")
    assert name != "modelmora-0123456789-"
    assert instance_prefix(state) == name
