"""Use cases of locks: write one from the catalog, compare, import, export, roll back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlplane.errors import InvalidLock, LockNotFound, ModelNotReady
from controlplane.events import utc_now
from controlplane.registry import lock_file
from controlplane.registry.files import RECORD, FetchedSource
from controlplane.registry.lock import (
    LockDocument,
    LockedModelEntry,
    ModelLock,
    entry_of,
    validate,
)
from controlplane.registry.lock_plan import Action, Difference, differences, plan
from controlplane.registry.model import VersionStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from controlplane.registry.files import SourceFile
    from controlplane.registry.lock_store import LockStore
    from controlplane.registry.model import Model, ModelVersion
    from controlplane.registry.store import ModelStore

_PAGE = 100


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A lock beside the catalog.

    Attributes:
        differences: what writing the lock anew would change in it.
        actions: what `sync` would do to the catalog.
        warnings: what is allowed but should be looked at.
    """

    differences: tuple[Difference, ...]
    actions: tuple[Action, ...]
    warnings: tuple[str, ...]


class Locking:
    """Locks and the catalog they are written from.

    Args:
        downloads: folder of `{triton_name}/{triton_version}` folders.
    """

    def __init__(self, store: ModelStore, locks: LockStore, downloads: Path) -> None:
        self.locks = locks
        self._store = store
        self._downloads = downloads

    # -- from the catalog --------------------------------------------------------------------

    def create(
        self,
        name: str,
        environment: str,
        *,
        description: str | None = None,
        models: Sequence[str] | None = None,
        upgrade: Sequence[str] = (),
        created_by: str | None = None,
    ) -> ModelLock:
        """Lock the current versions of all ready models, or of those chosen.

        Args:
            models: ids of the models to lock; None takes all that are ready.
            upgrade: models of which the newest installed version is locked, not the current one.

        Raises:
            InvalidLock: a rule is broken, or there is nothing to lock.
            LockAlreadyExists, InvalidModelId, ModelNotFound, ModelNotReady.
        """
        document = LockDocument(
            generated_at=utc_now(),
            name=name,
            environment=environment,
            description=description,
            locked_models=self._something(models, upgrade),
        )
        return self.locks.create(document, created_by=created_by)

    def change(
        self,
        name: str,
        *,
        refresh: bool = False,
        models: Sequence[str] | None = None,
        upgrade: Sequence[str] = (),
        environment: str | None = None,
        description: str | msgspec.UnsetType | None = msgspec.UNSET,
        active: bool | None = None,
        expected_version: int | None = None,
    ) -> ModelLock:
        """Change a lock; `refresh`, `models` or `upgrade` take its entries anew as `create` does.

        Raises:
            LockNotFound, InvalidLock, ConcurrentModification.
            InvalidModelId, ModelNotFound, ModelNotReady.
        """
        known = self.locks.get(name).document
        entries = known.locked_models
        if refresh or models is not None or upgrade:
            entries = self._something(models, upgrade)
        document = msgspec.structs.replace(
            known,
            environment=known.environment if environment is None else environment,
            description=known.description if description is msgspec.UNSET else description,
            locked_models=entries,
            generated_at=utc_now(),
        )
        if known.says_the_same(document):
            document = known
        return self.locks.update(document, active=active, expected_version=expected_version)

    def snapshot(
        self, models: Sequence[str] | None = None, upgrade: Sequence[str] = ()
    ) -> tuple[LockedModelEntry, ...]:
        """Entries for the catalog as it is, by model id; arguments and errors as `create`."""
        upgraded = {model.model_id: model for model in map(self._store.get, upgrade)}
        if models is None:
            chosen = {
                model.model_id: model
                for model in self.every_model()
                if model.current.status is VersionStatus.READY
            }
        else:
            chosen = {model.model_id: model for model in map(self._store.get, models)}
        chosen |= upgraded
        return tuple(self._entry(chosen[name], latest=name in upgraded) for name in sorted(chosen))

    def _something(
        self, models: Sequence[str] | None, upgrade: Sequence[str]
    ) -> tuple[LockedModelEntry, ...]:
        entries = self.snapshot(models, upgrade)
        if not entries:
            raise InvalidLock(
                {"locked_models": ["no model is installed: there is nothing to lock"]}
            )
        return entries

    def every_model(self) -> Iterator[Model]:
        """All models of the catalog, by model id."""
        number, total = 1, 1
        while number <= total:
            page = self._store.list(page=number, page_size=_PAGE)
            yield from page.items
            number, total = number + 1, page.total_pages

    def _entry(self, model: Model, *, latest: bool) -> LockedModelEntry:
        version = (model.latest if latest else None) or model.current
        if version.status is not VersionStatus.READY:
            raise ModelNotReady(
                model.model_id, version.version, version.status.value, version.error_message
            )
        return entry_of(model, version, self._files(version))

    def _files(self, version: ModelVersion) -> Iterable[SourceFile]:
        """Digests of the source's files; for versions of an older ModelMora its download's."""
        if found := self._store.source_files(version):
            return found
        folder = self._downloads / version.triton_name / str(version.triton_version)
        try:
            record = msgspec.json.decode((folder / RECORD).read_bytes(), type=FetchedSource)
        except (OSError, msgspec.DecodeError):
            return ()
        return record.files if record.checksum == version.checksum else ()

    # -- beside the catalog ------------------------------------------------------------------

    def compare(
        self,
        document: LockDocument,
        *,
        models: Sequence[str] | None = None,
        upgrade: Sequence[str] = (),
        prune: bool = False,
    ) -> Comparison:
        """How a lock and the catalog differ, both ways round; changes nothing.

        Raises:
            InvalidModelId, ModelNotFound, ModelNotReady: of `models` and `upgrade`, as `create`.
        """
        return Comparison(
            differences=differences(document.locked_models, self.snapshot(models, upgrade)),
            actions=self.plan(document, prune=prune),
            warnings=tuple(validate(document).warnings),
        )

    def plan(self, document: LockDocument, *, prune: bool = False) -> tuple[Action, ...]:
        """What has to be done so that the catalog equals the lock."""
        models = {model.model_id: model for model in self.every_model()}
        return plan(document.locked_models, models, self._store.retired_checksums(), prune=prune)

    # -- files and revisions -----------------------------------------------------------------

    def export(self, name: str, version: int | None = None) -> str:
        """A lock as the text of its file, now or as it was at a version.

        Raises:
            LockNotFound, ValidationFailed: no such revision.
            InvalidLock: it has no models.
        """
        if version is None:
            document = self.locks.get(name).document
        else:
            document = self.locks.revision(name, version).document
        require_models(document)
        return lock_file.dump(document)

    def take(self, document: LockDocument) -> tuple[ModelLock, bool]:
        """Keep a lock that was read from a file, under its name; True when it was not there.

        Raises:
            InvalidLock: it breaks a rule, or has no models.
        """
        require_models(document)
        try:
            return self.locks.update(document), False
        except LockNotFound:
            return self.locks.create(document), True

    def rollback(
        self, name: str, version: int, *, expected_version: int | None = None
    ) -> ModelLock:
        """Have a lock say again what it said at an earlier version; that makes a new version.

        Raises:
            LockNotFound, ConcurrentModification, ValidationFailed: no such revision.
        """
        document = self.locks.revision(name, version).document
        return self.locks.update(document, expected_version=expected_version)


def require_models(document: LockDocument) -> None:
    """A lock without entries can be kept, but neither be exported nor applied (domain C-45).

    Raises:
        InvalidLock.
    """
    if not document.locked_models:
        raise InvalidLock({"locked_models": [f"the lock {document.name!r} has no models"]})
