"""Limits of a call that hold for every task (domain §4.4-4.5). Rules only."""

from __future__ import annotations

from controlplane.errors import ValidationFailed

# Triton's levels: lower is more urgent (domain §4.4).
PRIORITIES = {"critical": 1, "high": 2, "medium": 3, "normal": 3, "low": 4}
MAX_TIMEOUT_SECONDS = 600.0
# Of one encoded image or recording, and of the largest text.
MAX_FILE_BYTES = 50_000_000


def priority_level(text: str) -> int:
    """Triton's level of a priority's name.

    Raises:
        ValidationFailed: on field `priority`.
    """
    level = PRIORITIES.get(text.lower())
    if level is None:
        raise ValidationFailed.field("priority", f"must be one of {', '.join(PRIORITIES)}")
    return level


def check_timeout(seconds: float | None, default: float) -> float:
    """The timeout in force, in seconds.

    Raises:
        ValidationFailed: on field `timeout_seconds`, when it is not within (0, 600].
    """
    if seconds is None:
        return default
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise ValidationFailed.field("timeout_seconds", "must be above 0 and at most 600 seconds")
    return seconds
