"""The HuggingFace hub as a source.

The only importer of `huggingface_hub`, which knows the hub's addresses, headers, tokens and errors
(`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` mean what they mean there). The bytes are streamed here
and not by `hf_hub_download`: a download must stop within a moment when it is cancelled, wait no
longer than we say, go on where a broken connection left off, and be hashed on its way in. That
needs only the hub's plain HTTP, so mirrors work, and no other host is asked.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from controlplane.errors import (
    ArtifactNotAccessible,
    ChecksumMismatch,
    DownloadFailed,
    ModelMoraError,
)
from controlplane.registry.contents import digest_of
from controlplane.registry.files import FetchedSource, SourceRules, is_plain_path
from controlplane.registry.patience import RETRIED, HubLimits, Patience, Transient
from controlplane.registry.selection import check_received, choose, layout_file, layout_folders
from controlplane.registry.transfer import Answer, NothingThere, all_at_once, receive_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from huggingface_hub.errors import HfHubHTTPError

    from controlplane.registry.file_intake import FileIntake
    from controlplane.registry.intake import Intake
    from controlplane.registry.stopping import Stop

_CANONICAL = "https://huggingface.co"
_MB = 1024 * 1024
_T = TypeVar("_T")


class HubRefs(msgspec.Struct, frozen=True):
    """A repository's branches and tags, each with the commit that it stands for now."""

    branches: dict[str, str]
    tags: dict[str, str]


class _Ref(msgspec.Struct):
    name: str
    commit: str = msgspec.field(name="targetCommit")


class _Refs(msgspec.Struct):
    branches: list[_Ref]
    tags: list[_Ref]


