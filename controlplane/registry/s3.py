"""S3, or anything that speaks its protocol, as a source.

The only importer of `boto3`, which finds credentials, region and endpoint as everywhere else
(`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `AWS_ENDPOINT_URL`, … and the metadata of the machine). The
endpoint is the operator's choice, never a user's, so its address is not questioned.
"""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from controlplane.errors import (
    ArtifactNotAccessible,
    ChecksumMismatch,
    DownloadFailed,
    ModelMoraError,
)
from controlplane.registry.archives import unpack
from controlplane.registry.contents import digest_of
from controlplane.registry.files import is_plain_path
from controlplane.registry.patience import RETRIED, HubLimits, Patience, Transient
from controlplane.registry.ready_models import CONFIG as TRITON_CONFIG
from controlplane.registry.ready_models import choose as choose_ready
from controlplane.registry.ready_models import is_ready_made
from controlplane.registry.ready_source import check_remote
from controlplane.registry.selection import check_received, choose, layout_file, layout_folders
from controlplane.registry.transfer import Answer, NothingThere, all_at_once, receive_once
from controlplane.triton.ready_config import LARGEST_CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from controlplane.registry.file_intake import FileIntake
    from controlplane.registry.files import FetchedSource, SourceRules
    from controlplane.registry.intake import Intake
    from controlplane.registry.stopping import Stop

_CHUNK = 64 * 1024
_MB = 1024 * 1024
_MOST_OBJECTS = 10_000
_MD5 = re.compile(r'"[0-9a-f]{32}"')
_T = TypeVar("_T")


class _Object(NamedTuple):
    key: str
    size: int
    tag: str


