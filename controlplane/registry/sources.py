"""Where a model's files come from: the HuggingFace hub, or a directory on this machine.

The only importer of `huggingface_hub`, which knows the hub's addresses, headers, tokens and errors
(`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` mean what they mean there). The bytes are streamed here
and not by `hf_hub_download`: a download must stop within a moment when it is cancelled, wait no
longer than we say, go on where a broken connection left off, and be hashed on its way in. That
needs only the hub's plain HTTP, so mirrors work, and no other host is asked.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from controlplane.errors import (
    ArtifactNotAccessible,
    ChecksumMismatch,
    DownloadFailed,
    ModelMoraError,
)
from controlplane.registry.disk import reporting_full_disk
from controlplane.registry.files import (
    MODULES,
    SAFE_INDEX,
    FetchedSource,
    Progress,
    SourceFile,
    check_shards,
    choose,
    is_plain_path,
    module_folders,
)
from controlplane.registry.intake import FetchCancelled, FileIntake, Intake, received_before
from controlplane.registry.local import copy_directory, directory_of
from controlplane.registry.patience import HubLimits, Patience, Transient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from huggingface_hub.errors import HfHubHTTPError

    from controlplane.registry.model import ModelId

__all__ = [
    "FetchCancelled",
    "FetchedSource",
    "HubLimits",
    "HubRefs",
    "Progress",
    "SourceFile",
    "fetch",
    "list_refs",
]

_CANONICAL = "https://huggingface.co"
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_T = TypeVar("_T")


def fetch(
    model_id: ModelId,
    version: str,
    source_url: str | None,
    destination: Path,
    *,
    allow_pickle: bool,
    progress: Callable[[Progress], None],
    cancelled: threading.Event,
    checksum: str | None = None,
    limits: HubLimits | None = None,
) -> FetchedSource:
    """Bring a version's source to `destination`, whole and verified, or not at all.

    What an earlier call brought there is used again when it is still intact and what is wanted.
    Blocks; run it in a thread.

    Args:
        version: branch, tag or commit; not used for a directory.
        source_url: a directory (`file://` URL or path); None for the hub.
        progress: called from this thread, often.
        cancelled: set it to have the call stop within about `limits.answer` seconds.
        checksum: what the version is pinned to, when it is.

    Raises:
        ArtifactNotAccessible: the source, or something needed in it, is missing or not ours to
            read; the message says what to do.
        DownloadFailed: the hub does not answer, or not sensibly.
        ChecksumMismatch: the bytes are not those that the hub announces, or that were pinned.
        UnsafeWeights, InsufficientDisk, ValidationFailed.
        FetchCancelled.
    """
    intake = Intake(destination, progress, cancelled)
    earlier = received_before(destination, cancelled)
    if checksum is not None and earlier is not None and earlier.checksum == checksum:
        return earlier
    try:
        with reporting_full_disk(destination, lambda: intake.total):
            intake.begin()
            if source_url is not None:
                folder = directory_of(source_url)
                source = copy_directory(folder, intake, allow_pickle=allow_pickle)
            else:
                hub = _Hub(model_id, limits or HubLimits(), cancelled)
                source = hub.fetch(version, intake, earlier, allow_pickle=allow_pickle)
    except BaseException:
        intake.discard()
        raise
    if checksum is not None and source.checksum != checksum:
        raise ChecksumMismatch(
            f"The source of {model_id} version {version}", checksum, source.checksum
        )
    return source


class HubRefs(msgspec.Struct, frozen=True):
    """A repository's branches and tags, each with the commit that it stands for now."""

    branches: dict[str, str]
    tags: dict[str, str]


def list_refs(model_id: ModelId, *, limits: HubLimits | None = None) -> HubRefs:
    """Ask the hub for a repository's branches and tags. Blocks; run it in a thread.

    Raises:
        ArtifactNotAccessible: no such repository, or not ours to read.
        DownloadFailed: the hub does not answer within `limits.resolve`, or not sensibly.
    """
    return _Hub(model_id, limits or HubLimits(), threading.Event()).refs()


class _Ref(msgspec.Struct):
    name: str
    commit: str = msgspec.field(name="targetCommit")


class _Refs(msgspec.Struct):
    branches: list[_Ref]
    tags: list[_Ref]


