"""`python -m benchmarks`: all measurements, one after the other."""

from __future__ import annotations

from benchmarks import leases, lifecycle, registry, throughput

if __name__ == "__main__":
    leases.main([])
    lifecycle.main([])
    registry.main([])
    throughput.main([])
