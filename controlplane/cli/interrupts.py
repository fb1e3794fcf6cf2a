"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the program happens to be. In a destructor, in a callback
of a weak reference or below C code that clears errors it is dropped, and a command that follows
something would go on for ever. So Ctrl-C is remembered too, and a command looks at each step.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class _State:
    # A plain flag: a handler that took a lock could wait for the code it interrupts.
    pressed = False


@contextmanager
def remembered() -> Iterator[None]:
    """Remember Ctrl-C until left, besides raising it."""
    # Where it is ignored (a job in a shell's background) it stays so; threads have no handlers.
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield
        return
    _State.pressed = False
    signal.signal(signal.SIGINT, pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pressed(*_: object) -> None:
    """A signal's handler: remember it, and raise KeyboardInterrupt."""
    _State.pressed = True
    raise KeyboardInterrupt


def taken() -> None:
    """Whoever caught it goes on with something else."""
    _State.pressed = False


def check() -> None:
    """Raise what was remembered: KeyboardInterrupt."""
    if _State.pressed:
        raise KeyboardInterrupt
