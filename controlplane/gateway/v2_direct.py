"""Infer requests that are answered without a task: the short way for what comes all the time.

It serves one case: a small request has come whole, its model is loaded with a place free, and a
connection to Triton is idle. Checks, lease, errors and counting are those of `v2_runs.py`; what
this way cannot do (wait, in the main) it leaves to that one, before it has begun or afterwards.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

import structlog

from controlplane.errors import (
    InferenceTimeout,
    ModelMoraError,
    ModelUnhealthy,
    ServiceUnavailable,
)
from controlplane.gateway import v2
from controlplane.gateway.errors import ClientGone
from controlplane.gateway.http import CLIENT_GONE, log_access
from controlplane.gateway.trace import choose_trace_id
from controlplane.gateway.upstream_connection import UpstreamTimeout
from controlplane.gateway.v2_answers import checked_reply, error_reply, error_text, mended
from controlplane.gateway.v2_begun import Begun
from controlplane.gateway.v2_checks import check_infer_body
from controlplane.gateway.v2_plans import Plans
from controlplane.gateway.v2_runs import HELD, PROTOCOL

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from controlplane.gateway.asgi import Reply
    from controlplane.gateway.services import Services
    from controlplane.gateway.upstream_connection import Answer, Connection, UpstreamLost
    from controlplane.gateway.v2_checks import Checked
    from controlplane.gateway.v2_plans import Plan
    from controlplane.gateway.v2_relay import Relay
    from controlplane.lifecycle.lease import Lease
    from controlplane.registry.model import Servable

MOST_BODY = HELD // 4


class Client(Protocol):
    """The connection that a request came on."""

    def reply(self, reply: Reply, trace: str) -> None:
        """Send the answer; the request has ended."""

    def go_on(self, begun: Begun) -> None:
        """Have the request served by the ordinary way, which takes up what was begun."""


class Direct:
    """The short way into one gateway."""

    def __init__(self, services: Services, relay: Relay) -> None:
        self.services = services
        self._relay = relay
        self._limit = min(services.settings.max_request_bytes, MOST_BODY)
        self._plans = Plans(relay, self._limit)
        # Asked once: even to be told that nobody listens costs a request a percent or two.
        self.logs_successes = services.settings.log_level == "DEBUG"

    def plan(self, raw: bytes) -> Plan | None:
        """What the bytes of a head ask for; None where it is nothing for the short way."""
        return self._plans.of(raw)

    def begin(self, plan: Plan, body: bytes, client: Client) -> DirectInfer | None:
        """Send a request to Triton; None where it needs the ordinary way, as if nothing was."""
        started = time.perf_counter()
        services, upstream = self.services, self._relay.upstream
        if not upstream.kept:
            return None
        try:
            servable = services.store.servable(plan.name, plan.version)
            checked = check_infer_body(
                body,
                header_length=plan.header_length,
                encoding=None,
                limit=self._limit,
                shared_memory=services.settings.allow_shared_memory,
            )
        except Exception:  # noqa: BLE001 whatever it is: found once more there, and told
            return None
        terms = v2.terms(
            services.settings.request_timeout,
            priority=checked.priority,
            timeout_us=checked.timeout_us,
        )
        lease = services.scheduler.lease(servable, deadline=terms.deadline, priority=terms.priority)
        leased = lease.try_enter()
        if leased is None:
            return None
        connection = upstream.take()
        if connection is None:  # the server has moved
            lease.leave()
            return None
        request = DirectInfer(self, client, plan, servable, lease, leased, terms, checked, started)
        request.send(connection)
        return request


class DirectInfer:
    """One request, from the moment it is sent to Triton."""

    __slots__ = (
        *("_answer", "_checked", "_client", "_connection", "_direct", "_lease", "_leased"),
        *("_leased_at", "_outcome", "_plan", "_servable", "_started", "_terms", "_trace"),
    )

    def __init__(
        self,
        direct: Direct,
        client: Client,
        plan: Plan,
        servable: Servable,
        lease: Lease,
        leased: Servable,
        terms: v2.Terms,
        checked: Checked,
        started: float,
    ) -> None:
        self._direct, self._client, self._plan = direct, client, plan
        self._servable, self._lease, self._leased = servable, lease, leased
        self._terms, self._checked, self._started = terms, checked, started
        self._leased_at = time.time()
        self._trace = choose_trace_id(*plan.traces)
        self._outcome = v2.Outcome(
            direct.services, servable, PROTOCOL, started, batch_size=checked.batch_size
        )

    def send(self, connection: Connection) -> None:
        """Send it; what comes of it is told to the client."""
        body = self._checked.body
        head = self._plan.head_for(self._leased, self._checked)
        self._connection = connection
        self._answer = connection.begin(head, body, self._terms.deadline)
        connection.listen(self._answered, self._terms.deadline)

    def cancel(self) -> None:
        """End it: the client is gone."""
        self._connection.give_up()
        self._outcome.error_code = ClientGone.code
        self._end(CLIENT_GONE)

    def _answered(self, error: UpstreamLost | UpstreamTimeout | None) -> None:
        answer = self._answer
        reply: Reply | None
        if error is None and answer.complete and answer.status < 400:
            reply = self._reply()
        else:
            with self._named():
                reply = self._failure(error)
        if reply is not None:
            try:
                self._client.reply(reply, self._trace)
            finally:
                self._end(reply.status)

    def _reply(self) -> Reply:
        try:
            reply = mended("infer", checked_reply(self._answer))
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes an answer
            return self._failed(error)
        if reply.status >= 400:
            fault = reply.status < 500
            services = self._direct.services
            v2.note_refusal(services, self._servable, self._outcome, clients_fault=fault)
        return reply

    def _failed(self, error: Exception) -> Reply:
        known = error if isinstance(error, ModelMoraError) else ModelMoraError
        self._outcome.error_code = known.code
        with self._named():
            return error_reply(error)

    # -- all but success ---------------------------------------------------------------------

    def _failure(self, error: UpstreamLost | UpstreamTimeout | None) -> Reply | None:
        """The answer where it is not simply good; None when the ordinary way gives it."""
        answer, model_id = self._answer, self._leased.model_id
        if isinstance(error, UpstreamTimeout):
            return self._failed(InferenceTimeout(model_id, round(self._terms.timeout, 3)))
        if error is not None:
            return self._lost(error)
        if not answer.complete:
            self._go_on(lease=self._lease, answer=answer)
            return None
        text = error_text(answer.whole)
        if v2.was_not_run(text):
            return self._once_more(v2.AnswerLost(ModelUnhealthy(model_id, text)))
        return self._reply()

    def _lost(self, error: UpstreamLost) -> Reply | None:
        fact = ServiceUnavailable(f"Triton does not answer: {error}.")
        if error.begun:
            return self._failed(fact)
        if self._checked.in_sequence:
            return self._once_more(v2.AnswerLost(fact))
        # A kept connection may just have been closed: that is found out on a new one.
        self._lease.leave()
        self._go_on()
        return None

    def _once_more(self, lost: v2.AnswerLost) -> Reply | None:
        """Have it sent again when the death has been noticed, where that is safe."""
        again = not self._checked.in_sequence
        try:
            v2.note_loss(self._direct.services, self._leased, lost, twice=again)
        except ModelMoraError as error:
            return self._failed(error)
        self._lease.leave()
        self._go_on(loss=v2.Loss(self._leased, self._leased_at))
        return None

    def _go_on(
        self,
        *,
        loss: v2.Loss | None = None,
        lease: Lease | None = None,
        answer: Answer | None = None,
    ) -> None:
        begun = Begun(self._trace, self._started, self._terms, loss, lease, answer)
        self._client.go_on(begun)

    # -- the end -----------------------------------------------------------------------------

    def _end(self, status: int) -> None:
        """Count it and let go of the model: after the answer, which need not wait for it."""
        direct = self._direct
        self._lease.leave()
        self._outcome.publish()
        if status >= 400 or direct.logs_successes:
            with self._named():
                log_access("POST", unquote(self._plan.path), status, self._started)

    def _named(self) -> AbstractContextManager[None]:
        """Log lines carry the trace id and the model's."""
        return structlog.contextvars.bound_contextvars(
            trace_id=self._trace, model_id=self._servable.model_id
        )
