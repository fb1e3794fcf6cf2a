"""What `modelmora top` shows, as figures: counters of the server made into rates and latencies."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from controlplane.client_types import Budget, Event, LoadedModel, WaitingRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controlplane.client_types import Lifecycle

REQUESTS = "modelmora_requests_total"
DURATION = "modelmora_inference_duration_seconds_bucket"
# A refresh of two seconds has too few requests for a 95th percentile; the last minute has enough.
LATENCY_WINDOW = 60.0


class Histogram(msgspec.Struct, frozen=True):
    """Cumulative counts by upper bound, in seconds, in ascending order; the last bound is inf."""

    counts: dict[float, float]

    def since(self, earlier: Histogram | None) -> Histogram:
        """What came after `earlier`; everything when counting began anew meanwhile."""
        if earlier is None:
            return self
        rest = {b: count - earlier.counts.get(b, 0.0) for b, count in self.counts.items()}
        return self if min(rest.values(), default=0.0) < 0 else Histogram(rest)

    def quantile(self, fraction: float) -> float | None:
        """Seconds, interpolated within the bucket as Prometheus does; None without a sample."""
        total = self.counts.get(math.inf, 0.0)
        if total <= 0:
            return None
        rank, below, lower = fraction * total, 0.0, 0.0
        for bound, count in self.counts.items():
            if count >= rank:
                # beyond the last bound nothing is known but that bound
                return lower if math.isinf(bound) else _between(lower, bound, below, count, rank)
            below, lower = count, bound
        return lower


def _between(lower: float, upper: float, below: float, count: float, rank: float) -> float:
    share = (rank - below) / (count - below) if count > below else 1.0
    return lower + (upper - lower) * share


class Counters(msgspec.Struct, frozen=True):
    """The server's counters at a moment of `time.monotonic()`, by model id."""

    taken: float
    requests: dict[str, float]
    errors: dict[str, float]
    durations: dict[str, Histogram]


def read_counters(text: str, taken: float) -> Counters:
    """The counters that are of interest here, out of Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    # the page may have thousands of lines; these are the few to be parsed
    chosen = [line for line in text.splitlines() if line.startswith((REQUESTS, DURATION))]
    requests: defaultdict[str, float] = defaultdict(float)
    errors: defaultdict[str, float] = defaultdict(float)
    durations: defaultdict[str, defaultdict[float, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families("\n".join(chosen) + "\n"):
        for sample in family.samples:
            model_id = sample.labels.get("model_id", "")
            if sample.name == REQUESTS:
                requests[model_id] += sample.value
                errors[model_id] += sample.value * (sample.labels.get("status") == "error")
            else:
                durations[model_id][float(sample.labels["le"])] += sample.value
    histograms = {name: Histogram(dict(sorted(d.items()))) for name, d in durations.items()}
    return Counters(taken, dict(requests), dict(errors), histograms)


class TopModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model's state with its rates per second and latencies in milliseconds.

    Rates are those since the last refresh, latencies those of the last minute (of all time where
    there was no earlier refresh); None when nothing is known.
    """

    model: LoadedModel
    requests_per_second: float | None = None
    errors_per_second: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """One refresh; `events` has the latest last."""

    time: datetime
    url: str
    connected: bool = True
    uptime_seconds: float = 0.0
    device: str = "cpu"
    memory: Budget
    triton: dict[str, object] = {}
    requests_per_second: float | None = None
    models: list[TopModel] = []
    waiting: list[WaitingRequest] = []
    waiting_count: int = 0
    queue_depth: dict[str, int] = {}
    events: list[Event] = []


class Rates:
    """Remembers earlier counters, for what can only be told from two of them."""

    def __init__(self) -> None:
        self._earlier: deque[Counters] = deque()

    def top(
        self,
        url: str,
        lifecycle: Lifecycle,
        counters: Counters,
        events: Iterable[Event],
        order: str,
    ) -> Top:
        """The refresh that these answers make, its models in `order` (see `SORTS`)."""
        previous = self._earlier[-1] if self._earlier else None
        models = [self._model(model, counters, previous) for model in lifecycle.models]
        total = _rate(
            sum(counters.requests.values()),
            None if previous is None else sum(previous.requests.values()),
            counters,
            previous,
        )
        self._remember(counters)
        return Top(
            time=lifecycle.time,
            url=url,
            uptime_seconds=lifecycle.uptime_seconds,
            device=lifecycle.device,
            memory=lifecycle.memory,
            triton=dict(lifecycle.triton),
            requests_per_second=total,
            models=sorted(models, key=SORTS[order]),
            waiting=lifecycle.waiting,
            waiting_count=lifecycle.waiting_count,
            queue_depth=lifecycle.queue_depth,
            events=list(events),
        )

    def forget(self) -> None:
        """The server was away: what it counts now may have begun anew."""
        self._earlier.clear()

    def _remember(self, counters: Counters) -> None:
        self._earlier.append(counters)
        # one beyond the window stays: it is what the window begins with
        while len(self._earlier) > 1 and counters.taken - self._earlier[1].taken >= LATENCY_WINDOW:
            self._earlier.popleft()

    def _model(self, model: LoadedModel, now: Counters, previous: Counters | None) -> TopModel:
        name = model.model_id
        first = self._earlier[0] if self._earlier else None
        latency = now.durations.get(name, Histogram({})).since(
            first.durations.get(name) if first else None
        )
        return TopModel(
            model=model,
            requests_per_second=_rate_of(name, now, previous, "requests"),
            errors_per_second=_rate_of(name, now, previous, "errors"),
            p50_ms=_milliseconds(latency.quantile(0.5)),
            p95_ms=_milliseconds(latency.quantile(0.95)),
        )


def _rate_of(name: str, now: Counters, previous: Counters | None, what: str) -> float | None:
    counts: Mapping[str, float] = getattr(now, what)
    before = None if previous is None else getattr(previous, what).get(name, 0.0)
    return _rate(counts.get(name, 0.0), before, now, previous)


def _rate(
    count: float, before: float | None, now: Counters, previous: Counters | None
) -> float | None:
    if before is None or previous is None or now.taken <= previous.taken:
        return None
    # a counter that fell began anew, at 0
    grown = count - before if count >= before else count
    return round(grown / (now.taken - previous.taken), 2)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _by_memory(row: TopModel) -> tuple[float, str]:
    return (-(row.model.memory_usage_mb or 0.0), row.model.model_id)


def _by_last_used(row: TopModel) -> tuple[float, str]:
    used = row.model.last_used_at
    return (-used.timestamp() if used else 0.0, row.model.model_id)


def _by_requests(row: TopModel) -> tuple[float, str]:
    return (-(row.requests_per_second or 0.0), row.model.model_id)


def _by_name(row: TopModel) -> tuple[float, str]:
    return (0.0, row.model.model_id)


SORTS = {
    "memory": _by_memory,
    "last-used": _by_last_used,
    "requests": _by_requests,
    "name": _by_name,
}


def clock() -> float:
    """The clock that rates are measured by, in seconds."""
    return time.monotonic()
