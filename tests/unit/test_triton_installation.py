"""Where the embedded server runs, where not, and what the user is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from controlplane.errors import SettingsError, StartupError
from controlplane.triton.embedded import EmbeddedTriton
from controlplane.triton.external import ExternalTriton
from controlplane.triton.installation import (
    Host,
    assemble_backends,
    find_installation,
    link_package,
    server_environment,
)

WAY_OUT = "MODELMORA_TRITON_GRPC_URL"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine that can run it, with a wheel that has every part."""
    root = tmp_path / "pytriton" / "tritonserver"
    for part in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        "python_backend_stubs/3.11/triton_python_backend_stub",
    ):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        (root / part).write_text(part, encoding="utf-8")
    return Host(
        system="Linux",
        machine="x86_64",
        glibc=(2, 35),
        python=(3, 11),
        libpython=Path("/python/lib"),
        package=tmp_path / "pytriton",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"system": "Darwin", "machine": "arm64"}, "Linux x86_64 only, this is Darwin arm64"),
        ({"machine": "aarch64"}, "this is Linux aarch64"),
        ({"glibc": (2, 31)}, "needs glibc 2.35 or newer, this system has 2.31"),
        ({"glibc": None}, "this system has another C library"),
        ({"package": None}, "pip install 'nvidia-pytriton==0.7.0'"),
        ({"libpython": None}, "apt install libpython3.11"),
        ({"python": (3, 14)}, "cannot run models with Python 3.14"),
    ],
)
def test_unsupported_hosts_are_told_what_to_do(
    host: Host, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(StartupError) as failure:
        find_installation(msgspec.structs.replace(host, **changes))
    assert words in failure.value.message
    assert WAY_OUT in failure.value.message


def test_incomplete_wheel(host: Host) -> None:
    assert host.package is not None
    (host.package / "tritonserver" / "bin" / "tritonserver").unlink()
    with pytest.raises(StartupError, match="incomplete"):
        find_installation(host)


async def test_start_on_an_unsupported_host(host: Host, tmp_path: Path) -> None:
    other = msgspec.structs.replace(host, machine="aarch64")
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "state", host=other)
    with pytest.raises(StartupError, match=WAY_OUT):
        await server.start()
    assert server.state == "stopped"
    assert not (tmp_path / "state").exists()


def test_endpoints_before_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError):
        EmbeddedTriton(tmp_path, tmp_path).endpoints  # noqa: B018


def test_backends_folder_has_the_stub_beside_the_backend(host: Host, tmp_path: Path) -> None:
    installation = find_installation(host)
    for _ in range(2):  # an earlier start has left it
        folder = assemble_backends(installation, tmp_path / "assembled") / "python"
    assert sorted(path.name for path in folder.iterdir()) == [
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    ]
    assert (folder / "triton_python_backend_stub").read_text(encoding="utf-8").endswith("_stub")


def test_stub_home_has_the_package_and_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "source" / "backends"
    package.mkdir(parents=True)
    home = tmp_path / "home"
    home.mkdir()
    (home / "json.py").touch()
    for _ in range(2):
        link_package(package, home)
    assert [path.name for path in home.iterdir()] == ["backends"]
    assert (home / "backends").samefile(package)


def test_environment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/users/own")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert host.package is not None
    environment = server_environment(find_installation(host))
    assert environment["LD_LIBRARY_PATH"].split(os.pathsep) == [
        "/python/lib",
        str(host.package.parent / "nvidia_pytriton.libs"),
        "/users/own",
    ]
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert "HF_TOKEN" not in environment
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("given", "grpc_url", "http_url"),
    [
        (("triton:8001", None), "triton:8001", "http://triton:8000"),
        (("grpc://triton:9001/", "triton:9000"), "triton:9001", "http://triton:9000"),
        ((" 10.0.0.1:1 ", "http://10.0.0.1:2"), "10.0.0.1:1", "http://10.0.0.1:2"),
        (("[::1]:8001", "http://[::1]:8000"), "[::1]:8001", "http://[::1]:8000"),
    ],
)
def test_external_addresses(given: tuple[str, str | None], grpc_url: str, http_url: str) -> None:
    endpoints = ExternalTriton(*given).endpoints
    assert (endpoints.grpc_url, endpoints.http_url) == (grpc_url, http_url)
    assert endpoints.http_headers == {}


@pytest.mark.parametrize(
    "given",
    [
        ("triton", None),
        ("http://triton:8001", None),
        ("triton:0", None),
        ("triton:99999", None),
        ("tri ton:8001", None),
        ("", None),
        ("triton:8001", "grpc://triton:8000"),
        ("triton:8001", "http://triton:8000/v2"),
    ],
)
def test_external_addresses_that_cannot_be_read(given: tuple[str, str | None]) -> None:
    with pytest.raises(SettingsError, match=r"MODELMORA_TRITON_.*_URL: must be HOST:PORT"):
        ExternalTriton(*given)
