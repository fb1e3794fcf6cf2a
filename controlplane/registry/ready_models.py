"""Ready-made Triton models: which files of a folder are one, and what is wrong with it. Rules only.

    config.pbtxt        Triton's configuration; its `name` does not matter
    1/, 2/, …           version folders, of which one is taken
    labels.txt, …       further files of the model's folder, taken along

What is code or may become code (a Python backend's `model.py`, a backend's own library beside the
model) runs in the server; `ready_source.py` decides whose folders may bring it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlplane.errors import TritonModelInvalid
from controlplane.registry.files import CONFIG as HF_CONFIG
from controlplane.registry.files import is_plain_path
from controlplane.triton import ready_config
from controlplane.triton.ready_config import ENSEMBLE, PYTHON, ReadyConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from controlplane.registry.files import SourceFile

CONFIG = "config.pbtxt"
MOST_FILES = 10_000
# What ModelMora itself puts into a version's folder.
_RESERVED = {"manifest.json", CONFIG}
_LARGEST_NUMBER = 2**31 - 1
_WARMUP = "warmup"  # where Triton looks for the samples of `model_warmup`


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken of a folder.

    Attributes:
        number: the version folder.
        files: paths, sorted; those of the other version folders are not among them.
    """

    number: int
    files: tuple[str, ...]
    config: ReadyConfig

    @property
    def root_files(self) -> tuple[str, ...]:
        """Files that Triton or the model looks for beside the version folders."""
        prefix = f"{self.number}/"
        return tuple(p for p in self.files if p != CONFIG and not p.startswith(prefix))


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What of the Triton server decides whether it can run a model.

    Attributes:
        embedded: it is the embedded one, which has the Python backend only; of an external one
            nothing is known before a load.
        gpu: the machine has one.
        installed: Triton names of the models that are registered.
    """

    embedded: bool
    gpu: bool
    installed: frozenset[str] = frozenset()


def is_ready_made(names: Iterable[str]) -> bool:
    """True for the files, or the entries, of a folder that means to be a ready-made model."""
    first = {name.partition("/")[0] for name in names}
    return CONFIG in first and (HF_CONFIG not in first or any(map(_is_number, first)))


def is_ready_source(files: Iterable[SourceFile]) -> bool:
    """True for a source that was received as a ready-made model."""
    return is_ready_made(file.path for file in files)


def choose(names: Collection[str], config: bytes, version: str, where: str) -> Choice:
    """The files to take, and the version folder among them.

    A version that is written as a number is that folder; else it is the one that Triton would
    serve: the highest, or the highest of those that a `specific` version policy names.

    Args:
        names: paths of all files of the source.
        config: content of its config.pbtxt.
        version: as it was asked for.
        where: the source, for messages.

    Raises:
        TritonModelInvalid: naming every field and file that is wrong.
    """
    try:
        parsed = ready_config.parse(config)
    except ValueError as error:
        raise TritonModelInvalid(where, {CONFIG: str(error)}) from error
    faults = {f"{CONFIG}: {field}": text for field, text in ready_config.faults(parsed).items()}
    if faults:  # what it says cannot be relied on
        raise TritonModelInvalid(where, faults)
    kept = [name for name in names if not _is_junk(name)]
    number, fault = _version_folder(kept, version, ready_config.read(parsed).versions)
    if number is None:
        raise TritonModelInvalid(where, fault)
    files = _files(kept, number)
    known = _completed(ready_config.read(parsed), files, number)
    faults = _name_faults(files, number) | _file_faults(known, files, number)
    if faults:
        raise TritonModelInvalid(where, faults)
    return Choice(number=number, files=files, config=known)


def server_faults(config: ReadyConfig, server: ServerFacts) -> dict[str, str]:
    """Why this server cannot run a model, by field; empty when nothing speaks against it."""
    if config.backend == ENSEMBLE:
        missing = sorted(set(config.steps) - server.installed)
        if missing:
            what = f"names models that are not installed: {', '.join(missing)}"
        else:
            what = (
                "is not served: Triton would load and keep the models of an ensemble behind the "
                "back of the memory budget. Call them one after the other, or in one Python model"
            )
        return {f"{CONFIG}: ensemble_scheduling": what}
    return _embedded_faults(config, server) if server.embedded else {}


def _embedded_faults(config: ReadyConfig, server: ServerFacts) -> dict[str, str]:
    faults = {}
    if config.backend != PYTHON:
        faults["backend"] = (
            f"is {config.backend!r}, and the embedded Triton has only 'python'; a Triton of your "
            "own may have it (MODELMORA_TRITON_GRPC_URL)"
        )
    if config.gpu_field is not None and not server.gpu:
        faults[config.gpu_field] = "wants a GPU, and this machine has none; use KIND_CPU"
    for kind, tensors in (("input", config.inputs), ("output", config.outputs)):
        if not tensors:
            faults[kind] = "is empty, and the embedded Triton completes no configurations"
    return {f"{CONFIG}: {field}": text for field, text in faults.items()}


# -- version folders ------------------------------------------------------------------------------


def _is_number(name: str) -> bool:
    """True for what Triton takes for a version folder."""
    plain = name.isascii() and name.isdecimal() and not name.startswith("0")
    return plain and len(name) <= 10 and int(name) <= _LARGEST_NUMBER


def _version_folder(
    names: Iterable[str], version: str, specific: list[int]
) -> tuple[int | None, dict[str, str]]:
    there = {int(top) for top in map(_top_folder, names) if _is_number(top)}
    listed = ", ".join(map(str, sorted(there))) or "none"
    if not there:
        return None, {"version folders": "there is none: a folder named 1, 2, … with files in it"}
    if _is_number(version):
        if int(version) in there:
            return int(version), {}
        return None, {"version": f"{version} is no folder of it; there are {listed}"}
    served = there & set(specific) if specific else there
    if served:
        return max(served), {}
    wanted = ", ".join(map(str, specific))
    return None, {
        f"{CONFIG}: version_policy.specific": f"names {wanted}, and the folders are {listed}"
    }


def _files(names: Iterable[str], number: int) -> tuple[str, ...]:
    """All but the other version folders."""
    tops = ((name, _top_folder(name)) for name in names)
    return tuple(sorted(n for n, top in tops if top == str(number) or not _is_number(top)))


def _top_folder(name: str) -> str:
    """The first folder of a path; empty for a file at the root."""
    return name.rpartition("/")[0].partition("/")[0]


def _is_junk(name: str) -> bool:
    """What tools leave behind (.git, .DS_Store, __pycache__) is no part of a model."""
    return any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))


# -- files ----------------------------------------------------------------------------------------


def _name_faults(files: tuple[str, ...], number: int) -> dict[str, str]:
    faults = {}
    if len(files) > MOST_FILES:
        faults["files"] = f"there are {len(files)}; at most {MOST_FILES} are taken"
    for path in files:
        top, _, inside = path.partition("/")
        if not is_plain_path(path) or not path.isprintable():
            faults[ascii(path)] = "is no name that can be taken: rename it"
        elif not inside and _is_number(top):
            faults[path] = "is a file, and has the name of a version folder"
        elif top == str(number) and inside in _RESERVED:
            faults[path] = "is a name that ModelMora puts its own file under: rename it"
    return faults


def _completed(config: ReadyConfig, files: tuple[str, ...], number: int) -> ReadyConfig:
    """With the backend that Triton would conclude from the files, where none is named."""
    if config.backend:
        return config
    inside = {path.split("/")[1] for path in files if path.startswith(f"{number}/")}
    found = next((name for name in ready_config.BY_FILE if name in inside), None)
    if found is None:
        return config
    return msgspec.structs.replace(
        config, backend=ready_config.BY_FILE[found], model_file=config.model_file or found
    )


def _file_faults(config: ReadyConfig, files: tuple[str, ...], number: int) -> dict[str, str]:
    faults = {}
    if not config.backend:
        faults[f"{CONFIG}: backend"] = "is required"
    for field, path in config.paths.items():
        if not is_plain_path(path):
            faults[f"{CONFIG}: {field}"] = f"{path!r} leaves the model's folder"
        elif field.startswith(("output", "model_warmup")):
            folder = f"{_WARMUP}/" if field.startswith("model_warmup") else ""
            if f"{folder}{path}" not in files:
                faults[f"{CONFIG}: {field}"] = f"{folder}{path} is not there"
    name = config.model_file
    if name is not None and is_plain_path(name) and not _has_model(config, files, number):
        faults[f"{number}/{name}"] = f"is missing: the {config.backend} backend needs it"
    return faults


def _has_model(config: ReadyConfig, files: tuple[str, ...], number: int) -> bool:
    path = f"{number}/{config.model_file}"
    return path in files if config.backend == "python" else _holds(files, path)


def _holds(files: tuple[str, ...], path: str) -> bool:
    """True for a file, or a folder with files: some backends' models are folders."""
    return any(file == path or file.startswith(f"{path}/") for file in files)
