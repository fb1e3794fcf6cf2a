"""The catalog's store: every change of a model or version, with its events, in one transaction.

All calls happen on one thread (the event loop's) and are short. A change reads, checks the rules,
writes under the optimistic lock and appends its events inside one transaction; listeners hear of
it after the commit.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import (
    CurrentVersionProtected,
    ModelAlreadyExists,
    ValidationFailed,
    VersionAlreadyExists,
)
from controlplane.events import (
    ModelCodeTrusted,
    ModelRegistered,
    ModelUnregistered,
    ModelUpdated,
    ModelVersionAdded,
    ModelVersionChanged,
    ModelVersionRemoved,
    utc_now,
)
from controlplane.migrations.m0001_registry import DEFAULT_CATALOG_ID
from controlplane.registry import catalog, keeping
from controlplane.registry.catalog import check_lock, pick
from controlplane.registry.model import (
    EngineChoice,
    Model,
    ModelChange,
    ModelVersion,
    NewModel,
    Servable,
    check_change,
    check_new_model,
)
from controlplane.registry.retired import retire
from controlplane.registry.rows import insert, query, read_models
from controlplane.registry.versions import VersionStore

if TYPE_CHECKING:
    from controlplane.paging import Page

# Names come from requests, in whatever spelling: the cache must not grow with them.
_CACHE_LIMIT = 10_000


class ModelStore(VersionStore):
    """Registered models and their versions.

    Attributes:
        memory_limits: which models can be kept together; None does not care.
    """

    memory_limits: keeping.MemoryLimits | None = None

    # -- reading -----------------------------------------------------------------------------

    def get(self, model_id: str) -> Model:
        """The model of that name: model id, URL-encoded, or Triton name.

        Raises:
            InvalidModelId, ModelNotFound.
        """
        return catalog.find(self._db, model_id)

    def list(
        self,
        *,
        task_type: str | None = None,
        status: str | None = None,
        search_text: str | None = None,
        page: int = 1,
        page_size: int = 20,
    ) -> Page[Model]:
        """A page of models, by model id; see `catalog.search` for filters and errors."""
        return catalog.search(
            self._db,
            task_type=task_type,
            status=status,
            search_text=search_text,
            page=page,
            page_size=page_size,
        )

    def every_model(self) -> tuple[Model, ...]:
        """All models with their versions, by model id."""
        return read_models(self._db, query(self._db, "SELECT * FROM model ORDER BY model_id"))

    def servable(self, name: str, version: str | None = None) -> Servable:
        """What it takes to serve a version; no SQL when asked before and unchanged since.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound: there is no such model or version.
            ModelNotReady: it is not installed.
        """
        known = self._servables.get((name, version))
        if known is not None:
            return known
        model = self.get(name)
        found = catalog.servable(model, pick(model, version), floating=version is None)
        if len(self._servables) >= _CACHE_LIMIT:
            self._servables.clear()
        self._servables[name, version] = found
        return found

    def preloaded(self) -> tuple[str, ...]:
        """Ids of the models that are to be loaded when the server starts, by model id."""
        return catalog.preloaded(self._db)

    def models_with_policy(self) -> tuple[Model, ...]:
        """Models that are kept in memory or have an idle time of their own, by model id."""
        return keeping.models_with_policy(self._db)

    def _check_kept(self, model_id: str) -> None:
        if self.memory_limits is not None:
            keeping.check_kept(model_id, keeping.kept_models(self._db), self.memory_limits)

    # -- models ------------------------------------------------------------------------------

    def register(self, new: NewModel) -> Model:
        """Add a model with its first version; nothing is downloaded.

        Raises:
            InvalidModelId, InvalidTaskType, ValidationFailed, InvalidChecksum: the registration
                breaks a rule.
            ModelAlreadyExists.
            VersionAlreadyExists: the version's name was deleted and stood for other bytes.
            KeptModelsTooLarge: it is to be kept, and there is no room for all that are.
        """
        model_id, task_type = check_new_model(new)
        with self._change() as events:
            if query(self._db, "SELECT 1 FROM model WHERE model_id = ?", [str(model_id)]):
                raise ModelAlreadyExists(str(model_id))
            now, catalog_id = utc_now(), self._touch_catalog()
            row_id = str(uuid.uuid4())
            insert(
                self._db,
                "model",
                {
                    "id": row_id,
                    "catalog_id": catalog_id,
                    "model_id": str(model_id),
                    "task_type": task_type,
                    "current_version": new.version,
                    "display_name": new.display_name,
                    "description": new.description,
                    "source_url": new.source_url,
                    "config": new.config,
                    "custom_params": new.custom_params,
                    "keep_loaded": new.keep_loaded,
                    "idle_ttl": new.idle_ttl,
                    "created_at": now,
                    "updated_at": now,
                },
            )
            self._insert_version(
                row_id,
                str(model_id),
                new.version,
                framework=new.framework,
                framework_version=new.framework_version,
                metadata=new.metadata,
                created_by=new.created_by,
                resource_requirements=new.resource_requirements,
                revision=new.revision,
                checksum=new.checksum,
                artifact_uri=new.artifact_uri,
                trust_remote_code=new.trust_remote_code,
                engine_choice=new.engine_choice,
            )
            if new.keep_loaded:
                self._check_kept(str(model_id))
            told: dict[str, Any] = {
                "aggregate_id": catalog_id,
                "model_id": str(model_id),
                "version": new.version,
            }
            events += [
                ModelRegistered(task_type=task_type.value, **told),
                ModelVersionAdded(**told),
            ]
            if new.trust_remote_code:
                events.append(ModelCodeTrusted(trusted_by=new.created_by, **told))
        return self.get(str(model_id))

    def update(
        self, model_id: str, change: ModelChange, *, expected_version: int | None = None
    ) -> Model:
        """Change descriptive fields; resource requirements are those of the current version.

        Raises:
            InvalidModelId, ModelNotFound, ValidationFailed.
            ConcurrentModification: the model is no longer at `expected_version`.
            KeptModelsTooLarge: it is to be kept, and there is no room for all that are.
        """
        check_change(change)
        with self._change() as events:
            model = self.get(model_id)
            check_lock(model, expected_version)
            values = {
                name: value
                for name in change.__struct_fields__
                if (value := getattr(change, name)) is not msgspec.UNSET
            }
            if not values:
                return model
            requirements = values.get("resource_requirements")
            fields = sorted(values)
            if requirements is not None:
                self._write_version(
                    model.current, resource_requirements=requirements, requirements_declared=True
                )
            values.pop("resource_requirements", None)
            self._write_model(model, **values)
            if values.get("keep_loaded"):
                self._check_kept(model.model_id)
            events.append(
                ModelUpdated(aggregate_id=model.catalog_id, model_id=model.model_id, fields=fields)
            )
        return self.get(model_id)

    def delete(
        self, model_id: str, *, force: bool = False, expected_version: int | None = None
    ) -> Model:
        """Remove a model with its versions; their names and numbers are retired.

        Returns:
            What was deleted.

        Raises:
            InvalidModelId, ModelNotFound.
            ConcurrentModification: the model is no longer at `expected_version`.
            ModelLocked: an active lock holds it, and `force` is not set.
        """
        with self._change() as events:
            model = self.get(model_id)
            check_lock(model, expected_version)
            if not force:
                self.check_unlocked(model.model_id)
            now = utc_now()
            for version in model.versions:
                retire(self._db, version, now)
            self._db.execute("DELETE FROM model WHERE id = ?", [model.id])
            self._touch_catalog()
            events.append(ModelUnregistered(aggregate_id=model.catalog_id, model_id=model.model_id))
        return model

    # -- versions ----------------------------------------------------------------------------

    def add_version(self, model_id: str, version: str, **fields: Any) -> ModelVersion:
        """Register a further version; nothing is downloaded.

        Args:
            fields: any of framework, framework_version, metadata, created_by,
                resource_requirements, revision, checksum, artifact_uri, trust_remote_code,
                engine_choice.

        Raises:
            InvalidModelId, ModelNotFound, ValidationFailed, InvalidChecksum.
            VersionAlreadyExists: it is there, or was deleted and stood for other bytes.
        """
        with self._change() as events:
            model = self.get(model_id)
            check_new_model(
                NewModel(
                    model_id=model.model_id, task_type=model.task_type, version=version, **fields
                )
            )
            if any(known.version == version for known in model.versions):
                raise VersionAlreadyExists(model.model_id, version)
            self._insert_version(model.id, model.model_id, version, **fields)
            self._write_model(model)
            self._touch_catalog()
            events.append(
                ModelVersionAdded(
                    aggregate_id=model.catalog_id, model_id=model.model_id, version=version
                )
            )
            if fields.get("trust_remote_code"):
                events.append(
                    ModelCodeTrusted(
                        aggregate_id=model.catalog_id,
                        model_id=model.model_id,
                        version=version,
                        trusted_by=fields.get("created_by"),
                    )
                )
        return self.version(model.model_id, version)

    def trust_code(self, model_id: str, version: str) -> ModelVersion:
        """Trust the code of a version that was registered without; a no-op where it was with.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
            ValidationFailed: it stands for files already, of which the code is none.
        """
        with self._change() as events:
            known = self.version(model_id, version)
            if known.trust_remote_code:
                return known
            if known.checksum is not None:
                raise ValidationFailed.field(
                    "trust_remote_code",
                    f"cannot be given to {known.version}, which stands for files without code "
                    "since it was downloaded; install another version, such as the commit",
                )
            self._write_version(known, trust_remote_code=True)
            events.append(
                ModelCodeTrusted(
                    aggregate_id=DEFAULT_CATALOG_ID,
                    model_id=known.model_id,
                    version=known.version,
                    trusted_by=known.created_by,
                )
            )
        return self.version(known.model_id, known.version)

    def choose_engine(
        self, model_id: str, version: str, choice: EngineChoice | None
    ) -> ModelVersion:
        """What the converter is to be asked for when it makes the version's artefact next.

        Args:
            choice: None leaves it to measurement.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
        """
        with self._change() as events:
            known = self.version(model_id, version)
            if known.engine_choice == choice:
                return known
            self._write_version(known, engine_choice=choice)
            events.append(
                ModelUpdated(
                    aggregate_id=DEFAULT_CATALOG_ID,
                    model_id=known.model_id,
                    fields=["engine_choice"],
                )
            )
        return self.version(known.model_id, known.version)

    def set_current(self, model_id: str, version: str) -> Model:
        """Serve this version by default from now on; a no-op when it is so already.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
        """
        with self._change() as events:
            model = self.get(model_id)
            chosen = pick(model, version).version
            if chosen == model.current_version:
                return model
            self._write_model(model, current_version=chosen)
            events.append(
                ModelVersionChanged(
                    aggregate_id=model.catalog_id,
                    model_id=model.model_id,
                    previous_version=model.current_version,
                    version=chosen,
                )
            )
        return self.get(model_id)

    def set_pinned(self, model_id: str, *, pinned: bool) -> Model:
        """Have upgrades refused, or allowed again; a no-op when it is so already.

        Raises:
            InvalidModelId, ModelNotFound.
        """
        with self._change() as events:
            model = self.get(model_id)
            if model.pinned == pinned:
                return model
            self._write_model(model, pinned=pinned)
            events.append(
                ModelUpdated(
                    aggregate_id=model.catalog_id, model_id=model.model_id, fields=["pinned"]
                )
            )
        return self.get(model_id)

    def remove_version(self, model_id: str, version: str, *, force: bool = False) -> ModelVersion:
        """Remove a version that is not the current one; its name and number are retired.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound, CurrentVersionProtected.
            ModelLocked: an active lock holds it, and `force` is not set.
        """
        with self._change() as events:
            model = self.get(model_id)
            gone = pick(model, version)
            if gone.version == model.current_version:
                raise CurrentVersionProtected(model.model_id, gone.version)
            if not force:
                self.check_unlocked(model.model_id, gone)
            retire(self._db, gone, utc_now())
            self._db.execute("DELETE FROM model_version WHERE id = ?", [gone.id])
            self._write_model(model)
            self._touch_catalog()
            events.append(
                ModelVersionRemoved(
                    aggregate_id=model.catalog_id, model_id=model.model_id, version=gone.version
                )
            )
        return gone
