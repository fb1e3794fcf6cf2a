"""Archives on the web: from a real server with faults, and archives that mean harm."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import stat
import tarfile
import threading
import zipfile
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import (
    ArtifactNotAccessible,
    ChecksumMismatch,
    DownloadFailed,
    SourceRefused,
    UnsafeWeights,
    ValidationFailed,
)
from controlplane.registry.addresses import check_addresses, plain_ip
from controlplane.registry.blobs import BlobCache
from controlplane.registry.intake import Intake
from controlplane.registry.model import ModelId
from controlplane.registry.source_url import SourceUrl, parse_source_url
from controlplane.registry.sources import (
    FetchCancelled,
    FetchedSource,
    HubLimits,
    Progress,
    SourceRules,
    fetch,
)
from controlplane.registry.stopping import Stop
from controlplane.registry.web import fetch_web_archive
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
QUICK = HubLimits(answer=2.0, resolve=10.0, attempts=4, first_pause=0.01, longest_pause=0.05)
OPEN = SourceRules(allow_http=True, allow_private=True)


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
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


class Fetcher:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.destination = home / "downloads" / "org--name" / "1"
        self.cache = BlobCache(home / "cache", home / "downloads")
        self.cancelled = threading.Event()
        self.told: list[Progress] = []

    def __call__(self, source: str, **others: Any) -> FetchedSource:
        settings = {"rules": OPEN, "limits": QUICK, "progress": self.told.append}
        return fetch(
            ModelId("org", "name"),
            "main",
            source,
            self.destination,
            cache=self.cache,
            cancelled=self.cancelled,
            **(settings | others),
        )

    def partials(self) -> list[Path]:
        return sorted((self.home / "cache" / "partial").glob("*"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with WebServer(tmp_path) as server:
        yield server


@pytest.fixture
def fetched(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "data")


# -- archives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "minilm/", "./"])
@pytest.mark.parametrize("kind", ["m.tar", "m.tar.gz", "m.tgz", "m.tar.bz2", "m.tar.xz", "m.zip"])
def test_every_kind_of_archive_gives_the_same_files(
    web: WebServer, fetched: Fetcher, kind: str, folder: str
) -> None:
    files = {folder + name: content for name, content in FILES.items()}
    extra = {folder + "train.py": b"import os", folder + "onnx/model.onnx": b"o"}
    mode = {"tar": "w", "bz2": "w:bz2", "xz": "w:xz"}.get(kind.rpartition(".")[2], "w:gz")
    make = zipped if kind.endswith(".zip") else lambda files: tar(files, mode)
    web.files[f"/{kind}"] = make(files | extra)
    source = fetched(f"{web.url}/{kind}?signature=secret")
    assert {file.path: file.sha256 for file in source.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }
    assert (source.revision, source.artifact_uri) == (None, f"{web.url}/{kind}")
    assert (fetched.destination / "model.safetensors").read_bytes() == WEIGHTS
    assert fetched.partials() == []


def test_modules_in_folders_are_found(web: WebServer, fetched: Fetcher) -> None:
    modules = json.dumps([{"path": ""}, {"path": "1_Pooling"}]).encode()
    more = {"modules.json": modules, "1_Pooling/config.json": b"{}"}
    web.files["/m.tgz"] = tar(FILES | more)
    assert {file.path for file in fetched(f"{web.url}/m.tgz").files} == set(FILES | more)


def test_pickles_and_code_in_an_archive_are_refused(web: WebServer, fetched: Fetcher) -> None:
    web.files["/p.zip"] = zipped({"config.json": b"{}", "pytorch_model.bin": b"p"})
    with pytest.raises(UnsafeWeights):
        fetched(f"{web.url}/p.zip")
    code = json.dumps({"auto_map": {"AutoModel": "modeling.Own"}}).encode()
    web.files["/c.zip"] = zipped(FILES | {"config.json": code})
    with pytest.raises(SourceRefused, match="auto_map"):
        fetched(f"{web.url}/c.zip")


def links(kind: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        member = tarfile.TarInfo("vocab.txt")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return content.getvalue()


def zip_link() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        info = zipfile.ZipInfo("vocab.txt")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return content.getvalue()


def huge_header() -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 10**9
    return member.tobuf() + bytes(1024)


HARMFUL = {
    "parent.tgz": lambda: tar(FILES | {"../evil": b"x"}),
    "deep-parent.zip": lambda: zipped(FILES | {"a/../../evil": b"x"}),
    "absolute.tgz": lambda: tar(FILES | {"/evil": b"x"}),
    "backslash.zip": lambda: zipped(FILES | {"..\\evil": b"x"}),
    "symlink.tgz": lambda: links(tarfile.SYMTYPE),
    "hardlink.tgz": lambda: links(tarfile.LNKTYPE),
    "device.tgz": lambda: links(tarfile.CHRTYPE),
    "fifo.tgz": lambda: links(tarfile.FIFOTYPE),
    "symlink.zip": zip_link,
    "twice.tgz": lambda: tar(FILES | {"./config.json": b"{}"}),
    "bomb.tgz": lambda: tar(FILES | {"zeros": bytes(110 * 2**20)}),
    "bomb.zip": lambda: zipped(FILES | {"zeros": bytes(110 * 2**20)}),
    "many.tar": lambda: tar({f"f{n}": b"" for n in range(10_001)}, "w"),
    "header.tar": huge_header,
    "deep.zip": lambda: zipped(FILES | {"a/" * 32 + "evil": b"x"}),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_an_archive_that_means_harm_is_refused_whole(
    web: WebServer, fetched: Fetcher, name: str, tmp_path: Path
) -> None:
    web.files[f"/{name}"] = HARMFUL[name]()
    with pytest.raises(SourceRefused):
        fetched(f"{web.url}/{name}")
    assert not list(tmp_path.rglob("evil"))
    assert fetched.partials() == []
    assert not fetched.destination.exists()


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("config.json", "Config.json"),
        ("a/b.txt", "A/c.txt"),
        ("Straße.txt", "STRASSE.txt"),
        ("caf\u00e9.txt", "cafe\u0301.txt"),
        ("CAF\u00c9/x", "cafe\u0301/y"),
        ("folder", "Folder/file"),
    ],
)
def test_names_that_some_file_systems_hold_for_one_are_refused(
    web: WebServer, fetched: Fetcher, pack: Any, one: str, other: str
) -> None:
    web.files["/m.x.zip"] = pack(FILES | {one: b"1", other: b"2"})
    with pytest.raises(SourceRefused) as told:
        fetched(f"{web.url}/m.x.zip")
    first, second = (ascii(name.partition("/")[0])[1:-1] for name in (one, other))
    assert f"'{first}" in told.value.message
    assert f"'{second}" in told.value.message
    assert not fetched.destination.exists()
    assert fetched.partials() == []


def test_names_that_differ_otherwise_are_no_reason(web: WebServer, fetched: Fetcher) -> None:
    others = {"a/README": b"", "b/readme": b"", "a/readme.txt": b"", "\u00e9": b"", "e": b""}
    web.files["/m.zip"] = zipped(FILES | others)
    assert {file.path for file in fetched(f"{web.url}/m.zip").files} == set(FILES)


@pytest.mark.parametrize("name", ["m.tgz", "m.zip", "m.tar.xz"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4no", b"\x1f\x8bno", b"nonsense" * 100])
def test_what_is_no_archive_is_told(
    web: WebServer, fetched: Fetcher, name: str, content: bytes
) -> None:
    web.files[f"/{name}"] = content
    with pytest.raises(ArtifactNotAccessible):
        fetched(f"{web.url}/{name}")


def test_half_an_archive_is_told(web: WebServer, fetched: Fetcher) -> None:
    for name, whole in (("m.tgz", tar(FILES)), ("m.zip", zipped(FILES))):
        web.files[f"/{name}"] = whole[: len(whole) // 2]
        with pytest.raises(ArtifactNotAccessible, match="archive"):
            fetched(f"{web.url}/{name}")


def test_a_source_beyond_the_limit_is_refused(web: WebServer, fetched: Fetcher) -> None:
    web.files["/m.tgz"] = tar(FILES)
    with pytest.raises(SourceRefused, match="MODELMORA_MAX_SOURCE_MB"):
        fetched(
            f"{web.url}/m.tgz",
            rules=SourceRules(allow_http=True, allow_private=True, max_bytes=1000),
        )
    assert web.sent <= 700_000


# -- digests ----------------------------------------------------------------------------------


def test_an_archive_is_compared_with_every_digest_there_is(
    web: WebServer, fetched: Fetcher
) -> None:
    content = web.files["/m.tgz"] = tar(FILES)
    right = hashlib.sha256(content)
    fetched(f"{web.url}/m.tgz#sha256={right.hexdigest()}")
    with pytest.raises(ChecksumMismatch, match=r"m\.tgz"):
        fetched(f"{web.url}/m.tgz#sha256={'0' * 64}")
    web.extra["Repr-Digest"] = f"sha-256=:{base64.b64encode(right.digest()).decode()}:"
    fetched(f"{web.url}/m.tgz")
    web.faults["/m.tgz"] = [Fault("corrupt")]
    with pytest.raises(ChecksumMismatch):
        fetched(f"{web.url}/m.tgz")
    assert fetched.partials() == []


def test_a_pin_holds_whatever_the_server_has_now(web: WebServer, fetched: Fetcher) -> None:
    web.files["/m.tgz"] = tar(FILES)
    first = fetched(f"{web.url}/m.tgz")
    web.files["/m.tgz"] = tar(FILES | {"config.json": b'{"other": 1}'})
    asked = len(web.requests)
    assert fetched(f"{web.url}/m.tgz", checksum=first.checksum) == first
    assert len(web.requests) == asked
    (fetched.destination / ".source.json").unlink()
    with pytest.raises(ChecksumMismatch):
        fetched(f"{web.url}/m.tgz", checksum=first.checksum)


# -- faults -----------------------------------------------------------------------------------


def test_a_broken_download_goes_on_where_it_broke(web: WebServer, fetched: Fetcher) -> None:
    content = web.files["/m.tgz"] = tar(FILES)
    web.faults["/m.tgz"] = [Fault("truncate", after=n) for n in (200_000, 100_000)]
    fetched(f"{web.url}/m.tgz")
    assert [headers.get("Range") for _, headers in web.requests] == [
        None,
        "bytes=200000-",
        "bytes=300000-",
    ]
    assert web.sent == len(content)


def test_another_call_goes_on_where_the_first_gave_up(web: WebServer, fetched: Fetcher) -> None:
    content = web.files["/m.tgz"] = tar(FILES)
    web.faults["/m.tgz"] = [Fault("truncate", after=200_000), *[Fault("drop")] * 4]
    with pytest.raises(DownloadFailed, match="kept"):
        fetched(f"{web.url}/m.tgz")
    fetched(f"{web.url}/m.tgz")
    assert web.sent == len(content)
    assert fetched.told[-1].bytes_done == fetched.told[-1].bytes_total


def test_an_archive_that_had_come_whole_is_not_fetched_again(
    web: WebServer, fetched: Fetcher
) -> None:
    """As after a kill -9 while its files were being taken out."""
    content = web.files["/m.tgz"] = tar(FILES)

    def cancel(progress: Progress) -> None:
        if progress.step == "config.json":
            fetched.cancelled.set()

    with pytest.raises(FetchCancelled):
        fetched(f"{web.url}/m.tgz", progress=cancel)
    fetched.cancelled.clear()
    fetched(f"{web.url}/m.tgz")
    assert web.sent == len(content)


@pytest.mark.parametrize("fault", ["none", "other_range"])
def test_a_file_that_changed_in_between_is_not_put_together(
    web: WebServer, fetched: Fetcher, fault: str
) -> None:
    web.files["/m.tgz"] = tar(FILES | {"model.safetensors": os.urandom(500_000)})
    web.faults["/m.tgz"] = [Fault("truncate", after=200_000), *[Fault("drop")] * 4]
    with pytest.raises(DownloadFailed):
        fetched(f"{web.url}/m.tgz")
    web.files["/m.tgz"] = tar(FILES)
    web.faults["/m.tgz"] = [Fault(fault)]
    fetched(f"{web.url}/m.tgz")
    assert (fetched.destination / "model.safetensors").read_bytes() == WEIGHTS


def test_without_a_name_for_the_content_it_begins_again(web: WebServer, fetched: Fetcher) -> None:
    web.etag = False
    web.files["/m.tgz"] = tar(FILES)
    web.faults["/m.tgz"] = [Fault("truncate", after=200_000)]
    fetched(f"{web.url}/m.tgz")
    assert all("Range" not in headers for _, headers in web.requests)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_failures_that_pass_are_tried_again(web: WebServer, fetched: Fetcher, status: int) -> None:
    web.files["/m.tgz"] = tar(FILES)
    web.faults["/m.tgz"] = [Fault("status", status=status, headers={"Retry-After": "0"})] * 3
    fetched(f"{web.url}/m.tgz")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, ArtifactNotAccessible),
        (403, ArtifactNotAccessible),
        (404, ArtifactNotAccessible),
        (451, DownloadFailed),
    ],
)
def test_failures_that_last_are_not(
    web: WebServer, fetched: Fetcher, status: int, error: type[Exception]
) -> None:
    web.faults["/m.tgz"] = [Fault("status", status=status)] * 9
    with pytest.raises(error, match=str(status)) as caught:
        fetched(f"{web.url}/m.tgz?token=secret")
    assert len(web.requests) == 1
    assert "secret" not in str(caught.value)


def test_a_silent_server_is_given_up_and_asked_again(web: WebServer, fetched: Fetcher) -> None:
    content = web.files["/m.tgz"] = tar(FILES)
    web.faults["/m.tgz"] = [Fault("stall", after=100_000)]
    fetched(f"{web.url}/m.tgz", limits=HubLimits(answer=0.3, first_pause=0.01))
    assert web.sent == len(content)


def test_a_server_that_lies_about_the_length_is_not_believed(
    web: WebServer, fetched: Fetcher
) -> None:
    web.files["/m.tgz"] = tar(FILES)
    web.etag = False
    web.faults["/m.tgz"] = [Fault("lie", after=10)] * 9
    with pytest.raises(DownloadFailed, match="bytes came"):
        fetched(f"{web.url}/m.tgz")


def test_redirects_end(web: WebServer, fetched: Fetcher) -> None:
    web.files["/m.tgz"] = tar(FILES)
    web.faults["/a.tgz"] = [Fault("redirect", status=302, headers={"Location": "/m.tgz"})]
    fetched(f"{web.url}/a.tgz")
    web.faults["/b.tgz"] = [Fault("redirect", status=307, headers={"Location": "/b.tgz"})] * 99
    with pytest.raises(DownloadFailed, match="loop"):
        fetched(f"{web.url}/b.tgz")
    for target in ("http://127.0.0.1:99999/", "http://[::1/m"):
        web.faults["/d.tgz"] = [Fault("redirect", status=301, headers={"Location": target})]
        with pytest.raises(DownloadFailed, match="no address"):
            fetched(f"{web.url}/d.tgz")
    for target in ("ftp://host/m", "file:///etc/passwd", "https:///"):
        web.faults["/c.tgz"] = [Fault("redirect", status=301, headers={"Location": target})]
        with pytest.raises(DownloadFailed, match="not to https"):
            fetched(f"{web.url}/c.tgz")


# -- addresses --------------------------------------------------------------------------------


def test_http_and_private_addresses_are_refused_unless_allowed(
    web: WebServer, fetched: Fetcher
) -> None:
    web.files["/m.tgz"] = tar(FILES)
    with pytest.raises(SourceRefused, match="MODELMORA_ALLOW_HTTP"):
        fetched(f"{web.url}/m.tgz", rules=SourceRules(allow_private=True))
    with pytest.raises(SourceRefused, match="MODELMORA_ALLOW_PRIVATE_SOURCES"):
        fetched(f"{web.url}/m.tgz", rules=SourceRules(allow_http=True))
    for host in ("localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0"):
        with pytest.raises(SourceRefused, match="this machine"):
            fetched(f"http://{host}:{web.port}/m.tgz", rules=SourceRules(allow_http=True))
    assert web.requests == []


def test_a_redirect_is_checked_as_the_first_address_was(web: WebServer, fetched: Fetcher) -> None:
    for target in (
        "http://169.254.169.254/latest",
        "http://[fe80::1]/x",
        "http://100.100.100.200/",
    ):
        web.faults["/m.tgz"] = [Fault("redirect", status=302, headers={"Location": target})]
        with pytest.raises(SourceRefused, match="metadata"):
            fetched(f"{web.url}/m.tgz")


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.5.4", "192.168.1.1", "127.8.8.8", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "::1", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
        "2002:a00:1::", "ff02::1", "::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    public: list[tuple[Any, ...]] = [("93.184.215.14", 443)]
    check_addresses("host", public, allow_private=False)
    with pytest.raises(SourceRefused):
        check_addresses("host", [*public, (address, 443)], allow_private=False)


@given(st.ip_addresses(v=4))
def test_an_address_inside_of_another_is_what_counts(inner: IPv4Address) -> None:
    number = int(inner)
    for outer in (0xFFFF << 32 | number, 0x0064FF9B << 96 | number, 0x2002 << 112 | number << 80):
        assert plain_ip(str(IPv6Address(outer))) == inner


def test_the_connection_goes_to_the_address_that_was_checked(
    web: WebServer, fetched: Fetcher
) -> None:
    """A name that resolves to something else the second time is not asked a second time."""
    web.files["/m.tgz"] = tar(FILES)
    answers = iter([[("127.0.0.1", web.port)], [("10.0.0.1", web.port)]])
    address = f"http://rebinding.example:{web.port}/m.tgz"
    url = parse_source_url(address)
    assert isinstance(url, SourceUrl)
    stop = Stop(fetched.cancelled)
    intake = Intake(
        "org/name", fetched.destination, fetched.cache, fetched.told.append, stop, max_bytes=10**9
    )
    intake.begin()
    fetch_web_archive(
        address, url, intake, OPEN, QUICK, stop, find=lambda host, port: next(answers)
    )
    assert web.requests[0][1]["Host"] == f"rebinding.example:{web.port}"


def test_tls_is_verified(tmp_path: Path, fetched: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = SourceRules(allow_private=True)
    with WebServer(tmp_path, tls=True) as web:
        web.files["/m.tgz"] = tar(FILES)
        with pytest.raises(ArtifactNotAccessible, match="SSL_CERT_FILE"):
            fetched(f"{web.url}/m.tgz", rules=rules)
        monkeypatch.setenv("SSL_CERT_FILE", str(web.certificate))
        fetched(f"{web.url}/m.tgz", rules=rules)
        web.faults["/m.tgz"] = [
            Fault("redirect", status=302, headers={"Location": "http://127.0.0.1/m.tgz"})
        ]
        with pytest.raises(SourceRefused, match="MODELMORA_ALLOW_HTTP"):
            fetched(f"{web.url}/m.tgz", rules=rules)


def test_what_cannot_be_a_source_is_refused(fetched: Fetcher) -> None:
    with pytest.raises(ValidationFailed, match="single file"):
        fetched("https://example.com/model.safetensors")
