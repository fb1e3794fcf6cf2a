"""ModelInfer: a relayed call that is counted, and whose failures make its model be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.errors import ModelMoraError
from controlplane.gateway import v2
from controlplane.gateway.grpc_relay import status
from controlplane.gateway.grpc_relay.relayed import RelayedCall

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from controlplane.gateway.grpc_relay.heads import RequestHead
    from controlplane.gateway.grpc_relay.message import Message
    from controlplane.gateway.grpc_relay.relay import Relay
    from controlplane.gateway.grpc_relay.stream import Stream
    from controlplane.registry.model import Servable

PROTOCOL = "v2_grpc"


class InferCall(RelayedCall):
    """An inference: counted, and its failures looked at."""

    __slots__ = ("_counting", "_outcome")

    def __init__(self, relay: Relay, client: Stream, head: RequestHead) -> None:
        super().__init__(relay, client, head)
        self._counting: AbstractContextManager[v2.Outcome] | None = None
        self._outcome = v2.Outcome()

    def _step(self) -> bool:
        try:
            return super()._step()
        except ModelMoraError:
            # The name comes first: a request that is refused for its tensors counts for its model.
            if self._counting is None and self._message is not None:
                self._count_refused(self._message)
            raise

    def _count_refused(self, message: Message) -> None:
        try:
            self._resolve(message)
        except ModelMoraError:  # the first error is the one that counts
            return

    def _resolve(self, message: Message) -> Servable:
        servable = super()._resolve(message)
        if self._counting is None:
            self._counting = v2.counted(self.relay.services, servable, PROTOCOL)
            self._outcome = self._counting.__enter__()
        return servable

    def note_status(self, code: int) -> None:
        if code and self._leased is not None:
            fault = code == status.INVALID_ARGUMENT
            v2.note_refusal(self.relay.services, self._leased, self._outcome, clients_fault=fault)

    def fail(self, error: Exception) -> None:
        if not self.done:
            self._outcome.error_code = getattr(error, "code", "INTERNAL_ERROR")
        super().fail(error)

    def end(self, code: int, text: str = "") -> None:
        if self.done:
            return
        super().end(code, text)
        if code == status.CANCELLED and self._outcome.error_code is None:
            self._outcome.error_code = status.CANCELLED_CODE
        if self._counting is not None:
            self._counting.__exit__(None, None, None)
