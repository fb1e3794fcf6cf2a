"""Makes the catalog hold what a list asks for: a plan for each model, then the deeds. Idempotent.

Models that are not listed are left alone: the list adds and changes, `uninstall` removes.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import ModelAlreadyExists, ModelMoraError, ModelNotFound
from controlplane.registry.catalog_file import (
    CatalogEntry,
    as_new_model,
    check_entries,
    wanted_config,
)
from controlplane.registry.model import Model, ModelChange, VersionStatus
from controlplane.registry.operation import Operation, OperationError
from controlplane.registry.registration import register

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from controlplane.registry.install import Installer
    from controlplane.registry.store import ModelStore

    UseVersion = Callable[[str, str], Awaitable[None]]

_AT_ONCE = 4  # registrations that ask the hub


class Action(str, Enum):
    """A step towards what is wanted, in the order in which they are taken."""

    REGISTER = "register"
    ADD_VERSION = "add_version"
    UPDATE = "update"
    INSTALL = "install"
    USE = "use"  # make it the current version, once it is ready


class SyncResult(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done, or was, for one entry.

    Attributes:
        status: planned, unchanged, installing, done or failed.
        operation: the installation, when one was asked for.
    """

    model_id: str
    version: str
    actions: tuple[Action, ...]
    status: str
    message: str = ""
    operation: Operation | None = None
    error: OperationError | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The steps for one entry, and the version they are about."""

    entry: CatalogEntry
    version: str
    actions: tuple[Action, ...]
    change: ModelChange = ModelChange()


def plan(entry: CatalogEntry, model: Model | None) -> Plan:
    """What has to be done for an entry; no I/O.

    Args:
        model: as it is registered; None when it is not.

    Raises:
        ModelAlreadyExists: it is registered for another task or from elsewhere.
    """
    if model is None:
        first = (Action.REGISTER, Action.INSTALL)
        return Plan(entry=entry, version=entry.version or "main", actions=first)
    _check_same(entry, model)
    wanted = entry.version or model.current_version
    version = next((v for v in model.versions if v.version == wanted), None)
    change = _change(entry, model)
    steps = {
        Action.ADD_VERSION: version is None,
        Action.UPDATE: change != ModelChange(),
        Action.INSTALL: version is None or version.status is not VersionStatus.READY,
        Action.USE: wanted != model.current_version,
    }
    actions = tuple(action for action, needed in steps.items() if needed)
    return Plan(entry=entry, version=wanted, actions=actions, change=change)


def _check_same(entry: CatalogEntry, model: Model) -> None:
    given = {"task_type": entry.task_type, "source_url": entry.source_url}
    for name, wanted in given.items():
        known = getattr(model, name)
        if wanted is not None and wanted != known:
            error = ModelAlreadyExists(model.model_id)
            error.message = (
                f"{model.model_id} is registered with {name} {known or '(the hub)'}, not {wanted}, "
                f"and that cannot change. To replace it: modelmora uninstall {model.model_id}"
            )
            raise error


def _change(entry: CatalogEntry, model: Model) -> ModelChange:
    """The descriptive fields that the entry gives and that are otherwise now."""
    values: dict[str, Any] = {}
    for name in ("display_name", "description", "keep_loaded", "idle_ttl"):
        wanted = getattr(entry, name)
        if wanted is not None and wanted != getattr(model, name):
            values[name] = wanted
    config = wanted_config(entry, model.config)
    if config != model.config:
        values["config"] = config
    needs, current = entry.resource_requirements, model.current
    declared = current.resource_requirements if current.requirements_declared else None
    if needs is not None and needs != declared and entry.version in (None, current.version):
        values["resource_requirements"] = needs
    return ModelChange(**values)


async def sync(
    store: ModelStore,
    installer: Installer,
    entries: Sequence[CatalogEntry],
    *,
    use: UseVersion | None = None,
    dry_run: bool = False,
) -> list[SyncResult]:
    """Bring about what the entries ask for; installations run on after this returns.

    What goes wrong with one entry is in its result and does not keep the others from being done.

    Args:
        use: makes a version current; a loaded model is to be switched without losing a request.
            None only writes it into the registry.
        dry_run: change nothing, and ask nobody.

    Raises:
        ValidationFailed: an entry breaks a rule; nothing was done.
    """
    check_entries(entries)
    switch = use or _only_written(store)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(entry: CatalogEntry) -> SyncResult:
        async with slots:
            return await _attempt(store, installer, entry, switch, dry_run=dry_run)

    return list(await asyncio.gather(*(one(entry) for entry in entries)))


async def _attempt(
    store: ModelStore,
    installer: Installer,
    entry: CatalogEntry,
    use: UseVersion,
    *,
    dry_run: bool,
) -> SyncResult:
    planned = None
    try:
        planned = plan(entry, _find(store, entry.model_id))
        if dry_run or not planned.actions:
            return _result(planned, "planned" if planned.actions else "unchanged")
        return await _do(store, installer, planned, use)
    except ModelMoraError as error:
        return SyncResult(
            model_id=entry.model_id,
            version=planned.version if planned else entry.version or "main",
            actions=planned.actions if planned else (),
            status="failed",
            message=error.message,
            error=OperationError(error.code, error.message),
        )


def _find(store: ModelStore, model_id: str) -> Model | None:
    try:
        return store.get(model_id)
    except ModelNotFound:
        return None


def _only_written(store: ModelStore) -> UseVersion:
    async def use(model_id: str, version: str) -> None:
        store.set_current(model_id, version)

    return use


async def _do(
    store: ModelStore, installer: Installer, planned: Plan, use: UseVersion
) -> SyncResult:
    entry, version, actions = planned.entry, planned.version, planned.actions
    installer.check_code(entry.model_id, entry.trust_remote_code)
    if Action.REGISTER in actions:
        await register(installer.shop, as_new_model(entry, task_type=entry.task_type))
    if Action.ADD_VERSION in actions:
        needs = entry.resource_requirements
        fields: dict[str, Any] = {} if needs is None else {"resource_requirements": needs}
        fields["trust_remote_code"] = entry.trust_remote_code
        store.add_version(entry.model_id, version, **fields)
    elif Action.INSTALL in actions and entry.trust_remote_code:
        store.trust_code(entry.model_id, version)
    if Action.UPDATE in actions:
        store.update(entry.model_id, planned.change)
    operation = None
    if Action.INSTALL in actions:
        operation = installer.install(entry.model_id, version)
    if Action.USE in actions and operation is None:
        await use(entry.model_id, version)
    if operation is None:
        return _result(planned, "done")
    later = "it becomes the current version with the next sync, when it is ready"
    message = later if Action.USE in actions else ""
    return _result(planned, "installing", operation=operation, message=message)


def _result(planned: Plan, status: str, **more: Any) -> SyncResult:
    return SyncResult(
        model_id=planned.entry.model_id,
        version=planned.version,
        actions=planned.actions,
        status=status,
        **more,
    )
