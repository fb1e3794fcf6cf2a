"""Makes an artefact of a ready-made model: its files as they are, a manifest, its configuration.

Only the configuration's name and version policy are ours; the model keeps every other word.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import TritonModelInvalid
from controlplane.registry.ready_models import CONFIG, Choice, ServerFacts, choose, server_faults
from controlplane.registry.repository import MANIFEST
from controlplane.registry.root_files import ROOT
from controlplane.triton import model_config, ready_config
from controlplane.triton.ready_config import PYTHON, READY_MADE

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.registry.files import FetchedSource
    from controlplane.registry.model import ModelId

# Python and numpy in the stub process of the smallest model, measured; a model of two kilobytes
# takes that much too, and its first load must not go beyond the budget.
STUB_BYTES = 32 * 1024 * 1024


def prepare(
    model_id: ModelId,
    version: str,
    triton_version: int,
    source: Path,
    received: FetchedSource,
    output: Path,
    server: ServerFacts,
) -> dict[str, Any]:
    """Write the artefact of a received model to `output`, a folder that is not there yet.

    Returns:
        Its manifest: as a converter's, and `ready_made` with what is known of the model.

    Raises:
        TritonModelInvalid: the model or its configuration is wrong, or not for this server.
    """
    where = received.artifact_uri
    config = (source / CONFIG).read_bytes()
    chosen = choose([file.path for file in received.files], config, version, where)
    faults = server_faults(chosen.config, server) | _syntax_faults(source, chosen)
    if faults:
        raise TritonModelInvalid(where, faults)
    _copy(source, chosen, output)
    parsed = ready_config.parse(config)
    if not ready_config.backend_of(parsed):
        parsed.backend = chosen.config.backend
    mine = ready_config.serving(parsed, model_id.triton_name, triton_version)
    (output / CONFIG).write_text(model_config.to_pbtxt(mine), encoding="utf-8")
    manifest = _manifest(model_id, version, received, chosen)
    (output / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return manifest


def describe(artefact: dict[str, Any]) -> dict[str, Any] | None:
    """What a manifest says of a ready-made model; None for a converted one."""
    known: dict[str, Any] | None = artefact.get(READY_MADE)
    if known is None:
        return None
    return known | {
        key: artefact[key] for key in ("backend", "max_batch_size", "inputs", "outputs")
    }


def _syntax_faults(source: Path, chosen: Choice) -> dict[str, str]:
    """Python that cannot be compiled would fail at the first load, in a process far away."""
    name = f"{chosen.number}/{chosen.config.model_file}"
    known = chosen.config
    if known.backend != PYTHON or known.own_python or not (source / name).is_file():
        return {}
    try:
        compile((source / name).read_bytes(), name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return {name: f"is not valid Python: {error.args[0]}" + (f", line {line}" if line else "")}
    return {}


def _place_of(path: str, number: int) -> str:
    """Where a file of the source lies in the artefact."""
    top, _, inside = path.partition("/")
    return inside if top == str(number) and inside else f"{ROOT}/{path}"


def _copy(source: Path, chosen: Choice, output: Path) -> None:
    output.mkdir()
    for path in chosen.files:
        if path == CONFIG:
            continue
        target = output / _place_of(path, chosen.number)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target)


def _manifest(
    model_id: ModelId, version: str, received: FetchedSource, chosen: Choice
) -> dict[str, Any]:
    known = chosen.config
    files = [
        {"path": _place_of(file.path, chosen.number), "size": file.size, "sha256": file.sha256}
        for file in received.files
        if file.path != CONFIG
    ]
    size = sum(file.size for file in received.files)
    return {
        "model_id": str(model_id),
        "version": version,
        "source_checksum": received.checksum,
        "task_type": "custom",
        "backend": known.backend,
        "engine": known.backend,
        "inputs": msgspec.to_builtins(known.inputs),
        "outputs": msgspec.to_builtins(known.outputs),
        "max_batch_size": known.max_batch_size,
        "load_bytes": size + (STUB_BYTES if known.backend == PYTHON else 0),
        READY_MADE: {
            "version_folder": chosen.number,
            "decoupled": known.decoupled,
            "sequence": known.sequence,
            "probe": known.probe,
        },
        "files": sorted(files, key=lambda file: str(file["path"])),
    }
