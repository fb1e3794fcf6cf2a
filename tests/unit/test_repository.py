"""The model repository: whole versions or none, after any crash."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from controlplane.errors import ExportFailed, TritonModelInvalid
from controlplane.registry.model import ModelId
from controlplane.registry.repository import ModelRepository
from controlplane.triton.model_config import read_pbtxt, served_versions

MODEL = ModelId("org", "model")
NAME = MODEL.triton_name


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "backend": "text_embedding",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [8]}],
        "max_batch_size": 32,
        "files": [{"path": "sub/model.onnx", "size": 5, "sha256": "0" * 64}],
        **changes,
    }


def artefact(folder: Path, **changes: Any) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "model.onnx").write_bytes(b"bytes")
    (folder / "manifest.json").write_text(json.dumps(manifest(**changes)), encoding="utf-8")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "repository")


def publish(repository: ModelRepository, version: int, **changes: Any) -> None:
    folder = artefact(repository.new_staging() / "artefact", **changes)
    repository.publish(MODEL, version, folder)


def tree(repository: ModelRepository) -> list[str]:
    """All files and empty folders, without the staging folder itself."""
    return sorted(
        str(path.relative_to(repository.root))
        for path in repository.root.rglob("*")
        if (path.is_file() or not any(path.iterdir())) and path.name != ".staging"
    )


def served(repository: ModelRepository) -> list[int]:
    text = (repository.root / NAME / "config.pbtxt").read_text(encoding="utf-8")
    return list(served_versions(read_pbtxt(text)))


def version_tree(*versions: int) -> list[str]:
    compiled = f"__pycache__/model.{sys.implementation.cache_tag}.pyc"
    files = (compiled, "config.pbtxt", "manifest.json", "model.py", "sub/model.onnx")
    return sorted(
        [f"{NAME}/{n}/{file}" for n in versions for file in files] + [f"{NAME}/config.pbtxt"]
    )


def test_publishes(repository: ModelRepository) -> None:
    publish(repository, 1)
    repository.sweep()
    assert tree(repository) == version_tree(1)
    model_py = (repository.root / NAME / "1" / "model.py").read_text(encoding="utf-8")
    assert "from backends.text_embedding.model import TritonPythonModel" in model_py
    compile(model_py, "model.py", "exec")
    assert repository.manifest(NAME, 1)["backend"] == "text_embedding"
    assert json.loads(repository.load_config(NAME, 1))["name"] == NAME


def test_the_artefact_is_used_up(repository: ModelRepository, tmp_path: Path) -> None:
    folder = artefact(tmp_path / "artefact")
    repository.publish(MODEL, 1, folder)
    assert not folder.exists()
    assert tree(repository) == version_tree(1)


def test_the_configuration_is_that_of_the_version_published_last(
    repository: ModelRepository,
) -> None:
    for version in (2, 10, 3):
        publish(repository, version)
        assert served(repository) == [version]
    assert repository.versions(NAME) == [2, 3, 10]
    assert json.loads(repository.load_config(NAME, 2))["version_policy"] == {
        "specific": {"versions": ["2"]}
    }


def test_publishing_a_number_again_replaces_it(repository: ModelRepository) -> None:
    publish(repository, 1)
    assert repository.manifest(NAME, 1)["max_batch_size"] == 32
    publish(repository, 1, max_batch_size=4)
    assert repository.manifest(NAME, 1)["max_batch_size"] == 4
    assert json.loads(repository.load_config(NAME, 1))["max_batch_size"] == 4
    repository.sweep()
    assert tree(repository) == version_tree(1)


def test_removes_versions_then_the_model(repository: ModelRepository) -> None:
    for version in (1, 2):
        publish(repository, version)
    repository.sweep()
    repository.remove_version(MODEL, 2)
    assert tree(repository) == version_tree(1)
    assert served(repository) == [1]
    repository.remove_version(MODEL, 1)
    repository.remove_version(MODEL, 1)
    assert tree(repository) == []
    with pytest.raises(FileNotFoundError):
        repository.manifest(NAME, 1)
    with pytest.raises(FileNotFoundError):
        repository.load_config(NAME, 1)


def test_removes_a_model_with_all_versions(repository: ModelRepository) -> None:
    for version in (1, 2):
        publish(repository, version)
    repository.remove(MODEL)
    repository.remove(MODEL)
    repository.sweep()
    assert tree(repository) == []
    assert repository.versions(NAME) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "os; import evil"}, "names no backend"),
        ({"backend": None}, "names no backend"),
        ({"files": [{"path": "gone.bin", "size": 1}]}, "missing"),
        ({"files": [{"path": "sub/model.onnx", "size": 6}]}, "not 6 bytes"),
        ({"files": [{"path": "../../etc/passwd", "size": 6}]}, "not inside"),
        ({"files": [{"path": "/etc/passwd", "size": 6}]}, "not inside"),
        ({"files": 3}, "no usable manifest"),
        ({"inputs": [{"name": "x", "datatype": "NONSENSE", "shape": [1]}]}, "datatype"),
    ],
)
def test_refuses_what_cannot_be_served(
    repository: ModelRepository, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = artefact(tmp_path / "artefact", **changes)
    with pytest.raises(ExportFailed, match=words):
        repository.publish(MODEL, 1, folder)
    assert folder.exists()
    assert tree(repository) == []


def test_refuses_an_artefact_without_manifest(repository: ModelRepository, tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match=r"manifest\.json"):
        repository.publish(MODEL, 1, tmp_path)


def test_refuses_links_out_of_the_artefact(repository: ModelRepository, tmp_path: Path) -> None:
    folder = artefact(tmp_path / "artefact")
    (folder / "sub" / "model.onnx").unlink()
    (tmp_path / "secret").write_bytes(b"bytes")
    (folder / "sub" / "model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(ExportFailed, match="not inside"):
        repository.publish(MODEL, 1, folder)


class PowerCut(BaseException):
    """The process is gone: nothing after the step, not even cleaning up, happens."""


class CrashingRepository(ModelRepository):
    """Loses power right before its n-th change of the file system."""

    def __init__(self, root: Path, survives: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        self.left = survives
        for name in ("rename", "replace", "mkdir", "rmdir", "unlink"):
            self._count(monkeypatch, Path, name)
        self._count(monkeypatch, shutil, "rmtree")
        self._count(monkeypatch, os, "fsync")

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.left <= 0:
                raise PowerCut
            self.left -= 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("act", ["first", "second", "replace", "remove", "remove_version"])
def test_a_crash_between_any_two_steps_is_put_right(tmp_path: Path, act: str) -> None:
    """For every number of steps: crash there, start again, look."""
    allowed = {
        "first": [[], version_tree(1)],
        "second": [version_tree(1), version_tree(1, 2)],
        "replace": [version_tree(1), []],  # [] only inside: the registry did not have it ready
        "remove": [version_tree(1), []],
        "remove_version": [version_tree(1, 2), version_tree(1)],
    }[act]
    seen = []
    for survives in range(1000):
        repository, finished = crash_after(tmp_path / str(survives), act, survives)
        assert tree(repository) in allowed, f"after {survives} steps"
        if repository.versions(NAME):
            assert set(served(repository)) <= set(repository.versions(NAME))
        seen.append(tree(repository))
        if finished:
            break
    assert finished
    assert seen[-1] == allowed[-1] or act == "replace"


def crash_after(root: Path, act: str, survives: int) -> tuple[ModelRepository, bool]:
    """Prepare, act until the power goes, start again. True when it did not go."""
    before = ModelRepository(root)
    for version in {"first": (), "remove_version": (1, 2)}.get(act, (1,)):
        publish(before, version)
    before.sweep()
    folder = artefact(root.parent / f"{root.name}-artefact")
    finished = True
    with pytest.MonkeyPatch.context() as monkeypatch:
        crashing = CrashingRepository(root, survives, monkeypatch)
        try:
            perform(crashing, act, folder)
        except PowerCut:
            finished = False
    again = ModelRepository(root)
    again.sweep()
    return again, finished


def perform(repository: ModelRepository, act: str, folder: Path) -> None:
    if act == "remove":
        repository.remove(MODEL)
    elif act == "remove_version":
        repository.remove_version(MODEL, 2)
    else:
        repository.publish(MODEL, 2 if act == "second" else 1, folder)


def test_sweep_leaves_what_is_not_ours(repository: ModelRepository) -> None:
    for name in ("their_model", "their--model"):
        (repository.root / name / "1").mkdir(parents=True)
        (repository.root / name / "1" / "model.py").touch()
    repository.sweep()
    assert tree(repository) == ["their--model/1/model.py", "their_model/1/model.py"]


def test_sweep_of_a_repository_that_is_not_there(tmp_path: Path) -> None:
    ModelRepository(tmp_path / "nowhere").sweep()
    assert not (tmp_path / "nowhere").exists()


def test_an_artefact_on_another_file_system_is_copied(
    repository: ModelRepository, tmp_path: Path
) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    folder = artefact(elsewhere / f"artefact-{os.getpid()}")
    try:
        repository.publish(MODEL, 1, folder)
    finally:
        assert not folder.exists()
    assert tree(repository) == version_tree(1)


def test_an_unwritable_repository_says_so(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(OSError, match="Not a directory") as failure:
        ModelRepository(blocker / "repository").publish(MODEL, 1, artefact(tmp_path / "artefact"))
    assert failure.value.errno == errno.ENOTDIR


# -- ready-made models -----------------------------------------------------------------------------


def publish_ready_made(
    repository: ModelRepository, version: int, model: str = "pass", **root: str
) -> None:
    """A version of a ready-made model with files beside its version folder."""
    folder = repository.new_staging() / "artefact"
    (folder / ".root" / "labels").mkdir(parents=True)
    listed = {"model.py": model} | {f".root/labels/{name}": text for name, text in root.items()}
    for path, text in listed.items():
        (folder / path).write_text(text, encoding="utf-8")
    files = [
        {"path": path, "size": len(text), "sha256": text.ljust(64, "0")}
        for path, text in listed.items()
    ]
    said = manifest(backend="python", files=files, ready_made={}, version=f"v{version}")
    (folder / "manifest.json").write_text(json.dumps(said), encoding="utf-8")
    text = (
        f'name: "{NAME}" backend: "python" version_policy {{ specific {{ versions: {version} }} }}'
    )
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    repository.publish(MODEL, version, folder)


def beside(repository: ModelRepository) -> dict[str, str]:
    home = repository.root / NAME / "labels"
    return {path.name: path.read_text(encoding="utf-8") for path in home.glob("*")}


def test_root_files_are_there_as_long_as_a_version_needs_them(repository: ModelRepository) -> None:
    publish_ready_made(repository, 1, one="1", both="b")
    publish_ready_made(repository, 2, two="2", both="b")
    assert beside(repository) == {"one": "1", "two": "2", "both": "b"}
    assert not repository.fit_together(NAME, 1, 2)
    repository.remove_version(MODEL, 1)
    assert beside(repository) == {"two": "2", "both": "b"}
    repository.remove_version(MODEL, 2)
    assert not (repository.root / NAME).exists()


def test_a_version_whose_root_files_differ_is_not_published(repository: ModelRepository) -> None:
    publish_ready_made(repository, 1, same="a")
    with pytest.raises(TritonModelInvalid, match=r"labels/same: differs from that of version v1"):
        publish_ready_made(repository, 2, same="b")
    assert repository.versions(NAME) == [1]
    assert beside(repository) == {"same": "a"}
    publish_ready_made(repository, 1, same="b")  # replaced as a whole: an install that is repeated
    assert beside(repository) == {"same": "b"}


def test_its_code_and_configuration_are_its_own(repository: ModelRepository) -> None:
    publish_ready_made(repository, 3, model="x = 3")
    folder = repository.root / NAME / "3"
    assert (folder / "model.py").read_text(encoding="utf-8") == "x = 3"
    assert list((folder / "__pycache__").iterdir())
    assert served(repository) == [3]
    assert repository.manifest(NAME, 3)["ready_made"] == {}


@pytest.mark.parametrize("left", ["version", "root files"])
def test_what_a_crash_left_of_a_removal_can_be_removed(
    repository: ModelRepository, left: str
) -> None:
    publish_ready_made(repository, 1, one="1")
    if left == "version":  # the root files went first
        shutil.rmtree(repository.root / NAME / "labels")
    again = ModelRepository(repository.root)
    again.remove_version(MODEL, 1)
    assert not (again.root / NAME).exists()


def test_a_damaged_manifest_does_not_keep_a_version_from_being_removed(
    repository: ModelRepository,
) -> None:
    publish_ready_made(repository, 1, one="1")
    publish_ready_made(repository, 2, one="1")
    (repository.root / NAME / "1" / "manifest.json").write_text("{")
    again = ModelRepository(repository.root)
    again.remove_version(MODEL, 1)
    assert again.versions(NAME) == [2]
    assert beside(again) == {"one": "1"}
