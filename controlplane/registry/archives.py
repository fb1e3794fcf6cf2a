"""A model's folder in an archive (tar, perhaps compressed, or zip), read without trusting it.

Nothing is unpacked by its own path: entries are listed, the list is checked, and the model's files
are copied out one by one. An archive with an entry that could lead out of a folder (`..`, absolute
paths, links, devices) is refused as a whole: nobody makes one by mistake.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

from controlplane.errors import (
    ArtifactNotAccessible,
    SourceRefused,
    TritonModelInvalid,
    UnsafeWeights,
)
from controlplane.registry.files import MODULES, is_plain_path
from controlplane.registry.ready_models import CONFIG as TRITON_CONFIG
from controlplane.registry.ready_models import choose as choose_ready
from controlplane.registry.ready_models import is_ready_made
from controlplane.registry.ready_source import check_remote
from controlplane.registry.selection import check_received, choose, module_folders
from controlplane.triton.ready_config import LARGEST_CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from typing_extensions import Self

    from controlplane.registry.file_intake import FileIntake
    from controlplane.registry.files import SourceRules
    from controlplane.registry.intake import Intake

_CHUNK = 1024 * 1024
_MB = 1024 * 1024
_MOST_ENTRIES = 10_000
_DEEPEST = 32
# Weights hardly shrink at all; small files may.
_LARGEST_RATIO = 100
_FREE_OF_RATIO = 100 * _MB
# What tarfile reads into memory as a whole: long names and pax records.
_HEADERS = frozenset(
    {
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    }
)
_LARGEST_HEADER = _MB
# What is in a folder: by its name without case, the name and, of a folder, what is in that.
_Folder: TypeAlias = "dict[str, tuple[str, _Folder]]"
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError)


def unpack(received: FileIntake, where: str, intake: Intake, rules: SourceRules) -> None:
    """Take the model's files out of an archive, which is not kept then.

    The model is at the archive's top, or in the one folder that is there.

    Args:
        received: the archive, whole; it stays for the next attempt if this one is broken off.

    Raises:
        SourceRefused: the archive could escape its folder, or grows out of bounds.
        ArtifactNotAccessible: it cannot be read, or has no model.
        UnsafeWeights, InsufficientDisk, FetchCancelled.
    """
    received.sync()
    try:
        _unpack(received.part, where, intake, rules)
    except (ArtifactNotAccessible, SourceRefused, TritonModelInvalid, UnsafeWeights):
        received.forget()
        raise
    received.forget()


def _unpack(archive: Path, where: str, intake: Intake, rules: SourceRules) -> None:
    try:
        with _opened(archive, rules.max_bytes) as reader:
            _take(reader, archive, where, intake, rules)
    except _DAMAGED as error:
        raise ArtifactNotAccessible(
            f"{where} is not an archive that can be read: {error}."
        ) from error
    except (OSError, RuntimeError, NotImplementedError) as error:
        if getattr(error, "errno", None) is not None:  # of our own disk
            raise
        raise ArtifactNotAccessible(f"{where} cannot be read: {error}.") from error


def _take(
    reader: _Tar | _Zip, archive: Path, where: str, intake: Intake, rules: SourceRules
) -> None:
    sizes = _listing(reader, where, archive.stat().st_size, intake)
    top = _top(sizes)
    names = {path.removeprefix(top): path for path in sizes if path.startswith(top)}
    if is_ready_made(names):
        _take_ready(reader, names, sizes, where, intake, rules)
        return
    modules = names.get(MODULES)
    if modules is not None:
        reader.copy({modules: MODULES}, intake)
    folders = module_folders(intake.read(MODULES) if modules is not None else None, where)
    chosen = choose(names, folders, where=where, rules=rules)
    total = sum(sizes[names[name]] for name in chosen)
    here = archive.stat().st_size
    intake.expect(here + total, here=here)
    wanted = {names[name]: name for name in chosen if not intake.has(name)}
    # The small ones in a round of their own: what they say may spare the large ones.
    small = {path: name for path, name in wanted.items() if sizes[path] <= _MB}
    for some in (small, {path: name for path, name in wanted.items() if path not in small}):
        reader.copy(some, intake)
        check_received(intake, chosen, where, rules)


def _take_ready(
    reader: _Tar | _Zip,
    names: dict[str, str],
    sizes: dict[str, int],
    where: str,
    intake: Intake,
    rules: SourceRules,
) -> None:
    """A ready-made Triton model; `names` has the entries' paths by those within the model."""
    check_remote(where, rules)
    if sizes[names[TRITON_CONFIG]] > LARGEST_CONFIG:
        raise ArtifactNotAccessible(f"{where} has a {TRITON_CONFIG} that is no configuration.")
    reader.copy({names[TRITON_CONFIG]: TRITON_CONFIG}, intake)
    chosen = choose_ready(names, intake.read(TRITON_CONFIG), intake.version, where).files
    total = sum(sizes[names[name]] for name in chosen)
    intake.expect(total)
    reader.copy({names[name]: name for name in chosen if not intake.has(name)}, intake)


