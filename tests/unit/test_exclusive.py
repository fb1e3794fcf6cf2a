"""exclusive.py: a second server is told what the first one has."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from controlplane.errors import StartupError
from controlplane.exclusive import check_free, listen, own_data_dir

if TYPE_CHECKING:
    from pathlib import Path


def test_a_data_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    lock = own_data_dir(tmp_path / "new" / "data")
    with pytest.raises(StartupError, match="Another ModelMora is running"):
        own_data_dir(tmp_path / "new" / "data")
    lock.release()
    own_data_dir(tmp_path / "new" / "data").release()


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="cannot be written"):
        own_data_dir(tmp_path / "file" / "data")


@pytest.mark.parametrize("claim", [listen, check_free])
def test_a_port_that_is_taken_is_named_with_its_setting(claim) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=rf"127\.0\.0\.1:{port}.*MODELMORA_GRPC_PORT"):
            claim("127.0.0.1", port, "grpc_port")


def test_a_free_port_is_left_free() -> None:
    with listen("127.0.0.1", 0, "port") as mine:
        port = mine.getsockname()[1]
    check_free("127.0.0.1", port, "port")
    check_free("127.0.0.1", 0, "port")
    listen("127.0.0.1", port, "port").close()
