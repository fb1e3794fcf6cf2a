"""The cache of received files: each content once, shared by all versions that have it.

    cache/blobs/sha256/ab/abcdef…   whole files, read-only, named by their SHA-256
    cache/partial/{key}             files on their way in; kept when a download breaks off
    cache/partial/{key}.json        whose they are, and of which content (see `Note`)
    cache/names/{key}               what sources call a blob: its SHA-256 behind an ETag or git id

A version's download folder has hard links to the blobs, so that a file's link count says whether
anybody needs it, at any moment and after any crash; where links are impossible it has copies. A
blob only ever saves a download: removing one takes nothing from a version. Whoever edits a file of
a download folder edits the blob (they are 0444 to prevent that by mistake), so a blob is hashed
before it is used again. One process owns a cache: the server (`server.lock` of its data directory).
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import msgspec

from controlplane.registry.contents import Note, digest_of, note_path, place, read_note
from controlplane.registry.disk import remove_tree, sync_folder
from controlplane.registry.files import RECORD, FetchedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Name(msgspec.Struct, frozen=True):
    """Which blob a source's file was, while it had that validator."""

    validator: str
    sha256: str


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the cache; `users` are `{triton_name}/{triton_version}` of downloads with it."""

    sha256: str
    size: int
    users: tuple[str, ...] = ()


class CacheContent(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the cache.

    Attributes:
        blobs: all files, the largest first.
        bytes: their size; `unused_bytes` of it belongs to no version.
        saved_bytes: what the versions' folders would take more if nothing were shared.
        partials, partial_bytes: broken-off downloads.
    """

    blobs: tuple[Blob, ...]
    bytes: int
    unused_bytes: int
    saved_bytes: int
    partials: int
    partial_bytes: int


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What was, or with dry_run would be, removed."""

    dry_run: bool
    blobs: int
    partials: int
    freed_bytes: int


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What hashing every blob found; the damaged ones are no longer in the cache."""

    blobs: int
    bytes: int
    damaged: tuple[Blob, ...]


