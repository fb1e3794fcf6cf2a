"""Which files are taken of a source whose layout only a plugin's converter knows. No network.

Everything, in all folders, except what could run: code in any language, and formats whose reading
runs code (pickles and their kin, which the operator may allow). So a plugin is given data only.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from controlplane.errors import ArtifactNotAccessible, SourceRefused, UnsafeWeights
from controlplane.registry import remote_code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.registry.files import SourceRules

MOST_FILES = 10_000
# `.bin` and `.pt` may be harmless; nothing tells before they are read.
PICKLES = {
    *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".dill", ".joblib", ".torch"),
    *(".h5", ".hdf5", ".keras", ".nemo", ".mar"),
}
CODE = {
    *(remote_code.SUFFIX, ".pyc", ".pyd", ".pyo", ".pyx", ".pyw", ".ipynb", ".whl", ".egg"),
    *(".so", ".dll", ".dylib", ".exe", ".com", ".msi", ".a", ".o", ".wasm", ".jar", ".class"),
    *(".sh", ".bash", ".zsh", ".bat", ".cmd", ".ps1", ".js", ".mjs", ".ts", ".rb", ".pl", ".lua"),
    *(".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".rs", ".go", ".java"),
}


def choose(names: Iterable[str], *, where: str, rules: SourceRules) -> tuple[str, ...]:
    """The paths to take, sorted.

    Names that begin with a dot, and what is below such folders, are left out, as is code. Python
    files are taken of a version that trusts its code. Pickles are left out where there is anything
    else, unless the operator allows them.

    Args:
        names: plain paths of all files of the source.
        where: the source, for messages.

    Raises:
        ArtifactNotAccessible: nothing is left.
        UnsafeWeights: there are only pickles.
        SourceRefused: there are too many files.
    """
    shown = [name for name in names if not any(map(_is_hidden, name.split("/")))]
    plain = [name for name in shown if not _is_code(name, rules)]
    pickles = {name for name in plain if _suffix(name) in PICKLES}
    taken = plain if rules.allow_pickle else [name for name in plain if name not in pickles]
    if not taken and pickles:
        raise UnsafeWeights(where, sorted(pickles))
    if not taken:
        raise ArtifactNotAccessible(f"{where} holds no files that can be taken.")
    if len(taken) > MOST_FILES:
        raise SourceRefused(f"{where} has {len(taken)} files; at most {MOST_FILES} are taken.")
    return tuple(sorted(taken))


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__"


def _is_code(name: str, rules: SourceRules) -> bool:
    suffix = _suffix(name)
    return suffix in CODE and not (rules.trust_code and suffix == remote_code.SUFFIX)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
