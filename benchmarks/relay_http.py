"""What the gateway's HTTP relay costs: the same client at /v2 and at the private Triton port.

Rounds are interleaved, so that whatever else the machine does meets both alike; ratios are taken
within the round. The client runs in this process, on the same cores. A third way is the gateway's
ordinary one, through ASGI: what it costs more is what the short way saves.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.http.aio as triton_http

from benchmarks import setting
from benchmarks.throughput import Call, _http_way, drive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.service import Service

IN_FLIGHT = (1, 16, 64)
# A query keeps a request off the short way (docs/data-plane.md) and means nothing otherwise.
ORDINARY = {"way": "ordinary"}


@dataclass
class Turns:
    """What one way did at one number of requests in flight."""

    per_second: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    requests: int = 0
    gateway_seconds: float = 0.0

    async def take(self, service: Service, call: Call, *how: Any) -> None:
        """Drive the way once more; the gateway's processor time is that of this turn."""
        used = _processor_seconds(service)
        per_second, latencies = await drive(call, *how)
        self.gateway_seconds += _processor_seconds(service) - used
        self.per_second.append(per_second)
        self.p50_ms.append(setting.percentile_ms(latencies, 50))
        self.requests += len(latencies)

    @property
    def gateway_ms(self) -> float:
        """Of the gateway's processor time, for each request."""
        return self.gateway_seconds / self.requests * 1000


async def measure(service: Service, *, rounds: int, seconds: float) -> None:
    """Print added latency, throughput over the private port's, and the gateway's own time."""
    with service.client() as control:
        control.load(setting.MODEL)
        private_url = str(control.status().triton["http_url"]).removeprefix("http://")
    random = np.random.default_rng(0)
    requests = [[setting.short_text(random)] for _ in range(256)]
    private = triton_http.InferenceServerClient(private_url, conn_limit=64)
    gateway = triton_http.InferenceServerClient(service.url.removeprefix("http://"), conn_limit=64)
    rows = []
    async with private, gateway:
        ways = (_http_way(private), _http_way(gateway), _http_way(gateway, query_params=ORDINARY))
        for way in ways:
            await drive(way, requests, 64, 1.0)
        for in_flight in IN_FLIGHT:
            turns = [Turns() for _ in ways]
            for _ in range(rounds):
                for way, turn in zip(ways, turns, strict=True):
                    await turn.take(service, way, requests, in_flight, seconds)
            rows.append([in_flight, *_row(*turns)])
    header = [
        "in flight",
        "private port, requests/s",
        "gateway",
        "ratio",
        "added p50, ms",
        "gateway CPU, ms",
        "through ASGI: ratio",
        "CPU, ms",
    ]
    setting.print_table("HTTP: /v2 and the private Triton port", header, rows)


def _row(private: Turns, gateway: Turns, ordinary: Turns) -> list[str]:
    def ratio(turns: Turns) -> str:
        rounds = zip(turns.per_second, private.per_second, strict=True)
        found = [ours / theirs for ours, theirs in rounds]
        return f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"

    medians = zip(gateway.p50_ms, private.p50_ms, strict=True)
    added = [ours - theirs for ours, theirs in medians]
    return [
        f"{statistics.median(private.per_second):.0f}",
        f"{statistics.median(gateway.per_second):.0f}",
        ratio(gateway),
        f"{statistics.median(added):.2f}",
        f"{gateway.gateway_ms:.2f}",
        ratio(ordinary),
        f"{ordinary.gateway_ms:.2f}",
    ]


def _processor_seconds(service: Service) -> float:
    times = setting.control_plane(service).cpu_times()
    return float(times.user + times.system)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.relay_http`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per way and round")
    options = parser.parse_args(arguments)
    setting.print_machine()
    with setting.running_service() as service:
        asyncio.run(measure(service, rounds=options.rounds, seconds=options.seconds))


if __name__ == "__main__":
    main()
