"""The models of modelmora.yaml: what is read, what is refused and where, what is to be done."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from controlplane.cli.main import run
from controlplane.db import open_db
from controlplane.errors import ModelAlreadyExists, SettingsError, ValidationFailed
from controlplane.events import EventBus
from controlplane.registry.catalog_file import CatalogEntry, check_entries, read_catalog
from controlplane.registry.catalog_sync import Action, plan
from controlplane.registry.model import ModelChange, NewModel, ResourceRequirements
from controlplane.registry.store import ModelStore
from controlplane.settings import load_settings
from tests.gateway import make_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"


def read(folder: Path, text: str, **environ: str) -> tuple[CatalogEntry, ...]:
    file = folder / "modelmora.yaml"
    file.write_text(text)
    return read_catalog(file, environ)


# -- reading -------------------------------------------------------------------------------------


def test_both_spellings_and_variables(tmp_path: Path) -> None:
    text = """
port: 9000
models:
  - a/short
  - model_id: a/full
    version: ${V}
    task_type: txt2embed
    source_url: file:///m
    resource_requirements: {memory_mb: 10}
    config: {batch_size: 4, path: "${HOME_OF}/x"}
    preload: true
  - name: a/other
    version: ${NONE:-v1.0.0}
    task: txt2embed
    source: ./models/x
    resources: {memory_mb: 10}
    default: false
    pinned: true
