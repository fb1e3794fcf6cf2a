"""Installing from end to end with the real converter, its failures, cancellation, crashes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from controlplane.db import open_db
from controlplane.errors import CurrentVersionProtected, ModelNotFound
from controlplane.events import EventBus
from controlplane.registry.conversion import CONVERTER
from controlplane.registry.install import Installer
from controlplane.registry.model import Model, NewModel, VersionStatus
from controlplane.registry.patience import HubLimits
from controlplane.registry.repository import ModelRepository
from controlplane.registry.store import ModelStore
from controlplane.settings import Settings
from tests.forking import fork_converters
from tests.hub import LocalHub, wait_until
from tests.webserver import WebServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from controlplane.registry.files import Progress

MODEL = "org/tiny"
NAME = "org--tiny"
QUICK = HubLimits(answer=1.0, resolve=5.0, attempts=3, first_pause=0.01, longest_pause=0.05)
FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w" * 100_000}


@dataclass
class Registry:
    """A data directory and a model repository, opened as a server does at its start."""

    home: Path
    converter: Sequence[str] = CONVERTER
    settings: Settings = field(default_factory=Settings)
    opened: list[Any] = field(default_factory=list)

    def start(self, **changed: Any) -> Installer:
        """Open everything anew, with recovery; what was open is left as a crash leaves it."""
        self.settings = Settings(
            data_dir=self.home / "data", model_repository=self.home / "repository", **changed
        )
        self.db = open_db(self.settings.database)
        self.store = ModelStore(self.db, EventBus())
        self.repository = ModelRepository(self.settings.model_repository)
        self.installer = Installer(
            self.store, self.repository, self.settings, converter=self.converter, limits=QUICK
        )
        self.installer.recover()
        self.opened.append((self.installer, self.db))
        return self.installer

    async def stop(self) -> None:
        for installer, db in self.opened:
            await installer.close()
            db.close()

    def register(self, model_id: str = MODEL, **fields: Any) -> Model:
        return self.store.register(NewModel(model_id=model_id, task_type="txt2embed", **fields))

    async def install(self, model_id: str = MODEL) -> Model:
        self.installer.request(model_id)
        return await self.installer.wait(model_id)

    @property
    def artefact(self) -> Path:
        return self.home / "repository" / NAME / "1"

    @property
    def download(self) -> Path:
        return self.home / "data" / "downloads" / NAME / "1"

    def leftovers(self) -> list[str]:
        """Files below the home that belong to no installed model; the cache may keep some."""
        files = [path for path in self.home.rglob("*") if path.is_file()]
        names = [str(path.relative_to(self.home)) for path in files]
        ours = ("data/modelmora.db", "data/cache/", "data/recovered.json")
        return sorted(name for name in names if not name.startswith(ours))

    def blobs(self) -> list[str]:
        """Files that the cache holds."""
        found = (self.home / "data" / "cache" / "blobs").rglob("*")
        return sorted(path.name for path in found if path.is_file())


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    opened = Registry(tmp_path / "home")
    opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        local.tokens.add("hf_secret")
        yield local


@pytest.fixture(scope="module")
def installed_home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a registry with the tiny model installed from its directory."""
    registry = Registry(tmp_path_factory.mktemp("installed"))

    async def install() -> None:
        registry.start()
        registry.register(source_url=tiny.as_uri())
        model = await registry.install()
        assert model.current.status is VersionStatus.READY, model.current.error_message
        await registry.stop()

    with pytest.MonkeyPatch.context() as patched:
        fork_converters(patched)
        asyncio.run(install())
    return registry.home


@pytest.fixture
async def installed(installed_home: Path, tmp_path: Path) -> AsyncIterator[Registry]:
    """A copy of that registry, started."""
    shutil.copytree(installed_home, tmp_path / "home")
    opened = Registry(tmp_path / "home")
    opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A directory that passes for a model until the converter looks into it."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return str(folder)


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        if condition():
            return
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def _others() -> None:
    """Other tests' processes, a Triton server for instance, are none of ours."""
    BEFORE.clear()
    BEFORE.update(process.pid for process in psutil.Process().children(recursive=True))


