"""Fetching sources: from a local hub with faults, and from directories."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.errors import (
    ArtifactNotAccessible,
    ChecksumMismatch,
    DownloadFailed,
    InsufficientDisk,
    SourceRefused,
    UnsafeWeights,
    ValidationFailed,
)
from controlplane.registry.blobs import BlobCache
from controlplane.registry.model import ModelId
from controlplane.registry.sources import (
    FetchCancelled,
    FetchedSource,
    HubLimits,
    Progress,
    SourceRules,
    fetch,
)
from tests.hub import LocalHub, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WEIGHTS = os.urandom(600_000)
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": WEIGHTS,
    "README.md": b"# A model",
}
MODULES = json.dumps(
    [{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"}]
).encode()
QUICK = HubLimits(answer=2.0, resolve=10.0, attempts=4, first_pause=0.01, longest_pause=0.05)
MODEL = ModelId("org", "name")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield local


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "org--name"


class Fetcher:
    """Calls fetch with what a test does not care about filled in."""

    def __init__(self, home: Path) -> None:
        self.destination = home / "1"
        self.cache = BlobCache(home.parent / "cache", home.parent)
        self.cancelled = threading.Event()
        self.told: list[Progress] = []

    def __call__(
        self, version: str = "main", source: str | None = None, **others: Any
    ) -> FetchedSource:
        rules = SourceRules(allow_pickle=others.pop("allow_pickle", False))
        settings = {
            "rules": rules,
            "cache": self.cache,
            "limits": QUICK,
            "progress": self.told.append,
        }
        return fetch(
            MODEL,
            version,
            source,
            self.destination,
            cancelled=self.cancelled,
            **(settings | others),
        )

    def names(self) -> set[str]:
        """What lies in the destination, without the record."""
        files = (path for path in self.destination.rglob("*") if path.is_file())
        return {str(path.relative_to(self.destination)) for path in files} - {".source.json"}


@pytest.fixture
def fetched(home: Path) -> Fetcher:
    return Fetcher(home)


def nothing_left(home: Path) -> bool:
    """No folder of a version; the cache, which keeps what may be continued, is elsewhere."""
    return not home.exists() or list(home.iterdir()) == []


# -- what is taken ----------------------------------------------------------------------------


def test_the_needed_files_come_with_their_digests(hub: LocalHub, fetched: Fetcher) -> None:
    extra = {
        "modules.json": MODULES,
        "1_Pooling/config.json": b"{}",
        "sentence_bert_config.json": b"{}",
        "config_sentence_transformers.json": b"{}",
        "vocab.txt": b"a",
        "spiece.model": b"s",
        "LICENSE": b"MIT",
    }
    unneeded = {
        "pytorch_model.bin": WEIGHTS,
        "tf_model.h5": b"t",
        "flax_model.msgpack": b"f",
        "rust_model.ot": b"r",
        "model.fp16.safetensors": b"h",
        "onnx/model.onnx": b"o",
        "openvino/openvino_model.bin": b"v",
        "2_Unused/config.json": b"{}",
        "train_script.py": b"import os",
        "data_config.json": b"[]",
        "training_args.bin": b"p",
        "picture.png": b"p",
        ".gitattributes": b"*",
        "NOTES.md": b"n",
    }
    commit = hub.add("org/name", FILES | extra | unneeded)
    source = fetched()
    assert source.revision == commit
    assert source.artifact_uri == f"https://huggingface.co/org/name/tree/{commit}"
    assert {file.path for file in source.files} == set(FILES | extra) == fetched.names()
    for file in source.files:
        content = (FILES | extra)[file.path]
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (fetched.destination / file.path).read_bytes() == content


def test_the_checksum_is_what_sha256sum_makes_of_the_files(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES | {"modules.json": MODULES, "1_Pooling/config.json": b"{}"})
    source = fetched()
    listing = "find . -type f ! -name .source.json | cut -c3- | LC_ALL=C sort | xargs sha256sum"
    command = f"{listing} | sha256sum"
    said = subprocess.run(
        command, shell=True, cwd=fetched.destination, capture_output=True, text=True, check=True
    )
    assert source.checksum == "sha256:" + said.stdout.split()[0]


def test_branches_tags_and_commits_are_resolved(hub: LocalHub, home: Path) -> None:
    old = hub.add("org/name", FILES)
    new = hub.add("org/name", FILES | {"config.json": b"{}"})
    branch = hub.add("org/name", FILES | {"vocab.txt": b"x"}, branch="feature/x")
    hub.tag("org/name", "v1.0", old)
    for number, (version, commit) in enumerate(
        [("main", new), ("v1.0", old), (old, old), ("feature/x", branch)]
    ):
        assert Fetcher(home / str(number))(version).revision == commit


def test_sharded_weights_come_whole(hub: LocalHub, fetched: Fetcher) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": os.urandom(1000) for n in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index}
    hub.add("org/name", files | shards)
    assert {file.path for file in fetched().files} == set(files | shards)


def test_a_missing_part_of_sharded_weights_is_named(hub: LocalHub, fetched: Fetcher) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode()
    hub.add("org/name", {"config.json": b"{}", "model.safetensors.index.json": index})
    with pytest.raises(ArtifactNotAccessible, match=r"lacks model-00001-of-00001\.safetensors"):
        fetched()
    hub.add("org/name", {"config.json": b"{}", "model.safetensors.index.json": b"[1]"})
    with pytest.raises(ArtifactNotAccessible, match="cannot be read"):
        fetched()


def test_pickled_weights_are_refused_unless_allowed(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", {"config.json": b"{}", "pytorch_model.bin": WEIGHTS})
    with pytest.raises(UnsafeWeights, match="MODELMORA_ALLOW_PICKLE"):
        fetched()
    assert hub.asked("pytorch_model.bin") == 0
    source = fetched(allow_pickle=True)
    assert {file.path for file in source.files} == {"config.json", "pytorch_model.bin"}


def test_a_pickle_in_a_module_folder_is_refused_too(hub: LocalHub, fetched: Fetcher) -> None:
    modules = json.dumps([{"path": ""}, {"path": "2_Dense"}]).encode()
    dense = {"2_Dense/config.json": b"{}", "2_Dense/pytorch_model.bin": b"p"}
    hub.add("org/name", FILES | dense | {"modules.json": modules})
    with pytest.raises(UnsafeWeights, match=r"2_Dense/pytorch_model\.bin"):
        fetched()


def test_a_transformer_in_its_own_folder_is_found(hub: LocalHub, fetched: Fetcher) -> None:
    modules = json.dumps([{"path": "0_Transformer"}, {"path": "1_Pooling"}]).encode()
    files = {f"0_Transformer/{name}": content for name, content in FILES.items()}
    hub.add("org/name", files | {"modules.json": modules, "1_Pooling/config.json": b"{}"})
    assert "0_Transformer/model.safetensors" in {file.path for file in fetched().files}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": b"x"}, "no config.json"),
        ({"config.json": b"{}"}, "none at all"),
        ({"config.json": b"{}", "tf_model.h5": b"x"}, "tf_model.h5"),
        ({"config.json": b"{}", "modules.json": b"{"}, "modules.json that cannot be read"),
        ({"config.json": b"{}", "modules.json": b'[{"path": "../.."}]'}, "folder '../..'"),
    ],
)
def test_a_repository_that_cannot_be_converted_is_refused(
    hub: LocalHub, fetched: Fetcher, home: Path, files: dict[str, bytes], message: str
) -> None:
    hub.add("org/name", files)
    with pytest.raises(ArtifactNotAccessible, match=message):
        fetched()
    assert nothing_left(home)


# -- progress, reuse, pins --------------------------------------------------------------------


def test_progress_counts_every_byte_once(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    hub.truncate("model.safetensors", after=200_000)
    fetched()
    total = sum(map(len, FILES.values()))
    done = [progress.bytes_done for progress in fetched.told]
    assert done == sorted(done)
    assert fetched.told[-1].bytes_total == done[-1] == total
    assert fetched.told[-1].fraction == 1.0
    assert {progress.phase for progress in fetched.told} == {"downloading"}


def test_what_is_there_and_intact_is_not_downloaded_again(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    first = fetched()
    before = hub.asked("resolve")
    assert fetched() == first
    assert hub.asked("resolve") == before
    asked = len(hub.requests)
    assert fetched(checksum=first.checksum) == first  # pinned: the hub need not even be asked
    assert len(hub.requests) == asked


def test_what_was_damaged_is_downloaded_again(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    first = fetched()
    (fetched.destination / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"!")
    assert fetched(checksum=first.checksum) == first
    assert (fetched.destination / "model.safetensors").read_bytes() == WEIGHTS
    (fetched.destination / ".source.json").write_text("{")
    assert fetched() == first


def test_a_branch_that_moved_brings_the_new_files(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES | {"vocab.txt": b"old"})
    fetched()
    commit = hub.add("org/name", FILES)
    assert fetched().revision == commit
    assert fetched.names() == set(FILES)


def test_a_pinned_version_takes_no_other_bytes(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    with pytest.raises(ChecksumMismatch):
        fetched(checksum="sha256:" + "0" * 64)


# -- faults of the hub ------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_broke(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    hub.truncate("model.safetensors", after=250_000)
    hub.truncate("model.safetensors", after=250_000)
    fetched()
    ranges = [
        headers["range"]
        for _, path, headers in hub.requests
        if path.endswith("model.safetensors") and "range" in headers
    ]
    assert ranges == ["bytes=250000-", "bytes=500000-"]
    assert (fetched.destination / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(hub: LocalHub, fetched: Fetcher, status: int) -> None:
    hub.add("org/name", FILES)
    hub.fail("/api/models", status=status, times=2)
    hub.fail("tokenizer.json", status=status, times=2, retry_after="0")
    hub.drop("README.md", times=2)
    fetched()
    assert fetched.names() == set(FILES)


@pytest.mark.parametrize("path", ["/api/models", "config.json"])
def test_lasting_failures_are_told(hub: LocalHub, fetched: Fetcher, home: Path, path: str) -> None:
    hub.add("org/name", FILES)
    hub.fail(path, status=503, times=99)
    with pytest.raises(DownloadFailed, match=r"HTTP 503.*HF_ENDPOINT"):
        fetched()
    assert hub.asked(path) == QUICK.attempts
    assert nothing_left(home)


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    hub.fail("/api/models", status=429, times=1, retry_after="3600")
    fetched()


def test_resolving_has_a_time_limit(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    hub.stall("/api/models", times=9)
    with pytest.raises(DownloadFailed, match="cannot be downloaded"):
        fetched(limits=HubLimits(answer=0.2, resolve=0.5, first_pause=0.01))
    assert hub.asked("/api/models") <= 3


def test_a_silent_connection_is_given_up_and_taken_up_again(
    hub: LocalHub, fetched: Fetcher
) -> None:
    hub.add("org/name", FILES)
    hub.stall("model.safetensors", after=100_000)
    fetched(limits=HubLimits(answer=0.3, first_pause=0.01))
    assert (fetched.destination / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("path", ["model.safetensors", "tokenizer.json"])
def test_wrong_bytes_of_the_right_length_are_found(
    hub: LocalHub, fetched: Fetcher, home: Path, path: str
) -> None:
    hub.add("org/name", FILES)
    hub.corrupt(path)
    with pytest.raises(ChecksumMismatch, match=path):
        fetched()
    assert nothing_left(home)


def test_a_file_shorter_or_longer_than_announced_is_not_taken(
    hub: LocalHub, fetched: Fetcher, home: Path
) -> None:
    hub.add("org/name", FILES)
    for size in (len(WEIGHTS) + 1, len(WEIGHTS) - 1):
        hub.announce("model.safetensors", size=size)
        with pytest.raises(DownloadFailed, match=rf"of {size} bytes came"):
            fetched()
        assert nothing_left(home)


def test_a_mirror_without_digests_still_works(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    for path in FILES:
        hub.announce(path, blob_id=None)
    assert {file.path for file in fetched().files} == set(FILES)


def test_no_hub_at_all_is_told(
    fetched: Fetcher, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9 now .*HF_ENDPOINT"):
        fetched()
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    with pytest.raises(DownloadFailed, match="not an address of a hub"):
        fetched()
    assert nothing_left(home)


def test_a_server_that_is_no_hub_is_told(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    hub.corrupt("/api/models")
    with pytest.raises(DownloadFailed, match=r"does not answer as a HuggingFace hub.*HF_ENDPOINT"):
        fetched()


def test_redirects_of_the_hub_end(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    hub.fail("resolve", status=302, times=999, location=f"{hub.url}/org/name/resolve/x/config.json")
    with pytest.raises(DownloadFailed, match="HF_ENDPOINT"):
        fetched()


def test_code_of_a_repository_is_refused_before_its_weights_come(
    hub: LocalHub, fetched: Fetcher, home: Path, tmp_path: Path
) -> None:
    code = json.dumps({"model_type": "own", "auto_map": {"AutoModel": "modeling.Own"}}).encode()
    hub.add("org/name", FILES | {"config.json": code, "modeling.py": b"import os"})
    with pytest.raises(SourceRefused, match="auto_map"):
        fetched()
    assert hub.asked("model.safetensors") == 0
    with pytest.raises(SourceRefused, match="auto_map"):
        fetched(source=str(directory(tmp_path / "source", FILES | {"config.json": code})))
    assert nothing_left(home)


def test_offline_mode_is_told(tmp_path: Path, fetched: Fetcher) -> None:
    code = (
        "import threading, pathlib; from controlplane.registry.sources import fetch;"
        "from controlplane.registry.model import ModelId;"
        "from controlplane.registry.blobs import BlobCache;"
        "from controlplane.registry.sources import SourceRules;"
        "x = pathlib.Path('x');"
        "fetch(ModelId('a','b'), 'main', None, x / '1', cache=BlobCache(x, x), rules=SourceRules(),"
        " progress=print, cancelled=threading.Event())"
    )
    import sys

    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "ArtifactNotAccessible" in said.stderr
    assert "HF_HUB_OFFLINE" in said.stderr


def test_a_file_that_disappears_meanwhile_is_told(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    hub.fail("tokenizer.json", status=404, x_error_code="EntryNotFound")
    with pytest.raises(ArtifactNotAccessible, match=r"disappeared.*tokenizer\.json"):
        fetched()


def test_a_refusal_of_another_kind_is_told(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    hub.fail("/api/models", status=451)
    with pytest.raises(DownloadFailed, match="refused org/name with HTTP 451"):
        fetched()


def test_a_name_that_the_hub_does_not_know_of_is_told(hub: LocalHub, home: Path) -> None:
    with pytest.raises(ArtifactNotAccessible, match="cannot be on the hub"):
        fetch(
            ModelId("org", "name.git"),
            "main",
            None,
            home / "1",
            cache=BlobCache(home.parent / "cache", home.parent),
            rules=SourceRules(),
            progress=lambda progress: None,
            cancelled=threading.Event(),
        )


# -- who may read -----------------------------------------------------------------------------


def test_what_does_not_exist_or_is_private_is_explained(
    hub: LocalHub, fetched: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactNotAccessible, match=r"does not exist.*or is private.*HF_TOKEN"):
        fetched()
    commit = hub.add("org/name", FILES, private=True)
    with pytest.raises(ArtifactNotAccessible, match="set HF_TOKEN"):
        fetched()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ArtifactNotAccessible, match="HF_TOKEN in use is not valid"):
        fetched()
    hub.tokens.add("hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert fetched().revision == commit


def test_a_gated_repository_is_explained(
    hub: LocalHub, fetched: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", FILES, gated=True)
    with pytest.raises(ArtifactNotAccessible, match=r"gated: accept .*huggingface.co/org/name"):
        fetched()
    hub.tokens.add("hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    fetched()


def test_an_unknown_revision_is_explained(hub: LocalHub, fetched: Fetcher) -> None:
    hub.add("org/name", FILES)
    with pytest.raises(ArtifactNotAccessible, match="no branch, tag or commit 'v9'"):
        fetched("v9")


def test_a_token_never_leaves_for_another_host(
    hub: LocalHub, fetched: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens.add("hf_right")
    hub.add("org/name", FILES, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with LocalHub() as elsewhere:
        elsewhere.add("org/name", FILES)
        hub.redirect_blobs_to(elsewhere.url.replace("127.0.0.1", "localhost"))
        fetched()
        assert elsewhere.asked("/lfs/") == 1
        assert all("authorization" not in headers for _, _, headers in elsewhere.requests)


# -- disk and cancellation --------------------------------------------------------------------


def test_disk_space_is_checked_before_the_first_large_byte(
    hub: LocalHub, fetched: Fetcher, home: Path
) -> None:
    hub.add("org/name", FILES)
    hub.announce("model.safetensors", size=10**16)
    with pytest.raises(InsufficientDisk, match=r"MB needed"):
        fetched(rules=SourceRules(max_bytes=10**18))
    with pytest.raises(SourceRefused, match="MODELMORA_MAX_SOURCE_MB"):
        fetched()
    assert hub.asked("resolve") == 0
    assert nothing_left(home)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB, on which the 64 MB in reserve leave little."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_on_the_way_is_told(hub: LocalHub, small_disk: Path) -> None:
    weights = os.urandom(8 * 2**20)
    hub.add("org/name", FILES | {"model.safetensors": weights})
    fetched = Fetcher(small_disk / "org--name")

    def fill(progress: Progress) -> None:
        if progress.step == "model.safetensors" and not (small_disk / "other").exists():
            (small_disk / "other").write_bytes(b"x" * (75 * 2**20))

    with pytest.raises(InsufficientDisk, match=str(small_disk)):
        fetched(progress=fill)
    assert nothing_left(small_disk / "org--name")


def test_a_disk_too_small_for_a_directory_is_told(small_disk: Path, tmp_path: Path) -> None:
    source = directory(tmp_path / "source", FILES | {"model.safetensors": b"x" * 20 * 2**20})
    with pytest.raises(InsufficientDisk):
        Fetcher(small_disk / "org--name")(source=str(source))
    assert nothing_left(small_disk / "org--name")


def cancel_when(condition: Callable[[], bool], event: threading.Event) -> threading.Thread:
    def wait() -> None:
        wait_until(condition)
        event.set()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("path", ["/api/models", "config.json", "model.safetensors"])
def test_a_download_is_cancelled_even_while_nothing_comes(
    hub: LocalHub, fetched: Fetcher, home: Path, path: str
) -> None:
    hub.add("org/name", FILES)
    hub.stall(path, after=10, times=9)
    thread = cancel_when(hub.stalled.is_set, fetched.cancelled)
    with pytest.raises(FetchCancelled):
        fetched(limits=HubLimits(answer=0.5, first_pause=30, longest_pause=30))
    thread.join()
    assert nothing_left(home)


def test_a_copy_is_cancelled(tmp_path: Path, fetched: Fetcher, home: Path) -> None:
    source = directory(tmp_path / "source", FILES)
    fetched.cancelled.set()
    with pytest.raises(FetchCancelled):
        fetched(source=str(source))
    assert nothing_left(home)


# -- directories ------------------------------------------------------------------------------


def directory(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_directory_is_copied_with_the_same_checksum_as_from_the_hub(
    hub: LocalHub, tmp_path: Path, home: Path, fetched: Fetcher
) -> None:
    hub.add("org/name", FILES | {"other.txt": b"x"})
    source = directory(tmp_path / "a folder", FILES | {"other.txt": b"x", "onnx/model.onnx": b"o"})
    copied = fetched(source=source.as_uri())
    assert copied.revision is None
    assert copied.artifact_uri == source.as_uri()
    assert fetched.names() == set(FILES)
    assert copied.checksum == Fetcher(home / "hub")().checksum
    assert fetched(source=str(source)).checksum == copied.checksum


def test_editing_the_directory_later_does_not_change_the_copy(
    tmp_path: Path, fetched: Fetcher
) -> None:
    source = directory(tmp_path / "source", FILES)
    first = fetched(source=str(source))
    (source / "config.json").write_bytes(b'{"changed": 1}')
    assert (fetched.destination / "config.json").read_bytes() == FILES["config.json"]
    assert fetched(source=str(source), checksum=first.checksum) == first  # pinned
    assert fetched(source=str(source)).checksum != first.checksum  # not pinned yet


@pytest.mark.parametrize(
    ("remove", "message"), [("config.json", "no config.json"), ("model.safetensors", "no weights")]
)
def test_what_a_directory_lacks_is_named(
    tmp_path: Path, fetched: Fetcher, home: Path, remove: str, message: str
) -> None:
    source = directory(tmp_path / "source", FILES)
    (source / remove).unlink()
    with pytest.raises(ArtifactNotAccessible, match=f"{source} has {message}"):
        fetched(source=str(source))
    assert nothing_left(home)


def test_what_is_no_directory_is_named(tmp_path: Path, fetched: Fetcher) -> None:
    with pytest.raises(ArtifactNotAccessible, match=r"nowhere does not exist"):
        fetched(source=str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactNotAccessible, match="file is not a directory"):
        fetched(source=str(tmp_path / "file"))
    with pytest.raises(ValidationFailed):
        fetched(source="https://example.com/model")


def test_links_may_not_leave_the_directory(tmp_path: Path, fetched: Fetcher, home: Path) -> None:
    source = directory(tmp_path / "source", FILES)
    (tmp_path / "secret").write_text("secret")
    (source / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactNotAccessible, match=r"vocab\.txt.*leaves the directory"):
        fetched(source=str(source))
    (source / "vocab.txt").unlink()
    (source / "vocab.txt").symlink_to("tokenizer.json")
    assert "vocab.txt" in {file.path for file in fetched(source=str(source)).files}
    (source / "vocab.txt").unlink()
    (source / "vocab.txt").symlink_to("missing")
    with pytest.raises(ArtifactNotAccessible, match="missing does not exist"):
        fetched(source=str(source))


def test_a_snapshot_of_the_hub_library_s_cache_is_a_directory(
    tmp_path: Path, fetched: Fetcher
) -> None:
    cache = tmp_path / "models--org--name"
    directory(cache / "blobs", {hashlib.sha256(c).hexdigest(): c for c in FILES.values()})
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name, content in FILES.items():
        (snapshot / name).symlink_to(f"../../blobs/{hashlib.sha256(content).hexdigest()}")
    assert {file.path for file in fetched(source=str(snapshot)).files} == set(FILES)


def test_what_is_no_file_is_refused(tmp_path: Path, fetched: Fetcher) -> None:
    source = directory(tmp_path / "source", FILES)
    (source / "tokenizer.json").unlink()
    os.mkfifo(source / "tokenizer.json")
    with pytest.raises(ArtifactNotAccessible, match="not a regular file"):
        fetched(source=str(source))


def test_pickles_in_a_directory_are_refused_unless_allowed(
    tmp_path: Path, fetched: Fetcher
) -> None:
    source = directory(tmp_path / "source", {"config.json": b"{}", "pytorch_model.bin": b"p"})
    with pytest.raises(UnsafeWeights):
        fetched(source=str(source))
    fetched(source=str(source), allow_pickle=True)


def test_a_crash_in_the_middle_leaves_nothing_that_looks_whole(
    hub: LocalHub, fetched: Fetcher, home: Path
) -> None:
    hub.add("org/name", FILES)
    (home / "1.partial").mkdir(parents=True)
    (home / "1.partial" / "model.safetensors").write_bytes(WEIGHTS[:100])
    assert not fetched.destination.exists()
    fetched()
    assert [path.name for path in home.iterdir()] == ["1"]
