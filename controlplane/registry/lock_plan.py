"""A lock beside a catalog: how they differ, what makes the catalog equal. Rules only, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from controlplane.registry.lock import Converter, LockedModelEntry
from controlplane.registry.model import Model, ModelVersion, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which two locks differ; `field` is `model` when a whole entry does."""

    model_id: str
    field: str
    locked: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        if self.field == "model":
            where = "is not in the lock" if self.locked is None else "is locked but not installed"
            return f"{self.model_id} {where}"
        return f"{self.model_id}: {self.field} is {self.found}, locked is {self.locked}"


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do so that a catalog equals a lock.

    Attributes:
        kind: `install` a version; `switch` to one that is installed; `extra` is not in the lock
            and stays; `remove` it; `conflict`: cannot be done, `reason` says why. `repair` is
            never planned: a sync finds out only by hashing that an installed version is damaged.
        version: as it is, or will be, called in the catalog.
    """

    kind: Literal["install", "switch", "extra", "remove", "conflict", "repair"]
    model_id: str
    version: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.model_id}@{self.version}: {self.reason}"


# -- comparing ---------------------------------------------------------------------------------

# What must agree for two entries to stand for the same bytes from the same place.
_COMPARED = ("version", "revision", "checksum", "task_type", "source_url", "trust_remote_code")


def differences(
    locked: Iterable[LockedModelEntry], found: Iterable[LockedModelEntry]
) -> tuple[Difference, ...]:
    """How the catalog (`found`) differs from a lock, by model id; empty when they agree."""
    ours = {entry.model_id: entry for entry in found}
    theirs = {entry.model_id: entry for entry in locked}
    result: list[Difference] = []
    for model_id in sorted({*ours, *theirs}):
        one, other = theirs.get(model_id), ours.get(model_id)
        if one is None or other is None:
            result.append(
                Difference(
                    model_id=model_id,
                    field="model",
                    locked=None if one is None else one.version,
                    found=None if other is None else other.version,
                )
            )
        else:
            result += _entry_differences(one, other)
    return tuple(result)


def _entry_differences(locked: LockedModelEntry, found: LockedModelEntry) -> Iterable[Difference]:
    for name in _COMPARED:
        yield from _difference(locked.model_id, name, getattr(locked, name), getattr(found, name))
    yield from _difference(
        locked.model_id,
        "resource_requirements",
        str(locked.resource_requirements),
        str(found.resource_requirements),
    )
    ours, theirs = (
        msgspec.to_builtins(entry.converter or Converter()) for entry in (found, locked)
    )
    for name in Converter.__struct_fields__:
        yield from _difference(
            locked.model_id, f"converter.{name}", theirs.get(name), ours.get(name)
        )
    yield from _difference(
        locked.model_id, "artefact_checksum", locked.artefact_checksum, found.artefact_checksum
    )


def _difference(model_id: str, field: str, locked: object, found: object) -> Iterable[Difference]:
    if locked != found:
        yield Difference(model_id=model_id, field=field, locked=_text(locked), found=_text(found))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


# -- planning ----------------------------------------------------------------------------------


def plan(
    locked: Iterable[LockedModelEntry],
    models: Mapping[str, Model],
    retired: Mapping[tuple[str, str], frozenset[str]],
    *,
    prune: bool = False,
) -> tuple[Action, ...]:
    """What to do so that the catalog equals the lock: in the order of the lock, then extras.

    Args:
        models: the catalog, by model id.
        retired: checksums of deleted versions, by model id and version: those names are only
            given to the same bytes again.
        prune: models that are not in the lock are removed, else only told of.
    """
    actions: list[Action] = []
    wanted = set()
    for entry in locked:
        wanted.add(entry.model_id)
        action = _action(entry, models.get(entry.model_id), retired)
        if action is not None:
            actions.append(action)
    for model_id in sorted(set(models) - wanted):
        kind: Literal["remove", "extra"] = "remove" if prune else "extra"
        actions.append(
            Action(
                kind=kind,
                model_id=model_id,
                version=models[model_id].current_version,
                reason="is not in the lock",
            )
        )
    return tuple(actions)


def _action(
    entry: LockedModelEntry,
    model: Model | None,
    retired: Mapping[tuple[str, str], frozenset[str]],
) -> Action | None:
    if model is not None and model.task_type.value != entry.task_type:
        return _conflict(
            entry,
            f"it is registered for {model.task_type}, locked for {entry.task_type}; uninstall it",
        )
    same = same_bytes(entry, model)
    if same is not None and model is not None:
        return _bring_up(model, same)
    name = _free_name(entry, model, retired)
    if name is None:
        return _conflict(
            entry,
            f"{entry.version!r} stands for other files here, and without a commit there is no "
            "other name for the locked ones: lock a version with a name of its own",
        )
    reason = "is not installed"
    if name != entry.version:
        reason = f"{entry.version!r} stands for other files here; the locked ones get this name"
    return Action(kind="install", model_id=entry.model_id, version=name, reason=reason)


def same_bytes(entry: LockedModelEntry, model: Model | None) -> ModelVersion | None:
    """The model's version that stands for the locked bytes, under the locked name if possible."""
    versions = model.versions if model is not None else ()
    found = [version for version in versions if version.checksum == entry.checksum]
    return next((v for v in found if v.version == entry.version), found[0] if found else None)


def _bring_up(model: Model, version: ModelVersion) -> Action | None:
    known = {"model_id": model.model_id, "version": version.version}
    if version.status is not VersionStatus.READY:
        return Action(kind="install", reason=f"is {version.status}, not ready", **known)
    if version.version != model.current_version:
        return Action(kind="switch", reason=f"{model.current_version} is current", **known)
    return None


def _free_name(
    entry: LockedModelEntry,
    model: Model | None,
    retired: Mapping[tuple[str, str], frozenset[str]],
) -> str | None:
    """What the locked bytes can be called here: as locked, else by their commit, else nothing."""
    for name in filter(None, (entry.version, entry.revision)):
        known = next((v for v in model.versions if v.version == name), None) if model else None
        others = retired.get((entry.model_id, name), frozenset()) - {entry.checksum}
        if (known is None or known.checksum is None) and not others:
            return name
    return None


def _conflict(entry: LockedModelEntry, reason: str) -> Action:
    return Action(kind="conflict", model_id=entry.model_id, version=entry.version, reason=reason)
