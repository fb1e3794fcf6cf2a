"""Rows of the registry's tables and back: the only place that knows the columns."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import DatabaseUnusable
from controlplane.moments import from_text, to_text
from controlplane.registry.model import (
    EngineChoice,
    Model,
    ModelVersion,
    ResourceRequirements,
    TaskType,
    VersionStatus,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlite_utils import Database

    Row = Mapping[str, Any]


def query(db: Database, sql: str, params: Sequence[Any] = ()) -> list[Row]:
    """All rows of a query, as maps of column to value."""
    return list(db.query(sql, list(params)))


def insert(db: Database, table: str, values: Mapping[str, Any]) -> None:
    """Insert one row; values are converted as `cell` does."""
    names = ", ".join(values)
    marks = ", ".join("?" for _ in values)
    db.execute(
        f"INSERT INTO {table} ({names}) VALUES ({marks})", [cell(v) for v in values.values()]
    )


def update(
    db: Database, table: str, row_id: str, expected: int, now: datetime, values: Mapping[str, Any]
) -> bool:
    """Change one row if nobody else did: the optimistic lock of domain §1.1.

    Sets `updated_at` and raises `version_number` by one.

    Returns:
        False when the row has another version number than `expected`, or is gone.
    """
    names = "".join(f"{name} = ?, " for name in values)
    cursor = db.execute(
        f"UPDATE {table} SET {names}updated_at = ?, version_number = version_number + 1"
        " WHERE id = ? AND version_number = ?",
        [*(cell(v) for v in values.values()), to_text(now), row_id, expected],
    )
    return bool(cursor.rowcount)


def cell(value: Any) -> Any:
    """A value as SQLite keeps it: structs and maps as JSON text, times as ISO 8601."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, msgspec.Struct):
        return msgspec.json.encode(value).decode()
    if hasattr(value, "astimezone"):
        return to_text(value)
    if isinstance(value, TaskType | VersionStatus):
        return value.value
    return int(value) if isinstance(value, bool) else value


def model_from(row: Row, versions: Iterable[ModelVersion]) -> Model:
    """A model of its row and its versions, in the order of their registration.

    Raises:
        DatabaseUnusable: the row is not one that was ever written.
    """
    with _as_written("model", row):
        return _model(row, versions)


@contextmanager
def _as_written(table: str, row: Row) -> Iterator[None]:
    """Bytes may be damaged without SQLite's notice: it has no checksums of contents."""
    try:
        yield
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        what = f"is damaged (a row of {table}, {row.get('id')!r}, cannot be read: {error})"
        raise DatabaseUnusable("", what) from error


def _model(row: Row, versions: Iterable[ModelVersion]) -> Model:
    return Model(
        id=row["id"],
        catalog_id=row["catalog_id"],
        model_id=row["model_id"],
        task_type=_TASKS.get(row["task_type"]) or TaskType(row["task_type"]),
        current_version=row["current_version"],
        versions=tuple(versions),
        created_at=from_text(row["created_at"]),
        updated_at=from_text(row["updated_at"]),
        version=row["version_number"],
        display_name=row["display_name"],
        description=row["description"],
        source_url=row["source_url"],
        config=msgspec.json.decode(row["config"]),
        custom_params=msgspec.json.decode(row["custom_params"]),
        pinned=bool(row["pinned"]),
        keep_loaded=bool(row["keep_loaded"]),
        idle_ttl=row["idle_ttl"],
    )


# Looked up for every row of a page: an Enum's own call takes five times as long.
_TASKS = {task.value: task for task in TaskType}
_STATUSES = {status.value: status for status in VersionStatus}

_MOST_PARAMETERS = 5_000  # SQLite takes 32,766

# Columns of model_version whose values are the fields' own.
_PLAIN = (
    "id",
    "version",
    "triton_version",
    "version_number",
    "revision",
    "checksum",
    "artifact_uri",
    "framework",
    "framework_version",
    "backend",
    "engine",
    "measured_memory_mb",
    "artefact_bytes",
    "artefact_checksum",
    "error_message",
    "created_by",
)


def version_from(row: Row, model_id: str) -> ModelVersion:
    """A version of its row; `model_id` is the text form, which is in the model's row.

    Raises:
        DatabaseUnusable: the row is not one that was ever written.
    """
    with _as_written("model_version", row):
        return _version(row, model_id)


def _version(row: Row, model_id: str) -> ModelVersion:
    requirements = row["resource_requirements"]
    return ModelVersion(
        **{name: row[name] for name in _PLAIN},
        model_id=model_id,
        status=_STATUSES[row["status"]],
        created_at=from_text(row["created_at"]),
        updated_at=from_text(row["updated_at"]),
        resource_requirements=requirements
        and msgspec.json.decode(requirements, type=ResourceRequirements),
        requirements_declared=bool(row["requirements_declared"]),
        artefact=msgspec.json.decode(row["artefact"]) if row["artefact"] else None,
        metadata=msgspec.json.decode(row["metadata"]),
        trust_remote_code=bool(row["trust_remote_code"]),
        engine_choice=row["engine_choice"]
        and msgspec.json.decode(row["engine_choice"], type=EngineChoice),
    )


def read_models(db: Database, rows: Sequence[Row]) -> tuple[Model, ...]:
    """The models of these rows of table `model`, with all their versions, few queries."""
    by_model: dict[str, list[ModelVersion]] = {row["id"]: [] for row in rows}
    text_id = {row["id"]: row["model_id"] for row in rows}
    ids = list(by_model)
    for start in range(0, len(ids), _MOST_PARAMETERS):
        some = ids[start : start + _MOST_PARAMETERS]
        marks = ", ".join("?" for _ in some)
        sql = f"SELECT * FROM model_version WHERE model_id IN ({marks}) ORDER BY triton_version"
        for row in query(db, sql, some):
            by_model[row["model_id"]].append(version_from(row, text_id[row["model_id"]]))
    return tuple(model_from(row, by_model[row["id"]]) for row in rows)
