"""Plugins for tests: the distribution `echo/`, and tasks that are known without one."""

from __future__ import annotations

import contextlib
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.registry import names

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def knowing(tasks: dict[str, str | None]) -> Iterator[None]:
    """As if plugins with these tasks were installed: why each cannot be served, None if it can."""
    before = dict(names._plugin_tasks)
    names.know_plugin_tasks(tasks)
    try:
        yield
    finally:
        names.know_plugin_tasks(before)


ECHO = Path(__file__).parent / "echo"


class Environment:
    """A virtual environment that has all that the tests' own has, and plugins of its own.

    The server, its converters and Triton's stubs run in it as they would in a user's.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        venv.create(home, with_pip=False, symlinks=True)
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (self.site / "everything_else.pth").write_text("\n".join(lines) + "\n")

    @property
    def python(self) -> str:
        return str(self.home / "bin" / "python")

    @property
    def site(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.home)}))

    def install(self, project: Path) -> None:
        """`pip install` of a project's folder, without a network."""
        copy = self.home / "projects" / project.name  # building writes beside the sources
        shutil.copytree(project, copy)
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile")
        self._pip("install", *options, str(copy))

    def uninstall(self, distribution: str) -> None:
        self._pip("uninstall", "--yes", distribution)

    def _pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", self.python, "--quiet", *arguments]
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | quiet, check=False
        )
        assert done.returncode == 0, done.stderr


def distribution(site: Path, name: str, version: str = "1.0", **groups: str) -> None:
    """A folder of metadata as pip leaves it: lines of entry points by the end of their group."""
    facts = site / f"{name.replace('-', '_')}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[modelmora.{group}]\n{entries}\n" for group, entries in groups.items()]
    (facts / "entry_points.txt").write_text("\n".join(lines))
