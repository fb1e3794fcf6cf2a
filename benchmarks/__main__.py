"""`python -m benchmarks`: all measurements, one after the other."""

from __future__ import annotations

from benchmarks import generation, leases, lifecycle, registry, throughput

if __name__ == "__main__":
    generation.main([])
    leases.main([])
    lifecycle.main([])
    registry.main([])
    throughput.main([])
