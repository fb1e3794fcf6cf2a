"""Runs the converter: a subprocess that may take minutes, gigabytes, or die.

    python -m converters convert --task … --source DIR --output DIR …

It tells its progress, and at the end its result or error, as JSON lines on stdout; what it and its
libraries say besides goes to stderr, whose end is kept for the log. It is given no secret and told
to use no network, and it never outlives us. Where it may run code of a model's repository it has no
network at all, if the system lets us take it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from controlplane.errors import (
    ArtifactNotAccessible,
    ExportFailed,
    ModelMoraError,
)
from controlplane.registry.files import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = structlog.get_logger(__name__)

CONVERTER = (sys.executable, "-m", "converters", "convert")
_LONGEST_LINE = 64 * 1024 * 1024  # a manifest lists every file of the artefact
_STDERR_KEPT = 16 * 1024
_OURS = ("MODELMORA_", "AWS_")
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY)(_|$)", re.IGNORECASE)
# Asks the kernel to kill the converter when we die (prctl PR_SET_PDEATHSIG), then becomes it. Done
# here and not in preexec_fn, which is not safe in a process with threads.
_LAUNCH = """\
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
libc.prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
# Before that, as it takes the death signal away: into user and network namespaces of its own
# (unshare(2), CLONE_NEWUSER | CLONE_NEWNET), as the same user. Not allowed everywhere.
_ALONE = """\
import ctypes, os, sys
user, group = os.getuid(), os.getgid()
if ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) == 0:
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"),
                       ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
else:
    print("this system gives the converter no network of its own", file=sys.stderr)
"""


async def convert(
    command: Sequence[str],
    *,
    timeout: float,
    on_progress: Callable[[Progress], None],
    alone: bool = False,
) -> dict[str, Any]:
    """Run a converter to its end.

    When it is cancelled, late, or goes on after its result, it is killed with all it started.

    Args:
        command: program and arguments; the program's path is absolute.
        timeout: seconds.
        on_progress: called on the event loop.
        alone: without a network, where the system lets us.

    Returns:
        The manifest of the artefact that it wrote.

    Raises:
        ExportFailed: it refused, died, took too long or made no sense; the message says which.
        ArtifactNotAccessible: it said so.
    """
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-I",
            "-S",
            "-c",
            (_ALONE if alone else "") + _LAUNCH,
            str(os.getpid()),
            *command,
        ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
        limit=_LONGEST_LINE,
    )
    said = _Said(on_progress)
    try:
        await asyncio.wait_for(said.listen(process), timeout)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise ExportFailed(
            f"The conversion took longer than {timeout:g} s and was stopped "
            "(MODELMORA_INSTALL_TIMEOUT)."
        ) from error
    except ValueError as error:  # a line beyond the limit
        raise ExportFailed("The converter wrote what is no message.") from error
    finally:
        await _end(process)
    return said.manifest(process.returncode)


def _environment() -> dict[str, str]:
    """Ours, without secrets and without the network."""
    kept = {name: value for name, value in os.environ.items() if not _is_secret(name)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def _is_secret(name: str) -> bool:
    """Credentials of whatever kind, and our own settings, of which some are secret."""
    return name.startswith(_OURS) or _SECRET.search(name) is not None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the process and of its children, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # shielded: a second cancellation must not leave a zombie
    await asyncio.shield(process.wait())


class _Said:
    """What a converter said so far."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self._result: dict[str, Any] | None = None
        self._error: tuple[str, str] | None = None
        self._stderr = b""

    async def listen(self, process: asyncio.subprocess.Process) -> None:
        """Hear it out: both pipes to their ends, then its exit."""
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(
            self._hear_messages(process.stdout), self._hear_rest(process.stderr), process.wait()
        )

    async def _hear_messages(self, stdout: asyncio.StreamReader) -> None:
        while line := await stdout.readline():
            try:
                message = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                log.debug("converter", text=line[:500].decode(errors="replace").rstrip())
                continue
            self._understand(message)

    async def _hear_rest(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(4096):
            self._stderr = (self._stderr + chunk)[-_STDERR_KEPT:]

    def _understand(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event == "result" and isinstance(message.get("manifest"), dict):
            self._result = message["manifest"]
        elif event == "error":
            self._error = (str(message.get("code")), str(message.get("message")))
        elif event == "progress":
            self._on_progress(_progress(message))

    def manifest(self, returncode: int | None) -> dict[str, Any]:
        """The result, if the converter both gave one and ended well.

        Raises:
            ModelMoraError: what went wrong instead.
        """
        if returncode == 0 and self._result is not None and self._error is None:
            return self._result
        tail = self._stderr.decode(errors="replace").strip()
        log.error("conversion failed", returncode=returncode, error=self._error, stderr=tail)
        raise self._failure(returncode, tail)

    def _failure(self, returncode: int | None, stderr: str) -> ModelMoraError:
        if self._error is not None:
            return _reported(*self._error)
        if returncode is not None and returncode < 0:
            name = signal.Signals(-returncode).name
            why = ", most likely because the memory ran out" if name == "SIGKILL" else ""
            return ExportFailed(f"The converter was killed by {name}{why}.")
        last = stderr.splitlines()[-1] if stderr else "it said nothing"
        return ExportFailed(f"The converter ended with status {returncode} and no result: {last}")


def _reported(code: str, message: str) -> ModelMoraError:
    """The failure that the converter itself told of."""
    if code == ArtifactNotAccessible.code:
        return ArtifactNotAccessible(message)
    return ExportFailed(message, reason=code)


def _progress(message: dict[str, Any]) -> Progress:
    fraction = message.get("fraction")
    return Progress(
        phase="exporting",
        step=str(message.get("phase", "")),
        message=str(message.get("message", "")),
        fraction=float(fraction) if isinstance(fraction, int | float) else None,
    )
