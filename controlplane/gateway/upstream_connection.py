"""One HTTP/1.1 connection to the private Triton server, and the answer that comes over it.

One request at a time; the answer is either whole or taken piece by piece with back-pressure. The
connection is dropped, which ends the request at Triton, when its caller is cancelled or its time is
up. Lengths are read by httptools alone. Protocol: RFC 9112; Triton frames its answers with
Content-Length or chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.gateway.upstream import Upstream

Headers = list[tuple[bytes, bytes]]
# Told once that the answer is whole, that WHOLE bytes of it have come, or what went wrong.
Listener = Callable[["UpstreamLost | UpstreamTimeout | None"], None]

# An answer up to this size is waited for as a whole; a larger one is passed on as it comes.
WHOLE = 2**20
_COPIED = 2**16  # bytes; a smaller body is sent in one piece with its head, which costs less


class UpstreamLost(Exception):
    """The connection cannot be made, or ended before the end of the answer.

    Attributes:
        begun: part of the answer had come.
    """

    def __init__(self, text: str, *, begun: bool = False) -> None:
        super().__init__(text)
        self.begun = begun


class UpstreamTimeout(Exception):
    """The deadline came before the answer's end."""


class Answer:
    """An answer whose head is there; the body is whole where `complete`, else still coming.

    Attributes:
        headers: as Triton wrote them, names in lower case.
        deadline: on the event loop's clock, for the rest of the body; may be moved.
    """

    __slots__ = ("_connection", "body", "complete", "deadline", "headers", "status")

    def __init__(self, connection: Connection, deadline: float) -> None:
        self._connection = connection
        self.deadline = deadline
        self.status = 0
        self.headers: Headers = []
        self.body: list[bytes] = []
        self.complete = False

    def header(self, name: bytes) -> bytes | None:
        """Value of a header, `name` in lower case."""
        for key, value in self.headers:  # asked for every answer: a generator would show
            if key == name:
                return value
        return None

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamLost, UpstreamTimeout.
        """
        if not self.complete:
            self.body = [chunk async for chunk in self.chunks()]
        return self.whole

    @property
    def whole(self) -> bytes:
        """The whole body of an answer that is complete."""
        if len(self.body) != 1:
            self.body = [b"".join(self.body)]
        return self.body[0]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; to be read to its end, or `drop`ped.

        Raises:
            UpstreamLost, UpstreamTimeout.
        """
        while True:
            if self.body:
                chunk = b"".join(self.body)
                self.body.clear()
                if not self.complete:  # else the connection may serve somebody else by now
                    self._connection.resume_reading()
                yield chunk
            elif self.complete:
                return
            else:
                await self._connection.wait(self.deadline, enough=1)

    def drop(self) -> None:
        """End the request where its answer is not complete."""
        if not self.complete:
            self._connection.abort()


class Connection(asyncio.Protocol):
    """One connection. `answer` is the request under way, None while it is idle."""

    def __init__(self, pool: Upstream) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._listener: Listener | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._parsing = self._due = False
        self._enough = 0
        self._buffered = 0
        self._unsent = 0
        self._headed = self._reading_paused = self._unasked = False
        self.lost = False

    # -- asyncio's side ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._pool.add(self)

    def data_received(self, data: bytes) -> None:
        self._parsing = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()
        self._parsing = False
        if self._unasked:  # what follows could be taken for the next request's answer
            self.abort()
        if self._due:
            self._tell()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.lost = True
        self._pool.forget(self)
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # -- the parser's side -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._unasked = self._answer is None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None:
            self._answer.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        answer = self._answer
        if answer is None:
            return
        answer.status = self._parser.get_status_code()
        if answer.status < 200:  # an interim answer: the real one follows
            answer.headers.clear()
            return
        self._headed = True
        if self._enough == 0:
            self._wake()

    def on_body(self, chunk: bytes) -> None:
        if self._answer is None:
            return
        self._answer.body.append(chunk)
        self._buffered += len(chunk)
        if self._buffered >= self._enough:
            self._wake()
        if self._buffered >= WHOLE and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or not self._headed:
            return
        answer.complete = True
        self._answer = None
        self.resume_reading()
        self._wake()
        if self._parser.should_keep_alive() and not self._unsent:
            self._pool.keep(self)
        else:  # also when it answered before it had read the request
            self.abort()

    # -- the relay's side --------------------------------------------------------------------

    def begin(self, head: bytes, body: bytes, deadline: float, *, unsent: int = 0) -> Answer:
        """Send a request; `unsent` bytes of its body follow by `more`."""
        self._answer = answer = Answer(self, deadline)
        self._headed, self._buffered, self._unsent = False, 0, unsent
        if self._transport is None:
            self.lost = True
        else:
            if len(body) > _COPIED:
                self._transport.writelines((head, body))
            else:
                self._transport.write(head + body)
        return answer

    def listen(self, listener: Listener, deadline: float) -> None:
        """Have a function called instead of waiting: no future and no task for a small answer."""
        self._enough = WHOLE
        self._listener = listener
        self._deadline_timer = self._loop.call_at(deadline, self._listened_enough)
        if self.lost:
            self._wake()

    def give_up(self) -> None:
        """End the request that is listened for; nobody is told."""
        self._unlisten()
        self.abort()

    async def more(self, chunk: bytes, answer: Answer) -> bool:
        """Send a further part of the body; False when the answer came first, so enough was sent.

        Raises:
            UpstreamLost, UpstreamTimeout.
        """
        if self._drained is not None:
            await self._until(self._drained, answer.deadline)
        if answer.complete or self._headed:
            return False
        if self.lost or self._transport is None:
            raise UpstreamLost("the connection was lost")
        self._transport.write(chunk)
        self._unsent -= len(chunk)
        return True

    async def wait(self, deadline: float, *, enough: int) -> None:
        """Wait for the end of the answer, or for `enough` bytes of its body (0: for its head).

        Raises:
            UpstreamLost, UpstreamTimeout.
        """
        answer = self._answer
        if answer is None or (self._headed and self._buffered >= enough):
            return
        if not self.lost:
            self._enough = enough
            self._waiter = self._loop.create_future()
            await self._until(self._waiter, deadline)
        if self.lost and not answer.complete:
            raise UpstreamLost("the connection was lost", begun=self._headed)

    async def _until(self, future: asyncio.Future[None], deadline: float) -> None:
        timer = self._loop.call_at(deadline, _expire, future)
        try:
            await future
        except asyncio.CancelledError:
            self.abort()
            raise
        except UpstreamTimeout:
            self.abort()
            raise
        finally:
            timer.cancel()

    def resume_reading(self) -> None:
        """Take more of the answer's body: what was buffered has been passed on."""
        self._buffered = 0
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection, and with it the request."""
        if self._transport is not None:
            self._transport.abort()
        self.lost = True
        self._pool.forget(self)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._listener is not None:
            self._due = True
            if not self._parsing:  # else when the parser is done: the listener may do anything
                self._tell()

    def _tell(self) -> None:
        incomplete = self._answer is not None
        listener = self._unlisten()
        if listener is not None:
            lost = incomplete and self.lost
            text = "the connection was lost"
            listener(UpstreamLost(text, begun=self._headed) if lost else None)

    def _listened_enough(self) -> None:
        listener = self._unlisten()
        self.abort()
        if listener is not None:
            listener(UpstreamTimeout())

    def _unlisten(self) -> Listener | None:
        listener, self._listener, self._due = self._listener, None, False
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        return listener


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(UpstreamTimeout())
