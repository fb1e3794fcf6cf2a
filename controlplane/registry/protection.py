"""Active locks protect their models from deletion (domain C-46)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.errors import ModelLocked
from controlplane.registry.rows import query

if TYPE_CHECKING:
    from sqlite_utils import Database

    from controlplane.registry.model import ModelVersion

_LOCKS = (
    "SELECT DISTINCT l.name FROM locked_model_entry AS e JOIN model_lock AS l ON l.id = e.lock_id"
    " WHERE l.active = 1 AND e.model_id = ?"
)


def check_unlocked(db: Database, model_id: str, version: ModelVersion | None = None) -> None:
    """Find out whether an active lock holds a model.

    Args:
        version: ask only for locks of this version, by its name or by its bytes.

    Raises:
        ModelLocked: naming the locks.
    """
    what, sql, params = f"Model {model_id!r}", _LOCKS, [model_id]
    if version is not None:
        # by its bytes too: the locked ones may have another name here
        what = f"Version {version.version!r} of model {model_id!r}"
        sql += " AND (e.version = ? OR e.checksum = ?)"
        params += [version.version, version.checksum or ""]
    names = [row["name"] for row in query(db, f"{sql} ORDER BY l.name", params)]
    if names:
        raise ModelLocked(what, names)
