"""S3 sources, from a real S3 server on loopback."""

from __future__ import annotations

import io
import json
import os
import threading
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.errors import ArtifactNotAccessible, ChecksumMismatch, DownloadFailed
from controlplane.registry.blobs import BlobCache
from controlplane.registry.model import ModelId
from controlplane.registry.sources import FetchedSource, HubLimits, Progress, SourceRules, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WEIGHTS = os.urandom(600_000)
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": WEIGHTS,
}
QUICK = HubLimits(answer=5.0, resolve=10.0, attempts=3, first_pause=0.01, longest_pause=0.05)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client, and the environment that a server would have."""
    import boto3

    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "verysecret",
        "AWS_REGION": "eu-central-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="models")
    yield client
    for item in client.list_objects_v2(Bucket="models").get("Contents", ()):
        client.delete_object(Bucket="models", Key=item["Key"])
    client.delete_bucket(Bucket="models")
    client.close()


@pytest.fixture
def put(s3: Any) -> Callable[[dict[str, bytes]], None]:
    def upload(files: dict[str, bytes]) -> None:
        for name, content in files.items():
            s3.put_object(Bucket="models", Key=name, Body=content)

    return upload


class Fetcher:
    def __init__(self, home: Path) -> None:
        self.destination = home / "downloads" / "org--name" / "1"
        self.cache = BlobCache(home / "cache", home / "downloads")
        self.cancelled = threading.Event()
        self.told: list[Progress] = []

    def __call__(self, source: str, **others: Any) -> FetchedSource:
        settings = {"rules": SourceRules(), "limits": QUICK, "progress": self.told.append}
        return fetch(
            ModelId("org", "name"),
            "main",
            source,
            self.destination,
            cache=self.cache,
            cancelled=self.cancelled,
            **(settings | others),
        )


@pytest.fixture
def fetched(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "data")


@pytest.mark.parametrize("prefix", ["", "teams/a b/minilm/"])
def test_a_prefix_is_a_model(put: Any, fetched: Fetcher, prefix: str) -> None:
    modules = json.dumps([{"path": ""}, {"path": "1_Pooling"}]).encode()
    needed = FILES | {"modules.json": modules, "1_Pooling/config.json": b"{}"}
    files = needed | {"onnx/model.onnx": b"o", "train.py": b"import os"}
    put({prefix + name: content for name, content in files.items()})
    put({"teams/a b/minilm-2/config.json": b"other"} if prefix else {})
    source = fetched(f"s3://models/{prefix.replace(' ', '%20')}")
    assert {file.path for file in source.files} == set(needed)
    assert (fetched.destination / "model.safetensors").read_bytes() == WEIGHTS
    assert source.artifact_uri.startswith("s3://models")


def test_an_archive_is_a_model(put: Any, fetched: Fetcher) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    put({"m.zip": content.getvalue()})
    assert {file.path for file in fetched("s3://models/m.zip").files} == set(FILES)
    with pytest.raises(ArtifactNotAccessible, match=r"n\.zip does not exist"):
        fetched("s3://models/n.zip")


def test_what_is_not_there_is_told(put: Any, fetched: Fetcher) -> None:
    with pytest.raises(ArtifactNotAccessible, match="no bucket 'elsewhere'"):
        fetched("s3://elsewhere/m")
    with pytest.raises(ArtifactNotAccessible, match="nothing at"):
        fetched("s3://models/m")
    put({"m/config.json": b"{}"})
    with pytest.raises(ArtifactNotAccessible, match="no weights"):
        fetched("s3://models/m")


def test_an_object_that_changes_meanwhile_is_not_mixed(put: Any, fetched: Fetcher) -> None:
    put({f"m/{name}": content for name, content in FILES.items()})

    def change(progress: Progress) -> None:
        if progress.step == "config.json":
            put({"m/model.safetensors": WEIGHTS[::-1]})

    small = FILES | {"model.safetensors": os.urandom(2_000_000)}
    put({f"m/{name}": content for name, content in small.items()})
    with pytest.raises(DownloadFailed, match="changed while"):
        fetched("s3://models/m", progress=change)
    assert not fetched.destination.exists()


def test_a_download_goes_on_where_it_was_cancelled(put: Any, fetched: Fetcher) -> None:
    weights = os.urandom(3_000_000)
    put({f"m/{n}": c for n, c in (FILES | {"model.safetensors": weights}).items()})

    def cancel(progress: Progress) -> None:
        if progress.step == "model.safetensors":
            fetched.cancelled.set()

    from controlplane.registry.sources import FetchCancelled

    with pytest.raises(FetchCancelled):
        fetched("s3://models/m", progress=cancel)
    fetched.cancelled.clear()
    fetched("s3://models/m")
    first = next(p for p in fetched.told if p.step == "model.safetensors")
    assert first.rate is None or (first.bytes_done or 0) > 0
    assert (fetched.destination / "model.safetensors").read_bytes() == weights


def test_a_damaged_partial_is_found_by_the_object_s_md5(put: Any, fetched: Fetcher) -> None:
    weights = os.urandom(3_000_000)
    put({f"m/{n}": c for n, c in (FILES | {"model.safetensors": weights}).items()})

    def cancel(progress: Progress) -> None:
        if progress.step == "model.safetensors" and (progress.bytes_done or 0) > 1000:
            fetched.cancelled.set()

    from controlplane.registry.sources import FetchCancelled

    with pytest.raises(FetchCancelled):
        fetched("s3://models/m", progress=cancel)
    fetched.cancelled.clear()
    partial = next(p for p in fetched.cache._partial.glob("s3-*") if p.suffix != ".json")
    with partial.open("r+b") as handle:
        handle.write(b"damage")
    with pytest.raises(ChecksumMismatch, match="md5"):
        fetched("s3://models/m")
    fetched("s3://models/m")  # nothing of it was kept


def test_no_credentials_and_no_server_are_explained(
    s3: Any, fetched: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ArtifactNotAccessible, match="AWS_PROFILE"):
        fetched("s3://models/m")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DownloadFailed, match="AWS_ENDPOINT_URL") as caught:
        fetched("s3://models/m")
    assert "verysecret" not in str(caught.value)
    assert "Signature" not in str(caught.value)


def test_public_buckets_need_no_credentials(
    s3: Any, fetched: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in FILES.items():
        s3.put_object(Bucket="models", Key=f"m/{name}", Body=content, ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fetched("s3://models/m")
