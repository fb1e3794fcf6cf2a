"""Moments as text, for the database and for files that are compared byte by byte."""

from __future__ import annotations

from datetime import datetime, timezone


def to_text(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds and Z: sorts as text in the order of time."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_text(text: str) -> datetime:
    """The moment that `to_text` wrote."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
