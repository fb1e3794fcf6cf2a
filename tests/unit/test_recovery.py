"""At start: rows and folders agree again, whether everything is read or only what was touched."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from controlplane.db import open_db
from controlplane.events import EventBus
from controlplane.registry.model import ModelId, NewModel, VersionStatus
from controlplane.registry.recovery import recover
from controlplane.registry.repository import ModelRepository
from controlplane.registry.store import ModelStore
from tests.unit.test_repository import artefact, manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHECKSUM = "sha256:" + "0" * 64
MODEL = ModelId("org", "model")


class Place:
    """A registry with one installed model, and its files."""

    def __init__(self, root: Path) -> None:
        self.db = open_db(root / "data" / "modelmora.db")
        self.store = ModelStore(self.db, EventBus())
        self.root = root / "repository"
        self.downloads = root / "data" / "downloads"
        self.folder = self.root / MODEL.triton_name / "1"
        self.install()

    def install(self) -> None:
        name, repository = str(MODEL), ModelRepository(self.root)
        self.store.register(NewModel(model_id=name, task_type="txt2embed"))
        self.store.set_status(name, "main", "downloading")
        self.store.pin(name, "main", revision=None, checksum=CHECKSUM, artifact_uri="file:///m")
        self.store.set_status(name, "main", "exporting")
        number = self.store.version(name).triton_version
        content = manifest(model_id=name, engine="onnxruntime")
        repository.publish(MODEL, number, artefact(repository.new_staging() / "a", **content))
        self.store.mark_ready(
            name, "main", manifest=content, artefact_bytes=5, artefact_checksum=CHECKSUM
        )

    def start(self) -> VersionStatus:
        """As the server does; a fresh repository, since it remembers manifests."""
        recover(self.store, ModelRepository(self.root), self.downloads)
        return self.store.version(str(MODEL)).status

    def let_time_pass(self) -> None:
        """Everything was last touched an hour ago, row and files."""
        then = time.time() - 3600
        for path in [self.root, *self.root.rglob("*")]:
            os.utime(path, (then, then))
        self.db.execute("UPDATE model_version SET updated_at = '2020-01-01T00:00:00.000000Z'")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.db.close()


def truncate(folder: Path) -> None:
    (folder / "sub" / "model.onnx").write_bytes(b"by")


def lose_a_file(folder: Path) -> None:
    (folder / "sub" / "model.onnx").unlink()


def lose_all(folder: Path) -> None:
    shutil.rmtree(folder)


def change_the_manifest(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"engine": "other"}))


def damage_the_configuration(folder: Path) -> None:
    (folder / "config.pbtxt").write_text("{{{")


DAMAGE = [truncate, lose_a_file, lose_all, change_the_manifest, damage_the_configuration]


@pytest.mark.parametrize("known", [False, True], ids=["first start", "later start"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_is_no_longer_ready(
    place: Place, damage: Callable[[Path], None], known: bool
) -> None:
    place.let_time_pass()
    if known:
        assert place.start() is VersionStatus.READY
        place.let_time_pass()
    damage(place.folder)
    assert place.start() is VersionStatus.FAILED


def test_what_is_back_is_ready_again(place: Place, tmp_path: Path) -> None:
    place.let_time_pass()
    place.start()
    place.root.rename(tmp_path / "elsewhere")
    assert place.start() is VersionStatus.FAILED
    (tmp_path / "elsewhere").rename(place.root)
    assert place.start() is VersionStatus.READY


def test_untouched_manifests_are_not_read_again(place: Place) -> None:
    place.let_time_pass()
    place.start()
    # of the same size and time: only a reader could tell
    text, path = (place.folder / "manifest.json").read_text(), place.folder / "manifest.json"
    then = path.stat().st_mtime_ns
    path.write_text(text.replace("onnxruntime", "onnxrunTIME"))
    os.utime(path, ns=(then, then))
    os.utime(place.folder, ns=(then, then))
    assert place.start() is VersionStatus.READY
    (place.downloads.parent / "recovered.json").unlink()
    assert place.start() is VersionStatus.FAILED


@pytest.mark.parametrize(
    "record",
    [b"", b"[]", b"{}", b'{"root": "/other", "until_ns": 1}', b'{"root": "", "ready": 1}', b"\xff"],
)
def test_a_record_that_says_nothing_of_this_repository_is_passed_over(
    place: Place, record: bytes
) -> None:
    (place.downloads.parent / "recovered.json").write_bytes(record)
    assert place.start() is VersionStatus.READY


def test_untouched_models_are_not_listed_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.start()
    place.let_time_pass()
    asked: list[str] = []
    listing = ModelRepository.versions

    def spied(repository: ModelRepository, triton_name: str) -> list[int]:
        asked.append(triton_name)
        return listing(repository, triton_name)

    monkeypatch.setattr(ModelRepository, "versions", spied)
    place.start()
    assert asked == []
    shutil.copytree(place.folder, place.folder.with_name("2"))  # by a crash, as it were
    place.start()
    assert MODEL.triton_name in asked
    assert not place.folder.with_name("2").exists()


def test_folders_without_rows_go_at_a_later_start_too(place: Place) -> None:
    place.start()
    place.store.delete(str(MODEL))
    place.let_time_pass()
    recover(place.store, ModelRepository(place.root), place.downloads)
    assert not place.folder.exists()
