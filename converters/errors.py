"""What a conversion can fail with: one class per code of the protocol's error line.

The message is one sentence for the person who asked for the install; details go to stderr.
"""

from __future__ import annotations


class ConversionError(Exception):
    """A conversion that was refused or broke; `str()` is the message for the user."""

    code = "EXPORT_FAILED"


class ExportFailed(ConversionError):
    """The model cannot be turned into an artefact that computes the same vectors."""


class ArtifactNotAccessible(ConversionError):
    """A file of the source that is needed is missing or damaged."""

    code = "ARTIFACT_NOT_ACCESSIBLE"


class UnsafeWeights(ConversionError):
    """Weights are offered only as pickles, which can run code when they are read."""

    code = "UNSAFE_WEIGHTS"


class InsufficientDisk(ConversionError):
    code = "INSUFFICIENT_DISK"

    def __init__(self, folder: str, needed_bytes: float, free_bytes: float) -> None:
        super().__init__(
            f"Not enough disk space in {folder}: {needed_bytes / 2**20:.0f} MB needed, "
            f"{free_bytes / 2**20:.0f} MB free."
        )
