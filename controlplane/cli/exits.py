"""Exit codes, and errors as one line on stderr."""

from __future__ import annotations

import click

from controlplane.client_types import (
    InstallFailed,
    ModelMoraApiError,
    ModelMoraClientError,
    ServerUnreachable,
)
from controlplane.errors import (
    BackupExists,
    DatabaseInUse,
    InvalidLock,
    ModelMoraError,
    SettingsError,
)

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
UNREACHABLE = 4
CONFLICT = 5
UNAVAILABLE = 6
INTERRUPTED = 130
BROKEN_PIPE = 141  # 128 + SIGPIPE, what a shell reports of a program that `head` cut off

_BY_STATUS = {
    400: USAGE,
    404: NOT_FOUND,
    409: CONFLICT,
    412: CONFLICT,
    413: USAGE,
    422: USAGE,
    429: UNAVAILABLE,
    503: UNAVAILABLE,
    507: UNAVAILABLE,
}
# Where the HTTP status alone would mislead a script.
_BY_CODE = {
    "ARTIFACT_NOT_ACCESSIBLE": FAILED,
    "UNSAFE_WEIGHTS": FAILED,
    "SOURCE_REFUSED": FAILED,
    "REMOTE_CODE_REFUSED": FAILED,
    "CHECKSUM_MISMATCH": FAILED,
    "LOCK_DIFFERS": FAILED,
    "UNEXPECTED_RESPONSE": UNREACHABLE,
}
_MAX_LINE = 2000


def exit_code(error: BaseException) -> int:
    """The exit code that tells of `error`."""
    if isinstance(error, ModelMoraApiError):
        return _BY_CODE.get(error.code, _BY_STATUS.get(error.status, FAILED))
    if isinstance(error, ServerUnreachable):
        return UNREACHABLE
    if isinstance(error, click.UsageError | SettingsError | InvalidLock):
        return USAGE
    if isinstance(error, DatabaseInUse | BackupExists):
        return CONFLICT
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return INTERRUPTED
    return FAILED


def error_line(error: BaseException) -> str:
    """`Error: …`, on one line, whatever the error's text is."""
    return "Error: " + one_line(_text(error))


def _text(error: BaseException) -> str:
    if isinstance(error, ModelMoraApiError):
        # The log has the cause of what went wrong inside; the trace id finds it.
        trace = f" (trace id {error.trace_id})" if error.status >= 500 and error.trace_id else ""
        return error.message + trace
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "modelmora"
        return f"{error.format_message()} Try: {where} --help"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, InstallFailed | ModelMoraClientError | ModelMoraError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error} (see it whole with --debug)"


def one_line(text: str) -> str:
    """Text from elsewhere, made safe for a terminal: no line breaks, no control characters."""
    words = " ".join(text.split())
    clean = "".join(char if char.isprintable() else "�" for char in words)
    return clean if len(clean) <= _MAX_LINE else clean[:_MAX_LINE] + "…"