class Hub:
    """One repository on the hub; nothing is asked before `fetch`."""

    def __init__(self, model_id: str, limits: HubLimits, stop: Stop) -> None:
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
        self._id = model_id
        self._limits = limits
        self._stop = stop
        self._patience = Patience(limits, stop)
        self._endpoint = (os.environ.get("HF_ENDPOINT") or _CANONICAL).rstrip("/")
        self._has_token = huggingface_hub.get_token() is not None

    def fetch(
        self, version: str, intake: Intake, earlier: FetchedSource | None, rules: SourceRules
    ) -> FetchedSource:
        """Receive a revision whole.

        Args:
            earlier: what was received before; it is the answer when the revision is the same.

        Raises:
            As `sources.fetch`.
        """
        info = self._resolve(version)
        if earlier is not None and earlier.revision == info.sha:
            intake.discard()
            return earlier
        entries = {item.rfilename: item for item in info.siblings or ()}
        layout = layout_file(entries)
        if layout is not None:
            self._receive(info.sha, entries[layout], intake)
        folders = layout_folders(layout, intake.read(layout) if layout else None, self._id)
        names = choose(filter(is_plain_path, entries), folders, where=self._id, rules=rules)
        total = sum(entries[name].size or 0 for name in names)
        intake.check_size(total)
        intake.expect(total, here=sum(self._here(entries[name], intake) for name in names))
        self._receive_all(info.sha, [entries[name] for name in names], intake, rules)
        return intake.finish(info.sha, f"{_CANONICAL}/{self._id}/tree/{info.sha}")

    def peek(self, version: str, names: Sequence[str], largest: int) -> dict[str, bytes]:
        """Those of `names` that a version has and that are no larger than `largest` bytes.

        Raises:
            ArtifactNotAccessible, DownloadFailed.
        """
        info = self._resolve(version)
        sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
        wanted = [name for name in names if name in sizes and sizes[name] <= largest]
        return {name: self._small(info.sha, name, largest) for name in wanted}

    def _small(self, commit: str, name: str, largest: int) -> bytes:
        """One file's content; cut off behind `largest` bytes whatever size was announced."""
        url = self._library.hf_hub_url(self._id, name, revision=commit, endpoint=self._endpoint)
        headers = self._utils.build_hf_headers(library_name="modelmora")

        def get() -> bytes:
            content, session = b"", self._utils.get_session()
            timeout = self._limits.answer
            with session.stream("GET", url, headers=headers, timeout=timeout) as response:
                self._utils.hf_raise_for_status(response)
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > largest:
                        break
            return content[:largest]

        return self._persistently(get)

    def _receive_all(
        self, commit: str, entries: list[Any], intake: Intake, rules: SourceRules
    ) -> None:
        """Small files first: what is wrong with them is known before gigabytes have come."""
        names = [entry.rfilename for entry in entries]
        left = [entry for entry in entries if not intake.has(entry.rfilename)]
        left.sort(key=lambda entry: (entry.size or 0, entry.rfilename))
        small = [entry for entry in left if (entry.size or 0) <= _MB and entry.lfs is None]
        for some in (small, [entry for entry in left if entry not in small]):
            all_at_once(
                [partial(self._receive, commit, entry, intake) for entry in some],
                self._stop,
            )
            check_received(intake, names, self._id, rules)

    def _here(self, entry: Any, intake: Intake) -> int:
        """Bytes of the file that need no more room."""
        known = entry.lfs is not None and intake.cache.has(entry.lfs.sha256)
        return (entry.size or 0) if known else 0

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

    # -- one file --------------------------------------------------------------------------------

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

    def _receive(self, commit: str, entry: Any, intake: Intake) -> None:
        """Have one file, from the cache or from the hub, compared with the hub's digest of it."""
        if entry.lfs is not None and intake.reuse(entry.rfilename, entry.lfs.sha256):
            return
        url = self._library.hf_hub_url(
            self._id, entry.rfilename, revision=commit, endpoint=self._endpoint
        )
        # Each of them names the content, so that what is left of it may be continued.
        content = _digest_name(entry) or "hub-" + hashlib.sha256(url.encode()).hexdigest()
        if intake.reuse_known(entry.rfilename, content, content):
            return
        with intake.receiving(entry.rfilename, key=content, validator=content) as target:
            self._download(url, target, entry.size)
            if target.resumed and not self._is_right(entry, target):
                target.restart()  # what an earlier life had left may be what is wrong with it
                self._download(url, target, entry.size)
            self._verify(entry, target)
            intake.take(target)

    def _download(self, url: str, target: FileIntake, size: int | None) -> None:
        self._persistently(
            lambda: receive_once(target, lambda target: self._ask(url, target), size),
            count=lambda: target.received,
        )

    @contextmanager
    def _ask(self, url: str, target: FileIntake) -> Iterator[Answer]:
        # identity: sizes and ranges count the file's own bytes only when nobody compresses them
        headers = self._utils.build_hf_headers(library_name="modelmora") | {
            "accept-encoding": "identity"
        }
        if target.received:
            headers["range"] = f"bytes={target.received}-"
        session = self._utils.get_session()
        with session.stream("GET", url, headers=headers, timeout=self._limits.answer) as response:
            if response.status_code == 416 and target.received:
                raise NothingThere
            self._utils.hf_raise_for_status(response)
            if response.status_code not in (200, 206):
                raise Transient(f"unexpected status {response.status_code}")
            start = target.received if response.status_code == 206 else 0
            yield Answer(start, response.iter_raw())

    def _is_right(self, entry: Any, target: FileIntake) -> bool:
        try:
            self._verify(entry, target)
        except ChecksumMismatch:
            return False
        return True

    def _verify(self, entry: Any, target: FileIntake) -> None:
        """Large files have a sha256 on the hub, others the id that git gives their content.

        Raises:
            ChecksumMismatch: nothing of the file is kept.
        """
        wanted = _digest_name(entry)
        if wanted is None:
            return
        file = target.sync()
        if entry.lfs is not None:
            found = f"sha256-{file.sha256}"
        else:
            # git's object id, not a matter of security: the transport and the commit are
            prefix = b"blob %d\0" % file.size
            found = "git-" + digest_of(target.part, algorithm="sha1", prefix=prefix)
        if found != wanted:
            target.forget()
            what = f"{entry.rfilename} of {self._id}"
            raise ChecksumMismatch(what, wanted.replace("-", ":"), found.replace("-", ":"))

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
        if status in RETRIED:
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


def _digest_name(entry: Any) -> str | None:
    """What the hub says of a file's content: `sha256-…`, `git-…` (a blob's id) or None."""
    if entry.lfs is not None:
        return f"sha256-{entry.lfs.sha256}"
    known = entry.blob_id is not None and len(entry.blob_id) == 40 and entry.blob_id.isalnum()
    return f"git-{entry.blob_id}" if known else None
