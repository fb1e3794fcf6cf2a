"""The requests of one stream that Triton has not answered to the end: their leases, their count.

A request's lease and its place among the model's running requests end with its last answer.
Answers name the model, not the request (ids are the clients' own, often empty), so the last answer
of a model ends the oldest request to it: leases of one model are worth the same.

Where the end cannot be seen, the lease of the model is kept until the stream ends, without a place:
a server that does not mark last answers, an answer that cannot be read, a model that answers once
without saying that this was all. So is the lease of a model whose state belongs to a sequence that
the stream has begun, until the sequence ends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from controlplane.errors import InferenceFailed
from controlplane.gateway import v2

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.answers import Answer
    from controlplane.gateway.grpc_relay.relay import Relay
    from controlplane.gateway.grpc_relay.stream_messages import StreamScan
    from controlplane.gateway.services import Services
    from controlplane.lifecycle.lease import Lease, PlacelessLease
    from controlplane.registry.model import Servable

PROTOCOL = "v2_grpc_stream"
_MAX_SEQUENCES = 10_000  # of a model on a stream; with more the lease is kept until the stream ends


class Request:
    """One request: counted from its arrival until it is over.

    Attributes:
        lease: None before there is one, and where a kept one serves.
        outcome: how it goes, for the metrics.
    """

    __slots__ = ("lease", "outcome")

    def __init__(self, services: Services, servable: Servable) -> None:
        self.lease: Lease | None = None
        self.outcome = v2.Outcome(services, servable, PROTOCOL)

    def over(self, error_code: str | None = None) -> None:
        """Let go of the model, and count."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.leave()
        self.outcome.error_code = self.outcome.error_code or error_code
        self.outcome.publish()


class _Use:
    """Of one model by the stream.

    Attributes:
        requests: not answered to the end, in their order.
        kept: the lease that is held beyond its request.
        process_id: of the model, as its last request has met it.
        sequences: ids of those that were begun and have not ended.
        until_end: nobody can tell when the model is idle before the stream ends.
        awaited: the stream's next request looks for a lease of its own.
    """

    __slots__ = (
        "awaited",
        "kept",
        "process_id",
        "requests",
        "sequences",
        "servable",
        "until_end",
    )

    def __init__(self, servable: Servable) -> None:
        self.servable = servable
        self.process_id: int | None = None
        self.requests: deque[Request] = deque()
        self.kept: PlacelessLease | None = None
        self.sequences: set[bytes] = set()
        self.until_end = self.awaited = False

    @property
    def stays(self) -> bool:
        return self.until_end or bool(self.sequences)

    def lend(self) -> bool:
        """Whether the kept lease serves another request; one that is of no use is let go."""
        kept = self.kept
        if kept is None or kept.is_of_use:
            return kept is not None
        self.kept = None
        if self.requests and self.requests[-1].lease is None:
            self.requests[-1].lease = kept  # it runs under it
        else:
            kept.leave()
        return False

    def _is_to_keep(self, lease: Lease) -> bool:
        wanted = self.stays and self.kept is None
        return wanted and (lease.is_of_use or not self.awaited)

    def end_oldest(self, error_code: str | None) -> None:
        """The model has given its last answer to a request, or what counts as it."""
        request = self.requests.popleft()
        lease = request.lease
        # Of a model that is leaving the next request waits for the return: not for itself.
        if lease is not None and self._is_to_keep(lease):
            request.lease, self.kept = None, lease.without_place()
        request.over(error_code)


