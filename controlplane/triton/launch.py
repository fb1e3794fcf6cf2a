"""Becomes the server: `python -I -S launch.py PARENT_PID PROGRAM ARGUMENT…`.

A program of its own instead of a `preexec_fn`: that would run Python between fork and exec of a
process that has gRPC's threads, which can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; survives exec, not handed on to the server's own children


def main() -> None:
    """Ask the kernel for SIGTERM when the parent dies, then exec the program."""
    parent, program, *_ = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):  # it died before the request was made: no signal would come
        sys.exit("the parent process is gone")
    # SIGPIPE stays ignored, as Python has set it: a server whose parent, and with it the reader of
    # its log, is gone must get through its shutdown to end its stubs.
    os.execv(program, sys.argv[2:])


main()
