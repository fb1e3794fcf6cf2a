"""`modelmora db check`: is the database sound, and do its rows and the files agree? Reads only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from controlplane.database_file import inspect, read_only
from controlplane.registry.model import ModelId

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

# Rows that must not be, however they came to be: SQL, and what to say of each row.
_RULES = {
    "SELECT model_id, current_version FROM model AS m WHERE NOT EXISTS (SELECT 1 FROM"
    " model_version AS v WHERE v.model_id = m.id AND v.version = m.current_version)": (
        "model {} has no version {}, which is its current one"
    ),
    "SELECT m.model_id, v.version FROM model_version AS v JOIN model AS m ON m.id = v.model_id"
    " JOIN retired_version AS r ON r.model_id = m.model_id"
    " AND r.triton_version = v.triton_version": (
        "model {} version {} has the folder number of a version that was removed"
    ),
}
_VERSIONS = (
    "SELECT m.model_id, v.version, v.triton_version, v.status, v.artefact FROM model_version AS v"
    " JOIN model AS m ON m.id = v.model_id ORDER BY m.model_id, v.triton_version"
)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        problems: the database is not sound; restore a backup.
        warnings: rows and files disagree, or the schema is old; the next start, or installing
            again, puts that right.
        schema: the newest migration.
    """

    path: str
    problems: list[str]
    warnings: list[str]
    schema: str
    bytes: int
    models: int = 0
    versions: int = 0
    events: int = 0

    @property
    def sound(self) -> bool:
        return not self.problems


def check(database: Path, repository: Path | None = None, downloads: Path | None = None) -> Report:
    """Check the file and, where folders are given, what its rows say of them.

    Args:
        repository: Triton's model repository; None leaves the folders out.
        downloads: the folder of downloaded sources.

    Raises:
        NoDatabase: there is no such file.
    """
    found = inspect(database)
    problems, warnings = [*found.damage, *found.faults], list(found.strange)
    counts: dict[str, int] = {}
    if found.unknown:
        warnings.append(f"it was written by a newer ModelMora (it has {', '.join(found.unknown)})")
    elif found.steps and found.missing:
        text = ", ".join(found.missing)
        warnings.append(f"its schema is older; the next start will apply {text} after a backup")
    if found.steps and not found.damage:
        with read_only(database) as connection:
            counts = _counts(connection)
            problems += _broken_rules(connection)
            warnings += _files(connection, repository, downloads)
    return Report(
        path=str(database),
        problems=problems,
        warnings=warnings,
        schema=found.steps[-1] if found.steps else "",
        bytes=database.stat().st_size,
        **counts,
    )


def _counts(connection: sqlite3.Connection) -> dict[str, int]:
    tables = {"models": "model", "versions": "model_version", "events": "event_store"}
    return {
        name: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for name, table in tables.items()
    }


def _broken_rules(connection: sqlite3.Connection) -> Iterator[str]:
    for sql, text in _RULES.items():
        for row in connection.execute(sql):
            yield text.format(*row)


def _files(
    connection: sqlite3.Connection, repository: Path | None, downloads: Path | None
) -> Iterator[str]:
    known: set[tuple[str, str]] = set()
    ready: set[tuple[str, str]] = set()
    for model_id, version, number, status, artefact in connection.execute(_VERSIONS):
        key = (ModelId.parse(model_id).triton_name, str(number))
        known.add(key)
        if status == "ready":
            ready.add(key)
            if repository is not None:
                yield from _artefact(repository.joinpath(*key), model_id, version, artefact)
    if repository is not None:
        for name, number in _folders(repository):
            if (name, number) not in ready:
                yield f"{repository / name / number} belongs to no installed version"
    if downloads is not None:
        for name, number in _folders(downloads):
            if (name, number) not in known:
                yield f"{downloads / name / number} belongs to no registered version"


def _artefact(folder: Path, model_id: str, version: str, artefact: str) -> Iterator[str]:
    """What of a ready version is not as its row says; sizes, not checksums."""
    what = f"model {model_id} version {version} is ready, but"
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except FileNotFoundError:
        yield f"{what} {folder.absolute()} is missing"  # its place may be a setting's fault
        return
    except (OSError, ValueError) as error:
        yield f"{what} {folder / 'manifest.json'} cannot be read ({error})"
        return
    if manifest != json.loads(artefact):
        yield f"{what} {folder / 'manifest.json'} is another one than was recorded"
        return
    for entry in manifest.get("files", []):
        path = folder / entry["path"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["size"]:
            seen = "missing" if size is None else f"{size} bytes instead of {entry['size']}"
            yield f"{what} {path} is {seen}"


def _folders(root: Path) -> Iterator[tuple[str, str]]:
    """`ORG--REPO/N` below `root`."""
    for home in sorted(root.glob("*--*")):
        if home.is_dir():
            yield from ((home.name, p.name) for p in sorted(home.iterdir()) if p.name.isdecimal())
