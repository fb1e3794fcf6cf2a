"""The HTTP port's protocol: infer requests that are there as a whole are answered below ASGI.

ASGI costs a task, five messages and as many dictionaries a request, which at a thousand requests a
second is what the relay costs. The short way takes no request apart that it does not answer: what
it is not made for goes through `LimitedHttp`, byte for byte, as if it had never been looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from controlplane.gateway.asgi import BEGUN
from controlplane.gateway.http_protocol import LimitedHttp
from controlplane.gateway.v2_plans import MOST_HEAD

if TYPE_CHECKING:
    import asyncio

    from controlplane.gateway.asgi import Reply
    from controlplane.gateway.draining import Draining
    from controlplane.gateway.v2_begun import Begun
    from controlplane.gateway.v2_direct import Direct, DirectInfer
    from controlplane.gateway.v2_plans import Plan

_START = b"POST /v2/models/"
# For the rest of a body whose head has come; after that the ordinary way waits for it.
GATHER_SECONDS = 1.0


class DirectHttp(LimitedHttp):
    """One client's connection.

    A request is in one of these places: `_parts` (its head is known and its body is coming),
    `_running` (Triton has it), or the ordinary way, while that has not read and answered it all.
    """

    direct: ClassVar[Direct]
    draining: ClassVar[Draining]

    _between = True  # the ordinary way's parser stands between two messages
    _plan: Plan | None = None
    _missing = 0
    _gather_timer: asyncio.TimerHandle | None = None
    _running: DirectInfer | None = None
    _request = b""  # the bytes of the one that runs
    _begun: Begun | None = None
    _last = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts: list[bytes] = []
        self._later: list[bytes] = []

    # -- asyncio's side ----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._running is not None:  # the client does not wait for its answer
            self._later.append(data)
            self.flow.pause_reading()
        elif self._plan is not None:
            self._gather(self._plan, data)
        elif self._between and data.startswith(_START) and self._is_idle():
            self._begin(data)
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            self.draining.leave()
        self._take_ordinary_way()  # there it is logged as one that was broken off
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._running is not None:
            self._last = True
            return
        self._take_ordinary_way()
        super().shutdown()

    # -- the parser's side -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._between = False
        super().on_message_begin()
        begun, self._begun = self._begun, None
        if begun is not None:
            self.scope[BEGUN] = begun  # type: ignore[literal-required]

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    # -- a request comes in ------------------------------------------------------------------

    def _is_idle(self) -> bool:
        cycle = self.cycle
        answered = cycle is None or (cycle.response_complete and not self.pipeline)
        may_go_on = not (self.flow.write_paused or self.transport.is_closing())
        return answered and may_go_on and not self.draining.draining

    def _begin(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n", 0, MOST_HEAD) + 4
        plan = self.direct.plan(data[:end]) if end > 3 else None
        if plan is None:
            super().data_received(data)
            return
        missing = end + plan.length - len(data)
        if missing > 0:
            self._head_is_there()
            self._unset_keepalive_if_required()
            self._plan, self._missing = plan, missing
            self._parts.append(data)
            self._gather_timer = self.loop.call_later(GATHER_SECONDS, self._take_ordinary_way)
        elif missing == 0:
            self._run(plan, data, data[end:])
        else:  # with the next one behind it
            super().data_received(data)

    def _gather(self, plan: Plan, data: bytes) -> None:
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        whole = self._gathered()
        if self._missing == 0 and self._is_idle():
            self._run(plan, whole, whole[-plan.length :])
        else:
            super().data_received(whole)

    def _gathered(self) -> bytes:
        """What has come of a request; it is gathered no longer."""
        if self._gather_timer is not None:
            self._gather_timer.cancel()
            self._gather_timer = None
        self._plan = None
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole

    def _take_ordinary_way(self) -> None:
        if self._plan is not None:
            super().data_received(self._gathered())

    def _run(self, plan: Plan, request: bytes, body: bytes) -> None:
        running = self.direct.begin(plan, body, self)
        if running is None:
            super().data_received(request)
            return
        self._head_is_there()
        self._unset_keepalive_if_required()
        self._running, self._request = running, request
        self.draining.enter()

    # -- and its answer goes out: `v2_direct.Client` -----------------------------------------

    def reply(self, reply: Reply, trace: str) -> None:
        """Send the answer in one write, as uvicorn would write it."""
        self._running, self._request = None, b""
        headers = [*self.server_state.default_headers, *reply.headers]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(
            b"%b%bcontent-length: %d\r\nx-trace-id: %b\r\n%b\r\n%b"
            % (
                STATUS_LINE[reply.status],
                b"".join(lines),
                len(reply.body),
                trace.encode(),
                b"connection: close\r\n" if self._last else b"",
                reply.body,
            )
        )
        self.draining.leave()
        if self._last:
            self.transport.close()
        self.on_response_complete()
        if self._later and not self._last:
            self.data_received(self._rest())

    def go_on(self, begun: Begun) -> None:
        """Have the request served by the ordinary way, which takes up what was begun."""
        request, self._running, self._request = self._request, None, b""
        self._begun = begun
        super().data_received(request + self._rest())
        if self._last:
            super().shutdown()

    def _rest(self) -> bytes:
        rest = b"".join(self._later)
        self._later.clear()
        return rest


def speaking(direct: Direct, draining: Draining) -> type[DirectHttp]:
    """The protocol's class for uvicorn, which makes the objects.

    Args:
        draining: is told of requests that it does not see.
    """
    return type("Http", (DirectHttp,), {"direct": direct, "draining": draining})
