"""What a conversion can fail with: one class per code of the protocol's error line.

The message is one sentence for the person who asked for the install; details go to stderr.
"""

from __future__ import annotations

import re


class ConversionError(Exception):
    """A conversion that was refused or broke; `str()` is the message for the user."""

    code = "EXPORT_FAILED"


class ExportFailed(ConversionError):
    """The model cannot be turned into an artefact that computes the same vectors."""


class EngineUnavailable(ExportFailed):
    """The engine or precision asked for is not to be had here, or too far from PyTorch."""


class ArtifactNotAccessible(ConversionError):
    """A file of the source that is needed is missing or damaged."""

    code = "ARTIFACT_NOT_ACCESSIBLE"


class UnsafeWeights(ConversionError):
    """Weights are offered only as pickles, which can run code when they are read."""

    code = "UNSAFE_WEIGHTS"


class InsufficientDisk(ConversionError):
    code = "INSUFFICIENT_DISK"

    def __init__(self, folder: str, free_bytes: int, needed_bytes: int | None = None) -> None:
        needed = "" if needed_bytes is None else f"{needed_bytes / 2**20:.0f} MB needed, "
        super().__init__(
            f"Not enough disk space in {folder}: {needed}{free_bytes / 2**20:.0f} MB free."
        )


def one_line(error: BaseException) -> str:
    """An exception's text for a user: its first line, without terminal colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text or type(error).__name__).splitlines()[0].rstrip(".: ")
