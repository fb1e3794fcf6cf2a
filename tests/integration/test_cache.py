"""The cache of received files: shared, verified, pruned; and downloads that a kill -9 broke off."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from controlplane.registry.blobs import BlobCache
from controlplane.registry.model import ModelId
from controlplane.registry.sources import FetchedSource, HubLimits, SourceRules, fetch
from tests.hub import LocalHub, wait_until
from tests.webserver import Fault, WebServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS = os.urandom(600_000)
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": WEIGHTS,
}
QUICK = HubLimits(answer=2.0, resolve=10.0, attempts=2, first_pause=0.01, longest_pause=0.05)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Home:
    """A data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.downloads = root / "downloads"
        self.cache = BlobCache(root / "cache", self.downloads)

    def fetch(
        self,
        number: int = 1,
        *,
        name: str = "org/name",
        version: str = "main",
        source: str | None = None,
    ) -> FetchedSource:
        model_id = ModelId.parse(name)
        return fetch(
            model_id,
            version,
            source,
            self.folder(number, name),
            cache=self.cache,
            rules=SourceRules(allow_http=True, allow_private=True),
            progress=lambda progress: None,
            cancelled=threading.Event(),
            limits=QUICK,
        )

    def folder(self, number: int = 1, name: str = "org/name") -> Path:
        return self.downloads / name.replace("/", "--") / str(number)

    def blob(self, content: bytes) -> Path:
        digest = sha256(content)
        return self.root / "cache" / "blobs" / "sha256" / digest[:2] / digest

    def blobs(self) -> set[str]:
        return {path.name for path in (self.root / "cache" / "blobs").rglob("*") if path.is_file()}

    def partials(self) -> list[Path]:
        found = (self.root / "cache" / "partial").glob("*")
        return sorted(path for path in found if path.suffix != ".json")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "data")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield local


def test_a_second_version_downloads_only_what_changed(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES, branch="v1")
    hub.add("org/name", FILES | {"config.json": b'{"model_type": "bert", "x": 1}'}, branch="v2")
    home.fetch(1, version="v1")
    assert hub.asked("model.safetensors") == 1
    home.fetch(2, version="v2")
    assert hub.asked("model.safetensors") == 1
    both = [home.folder(n) / "model.safetensors" for n in (1, 2)]
    assert len({path.stat().st_ino for path in both}) == 1
    assert both[0].stat().st_mode & 0o777 == 0o444
    content = home.cache.content()
    assert content.blobs[0].users == ("org--name/1", "org--name/2")
    assert content.saved_bytes == len(WEIGHTS) + len(FILES["tokenizer.json"])


def test_sources_of_every_kind_share(hub: LocalHub, home: Home, tmp_path: Path) -> None:
    hub.add("org/name", FILES)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    home.fetch(1)
    home.fetch(2, source=str(folder))
    assert len(home.blobs()) == 3
    assert home.blob(WEIGHTS).stat().st_nlink == 3
    (folder / "config.json").write_bytes(b"edited")  # the user's own file is no link
    assert (home.folder(2) / "config.json").read_bytes() == FILES["config.json"]


