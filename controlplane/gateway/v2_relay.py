"""The way of one HTTP request to the private Triton server and of the answer back, as bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controlplane.errors import (
    InferenceTimeout,
    InvalidInput,
    ModelUnhealthy,
    ServiceUnavailable,
)
from controlplane.gateway import v2
from controlplane.gateway.errors import ClientGone
from controlplane.gateway.upstream import Upstream
from controlplane.gateway.upstream_connection import WHOLE, Answer, UpstreamLost, UpstreamTimeout
from controlplane.gateway.v2_answers import NOT_FORWARDED, checked_reply, error_text, returned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.gateway.asgi import Reply, Scope, Send
    from controlplane.gateway.services import Services

# A reader that takes nothing of an answer for so long is given up, in seconds.
SEND_STALL = 60.0


class Relay:
    """Connections to the private server, and what is said over them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.upstream = Upstream(lambda: services.server.endpoints.http_url)

    def close(self) -> None:
        """Drop the connections."""
        self.upstream.close()

    async def ask(
        self,
        head: bytes,
        body: bytes = b"",
        *,
        name: str,
        terms: v2.Terms,
        again: bool = True,
        enough: int = WHOLE,
    ) -> Answer:
        """Send one request; see `Upstream.request`.

        Args:
            name: the model, for messages.

        Raises:
            AnswerLost: the server cannot be reached, or died without any of the answer.
            InferenceTimeout: no answer within the terms.
            ServiceUnavailable: the server went away in the middle of the answer.
        """
        with upstream_errors(name, terms):
            return await self.upstream.request(
                head, body, deadline=terms.deadline, again=again, enough=enough
            )

    def forwarded(self, scope: Scope) -> list[bytes]:
        """Lines of the request's headers that Triton is to have.

        Raises:
            InvalidInput: a header has a line break in it.
        """
        secret = {n.lower().encode() for n in self._services.server.endpoints.http_headers}
        barred = NOT_FORWARDED | secret | _named_by_connection(scope)
        lines = [b"%b: %b\r\n" % pair for pair in scope["headers"] if pair[0] not in barred]
        text = b"".join(lines)
        if text.count(b"\n") != len(lines) or text.count(b"\r") != len(lines):
            raise InvalidInput("A header has a line break in it.")
        return lines

    def secret(self) -> list[bytes]:
        """Lines of the headers that open the private server's control calls."""
        headers = self._services.server.endpoints.http_headers
        return [f"{name}: {value}\r\n".encode() for name, value in headers.items()]


class upstream_errors:  # noqa: N801 a context manager, read as a statement
    """Errors of the connection as errors of the request. A class: a generator costs more."""

    def __init__(self, name: str, terms: v2.Terms) -> None:
        self._name, self._terms = name, terms

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UpstreamTimeout):
            raise InferenceTimeout(self._name, round(self._terms.timeout, 3)) from None
        if isinstance(error, UpstreamLost):
            fact = ServiceUnavailable(f"Triton does not answer: {error}.")
            raise (fact if error.begun else v2.AnswerLost(fact)) from None


def request_head(method: str, path: str, lines: list[bytes], length: int | None) -> bytes:
    """Request line and headers; `length` None for a request without a body."""
    start = f"{method} {path} HTTP/1.1\r\nhost: triton\r\n".encode()
    end = b"\r\n" if length is None else b"content-length: %d\r\n\r\n" % length
    return b"".join((start, *lines, end))


async def unless_not_run(answer: Answer, model_id: str) -> Answer:
    """The answer, when the model's process was alive to give it.

    Raises:
        AnswerLost: Triton says that the process is dead or gone.
    """
    if answer.status >= 400:
        text = error_text(await answer.read())
        if v2.was_not_run(text):
            raise v2.AnswerLost(ModelUnhealthy(model_id, text))
    return answer


async def whole_reply(answer: Answer) -> Reply:
    """The answer as one reply, its JSON checked.

    Raises:
        UnwritableAnswer: there is no valid JSON for it.
        ServiceUnavailable, InferenceTimeout: of the connection, see `upstream_errors`.
    """
    await answer.read()
    return checked_reply(answer)


async def pass_on(answer: Answer, chunks: AsyncIterator[bytes], send: Send) -> None:
    """Send an answer to the client piece by piece.

    Raises:
        ClientGone: it has taken nothing for SEND_STALL seconds.
        whatever `chunks` raises.
    """
    headers = returned(answer)
    if (length := answer.header(b"content-length")) is not None:
        headers.append((b"content-length", length))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    async for chunk in chunks:
        message = {"type": "http.response.body", "body": chunk, "more_body": True}
        try:
            await asyncio.wait_for(send(message), SEND_STALL)
        except (asyncio.TimeoutError, TimeoutError):
            raise ClientGone from None
    await send({"type": "http.response.body", "body": b""})


def _named_by_connection(scope: Scope) -> set[bytes]:
    """Headers that the Connection header makes a matter of this hop (RFC 9110 §7.6.1)."""
    values = [value for key, value in scope["headers"] if key == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")}
