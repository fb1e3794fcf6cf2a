"""The client as commands use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.cli import interrupts
from controlplane.client import ModelMoraClient
from controlplane.client_sse import Listen

if TYPE_CHECKING:
    from controlplane.client_steps import Call, Pause


class InterruptibleClient(ModelMoraClient):
    """Looks for Ctrl-C before each request and pause, and at each line it hears."""

    def _perform(self, step: Call[Any] | Pause | Listen) -> Any:
        interrupts.check()
        if isinstance(step, Listen):
            step = msgspec.structs.replace(step, take=_checked(step))
        return super()._perform(step)


def _checked(step: Listen) -> Any:
    def take(line: str) -> bool:
        interrupts.check()
        return step.take(line)

    return take
