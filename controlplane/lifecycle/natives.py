"""Members: graphs that Triton's own backends run for models of ours (`triton/native_config.py`).

A member is loaded before the model that asks it and unloaded after it, by the same owner, in the
same turn. It is nobody's to load otherwise, and is in no index.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from controlplane.triton.failures import TritonError
from controlplane.triton.native_backends import find_native_backends
from controlplane.triton.native_config import member_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from controlplane.registry.repository import ModelRepository
    from controlplane.triton.client import TritonClient

log = structlog.get_logger(__name__)


class Natives:
    """The members of one Triton server; with no backends wanted, all of this does nothing.

    Args:
        wanted: Triton's own backends that may be used (the setting `native_backends`).
    """

    def __init__(
        self, client: TritonClient, repository: ModelRepository, wanted: Sequence[str]
    ) -> None:
        self._client = client
        self._repository = repository
        self._wanted = tuple(wanted)
        self._asked = False
        self._asking = asyncio.Lock()

    async def learn(self) -> None:
        """Ask the server once which of the wanted backends it has.

        Raises:
            TritonError: it does not answer; it is asked again next time.
        """
        if not self._wanted or self._asked:
            return
        async with self._asking:
            if not self._asked:
                found = await find_native_backends(self._client, self._wanted)
                self._repository.native_backends = found
                self._asked = True

    async def load(self, name: str, number: int, timeout: float) -> None:
        """Bring up the member of a version, where it is to have one.

        Raises:
            TritonError: with Triton's reason.
            OSError: a file of the artefact cannot be read.
        """
        member = self._repository.native_member(name, number) if self._wanted else None
        if member is None:
            return
        began = time.monotonic()
        if await self._client.model_ready(member.name, 1, timeout=timeout):
            await self._client.unload(member.name, timeout=timeout)  # of an earlier life of ours
        folder = self._repository.root / name / str(number)
        files = await asyncio.to_thread(_read, folder, member.files)
        left = max(1.0, timeout - (time.monotonic() - began))
        await self._client.load(member.name, member.config, timeout=left, files=files)

    async def unload(self, name: str, number: int, timeout: float) -> None:
        """Take away the member of a version, if it has one; a failure is logged."""
        if not self._wanted:
            return
        try:
            await self._client.unload(member_name(name, number), timeout=timeout)
        except TritonError as error:
            log.warning("a graph may be left in Triton", model=name, reason=str(error))


def _read(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    return {target: (folder / path).read_bytes() for target, path in files.items()}
