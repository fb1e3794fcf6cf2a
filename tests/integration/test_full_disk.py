"""A disk that fills up while a download runs, for the sources of the network; a real small disk."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.errors import InsufficientDisk
from controlplane.registry.sources import FetchedSource, SourceRules
from tests.integration.test_sources_s3 import Fetcher as S3Fetcher
from tests.integration.test_sources_s3 import endpoint, put, s3
from tests.integration.test_sources_web import Fetcher, tar
from tests.webserver import WebServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from controlplane.registry.sources import Progress

__all__ = ["endpoint", "put", "s3"]

_MB = 2**20
WEIGHTS = os.urandom(8 * _MB)
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": WEIGHTS,
}
ARCHIVE = tar(FILES, "w:")


class SmallDisk:
    """A file system of 88 MB, on which the 64 MB in reserve leave room for these files twice."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._others = place / "others"
        self.filled = False

    def fill_at(self, step: str) -> Callable[[Progress], None]:
        """Somebody else takes all the room as soon as bytes of that file have come."""

        def told(progress: Progress) -> None:
            if progress.step == step and progress.bytes_done and not self.filled:
                self.filled = True
                with self._others.open("wb") as others:
                    free = os.statvfs(self.place).f_bavail * os.statvfs(self.place).f_frsize
                    others.write(b"x" * free)

        return told

    def make_room(self) -> None:
        self._others.unlink()

    def partials(self) -> list[Path]:
        """Files on their way in, without the notes beside them."""
        found = (self.place / "cache" / "partial").glob("*")
        return [path for path in found if path.suffix != ".json"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=88m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    yield SmallDisk(place)
    subprocess.run(["umount", str(place)], check=True)


def fails_and_then_works(
    disk: SmallDisk, fetch: Callable[..., FetchedSource], source: str, step: str
) -> None:
    with pytest.raises(InsufficientDisk, match=str(disk.place)) as told:
        fetch(source, progress=disk.fill_at(step))
    assert disk.filled
    assert "MB needed" in told.value.message
    # an archive that had come whole is kept: the next attempt needs only unpack it
    kept = [path.read_bytes() for path in disk.partials()]
    assert kept == ([ARCHIVE] if step != "m.tar" and source.endswith("m.tar") else [])
    assert list((disk.place / "downloads/org--name").iterdir()) == []
    disk.make_room()
    fetch(source)
    assert (disk.place / "downloads/org--name/1/model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("step", ["m.tar", "model.safetensors"], ids=["archive", "unpacking"])
def test_an_archive_from_the_web(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    rules = SourceRules(allow_private=True)
    fetcher = Fetcher(disk.place)

    def fetch(source: str, **others: Any) -> FetchedSource:
        return fetcher(source, rules=rules, **others)

    with WebServer(tmp_path, tls=True) as web:
        monkeypatch.setenv("SSL_CERT_FILE", str(web.certificate))
        web.files["/m.tar"] = ARCHIVE
        fails_and_then_works(disk, fetch, f"{web.url}/m.tar", step)


def test_a_folder_of_s3(disk: SmallDisk, put: Any) -> None:
    put({f"m/{name}": content for name, content in FILES.items()})
    fails_and_then_works(disk, S3Fetcher(disk.place), "s3://models/m", "model.safetensors")


@pytest.mark.parametrize("step", ["m.tar", "model.safetensors"], ids=["archive", "unpacking"])
def test_an_archive_of_s3(disk: SmallDisk, put: Any, step: str) -> None:
    put({"m.tar": ARCHIVE})
    fails_and_then_works(disk, S3Fetcher(disk.place), "s3://models/m.tar", step)
