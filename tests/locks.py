"""Locks for tests: entries, documents, and what the gateway needs to serve them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from controlplane.registry.files import SourceFile, source_checksum
from controlplane.registry.lock import Converter, LockDocument, LockedModelEntry
from controlplane.registry.lock_operations import LockOperations
from controlplane.registry.lock_store import LockStore
from controlplane.registry.locking import Locking
from controlplane.registry.model import NewModel, ResourceRequirements
from controlplane.registry.sync import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from sqlite_utils import Database

    from controlplane.events import EventBus
    from controlplane.registry.store import ModelStore

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
COMMIT = "c" * 40


def source(seed: str = "a") -> tuple[SourceFile, ...]:
    """Two files; other ones for another hexadecimal digit."""
    return (SourceFile("config.json", 3, seed * 64), SourceFile("model.safetensors", 5, "b" * 64))


def entry(model_id: str = "org/name", version: str = "main", **fields: Any) -> LockedModelEntry:
    files = fields.pop("files", source())
    return LockedModelEntry(
        **{
            "model_id": model_id,
            "version": version,
            "revision": COMMIT,
            "checksum": source_checksum(files),
            "artifact_uri": f"https://hub/{model_id}/tree/{COMMIT}",
            "task_type": "txt2embed",
            "resource_requirements": ResourceRequirements(memory_mb=100),
            "files": files,
            "converter": Converter(modelmora="0.1.0", torch="2.13.0", engine="onnxruntime"),
            "artefact_checksum": "sha256:" + "9" * 64,
            **fields,
        }
    )


def document(*entries: LockedModelEntry, **fields: Any) -> LockDocument:
    known = {"generated_at": MOMENT, "name": "default", "environment": "production"}
    return LockDocument(**(known | {"locked_models": entries} | fields))


def add_ready(
    store: ModelStore,
    model_id: str = "org/name",
    version: str = "main",
    *,
    files: tuple[SourceFile, ...] | None = None,
    revision: str | None = COMMIT,
) -> None:
    """Register a model, or a further version of it, and take it as installed."""
    chosen = source() if files is None else files
    if store.list(search_text=model_id).items:
        store.add_version(model_id, version)
    else:
        store.register(NewModel(model_id=model_id, task_type="txt2embed", version=version))
    store.set_status(model_id, version, "downloading")
    store.pin(
        model_id,
        version,
        revision=revision,
        checksum=source_checksum(chosen),
        artifact_uri=f"https://hub/{model_id}/tree/{revision}",
        files=chosen,
    )
    store.set_status(model_id, version, "exporting")
    manifest = {
        "backend": "text_embedding",
        "engine": "onnxruntime",
        "precision": "fp32",
        "converter": {"modelmora": "0.1.0", "torch": "2.13.0", "opset": 18, "future": "x"},
        "files": [{"path": "model.onnx", "size": 1, "sha256": "d" * 64}],
    }
    store.mark_ready(
        model_id,
        version,
        manifest=manifest,
        artefact_bytes=1000,
        artefact_checksum="sha256:" + "9" * 64,
    )


def lock_services(
    store: ModelStore, db: Database, bus: EventBus, installer: Any, folder: Path
) -> dict[str, Any]:
    """The fields `locking` and `lock_operations` of the gateway's services."""
    locking = Locking(store, LockStore(db, bus), folder / "downloads")

    async def remove(model_id: str) -> None:
        store.delete(model_id, force=True)

    async def switch(model_id: str, version: str) -> None:
        store.set_current(model_id, version)

    operations = LockOperations(
        Machine(
            locking=locking,
            store=store,
            installer=installer,
            downloads=folder / "downloads",
            repository=folder / "repository",
            remove=remove,
            switch=switch,
        )
    )
    return {"locking": locking, "lock_operations": operations}