class _Hub:
    """One repository on the hub."""

    def __init__(self, model_id: ModelId, limits: HubLimits, cancelled: threading.Event) -> None:
        # Nobody is told who uses what. Both are read when the library is imported.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("HF_HUB_DISABLE_UPDATE_CHECK", "1")
        # Imported late: it takes a fifth of a second and 20 MB, and a server that only serves
        # what it has needs neither.
        import httpx2
        import huggingface_hub
        from huggingface_hub import errors, utils

        self._http, self._errors = httpx2, errors
        self._library: Any = huggingface_hub
        self._utils: Any = utils
        self._id = str(model_id)
        self._limits = limits
        self._patience = Patience(limits, cancelled)
        self._endpoint = (os.environ.get("HF_ENDPOINT") or _CANONICAL).rstrip("/")
        self._has_token = huggingface_hub.get_token() is not None

    def fetch(
        self, version: str, intake: Intake, earlier: FetchedSource | None, *, allow_pickle: bool
    ) -> FetchedSource:
        info = self._resolve(version)
        if earlier is not None and earlier.revision == info.sha:
            intake.discard()
            return earlier
        entries = {item.rfilename: item for item in info.siblings or ()}
        folders: tuple[str, ...] = ("",)
        if MODULES in entries:
            self._receive(info.sha, entries[MODULES], intake)
            folders = module_folders(intake.read(MODULES), self._id)
        names = choose(
            filter(is_plain_path, entries), folders, where=self._id, allow_pickle=allow_pickle
        )
        intake.expect(sum(entries[name].size or 0 for name in names))
        # Small files first: what is wrong with them is known before gigabytes have come.
        for name in sorted(names, key=lambda name: (entries[name].size or 0, name)):
            if not intake.has(name):
                self._receive(info.sha, entries[name], intake)
            if name.endswith(SAFE_INDEX):
                check_shards(intake.read(name), name, names, self._id)
        return intake.finish(info.sha, f"{_CANONICAL}/{self._id}/tree/{info.sha}")

    # -- which commit, which files -------------------------------------------------------------

    def _resolve(self, version: str) -> Any:
        """The hub's answer about a revision: `sha` and `siblings` with sizes and digests."""
        api = self._library.HfApi(endpoint=self._endpoint, library_name="modelmora")
        deadline = time.monotonic() + self._limits.resolve

        def ask() -> Any:
            seconds = max(0.1, min(self._limits.answer, deadline - time.monotonic()))
            return api.model_info(self._id, revision=version, files_metadata=True, timeout=seconds)

        try:
            info = self._persistently(ask, deadline=deadline)
        except self._errors.RevisionNotFoundError as error:
            raise ArtifactNotAccessible(
                f"{self._id} has no branch, tag or commit {version!r}. "
                f"See {_CANONICAL}/{self._id}/tree/main"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DownloadFailed(
                f"{self._endpoint} does not answer as a HuggingFace hub does. Check HF_ENDPOINT."
            ) from error
        commit = info.sha
        if not (isinstance(commit, str) and len(commit) == 40 and commit.isalnum()):
            raise DownloadFailed(f"{self._endpoint} names no commit for {self._id} {version!r}.")
        return info

    def refs(self) -> HubRefs:
        # Not `HfApi.list_repo_refs`: it waits for an answer without a limit.
        url = f"{self._endpoint}/api/models/{self._id}/refs"
        deadline = time.monotonic() + self._limits.resolve

        def ask() -> bytes:
            seconds = max(0.1, min(self._limits.answer, deadline - time.monotonic()))
            headers = self._utils.build_hf_headers(library_name="modelmora")
            response = self._utils.get_session().get(url, headers=headers, timeout=seconds)
            self._utils.hf_raise_for_status(response)
            return bytes(response.content)

        try:
            found = msgspec.json.decode(self._persistently(ask, deadline=deadline), type=_Refs)
        except msgspec.DecodeError as error:
            raise DownloadFailed(
                f"{self._endpoint} does not answer as a HuggingFace hub does. Check HF_ENDPOINT."
            ) from error
        return HubRefs(
            branches={ref.name: ref.commit for ref in found.branches},
            tags={ref.name: ref.commit for ref in found.tags},
        )

    # -- one file --------------------------------------------------------------------------------

    def _receive(self, commit: str, entry: Any, intake: Intake) -> None:
        """Download one file and compare it with the hub's digest of it."""
        url = self._library.hf_hub_url(
            self._id, entry.rfilename, revision=commit, endpoint=self._endpoint
        )
        target = intake.create(entry.rfilename)
        try:
            self._persistently(
                lambda: self._stream(url, target, entry.size), count=lambda: target.received
            )
            file = target.close()
        except BaseException:
            target.abandon()
            raise
        self._verify(entry, file, intake)
        intake.add(file)

    def _stream(self, url: str, target: FileIntake, size: int | None) -> None:
        """Append what is missing of the file to `target`."""
        # identity: sizes and ranges count the file's own bytes only when nobody compresses them
        headers = self._utils.build_hf_headers(library_name="modelmora") | {
            "accept-encoding": "identity"
        }
        if target.received:
            headers["range"] = f"bytes={target.received}-"
        session = self._utils.get_session()
        with session.stream("GET", url, headers=headers, timeout=self._limits.answer) as response:
            if response.status_code == 416 or (target.received and response.status_code == 200):
                target.restart()
            self._utils.hf_raise_for_status(response)
            if response.status_code not in (200, 206):
                raise Transient(f"unexpected status {response.status_code}")
            for chunk in response.iter_raw():
                target.write(chunk)
                if size is not None and target.received > size:
                    break
        if size is not None and target.received != size:
            received = target.received
            if received > size:
                target.restart()
            raise Transient(f"{received} of {size} bytes came")

    def _verify(self, entry: Any, file: SourceFile, intake: Intake) -> None:
        """Large files have a sha256 on the hub, others the id that git gives their content."""
        what = f"{entry.rfilename} of {self._id}"
        if entry.lfs is not None:
            if entry.lfs.sha256 != file.sha256:
                raise ChecksumMismatch(what, f"sha256:{entry.lfs.sha256}", f"sha256:{file.sha256}")
        elif entry.blob_id is not None and len(entry.blob_id) == 40:
            content = intake.read(file.path)
            # git's object id, not a matter of security: the transport and the commit are
            digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
            digest.update(content)
            if digest.hexdigest() != entry.blob_id:
                raise ChecksumMismatch(what, f"git:{entry.blob_id}", f"git:{digest.hexdigest()}")

    # -- failures -----------------------------------------------------------------------------

    def _persistently(
        self,
        call: Callable[[], _T],
        *,
        count: Callable[[], int] = lambda: 0,
        deadline: float = float("inf"),
    ) -> _T:
        try:
            return self._patience.call(lambda: self._attempt(call), count=count, deadline=deadline)
        except Transient as error:
            raise DownloadFailed(
                f"{self._id} cannot be downloaded from {self._endpoint} now ({error}). "
                "Try again later, or set HF_ENDPOINT to a mirror."
            ) from error

    def _attempt(self, call: Callable[[], _T]) -> _T:
        http = self._http
        try:
            return call()
        except self._errors.RevisionNotFoundError:
            raise
        except self._errors.HfHubHTTPError as error:
            raise self._explain(error) from error
        except self._errors.HFValidationError as error:
            raise ArtifactNotAccessible(f"{self._id} cannot be on the hub: {error}.") from error
        except self._errors.OfflineModeIsEnabled as error:
            raise ArtifactNotAccessible(
                f"{self._id} cannot be downloaded: HF_HUB_OFFLINE forbids asking the hub."
            ) from error
        except (http.UnsupportedProtocol, http.InvalidURL, http.TooManyRedirects) as error:
            raise DownloadFailed(
                f"{self._endpoint} is not an address of a hub ({error}). Check HF_ENDPOINT."
            ) from error
        except http.HTTPError as error:
            raise Transient(str(error) or type(error).__name__) from error

    def _explain(self, error: HfHubHTTPError) -> ModelMoraError | Transient:
        """The hub's refusal, in words that say what to do."""
        status, errors = error.response.status_code, self._errors
        if status in _RETRIED:
            text = error.response.headers.get("retry-after", "")
            return Transient(f"HTTP {status}", float(text) if text.isdecimal() else None)
        page = f"{_CANONICAL}/{self._id}"
        if isinstance(error, errors.GatedRepoError):
            message = f"{self._id} is gated: accept its conditions at {page}, then "
            message += self._token_advice("set HF_TOKEN to a token of that account.")
        elif isinstance(error, errors.RemoteEntryNotFoundError):
            message = f"A file of {self._id} has disappeared from the hub: {error.response.url}"
        elif status in (401, 403, 404):
            message = f"{self._id} does not exist on {self._endpoint}, or is private: "
            message += self._token_advice("set HF_TOKEN to a token that may read it.")
        else:
            return DownloadFailed(f"{self._endpoint} refused {self._id} with HTTP {status}.")
        return ArtifactNotAccessible(message)

    def _token_advice(self, advice: str) -> str:
        if self._has_token:
            return "the HF_TOKEN in use is not valid for it. Check its account and permissions."
        return advice