"""
    short, full, other = read(tmp_path, text, V="main", HOME_OF="/h")
    assert short == CatalogEntry(model_id="a/short")
    assert full.version == "main"
    assert full.config == {"batch_size": 4, "path": "/h/x"}
    assert full.resource_requirements == ResourceRequirements(memory_mb=10)
    assert (other.model_id, other.version, other.preload) == ("a/other", "v1.0.0", False)
    assert other.source_url == (tmp_path / "models/x").as_uri()


def test_settings_and_models_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "modelmora.yaml"
    file.write_text("port: 9000\nmodels:\n  - model_id: ${UNSET}\n")
    assert load_settings(config_file=file, environ={}).port == 9000
    with pytest.raises(SettingsError, match=r"models\[0\]\.model_id.*UNSET"):
        read_catalog(file, {})
    file.write_text("port: ${UNSET:-9000}\n")
    assert read_catalog(file, {}) == ()
    with pytest.raises(SettingsError, match="MODELMORA_MODELS"):
        load_settings(config_file=file, environ={"MODELMORA_MODELS": "a/b"})


WRONG = [
    ("models: a/b", r"models: must be a list"),
    ("models: [3]", r"models\[0\]: must be a model id, or keys"),
    ("models: [{}]", r"models\[0\]\.model_id: is required"),
    ("models: [{name: a/b, version: 1.0}]", r"models\[0\]\.version: must be text; put it in quo"),
    ("models: [a/x, a/y, {name: a/b, version: 'a b'}]", r"models\[2\]\.version: must be a sem"),
    ("models: [{name: a/b, model_id: a/c}]", r"models\[0\]\.model_id: is given twice"),
    ("models: [{name: a/b, modle: 3}]", r"models\[0\]\.modle: is not a key"),
    ("models: [{name: ab}]", r"models\[0\]\.model_id: .*slash|models\[0\]\.model_id"),
    ("models: [{name: a/b, task: odd}]", r"models\[0\]\.task_type: must be one of"),
    ("models: [{name: a/b, preload: maybe}]", r"models\[0\]\.preload: Expected `bool"),
    ("models: [{name: a/b, resources: {memory_mb: 0}}]", r"resource_requirements\.memory_mb"),
    ("models: [{name: a/b, resources: {mem: 1}}]", r"models\[0\].*mem"),
    ("models: [a/x, a/x]", r"models\[1\]\.model_id: is listed already, as models\[0\]"),
    ("models: [{name: a/b, pinned: true}]", r"models\[0\]\.version: must be a commit"),
    ("models: [{name: a/b, version: main, pinned: true}]", r"models\[0\]\.version: must be a com"),
    ("models: [{name: a/b, source: 'ftp://x/y'}]", r"models\[0\]\.source_url"),
    ("models: [", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_named_by_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("version", [COMMIT, "v1.2.3", "1.2.3-rc.1"])
def test_versions_that_do_not_move_may_be_pinned(version: str) -> None:
    check_entries([CatalogEntry(model_id="a/b", version=version, pinned=True)])


def test_all_wrong_entries_are_named_at_once() -> None:
    entries = [CatalogEntry(model_id="a"), CatalogEntry(model_id="a/b", version=" ")]
    with pytest.raises(ValidationFailed) as caught:
        check_entries(entries)
    assert set(caught.value.details["fields"]) == {"models[0].model_id", "models[1].version"}


# -- planning ------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[ModelStore]:
    db = open_db(":memory:")
    yield ModelStore(db, EventBus())
    db.close()


def planned(store: ModelStore, entry: CatalogEntry) -> list[str]:
    return [action.value for action in plan(entry, store.get(entry.model_id)).actions]


def test_what_is_to_be_done(store: ModelStore) -> None:
    entry = CatalogEntry(model_id="a/b", version="main", display_name="B", preload=True)
    assert plan(entry, None).actions == (Action.REGISTER, Action.INSTALL)
    store.register(NewModel(model_id="a/b", task_type="txt2embed"))
    assert planned(store, entry) == ["update", "install"]
    store.update("a/b", plan(entry, store.get("a/b")).change)
    assert planned(store, entry) == ["install"]
    make_ready(store, "a/b", "main")
    assert planned(store, entry) == []
    assert planned(store, CatalogEntry(model_id="a/b")) == []  # says nothing, wants nothing
    newer = CatalogEntry(model_id="a/b", version="v2")
    assert planned(store, newer) == ["add_version", "install", "use"]
    store.add_version("a/b", "v2")
    assert planned(store, newer) == ["install", "use"]
    assert planned(store, CatalogEntry(model_id="a/b")) == []  # the current version, whichever


def test_preload_is_kept_given_and_taken_back(store: ModelStore) -> None:
    store.register(NewModel(model_id="a/b", task_type="txt2embed", config={"batch_size": 4}))
    assert store.preloaded() == ()

    def apply(**more: Any) -> dict[str, Any]:
        entry = CatalogEntry(model_id="a/b", **more)
        return store.update("a/b", plan(entry, store.get("a/b")).change).config

    assert apply(preload=True) == {"batch_size": 4, "preload": True}
    assert store.preloaded() == ("a/b",)
    assert apply(config={"batch_size": 8}) == {"batch_size": 8, "preload": True}
    assert apply(preload=False) == {"batch_size": 8, "preload": False}
    assert store.preloaded() == ()


def test_declared_needs_are_compared_with_the_declared(store: ModelStore) -> None:
    store.register(NewModel(model_id="a/b", task_type="txt2embed"))
    make_ready(store, "a/b", "main")  # has an estimate now
    needs = ResourceRequirements(memory_mb=100)
    entry = CatalogEntry(model_id="a/b", resource_requirements=needs)
    change = plan(entry, store.get("a/b")).change
    assert change == ModelChange(resource_requirements=needs)
    store.update("a/b", change)
    assert planned(store, entry) == []


@pytest.mark.parametrize("given", [{"task_type": "txt2txt"}, {"source_url": "file:///else"}])
def test_what_cannot_change_is_a_conflict(store: ModelStore, given: dict[str, str]) -> None:
    model = store.register(NewModel(model_id="a/b", task_type="txt2embed"))
    with pytest.raises(ModelAlreadyExists) as caught:
        plan(CatalogEntry(model_id="a/b", **given), model)
    assert "modelmora uninstall a/b" in caught.value.message


# -- commands that need no server ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("MODELMORA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_prints_what_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "modelmora.yaml").write_text("models: [a/b, {name: a/c, preload: true}]")
    assert run(["catalog", "show"]) == 0
    assert "a/c" in capsys.readouterr().out
    assert run(["catalog", "show", "--json"]) == 0
    models = msgspec.json.decode(capsys.readouterr().out)["models"]
    assert [model["model_id"] for model in models] == ["a/b", "a/c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "modelmora init"),
        ("port: 9000", "lists no models"),
        ("models: [a/x, a/y, {name: a/b, version: 3}]", "modelmora.yaml: models[2].version: must"),
    ],
)
def test_show_and_validate_say_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    if text is not None:
        (folder / "modelmora.yaml").write_text(text)
    assert run(["catalog", "show"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    wrong = text is not None and "version" in text
    assert run(["config", "validate"]) == (2 if wrong else 0)
