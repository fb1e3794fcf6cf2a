"""What is known of a version, and from where: a file of its source, the curated list, the user.

Files come first (`metadata.py`, `weight_facts.py`), the curated list (`curated.py`) fills the gaps,
what the user said wins over both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "file"
CURATED = "curated"
EXPLICIT = "explicit"
FACTS = "facts"  # their place in a version's metadata


class Fact(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value and where it comes from: `source` is file, curated or explicit."""

    value: Any
    source: str
    file: str | None = None


Facts = dict[str, Fact]


def merged(files: Facts, curated: Mapping[str, Any], explicit: Mapping[str, Any]) -> Facts:
    """Everything known: explicit values before the files' before curated ones, by name."""
    facts = {name: Fact(value, CURATED) for name, value in curated.items() if value is not None}
    facts |= files
    facts |= {name: Fact(value, EXPLICIT) for name, value in explicit.items() if value is not None}
    return dict(sorted(facts.items()))


def to_metadata(facts: Facts) -> dict[str, Any]:
    """Facts as they are kept in a version's metadata, under `FACTS`."""
    known: dict[str, Any] = msgspec.to_builtins(facts)
    return known


def explicit_in(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the user gave, out of a version's metadata."""
    try:
        facts = msgspec.convert(metadata.get(FACTS) or {}, dict[str, Fact])
    except msgspec.ValidationError:  # the user's own `facts`, which are none of ours
        return {}
    return {name: fact.value for name, fact in facts.items() if fact.source == EXPLICIT}
