"""Whose lines coverage counts, and when: it makes Python take about twice as long.

Most processes that tests start (their servers, the converters and Triton's stubs below them, the
command line) run lines that are counted elsewhere, so they are spared it: those of servers started
for it are counted. So is the test process, but for what only repeats: the examples of a property
after the first, and tests that are marked `no_cover`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

# What has a child process measure itself.
_VARIABLES = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
ENVIRONMENT: dict[str, str] = {}

# Of a property; the others find what breaks, and seldom a line that these have not run.
EXAMPLES = 10
WORKER = "PYTEST_XDIST_WORKER"


def spare_children() -> None:
    """From now on processes measure themselves only with `ENVIRONMENT` in theirs."""
    ENVIRONMENT.update({name: os.environ.pop(name) for name in _VARIABLES if name in os.environ})


def leave_counting_to_pytest() -> None:
    """End what coverage began with a worker's process; else it goes on when pytest-cov pauses.

    It has counted what was imported until now, which the first process of the run counts too.
    """
    coverage = sys.modules.get("coverage")
    while WORKER in os.environ and coverage and (counting := coverage.Coverage.current()):
        counting.stop()


@contextlib.contextmanager
def first_examples_counted(item: pytest.Item) -> Iterator[None]:
    """Where `item` is a property: the lines of its first examples are counted, not of all."""
    plugin = item.config.pluginmanager.getplugin("_cov")
    controller = None if plugin is None else plugin.cov_controller
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if controller is None or handle is None:
        yield
        return
    inner = handle.inner_test
    handle.inner_test = _counted(inner, controller)
    counted = controller.started
    try:
        yield
    finally:
        handle.inner_test = inner
        if counted and not controller.started:
            controller.resume()


def _counted(inner: Callable[..., Any], controller: Any) -> Callable[..., Any]:
    numbers = itertools.count()

    @functools.wraps(inner)
    def example(*args: Any, **options: Any) -> Any:
        if next(numbers) == EXAMPLES and controller.started:
            controller.pause()
        return inner(*args, **options)

    return example
