"""Where a model's files come from: the hub, a directory, an archive on the web, or S3."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

from controlplane.errors import ChecksumMismatch, ValidationFailed
from controlplane.registry.disk import reporting_full_disk
from controlplane.registry.files import FetchedSource, Progress, SourceFile, SourceRules
from controlplane.registry.hub import Hub, HubRefs
from controlplane.registry.intake import Intake, received_before
from controlplane.registry.local import copy_directory, directory_of
from controlplane.registry.patience import HubLimits
from controlplane.registry.s3 import S3
from controlplane.registry.source_url import parse_source_url
from controlplane.registry.stopping import FetchCancelled, Stop
from controlplane.registry.web import fetch_web_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from controlplane.registry.blobs import BlobCache
    from controlplane.registry.model import ModelId
    from controlplane.settings import Settings

__all__ = [
    "FetchCancelled",
    "FetchedSource",
    "HubLimits",
    "HubRefs",
    "Progress",
    "SourceFile",
    "SourceRules",
    "fetch",
    "list_refs",
    "peek",
    "rules_of",
]

_MB = 1024 * 1024


def rules_of(settings: Settings) -> SourceRules:
    """What the operator allows of sources."""
    return SourceRules(
        allow_pickle=settings.allow_pickle,
        allow_http=settings.allow_http,
        allow_private=settings.allow_private_sources,
        max_bytes=settings.max_source_mb * _MB,
        ready_dirs=settings.ready_model_dirs,
        allow_remote_ready=settings.allow_remote_ready_models,
    )


def fetch(
    model_id: ModelId,
    version: str,
    source_url: str | None,
    destination: Path,
    *,
    cache: BlobCache,
    rules: SourceRules,
    progress: Callable[[Progress], None],
    cancelled: threading.Event,
    checksum: str | None = None,
    limits: HubLimits | None = None,
) -> FetchedSource:
    """Bring a version's source to `destination`, whole and verified, or not at all.

    What an earlier call brought there is used again when it is still intact and what is wanted;
    files that the cache has are not downloaded; a download that broke off, in whatever way, goes
    on where it did. Blocks; run it in a thread.

    Args:
        version: branch, tag or commit for the hub; for a ready-made Triton model perhaps the
            number of its folder.
        source_url: see `source_url.py`; None for the hub.
        progress: called often, from several threads but one at a time.
        cancelled: set it to have the call stop within about `limits.answer` seconds.
        checksum: what the version is pinned to, when it is.

    Raises:
        ArtifactNotAccessible: the source, or something needed in it, is missing or not ours to
            read; the message says what to do.
        DownloadFailed: the source does not answer, or not sensibly.
        ChecksumMismatch: the bytes are not those that the source announces, or that were pinned.
        SourceRefused: a rule of safety forbids it.
        UnsafeWeights, InsufficientDisk, ValidationFailed.
        FetchCancelled.
    """
    stop = Stop(cancelled)
    intake = Intake(str(model_id), destination, cache, progress, stop, max_bytes=rules.max_bytes)
    intake.version = version
    earlier = received_before(destination, stop)
    if checksum is not None and earlier is not None and earlier.checksum == checksum:
        return earlier
    if checksum is not None:
        earlier = None  # not what is wanted, even if the hub says that it is the same commit
    try:
        with reporting_full_disk(destination, lambda: intake.total):
            intake.begin()
            if source_url is None:
                hub = Hub(str(model_id), limits or HubLimits(), stop)
                source = hub.fetch(version, intake, earlier, rules)
            else:
                source = _fetch_url(source_url, intake, rules, limits or HubLimits(), stop)
    except BaseException:
        intake.discard()
        raise
    if checksum is not None and source.checksum != checksum:
        raise ChecksumMismatch(
            f"The source of {model_id} version {version}", checksum, source.checksum
        )
    return source


def peek(
    model_id: ModelId,
    version: str,
    source_url: str | None,
    names: Sequence[str],
    *,
    largest: int,
    limits: HubLimits,
) -> dict[str, bytes]:
    """Small files of a version, those of `names` that it has; nothing is kept.

    Blocks; run it in a thread.

    Args:
        source_url: `s3://bucket/prefix`; None for the hub.
        largest: bytes; larger files are left out.

    Raises:
        ArtifactNotAccessible, DownloadFailed: as `fetch`.
    """
    stop = Stop(threading.Event())
    if source_url is not None:
        with closing(S3(source_url, limits, stop)) as s3:
            return s3.peek(names, largest)
    return Hub(str(model_id), limits, stop).peek(version, names, largest)


def list_refs(
    model_id: ModelId,
    *,
    limits: HubLimits | None = None,
    cancelled: threading.Event | None = None,
) -> HubRefs:
    """Ask the hub for a repository's branches and tags. Blocks; run it in a thread.

    Args:
        cancelled: set it to have no further attempt made.

    Raises:
        FetchCancelled.
        ArtifactNotAccessible: no such repository, or not ours to read.
        DownloadFailed: the hub does not answer within `limits.resolve`, or not sensibly.
    """
    return Hub(str(model_id), limits or HubLimits(), Stop(cancelled or threading.Event())).refs()


def _fetch_url(
    source_url: str, intake: Intake, rules: SourceRules, limits: HubLimits, stop: Stop
) -> FetchedSource:
    url = parse_source_url(source_url)
    if isinstance(url, str):
        raise ValidationFailed.field("source_url", url)
    if url.kind == "directory":
        return copy_directory(directory_of(source_url), intake, rules)
    if url.kind == "web archive":
        return fetch_web_archive(source_url, url, intake, rules, limits, stop)
    with closing(S3(source_url, limits, stop)) as s3:
        return s3.fetch(intake, rules, archive=url.kind == "s3 archive")
