"""What the gateway's HTTP relay costs: the same client at /v2 and at the private Triton port.

Rounds are interleaved, so that whatever else the machine does meets both alike; ratios are taken
within the round. The client runs in this process, on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from typing import TYPE_CHECKING

import numpy as np
import tritonclient.http.aio as triton_http

from benchmarks import setting
from benchmarks.throughput import _http_way, drive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.service import Service

IN_FLIGHT = (1, 16, 64)


async def measure(service: Service, *, rounds: int, seconds: float) -> None:
    """Print added latency at 1 in flight, and throughput of the gateway over the private port's."""
    with service.client() as control:
        control.load(setting.MODEL)
        private_url = str(control.status().triton["http_url"]).removeprefix("http://")
    random = np.random.default_rng(0)
    requests = [[setting.short_text(random)] for _ in range(256)]
    private = triton_http.InferenceServerClient(private_url, conn_limit=64)
    gateway = triton_http.InferenceServerClient(service.url.removeprefix("http://"), conn_limit=64)
    rows = []
    async with private, gateway:
        ways = (_http_way(private), _http_way(gateway))
        for way in ways:
            await drive(way, requests, 64, 1.0)
        for in_flight in IN_FLIGHT:
            ratios, added, speeds = [], [], ([], [])
            used, count = _processor_seconds(service), 0
            for _ in range(rounds):
                (direct, slow), (ours, slower) = [
                    await drive(way, requests, in_flight, seconds) for way in ways
                ]
                ratios.append(ours / direct)
                added.append((np.median(slower) - np.median(slow)) * 1000)
                speeds[0].append(direct)
                speeds[1].append(ours)
                count += len(slower)
            rows.append(
                [
                    in_flight,
                    f"{statistics.median(speeds[0]):.0f}",
                    f"{statistics.median(speeds[1]):.0f}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                    f"{statistics.median(added):.2f}",
                    f"{(_processor_seconds(service) - used) / count * 1000:.2f}",
                ]
            )
    header = [
        "in flight",
        "private port, requests/s",
        "gateway",
        "ratio",
        "added p50, ms",
        "gateway CPU, ms",
    ]
    setting.print_table("HTTP: /v2 and the private Triton port", header, rows)


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