class BlobCache:
    """The cache of a data directory.

    Args:
        root: of the cache.
        downloads: the folder of the versions' folders, `{triton_name}/{triton_version}`.
    """

    def __init__(self, root: Path, downloads: Path) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._partial = root / "partial"
        self._names = root / "names"
        self._downloads = downloads
        self._lock = threading.Condition()
        self._busy: set[str] = set()

    # -- files on their way in -----------------------------------------------------------------

    @contextlib.contextmanager
    def reserve(self, key: str, check: Callable[[], None]) -> Iterator[Path]:
        """The partial file of `key`, which nobody else uses meanwhile; its folder exists.

        Args:
            check: called while waiting for another user; raises to give up.
        """
        with self._lock:
            while key in self._busy:
                check()
                self._lock.wait(0.1)
            self._busy.add(key)
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            yield self._partial / key
        finally:
            with self._lock:
                self._busy.discard(key)
                self._lock.notify_all()

    def adopt(self, file: Path, sha256: str, target: Path) -> None:
        """Make a whole, verified and synced file a blob, and put it at `target` too."""
        blob = self._path(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        known = blob.exists() and digest_of(blob) == sha256
        file.chmod(0o444)
        with self._lock:
            if known and blob.exists():
                file.unlink()
            else:
                file.rename(blob)
            place(blob, target)
        sync_folder(blob.parent)

    def reuse(self, sha256: str, target: Path, check: Callable[[], None]) -> int | None:
        """Put a blob at `target` if there is one and it is intact.

        Args:
            check: called while it is hashed; raises to give up.

        Returns:
            Its size in bytes; None when there is none. A damaged one is removed.
        """
        blob = self._path(sha256)
        try:
            if digest_of(blob, check=check) != sha256:
                blob.unlink(missing_ok=True)
                return None
            with self._lock:
                place(blob, target)
            return target.stat().st_size
        except FileNotFoundError:
            return None

    def remember(self, key: str, validator: str, sha256: str) -> None:
        """Note which blob a source's file is, for sources that do not say its SHA-256."""
        self._names.mkdir(parents=True, exist_ok=True)
        staged = self._names / f"{key}.new"
        staged.write_bytes(msgspec.json.encode(Name(validator, sha256)))
        staged.replace(self._names / key)

    def known(self, key: str, validator: str) -> str | None:
        """The SHA-256 of a source's file, if it was received with that validator."""
        try:
            name = msgspec.json.decode((self._names / key).read_bytes(), type=Name)
        except (OSError, msgspec.DecodeError):
            return None
        return name.sha256 if name.validator == validator else None

    def has(self, sha256: str) -> bool:
        """True when a blob of that name is there, intact or not."""
        return self._path(sha256).exists()

    # -- taking away -----------------------------------------------------------------------------

    def remove_download(self, folder: Path, owner: str) -> None:
        """Remove a model's or version's download folder, and what only that had in the cache.

        Args:
            owner: the model's id; its broken-off downloads go too.
        """
        names = {digest for record in _records(folder) for digest in record}
        remove_tree(folder)
        for name in names:
            self._remove_unlinked(self._path(name))
        for part, note in list(self._partials()):
            if note is None or note.owner == owner:
                self._remove_partial(part)

    def prune(self, *, dry_run: bool = False) -> Pruned:
        """Remove what no version uses, and broken-off downloads that do not run."""
        count = freed = parts = 0
        users = self._users()
        for name, path, size in list(self._listed()):
            if name not in users and self._remove_unlinked(path, dry_run=dry_run):
                count, freed = count + 1, freed + size
        for part, _ in list(self._partials()):
            size = part.stat().st_size if part.exists() else 0
            if self._remove_partial(part, dry_run=dry_run):
                parts, freed = parts + 1, freed + size
        if not dry_run:
            self._prune_names()
        return Pruned(dry_run=dry_run, blobs=count, partials=parts, freed_bytes=freed)

    def _prune_names(self) -> None:
        for path in list(self._names.glob("*")):
            try:
                stale = not self.has(msgspec.json.decode(path.read_bytes(), type=Name).sha256)
            except (OSError, msgspec.DecodeError):
                stale = True
            if stale:
                path.unlink(missing_ok=True)

    def _remove_unlinked(self, path: Path, *, dry_run: bool = False) -> bool:
        """Remove a blob that nothing else is linked to; True if there was one."""
        with self._lock:  # not between `adopt`'s rename and its link
            try:
                if path.stat().st_nlink > 1:
                    return False
                if not dry_run:
                    path.unlink()
            except FileNotFoundError:
                return False
        return True

    def _remove_partial(self, part: Path, *, dry_run: bool = False) -> bool:
        with self._lock:
            if part.name in self._busy:
                return False
            if not dry_run:
                for path in (part, note_path(part), part.with_suffix(".new")):
                    path.unlink(missing_ok=True)
        return True

    # -- looking ---------------------------------------------------------------------------------

    def content(self) -> CacheContent:
        """List the cache."""
        users = self._users()
        blobs = sorted(
            (
                Blob(sha256=name, size=size, users=tuple(users.get(name, ())))
                for name, _, size in self._listed()
            ),
            key=lambda blob: (-blob.size, blob.sha256),
        )
        sizes = [part.stat().st_size for part, _ in self._partials() if part.exists()]
        return CacheContent(
            blobs=tuple(blobs),
            bytes=sum(blob.size for blob in blobs),
            unused_bytes=sum(blob.size for blob in blobs if not blob.users),
            saved_bytes=sum(blob.size * max(0, len(blob.users) - 1) for blob in blobs),
            partials=len(sizes),
            partial_bytes=sum(sizes),
        )

    def verify(self) -> Verified:
        """Hash every blob. A damaged one leaves the cache; who has it is named."""
        users = self._users()
        damaged, count, total = [], 0, 0
        for name, path, size in list(self._listed()):
            try:
                intact = digest_of(path) == name
            except FileNotFoundError:
                continue
            count, total = count + 1, total + size
            if not intact:
                path.unlink(missing_ok=True)
                damaged.append(Blob(sha256=name, size=size, users=tuple(users.get(name, ()))))
        return Verified(blobs=count, bytes=total, damaged=tuple(damaged))

    def _path(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def _listed(self) -> Iterator[tuple[str, Path, int]]:
        for path in sorted(self._blobs.glob("??/*")):
            with contextlib.suppress(FileNotFoundError):
                yield path.name, path, path.stat().st_size

    def _partials(self) -> Iterator[tuple[Path, Note | None]]:
        names = {p.with_suffix("") for p in self._partial.glob("*")}
        for part in sorted(names):
            yield part, read_note(part)

    def _users(self) -> dict[str, list[str]]:
        """By digest, the downloads that have it."""
        found: dict[str, list[str]] = {}
        for home in sorted(self._downloads.glob("*/*")):
            for record in _records(home):
                for digest in record:
                    found.setdefault(digest, []).append(f"{home.parent.name}/{home.name}")
        return found


def _records(folder: Path) -> Iterator[set[str]]:
    """The digests in each record of a source at or below a folder."""
    for path in (folder / RECORD, *folder.glob(f"*/{RECORD}")):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            source = msgspec.json.decode(path.read_bytes(), type=FetchedSource)
            yield {file.sha256 for file in source.files}