def _listing(reader: _Tar | _Zip, where: str, packed: int, intake: Intake) -> dict[str, int]:
    """Bytes of each file, by path."""
    sizes: dict[str, int] = {}
    total = 0
    for count, (path, size, kind) in enumerate(reader.entries(), start=1):
        intake.check_cancelled()
        total += size
        if count > _MOST_ENTRIES:
            raise SourceRefused(f"{where} has more than {_MOST_ENTRIES} entries.")
        intake.check_size(total)
        if total > max(_FREE_OF_RATIO, packed * _LARGEST_RATIO):
            raise SourceRefused(
                f"{where} would grow to more than {_LARGEST_RATIO} times its size; no model does."
            )
        # `tar -C folder .` has an entry for the folder itself
        plain = path.removeprefix("./").rstrip("/") if path != "." else ""
        if kind == "other" or not (is_plain_path(plain) or (kind == "folder" and not plain)):
            raise SourceRefused(
                f"{where} holds {path[:200]!r}, a link, a device or a path that leaves its folder."
            )
        if kind == "file":
            if plain in sizes:
                raise SourceRefused(f"{where} holds {plain!r} twice.")
            sizes[plain] = size
    _check_distinct(sizes, where)
    return sizes


def _check_distinct(paths: Iterable[str], where: str) -> None:
    """Refuse names that a file system without regard to case or Unicode form would make one.

    There the second would replace the first, so that what was checked is not what is served; and
    the same archive would have another checksum than elsewhere. Folders count as well as files.
    Caseless matching as in the Unicode standard, section 3.13, D145 (without its first NFD).
    """
    top: _Folder = {}
    for path in paths:
        folder, parts = top, path.split("/")
        if len(parts) > _DEEPEST:
            raise SourceRefused(f"{where} has a file more than {_DEEPEST} folders deep.")
        for depth, part in enumerate(parts):
            other, folder = folder.setdefault(_without_case(part), (part, {}))
            if other != part:
                above = "".join(f"{part}/" for part in parts[:depth])
                raise SourceRefused(
                    f"{where} holds {above + other!a} and {above + part!a}, which are one name "
                    "where letter case or Unicode form does not count. Rename one of them."
                )


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _top(paths: dict[str, int]) -> str:
    """`""`, or the folder (with its slash) in which everything is."""
    first = {path.partition("/")[0] for path in paths if not path.startswith(("__MACOSX/", "._"))}
    if len(first) != 1 or any(path in first for path in paths):
        return ""
    return f"{first.pop()}/"


def _copy(source: IO[bytes], path: str, intake: Intake) -> None:
    with intake.receiving(path) as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
        intake.take(target)


@contextmanager
def _opened(archive: Path, max_bytes: int) -> Iterator[_Tar | _Zip]:
    with archive.open("rb") as handle:
        magic = handle.read(6)
    if magic.startswith(b"PK"):
        with zipfile.ZipFile(archive) as opened:
            yield _Zip(opened)
        return
    opening = cast(
        "Callable[[Path], IO[bytes]]",
        {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(magic[:2], _plainly),
    )
    yield _Tar(lambda: _Bounded(opening(archive), 2 * max_bytes))


def _plainly(archive: Path) -> IO[bytes]:
    return archive.open("rb")


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def entries(self) -> Iterator[tuple[str, int, str]]:
        """Path, bytes and kind (file, folder, other) of each entry."""
        for info in self._archive.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            known = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder"}
            kind = "folder" if info.is_dir() else known.get(mode, "other")
            yield info.orig_filename, info.file_size, kind

    def copy(self, wanted: dict[str, str], intake: Intake) -> None:
        """Receive entries; `wanted` maps their path to that in the source."""
        for info in self._archive.infolist():
            name = wanted.get(info.orig_filename.removeprefix("./"))
            if name is not None:
                with self._archive.open(info) as source:
                    _copy(source, name, intake)


class _Tar:
    """Read from the start each time: a compressed stream cannot be entered elsewhere."""

    def __init__(self, opening: Callable[[], _Bounded]) -> None:
        self._opening = opening

    def entries(self) -> Iterator[tuple[str, int, str]]:
        """As `_Zip.entries`."""
        for _, member in self._members():
            kind = "file" if member.isreg() else "folder" if member.isdir() else "other"
            yield member.name, member.size if member.isreg() else 0, kind

    def copy(self, wanted: dict[str, str], intake: Intake) -> None:
        """As `_Zip.copy`."""
        left = dict(wanted)
        for archive, member in self._members() if left else ():
            name = left.pop(member.name.removeprefix("./"), None)
            source = archive.extractfile(member) if name is not None else None
            if name is not None and source is not None:
                _copy(source, name, intake)
            if not left:
                return

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        with (
            self._opening() as stream,
            tarfile.open(fileobj=cast("Any", stream), mode="r|", tarinfo=_Entry) as archive,
        ):
            for member in archive:
                yield archive, member


class _Entry(tarfile.TarInfo):
    """An entry whose header does not fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in _HEADERS and entry.size > _LARGEST_HEADER:
            raise SourceRefused("The archive has a header of unreasonable size.")
        return entry


class _Bounded:
    """A stream that ends in an error before it runs for ever."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._left = most

    def __enter__(self) -> _Bounded:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise SourceRefused("The archive grows beyond all bounds (MODELMORA_MAX_SOURCE_MB).")
        return content
