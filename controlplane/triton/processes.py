"""The server's processes and shared memory: finding and ending what belongs to one instance."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = structlog.get_logger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_STUB_MODEL = re.compile(r"/([^/]+)/(\d+)/model\.py$")


def instance_prefix(state_dir: Path) -> str:
    """The name that marks shared memory and command lines of this state directory's server.

    Random and kept in the directory, not derived from its path: two containers may share the
    host's /dev/shm and have the same path. It is kept together with what tells the directory from
    its copies: a copy that went by the same name would end the servers of the original.

    Raises:
        OSError: the directory cannot be read or written.
    """
    path, owner = state_dir / "instance", _identity(state_dir)
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        name, _, whose = path.read_text(encoding="ascii").strip().partition(" ")
        if name.isalnum() and whose == owner:
            return f"modelmora-{name}-"
    fresh = secrets.token_hex(5)
    path.write_text(f"{fresh} {owner}\n", encoding="ascii")
    return f"modelmora-{fresh}-"


def _identity(directory: Path) -> str:
    """Device and inode: they stay when it is moved or reached by another path; no copy has them."""
    facts = directory.stat()
    return f"{facts.st_dev}:{facts.st_ino}"


def find_marked(marker: str) -> list[psutil.Process]:
    """Processes with `marker` in their command line: servers and stubs of one instance."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(marker in argument for argument in process.cmdline()):
                found.append(process)
    return found


def stubs(server_pid: int) -> dict[tuple[str, int], list[psutil.Process]]:
    """The server's child processes by the model name and version that they run.

    A stub's second argument is `<repository>/<name>/<version>/model.py` (python_backend,
    stub_launcher.cc).
    """
    found: dict[tuple[str, int], list[psutil.Process]] = {}
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(server_pid).children():
            with contextlib.suppress(psutil.Error):
                match = _STUB_MODEL.search("".join(child.cmdline()[1:2]))
                if match is not None:
                    found.setdefault((match[1], int(match[2])), []).append(child)
    return found


def stubs_of(server_pid: int, triton_name: str, triton_version: int) -> list[psutil.Process]:
    """The server's child processes that run that model version."""
    return stubs(server_pid).get((triton_name, triton_version), [])


def kill_all(processes: Iterable[psutil.Process]) -> int:
    """SIGKILL each and return how many took it; the gone and the foreign are passed over."""
    killed = 0
    for process in processes:
        try:
            process.kill()
            killed += 1
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            _log.warning("process belongs to somebody else", pid=process.pid)
    return killed


async def wait_gone(processes: Iterable[psutil.Process], timeout: float) -> bool:
    """True when all have ended (zombies count as ended) within `timeout` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    pending = list(processes)
    while pending:
        pending = [process for process in pending if _is_running(process)]
        if pending and asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(0.02 if pending else 0)
    return True


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


async def end_marked(marker: str, *, grace: float) -> int:
    """End all processes of an instance: SIGTERM to servers, after `grace` s SIGKILL to all.

    Returns:
        how many there were.
    """
    found = find_marked(marker)
    servers = [process for process in found if not _is_stub(process)]
    for server in servers:
        with contextlib.suppress(psutil.Error):
            server.terminate()
    await wait_gone(servers, grace)
    left = find_marked(marker)
    kill_all(left)
    if not await wait_gone(left, 5.0):
        _log.warning("processes would not end", pids=[process.pid for process in left])
    return len(found)


def _is_stub(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[0].endswith("triton_python_backend_stub")
    except (psutil.Error, IndexError):
        return False


def sweep_shared_memory(prefix: str) -> list[str]:
    """Remove the instance's shared-memory files; its processes must have ended before.

    Returns:
        the names that were removed.
    """
    removed = []
    if SHARED_MEMORY.is_dir():
        for path in SHARED_MEMORY.iterdir():
            if path.name.startswith(prefix):
                try:
                    path.unlink(missing_ok=True)
                    removed.append(path.name)
                except OSError as error:
                    _log.warning("shared memory stays behind", file=path.name, reason=str(error))
    return removed
