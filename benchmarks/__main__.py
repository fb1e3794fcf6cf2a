"""`python -m benchmarks`: all measurements, one after the other."""

from __future__ import annotations

from benchmarks import lifecycle, registry, throughput

if __name__ == "__main__":
    lifecycle.main([])
    registry.main([])
    throughput.main([])