class StreamRequests:
    """All requests of a stream that have been sent on, by model."""

    __slots__ = ("_orphans", "_relay", "_total", "_uses")

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._uses: dict[tuple[str, int], _Use] = {}
        self._total = 0
        self._orphans = 0  # refused by Triton, which does not say which they are

    @property
    def servables(self) -> list[Servable]:
        """The models in use."""
        return [use.servable for use in self._uses.values()]

    @property
    def idle(self) -> bool:
        """True when nothing is outstanding and nothing is held."""
        return not self._uses

    @property
    def processes(self) -> set[int]:
        """Ids of the processes from which answers are awaited."""
        busy = (use for use in self._uses.values() if use.requests)
        return {use.process_id for use in busy if use.process_id is not None}

    # -- requests ----------------------------------------------------------------------------

    def borrow(self, servable: Servable) -> Servable | None:
        """The model, where a lease is kept that serves for another request."""
        use = self._uses.get(servable.key)
        if use is None:
            return None
        if use.lend():
            return use.servable
        use.awaited = True
        return None

    def sent(self, request: Request, leased: Servable) -> None:
        """Expect answers to a request, which has its lease unless it was borrowed."""
        use = self._uses.get(leased.key)
        if use is None:
            use = self._uses[leased.key] = _Use(leased)
        use.requests.append(request)
        use.awaited = False
        self._total += 1
        if (lease := request.lease or use.kept) is not None:
            use.process_id = lease.process_id

    def said(self, leased: Servable, said: StreamScan) -> None:
        """Note what the request that was sent last says, now that all of it has come in."""
        if not said.sequence:
            return
        use = self._uses[leased.key]
        if said.ends_sequence:
            use.sequences.discard(said.sequence)
        elif len(use.sequences) < _MAX_SEQUENCES:
            use.sequences.add(said.sequence)
        else:
            use.until_end = True

    # -- answers -----------------------------------------------------------------------------

    def answered(self, answer: Answer) -> None:
        """Take notice of an answer."""
        use = None if answer.key is None else self._uses.get(answer.key)
        error_code = InferenceFailed.code if answer.failed else None
        if answer.final is not None:
            self._relay.finals_are_marked = True
            if use is not None and use.requests:
                self._marked(use, error_code, final=answer.final)
        elif answer.failed and (self._relay.finals_are_marked or self._all_answer_once()):
            # What Triton refuses before a model sees it is not marked, nor does it name the model.
            # Of a server that marks nothing it could be an error in the midst of answers.
            self._orphans = min(self._orphans + 1, self._total)
            self._place_orphans()
        else:
            self._lose_sight(use, error_code)

    def _marked(self, use: _Use, error_code: str | None, *, final: bool) -> None:
        if not final:
            outcome = use.requests[0].outcome
            outcome.error_code = outcome.error_code or error_code
            if use.servable.form.decoupled:
                return
            # It answers once, unless its manifest is wrong: Triton says "not final" where a model
            # has told it separately, afterwards, that this was all.
            use.until_end = True
        self._over(use, error_code)

    def _all_answer_once(self) -> bool:
        return not any(use.servable.form.decoupled for use in self._uses.values())

    def _lose_sight(self, use: _Use | None, error_code: str | None) -> None:
        """Keep the model until the stream ends, or all, where it is not known which answered."""
        if use is not None:
            use.until_end = True
            if use.requests:
                self._over(use, error_code)
            return
        for lost in self._uses.values():
            lost.until_end = True
            while lost.requests:
                self._end_oldest(lost, error_code)
        self._orphans = 0

    def _over(self, use: _Use, error_code: str | None) -> None:
        self._end_oldest(use, error_code)
        self._orphans = min(self._orphans, self._total)
        self._place_orphans()

    def _place_orphans(self) -> None:
        """End the requests that were refused, as soon as it is clear which they are."""
        while self._orphans:
            busy = [use for use in self._uses.values() if use.requests]
            if len(busy) > 1 and self._orphans < self._total:
                return
            self._orphans -= 1
            self._end_oldest(busy[0], InferenceFailed.code)

    def _end_oldest(self, use: _Use, error_code: str | None) -> None:
        self._total -= 1
        use.end_oldest(error_code)
        if not use.requests and not use.stays:
            del self._uses[use.servable.key]
            if use.kept is not None:
                use.kept.leave()

    # -- the end -----------------------------------------------------------------------------

    def end(self, error_code: str | None) -> None:
        """Let go of all models."""
        uses, self._uses = self._uses, {}
        self._total = self._orphans = 0
        for use in uses.values():
            for request in use.requests:
                request.over(error_code)
            if use.kept is not None:
                use.kept.leave()
