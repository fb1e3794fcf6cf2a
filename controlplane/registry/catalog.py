"""Questions to the catalog: one model, a page of models, one version. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import ModelNotFound, ModelNotReady, ValidationFailed, VersionNotFound
from controlplane.registry.model import (
    Model,
    ModelId,
    ModelVersion,
    Servable,
    TaskType,
    VersionStatus,
)
from controlplane.registry.rows import query, read_models, version_from

if TYPE_CHECKING:
    from sqlite_utils import Database

MAX_PAGE_SIZE = 100
_MAX_PAGE = 10**12  # far beyond any catalog, and page * page_size still fits SQLite's integers


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list of models; `total_pages` is 0 when nothing matches."""

    items: tuple[Model, ...]
    page: int
    page_size: int
    total_items: int
    total_pages: int


def find(db: Database, name: str) -> Model:
    """The model of that name, in any spelling of it.

    Raises:
        InvalidModelId: `name` cannot be a model's name.
        ModelNotFound: nothing is registered under it.
    """
    model_id = str(ModelId.from_any_spelling(name))
    models = read_models(db, query(db, "SELECT * FROM model WHERE model_id = ?", [model_id]))
    if not models:
        raise ModelNotFound(model_id)
    return models[0]


def search(
    db: Database,
    *,
    task_type: str | None,
    status: str | None,
    search_text: str | None,
    page: int,
    page_size: int,
) -> Page:
    """Models that match every given filter, by model id.

    Args:
        status: status of the current version.
        search_text: part of the model id, in any case.
        page: from 1.
        page_size: 1 to 100.

    Raises:
        ValidationFailed: naming each argument that breaks a rule.
        InvalidTaskType: for `task_type`.
    """
    _check_page(status, page, page_size)
    where, params = _filters(task_type, status, search_text)
    source = (
        "FROM model AS m JOIN model_version AS v"
        f" ON v.model_id = m.id AND v.version = m.current_version WHERE {where}"
    )
    total = query(db, f"SELECT count(*) AS n {source}", params)[0]["n"]
    rows = query(
        db,
        f"SELECT m.* {source} ORDER BY m.model_id LIMIT ? OFFSET ?",
        [*params, page_size, (page - 1) * page_size],
    )
    return Page(
        items=read_models(db, rows),
        page=page,
        page_size=page_size,
        total_items=total,
        total_pages=-(-total // page_size),
    )


def _check_page(status: str | None, page: int, page_size: int) -> None:
    errors = {}
    if not 1 <= page <= _MAX_PAGE:
        errors["page"] = ["must be 1 or more"]
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        errors["page_size"] = [f"must be 1 to {MAX_PAGE_SIZE}"]
    known = [item.value for item in VersionStatus]
    if status is not None and status not in known:
        errors["status"] = [f"must be one of {', '.join(known)}"]
    if errors:
        raise ValidationFailed(errors)


def _filters(
    task_type: str | None, status: str | None, search_text: str | None
) -> tuple[str, list[Any]]:
    clauses, params = ["1"], []
    if task_type is not None:
        clauses.append("m.task_type = ?")
        params.append(TaskType.parse(task_type).value)
    if status is not None:
        clauses.append("v.status = ?")
        params.append(VersionStatus(status).value)
    if search_text:
        clauses.append("instr(lower(m.model_id), lower(?)) > 0")
        params.append(search_text)
    return " AND ".join(clauses), params


def pick(model: Model, version: str | None) -> ModelVersion:
    """One version of a model, by its string or Triton number; None means the current one.

    `latest` is the newest that is ready.

    Raises:
        VersionNotFound.
    """
    if version is None:
        return model.current
    found = model.find_version(version)
    if found is None:
        raise VersionNotFound(model.model_id, version)
    return found


def every_version(db: Database) -> tuple[ModelVersion, ...]:
    """All versions of all models."""
    rows = query(
        db,
        "SELECT v.*, m.model_id AS text_id FROM model_version AS v"
        " JOIN model AS m ON m.id = v.model_id ORDER BY m.model_id, v.triton_version",
    )
    return tuple(version_from(row, row["text_id"]) for row in rows)


def servable(model: Model, version: ModelVersion, *, floating: bool = False) -> Servable:
    """What it takes to serve a version; `floating` when the request named none.

    Raises:
        ModelNotReady: it is not installed.
    """
    if version.status is not VersionStatus.READY:
        raise ModelNotReady(
            model.model_id, version.version, version.status.value, version.error_message
        )
    return Servable(
        model_id=model.model_id,
        version=version.version,
        version_id=version.id,
        task_type=model.task_type,
        triton_name=version.triton_name,
        triton_version=version.triton_version,
        need_mb=version.need_mb,
        floating=floating,
    )