def test_a_damaged_blob_is_not_shared_but_downloaded_again(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES, branch="v1")
    hub.add("org/name", FILES | {"config.json": b"{}"}, branch="v2")
    home.fetch(1, version="v1")
    edited = home.folder(1) / "model.safetensors"
    edited.chmod(0o644)
    with edited.open("r+b") as handle:
        handle.write(b"edited in place")
    home.fetch(2, version="v2")
    assert (home.folder(2) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.asked("model.safetensors") == 2


def test_verify_names_what_is_damaged_and_who_has_it(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES)
    home.fetch()
    assert home.cache.verify().damaged == ()
    blob = home.blob(WEIGHTS)
    blob.chmod(0o644)
    with blob.open("r+b") as handle:
        handle.write(b"x" * 100)
    found = home.cache.verify()
    assert (found.blobs, found.bytes) == (3, sum(map(len, FILES.values())))
    assert [(b.sha256, b.users) for b in found.damaged] == [(sha256(WEIGHTS), ("org--name/1",))]
    assert home.cache.verify().damaged == ()
    assert home.fetch() == home.fetch()
    assert (home.folder() / "model.safetensors").read_bytes() == WEIGHTS


def test_prune_takes_only_what_nobody_has(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES)
    hub.add("org/other", FILES | {"config.json": b"{}", "model.safetensors": WEIGHTS[::-1]})
    home.fetch()
    home.fetch(name="org/other")
    assert home.cache.prune().blobs == 0
    for path in home.folder(name="org/other").iterdir():
        path.unlink()
    would = home.cache.prune(dry_run=True)
    assert (would.blobs, would.freed_bytes) == (2, len(WEIGHTS) + 2)
    assert len(home.blobs()) == 5
    assert home.cache.prune().freed_bytes == would.freed_bytes
    assert home.blobs() == {sha256(content) for content in FILES.values()}
    assert home.cache.prune().blobs == 0


def test_removing_a_model_takes_what_only_it_had(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES)
    hub.add("org/other", FILES | {"config.json": b"{}"})
    home.fetch()
    home.fetch(name="org/other")
    home.cache.remove_download(home.folder(name="org/other").parent, "org/other")
    assert not home.folder(name="org/other").exists()
    assert home.blobs() == {sha256(content) for content in FILES.values()}
    home.cache.remove_download(home.folder().parent, "org/name")
    assert home.blobs() == set()


def test_where_links_are_impossible_there_are_copies(
    hub: LocalHub, home: Home, tmp_path: Path
) -> None:
    """A file has at most 65,000 links on ext4; here the cache is on another file system."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(elsewhere)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    try:
        home.root.mkdir()
        (home.root / "cache").symlink_to(elsewhere)
        hub.add("org/name", FILES)
        home.fetch()
        assert (home.folder() / "model.safetensors").read_bytes() == WEIGHTS
        assert home.blob(WEIGHTS).stat().st_nlink == 1
        assert home.cache.prune().blobs == 0  # the records say that they are used
        home.fetch(2)
        assert hub.asked("model.safetensors") == 1
    finally:
        subprocess.run(["umount", str(elsewhere)], check=True)


def test_two_versions_at_once_download_a_file_once(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES, branch="v1")
    hub.add("org/name", FILES | {"config.json": b"{}"}, branch="v2")
    with ThreadPoolExecutor() as threads:
        both = [threads.submit(home.fetch, n, version=f"v{n}") for n in (1, 2)]
        assert {future.result().files[-1].path for future in both} == {"tokenizer.json"}
    assert len(home.blobs()) == 4
    assert home.partials() == []


# -- kill -9 ----------------------------------------------------------------------------------

CHILD = """
import sys, threading, pathlib
from controlplane.registry.blobs import BlobCache
from controlplane.registry.model import ModelId
from controlplane.registry.sources import SourceRules, fetch
root = pathlib.Path(sys.argv[1])
fetch(ModelId("org", "name"), "main", sys.argv[2] or None, root / "downloads/org--name/1",
      cache=BlobCache(root / "cache", root / "downloads"),
      rules=SourceRules(allow_http=True, allow_private=True),
      progress=lambda progress: None, cancelled=threading.Event())
"""


def killed_when_it_has(home: Home, count: int, source: str = "") -> None:
    """A fetch in a process of its own, killed when so many bytes of its largest file are there."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(home.root), source])
    try:
        wait_until(lambda: any(p.stat().st_size == count for p in home.partials() if p.exists()))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def test_a_killed_download_from_the_hub_goes_on(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES)
    hub.stall("model.safetensors", after=250_000)
    killed_when_it_has(home, 250_000)
    home.fetch()
    asked = [
        headers.get("range")
        for _, path, headers in hub.requests
        if "/resolve/" in path and path.endswith("model.safetensors")
    ]
    assert asked == [None, "bytes=250000-"]
    assert hub.asked("tokenizer.json") == 1
    assert (home.folder() / "model.safetensors").read_bytes() == WEIGHTS
    assert home.partials() == []


def test_a_killed_download_from_the_web_fetches_no_byte_twice(home: Home, tmp_path: Path) -> None:
    from tests.integration.test_sources_web import tar

    with WebServer(tmp_path) as web:
        content = web.files["/m.tgz"] = tar(FILES)
        web.faults["/m.tgz"] = [Fault("stall", after=250_000)]
        killed_when_it_has(home, 250_000, f"{web.url}/m.tgz")
        home.fetch(source=f"{web.url}/m.tgz")
        assert web.sent == len(content)
        web.released.set()


def test_what_a_crash_damaged_of_a_partial_is_downloaded_again(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES)
    hub.stall("model.safetensors", after=250_000)
    killed_when_it_has(home, 250_000)
    [partial] = home.partials()
    with partial.open("r+b") as handle:  # blocks that a power cut left unwritten
        handle.write(bytes(1000))
    home.fetch()
    assert (home.folder() / "model.safetensors").read_bytes() == WEIGHTS


def test_partials_are_pruned(hub: LocalHub, home: Home) -> None:
    hub.add("org/name", FILES)
    hub.stall("model.safetensors", after=250_000)
    killed_when_it_has(home, 250_000)
    assert home.cache.content().partial_bytes == 250_000
    assert home.cache.prune(dry_run=True).partials == 1
    pruned = home.cache.prune()
    assert (pruned.partials, pruned.freed_bytes) >= (1, 250_000)
    assert list((home.root / "cache" / "partial").iterdir()) == []
