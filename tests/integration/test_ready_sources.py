"""Ready-made Triton models from folders, archives and S3: same files, same checksum."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.errors import ArtifactNotAccessible, SourceRefused, TritonModelInvalid
from controlplane.registry.blobs import BlobCache
from controlplane.registry.model import ModelId
from controlplane.registry.sources import FetchedSource, HubLimits, SourceRules, fetch
from tests import ready_folders
from tests.webserver import WebServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = HubLimits(answer=5.0, resolve=10.0, attempts=3, first_pause=0.01, longest_pause=0.05)
OPEN = SourceRules(allow_http=True, allow_private=True, allow_remote_ready=True)
TAKEN = ["1/helper.py", "1/model.py", "config.pbtxt", "labels/names.txt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ready_folders.labelled(tmp_path / "model")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with WebServer(tmp_path) as server:
        yield server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket `models` of a real S3 server; `put(files)` fills it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="models")
    yield lambda files: [
        client.put_object(Bucket="models", Key=name, Body=content)
        for name, content in files.items()
    ]
    # moto keeps buckets for the whole process, whatever server they were made through
    for item in client.list_objects_v2(Bucket="models").get("Contents", ()):
        client.delete_object(Bucket="models", Key=item["Key"])
    client.delete_bucket(Bucket="models")
    client.close()
    server.stop()


def contents(folder: Path, prefix: str = "") -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def tar(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def fetched(
    home: Path, source: str, rules: SourceRules = OPEN, version: str = "v"
) -> FetchedSource:
    return fetch(
        ModelId("org", "name"),
        version,
        source,
        home / "downloads" / "org--name" / "1",
        cache=BlobCache(home / "cache", home / "downloads"),
        rules=rules,
        limits=QUICK,
        progress=lambda _: None,
        cancelled=threading.Event(),
    )


@pytest.mark.parametrize("prefix", ["", "model/"])
@pytest.mark.parametrize("kind", ["m.tar.gz", "m.zip"])
def test_an_archive_gives_what_its_folder_gives(
    web: WebServer, folder: Path, tmp_path: Path, kind: str, prefix: str
) -> None:
    files = contents(folder, prefix) | {f"{prefix}1/__pycache__/model.pyc": b"stale"}
    web.files[f"/{kind}"] = zipped(files) if kind.endswith("zip") else tar(files)
    remote = fetched(tmp_path / "remote", f"{web.url}/{kind}")
    assert [file.path for file in remote.files] == TAKEN
    local = fetched(tmp_path / "local", folder.as_uri(), SourceRules())
    assert local.checksum == remote.checksum


def test_an_archive_may_have_an_entry_for_its_own_folder(
    web: WebServer, folder: Path, tmp_path: Path
) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(folder, arcname=".")  # as `tar -C folder -cf m.tar .` does
    web.files["/m.tar"] = content.getvalue()
    remote = fetched(tmp_path / "remote", f"{web.url}/m.tar")
    assert [file.path for file in remote.files] == TAKEN


def test_a_prefix_of_a_bucket_gives_what_its_folder_gives(
    bucket: Any, folder: Path, tmp_path: Path
) -> None:
    (folder / "2").mkdir()
    (folder / "2" / "model.py").write_text("")
    bucket(contents(folder, "some/where/"))
    remote = fetched(tmp_path / "remote", "s3://models/some/where", version="1")
    assert [file.path for file in remote.files] == TAKEN
    local = fetched(tmp_path / "local", folder.as_uri(), SourceRules(), version="1")
    assert local.checksum == remote.checksum
    newest = fetched(tmp_path / "newest", "s3://models/some/where")
    assert [file.path for file in newest.files] == [
        "2/model.py",
        "config.pbtxt",
        "labels/names.txt",
    ]


def test_remote_ones_are_refused_unless_the_operator_trusts_them(
    web: WebServer, bucket: Any, folder: Path, tmp_path: Path
) -> None:
    web.files["/m.zip"] = zipped(contents(folder))
    bucket(contents(folder, "m/"))
    rules = SourceRules(allow_http=True, allow_private=True)
    for source in (f"{web.url}/m.zip", "s3://models/m"):
        with pytest.raises(SourceRefused, match="MODELMORA_ALLOW_REMOTE_READY_MODELS"):
            fetched(tmp_path / "data", source, rules)
    assert not (tmp_path / "data" / "downloads" / "org--name" / "1").exists()


def test_a_wrong_one_is_told_from_wherever_it_comes(
    web: WebServer, bucket: Any, folder: Path, tmp_path: Path
) -> None:
    (folder / "config.pbtxt").write_text("max_batch_size: -3")
    web.files["/m.zip"] = zipped(contents(folder))
    bucket(contents(folder, "m/"))
    for source in (f"{web.url}/m.zip", "s3://models/m", folder.as_uri()):
        with pytest.raises(TritonModelInvalid, match="max_batch_size: must be 0"):
            fetched(tmp_path / "data", source)


@pytest.mark.parametrize("name", ["1/secret", "secret", "1/sub/secret"])
def test_links_out_of_a_folder_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "1" / "sub").mkdir()
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactNotAccessible, match="a link that leaves the directory"):
        fetched(tmp_path / "data", folder.as_uri(), SourceRules())


def test_links_within_a_folder_are_files(folder: Path, tmp_path: Path) -> None:
    (folder / "1" / "weights.bin").symlink_to("../labels/names.txt")
    source = fetched(tmp_path / "data", folder.as_uri(), SourceRules())
    assert "1/weights.bin" in {file.path for file in source.files}
    taken = tmp_path / "data" / "downloads" / "org--name" / "1" / "1" / "weights.bin"
    assert not taken.is_symlink()
    assert taken.read_text() == "cat\ndog\n"


def test_what_is_no_file_is_refused(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "1" / "pipe")
    with pytest.raises(ArtifactNotAccessible, match="not a regular file"):
        fetched(tmp_path / "data", folder.as_uri(), SourceRules())