class S3:
    """The objects below a prefix of a bucket, or one that is an archive."""

    def __init__(self, url: str, limits: HubLimits, stop: Stop) -> None:
        parts = urlsplit(url)
        self._url = url.rstrip("/")
        self._bucket = parts.netloc
        self._key = unquote(parts.path).strip("/")
        self._stop = stop
        self._patience = Patience(limits, stop)
        self._plain_md5 = True
        with self._explained():
            self._client = _client(limits)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def fetch(self, intake: Intake, rules: SourceRules, *, archive: bool) -> FetchedSource:
        """Receive the model.

        Raises:
            As `sources.fetch`.
        """
        objects = self._list(self._key if archive else f"{self._key}/".lstrip("/"))
        if archive:
            self._fetch_archive(objects, intake, rules)
        else:
            self._fetch_folder(objects, intake, rules)
        return intake.finish(None, self._url)

    def peek(self, names: Sequence[str], largest: int) -> dict[str, bytes]:
        """Those of `names` below the prefix that are no larger than `largest` bytes.

        Raises:
            ArtifactNotAccessible, DownloadFailed.
        """
        objects = self._list(f"{self._key}/".lstrip("/"))
        wanted = [name for name in names if name in objects and objects[name].size <= largest]
        return {name: self._small(objects[name]) for name in wanted}

    def _small(self, item: _Object) -> bytes:
        def get() -> bytes:
            answer = self._client.get_object(Bucket=self._bucket, Key=item.key, IfMatch=item.tag)
            with closing(answer["Body"]) as body:
                return bytes(body.read(item.size))

        return self._persistently(get)

    def _fetch_archive(
        self, objects: dict[str, _Object], intake: Intake, rules: SourceRules
    ) -> None:
        found = objects.get("")
        if found is None:
            raise ArtifactNotAccessible(f"{self._url} does not exist.")
        intake.check_size(found.size)
        intake.expect(found.size)
        name = self._key.rpartition("/")[2]
        with self._received(name, found, intake) as target:
            unpack(target, self._url, intake, rules)

    def _fetch_folder(
        self, objects: dict[str, _Object], intake: Intake, rules: SourceRules
    ) -> None:
        if not objects:
            raise ArtifactNotAccessible(f"There is nothing at {self._url}/.")
        if is_ready_made(objects):
            self._fetch_ready(objects, intake, rules)
            return
        layout = layout_file(objects)
        if layout is not None:
            self._receive(layout, objects[layout], intake)
        folders = layout_folders(layout, intake.read(layout) if layout else None, self._url)
        plain = filter(is_plain_path, objects)
        names = choose(plain, folders, where=self._url, rules=rules)
        total = sum(objects[name].size for name in names)
        intake.check_size(total)
        intake.expect(total)
        left = sorted(
            (name for name in names if not intake.has(name)), key=lambda name: objects[name].size
        )
        small = [name for name in left if objects[name].size <= _MB]
        for some in (small, left[len(small) :]):
            all_at_once(
                [partial(self._receive, name, objects[name], intake) for name in some], self._stop
            )
            check_received(intake, names, self._url, rules)

    def _fetch_ready(self, objects: dict[str, _Object], intake: Intake, rules: SourceRules) -> None:
        """A ready-made Triton model."""
        check_remote(self._url, rules)
        if objects[TRITON_CONFIG].size > LARGEST_CONFIG:
            raise ArtifactNotAccessible(f"{self._url}/{TRITON_CONFIG} is no configuration.")
        self._receive(TRITON_CONFIG, objects[TRITON_CONFIG], intake)
        content, version = intake.read(TRITON_CONFIG), intake.version
        names = choose_ready(objects, content, version, self._url).files
        total = sum(objects[name].size for name in names)
        intake.check_size(total)
        intake.expect(total)
        left = [name for name in names if not intake.has(name)]
        all_at_once(
            [partial(self._receive, name, objects[name], intake) for name in left], self._stop
        )

    def _list(self, prefix: str) -> dict[str, _Object]:
        """The objects by what their key has beyond the prefix."""

        def ask() -> list[_Object]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix, PaginationConfig={"MaxItems": _MOST_OBJECTS}
            )
            return [
                _Object(item["Key"], item["Size"], item["ETag"])
                for page in pages
                for item in page.get("Contents", ())
            ]

        found = self._persistently(ask)
        return {item.key.removeprefix(prefix): item for item in found if item.key[-1:] != "/"}

    def _receive(self, name: str, item: _Object, intake: Intake) -> None:
        if not intake.reuse_known(name, self._file_key(item), item.tag):
            with self._received(name, item, intake) as target:
                intake.take(target)

    def _file_key(self, item: _Object) -> str:
        where = f"{self._client.meta.endpoint_url}/{self._bucket}/{item.key}"
        return "s3-" + hashlib.sha256(where.encode()).hexdigest()

    @contextmanager
    def _received(self, name: str, item: _Object, intake: Intake) -> Iterator[FileIntake]:
        """An object, whole and compared with its MD5 where its ETag is one."""
        key = self._file_key(item)
        with intake.receiving(name, key=key, validator=item.tag) as target:
            self._persistently(
                lambda: receive_once(target, partial(self._ask, item), item.size),
                count=lambda: target.received,
            )
            self._verify(item, target)
            yield target

    @contextmanager
    def _ask(self, item: _Object, target: FileIntake) -> Iterator[Answer]:
        start = target.received
        more = {"Range": f"bytes={start}-"} if start else {}
        answer = self._client.get_object(
            Bucket=self._bucket, Key=item.key, IfMatch=item.tag, **more
        )
        # Only what S3 encrypts with its own keys, or not at all, has its MD5 as ETag.
        self._plain_md5 = answer.get("ServerSideEncryption") in (None, "AES256")
        with closing(answer["Body"]) as body:
            if answer.get("ETag", item.tag) != item.tag:  # of a server that knows no If-Match
                raise self._changed()
            if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:  # nor Range
                start = 0
            yield Answer(start, body.iter_chunks(_CHUNK))

    def _verify(self, item: _Object, target: FileIntake) -> None:
        if not (self._plain_md5 and _MD5.fullmatch(item.tag)):
            return
        target.sync()
        found = digest_of(target.part, algorithm="md5")
        if found != item.tag.strip('"'):
            target.forget()
            raise ChecksumMismatch(
                f"{item.key} of {self._url}", f"md5:{item.tag.strip(chr(34))}", f"md5:{found}"
            )

    # -- failures ------------------------------------------------------------------------------

    def _persistently(self, call: Callable[[], _T], *, count: Callable[[], int] = lambda: 0) -> _T:
        def attempt() -> _T:
            with self._explained():
                return call()

        try:
            return self._patience.call(attempt, count=count)
        except Transient as error:
            raise DownloadFailed(
                f"{self._url} cannot be downloaded now ({error}). Try again later; for another "
                "server than Amazon's set AWS_ENDPOINT_URL."
            ) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What boto3 raises, in words that say what to do; never with a credential in them."""
        from botocore import exceptions as e

        try:
            yield
        except e.ClientError as error:
            raise self._explain(error) from error
        except (e.NoCredentialsError, e.PartialCredentialsError, e.ProfileNotFound) as error:
            raise ArtifactNotAccessible(
                f"{self._url}: {error}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE, in the server's environment."
            ) from error
        except (e.HTTPClientError, e.ConnectionError, e.IncompleteReadError) as error:
            raise Transient(_one_line(error)) from error
        except e.BotoCoreError as error:
            raise ArtifactNotAccessible(
                f"{self._url} cannot be read: {_one_line(error)}"
            ) from error

    def _changed(self) -> DownloadFailed:
        return DownloadFailed(
            f"An object of {self._url} changed while it was downloaded. Install again."
        )

    def _explain(self, error: Any) -> ModelMoraError | Transient | NothingThere:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        if status in RETRIED:
            return Transient(f"HTTP {status} {code}".strip())
        if status in (412, 416):
            return self._changed()
        if code == "NoSuchBucket":
            return ArtifactNotAccessible(f"There is no bucket {self._bucket!r}.")
        if status == 404:
            return ArtifactNotAccessible(f"An object of {self._url} does not exist any more.")
        if status in (401, 403):
            return ArtifactNotAccessible(
                f"{self._url} may not be read with the credentials in use ({code}): check "
                "AWS_ACCESS_KEY_ID or AWS_PROFILE, and the bucket's policy (list and get)."
            )
        return DownloadFailed(f"{self._url} was refused with HTTP {status} {code}.")


def _one_line(error: Exception) -> str:
    """The message without the query of an address in it, which carries a signature."""
    return re.sub(r"\?\S+", "", " ".join(str(error).split()))


def _client(limits: HubLimits) -> Any:
    """A client for the endpoint, region and credentials of the environment.

    Without credentials requests are not signed, which public buckets allow.
    """
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    # It would write every header of a request, with its signature, at DEBUG.
    logging.getLogger("botocore").setLevel(logging.INFO)
    session = boto3.session.Session()
    options: dict[str, Any] = {
        "connect_timeout": limits.answer,
        "read_timeout": limits.answer,
        "retries": {"total_max_attempts": 1},
        "response_checksum_validation": "when_required",
        "request_checksum_calculation": "when_required",
    }
    if session.get_credentials() is None:
        options["signature_version"] = UNSIGNED
    region = session.region_name or "us-east-1"

    def make(**more: Any) -> Any:
        return session.client("s3", region_name=region, config=Config(**options, **more))

    client = make()
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    # Other servers than Amazon's rarely have a host name for each bucket.
    return client if "amazonaws.com" in host else make(s3={"addressing_style": "path"})
