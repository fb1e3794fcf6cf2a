"""Plugins for tests: the distribution `echo/`, and tasks that are known without one."""

from __future__ import annotations

import contextlib
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
