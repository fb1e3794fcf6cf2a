"""What installing does to a version's row: status, pin, artefact, measured memory."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.db import recorded_change
from controlplane.errors import ChecksumMismatch, ConcurrentModification, InvalidStateTransition
from controlplane.event_log import EventLog
from controlplane.events import (
    DomainEvent,
    EventBus,
    ModelDownloadRequested,
    ModelUpdated,
    ModelVersionPinned,
    ModelVersionStatusChanged,
    utc_now,
)
from controlplane.migrations.m0001_registry import DEFAULT_CATALOG_ID
from controlplane.registry import catalog
from controlplane.registry.files import SourceFile
from controlplane.registry.memory_history import MemoryHistory
from controlplane.registry.model import (
    INSTALLING,
    STATUS_MOVES,
    Model,
    ModelVersion,
    ResourceRequirements,
    Servable,
    VersionStatus,
    check_checksum,
)
from controlplane.registry.protection import check_unlocked
from controlplane.registry.retired import check_reuse, next_triton_version, retired_checksums
from controlplane.registry.rows import insert, query, update

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from sqlite_utils import Database

INTERRUPTED = "The installation was interrupted by a restart of the server; install again."
_FILES = tuple[SourceFile, ...]


class VersionStore:
    """The part of `ModelStore` that is about single versions, and the writes both parts share."""

    def __init__(self, db: Database, bus: EventBus) -> None:
        self._db = db
        self._bus = bus
        self.event_log = EventLog(db, bus)
        self.memory_history = MemoryHistory(db)
        self._servables: dict[tuple[str, str | None], Servable] = {}

    @property
    def db(self) -> Database:
        """For the stores beside this one: there is one connection."""
        return self._db

    def version(self, model_id: str, version: str | None = None) -> ModelVersion:
        """One version, by its string or Triton number; None means the current one.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
        """
        return catalog.pick(catalog.find(self._db, model_id), version)

    def every_version(self) -> tuple[ModelVersion, ...]:
        """All versions of all models, by model id."""
        return catalog.every_version(self._db)

    def artefact_records(self) -> list[catalog.ArtefactRecord]:
        """What is on record of all artefacts that have been published."""
        return catalog.artefact_records(self._db)

    def version_keys(self) -> list[tuple[str, int, VersionStatus]]:
        """Triton name, Triton number and status of all versions."""
        return catalog.version_keys(self._db)

    def triton_names(self) -> set[str]:
        """What all registered models are called in Triton."""
        return catalog.triton_names(self._db)

    def set_status(
        self,
        model_id: str,
        version: str,
        status: VersionStatus | str,
        error_message: str | None = None,
    ) -> ModelVersion:
        """Move a version along `STATUS_MOVES`; the error message stays until the next move.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
            InvalidStateTransition: that is no move from where it is.
        """
        with self._change() as events:
            known = self.version(model_id, version)
            target = VersionStatus(status)
            if target is VersionStatus.DOWNLOADING:
                events.append(
                    ModelDownloadRequested(
                        aggregate_id=DEFAULT_CATALOG_ID,
                        model_id=known.model_id,
                        version=known.version,
                    )
                )
            events.append(self._move(known, target, error_message=error_message))
        return self.version(known.model_id, known.version)

    def check_pin(self, model_id: str, version: str, checksum: str) -> ModelVersion:
        """Find out whether `pin` would accept these bytes; the version as it is.

        Raises:
            as `pin`.
        """
        check_checksum(checksum)
        known = self.version(model_id, version)
        if known.checksum is None:
            check_reuse(self._db, known.model_id, known.version, checksum)
        elif known.checksum != checksum:
            what = f"The source of {known.model_id} version {known.version}"
            raise ChecksumMismatch(what, known.checksum, checksum)
        return known

    def pin(
        self,
        model_id: str,
        version: str,
        *,
        revision: str | None,
        checksum: str,
        artifact_uri: str,
        files: Sequence[SourceFile] = (),
    ) -> ModelVersion:
        """Fix which bytes the version stands for; the same values again change nothing.

        Args:
            files: the digests of its files, kept for locks; may come with a later call.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound, InvalidChecksum.
            ChecksumMismatch: it is pinned to other bytes.
            VersionAlreadyExists: its name was deleted and stood for other bytes.
        """
        with self._change() as events:
            known = self.check_pin(model_id, version, checksum)
            if files:
                self._keep_files(known, files)
            if known.checksum is not None and known.artifact_uri is not None:
                return known
            self._write_version(
                known, revision=revision, checksum=checksum, artifact_uri=artifact_uri
            )
            events.append(
                ModelVersionPinned(
                    aggregate_id=DEFAULT_CATALOG_ID,
                    model_id=known.model_id,
                    version=known.version,
                    checksum=checksum,
                    revision=revision,
                )
            )
        return self.version(known.model_id, known.version)

    def mark_ready(
        self,
        model_id: str,
        version: str,
        *,
        manifest: dict[str, Any],
        artefact_bytes: int,
        artefact_checksum: str,
    ) -> ModelVersion:
        """Record the published artefact and make the version servable.

        Args:
            manifest: the converter's manifest.
            artefact_bytes: size of the artefact's files together.
            artefact_checksum: `sha256:…` of the artefact.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound, InvalidStateTransition.
        """
        with self._change() as events:
            known = self.version(model_id, version)
            declared = known.resource_requirements if known.requirements_declared else None
            framework_version = manifest.get("converter", {}).get("torch", known.framework_version)
            events.append(
                self._move(
                    known,
                    VersionStatus.READY,
                    backend=manifest["backend"],
                    engine=manifest["engine"],
                    framework_version=framework_version,
                    artefact=manifest,
                    artefact_bytes=artefact_bytes,
                    artefact_checksum=artefact_checksum,
                    resource_requirements=declared or _estimate(artefact_bytes, manifest),
                )
            )
        return self.version(known.model_id, known.version)

    def mark_tuned(
        self,
        model_id: str,
        version: str,
        *,
        manifest: dict[str, Any],
        artefact_bytes: int,
        artefact_checksum: str,
    ) -> ModelVersion:
        """Record the artefact that took the place of a ready version's; arguments as `mark_ready`.

        What it takes in memory is measured anew at its next load.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound, InvalidStateTransition.
        """
        facts: dict[str, Any] = {
            "manifest": manifest,
            "artefact_bytes": artefact_bytes,
            "artefact_checksum": artefact_checksum,
        }
        known = self.version(model_id, version)
        if known.status is not VersionStatus.READY:  # its files were found damaged meanwhile
            return self.mark_ready(model_id, version, **facts)
        with self._change() as events:
            declared = known.resource_requirements if known.requirements_declared else None
            self._write_version(
                known,
                engine=manifest["engine"],
                artefact=manifest,
                artefact_bytes=artefact_bytes,
                artefact_checksum=artefact_checksum,
                measured_memory_mb=None,
                resource_requirements=declared or _estimate(artefact_bytes, manifest),
            )
            events.append(
                ModelUpdated(
                    aggregate_id=DEFAULT_CATALOG_ID, model_id=known.model_id, fields=["engine"]
                )
            )
        return self.version(known.model_id, known.version)

    def source_files(self, version: ModelVersion) -> tuple[SourceFile, ...]:
        """The files of a version's source by path; empty when nobody recorded them."""
        sql = "SELECT source_files FROM model_version WHERE id = ?"
        found = [row["source_files"] for row in query(self._db, sql, [version.id])]
        return msgspec.json.decode(found[0], type=_FILES) if found and found[0] else ()

    def retired_checksums(self) -> dict[tuple[str, str], frozenset[str]]:
        """What deleted versions stood for, by model id and version string."""
        return retired_checksums(self._db)

    def check_unlocked(self, model_id: str, version: ModelVersion | None = None) -> None:
        """Find out whether an active lock protects a model, or one version of it (domain C-46).

        Raises:
            ModelLocked: naming the locks.
        """
        check_unlocked(self._db, model_id, version)

    def record_memory(self, version_id: str, measured_mb: float) -> None:
        """Keep what a loaded version really takes (PSS, MB); a version that is gone is ignored."""
        with self._change() as events:
            known = catalog.version_by_id(self._db, version_id)
            if known is None:
                return
            self._write_version(known, measured_memory_mb=measured_mb)
            events.append(
                ModelUpdated(
                    aggregate_id=DEFAULT_CATALOG_ID,
                    model_id=known.model_id,
                    fields=["measured_memory_mb"],
                )
            )

    def describe(self, model_id: str, version: str, metadata: dict[str, Any]) -> ModelVersion:
        """Merge into a version's metadata (domain §2.3); what changes nothing is no change.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
        """
        with self._change() as events:
            known = self.version(model_id, version)
            merged = {**known.metadata, **metadata}
            if merged == known.metadata:
                return known
            self._write_version(known, metadata=merged)
            events.append(
                ModelUpdated(
                    aggregate_id=DEFAULT_CATALOG_ID, model_id=known.model_id, fields=["metadata"]
                )
            )
        return self.version(known.model_id, known.version)

    def recover_interrupted(self) -> list[str]:
        """At start, before anything installs: no installation is running, so none may say so.

        Returns:
            The model ids whose installation had been interrupted; those versions are now failed.
        """
        with self._change() as events:
            stuck = catalog.versions_with(self._db, INSTALLING)
            for version in stuck:
                events.append(self._move(version, VersionStatus.FAILED, error_message=INTERRUPTED))
        return [version.model_id for version in stuck]

    # -- writes ------------------------------------------------------------------------------

    def _change(self) -> AbstractContextManager[list[DomainEvent]]:
        # a listener that asks for the servable must not get the old one
        return recorded_change(self._db, self._bus, committed=self._servables.clear)

    def _move(self, version: ModelVersion, target: VersionStatus, **values: Any) -> DomainEvent:
        if target not in STATUS_MOVES[version.status]:
            raise InvalidStateTransition(version.model_id, version.status.value, target.value)
        values.setdefault("error_message", None)
        self._write_version(version, status=target, **values)
        return ModelVersionStatusChanged(
            aggregate_id=DEFAULT_CATALOG_ID,
            model_id=version.model_id,
            version=version.version,
            previous_status=version.status.value,
            status=target.value,
            error_message=values["error_message"],
        )

    def _write_version(self, version: ModelVersion, **values: Any) -> None:
        now = utc_now()
        if not update(self._db, "model_version", version.id, version.version_number, now, values):
            what = f"Version {version.version!r} of model {version.model_id!r}"
            raise ConcurrentModification(what, version.version_number)

    def _keep_files(self, version: ModelVersion, files: Sequence[SourceFile]) -> None:
        # not under the optimistic lock: they follow from the checksum, which is
        self._db.execute(
            "UPDATE model_version SET source_files = ? WHERE id = ?",
            [msgspec.json.encode(list(files)).decode(), version.id],
        )

    def _write_model(self, model: Model, **values: Any) -> None:
        if not update(self._db, "model", model.id, model.version, utc_now(), values):
            raise ConcurrentModification(f"Model {model.model_id!r}", model.version)

    def _touch_catalog(self) -> str:
        """The catalog is an aggregate: members coming and going are changes of it."""
        row = query(
            self._db, "SELECT version_number FROM model_catalog WHERE id = ?", [DEFAULT_CATALOG_ID]
        )[0]
        update(self._db, "model_catalog", DEFAULT_CATALOG_ID, row["version_number"], utc_now(), {})
        return DEFAULT_CATALOG_ID

    def _insert_version(self, row_id: str, model_id: str, version: str, **fields: Any) -> None:
        now = utc_now()
        if fields.get("checksum"):
            check_reuse(self._db, model_id, version, fields["checksum"])
        requirements = fields.pop("resource_requirements", None)
        insert(
            self._db,
            "model_version",
            {
                "id": str(uuid.uuid4()),
                "model_id": row_id,
                "version": version,
                "triton_version": next_triton_version(self._db, model_id),
                "resource_requirements": requirements,
                "requirements_declared": requirements is not None,
                "created_at": now,
                "updated_at": now,
                **fields,
            },
        )


def _estimate(artefact_bytes: int, manifest: dict[str, Any]) -> ResourceRequirements:
    """By the artefact's size, and what a process takes beside it where the manifest says that."""
    disk = ResourceRequirements.estimate(artefact_bytes)
    loaded = ResourceRequirements.estimate(manifest.get("load_bytes", artefact_bytes))
    return msgspec.structs.replace(loaded, disk_space_mb=disk.disk_space_mb)
