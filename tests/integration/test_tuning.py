"""Tuning, over a converter that makes what it is asked for: what a crash leaves at each moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from controlplane.errors import ValidationFailed
from controlplane.registry.engine_choice import EngineChoice
from controlplane.registry.model import ModelId, VersionStatus
from controlplane.registry.operation import TUNE, OperationStatus
from tests.integration.test_install import HANGS, MODEL, script, until
from tests.integration.test_operations import CONVERTS, begin, opened, source, status_of

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.registry.model import ModelVersion
    from tests.integration.test_install import Registry

__all__ = ["source"]

OPENVINO = EngineChoice(engine="openvino")
# As asked for, else ONNX Runtime; bf16 is not to be had.
OBEDIENT = [
    *CONVERTS[:-1],
    CONVERTS[-1]
    .replace('"engine": "onnxruntime"', '"engine": given.get("--engine", "onnxruntime")')
    .replace("output = ", "assert given.get('--precision') != 'bf16', 'no bf16'\noutput = "),
]


def current(registry: Registry) -> ModelVersion:
    return registry.store.get(MODEL).current


async def install(registry: Registry, source: str) -> None:
    operation = begin(registry, source)
    await until(lambda: status_of(registry, operation) is OperationStatus.SUCCEEDED)


async def test_the_new_engine_takes_the_place_of_the_old_one(tmp_path: Path, source: str) -> None:
    reloaded: list[str | None] = []
    async with opened(tmp_path / "home", OBEDIENT) as registry:
        await install(registry, source)

        async def reload(version: ModelVersion) -> None:
            reloaded.append(registry.repository.manifest(version.triton_name, 1)["engine"])

        registry.installer.reload = reload
        registry.store.record_memory(current(registry).id, 123.0)
        operation = registry.installer.tune(MODEL, None, OPENVINO)
        assert operation.kind == TUNE
        assert registry.installer.tune(MODEL).id == operation.id  # joined
        assert current(registry).status is VersionStatus.READY
        await until(lambda: status_of(registry, operation) is OperationStatus.SUCCEEDED)
        assert reloaded == ["openvino"]
        tuned = current(registry)
        assert (tuned.engine, tuned.engine_choice) == ("openvino", OPENVINO)
        assert tuned.measured_memory_mb is None
    async with opened(tmp_path / "home", OBEDIENT) as registry:  # row and folder agree
        assert current(registry).status is VersionStatus.READY


async def test_a_failed_tuning_changes_nothing(tmp_path: Path, source: str) -> None:
    async with opened(tmp_path / "home", OBEDIENT) as registry:
        await install(registry, source)
        before = current(registry)
        operation = registry.installer.tune(MODEL, None, EngineChoice(precision="bf16"))
        await until(lambda: status_of(registry, operation) is OperationStatus.FAILED)
        after = current(registry)
        assert (after.status, after.artefact, after.engine_choice) == (
            VersionStatus.READY,
            before.artefact,
            None,
        )
        error = registry.installer.operations.get(operation.id).error
        assert error is not None
        assert error.code == "EXPORT_FAILED"


async def test_it_can_be_cancelled_and_the_model_stays_ready(tmp_path: Path, source: str) -> None:
    async with opened(tmp_path / "home", OBEDIENT) as registry:
        await install(registry, source)
        registry.installer.shop.converter = HANGS
        operation = registry.installer.tune(MODEL, None, OPENVINO)
        await until(lambda: status_of(registry, operation) is OperationStatus.RUNNING)
        cancelled = await registry.installer.operations.cancel(operation.id)
        assert cancelled.status is OperationStatus.CANCELLED
        after = current(registry)
        assert (after.status, after.engine, after.engine_choice) == (
            VersionStatus.READY,
            "onnxruntime",
            None,
        )


async def test_the_next_server_goes_on(tmp_path: Path, source: str) -> None:
    async with opened(tmp_path / "home", OBEDIENT) as registry:
        await install(registry, source)
        registry.installer.shop.converter = HANGS
        operation = registry.installer.tune(MODEL, None, OPENVINO)
        await until(lambda: status_of(registry, operation) is OperationStatus.RUNNING)
    async with opened(tmp_path / "home", OBEDIENT) as registry:
        assert current(registry).status is VersionStatus.READY
        registry.installer.resume()
        await until(lambda: status_of(registry, operation) is OperationStatus.SUCCEEDED)
        assert (current(registry).engine, current(registry).status) == (
            "openvino",
            VersionStatus.READY,
        )


async def test_killed_between_folder_and_row(tmp_path: Path, source: str) -> None:
    """The folder is the new artefact, the row still says the old one: installed again."""
    async with opened(tmp_path / "home", OBEDIENT) as registry:
        await install(registry, source)
        registry.installer.shop.converter = HANGS
        operation = registry.installer.tune(MODEL, None, OPENVINO)
        await until(lambda: status_of(registry, operation) is OperationStatus.RUNNING)
    manifest = registry.artefact / "manifest.json"
    manifest.write_text(manifest.read_text().replace("onnxruntime", "openvino"))
    async with opened(tmp_path / "home", OBEDIENT) as registry:
        assert current(registry).status is VersionStatus.FAILED
        registry.installer.resume()
        await until(lambda: status_of(registry, operation) is OperationStatus.SUCCEEDED)
        tuned = current(registry)
        assert (tuned.engine, tuned.status) == ("openvino", VersionStatus.READY)
        folder = registry.repository.manifest(ModelId.parse(MODEL).triton_name, 1)
        assert folder == tuned.artefact


async def test_what_cannot_be_tuned_is_told(tmp_path: Path, source: str) -> None:
    framework = script(CONVERTS[-1].replace('"engine": "onnxruntime"', '"engine": "transformers"'))
    async with opened(tmp_path / "home", framework) as registry:
        registry.register(source_url=source)
        with pytest.raises(ValidationFailed, match="install it first"):
            registry.installer.tune(MODEL)
        operation = registry.installer.install(MODEL)
        await until(lambda: status_of(registry, operation) is OperationStatus.SUCCEEDED)
        with pytest.raises(ValidationFailed, match="only exported models"):
            registry.installer.tune(MODEL)
