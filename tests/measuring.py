"""Whose lines coverage counts: the test process's, and those of servers started for it.

Coverage makes a Python process take about half as long again. Most of those that tests start (their
servers, the converters and Triton's stubs below them, the command line) run lines that are counted
elsewhere, so they are spared it.
"""

from __future__ import annotations

import os

# What has a child process measure itself.
_VARIABLES = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
ENVIRONMENT: dict[str, str] = {}


def spare_children() -> None:
    """From now on processes measure themselves only with `ENVIRONMENT` in theirs."""
    ENVIRONMENT.update({name: os.environ.pop(name) for name in _VARIABLES if name in os.environ})
