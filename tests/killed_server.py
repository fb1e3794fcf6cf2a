"""`modelmora serve` that kills itself (kill -9) at a named place, for tests of what is left then.

    python tests/killed_server.py controlplane.registry.store:ModelStore.delete:after serve

`before` and `after` are moments of a call of that function, whose n-th call may be named behind
(`…:before:3`). Everything else is the real server.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from typing import Any


def arm(place: str) -> None:
    """Have this process killed at `module:qualified.name:before|after[:n]`."""
    module_name, name, moment, *number = place.split(":")
    owner: Any = importlib.import_module(module_name)
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    left = [int(number[0]) if number else 1]
    setattr(owner, last, _killing(getattr(owner, last), moment, left))


def _killing(function: Any, moment: str, left: list[int]) -> Any:
    def reached(now: str) -> None:
        if now == moment:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        reached("before")
        result = function(*args, **options)
        reached("after")
        return result

    @functools.wraps(function)
    async def acall(*args: Any, **options: Any) -> Any:
        reached("before")
        result = await function(*args, **options)
        reached("after")
        return result

    return acall if inspect.iscoroutinefunction(function) else call


if __name__ == "__main__":
    arm(sys.argv[1])
    from controlplane.cli.main import run

    sys.exit(run(sys.argv[2:]))