def converters() -> list[psutil.Process]:
    """Processes begun by the test that are still running."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.pid not in BEFORE and process.status() != psutil.STATUS_ZOMBIE
    ]


def script(code: str) -> list[str]:
    """A converter that misbehaves: this Python, with the options in sys.argv."""
    return [sys.executable, "-c", "import json, os, signal, sys, time\n" + code]


HANGS = script(
    "print(json.dumps({'event': 'progress', 'phase': 'load'}), flush=True)\ntime.sleep(600)"
)


# -- the good case -----------------------------------------------------------------------------


@pytest.mark.torch
async def test_a_model_id_becomes_a_published_artefact(
    registry: Registry, hub: LocalHub, tiny: Path
) -> None:
    commit = hub.add(MODEL, tiny)
    registry.register()
    assert registry.installer.request(MODEL).current.status is VersionStatus.DOWNLOADING
    seen: list[Progress] = []

    def watch() -> bool:
        progress = registry.installer.progress(NAME)
        if progress is not None and (not seen or seen[-1] != progress):
            seen.append(progress)
        return progress is None

    await until(watch, 150)  # a real converter, on a busy machine
    version = registry.store.version(MODEL)
    assert version.error_message is None
    assert version.status is VersionStatus.READY
    assert version.revision == commit
    assert version.artifact_uri == f"https://huggingface.co/{MODEL}/tree/{commit}"
    manifest = json.loads((registry.artefact / "manifest.json").read_text())
    assert version.artefact == manifest
    assert manifest["model_id"] == MODEL
    assert manifest["revision"] == commit
    assert manifest["source_checksum"] == version.checksum
    assert version.artefact_bytes == sum(entry["size"] for entry in manifest["files"])
    assert version.framework_version == manifest["converter"]["torch"]
    assert registry.store.servable(NAME).need_mb > 0
    phases = [progress.phase for progress in seen]
    assert phases == sorted(phases)  # downloading, then exporting
    assert {"load", "export", "verify"} <= {progress.step for progress in seen}
    assert list((registry.home / "repository" / ".staging").iterdir()) == []
    assert converters() == []


@pytest.mark.torch
async def test_installing_a_ready_version_again_changes_nothing(installed: Registry) -> None:
    before = installed.store.get(MODEL)
    assert installed.installer.request(MODEL) == before
    assert installed.installer.progress(MODEL) is None
    assert await installed.installer.wait(MODEL) == before


@pytest.mark.torch
async def test_uninstalling_removes_everything(installed: Registry) -> None:
    await installed.installer.uninstall(NAME)
    assert installed.leftovers() == []
    assert installed.blobs() == []
    with pytest.raises(ModelNotFound):
        installed.store.get(MODEL)
    with pytest.raises(ModelNotFound):
        await installed.installer.uninstall(MODEL)


@pytest.mark.torch
async def test_the_real_converter_s_refusal_becomes_the_error(
    registry: Registry, source: str
) -> None:
    registry.register(source_url=source)
    model = await registry.install()
    assert model.current.status is VersionStatus.FAILED
    assert model.current.error_message
    assert model.current.checksum is None
    assert not registry.artefact.exists()


@pytest.mark.torch
async def test_a_killed_converter_is_told_and_the_next_attempt_works(
    registry: Registry, tiny: Path
) -> None:
    registry.register(source_url=str(tiny))
    registry.installer.request(MODEL)
    await until(lambda: _step(registry) == "load")
    for process in converters():
        process.send_signal(signal.SIGKILL)
    model = await registry.installer.wait(MODEL)
    assert model.current.status is VersionStatus.FAILED
    assert "killed by SIGKILL" in (model.current.error_message or "")
    assert list((registry.home / "repository" / ".staging").iterdir()) == []
    assert (await registry.install()).current.status is VersionStatus.READY


def _step(registry: Registry, model_id: str = MODEL) -> str | None:
    progress = registry.installer.progress(model_id)
    return progress.step if progress else None


def arriving(home: Path, size: int) -> bool:
    """Whether so many bytes of a file are there that has not come whole.

    Not by the progress: it tells of one file at a time, and others may come after the one that
    stalls.
    """
    try:
        return any(part.stat().st_size == size for part in home.rglob("partial/*"))
    except FileNotFoundError:  # one that came whole just now
        return False


# -- converters that misbehave -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"killed by SIGKILL.*memory ran out"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"killed by SIGSEGV\."),
        ("sys.exit('out of ideas')", "ended with status 1 and no result: out of ideas"),
        ("print('hello'); print('[1'); print(5)", "ended with status 0 and no result"),
        ("print('x' * (65 << 20))", "wrote what is no message"),
        ('print(\'{"event": "result", "manifest": {}}\')', "manifest cannot be read"),
        ('print(\'{"event": "result", "manifest": {}}\'); sys.exit(3)', "ended with status 3"),
        (
            "print(json.dumps({'event': 'error', 'code': 'EXPORT_FAILED', 'message': 'Too odd.'}))"
            "; sys.exit(1)",
            "^Too odd.$",
        ),
        (
            "print(json.dumps({'event': 'result', 'manifest': {'backend': 'text_embedding',"
            " 'engine': 'onnxruntime', 'files': []}}))",
            r"no usable manifest\.json",
        ),
    ],
)
async def test_a_converter_that_misbehaves_publishes_nothing(
    tmp_path: Path, source: str, code: str, message: str
) -> None:
    registry = Registry(tmp_path / "home", script(code))
    registry.start()
    registry.register(source_url=source)
    version = (await registry.install()).current
    assert version.status is VersionStatus.FAILED
    assert re.search(message, version.error_message or "")
    assert not registry.artefact.exists()
    assert list((registry.home / "repository" / ".staging").iterdir()) == []
    await registry.stop()


async def test_a_converter_that_hangs_is_stopped_with_its_children(
    tmp_path: Path, source: str
) -> None:
    code = "import subprocess\nsubprocess.Popen(['sleep', '600'])\ntime.sleep(600)"
    registry = Registry(tmp_path / "home", script(code))
    registry.start(install_timeout=1.5)
    registry.register(source_url=source)
    version = (await registry.install()).current
    assert "longer than 1.5 s" in (version.error_message or "")
    assert "MODELMORA_INSTALL_TIMEOUT" in (version.error_message or "")
    await until(lambda: converters() == [])
    await registry.stop()


async def test_a_converter_gets_no_secret_and_no_network(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = (
        "known = {n: os.environ.get(n) for n in ('HF_TOKEN', 'HF_HUB_OFFLINE')}\n"
        "print(json.dumps({'event': 'error', 'message': json.dumps([known, sys.argv[1:]])}))"
    )
    registry = Registry(tmp_path / "home", script(code))
    registry.start(allow_pickle=True)
    registry.register(source_url=source, version="v1.0.0")
    message = (await registry.install()).current.error_message
    known, options = json.loads(message or "")
    assert known == {"HF_TOKEN": None, "HF_HUB_OFFLINE": "1"}
    given = dict(zip(options[:-1:2], options[1:-1:2], strict=True))
    assert given.pop("--output").startswith(str(registry.home / "repository" / ".staging"))
    assert given.pop("--source-checksum").startswith("sha256:")
    assert given == {
        "--task": "txt2embed",
        "--source": str(registry.download),
        "--model-id": MODEL,
        "--version": "v1.0.0",
    }
    assert options[-1] == "--allow-pickle"
    await registry.stop()


async def test_an_archive_on_the_web_is_installed_where_the_settings_allow_it(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_converters(monkeypatch)
    registry = Registry(tmp_path / "home")
    with WebServer(tmp_path) as web:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as writing:
            writing.add(tiny, "tiny")
        web.files["/tiny.tgz"] = archive.getvalue()
        registry.start()
        registry.register(source_url=f"{web.url}/tiny.tgz?token=secret")
        refused = (await registry.install()).current
        assert "MODELMORA_ALLOW_HTTP" in (refused.error_message or "")
        await registry.stop()
        registry.opened.clear()
        registry.start(allow_http=True, allow_private_sources=True)
        version = (await registry.install()).current
        assert version.status is VersionStatus.READY, version.error_message
        assert version.artifact_uri == f"{web.url}/tiny.tgz"
        await registry.stop()


# -- downloads that fail -----------------------------------------------------------------------


async def test_a_failed_download_is_told_and_can_be_repeated(
    registry: Registry, hub: LocalHub
) -> None:
    registry.register()
    version = (await registry.install()).current
    assert version.status is VersionStatus.FAILED
    assert "does not exist" in (version.error_message or "")
    hub.add(MODEL, FILES)
    hub.fail("model.safetensors", status=500, times=99)
    assert "HTTP 500" in ((await registry.install()).current.error_message or "")
    assert registry.leftovers() == []


async def test_a_download_has_the_time_limit_of_an_installation(
    tmp_path: Path, hub: LocalHub
) -> None:
    hub.add(MODEL, FILES)
    hub.stall("model.safetensors", times=9)
    registry = Registry(tmp_path / "home")
    registry.start(install_timeout=3)
    registry.register()
    version = (await registry.install()).current
    assert "The download took longer than 3 s" in (version.error_message or "")
    assert registry.leftovers() == []
    await registry.stop()


async def test_a_deleted_name_does_not_come_back_with_other_bytes(
    tmp_path: Path, hub: LocalHub
) -> None:
    registry = Registry(tmp_path / "home", HANGS)
    registry.start()
    registry.register()
    registry.store.pin(
        MODEL, "main", revision=None, checksum="sha256:" + "0" * 64, artifact_uri="file:///m"
    )
    await registry.installer.uninstall(MODEL)
    hub.add(MODEL, FILES)
    registry.register()
    message = (await registry.install()).current.error_message or ""
    assert "install a tag or a commit instead" in message
    await registry.stop()


@pytest.fixture
def small_repository(tmp_path: Path) -> Iterator[Path]:
    """The model repository on a file system of 32 MB, less than what is kept in reserve."""
    place = tmp_path / "home" / "repository"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk_fails_the_installation_with_figures(
    small_repository: Path, registry: Registry, source: str
) -> None:
    registry.register(source_url=source)
    version = (await registry.install()).current
    assert version.status is VersionStatus.FAILED
    assert "Not enough disk space" in (version.error_message or "")
    assert str(small_repository) in (version.error_message or "")


# -- several at once, and cancellation ---------------------------------------------------------


async def test_a_second_request_joins_the_first(registry: Registry, hub: LocalHub) -> None:
    hub.add(MODEL, FILES)
    hub.stall("config.json", times=9)
    registry.register()
    registry.installer.request(MODEL)
    assert registry.installer.request(NAME).current.status is VersionStatus.DOWNLOADING
    await until(hub.stalled.is_set)
    assert hub.asked("/api/models") == 1
    waiting = [asyncio.create_task(registry.installer.wait(MODEL)) for _ in range(2)]
    await registry.installer.uninstall(MODEL)
    for task in waiting:
        with pytest.raises(ModelNotFound):
            await task


async def test_removing_a_version_stops_its_installation_and_takes_its_files(
    registry: Registry, hub: LocalHub
) -> None:
    hub.tag(MODEL, "v2", hub.add(MODEL, FILES))
    registry.register()
    registry.store.add_version(MODEL, "v2")
    hub.stall("model.safetensors", after=1000)
    registry.installer.request(MODEL, "v2")
    await until(hub.stalled.is_set)
    assert registry.installer.progress(MODEL, "v2") is not None
    assert registry.installer.progress(MODEL, "main") is None
    await registry.installer.uninstall_version(MODEL, "v2")
    assert [version.version for version in registry.store.get(MODEL).versions] == ["main"]
    assert registry.leftovers() == []
    with pytest.raises(CurrentVersionProtected):
        await registry.installer.uninstall_version(MODEL, "main")


async def test_conversions_wait_for_one_another(tmp_path: Path, source: str) -> None:
    registry = Registry(tmp_path / "home", HANGS)
    registry.start()
    for name in ("a/x", "a/y", "a/z"):
        registry.register(name, source_url=source)
        registry.installer.request(name)
    names = ("a/x", "a/y", "a/z")
    await until(
        lambda: sorted(str(_step(registry, name)) for name in names) == ["load", "wait", "wait"]
    )
    first = next(name for name in names if _step(registry, name) == "load")
    await registry.installer.uninstall(first)
    await until(lambda: sum(_step(registry, n) == "load" for n in names) == 1)
    await registry.stop()
    assert converters() == []


@pytest.mark.parametrize("path", ["/api/models", "model.safetensors"])
async def test_uninstalling_stops_a_download(registry: Registry, hub: LocalHub, path: str) -> None:
    hub.add(MODEL, FILES)
    hub.stall(path, after=10, times=9)
    registry.register()
    registry.installer.request(MODEL)
    await until(hub.stalled.is_set)
    await registry.installer.uninstall(MODEL)
    assert registry.leftovers() == []
    assert registry.installer.progress(MODEL) is None


async def test_uninstalling_stops_a_conversion(tmp_path: Path, source: str) -> None:
    registry = Registry(tmp_path / "home", HANGS)
    registry.start()
    registry.register(source_url=source)
    registry.installer.request(MODEL)
    await until(lambda: _step(registry) == "load")
    assert len(converters()) == 1
    await asyncio.gather(
        registry.installer.uninstall(MODEL),
        registry.installer.uninstall(MODEL),
        return_exceptions=True,
    )
    assert converters() == []
    assert registry.leftovers() == []
    await registry.stop()


async def test_an_installation_cancelled_before_its_first_step_is_gone_too(
    registry: Registry, source: str
) -> None:
    registry.register(source_url=source)
    registry.installer.request(MODEL)
    await registry.installer.close()
    assert "server stopped" in (registry.store.version(MODEL).error_message or "")


async def test_stopping_the_server_leaves_versions_that_can_be_installed_again(
    tmp_path: Path, source: str
) -> None:
    registry = Registry(tmp_path / "home", HANGS)
    registry.start()
    registry.register(source_url=source)
    registry.installer.request(MODEL)
    await until(lambda: _step(registry) == "load")
    await registry.installer.close()
    version = registry.store.version(MODEL)
    assert version.status is VersionStatus.FAILED
    assert "server stopped" in (version.error_message or "")
    assert converters() == []
    assert list((registry.home / "repository" / ".staging").iterdir()) == []
    registry.start()
    registry.installer.request(MODEL)
    await until(lambda: _step(registry) == "load")
    await registry.stop()


async def test_a_name_is_free_again_at_once(tmp_path: Path, source: str) -> None:
    registry = Registry(tmp_path / "home", HANGS)
    registry.start()
    registry.register(source_url=source)
    registry.installer.request(MODEL)
    await until(lambda: _step(registry) == "load")
    removal = asyncio.create_task(registry.installer.uninstall(MODEL))
    await until(lambda: registry.store.list().total_items == 0)
    registry.register(source_url=source)
    registry.installer.request(MODEL)
    await removal
    await until(lambda: _step(registry) == "load")
    assert (registry.home / "data" / "downloads" / NAME / "2" / "config.json").exists()
    await registry.stop()


# -- crashes -----------------------------------------------------------------------------------

SERVER = """
import asyncio, sys
from pathlib import Path
from tests.integration.test_install import HANGS, MODEL, Registry, _step, until

