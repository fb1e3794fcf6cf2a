"""Notices that processes end, at once: any processes, not only children of ours."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class ProcessWatch:
    """Calls back when one of the processes that are kept in sight ends.

    By pidfd_open(2): its descriptor becomes readable when the process ends. Where the kernel has
    no such call (before Linux 5.3, some sandboxes) nothing is seen, and who asks must look.
    """

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._descriptors: dict[int, int] = {}

    def keep(self, pids: Collection[int]) -> None:
        """Watch exactly these from now on; to be called where an event loop runs."""
        for pid in self._descriptors.keys() - set(pids):
            self._drop(pid)
        for pid in set(pids) - self._descriptors.keys():
            self._add(pid)

    def close(self) -> None:
        """Watch nothing any more."""
        self.keep(())

    def _add(self, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, AttributeError):  # it is gone already, or the kernel cannot do it
            return
        self._descriptors[pid] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._on_end, pid)

    def _on_end(self, pid: int) -> None:
        self._drop(pid)
        self._ended(pid)

    def _drop(self, pid: int) -> None:
        descriptor = self._descriptors.pop(pid)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
