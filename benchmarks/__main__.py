"""`python -m benchmarks`: all measurements that need nothing given, one after the other."""

from __future__ import annotations

from benchmarks import (
    engines,
    generation,
    image,
    large_input,
    leases,
    lifecycle,
    locks,
    registry,
    relay_cpu,
    relay_grpc,
    relay_http,
    throughput,
)

if __name__ == "__main__":
    for benchmark in (
        *(generation, engines, image, large_input, leases, lifecycle, locks),
        *(registry, relay_cpu, relay_grpc, relay_http, throughput),
    ):
        benchmark.main([])