async def main():
    registry = Registry(Path(sys.argv[1]), HANGS)
    registry.start()
    registry.register(source_url=sys.argv[2])
    registry.installer.request(MODEL)
    await until(lambda: _step(registry) == "load")
    print("converting", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def killed_home(tmp_path: Path, source: str) -> Path:
    """What a server leaves that is killed while it converts; its converter is gone with it."""
    home = tmp_path / "home"
    command = [sys.executable, "-c", SERVER, str(home), source]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as server:
        assert server.stdout is not None
        assert any(b"converting" in line for line in server.stdout)
        (converter,) = psutil.Process(server.pid).children()
        server.kill()
    wait_until(lambda: not converter.is_running() or converter.status() == psutil.STATUS_ZOMBIE)
    return home


async def test_a_killed_server_takes_its_converter_along_and_recovers(killed_home: Path) -> None:
    registry = Registry(killed_home)
    registry.start()
    version = registry.store.version(MODEL)
    assert version.status is VersionStatus.FAILED
    assert "interrupted by a restart" in (version.error_message or "")
    assert not list((killed_home / "repository" / ".staging").iterdir())
    await registry.stop()


@pytest.mark.torch
async def test_a_restart_changes_nothing_of_what_is_whole(installed: Registry) -> None:
    model, files = installed.store.get(MODEL), installed.leftovers()
    installed.start()
    assert installed.store.get(MODEL) == model
    assert installed.leftovers() == files


@pytest.mark.torch
@pytest.mark.parametrize("damage", ["folder", "file", "size", "config"])
async def test_an_artefact_that_is_gone_or_damaged_is_noticed(
    installed: Registry, damage: str
) -> None:
    if damage == "folder":
        shutil.rmtree(installed.artefact.parent)
    elif damage == "file":
        (installed.artefact / "tokenizer.json").unlink()
    elif damage == "size":
        os.truncate(installed.artefact / "tokenizer.json", 10)
    else:
        (installed.artefact / "config.pbtxt").write_text("nonsense {")
    installed.start()
    version = installed.store.version(MODEL)
    assert version.status is VersionStatus.FAILED
    assert "install again" in (version.error_message or "")
    assert not installed.artefact.exists()


@pytest.mark.torch
async def test_an_artefact_that_was_away_for_one_start_is_served_again(
    installed: Registry,
) -> None:
    home, away = installed.artefact.parent, installed.artefact.parent.parent.with_name("away")
    home.rename(away)  # a volume that is not mounted, or the wrong folder in the settings
    installed.start()
    assert installed.store.version(MODEL).status is VersionStatus.FAILED
    away.rename(home)
    installed.start()
    assert installed.store.version(MODEL).status is VersionStatus.READY
    assert installed.artefact.exists()


@pytest.mark.torch
async def test_reinstalling_uses_the_source_that_was_downloaded(
    installed: Registry, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_converters(monkeypatch)
    before = installed.store.version(MODEL)
    shutil.rmtree(installed.artefact)
    installed.db.execute("UPDATE model SET source_url = ?", [str(tmp_path / "gone")])
    installed.start()
    after = (await installed.install()).current
    assert after.status is VersionStatus.READY
    assert after.checksum == before.checksum
    assert after.artefact_checksum == before.artefact_checksum  # the same bytes again
    assert installed.repository.versions(NAME) == [1]


@pytest.mark.torch
@pytest.mark.parametrize("status", ["downloading", "exporting"])
async def test_a_crash_after_publishing_leaves_no_artefact_without_a_ready_row(
    installed: Registry, status: str
) -> None:
    installed.db.execute(
        "UPDATE model_version SET status = ?, artefact = NULL, artefact_checksum = NULL", [status]
    )
    installed.start()
    assert installed.store.version(MODEL).status is VersionStatus.FAILED
    assert not installed.artefact.exists()
    assert installed.download.exists()  # verified again before it is used


@pytest.mark.torch
async def test_a_crash_while_uninstalling_is_finished_at_the_next_start(
    installed: Registry,
) -> None:
    installed.store.delete(MODEL)
    assert installed.artefact.exists()
    installed.start()
    assert installed.leftovers() == []


@pytest.mark.torch
async def test_half_a_download_and_half_an_artefact_are_swept(installed: Registry) -> None:
    files = installed.leftovers()
    partial = installed.download.with_name("2.partial")
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    stranger = installed.home / "data" / "downloads" / "other--model" / "1"
    stranger.mkdir(parents=True)
    (installed.repository.new_staging() / "model.onnx").write_bytes(b"half")
    installed.start()
    assert installed.leftovers() == files
    assert not stranger.parent.exists()


@pytest.mark.torch
async def test_somebody_s_own_triton_model_is_left_alone(installed: Registry) -> None:
    own = installed.home / "repository" / "my--model" / "1"
    own.mkdir(parents=True)
    (own / "model.onnx").write_bytes(b"mine")
    (installed.home / "repository" / "simple" / "1").mkdir(parents=True)
    installed.start()
    assert (own / "model.onnx").exists()
    assert (installed.home / "repository" / "simple" / "1").exists()


def test_progress_can_be_shown(tmp_path: Path) -> None:
    from controlplane.registry.sources import Progress

    shown = msgspec.to_builtins(Progress(phase="downloading", step="x", message="m"))
    known = {"phase", "step", "message", "fraction", "bytes_done", "bytes_total"}
    assert set(shown) == known | {"rate"}
