"""The `model.py` that Triton imports for a version: its text, and its compiled form beside it."""

from __future__ import annotations

import contextlib
import py_compile
from typing import TYPE_CHECKING

from controlplane.registry import plugins

if TYPE_CHECKING:
    from pathlib import Path

_TEXT = """\
# Written by ModelMora: this version's tensors and files are in manifest.json beside this file.
from {module} import {name} as TritonPythonModel  # noqa: F401
"""


def text(backend: str) -> str:
    """The file that Triton imports: it names the backend's class, nothing of it is imported here.

    Raises:
        PluginUnavailable: it is not installed, or cannot be used.
    """
    module, name = plugins.target_of(plugins.require(plugins.BACKEND, backend))
    return _TEXT.format(module=module, name=name)


def precompile(source: Path) -> None:
    """Put a version's compiled `model.py` in place before Triton's process would.

    A `__pycache__` that appears in a version's folder looks like a change of the version to
    Triton: it would restart a running version as soon as another is loaded beside it.
    """
    # unchecked: a copy of the repository has other times, and must not be compiled again
    py_compile.compile(
        str(source),
        dfile=source.name,
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def precompile_all(version: Path) -> None:
    for source in version.rglob("*.py"):
        # one that cannot be compiled may be a template, or for another Python
        with contextlib.suppress(py_compile.PyCompileError):
            precompile(source)
