"""Infer, generate and generate_stream over HTTP: check, lease, relay, once more where it is safe.

A body up to `HELD` is read before the lease is taken and kept, so that it can be sent again. A
larger binary one is passed on as it comes: its JSON part is checked, its tensors are not held.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from controlplane.errors import (
    InferenceTimeout,
    ModelMoraError,
    ModelUnhealthy,
    ServiceUnavailable,
)
from controlplane.gateway import v2
from controlplane.gateway.asgi import BEGUN, Reply, announced_length, body_of, header, next_chunk
from controlplane.gateway.upstream_connection import UpstreamLost, UpstreamTimeout
from controlplane.gateway.v2_answers import HEADER_LENGTH, check_begun, is_json, mended
from controlplane.gateway.v2_checks import (
    Checked,
    check_generate_body,
    check_infer_body,
    check_infer_json,
    json_length,
)
from controlplane.gateway.v2_events import checked_events
from controlplane.gateway.v2_paths import Target, upstream_path
from controlplane.gateway.v2_relay import (
    Relay,
    pass_on,
    request_head,
    unless_not_run,
    upstream_errors,
    whole_reply,
)
from controlplane.inference.mortal import of_living, while_alive
from controlplane.triton.failures import StubUnhealthy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.gateway.asgi import Receive, Scope, Send
    from controlplane.gateway.services import Services
    from controlplane.gateway.upstream_connection import Answer
    from controlplane.gateway.v2_begun import Begun
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

PROTOCOL = "v2_http"
HELD = 2**20


class Sent:
    """What `Runs.run` returns when the answer has been sent already."""


SENT = Sent()


class Run(NamedTuple):
    """One request that runs a model."""

    target: Target
    scope: Scope
    receive: Receive
    send: Send


class Runs:
    """Runs models for HTTP clients."""

    def __init__(self, services: Services, relay: Relay) -> None:
        self._services = services
        self._relay = relay
        self._limit = services.settings.max_request_bytes
        self._shared_memory = services.settings.allow_shared_memory

    async def run(self, run: Run) -> Reply | Sent:
        """Run one request.

        Returns:
            The answer, or `SENT` where it was passed on as it came.

        Raises:
            ClientGone, and everything that becomes an answer.
        """
        target = run.target
        # An unknown model is told before its tensors have travelled.
        servable = v2.resolve(self._services, target.name, target.version)
        if (length := self._streamed_length(run)) is not None:
            return await self._run_streamed(run, servable, length)
        body = await body_of(run.scope, run.receive, self._limit)
        # Again: the current version may have changed while the body came.
        servable = v2.resolve(self._services, target.name, target.version)
        begun: Begun | None = run.scope.get(BEGUN)
        started = begun.started if begun else None
        with v2.counted(self._services, servable, PROTOCOL, started) as outcome:
            checked = self._check(run, body)
            outcome.batch_size = checked.batch_size
            terms = begun.terms if begun else self._terms(checked)
            if begun and begun.answer:
                return await self._finish(run, servable, begun.answer, terms, outcome)
            once = checked.in_sequence
            lines = self._lines(run, checked)
            if target.action == "generate_stream":
                return await self._stream(run, servable, checked, lines, terms, outcome)

            async def send(leased: Servable) -> Answer:
                head = _head(leased, target.action, lines, len(checked.body))
                answer = await self._relay.ask(
                    head, checked.body, name=leased.model_id, terms=terms, again=not once
                )
                with upstream_errors(leased.model_id, terms):
                    return await unless_not_run(answer, leased.model_id)

            if begun and begun.loss:
                answer = await v2.served_again(self._services, servable, send, terms, begun.loss)
            else:
                answer = await v2.served(self._services, servable, send, terms, twice=not once)
            return await self._finish(run, servable, answer, terms, outcome)

    # -- before the lease --------------------------------------------------------------------

    def _check(self, run: Run, body: bytes) -> Checked:
        encoding = header(run.scope, "content-encoding")
        if run.target.action != "infer":
            return check_generate_body(body, encoding=encoding, limit=self._limit)
        return check_infer_body(
            body,
            header_length=header(run.scope, HEADER_LENGTH),
            encoding=encoding,
            limit=self._limit,
            shared_memory=self._shared_memory,
        )

    def _terms(self, checked: Checked) -> v2.Terms:
        timeout = self._services.settings.request_timeout
        return v2.terms(timeout, priority=checked.priority, timeout_us=checked.timeout_us)

    def _lines(self, run: Run, checked: Checked) -> list[bytes]:
        lines = self._relay.forwarded(run.scope)
        if checked.header_length is not None:
            lines.append(b"%b: %d\r\n" % (HEADER_LENGTH.encode(), checked.header_length))
        return lines

    # -- after Triton's answer has begun -----------------------------------------------------

    async def _finish(
        self, run: Run, servable: Servable, answer: Answer, terms: v2.Terms, outcome: v2.Outcome
    ) -> Reply | Sent:
        try:
            if not answer.complete and not is_json(answer):
                check_begun(answer)
                await self._pass_on(run, answer, terms, outcome)
                return SENT
            with upstream_errors(servable.model_id, terms):
                reply = await whole_reply(answer)
        finally:
            answer.drop()
        reply = mended(run.target.action, reply)
        if reply.status >= 400:
            fault = reply.status < 500
            v2.note_refusal(self._services, servable, outcome, clients_fault=fault)
        return reply

    async def _pass_on(
        self, run: Run, answer: Answer, terms: v2.Terms, outcome: v2.Outcome
    ) -> None:
        try:
            await pass_on(answer, _patiently(answer, terms.timeout), run.send)
        except (UpstreamLost, UpstreamTimeout) as error:
            # The status has been sent: an answer cut short tells the client.
            outcome.error_code = ServiceUnavailable.code
            log.warning("answer cut short", model=run.target.name, reason=str(error))

    # -- generate_stream ---------------------------------------------------------------------

    async def _stream(
        self,
        run: Run,
        servable: Servable,
        checked: Checked,
        lines: list[bytes],
        terms: v2.Terms,
        outcome: v2.Outcome,
    ) -> Reply | Sent:
        """Server-sent events as they come; the lease lasts until the last one."""
        once = checked.in_sequence

        async def send(leased: Servable) -> Answer:
            head = _head(leased, "generate_stream", lines, len(checked.body))
            view = self._services.scheduler.view_of(*leased.key)
            process_id = view.process_id if view else None
            asking = self._relay.ask(
                head, checked.body, name=leased.model_id, terms=terms, again=not once, enough=0
            )
            try:
                answer = await of_living(asking, process_id)
            except StubUnhealthy as error:
                raise v2.AnswerLost(ModelUnhealthy(leased.model_id, str(error))) from None
            try:
                with upstream_errors(leased.model_id, terms):
                    await unless_not_run(answer, leased.model_id)
                if answer.status < 400:
                    limit = None if checked.timeout_us else terms.timeout
                    chunks = while_alive(_patiently(answer, limit), process_id)
                    events = _events(answer, chunks, limit, leased, outcome)
                    await pass_on(answer, events, run.send)
            finally:
                answer.drop()
            return answer

        answer = await v2.served(self._services, servable, send, terms, twice=not once)
        if answer.status < 400:
            return SENT
        return await self._finish(run, servable, answer, terms, outcome)

    # -- large bodies ------------------------------------------------------------------------

    def _streamed_length(self, run: Run) -> int | None:
        """Length of a body that is passed on as it comes; None for one that is held."""
        length = announced_length(run.scope, self._limit)
        plain = header(run.scope, "content-encoding") in (None, "", "identity")
        binary = header(run.scope, HEADER_LENGTH)
        streamed = run.target.action == "infer" and plain and binary not in (None, "0")
        return length if streamed and length is not None and length > HELD else None

    async def _run_streamed(self, run: Run, servable: Servable, length: int) -> Reply | Sent:
        json_bytes = json_length(header(run.scope, HEADER_LENGTH) or "", length)
        with v2.counted(self._services, servable, PROTOCOL) as outcome:
            begun = b""
            chunks = [begun]
            while (size := sum(map(len, chunks))) < json_bytes:
                chunks.append((await next_chunk(run.receive))[0])
            begun = b"".join(chunks)
            checked = check_infer_json(
                begun[:json_bytes], length - json_bytes, shared_memory=self._shared_memory
            )
            outcome.batch_size = checked.batch_size
            terms, lines = self._terms(checked), self._lines(run, checked)
            first, left = checked.body + begun[json_bytes:], length - size

            async def send(leased: Servable) -> Answer:
                head = _head(leased, "infer", lines, len(first) + left)
                with upstream_errors(leased.model_id, terms):
                    answer = await self._upload(run.receive, head, first, left, terms)
                    return await unless_not_run(answer, leased.model_id)

            answer = await v2.served(self._services, servable, send, terms, twice=False)
            return await self._finish(run, servable, answer, terms, outcome)

    async def _upload(
        self, receive: Receive, head: bytes, first: bytes, left: int, terms: v2.Terms
    ) -> Answer:
        connection = await self._relay.upstream.connect()
        answer = connection.begin(head, first, terms.deadline, unsent=left)
        try:
            while left:
                chunk, _ = await next_chunk(receive)
                left -= len(chunk)
                if not await connection.more(chunk, answer):
                    break
            await connection.wait(terms.deadline, enough=HELD)
        except BaseException:
            answer.drop()
            raise
        return answer


def _head(servable: Servable, action: str, lines: list[bytes], length: int) -> bytes:
    return request_head("POST", f"{upstream_path(servable)}/{action}", lines, length)


async def _patiently(answer: Answer, seconds: float | None) -> AsyncIterator[bytes]:
    """The answer's chunks, each in `seconds` after the one before; None keeps the deadline."""
    loop = asyncio.get_running_loop()
    async for chunk in answer.chunks():
        yield chunk
        if seconds is not None:
            answer.deadline = loop.time() + seconds


async def _events(
    answer: Answer,
    chunks: AsyncIterator[bytes],
    seconds: float | None,
    servable: Servable,
    outcome: v2.Outcome,
) -> AsyncIterator[bytes]:
    """Triton's server-sent events; a stream that breaks ends with an error in Triton's form."""

    def refused(code: str) -> None:
        outcome.error_code = code

    if not answer.header(b"content-encoding"):
        chunks = checked_events(chunks, refused)
    try:
        async for chunk in chunks:
            yield chunk
    except (StubUnhealthy, UpstreamLost, UpstreamTimeout) as error:
        fact: ModelMoraError = ServiceUnavailable(f"Triton does not answer: {error}.")
        if isinstance(error, UpstreamTimeout):
            fact = InferenceTimeout(servable.model_id, seconds or 0.0)
        outcome.error_code = fact.code
        yield b"data: " + msgspec.json.encode({"error": fact.message}) + b"\n\n"
