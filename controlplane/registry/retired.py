"""Names that are never used again: version strings and Triton version numbers (domain §2.3, C-28).

They outlive their models, so they are kept apart from them, under the model id's text form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.errors import VersionAlreadyExists
from controlplane.registry.rows import insert, query

if TYPE_CHECKING:
    from datetime import datetime

    from sqlite_utils import Database

    from controlplane.registry.model import ModelVersion


def next_triton_version(db: Database, model_id: str) -> int:
    """The lowest number above all that any version of this model id ever had, from 1.

    A number that came back would let Triton, or a client that has it in its configuration, take
    new bytes for the old ones.
    """
    row = query(
        db,
        "SELECT max(n) AS highest FROM ("
        " SELECT v.triton_version AS n FROM model_version AS v JOIN model AS m ON m.id = v.model_id"
        " WHERE m.model_id = ? UNION ALL"
        " SELECT triton_version FROM retired_version WHERE model_id = ?)",
        [model_id, model_id],
    )[0]
    return int(row["highest"] or 0) + 1


def retire(db: Database, version: ModelVersion, now: datetime) -> None:
    """Keep what must not come back of a version that is about to be deleted."""
    insert(
        db,
        "retired_version",
        {
            "model_id": version.model_id,
            "version": version.version,
            "triton_version": version.triton_version,
            "checksum": version.checksum,
            "retired_at": now,
        },
    )


def retired_checksums(db: Database) -> dict[tuple[str, str], frozenset[str]]:
    """What deleted versions stood for: checksums by model id and version string."""
    found: dict[tuple[str, str], set[str]] = {}
    for row in query(db, "SELECT * FROM retired_version WHERE checksum IS NOT NULL"):
        found.setdefault((row["model_id"], row["version"]), set()).add(row["checksum"])
    return {key: frozenset(checksums) for key, checksums in found.items()}


def check_reuse(db: Database, model_id: str, version: str, checksum: str) -> None:
    """A version string that was deleted may only come back with the bytes it stood for.

    Raises:
        VersionAlreadyExists: it stood for others.
    """
    rows = query(
        db,
        "SELECT checksum FROM retired_version"
        " WHERE model_id = ? AND version = ? AND checksum IS NOT NULL",
        [model_id, version],
    )
    for row in rows:
        if row["checksum"] != checksum:
            raise VersionAlreadyExists(
                model_id,
                version,
                f"was deleted and stood for other files ({row['checksum']}); what it names now is "
                f"{checksum}. A version's name is never given to other files: install a tag or a "
                "commit instead",
            )
