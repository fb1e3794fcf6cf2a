"""The Triton server inside the `nvidia-pytriton` wheel, and whether this machine can run it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

import msgspec

from controlplane.errors import StartupError

STUB = "triton_python_backend_stub"
MIN_GLIBC = (2, 35)
_OWN_TRITON = (
    "Set MODELMORA_TRITON_GRPC_URL (and MODELMORA_TRITON_HTTP_URL) to a Triton server of your own."
)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that decide whether the embedded server can run.

    Attributes:
        glibc: (major, minor), None for another C library.
        libpython: folder of the interpreter's shared library, None where it has none.
        package: folder of the `pytriton` package, None where it is not installed.
    """

    system: str
    machine: str
    glibc: tuple[int, int] | None
    python: tuple[int, int]
    libpython: Path | None
    package: Path | None

    @classmethod
    def current(cls) -> Host:
        """This machine and interpreter."""
        return cls(
            system=platform.system(),
            machine=platform.machine(),
            glibc=_glibc_version(),
            python=sys.version_info[:2],
            libpython=_libpython_folder(),
            package=_package_folder(),
        )


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server's parts lie.

    Attributes:
        backend: the wheel's Python backend, without a stub.
        stub: the stub for this interpreter's version.
        library_path: folders for LD_LIBRARY_PATH, the interpreter's own first: with another
            libpython models fail with "RLock has no attribute _recursion_count".
    """

    server: Path
    backend: Path
    stub: Path
    library_path: tuple[Path, ...]


def find_installation(host: Host | None = None) -> Installation:
    """Locate the server for `host` (default: this machine).

    Raises:
        StartupError: when it cannot run here, naming the reason and the way out.
    """
    host = host or Host.current()
    version = ".".join(map(str, host.python))
    if host.system != "Linux" or host.machine not in ("x86_64", "AMD64"):
        raise StartupError(
            f"The embedded Triton server runs on Linux x86_64 only, this is {host.system} "
            f"{host.machine}. {_OWN_TRITON}"
        )
    if host.glibc is None or host.glibc < MIN_GLIBC:
        found = ".".join(map(str, host.glibc)) if host.glibc else "another C library"
        raise StartupError(
            f"The embedded Triton server needs glibc 2.35 or newer, this system has {found}. "
            f"Use a newer distribution (Ubuntu 22.04, Debian 12). Or: {_OWN_TRITON}"
        )
    if host.package is None:
        raise StartupError(
            "The embedded Triton server is not installed. Install it with: "
            f"pip install 'nvidia-pytriton==0.7.0'. Or: {_OWN_TRITON}"
        )
    if host.libpython is None:
        raise StartupError(
            f"This Python {version} has no shared library libpython{version}.so.1.0, which "
            f"Triton's Python backend needs. Install it (Debian, Ubuntu: apt install "
            f"libpython{version}) or use an interpreter built with --enable-shared. "
            f"Or: {_OWN_TRITON}"
        )
    return _parts(host.package, version, host.libpython)


def _parts(package: Path, version: str, libpython: Path) -> Installation:
    root = package / "tritonserver"
    installation = Installation(
        server=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / version / STUB,
        library_path=(libpython, package.parent / "nvidia_pytriton.libs"),
    )
    for part in (installation.server, installation.backend):
        if not part.exists():
            raise StartupError(
                f"The nvidia-pytriton package is incomplete ({part.name} is missing). Repair it "
                f"with: pip install --force-reinstall --no-deps nvidia-pytriton==0.7.0. "
                f"Or: {_OWN_TRITON}"
            )
    if not installation.stub.exists():
        raise StartupError(
            f"The embedded Triton server cannot run models with Python {version}. "
            f"Use Python 3.10, 3.11 or 3.12. Or: {_OWN_TRITON}"
        )
    return installation


def assemble_backends(installation: Installation, directory: Path) -> Path:
    """Make the folder for `--backend-directory`: the Python backend with the stub beside it.

    The wheel keeps its stubs apart, by version, and may be read-only. Links where the file
    system has them, else copies. Returns `directory`.
    """
    target = directory / "python"
    target.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in installation.backend.iterdir() if path.is_file()}
    wanted[STUB] = installation.stub
    for name, source in wanted.items():
        _link(source, target / name)
    return directory


def link_package(package: Path, directory: Path) -> None:
    """Make a folder with nothing but a link to a Python package, for the stubs to run in.

    A stub's interpreter puts its working directory first on `sys.path` and takes no notice of
    PYTHONPATH: this makes the package importable from a checkout too, and nothing else with it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.iterdir():
        if stale.name != package.name and (stale.is_symlink() or stale.is_file()):
            stale.unlink()
    _link(package, directory / package.name)


def _link(source: Path, target: Path) -> None:
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(source)
    except OSError:  # a file system without links
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
            return
        shutil.copy2(source, fresh)
    fresh.replace(target)


def server_environment(installation: Installation) -> dict[str, str]:
    """The environment of the server, which its stubs inherit."""
    environment = dict(os.environ)
    for secret in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):  # models have no use for them
        environment.pop(secret, None)
    libraries = [str(path) for path in installation.library_path]
    _prepend(environment, "LD_LIBRARY_PATH", libraries)
    # The stub's interpreter finds its virtual environment through the python3 first in PATH, also
    # when nobody activated it; otherwise "No module named '_struct'", or packages are missing.
    _prepend(environment, "PATH", [str(Path(sys.executable).parent)])
    environment["PYTHONUNBUFFERED"] = "1"  # or a model's prints arrive when its process ends
    return environment


def _prepend(environment: dict[str, str], name: str, folders: list[str]) -> None:
    kept = environment.get(name)
    environment[name] = os.pathsep.join([*folders, kept] if kept else folders)


def _glibc_version() -> tuple[int, int] | None:
    library, version = platform.libc_ver()
    numbers = version.split(".")
    if library != "glibc" or len(numbers) < 2:
        return None
    return (int(numbers[0]), int(numbers[1]))


def _libpython_folder() -> Path | None:
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    library = sysconfig.get_config_var("LIBDIR") or ""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    # LIBDIR first; relocated interpreters record the folder of the machine that built them.
    folders = [Path(library), Path(library, multiarch), Path(sys.base_prefix, "lib")]
    folders.append(Path(sys.base_prefix, "lib", multiarch))
    return next((folder for folder in folders if (folder / name).is_file()), None)


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("pytriton")  # finds it without importing it
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None
