"""The only writer of Triton's model repository.

    <root>/<org>--<repo>/config.pbtxt          of the version published last
    <root>/<org>--<repo>/<n>/manifest.json     and the artefact's files
    <root>/<org>--<repo>/<n>/model.py          imports the backend; compiled in __pycache__
    <root>/<org>--<repo>/<n>/config.pbtxt      of this version
    <root>/<org>--<repo>/<any other>           root files of ready-made models (`root_files.py`)
    <root>/.staging/                           work in progress, on the same file system

Whatever has a version folder's name is whole: folders are completed and synced in `.staging` and
renamed. Triton lists `.staging` in its index (as it does every folder) but never reads into it in
explicit mode; our client leaves it out.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from controlplane.errors import ExportFailed
from controlplane.registry import artefact_rules, model_py, root_files
from controlplane.registry.durable_files import delete, disk_errors, sync, sync_tree, take, write
from controlplane.triton import model_config, native_config
from controlplane.triton.ready_config import READY_MADE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from controlplane.registry.model import ModelId
    from controlplane.triton.native_config import Member

_log = structlog.get_logger(__name__)

STAGING = ".staging"
MANIFEST = "manifest.json"
CONFIG = "config.pbtxt"
_BACKEND = re.compile(r"[a-z][a-z0-9_]*")
_OTHERS_BACKEND = re.compile(r"[A-Za-z0-9_.-]+")  # only ever a word of config.pbtxt


class ModelRepository:
    """Triton's repository below `root`, one folder per model, one number per version."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._staging = self.root / STAGING
        self._manifests: dict[tuple[str, int], dict[str, Any]] = {}
        # Triton's own backends that run graphs for us; set when the server has told which it has.
        self.native_backends: tuple[str, ...] = ()

    def new_staging(self) -> Path:
        """A fresh empty folder on the repository's file system, for an artefact in the making."""
        self._staging.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._staging))

    def publish(self, model_id: ModelId, triton_version: int, artefact: Path) -> None:
        """Make an artefact a version that Triton can load; all or nothing.

        A version folder of that number is replaced. `artefact` is used up (moved) when this
        returns, untouched or gone when it raises.

        Args:
            artefact: folder with manifest.json and the files that it lists; that of a ready-made
                model has its own config.pbtxt and code too.

        Raises:
            ExportFailed: the manifest or a listed file is missing or not what it says.
            PluginUnavailable: the backend that it names is not installed.
            TritonModelInvalid: its root files differ from those of another version.
            InsufficientDisk: no room.
            OSError: the repository cannot be written.
        """
        manifest = _checked_manifest(artefact)
        name = model_id.triton_name
        ready_made = READY_MADE in manifest
        self.check_root_files(model_id, triton_version, manifest)
        config = _config(name, triton_version, manifest, artefact)
        size_mb = sum(entry["size"] for entry in manifest["files"]) / 2**20
        with disk_errors(self.root, size_mb), self._scratch() as scratch:
            version = take(artefact, scratch / str(triton_version))
            if not ready_made:
                write(version / "model.py", model_py.text(manifest["backend"]))
            model_py.precompile_all(version)
            write(version / CONFIG, model_config.to_pbtxt(config))
            sync_tree(version)
            self._install(name, version, scratch)
            home = self.root / name
            root_files.place(home, home / version.name, root_files.paths(manifest))
            self._write_config(name, model_config.to_pbtxt(config))
        self._manifests.pop((name, triton_version), None)

    def _install(self, name: str, version: Path, scratch: Path) -> None:
        home = self.root / name
        home.mkdir(parents=True, exist_ok=True)
        sync(self.root)
        target = home / version.name
        if target.exists():  # published by an install that did not get as far as the registry
            target.rename(scratch / "replaced")
        version.rename(target)
        sync(home)

    def _write_config(self, name: str, text: str) -> None:
        home = self.root / name
        fresh = self.new_staging() / CONFIG
        write(fresh, text)
        fresh.replace(home / CONFIG)
        fresh.parent.rmdir()
        sync(home)

    def remove(self, model_id: ModelId) -> None:
        """Remove a model with all its versions; no error when there is none."""
        name = model_id.triton_name
        self._forget(name)
        with self._scratch() as scratch, contextlib.suppress(FileNotFoundError):
            # Renamed first: a half-deleted folder must not look like a model.
            (self.root / name).rename(scratch / name)
            sync(self.root)

    def remove_version(self, model_id: ModelId, triton_version: int) -> None:
        """Remove one version, with the model's folder when it was the last; no error if absent."""
        name = model_id.triton_name
        self._remove_root_files(name, triton_version)
        self._manifests.pop((name, triton_version), None)
        with self._scratch() as scratch, contextlib.suppress(FileNotFoundError):
            (self.root / name / str(triton_version)).rename(scratch / str(triton_version))
        self._repair(name)

    def check_root_files(self, model_id: ModelId, number: int, manifest: Mapping[str, Any]) -> None:
        """Whether a version's root files may lie beside those of the model's other versions.

        Raises:
            TritonModelInvalid: naming a file that differs.
        """
        name = model_id.triton_name
        others = [n for n in self._with_manifest(name) if n != number and self._root_files(name, n)]
        known = [self.manifest(name, other) for other in others]
        root_files.check_agreement(str(manifest.get("model_id")), manifest, known)

    def _remove_root_files(self, name: str, number: int) -> None:
        """Those of a version that goes; before its folder, or nobody would know them again."""
        there = self._with_manifest(name)
        if number in there:
            known = {n: set(self._root_files(name, n)) for n in there}
            mine = known.pop(number).difference(*known.values())
            root_files.take_away(self.root / name, mine)

    def _root_files(self, name: str, number: int) -> list[str]:
        try:
            return root_files.paths(self.manifest(name, number))
        except (OSError, ValueError, KeyError, TypeError):  # damaged: it must be removable
            return []

    def _with_manifest(self, name: str) -> list[int]:
        home = self.root / name
        return [n for n in self.versions(name) if (home / str(n) / MANIFEST).is_file()]

    def versions(self, triton_name: str) -> list[int]:
        """Numbers of the version folders, ascending."""
        try:
            names = os.listdir(f"{self.root}/{triton_name}")  # noqa: PTH208 asked per model at start
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if name.isdecimal())

    def load_config(self, triton_name: str, triton_version: int, *beside: int) -> str:
        """The JSON for the `config` parameter of a load that serves only this version.

        Args:
            beside: versions that are to be served as well, with this version's configuration.

        Raises:
            FileNotFoundError: no such version.
            ValueError: its config.pbtxt is damaged.
        """
        config = self._read_config(triton_name, triton_version)
        return model_config.load_json(config, triton_version, *beside)

    def fit_together(self, triton_name: str, one: int, other: int) -> bool:
        """True when two versions can be served at a time: Triton has one configuration for both.

        Raises:
            FileNotFoundError, ValueError: as `load_config`.
        """
        first, second = (self._root_files(triton_name, n) for n in (one, other))
        return first == second and model_config.equal_but_for_versions(
            self._read_config(triton_name, one), self._read_config(triton_name, other)
        )

    def _read_config(self, triton_name: str, triton_version: int) -> Any:
        path = self.root / triton_name / str(triton_version) / CONFIG
        config = model_config.read_pbtxt(path.read_text(encoding="utf-8"))
        if native := self._native_backend(triton_name, triton_version):
            config.parameters[native_config.PARAMETER].string_value = native
        return config

    def native_member(self, triton_name: str, triton_version: int) -> Member | None:
        """The member that runs a version's graph; None where its own process does.

        Raises:
            FileNotFoundError: no such version.
        """
        backend = self._native_backend(triton_name, triton_version)
        if backend is None:
            return None
        manifest = self.manifest(triton_name, triton_version)
        return native_config.member(triton_name, triton_version, manifest, backend)

    def _native_backend(self, triton_name: str, triton_version: int) -> str | None:
        if not self.native_backends:
            return None
        manifest = self.manifest(triton_name, triton_version)
        return native_config.choose(manifest, self.native_backends)

    def manifest(self, triton_name: str, triton_version: int) -> dict[str, Any]:
        """The version's manifest, read once.

        Raises:
            FileNotFoundError: no such version.
        """
        key = (triton_name, triton_version)
        if key not in self._manifests:
            path = self.root / triton_name / str(triton_version) / MANIFEST
            self._manifests[key] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        return self._manifests[key]

    def changed_since(self, moment: int, triton_name: str, triton_version: int) -> bool:
        """Whether a version's folder, or what describes it, was touched; `moment` in ns (Unix).

        Raises:
            OSError: it is not there, or not whole.
        """
        home = f"{self.root}/{triton_name}"
        folder = f"{home}/{triton_version}"
        places = (home, folder, f"{folder}/{MANIFEST}", f"{folder}/{CONFIG}")
        return any(os.stat(place).st_mtime_ns >= moment for place in places)  # noqa: PTH116

    def sweep(self, unchanged_since: int = 0) -> None:
        """Put right what a crash left: staged work, models without versions, stale configs.

        To be called at start, before anything else writes here. Folders that are not ours (whose
        name is no `org--repo`) are left alone.

        Args:
            unchanged_since: models that were not touched after this moment, in ns (Unix), were
                looked at before: parsing thousands of configurations takes seconds.
        """
        if self._staging.is_dir():
            for leftover in self._staging.iterdir():
                _log.info("removing unfinished work", path=str(leftover))
                delete(leftover)
        for name, touched in self.homes().items():
            if touched >= unchanged_since:
                self._repair(name)

    def homes(self) -> dict[str, int]:
        """Folders with names like a model's, and when they were last touched, in ns (Unix)."""
        if not self.root.is_dir():
            return {}
        # Not Path objects: there may be ten thousand.
        with os.scandir(self.root) as entries:
            return {
                entry.name: entry.stat().st_mtime_ns
                for entry in entries
                if "--" in entry.name and entry.is_dir()
            }

    def _repair(self, name: str) -> None:
        """Bring the model's folder in line with its version folders."""
        home = self.root / name
        versions = self.versions(name)
        if not versions:
            if home.is_dir() and {path.name for path in home.iterdir()} <= {CONFIG}:
                delete(home)
        elif (home / str(versions[-1]) / MANIFEST).exists() and not self._config_fits(name):
            text = (home / str(versions[-1]) / CONFIG).read_text(encoding="utf-8")
            self._write_config(name, text)

    def _config_fits(self, name: str) -> bool:
        try:
            text = (self.root / name / CONFIG).read_text(encoding="utf-8")
            served = model_config.served_versions(model_config.read_pbtxt(text))
        except (FileNotFoundError, ValueError):
            return False
        return bool(served) and set(served) <= set(self.versions(name))

    def _forget(self, name: str) -> None:
        for key in [key for key in self._manifests if key[0] == name]:
            del self._manifests[key]

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = self.new_staging()
        try:
            yield folder
        finally:
            delete(folder)


def _checked_manifest(artefact: Path) -> dict[str, Any]:
    try:
        manifest = msgspec.json.decode((artefact / MANIFEST).read_bytes(), type=dict[str, Any])
        backend = manifest["backend"]
        sizes = {str(entry["path"]): int(entry["size"]) for entry in manifest["files"]}
    except (OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise ExportFailed(f"The artefact has no usable {MANIFEST}: {error!r}") from error
    # It becomes part of a line of Python that Triton runs.
    named = _OTHERS_BACKEND if READY_MADE in manifest else _BACKEND
    if not isinstance(backend, str) or not named.fullmatch(backend):
        raise ExportFailed(f"The artefact names no backend: {backend!r}")
    for name, size in sizes.items():
        path = artefact / name
        if ".." in path.parts or path.is_symlink() or not path.is_relative_to(artefact):
            raise ExportFailed(f"The artefact's file {name} is not inside the artefact.")
        if not path.is_file() or path.stat().st_size != size:
            raise ExportFailed(f"The artefact's file {name} is missing or not {size} bytes long.")
    return manifest


def _config(name: str, triton_version: int, manifest: dict[str, Any], artefact: Path) -> Any:
    try:
        if READY_MADE in manifest:
            return model_config.read_pbtxt((artefact / CONFIG).read_text(encoding="utf-8"))
        artefact_rules.check(manifest)
        return model_config.build_model_config(name, triton_version, manifest)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ExportFailed(f"The artefact's tensors cannot be configured: {error!r}") from error
